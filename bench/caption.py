"""Seconds of a batch of captions: ours, transformers' BLIP and the original, in turn in one run.

    python bench/caption.py [--batch 4 8] [--dtype fp32] [--original CLONE --python PYTHON]

Beam search as the original evaluates: 3 beams, 5 to 20 tokens, 384 px, the same random weights and
pictures for all; who gives the same tokens is counted. `floor` is our vision encoder alone. CLONE
is a clone of the original's repository, PYTHON an environment for it (bench/peers/original.py says
with what); it computes in fp32 whatever --dtype says, since it offers nothing else. Peers are
processes of their own; on the CPU ours keeps freed memory (blip_art/memory.py), peers have the C
library's own settings. The table goes to bench/results/caption_DEVICE_DTYPE.md and .json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import side_by_side
from bench.side_by_side import command_line, in_turn, mfu, peers, write_table
from bench.weights import MODEL, make_weights
from blip_art.model.captioner import VITS


def main() -> None:
    """Measure, compare the captions, print and write the table."""
    options = side_by_side.options(__doc__.split("\n")[0], batch=[4, 8], rounds=5)
    command = side_by_side.commands(options.python if options.original else "")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        spec = {**make_weights(Path(name)), "device": options.device, "dtype": options.dtype,
                "original": str(options.original), "work": "caption"}
        with peers(command, spec) as asked:
            for batch in options.batch:
                requests = {peer: (peer, {"do": "caption", "batch": batch}) for peer in asked}
                requests["floor"] = ("blip_art", {"do": "encode", "batch": batch})
                rows.append(_row(batch, in_turn(asked, requests, options.rounds), options))
                print(rows[-1], flush=True)
    write_table(f"caption_{options.device}_{options.dtype}", command_line(),
                options.device, rows, options.dtype)


def _row(batch: int, answers: dict[str, dict[str, Any]],
         options: argparse.Namespace) -> dict[str, Any]:
    ours = answers["blip_art"]
    seconds = {name: answer["seconds"] for name, answer in answers.items()}
    row: dict[str, Any] = {"batch": batch}
    row.update({f"{name}, s": value for name, value in seconds.items()})
    for name in ("transformers", "original"):
        if name in seconds:
            same = sum(a == b for a, b in zip(ours["ids"], answers[name]["ids"], strict=True))
            row[f"faster than {name}"] = seconds[name] / seconds["blip_art"]
            row[f"same as {name}"] = f"{same} of {batch}"
    row["of the floor"] = seconds["blip_art"] / seconds["floor"]
    if options.device == "cuda":
        row["peak GB"] = ours["peak_gb"]
        # Of the encoder's products alone, which are nine tenths of all.
        row["MFU"] = mfu(batch * encoder_tflop() / seconds["blip_art"], options.dtype)
    return row


def encoder_tflop() -> float:
    """10^12 operations for one picture, counted by torch on tensors without storage."""
    import timm
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    name, extra = VITS[MODEL.vit]
    encoder = timm.create_model(name, img_size=MODEL.image_size, num_classes=0, global_pool="",
                                **extra).to("meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        encoder(torch.zeros(1, 3, MODEL.image_size, MODEL.image_size, device="meta"))
    return counter.get_total_flops() / 1e12


if __name__ == "__main__":
    main()
