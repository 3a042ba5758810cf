"""Brings one file whole: goes on after a lost connection, checks what it got, tells the rate.

    download(Remote("vocab.txt", sha256="07ec…"), Path("bert/vocab.txt"), ["https://…/vocab.txt"])

Proxies are taken from the environment (https_proxy, no_proxy). Several processes may ask for the
same file: one fetches it, the others wait and find it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence

from blip_art.errors import UserError
from blip_art.files import read_json_object, write_json, write_text

TIMEOUT_S = 60.0
TRIES = 5
"""A connection may be lost so often without a byte between; one that brings some starts anew."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Remote:
    """What a file must be, as far as it is known; whoever serves it."""

    name: str
    sha256: str = ""
    md5: str = ""


class _Answer(NamedTuple):
    """A source's bytes from `start` on."""

    stream: IO[bytes]
    start: int
    total: int
    """Bytes of the whole file; 0 if the source does not say."""
    version: str
    """What names this very version, to go on with no other; '' if nothing does."""


def download(remote: Remote, target: Path, places: Sequence[str],
             sleep: Callable[[float], None] = time.sleep) -> Path:
    """Fetch the file from the first place that has it, unless it is there and whole.

    A file whose hash is not known beforehand is held to the length that the source announced; its
    SHA-256 is then written beside it (FILE.sha256), and a later call checks it by that.

    Raises:
        UserError: no place has the file, it is not the right one, or it cannot be written.
    """
    if _is_there(target, remote):
        _adopt(target, remote, places)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with _sole_writer(part) as file:
            if not _is_there(target, remote):  # another process may have brought it meanwhile
                _first_of(places, remote, part, file, sleep)
                _finish(part, target, remote)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}; free space, or choose "
                        "another folder with --to") from error
    return target


def digest_of(path: Path, kind: str = "sha256") -> str:
    """The file's hash, in hexadecimal."""
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _is_there(target: Path, remote: Remote) -> bool:
    """Whether the target is there.

    Raises:
        UserError: it is there, but not whole or not the right one.
    """
    if not target.exists():
        return False
    note = _note(target)
    known = Remote(remote.name, remote.sha256 or (
        note.read_text(encoding="utf-8").split()[0] if note.exists() and not remote.md5 else ""),
        remote.md5)
    problem = _problem(target, known)
    if problem:
        raise UserError(f"{target} is there, but {problem}; remove it and fetch it again")
    return True


def _adopt(target: Path, remote: Remote, places: Sequence[str]) -> None:
    """A file that somebody else brought is compared with the source's length, then noted.

    Raises:
        UserError: it is of another length.
    """
    if remote.sha256 or remote.md5 or _note(target).exists():
        return
    for place in places:
        with contextlib.suppress(OSError, http.client.HTTPException, _WebPage):
            with _open(place, 0, "") as answer:
                total = answer.total
            size = target.stat().st_size
            if total and total != size:
                raise UserError(f"{target} has {size:,} bytes, {place} has {total:,}; remove it "
                                "and fetch it again")
            write_text(_note(target), f"{digest_of(target)}  {target.name}\n")
            return
    print(f"{target} is there; no source answers to compare it with", file=sys.stderr)


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _problem(path: Path, remote: Remote) -> str:
    """What is wrong with a file whose hash is known; '' if nothing, or if nothing is known."""
    kind = "sha256" if remote.sha256 else "md5"
    wanted = remote.sha256 or remote.md5
    if not wanted:
        return ""
    if path.stat().st_size > 50_000_000:
        print(f"checking {remote.name}", file=sys.stderr)
    found = digest_of(path, kind)
    return "" if found == wanted else f"its {kind} is {found[:12]}…, not {wanted[:12]}…"


@contextlib.contextmanager
def _sole_writer(part: Path) -> Iterator[IO[bytes]]:
    """The half file, open at its end, held by this process alone.

    A file system without locks lets all through; the check at the end then finds their mixture.
    """
    while True:
        file = open(part, "ab")  # noqa: SIM115
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # The one before us may have renamed the file while we waited.
        if part.exists() and os.fstat(file.fileno()).st_ino == part.stat().st_ino:
            break
        file.close()
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
        file.close()


def _first_of(places: Sequence[str], remote: Remote, part: Path, file: IO[bytes],
              sleep: Callable[[float], None]) -> None:
    problems = []
    for place in places:
        problem = _bring(place, remote, part, file, sleep)
        if not problem:
            return
        problems.append(f"{place}: {problem}")
    raise UserError(f"cannot fetch {remote.name} ({'; '.join(problems)}); check the network and "
                    "https_proxy, or bring the file and name it with --from")


def _finish(part: Path, target: Path, remote: Remote) -> None:
    if not (remote.sha256 or remote.md5):
        write_text(_note(target), f"{digest_of(part)}  {target.name}\n")
    os.replace(part, target)
    with contextlib.suppress(FileNotFoundError):
        _version_note(part).unlink()


def _version_note(part: Path) -> Path:
    """Where a half file came from: halves of two versions must not be joined."""
    return part.with_name(f"{part.name}.from")


