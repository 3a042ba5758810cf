"""Decoded pictures of any mode to upright RGB.

    picture = turn_upright(to_rgb(picture), orientation=6)
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
          4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
          6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}
# Modes whose grey levels have no fixed range: only the whole picture tells what white is.
WIDE_MODES = ("I", "F")
_LEVELS_AT_ONCE = 1 << 18


def exif_orientation(picture: Image.Image) -> int:
    """1-8; 1, which is upright, where EXIF data are damaged, which many a camera manages."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, struct.error, AttributeError, TypeError, KeyError):
        return 1


def turn_upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turned as EXIF's orientation (1-8) says; the same object where nothing is to do."""
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, more than 8 bits scaled down and not clipped.

    A picture that is RGB already is returned as it is, not copied.
    """
    if picture.mode.startswith(("I", "F")):
        picture = _to_8_bits(picture)
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, 32 bits or floating point as 0-255, some rows at a time.

    What is no number, as scientific TIFF files mark what was not seen, becomes black.
    """
    levels = np.asarray(picture)  # (height, width)
    floats = picture.mode.startswith("F")
    highest = float(levels.max(initial=0, where=np.isfinite(levels) if floats else True))
    # Pillow opens 16-bit PNG as "I" or "I;16"; a float picture has no fixed range.
    if floats:
        full = 1.0 if highest <= 1 else 255.0 if highest <= 255 else highest
    else:
        full = 255.0 if highest <= 255 and picture.mode == "I" else max(65535.0, highest)
    grey = np.empty(levels.shape, np.uint8)
    rows_at_once = max(1, _LEVELS_AT_ONCE // picture.width)
    for top in range(0, len(levels), rows_at_once):
        rows = np.nan_to_num(levels[top:top + rows_at_once].astype(np.float64))
        grey[top:top + rows_at_once] = (rows.clip(0, full) * (255.0 / full)).round()
    return Image.fromarray(grey)
