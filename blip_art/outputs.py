"""Where a command's output goes: checked before the work, and never over one of its inputs.

    check_output("scores.json", inputs=["refs.json", "results.json"], option="--json")
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterable, Iterator, Optional, Union

from blip_art.errors import UserError

PathLike = Union[str, "os.PathLike[str]"]
# A pipe's reader may be started after its writer, but may also never be.
READER_WAIT_S, LOOK_S = 60.0, 0.1
STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTOR_FOLDERS = ("/dev/fd", "/proc/self/fd")


def check_output(output: PathLike, inputs: Iterable[PathLike] = (), option: str = "--json") -> None:
    """Refuse, before hours of work, an output that cannot be written or that is an input.

    Args:
        inputs: files that the command reads; those that are not there are passed over.
        option: what the user called the output, for the message.

    Raises:
        UserError: a folder, a place that cannot be written to, or an input's own file, whatever
            links lead to it.
    """
    path = Path(output)
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file in it")
    if is_stream(path):
        return
    refuse_input(path, inputs, option)
    # Folders that are not there yet are made.
    folder = next(parent for parent in final_target(path).parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {folder} cannot be written to; name another folder")


def refuse_input(output: PathLike, inputs: Iterable[PathLike], option: str) -> None:
    """Refuse an output that is an input's own file, by whatever name or link.

    Raises:
        UserError: it is one.
    """
    for source in inputs:
        with contextlib.suppress(OSError):
            if os.path.samefile(output, source) and not is_stream(output):
                raise UserError(f"{option} {output} is the input {source}, which would be lost; "
                                "name another")


def is_stream(path: PathLike) -> bool:
    """Whether it is a device, a pipe or an open file of ours: written into, never replaced."""
    if _own_descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def final_target(path: PathLike) -> Path:
    """The file that links lead to, there or not."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def passed_into(stream: PathLike) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, what it wrote there goes into `stream`.

    Raises:
        UserError: it cannot be opened or written into, or nobody reads the pipe.
    """
    with tempfile.TemporaryDirectory(prefix="blip_art_") as folder:
        content = Path(folder, "content")
        content.touch()
        yield content
        try:
            with open(content, "rb") as source, open(_opened(stream), "wb") as sink:
                shutil.copyfileobj(source, sink)
        except OSError as error:
            raise UserError(f"cannot write {stream}: {error.strerror}; name a file") from error


def _own_descriptor(path: PathLike) -> Optional[int]:
    """The number of an open file of this process that a path stands for; None for other paths."""
    folder, name = os.path.split(path)
    if folder in DESCRIPTOR_FOLDERS and name.isdecimal():
        return int(name)
    return STREAMS.get(os.fspath(path))


def _opened(stream: PathLike) -> int:
    own = _own_descriptor(stream)
    if own is not None:
        # Opened by its path, a file would be written from its first byte, over what is there.
        return os.dup(own)
    if stat.S_ISFIFO(os.stat(stream).st_mode):
        return _opened_pipe(stream)
    return os.open(stream, os.O_WRONLY)


def _opened_pipe(path: PathLike) -> int:
    """Wait for a reader, as other programs do, but not for ever."""
    end, waited = time.monotonic() + READER_WAIT_S, False
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if time.monotonic() > end:
            raise UserError(f"nobody reads the pipe {path}; start its reader first (cat {path} &), "
                            "or write to a file")
        if not waited:
            print(f"waiting {READER_WAIT_S:.0f} s for a reader of {path}", file=sys.stderr)
        waited = True
        time.sleep(LOOK_S)
    os.set_blocking(descriptor, True)
    return descriptor
