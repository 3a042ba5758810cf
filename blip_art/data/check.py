"""A parallel check that finds the files that are no pictures, before a run stumbles on them.

    bad = check_pictures(paths, workers=4); python -m blip_art.data check LIST.json --images DIR
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Iterable, List, NamedTuple, Optional, Sequence

from blip_art.data.pictures import CHECKED_SIDE, UNREADABLE, decode, reason
from blip_art.data.progress import progress
from blip_art.errors import UserError
from blip_art.files import PathLike

# Below this many pictures, starting processes takes longer than the check.
_WORTH_PROCESSES = 500
_NAMED = 5


class BadPicture(NamedTuple):
    """A file that cannot be used, and why."""

    path: str
    reason: str


def check_pictures(paths: Sequence[PathLike], workers: Optional[int] = None) -> List[BadPicture]:
    """Decode every picture, in parallel and with a progress bar; return the bad ones, in order."""
    files = [os.fspath(path) for path in paths]
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 2 or len(files) < _WORTH_PROCESSES:
        return _bad(progress(map(_check, files), "checking pictures", "pictures", len(files)))
    # fork: the children decode and nothing else, and a fresh interpreter would import torch.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        results = pool.map(_check, files, chunksize=64)
        return _bad(progress(results, "checking pictures", "pictures", len(files)))


def refuse_bad(bad: Sequence[BadPicture], total: int, skip_with: str) -> None:
    """Fail when there are bad pictures.

    Raises:
        UserError: names the first ones, counts all, and says how to go on without them.
    """
    if bad:
        first = "; ".join(f"{b.path}: {b.reason}" for b in bad[:_NAMED])
        more = "; …" if len(bad) > _NAMED else ""
        raise UserError(f"{len(bad)} of {total} pictures cannot be used ({first}{more}); "
                        f"mend them, or leave them out with {skip_with}")


def _bad(results: Iterable[Optional[BadPicture]]) -> List[BadPicture]:
    return [result for result in results if result]


def _check(path: str) -> Optional[BadPicture]:
    try:
        decode(path, CHECKED_SIDE)
    except UNREADABLE as error:
        return BadPicture(path, reason(error))
    return None
