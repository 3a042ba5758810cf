"""Seconds of a training step: ours, transformers' BLIP and the original, in turn in one run.

    python bench/train.py [--batch 4] [--dtype fp32] [--compile cudagraphs inductor]
                          [--original CLONE --python PYTHON]

Forward, backward and AdamW (fused in ours and, as its trainer has it, in transformers') on the same
random weights, pictures and captions, with dropout; ours also with `train.compile`, a row each. See
bench/caption.py for CLONE and PYTHON. Before a step is made the losses of ours and the original,
without dropout, are compared. On the CPU our process keeps freed memory (blip_art/memory.py), peers
have the C library's own settings. The table goes to bench/results/train_DEVICE_DTYPE.md and
.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import side_by_side
from bench.side_by_side import Peer, command_line, in_turn, mfu, peers, write_table
from bench.weights import MODEL, make_weights
from blip_art.model.captioner import build_captioner
from blip_art.model.tokenizer import CaptionTokenizer

TEXTS = ["a picture of a saint with a book and a lion at his feet",
         "a picture of ship in storm, sailors, sea monster, lighthouse on a rock",
         "a picture of head of a woman turned to the left",
         "a picture of landscape with ruins and shepherds, river, bridge, evening, and a dog"]


def main() -> None:
    """Measure, print and write the table."""
    options = side_by_side.options(__doc__.split("\n")[0], batch=[4], rounds=3, compiled=True)
    # The original computes in fp32 only.
    original = options.original and options.dtype == "fp32"
    command = side_by_side.commands(options.python if original else "")
    ours, ways = command.pop("blip_art"), ["", *options.compile]
    # A process for each, so that the memory of one is not told of another.
    command = {**{f"blip_art {way}": ours for way in ways}, **command}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        spec = {**make_weights(Path(name)), "device": options.device, "dtype": options.dtype,
                "original": str(options.original), "work": "train",
                "texts": TEXTS * (max(options.batch) // len(TEXTS) + 1)}
        tokenizer = CaptionTokenizer(spec["tokenizer"])
        with peers(command, spec) as asked:
            for batch in options.batch:
                requests = {peer: (peer, {"do": "train", "batch": batch}) for peer in asked}
                for way in ways:
                    requests[f"blip_art {way}"][1]["compile"] = way
                apart = _losses_apart(asked, batch) if original else None
                answers = in_turn(asked, requests, options.rounds)
                flops = _flops(batch, spec["texts"][:batch], tokenizer)
                rows += [_row(batch, way, answers, flops, options) for way in ways]
                if apart is not None:
                    rows[-len(ways)]["loss apart from the original's"] = apart
                print(*rows[-len(ways):], sep="\n", flush=True)
    write_table(f"train_{options.device}_{options.dtype}", command_line(),
                options.device, rows, options.dtype)


def _row(batch: int, way: str, answers: dict[str, dict[str, Any]], flops: int,
         options: argparse.Namespace) -> dict[str, Any]:
    ours = answers[f"blip_art {way}"]
    peers = {name: answer["seconds"] for name, answer in answers.items()
             if not name.startswith("blip_art")}
    row: dict[str, Any] = {"batch": batch, "train.compile": way or "no",
                           "blip_art, s": ours["seconds"]}
    row.update({f"{name}, s": value for name, value in peers.items()})
    row.update({f"faster than {name}": value / ours["seconds"] for name, value in peers.items()})
    row["TFLOP/s"] = flops / ours["seconds"] / 1e12
    if options.device == "cuda":
        row["peak GB"] = ours["peak_gb"]
        row["MFU"] = mfu(row["TFLOP/s"], options.dtype)
    return row


def _losses_apart(asked: dict[str, Peer], batch: int) -> float:
    ours, theirs = (asked[name].ask({"do": "loss", "batch": batch})["loss"]
                    for name in ("blip_art ", "original"))
    return abs(ours - theirs)


def _flops(batch: int, texts: list[str], tokenizer: CaptionTokenizer) -> int:
    """Of forward and backward, counted by torch on tensors without storage."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = build_captioner(MODEL, tokenizer)
    ids = tokenizer.encode(texts, MODEL.max_tokens)
    counted = model.counted(ids)
    images = torch.zeros(batch, 3, MODEL.image_size, MODEL.image_size, device="meta")
    # The CPU's fused attention is not among those that are counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.to("meta")(images, ids.to("meta"), counted.to("meta")).backward()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
