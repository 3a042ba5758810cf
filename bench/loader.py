"""Training pictures a second and core: ours beside the original's pipeline, in turn in one run.

    python bench/loader.py [--pictures DIR] [--side 384]

The original's operations, in its order, through torchvision and Pillow: RandomResizedCrop
(bicubic), flip, RandAugment(2, 5), ToTensor, Normalize. Both read the same JPEG files in one
process on one core; without --pictures, drawn ones of 500 x 400 pixels. Ours ends with bytes, so
that making floats of a batch is measured with it. The table goes to bench/results/loader.md and
.json. With --large: the memory that large pictures take (bench/large_pictures.py).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import (
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToTensor,
)
from torchvision.transforms.functional import InterpolationMode, affine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.large_pictures import table
from bench.side_by_side import command_line, write_table
from blip_art.data.pictures import decode
from blip_art.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    FILL,
    HIGHEST_LEVEL,
    OPERATIONS,
    TrainTransform,
    smallest_side,
    to_input,
)

PICTURES, BATCH = 64, 16


class EveryOperation:
    """As the original: brightness and sharpness are computed where they change nothing."""

    def __init__(self, count: int, level: int) -> None:
        self.count, self.share = count, level / HIGHEST_LEVEL

    def __call__(self, picture: Image.Image) -> Image.Image:
        names = [*OPERATIONS]
        for _ in range(self.count):
            name = names[int(torch.randint(len(names), (1,)))]
            if torch.rand(1) < 0.5:
                sign = 1 if torch.rand(1) < 0.5 else -1
                moved = (sign * 5, 0) if name == "TranslateX" else (0, sign * 5)
                picture = (affine(picture, 0.0, moved, 1.0, [0.0, 0.0], InterpolationMode.BILINEAR,
                                  FILL) if name.startswith("Translate")
                           else OPERATIONS[name](picture, self.share, sign))
        return picture


def main() -> None:
    """Measure, print and write the table."""
    options = _options()
    if options.large:
        write_table("loader_large", command_line(), "cpu", table(options.before, options.kinds))
        return
    torch.set_num_threads(1)
    plain = Compose([
        RandomResizedCrop(options.side, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
        RandomHorizontalFlip(), EveryOperation(2, 5), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)])
    ours, side = TrainTransform(options.side), smallest_side(options.side)
    with tempfile.TemporaryDirectory() as name:
        files = (sorted(options.pictures.glob("*.jpg"))[:PICTURES] if options.pictures
                 else drawn(Path(name)))
        steps: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
            "read and decode": (decode, lambda file: decode(file, side)),
            "all": (lambda file: plain(decode(file)), lambda file: ours(decode(file, side)))}
        rows = []
        for what, (theirs, mine) in steps.items():
            last = (lambda x: x, lambda x: x) if what != "all" else (
                torch.stack, lambda pixels: to_input(torch.stack(pixels)))
            seconds: dict[str, list[float]] = {"original": [], "blip_art": []}
            for _ in range(options.rounds + 1):
                for key, work, end in (("original", theirs, last[0]), ("blip_art", mine, last[1])):
                    torch.manual_seed(0)
                    seconds[key].append(_measure(work, end, files))
            median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
            rows.append({"what": what,
                         "original, pictures/s": len(files) / median["original"],
                         "blip_art, pictures/s": len(files) / median["blip_art"],
                         "times faster": median["original"] / median["blip_art"]})
    write_table("loader", command_line(), "cpu", rows)


def _measure(work: Callable[[Any], Any], end: Callable[[Any], Any], files: list[Path]) -> float:
    began = time.perf_counter()
    for first in range(0, len(files), BATCH):
        end([work(file) for file in files[first:first + BATCH]])
    return time.perf_counter() - began


def drawn(folder: Path) -> list[Path]:
    """Smooth noise, which JPEG packs about as a painting."""
    rng = np.random.default_rng(0)
    files = []
    for n in range(PICTURES):
        small = Image.fromarray(rng.integers(0, 256, (50, 62, 3), np.uint8))
        grain = rng.normal(0, 6, (400, 500, 3))
        pixels = np.asarray(small.resize((500, 400), Image.Resampling.BICUBIC)) + grain
        files.append(folder / f"{n}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1], quality=85)
    return files


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=Path, help="a folder of JPEG files")
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="megabytes of 100-megapixel files")
    parser.add_argument("--kinds", nargs="+", default=[], help="only these rows of that table")
    parser.add_argument("--before", type=Path, help="another checkout, to measure beside this one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
