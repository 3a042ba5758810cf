"""What a check of pictures found, kept beside them: a line a picture with name, size and mtime.

    kept = KeptChecks(folder, decoder="1 12.0.0"); kept.reason_of(name, status); kept.append(lines)

A picture that is as it was when it was checked needs no second look, by any run. The file lies in
the folder of the pictures, or, where that cannot be written to (a squashfs, somebody else's), in
the user's cache. What is believed decides which pictures are trained on, so a file counts only
where its owner could as well have changed the pictures: it is the user's own, root's, or that of
the folder's or the picture's owner; never one that anybody may write to, and never a link.
What is no property of the file (permissions, too little memory) is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from blip_art.errors import UserError
from blip_art.score.lock import owner, taken

NAME = ".blip_art_checked.jsonl"
POLL_S = 0.5
# A checker that has written nothing for so long has stopped, or has a picture that takes for ever.
PATIENCE_S = 120.0
_SECOND_NS = 1_000_000_000
_NOTHING: List[Any] = ["", -1, -1, None, ""]


class _File(NamedTuple):
    """What a file says, the newest line of each picture, and whose word it is."""

    lines: Dict[str, List[Any]]
    """By name; no more than a list of five with a name and the decoder: see `reason_of`."""
    uid: int
    """-1: somebody's who is believed about all pictures of the folder."""


class KeptChecks:
    """The checks of the pictures below one folder."""

    def __init__(self, folder: str, decoder: str) -> None:
        self.folder, self.decoder = folder, decoder
        name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape"))
        self.places = [Path(folder, NAME), user_cache() / f"{name.hexdigest()[:32]}.jsonl"]
        self._kept: List[_File] = []
        self.reload()

    def reload(self) -> None:
        """Read what is there by now; damaged lines and files that are not believed are passed."""
        self._kept = [_read(place, self.folder, self.decoder) for place in self.places]

    def reason_of(self, name: str, status: os.stat_result) -> Optional[str]:
        """'' for a good picture, why for a bad one; None where it must be looked at."""
        for lines, uid in self._kept:
            _, size, mtime_ns, why, _ = lines.get(name, _NOTHING)
            if (size == status.st_size and uid in (-1, status.st_uid) and isinstance(why, str)
                    and isinstance(mtime_ns, int) and _same_time(mtime_ns, status.st_mtime_ns)):
                return why
        return None

    @contextlib.contextmanager
    def writer(self) -> Iterator[Optional[Writer]]:
        """Where new lines go; None where nothing can be kept."""
        for place in self.places:
            descriptor = _open_own(place)
            if descriptor is not None:
                try:
                    yield Writer(place, descriptor, self.decoder)
                finally:
                    os.close(descriptor)
                return
        yield None


class Writer:
    """Appends lines to one file; a process that is killed has lost at most its last line."""

    def __init__(self, path: Path, descriptor: int, decoder: str) -> None:
        self.path, self._descriptor, self._decoder = path, descriptor, decoder
        self._begin = "\n" if _ends_inside_a_line(descriptor) else ""

    def append(self, checked: Iterable[Tuple[str, os.stat_result, str]]) -> None:
        """Add (name, status before it was decoded, reason). A full disk stops no check."""
        lines = [json.dumps([name, status.st_size, status.st_mtime_ns, reason, self._decoder])
                 for name, status, reason in checked]
        text = self._begin + "".join(line + "\n" for line in lines)
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode())
            self._begin = "\n" if _ends_inside_a_line(self._descriptor) else ""

    @contextlib.contextmanager
    def turn(self, say: Callable[[str], None], patience_s: float = PATIENCE_S) -> Iterator[None]:
        """One checker at a time, so that twenty runs do not all decode the same pictures.

        Whoever waits goes on alone when the file has not grown for `patience_s`, or where there
        can be no lock: then pictures are decoded twice, and nothing worse.
        """
        lock = self.path.with_name(self.path.name + ".lock")
        size, since, announced = self._size(), time.monotonic(), False
        while True:
            with _try(lock) as ours:
                if self._size() != size:
                    size, since = self._size(), time.monotonic()
                if ours or time.monotonic() - since > patience_s:
                    yield
                    return
            if not announced:
                say(f"waiting for {owner(lock) or 'another process'}, which checks these pictures")
                announced = True
            time.sleep(min(POLL_S, patience_s))

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size


def user_cache() -> Path:
    """Where checks of folders lie that cannot be written to."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "blip_art", "checked_pictures")


@contextlib.contextmanager
def _try(lock: Path) -> Iterator[bool]:
    """`taken`, and True where there can be no lock."""
    with contextlib.ExitStack() as held:
        try:
            ours = held.enter_context(taken(lock))
        except (UserError, OSError):
            ours = True
        yield ours


def _read(path: Path, folder: str, decoder: str) -> _File:
    """A file that is believed; an empty one in the place of others."""
    with contextlib.suppress(OSError, ValueError), open(path, "rb", opener=_no_link) as file:
        status = os.fstat(file.fileno())
        if (stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IWOTH
                and status.st_uid != _unknown_user()):
            uid = -1 if status.st_uid in _believed(folder) else status.st_uid
            return _File(_parse(file.read(), decoder), uid)
    return _File({}, -1)


def _no_link(path: str, flags: int) -> int:
    """For `open`; O_NONBLOCK: a named pipe is not waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def _parse(content: bytes, decoder: str) -> Dict[str, List[Any]]:
    lines = content.split(b"\n")
    try:
        rows = json.loads(b"[" + b",".join(filter(None, lines)) + b"]")
    except (ValueError, RecursionError):
        rows = [row for line in lines for row in _row(line)]
    return {row[0]: row for row in rows if isinstance(row, list) and len(row) == 5
            and row[4] == decoder and isinstance(row[0], str)}


def _row(line: bytes) -> List[Any]:
    """A line's value, or nothing: it was cut off, or somebody wrote into the file."""
    try:
        return [json.loads(line)]
    except (ValueError, RecursionError):
        return []


def _believed(folder: str) -> List[int]:
    """Users whose word counts for all pictures of the folder."""
    users = [os.geteuid(), 0]
    with contextlib.suppress(OSError):
        users.append(os.stat(folder).st_uid)
    return users


def _unknown_user() -> int:
    """The number that all users have inside a container that does not know them; else -1."""
    with contextlib.suppress(OSError, ValueError):
        unknown = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
        return -1 if unknown == os.geteuid() else unknown
    return -1


def _open_own(path: Path) -> Optional[int]:
    """Open for appending; None unless it is, or can be made, a regular file of the user's."""
    try:
        if path.parent.name == "checked_pictures":
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = _no_link(str(path), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    status = os.fstat(descriptor)
    if (not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid()
            or status.st_mode & stat.S_IWOTH or status.st_nlink != 1):
        os.close(descriptor)
        return None
    return descriptor


def _ends_inside_a_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _same_time(kept_ns: int, now_ns: int) -> bool:
    """Copies and packed folders may keep whole seconds only."""
    return kept_ns == now_ns or (now_ns % _SECOND_NS == 0
                                 and kept_ns // _SECOND_NS == now_ns // _SECOND_NS)
