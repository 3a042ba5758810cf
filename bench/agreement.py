"""Captions of a trained model beside transformers' on the same weights: the same tokens?

    python bench/agreement.py RUN [--pictures 1000] [--device cuda]

RUN is a finished run, such as runs/demo.

Ours in fp32, bf16 and fp16 and transformers' BlipForConditionalGeneration.generate in fp32, all
with the run's own beams and lengths. Of a caption with the same tokens the scores of both are
compared; of one with others both captions are scored by the model in fp32, and a tie is what
differs by 1e-5 at most. The table goes to bench/results/agreement_DEVICE.md and .json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import BlipForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.side_by_side import write_table
from blip_art.config import load_config
from blip_art.data.datasets import load_pairs, unique_pictures
from blip_art.data.loading import PictureDataset
from blip_art.data.transforms import to_input
from blip_art.files import RunDir
from blip_art.model.beams import BeamOptions
from blip_art.model.captioner import BlipCaptioner, build_captioner
from blip_art.model.decode import beam_search
from blip_art.model.hf import save_hf
from blip_art.model.step import StepDecoder
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.weights import load_weights
from blip_art.resume_checks import pairs_file
from blip_art.train.optim import autocast

TIE, BATCH = 1e-5, 25
CPU = torch.device("cpu")
TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Captions = list[list[int]]


def main() -> None:
    """Print and write the table."""
    options = _options()
    # Convolutions of both in fp32: a GPU's own choice is TF32, with three digits.
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    rows = compare(RunDir(options.run), options.pictures, device)
    of = "" if device.type == "cpu" else f" --device {device.type}"
    write_table(f"agreement_{device.type}",
                f"python bench/agreement.py RUN --pictures {rows[0]['pictures']}{of}",
                device.type, rows)


@torch.inference_mode()
def compare(run: RunDir, number: int,
            device: torch.device = CPU) -> list[dict[str, Any]]:
    """A row each for transformers, bf16 and fp16 beside ours in fp32, on so many pictures."""
    config = load_config(run.config)
    tokenizer = CaptionTokenizer(config.model.tokenizer)
    model = build_captioner(config.model, tokenizer).eval()
    load_weights(model, str(run.weights(run.saved_epochs()[-1])))
    model.to(device)
    pictures = unique_pictures([pair for split in ("val", "train") for pair in
                                load_pairs(pairs_file(config, split), split)])[:number]
    data = PictureDataset([picture.image for picture in pictures], config.data.images,
                          config.model.image_size)
    beams = BeamOptions(num_beams=config.generate.num_beams, max_length=config.generate.max_length,
                        min_length=config.generate.min_length)
    found: dict[str, Captions] = {name: [] for name in (*TYPES, "transformers")}
    # Of each kind's own search, and of the model in fp32 asked about the captions it found.
    scores: dict[str, list[float]] = {name: [] for name in found}
    asked: dict[str, list[float]] = {name: [] for name in found}
    decoders = {name: StepDecoder(model, dtype) for name, dtype in TYPES.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_hf(model, tokenizer, folder)
        peer = BlipForConditionalGeneration.from_pretrained(folder).to(device).eval()
    for first in tqdm(range(0, len(data), BATCH)):
        last = min(first + BATCH, len(data))
        images = to_input(torch.stack([data[n][1] for n in range(first, last)]).to(device))
        for name, dtype in TYPES.items():
            with autocast(dtype, images.device):
                ids, score = beam_search(decoders[name], decoders[name].encode(images), beams)
            found[name] += [candidates[0] for candidates in ids]
            scores[name] += score[:, 0].tolist()
        captions = _of_transformers(peer, model, images, beams)
        found["transformers"] += captions
        states = model.encode(images)
        for name in found:
            asked[name] += _scores(model, states, found[name][first:last], beams)
    scores["transformers"] = asked["transformers"]  # it tells none
    return [_row(name, found, scores, asked) for name in ("transformers", "bf16", "fp16")]


def _of_transformers(peer: Any, model: BlipCaptioner, images: Tensor,
                     beams: BeamOptions) -> Captions:
    # It drops the last token of what it is given, which its processor appends.
    prompt = torch.tensor([[*model.prompt_ids, model.end_id]],
                          device=images.device).repeat(len(images), 1)
    rows = peer.generate(
        pixel_values=images, input_ids=prompt, attention_mask=torch.ones_like(prompt),
        num_beams=beams.num_beams, max_length=beams.max_length, min_length=beams.min_length)
    return [ids[:ids.index(model.end_id)] if model.end_id in ids else ids
            for ids in rows[:, len(model.prompt_ids):].tolist()]


def _scores(model: BlipCaptioner, states: Tensor, captions: Captions,
            beams: BeamOptions) -> list[float]:
    """What beam search would say of these captions: the mean of their log-probabilities."""
    longest = beams.max_length - len(model.prompt_ids)
    scores = []
    for state, words in zip(states, captions, strict=True):
        ended = words + [model.end_id] if len(words) < longest else words
        ids = torch.tensor([[*model.prompt_ids, *ended]], device=state.device)
        logits = model.text_decoder.cls(model.hidden(state[None], ids))
        log_probs = logits[0, len(model.prompt_ids) - 1:-1].log_softmax(-1)
        said = log_probs.gather(1, ids[0, len(model.prompt_ids):, None])
        scores.append(float(said.sum()) / len(ended))
    return scores


def _row(name: str, found: dict[str, Captions], scores: dict[str, list[float]],
         asked: dict[str, list[float]]) -> dict[str, Any]:
    same = [ours == other for ours, other in zip(found["fp32"], found[name], strict=True)]
    apart = [abs(a - b) for table in (scores, asked)
             for a, b in zip(table["fp32"], table[name], strict=True)]
    own, of_both = apart[:len(same)], apart[len(same):]
    other = [far for equal, far in zip(same, of_both, strict=True) if not equal]
    return {"beside ours in fp32": name, "pictures": len(same),
            "different captions": len({tuple(ids) for ids in found["fp32"]}),
            "same tokens": sum(same), "ties": sum(far <= TIE for far in other),
            "largest difference of scores, same tokens": max(
                (far for equal, far in zip(same, own, strict=True) if equal), default=0.0),
            "in fp32, largest of other tokens": max(other, default=0.0)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
