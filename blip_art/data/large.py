"""Large pictures, made smaller while they are decoded, in little memory that is given back.

    picture = decode_large(path, file, Image.open(file), Wanted(smallest_side=1256))

A picture of 100 megapixels takes 400 MB decoded, and more while it is turned and converted. Nobody
needs its pixels: so JPEG files are decoded at a half, quarter or eighth, PNG and TIFF files some
rows at a time (bands.py), and each band is averaged in squares at once. What can only be decoded
as a whole (interlaced PNG, progressive JPEG, WebP, TIFF with planes apart, …) is decoded in a
process of its own, so that a rank or a loader worker never holds its memory.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from PIL import Image

from blip_art.data.bands import BAND_PIXELS, bands, ready
from blip_art.data.rgb import exif_orientation, to_rgb, turn_upright
from blip_art.files import PathLike

LARGE = 1 << 24
"""Pixels from which on a picture is decoded as here: 16.8 megapixels, 67 MB as RGB."""
LIMIT = 178_956_970
"""Pixels of what must be decoded as a whole: Pillow's own limit, 716 MB as RGB."""
BANDS_LIMIT = 4_000_000_000
"""Pixels of what is decoded in bands; it bounds the time, not the memory."""

# As many whole rows are held at once.
_LARGEST_FACTOR = 64
_TIMEOUT_S = 600
UNREADABLE_CODE, PASSING_CODE = 3, 4
_ROOT = str(Path(__file__).resolve().parents[2])
_CHILD = ("import sys; sys.path.insert(0, sys.argv[1]); "
          "from blip_art.data.pictures import decode_for_parent; decode_for_parent(*sys.argv[2:])")
# Slurm sends them to each process of a step. The parent knows what to do about them.
_BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_SIZE = struct.Struct("<II")


class TooManyPixels(ValueError):
    """A picture that would take too much memory."""


class NotDecoded(OSError):
    """What decoded a picture has not come to its end, whatever the picture is."""


class Wanted(NamedTuple):
    """How many pixels of a picture are enough, and how many are too many."""

    smallest_side: int
    """The shorter side stays at least twice this, for the resize that follows."""
    limit: int = LIMIT
    """Pixels of a picture that must be decoded as a whole."""
    here: bool = False
    """This is the process that may hold such a picture."""


def check_pixels(size: Tuple[int, int], limit: int) -> None:
    """Refuse a picture of too many pixels.

    Raises:
        TooManyPixels: names size, limit, and what to do.
    """
    pixels = size[0] * size[1]
    if pixels > limit:
        raise TooManyPixels(
            f"far too many pixels: {size[0]:,} x {size[1]:,} = {pixels / 1e6:,.0f} megapixels, at "
            f"most {limit / 1e6:,.0f} can be decoded; make a copy of the folder with smaller "
            "pictures: python -m blip_art.data pack DIR --max-side 2000")


def decode_large(path: PathLike, file: BinaryIO, picture: Image.Image,
                 wanted: Wanted) -> Image.Image:
    """The picture as upright RGB, reduced by a whole number; raises what Pillow raises.

    Args:
        file: what `picture` was opened from.
        picture: not yet decoded.
    """
    # Of PNG, Pillow would decode all to look for EXIF data behind the pixels.
    orientation = (1 if picture.format == "PNG" and "exif" not in picture.info
                   else exif_orientation(picture))
    before, enough = picture.size, 2 * wanted.smallest_side
    picture.draft("RGB", (enough, enough))
    factor = min(max(1, min(picture.size) // enough), _LARGEST_FACTOR)
    in_bands = bands(file, picture)
    if in_bands is None:
        # Of a progressive JPEG libjpeg holds all coefficients, whatever it is decoded to.
        held = before if "progressive" in picture.info else picture.size
        check_pixels(held, wanted.limit)
        if held[0] * held[1] > LARGE and not wanted.here:
            return _decode_in_child(path, wanted)
        in_bands = _whole_in_bands(picture)
        if picture.format == "TIFF":
            orientation = 1  # Pillow turns these as it decodes them
    else:
        check_pixels(before, BANDS_LIMIT)
    return turn_upright(to_rgb(reduce_bands(in_bands, factor)), orientation)


def reduce_bands(of: Iterable[Image.Image], factor: int) -> Image.Image:
    """Bands from top to bottom as one picture, averaged in squares of `factor` pixels a side.

    The same as `Image.reduce(factor)` of the whole.
    """
    parts: List[Image.Image] = []
    rest: Optional[Image.Image] = None
    for band in of:
        band = band if rest is None else _stack([rest, band])
        full = band.height // factor * factor
        if full:
            parts.append(band.reduce(factor, (0, 0, band.width, full)))
        rest = band.crop((0, full, band.width, band.height)) if full < band.height else None
    return _stack(parts if rest is None else [*parts, rest.reduce(factor)])


def _stack(parts: List[Image.Image]) -> Image.Image:
    whole = Image.new(parts[0].mode, (parts[0].width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _whole_in_bands(picture: Image.Image) -> Iterator[Image.Image]:
    """Decoded as a whole; converted in bands, which saves the copies."""
    picture.load()
    rows = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield ready(picture.crop((0, top, picture.width, min(top + rows, picture.height))))


def _decode_in_child(path: PathLike, wanted: Wanted) -> Image.Image:
    """The same in a process of its own, which takes the memory with it when it ends."""
    command = [sys.executable, "-c", _CHILD, _ROOT, os.fspath(path),
               str(wanted.smallest_side), str(wanted.limit)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)  # inherited by the child
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with process:
        try:
            out, err = process.communicate(timeout=_TIMEOUT_S)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise NotDecoded(f"not decoded within {_TIMEOUT_S} seconds") from error
            raise
    if process.returncode:
        why = _why(process.returncode, err.decode(errors="replace"))
        raise OSError(why) if process.returncode == UNREADABLE_CODE else NotDecoded(why)
    return Image.frombytes("RGB", _SIZE.unpack_from(out), memoryview(out)[_SIZE.size:])


def _why(code: int, said: str) -> str:
    last = said.strip().rpartition("\n")[2]
    if code in (UNREADABLE_CODE, PASSING_CODE):
        return last
    if code == -signal.SIGKILL:
        return "its decoder was killed, as when memory runs out"
    return f"its decoder ended with code {code}: {last}"


def write_picture(picture: Image.Image) -> None:
    """What `_decode_in_child` reads."""
    sys.stdout.buffer.write(_SIZE.pack(*picture.size))
    sys.stdout.buffer.write(picture.tobytes())
    sys.stdout.buffer.flush()
