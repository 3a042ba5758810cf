"""Files to upright RGB pictures, whatever their mode.

    picture = read_picture(find_picture("Dataset", "data/IIHIM_1956438510.jpg"))
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from blip_art.errors import UserError
from blip_art.files import PathLike

# What Pillow raises on files that are missing, no pictures, cut short or absurdly large.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def find_picture(images_root: PathLike, entry: str) -> Path:
    """The file of an `image` entry: below the root by its whole path.

    The original's entries, data/NAME, may also lie in the root itself, by their name. A picture
    that is nowhere is returned at its whole path, for the caller to miss.
    """
    whole = Path(images_root, entry)
    if whole.is_file() or os.path.dirname(entry) != "data":
        return whole
    bare = Path(images_root, os.path.basename(entry))
    return bare if bare.is_file() else whole


def decode(path: PathLike, smallest_side: int = 0) -> Image.Image:
    """Decode a picture to upright RGB; raises one of UNREADABLE."""
    with Image.open(path) as picture:
        if smallest_side:
            picture.draft("RGB", (smallest_side, smallest_side))
        return to_rgb(_upright(picture))


def read_picture(path: PathLike, smallest_side: int = 0) -> Image.Image:
    """Decode a picture to upright RGB, whatever its mode.

    Args:
        smallest_side: pixels that are enough: a JPEG of more than twice as many is decoded to a
            half, quarter or eighth, which takes less time. 0: all there are.

    Raises:
        UserError: the file is missing, no picture, or cut short; names it and the check.
    """
    try:
        return decode(path, smallest_side)
    except UNREADABLE as error:
        raise UserError(f"cannot read picture {path} ({reason(error)}); find all such pictures "
                        "with: python -m blip_art.data check LIST --images DIR") from error


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; as it is where they are damaged, which many a camera manages."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except (*UNREADABLE, struct.error, AttributeError, TypeError, KeyError):
        return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, more than 8 bits scaled down and not clipped."""
    if picture.mode.startswith(("I", "F")):
        picture = _to_8_bits(picture)
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, 32 bits or floating point as 0-255."""
    levels = np.asarray(picture).astype(np.float64)
    highest = float(levels.max(initial=0))
    # Pillow opens 16-bit PNG as "I" or "I;16"; a float picture has no fixed range.
    if picture.mode.startswith("F"):
        full = 1.0 if highest <= 1 else 255.0 if highest <= 255 else highest
    else:
        full = 255.0 if highest <= 255 and picture.mode == "I" else max(65535.0, highest)
    return Image.fromarray((levels.clip(0, full) * (255.0 / full)).round().astype(np.uint8))


def reason(error: BaseException) -> str:
    """Why a picture could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, Image.DecompressionBombError):
        return "far too many pixels"
    return (getattr(error, "strerror", None) or str(error)).split("\n")[0]
