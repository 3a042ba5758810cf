"""transformers' BlipForConditionalGeneration in a benchmark; see serve.py."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Dict

import torch
from transformers import BertTokenizerFast, BlipForConditionalGeneration

from bench.peers.serve import Operation, pictures, serve

DEC, END = 30522, 102


def build(spec: Dict[str, Any]) -> Dict[str, Operation]:
    """The operations of a benchmark."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[spec["dtype"]]
    # Captions in half precision with weights that are: faster than autocast. Training needs them
    # whole.
    whole = spec["work"] == "train"
    model = BlipForConditionalGeneration.from_pretrained(
        spec["hf"], torch_dtype=torch.float32 if whole else dtype).to(spec["device"]).eval()
    tokenizer = BertTokenizerFast.from_pretrained(spec["tokenizer"])
    prompt = tokenizer("a picture of ", add_special_tokens=False).input_ids

    @functools.cache
    def caption(batch: int) -> Operation:
        images = pictures(spec, batch).to(dtype)
        # It drops the last token, which its processor appends.
        ids = torch.tensor([[DEC, *prompt, END]], device=spec["device"]).repeat(batch, 1)

        @torch.inference_mode()
        def work() -> Dict[str, Any]:
            rows = model.generate(pixel_values=images, input_ids=ids, num_beams=3, max_length=20,
                                  attention_mask=torch.ones_like(ids), min_length=5)
            return {"ids": [until_end(row[1 + len(prompt):]) for row in rows.tolist()]}
        return work

    @functools.cache
    def train(batch: int) -> Operation:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05,
                                      fused=True)  # as transformers' own trainer
        scaler = torch.amp.GradScaler(spec["device"], enabled=dtype is torch.float16)
        images = pictures(spec, batch)
        texts = tokenizer(spec["texts"][:batch], padding="longest", truncation=True, max_length=40,
                          return_tensors="pt").to(spec["device"])
        texts.input_ids[:, 0] = DEC
        labels = texts.input_ids.masked_fill(texts.input_ids == tokenizer.pad_token_id, -100)
        labels[:, :1 + len(prompt)] = -100
        half = (contextlib.nullcontext if dtype is torch.float32
                else lambda: torch.autocast(spec["device"], dtype))

        def work() -> Dict[str, Any]:
            with half():
                loss = model(pixel_values=images, input_ids=texts.input_ids,
                             attention_mask=texts.attention_mask, labels=labels).loss
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return {"loss": loss.item()}
        return work

    return {"caption": caption, "train": train}


def until_end(ids: Any) -> Any:
    """A caption without its end and what stands behind it."""
    return ids[:ids.index(END)] if END in ids else ids


if __name__ == "__main__":
    serve(build)
