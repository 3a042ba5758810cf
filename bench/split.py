"""Seconds of a whole split, files in and captions out, beside the vision encoder alone.

    python bench/split.py [--pictures 64] [--device cuda --dtype fp16 --batch 64 --workers 8]

What `python -m blip_art.predict` does after loading: loader processes, encoder and decoder, on
random weights and drawn JPEG files of 500 x 400 pixels. `floor` encodes as many pictures that lie
ready on the device. The table goes to bench/results/split_DEVICE_DTYPE.md and .json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.loader import drawn
from bench.side_by_side import command_line, write_table
from bench.weights import MODEL, make_weights
from blip_art.config import Config
from blip_art.data.datasets import Picture
from blip_art.distributed import Stop, World
from blip_art.memory import keep_freed_memory
from blip_art.model.captioner import BlipCaptioner, build_captioner
from blip_art.model.step import StepDecoder
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.weights import load_weights
from blip_art.predict import caption_pictures
from blip_art.train.optim import autocast, caption_dtype


def main() -> None:
    """Measure, print and write the table."""
    options = _options()
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_freed_memory()  # as process_group does
    with tempfile.TemporaryDirectory() as name:
        spec = make_weights(Path(name))
        tokenizer = CaptionTokenizer(spec["tokenizer"])
        model = build_captioner(MODEL, tokenizer)
        load_weights(model, spec["pth"])
        model.to(device).eval()
        files = drawn(Path(name))
        pictures = [Picture(files[n % len(files)].name, (), str(n))
                    for n in range(options.pictures)]
        config = _config(options, name)

        def split() -> None:
            caption_pictures(model, tokenizer, pictures, config, 0, World(0, 1, device), Stop(),
                             "captions")
        work = {"blip_art": split, "floor": _floor(model, options)}
        seconds: dict[str, list[float]] = {key: [] for key in work}
        for _ in range(options.rounds + 1):
            for key, one in work.items():
                seconds[key].append(_timed(one, device))
    median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
    write_table(f"split_{options.device}_{options.dtype}", command_line(), options.device, [{
            "pictures": options.pictures, "batch": options.batch,
            "blip_art, s": median["blip_art"], "floor, s": median["floor"],
            "of the floor": median["blip_art"] / median["floor"],
            "pictures/s": options.pictures / median["blip_art"]}], options.dtype)


def _config(options: argparse.Namespace, images: str) -> Config:
    config = Config()
    return dataclasses.replace(
        config, model=MODEL,
        data=dataclasses.replace(config.data, images=images, num_workers=options.workers),
        train=dataclasses.replace(config.train, amp="off" if options.dtype == "fp32"
                                  else options.dtype),
        generate=dataclasses.replace(config.generate, batch_size=options.batch))


def _floor(model: BlipCaptioner, options: argparse.Namespace) -> Callable[[], None]:
    device = torch.device(options.device)
    dtype = None if options.dtype == "fp32" else caption_dtype(options.dtype, device)
    encode = StepDecoder(model, dtype).encode
    images = torch.zeros(options.batch, 3, MODEL.image_size, MODEL.image_size, device=device)

    @torch.inference_mode()
    def work() -> None:
        with autocast(dtype, device):
            for first in range(0, options.pictures, options.batch):
                encode(images[:options.pictures - first])
    return work


def _timed(work: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