def _bring(place: str, remote: Remote, part: Path, file: IO[bytes],
           sleep: Callable[[float], None]) -> str:
    """Make `part` whole from one place; what went wrong, or ''."""
    meter, tries = Meter(remote.name), 0
    while True:
        before = part.stat().st_size
        problem, again = _one_try(place, remote, part, file, meter)
        if not problem or not again:
            break
        tries = 0 if part.stat().st_size > before else tries + 1
        if tries == TRIES:
            break
        meter.say(f"{problem}; going on in {2 ** tries} s")
        sleep(2 ** tries)
    meter.end()
    if problem:
        return problem
    problem = _problem(part, remote)
    if problem:
        file.truncate(0)
    return problem


def _one_try(place: str, remote: Remote, part: Path, file: IO[bytes],
             meter: Meter) -> tuple[str, bool]:
    """One connection; what went wrong, and whether another one may help."""
    have = part.stat().st_size
    try:
        with _open(place, *_may_go_on(place, part, have, remote)) as answer:
            if answer.start == 0:
                file.truncate(0)
            write_json(_version_note(part), {"place": place, "version": answer.version})
            meter.begin(answer.start, answer.total)
            for block in iter(lambda: answer.stream.read(_BLOCK >> 2), b""):
                file.write(block)
                meter.add(len(block))
            file.flush()
    except urllib.error.HTTPError as error:
        if error.code == 416:  # more is there than the source has
            file.truncate(0)
        return f"HTTP {error.code} {error.reason}", error.code in (416, 429, 500, 502, 503, 504)
    except urllib.error.URLError as error:
        return _words(error.reason), have > 0
    except http.client.InvalidURL as error:
        return _words(error), False
    except (ConnectionError, socket.timeout, ssl.SSLError, http.client.HTTPException) as error:
        file.flush()
        return f"connection lost ({_words(error)})", True
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "no such file", False
    except _WebPage:
        return "a web page came instead of the file", False
    got = part.stat().st_size
    if answer.total and got < answer.total:
        return f"connection lost at {got:,} of {answer.total:,} bytes", True
    if answer.total and got > answer.total:
        file.truncate(0)
        return f"{got:,} bytes came, not {answer.total:,}", True
    return "", False


def _words(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _may_go_on(place: str, part: Path, have: int, remote: Remote) -> tuple[int, str]:
    """Where to start, and the version that must still be the source's."""
    note = _version_note(part)
    said: Dict[str, Any] = {}
    with contextlib.suppress(UserError):  # a damaged note: from the start
        said = read_json_object(note) if have and note.exists() else {}
    if remote.sha256 or remote.md5:  # any source's bytes will do: the hash decides
        return have, ""
    if said.get("place") == place and said.get("version"):
        return have, str(said["version"])
    return 0, ""


class _WebPage(Exception):
    """A server answered with HTML: a listing, a login page, a warning."""


@contextlib.contextmanager
def _open(place: str, start: int, version: str) -> Iterator[_Answer]:
    """The bytes at `place` from `start`, or from 0 where that cannot be."""
    local = _local(place)
    if local:
        with open(local, "rb") as file:
            stat = os.fstat(file.fileno())
            stamp = f"{stat.st_size} {stat.st_mtime_ns}"
            start = start if start <= stat.st_size and version in ("", stamp) else 0
            file.seek(start)
            yield _Answer(file, start, stat.st_size, stamp)
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and version:
        headers["If-Range"] = version
    request = urllib.request.Request(place, headers={"User-Agent": "blip-art", **headers})
    with urllib.request.build_opener().open(request, timeout=TIMEOUT_S) as response:
        if response.headers.get_content_type() == "text/html":
            raise _WebPage
        start = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        # A weak tag ('W/…') does not promise equal bytes.
        tag = response.headers.get("ETag", "")
        stamp = response.headers.get("Last-Modified", "") if tag[:2] in ("", "W/") else tag
        yield _Answer(response, start, start + int(length) if length else 0, stamp)


def _local(place: str) -> Optional[Path]:
    """The path of a file on this machine, named as such or by a file:// address."""
    if place.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path))
    return None if "://" in place else Path(place).expanduser()


class Meter:
    """A line on stderr: how much, how fast, how long still. Drawn on terminals only."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._drawn = 0.0
        self.begin(0, 0)

    def begin(self, start: int, total: int) -> None:
        """A connection brings bytes from `start` on."""
        self._start = self._have = start
        self._total = total
        self._since = time.monotonic()

    def add(self, number: int) -> None:
        """So many bytes came."""
        self._have += number
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._drawn > 0.5:
            self._drawn = now
            print(f"\r{self.line(now)}\033[K", end="", file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """'vocab.txt: 12.0 of 378.1 MB, 9.8 MB/s, 37 s left'."""
        rate = (self._have - self._start) / max(now - self._since, 1e-3)
        of = f" of {self._total / 1e6:.1f}" if self._total else ""
        left = f", {(self._total - self._have) / rate:.0f} s left" if self._total and rate else ""
        return f"{self._name}: {self._have / 1e6:.1f}{of} MB, {rate / 1e6:.1f} MB/s{left}"

    def say(self, text: str) -> None:
        """A line of its own."""
        print(f"{self._name}: {text}", file=sys.stderr)

    def end(self) -> None:
        """The last word."""
        if self._have > self._start:
            print(("\r" if self._drawn else "")
                  + self.line(time.monotonic()).partition(", 0 s left")[0]
                  + ("\033[K" if self._drawn else ""), file=sys.stderr)
