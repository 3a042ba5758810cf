"""A copy of a folder of pictures in which none is larger than a model can use.

    python -m blip_art.data pack scans --max-side 2000 -o scans_2000

Folders and names are kept, so that lists of pictures fit the copy as well.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from PIL import Image, UnidentifiedImageError

from blip_art.data.archive import PICTURE_SUFFIXES
from blip_art.data.large import LIMIT, TooManyPixels
from blip_art.data.pictures import UNREADABLE, decode, open_picture, reason
from blip_art.data.progress import progress
from blip_art.errors import UserError
from blip_art.files import read_json, write_json, written_aside

RECORD = "blip_art_pack.json"
"""In the copy: what it was made from. A folder without it is somebody's own."""
# Of what must be decoded as a whole, one at a time: 4 GB.
_GIANT = 1_000_000_000
SMALLER, COPIED, THERE, OTHER, UNREAD, GIANT = (
    "smaller", "copied", "there before", "other", "unreadable", "giant")
# How a name's ending is written; any other becomes PNG, which loses nothing and keeps its name.
_JPEG: Dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
_TIFF: Dict[str, Any] = {"format": "TIFF", "compression": "tiff_adobe_deflate"}
_FORMATS = {".jpg": _JPEG, ".jpeg": _JPEG, ".tif": _TIFF, ".tiff": _TIFF,
            ".webp": {"format": "WEBP", "quality": 95}, ".bmp": {"format": "BMP"}}


class Outcome(NamedTuple):
    """What became of one file."""

    name: str
    what: str
    why: str = ""


class Shrunk(NamedTuple):
    """What became of a folder."""

    counts: Dict[str, int]
    """Files by outcome."""
    unreadable: List[Outcome]


def shrink_folder(source: Path, target: Path, max_side: int,
                  workers: Optional[int] = None) -> Shrunk:
    """Copy the pictures below `source`, those with a longer side than `max_side` made smaller.

    Originals are only read. What is in the copy stays, so that the same command goes on where it
    was stopped. Files that are no pictures, by content and name, are left out.

    Raises:
        UserError: no such folder, a copy that is another's, no space, or a worker was killed.
    """
    _claim(source, target, max_side)
    names = [name for name in _files_below(source) if name != RECORD]
    to_do = [name for name in names if not os.path.lexists(target / name)]
    outcomes = [Outcome(name, THERE) for name in set(names) - set(to_do)]
    work = functools.partial(_shrink, source, target, max_side)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    giants: List[Outcome] = []
    for outcome in progress(_in_parallel(work, to_do, workers), "making smaller copies", "pictures",
                            len(to_do)):
        (giants if outcome.what == GIANT else outcomes).append(outcome)
    outcomes += [work(giant.name, limit=_GIANT) for giant in giants]
    return Shrunk(Counter(outcome.what for outcome in outcomes),
                  sorted(outcome for outcome in outcomes if outcome.what == UNREAD))


def _claim(source: Path, target: Path, max_side: int) -> None:
    """Refuse what would be read and written at once, or is not ours to write to."""
    if max_side < 1:
        raise UserError(f"--max-side {max_side}: must be at least 1")
    if not source.is_dir():
        raise UserError(f"no folder {source}; name one with pictures")
    real, copy = source.resolve(), target.resolve()
    if real == copy or real in copy.parents or copy in real.parents:
        raise UserError(f"{target} and {source} lie in one another; choose another place with -o")
    made_of = {"pictures": str(real), "max_side": max_side}
    if (target / RECORD).is_file():
        before = read_json(target / RECORD)
        if before != made_of:
            raise UserError(f"{target} is a copy of something else ({before}); choose another "
                            "place with -o")
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there and was not made by this command; choose another place "
                        "with -o")
    write_json(target / RECORD, made_of)


def _files_below(folder: Path) -> List[str]:
    """Names relative to `folder`, in order; links to folders are followed, each folder once."""
    found: List[str] = []
    seen: Set[Tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot look into {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
    return sorted(found)


def _in_parallel(work: functools.partial[Outcome], names: List[str],
                 workers: int) -> Iterator[Outcome]:
    if workers < 2 or len(names) < 2:
        yield from map(work, names)
        return
    # fork: the command has no threads, and imports need not be made again. Ctrl-C is the parent's
    # to answer.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"),
                               signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.map(work, names, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError("a process that decodes was killed, as when memory runs out; run the same "
                        "command again with --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _shrink(source: Path, target: Path, max_side: int, name: str, limit: int = 0) -> Outcome:
    """Make one file of the copy; of what must be decoded as a whole, up to `limit` pixels."""
    limit = limit or LIMIT
    try:
        with open_picture(source / name) as (_, opened):
            size = opened.size
        picture = None
        if max(size) > max_side:
            enough = -(-max_side * min(size) // max(size))
            picture = decode(source / name, enough, draft=False, limit=limit)
            picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    except UNREADABLE as error:
        if isinstance(error, TooManyPixels) and limit < _GIANT:
            return Outcome(name, GIANT)
        ours = name.lower().endswith(PICTURE_SUFFIXES)
        if isinstance(error, UnidentifiedImageError) and not ours:
            return Outcome(name, OTHER)
        return Outcome(name, UNREAD, reason(error))
    with written_aside(target / name) as aside:
        if picture is None:
            shutil.copyfile(source / name, aside)
        else:
            ending = os.path.splitext(name)[1].lower()
            picture.save(aside, **_FORMATS.get(ending, {"format": "PNG"}))
    return Outcome(name, COPIED if picture is None else SMALLER)


def summary(done: Shrunk, target: Path) -> str:
    """What was done, in a line, and a line for each picture that could not be read."""
    counts = done.counts
    lines = [f"{outcome.name}: {outcome.why}" for outcome in done.unreadable]
    parts = [f"{counts.get(SMALLER, 0):,} pictures made smaller",
             f"{counts.get(COPIED, 0):,} copied as they are",
             f"{counts.get(THERE, 0):,} there before"]
    parts += [f"{counts[OTHER]:,} files are no pictures and left out"] if OTHER in counts else []
    parts += [f"{len(lines):,} could not be read, see above"] if lines else []
    return "\n".join([*lines, f"{target}: {', '.join(parts)}"])
