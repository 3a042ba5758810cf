"""Finds the pictures that are missing or cannot be decoded, before a run stumbles on them.

    bad = find_bad_pictures("Dataset", names); python -m blip_art.data check LIST.json --images DIR

Every picture is decoded once; what was found is kept beside the pictures (checked.py), and
afterwards one look at its size and time is enough.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import stat
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

import PIL

from blip_art.data.checked import PATIENCE_S, KeptChecks, Writer
from blip_art.data.pictures import (
    CHECKED_SIDE,
    UNREADABLE,
    decode,
    find_picture,
    is_passing,
    reason,
)
from blip_art.data.progress import progress
from blip_art.data.workers import end_with_parent, start_resource_tracker
from blip_art.errors import UserError
from blip_art.files import PathLike

DECODER = f"1 {PIL.__version__}"
"""Whose verdicts are kept. Raise the number when decode() comes to take or refuse other pictures:
they are looked at again."""
# Network file systems answer in a millisecond, but many at a time.
_THREADS, _NAMES_AT_A_TIME = 32, 256
# What a process is given at a time: enough to be worth it, little enough to end soon on Ctrl-C.
_FILES_AT_A_TIME, _BYTES_AT_A_TIME = 64, 8 << 20
_PICTURES_A_PROCESS = 100
_KEEP_EVERY_S = 1.0
_WORTH_A_LINE = 2_000
_NAMED = 5
T = TypeVar("T")


class Located(NamedTuple):
    """An `image` entry with its file, and how that was before anybody decoded it."""

    name: str
    path: str
    status: Optional[os.stat_result]
    """None: missing."""
    reason: str = ""


class Verdict(NamedTuple):
    """Why a picture cannot be decoded ('': it can)."""

    reason: str
    is_passing: bool = False
    """Memory, permissions or the machine are at fault, so it is not kept."""


def find_bad_pictures(images_root: PathLike, names: Sequence[str], workers: Optional[int] = None,
                      patience_s: float = PATIENCE_S) -> Dict[str, str]:
    """Why a picture cannot be used, by its `image` entry, in order; only changed ones are decoded.

    Args:
        workers: processes that decode; None is one a core.
        patience_s: how long another checker of the same pictures may be silent.

    Raises:
        UserError: an entry that leads out of the folder.
    """
    located = locate_pictures(os.path.abspath(images_root), names)
    found = {picture.name: picture.reason for picture in located}
    there = [picture for picture in located if picture.status and not picture.reason]
    if there:
        found.update(_check_kept(there, workers, patience_s))
    return {name: why for name, why in found.items() if why}


def locate_pictures(images_root: PathLike, names: Sequence[str]) -> List[Located]:
    """The file of each entry, in order; many at a time.

    Raises:
        UserError: an entry that leads out of the folder.
    """
    parts = [names[start:start + _NAMES_AT_A_TIME]
             for start in range(0, len(names), _NAMES_AT_A_TIME)]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda part: [_locate(images_root, name) for name in part], parts)
        return list(itertools.chain.from_iterable(found))


def refuse_bad(bad: Dict[str, str], total: int, images_root: PathLike, skip_with: str) -> None:
    """Fail when there are bad pictures.

    Raises:
        UserError: names the first ones, counts all, and says how to go on without them.
    """
    if bad:
        raise UserError(f"{len(bad)} of {total} pictures in {images_root} cannot be used "
                        f"({name_bad(bad)}); replace them, or leave them out with {skip_with}")


def name_bad(bad: Dict[str, str]) -> str:
    """The first bad pictures with their reasons, for a message."""
    first = "; ".join(f"{name}: {why}" for name, why in list(bad.items())[:_NAMED])
    return first + ("; …" if len(bad) > _NAMED else "")


def _locate(images_root: PathLike, name: str) -> Located:
    path = os.path.join(images_root, name)
    with contextlib.suppress(OSError, ValueError):
        # Nearly all are where their entry says: one look, and no Path, whose making costs more.
        if not os.path.isabs(name) and ".." not in name:
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                return Located(name, path, status)
    try:
        path = os.fspath(find_picture(images_root, name))
        return Located(name, path, os.stat(path))
    except (OSError, ValueError) as error:
        return Located(name, path, None, reason(error) or type(error).__name__)


def _check_kept(pictures: Sequence[Located], workers: Optional[int],
                patience_s: float) -> Dict[str, str]:
    """Reasons by entry, from what is kept and, where nothing is, by decoding."""
    folder = os.path.commonpath({os.path.dirname(picture.path) for picture in pictures})
    kept = KeptChecks(folder, DECODER)
    found, left = _look_up(kept, pictures)
    if not left:
        return found
    with kept.writer() as writer:
        if writer is None:
            _say(f"what is found of the pictures in {folder} cannot be kept, there or in "
                 f"{kept.places[-1].parent}: every run looks at all of them again")
            return {**found, **{p.name: verdict.reason
                                for p, verdict in _decode_all(left, workers)}}
        with writer.turn(_say, patience_s):
            kept.reload()  # the one before us has perhaps done it
            more, left = _look_up(kept, left)
            fresh = _decode_and_keep(kept, writer, left, workers) if left else {}
            return {**found, **more, **fresh}


def _look_up(kept: KeptChecks,
             pictures: Sequence[Located]) -> Tuple[Dict[str, str], List[Located]]:
    """Reasons of the pictures that are known, and the others."""
    found: Dict[str, str] = {}
    left = []
    for picture in pictures:
        assert picture.status
        why = kept.reason_of(_key(kept, picture), picture.status)
        if why is None:
            left.append(picture)
        else:
            found[picture.name] = why
    return found, left


def _key(kept: KeptChecks, picture: Located) -> str:
    return picture.path[len(kept.folder):].lstrip("/")


def _decode_and_keep(kept: KeptChecks, writer: Writer, pictures: Sequence[Located],
                     workers: Optional[int]) -> Dict[str, str]:
    if len(pictures) >= _WORTH_A_LINE:
        _say(f"checking {len(pictures):,} pictures, once; what is found is kept in {writer.path}")
    found: Dict[str, str] = {}
    fresh: List[Tuple[str, os.stat_result, str]] = []
    written = time.monotonic()
    try:
        for picture, verdict in _decode_all(pictures, workers):
            assert picture.status
            found[picture.name] = verdict.reason
            if not verdict.is_passing:
                fresh.append((_key(kept, picture), picture.status, verdict.reason))
            if time.monotonic() - written > _KEEP_EVERY_S:
                writer.append(fresh)
                fresh, written = [], time.monotonic()
    finally:
        writer.append(fresh)
    return found


def _decode_all(pictures: Sequence[Located],
                workers: Optional[int]) -> Iterator[Tuple[Located, Verdict]]:
    """Each picture with what was found, in order."""
    cores = len(os.sched_getaffinity(0)) if workers is None else max(1, workers)
    processes = min(cores, -(-len(pictures) // _PICTURES_A_PROCESS))
    verdicts = _verdicts([list(part) for part in _parts(pictures)], processes)
    yield from zip(pictures, progress(verdicts, "checking pictures", "pictures", len(pictures)))


def _verdicts(parts: List[List[Located]], processes: int) -> Iterator[Verdict]:
    """In processes of their own: a picture may take all memory, and what it took is given back.

    When one of them dies, the pictures that it may have died of are decoded one after the other.
    """
    while parts:
        done = 0
        try:
            for verdicts in _in_processes(_check, [[p.path for p in part] for part in parts],
                                          processes):
                done += 1
                yield from verdicts
            return
        except BrokenProcessPool:
            handed_out = done + processes + 2  # a call waits in the queue, and one is on the way
            yield from _one_by_one([p.path for part in parts[done:handed_out] for p in part])
            parts = parts[handed_out:]


def _one_by_one(paths: List[str]) -> Iterator[Verdict]:
    while paths:
        done = 0
        try:
            for verdict in _in_processes(_check_one, paths, 1):
                done += 1
                yield verdict
            return
        except BrokenProcessPool:
            yield Verdict("the process that decoded it died, perhaps of too little memory", True)
            paths = paths[done + 1:]


def _in_processes(work: Callable[[Any], T], items: Sequence[Any], processes: int) -> Iterator[T]:
    start_resource_tracker()
    # Fresh interpreters: a copy of this process may wait for a lock that no thread opens any more.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"),
                               _begin_process)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _parts(pictures: Sequence[Located]) -> Iterator[List[Located]]:
    part: List[Located] = []
    size = 0
    for picture in pictures:
        assert picture.status
        if part and (len(part) == _FILES_AT_A_TIME or size > _BYTES_AT_A_TIME):
            yield part
            part, size = [], 0
        part.append(picture)
        size += picture.status.st_size
    yield part


def _begin_process() -> None:
    """Ends with its parent, however that ends; what is sent to all processes of a job step, or of
    a terminal, is the parent's to answer. (SIGTERM is how a pool ends its processes.)"""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _check(paths: Iterable[str]) -> List[Verdict]:
    return [_check_one(path) for path in paths]


def _check_one(path: str) -> Verdict:
    try:
        decode(path, CHECKED_SIDE)
    except UNREADABLE as error:
        return Verdict(reason(error) or type(error).__name__, is_passing(error))
    return Verdict("")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
