"""Megabytes and seconds a picture of 100 megapixels takes, and what a rank keeps of it.

    python bench/loader.py --large [--before CHECKOUT]      # writes bench/results/loader_large.md

Each picture is read in a new process, as a loader worker reads it for captioning, without torch,
which takes longer to import: the peak above what the process had before, with that of the process
it may start; and seconds of the processor. And once in a process that keeps freed memory, as a
rank on the CPU does: what is still resident afterwards.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from bench.side_by_side import ROOT

READ = """
import ctypes, inspect, json, os, sys
sys.path.insert(0, sys.argv[1])
from PIL import Image
from blip_art.data.pictures import read_picture
Image.MAX_IMAGE_PIXELS = None
if sys.argv[3] == "rank":  # as memory.keep_freed_memory does
    ctypes.CDLL(None).mallopt(-3, 2**31 - 1)
    ctypes.CDLL(None).mallopt(-1, -1)
def memory(what):
    return int(open("/proc/self/status").read().split(what + ":")[1].split()[0]) / 1e3
def seconds():
    return sum(os.times()[:4])  # of processes that it started too
Image.new("RGB", (500, 400)).resize((384, 384), Image.Resampling.BICUBIC)
wanted = {"smallest_side": 628, "draft": False}  # transforms.smallest_side(384)
known = inspect.signature(read_picture).parameters
own, began = memory("VmRSS"), seconds()
picture = read_picture(sys.argv[2], **(wanted if "draft" in known else {}))
picture.resize((384, 384), Image.Resampling.BICUBIC)
del picture
print(json.dumps({"seconds": seconds() - began, "peak": memory("VmHWM") - own,
                  "kept": memory("VmRSS") - own}))
"""


def measure(file: Path, checkout: Path, kind: str = "worker") -> dict[str, float]:
    """Seconds, peak and kept megabytes of reading one file in a new process."""
    process = subprocess.Popen([sys.executable, "-c", READ, str(checkout), str(file), kind],
                               stdout=subprocess.PIPE)
    highest_of_child = 0.0
    while process.poll() is None:
        for child in _children(process.pid):
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{child}/status").read_text()
                highest_of_child = max(highest_of_child,
                                       int(status.split("VmHWM:")[1].split()[0]) / 1e3)
        time.sleep(0.01)
    assert process.stdout
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"error: {file} could not be read by {checkout}")
    found: dict[str, float] = json.loads(said)
    return {**found, "peak": found["peak"] + highest_of_child}


def _children(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def table(before: Path | None, kinds: list[str]) -> list[dict[str, Any]]:
    """A row for each kind of file."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in kinds or KINDS:
            file = KINDS[name](Path(folder))
            row: dict[str, Any] = {"100 megapixels": name, "file, MB": file.stat().st_size / 1e6}
            for title, checkout in (("before", before), ("after", ROOT)):
                if checkout:
                    worker, rank = measure(file, checkout), measure(file, checkout, "rank")
                    row |= {f"{title}: peak, MB": worker["peak"],
                            f"{title}: kept, MB": worker["kept"],
                            f"{title}: kept by a rank, MB": rank["kept"],
                            f"{title}: seconds": worker["seconds"]}
            rows.append({key: value if isinstance(value, str) else
                         round(value) if value >= 100 else round(value, 1)
                         for key, value in row.items()})
            print(json.dumps(rows[-1]), file=sys.stderr)
            file.unlink()
    return rows


def noise(width: int = 12_500, height: int = 8_000) -> Image.Image:
    """Smooth noise with grain, which packs about as a scan; RGB."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (100, 125, 3), np.uint8))
    grain = rng.normal(0, 6, (1_000, 1_250, 3))
    pixels = np.asarray(small.resize((1_250, 1_000), Image.Resampling.BICUBIC)) + grain
    pixels = np.tile(pixels.clip(0, 255).astype(np.uint8),
                     (-(-height // 1_000), -(-width // 1_250), 1))
    return Image.fromarray(pixels[:height, :width])


def write_tiled(file: Path, picture: Image.Image, compression: str = "raw",
                side: int = 512) -> Path:
    """A TIFF of tiles, which Pillow reads and does not write."""
    packing = {"raw": 1, "tiff_lzw": 5, "tiff_adobe_deflate": 8}[compression]
    offsets, sizes = [], []
    with open(file, "wb") as out:
        out.write(bytes(8))
        for top in range(0, picture.height, side):
            for left in range(0, picture.width, side):
                tile = picture.crop((left, top, left + side, top + side))
                offsets.append(out.tell())
                sizes.append(out.write(_packed(tile, compression)))
        directory, bits = out.tell(), (8,) * len(picture.getbands())
        tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
        for tag, kind, value in ((256, 4, picture.width), (257, 4, picture.height), (258, 3, bits),
                                 (259, 3, packing), (262, 3, 2 if len(bits) == 3 else 1),
                                 (277, 3, len(bits)), (322, 4, side), (323, 4, side),
                                 (324, 4, tuple(offsets)), (325, 4, tuple(sizes))):
            tags.tagtype[tag] = kind
            tags[tag] = value
        out.write(tags.tobytes(directory))
        out.seek(0)
        out.write(b"II*\0" + directory.to_bytes(4, "little"))
    return file


def _packed(tile: Image.Image, compression: str) -> bytes:
    """The bytes of a tile: of the one strip of a TIFF file that Pillow writes."""
    if compression == "raw":
        return tile.tobytes()
    with tempfile.TemporaryFile() as small:
        tile.save(small, "TIFF", compression=compression, tiffinfo={278: tile.height})
        small.seek(0)
        tags = Image.open(small).tag_v2  # type: ignore[attr-defined]
        small.seek(tags[273][0])
        assert len(tags[273]) == 1, "one strip"
        return small.read(tags[279][0])


def _saved(name: str, convert: Callable[[Image.Image], Image.Image] = lambda picture: picture,
           **options: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        convert(noise()).save(folder / name, **options)
        return folder / name
    return save


def _wide_grey(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


KINDS: dict[str, Callable[[Path], Path]] = {
    "TIFF, RGB, strips": _saved("a.tif"),
    "TIFF, RGB, strips, LZW": _saved("a.tif", compression="tiff_lzw"),
    "TIFF, RGB, strips, deflate": _saved("a.tif", compression="tiff_adobe_deflate"),
    "TIFF, RGB, tiles": lambda folder: write_tiled(folder / "a.tif", noise()),
    "TIFF, RGB, tiles, LZW": lambda folder: write_tiled(folder / "a.tif", noise(), "tiff_lzw"),
    "JPEG": _saved("a.jpg", quality=85),
    "JPEG, turned by EXIF": _saved("a.jpg", quality=85, exif=_turned()),
    "JPEG, progressive": _saved("a.jpg", quality=85, progressive=True),
    "PNG, RGB": _saved("a.png", compress_level=1),
    "PNG, 16-bit grey": _saved("a.png", _wide_grey, compress_level=1),
    "BMP (decoded whole)": _saved("a.bmp"),
}
