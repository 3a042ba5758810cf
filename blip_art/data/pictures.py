"""Files to upright RGB pictures, whatever their mode and size.

    picture = read_picture(find_picture("Dataset", "data/IIHIM_1956438510.jpg"))
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, Tuple

from PIL import Image, UnidentifiedImageError

from blip_art.data.large import (
    LARGE,
    LIMIT,
    PASSING_CODE,
    UNREADABLE_CODE,
    NotDecoded,
    Wanted,
    check_pixels,
    decode_large,
    write_picture,
)
from blip_art.data.rgb import exif_orientation, to_rgb, turn_upright
from blip_art.errors import UserError
from blip_art.files import PathLike

# What Pillow raises on files that are missing, no pictures, cut short, absurdly large, or hostile.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, IndexError,
              KeyError, TypeError, AttributeError, OverflowError, NotImplementedError, MemoryError)
CHECKED_SIDE = 256
"""Pixels of the shorter side that tell whether a picture can be decoded: all its bytes are read."""
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
          stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

# Sizes are checked below, and a damaged file is named with its reason: no warning adds to that.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\b")


def find_picture(images_root: PathLike, entry: str) -> Path:
    """The file of an `image` entry: below the root by its whole path.

    The original's entries, data/NAME, may also lie in the root itself, by their name. A picture
    that is nowhere is returned at its whole path, for the caller to miss. Links may lead anywhere:
    whoever made the folder has put them there. An entry may not: it is another's text.

    Raises:
        UserError: the entry is an absolute path or climbs with '..'.
    """
    if os.path.isabs(entry) or ".." in entry.split("/"):
        raise UserError(f"image entry {entry!r} leads out of the folder of pictures {images_root}; "
                        "entries are relative to it: correct the list, or name the folder above "
                        "all pictures")
    whole = Path(images_root, entry)
    # os.path and not Path: a name that is too long, or a closed folder, is no file.
    if os.path.dirname(entry) != "data" or os.path.isfile(whole):
        return whole
    bare = Path(images_root, os.path.basename(entry))
    return bare if os.path.isfile(bare) else whole


@contextlib.contextmanager
def open_picture(path: PathLike) -> Iterator[Tuple[BinaryIO, Image.Image]]:
    """The file and its picture, not yet decoded; raises one of UNREADABLE."""
    with _open_file(path) as file, Image.open(file) as picture:
        yield file, picture


def _open_file(path: PathLike) -> BinaryIO:
    # A named pipe without a writer would be waited for without end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(f"{_KINDS.get(kind, 'something else')} and not a file")
    return open(descriptor, "rb")


def decode(path: PathLike, smallest_side: int = 0, draft: bool = True,
           limit: int = LIMIT) -> Image.Image:
    """Decode a picture to upright RGB; raises one of UNREADABLE.

    Arguments as of `read_picture`, and how many pixels a picture that must be decoded as a whole
    may have.
    """
    with open_picture(path) as (file, picture):
        if smallest_side and picture.width * picture.height > LARGE:
            return decode_large(path, file, picture, Wanted(smallest_side, limit))
        check_pixels(picture.size, limit)
        if smallest_side and draft:
            picture.draft("RGB", (smallest_side, smallest_side))
        picture.load()
        return to_rgb(turn_upright(picture, exif_orientation(picture)))


def read_picture(path: PathLike, smallest_side: int = 0, draft: bool = True) -> Image.Image:
    """Decode a picture to upright RGB, whatever its mode.

    Args:
        smallest_side: pixels that are enough. A picture of more than LARGE pixels is made smaller
            while it is decoded, to no less than twice as many on its shorter side. 0: all there
            are.
        draft: a JPEG that is not large, but has more than twice as many, is also decoded to a
            half, quarter or eighth, which takes less time.

    Raises:
        UserError: the file is missing, no picture, or cut short; names it and the check.
    """
    try:
        return decode(path, smallest_side, draft)
    except UNREADABLE as error:
        raise UserError(f"cannot read picture {path} ({reason(error)}); find all such pictures "
                        "with: python -m blip_art.data check LIST --images DIR") from error


def decode_for_parent(path: str, smallest_side: str, limit: str) -> None:
    """In a process of its own: a large picture to standard output; or why not, and the code."""
    try:
        with open_picture(path) as (file, picture):
            wanted = Wanted(int(smallest_side), int(limit), here=True)
            write_picture(decode_large(path, file, picture, wanted))
    except UNREADABLE as error:
        print(reason(error), file=sys.stderr)
        sys.exit(PASSING_CODE if is_passing(error) else UNREADABLE_CODE)


def is_passing(error: BaseException) -> bool:
    """Whether the same file may be decoded another time: not its content is at fault, but
    permissions, a file system or too little memory."""
    return (isinstance(error, (MemoryError, NotDecoded))
            or getattr(error, "errno", None) is not None)


def reason(error: BaseException) -> str:
    """Why a picture could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    said = (getattr(error, "strerror", None) or str(error)).split("\n")[0]
    return said if isinstance(error, (OSError, SyntaxError, ValueError)) else (
        f"damaged ({type(error).__name__}: {said})")
