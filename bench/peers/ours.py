"""blip-art in a benchmark; see serve.py."""

from __future__ import annotations

import functools
from typing import Any, Dict

import torch

from bench.peers.serve import Operation, pictures, serve
from bench.weights import MODEL
from blip_art.config import TrainConfig
from blip_art.memory import keep_freed_memory
from blip_art.model.beams import BeamOptions
from blip_art.model.captioner import build_captioner
from blip_art.model.decode import beam_search
from blip_art.model.linear import replaced
from blip_art.model.step import StepDecoder
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.weights import load_weights
from blip_art.train.faster import COMPILED_LENGTH, faster_steps
from blip_art.train.optim import Stepper, autocast


def build(spec: Dict[str, Any]) -> Dict[str, Operation]:
    """The operations of a benchmark."""
    device = torch.device(spec["device"])
    if device.type == "cpu":
        keep_freed_memory()  # as process_group does
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[spec["dtype"]]
    tokenizer = CaptionTokenizer(spec["tokenizer"])
    model = build_captioner(MODEL, tokenizer)
    load_weights(model, spec["pth"])
    model.to(device).eval()
    if spec["work"] == "train":
        return {"train": functools.cache(functools.partial(_train, spec, model, tokenizer)),
                "loss": functools.partial(_loss, spec, model, tokenizer)}
    decoder = StepDecoder(model, dtype)
    # Weights are cast once for all batches, as predict.py does it.
    block = autocast(dtype, device)
    block.__enter__()

    @functools.cache
    def encode(batch: int) -> Operation:
        images = pictures(spec, batch)

        @torch.inference_mode()
        def work() -> None:
            decoder.encode(images)
        return work

    @functools.cache
    def caption(batch: int) -> Operation:
        images = pictures(spec, batch)

        @torch.inference_mode()
        def work() -> Dict[str, Any]:
            ids, _ = beam_search(decoder, decoder.encode(images), BeamOptions())
            return {"ids": [candidates[0] for candidates in ids]}
        return work

    return {"encode": encode, "caption": caption}


def _loss(spec: Dict[str, Any], model: Any, tokenizer: CaptionTokenizer,
          batch: int) -> Operation:
    ids = tokenizer.encode(spec["texts"][:batch], 40).to(spec["device"])

    @torch.no_grad()
    def work() -> Dict[str, Any]:
        loss = model.eval()(pictures(spec, batch), ids).item()
        model.train()
        return {"loss": loss}
    return work


def _train(spec: Dict[str, Any], model: Any, tokenizer: CaptionTokenizer, batch: int,
           compile: str) -> Operation:
    device = torch.device(spec["device"])
    settings = TrainConfig(lr=1e-5, amp="off" if spec["dtype"] == "fp32" else spec["dtype"])
    model.train()
    stepper = Stepper(model, settings, device)
    images = pictures(spec, batch)
    ids = tokenizer.encode(spec["texts"][:batch], 40, COMPILED_LENGTH if compile else None)
    ids, counted = (x.to(device) for x in (ids, model.counted(ids)))

    faster = faster_steps(model, compile, stepper.dtype)

    def work() -> Dict[str, Any]:
        if compile:
            torch.compiler.cudagraph_mark_step_begin()
        with replaced(faster):
            with autocast(stepper.dtype, device):
                loss = model(images, ids, counted)
            stepper.backward(loss)
        stepper.step()
        return {"loss": loss.item()}
    return work


if __name__ == "__main__":
    serve(build)
