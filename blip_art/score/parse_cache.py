"""Remembers on disk what texts say, so that each is parsed once, ever; jobs may share the file.

    with ParseCache(path, "corenlp-3.6.0") as cache: cache.add({text: said}); cache.find([text])

One SQLite file with a row a text, found by a hash of text and parser: 60 bytes for a COCO caption.
On a file system without locks each process writes a part of its own, which all read and `merge`
adds later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import sqlite3
import sys
import time
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from blip_art.errors import UserError
from blip_art.files import PathLike
from blip_art.score.parses import Propositions

FILE_NAME = "parses.sqlite"
WAIT_FOR_OTHERS_S = 60.0
# After trouble: how soon it is tried again, and how long that may wait.
RETRY_S, RETRY_WAIT_S = 60.0, 2.0
# A part that another host has not touched for so long is nobody's.
QUIET_S = 600.0
# SQLite's limit for one question was 999 for long.
KEYS_AT_ONCE = 900
TABLE = "CREATE TABLE IF NOT EXISTS parses (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
INSERT = "INSERT OR IGNORE INTO parses VALUES (?, ?)"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
Row = Tuple[bytes, bytes]
_told: Set[Path] = set()


def can_lock(folder: Path) -> bool:
    """Whether locks work there; a folder that cannot be written to needs none."""
    probe = folder / f".lock-probe.{os.uname().nodename}.{os.getpid()}"
    try:
        with open(probe, "w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return True


class ParseCache:
    """A file of parses. Trouble with it costs time, said in one line, but never a result."""

    def __init__(self, path: PathLike, parser: str,
                 can_lock: Callable[[Path], bool] = can_lock, optional: bool = False) -> None:
        """Open or make the file.

        Args:
            optional: nobody misses it: no line about trouble, no parts without locks.
        """
        self.path = Path(path)
        self._parser = parser
        self._optional = optional
        self._said = False
        # After one time-out nobody is waited for: 900 texts at a time that would take hours.
        self._wait_s = RETRY_WAIT_S if optional else WAIT_FOR_OTHERS_S
        self._retry_at = 0.0
        self._unwritten: List[Row] = []
        self._shared: Optional[sqlite3.Connection] = None
        self._own: Optional[sqlite3.Connection] = None
        self._parts: List[sqlite3.Connection] = []
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._locks = can_lock(self.path.parent)
        self._open()
        if not optional:
            self._open_parts()

    def __enter__(self) -> ParseCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.flush()
        for connection in (self._shared, self._own, *self._parts):
            _close(connection)
        self._shared = self._own = None
        self._parts = []

    @property
    def shared_path(self) -> Optional[Path]:
        """The file, where processes can share it."""
        return self.path if self._locks and self._shared else None

    def find(self, texts: Sequence[str]) -> Dict[str, Propositions]:
        """What is known of the texts."""
        found: Dict[str, Propositions] = {}
        for first in range(0, len(texts), KEYS_AT_ONCE):
            keys = {text_key(self._parser, text): text
                    for text in texts[first:first + KEYS_AT_ONCE]}
            for key, value in self._rows(list(keys)):
                # A row that cannot be read is parsed again.
                with contextlib.suppress(zlib.error, ValueError):
                    found[keys[key]] = json.loads(zlib.decompress(value))
        return found

    def add(self, parses: Mapping[str, Propositions]) -> None:
        """Remember these; they are on disk when this returns, unless a line said why not.

        Those are tried again later.
        """
        self._unwritten += [(text_key(self._parser, text), _packed(said))
                            for text, said in parses.items()]
        if time.monotonic() >= self._retry_at:
            self.flush()

    def flush(self) -> int:
        """Write what could not be written before.

        Returns:
            How many texts are still not on disk.
        """
        if self._unwritten and (self._write() or self._write_again()):
            self._unwritten.clear()
            self._retry_at = 0.0
        if self._optional:
            self._unwritten.clear()
        return len(self._unwritten)

    def _open(self) -> None:
        if self._locks:
            self._shared = self._connect(self.path, "")
        elif self.path.exists():
            self._shared = self._connect(self.path, "&nolock=1", "ro")

    def _open_parts(self) -> None:
        """For reading; their owners may be writing them."""
        parts = parts_of(self.path)
        for part in parts:
            with contextlib.suppress(sqlite3.Error):
                self._parts.append(connect(part, "&nolock=1", "ro"))
        if self.path not in _told and set(parts) - {own_part(self.path)}:
            _print(f"{len(parts)} parts beside {self.path} are read too; when no job writes them, "
                   f"add them to it: python -m blip_art.score merge {self.path}")
            _told.add(self.path)

    def _writer(self) -> Optional[sqlite3.Connection]:
        if self._locks:
            if not self._shared or self._retry_at:
                # The trouble may be over: the file was replaced, or its folder made.
                _close(self._shared)
                self._open()
            return self._shared
        if self._own and not own_part(self.path).exists():
            # Somebody has merged it and, since it was quiet for long, taken it for nobody's.
            _close(self._own)
            self._own = None
        if not self._own and not self._optional:
            self._own = self._connect(own_part(self.path), "&nolock=1")
        return self._own

    def _connect(self, path: Path, options: str, mode: str = "rwc",
                 ) -> Optional[sqlite3.Connection]:
        connection = None
        try:
            connection = connect(path, options, mode, self._wait_s)
            # Reads the header, and leaves an existing file as it is.
            connection.execute(TABLE)
        except sqlite3.OperationalError as error:
            if connection and "locked" in str(error):
                self._is_locked(connection)
                return connection
            if connection and "readonly" in str(error):
                return connection
            self._say(f"cannot be used ({error})")
            _close(connection)
            return None
        except sqlite3.DatabaseError as error:
            _close(connection)
            return self._instead(path, error)
        return connection

    def _rows(self, keys: Sequence[bytes]) -> Iterator[Row]:
        question = f"SELECT key, value FROM parses WHERE key IN ({','.join('?' * len(keys))})"
        for connection in (self._shared, self._own):
            try:
                if connection:
                    yield from connection.execute(question, keys).fetchall()
            except sqlite3.DatabaseError as error:
                self._in_trouble(connection, error)
        for part in self._parts:
            # One that is written at this moment: what it knows is parsed again.
            with contextlib.suppress(sqlite3.Error):
                yield from part.execute(question, keys).fetchall()

    def _write(self) -> bool:
        connection = self._writer()
        if not connection:
            self._try_later()
            return False
        try:
            with connection:
                connection.execute(TABLE)
                connection.executemany(INSERT, self._unwritten)
        except sqlite3.DatabaseError as error:
            self._in_trouble(connection, error)
            self._try_later()
            return False
        return True

    def _write_again(self) -> bool:
        """Into a file that was begun again, if there was need to."""
        return not self._said and self._shared is not None and self._locks and self._write()

    def _try_later(self) -> None:
        self._retry_at = time.monotonic() + RETRY_S

    def _in_trouble(self, connection: Optional[sqlite3.Connection],
                    error: sqlite3.DatabaseError) -> None:
        broken = not isinstance(error, sqlite3.OperationalError)
        if "locked" in str(error):
            self._is_locked(connection)
        elif not broken:
            self._say(f"keeps nothing new ({error}); results are not affected; free space or "
                      "name another file in BLIP_ART_PARSES")
        if broken and connection is self._own:
            _close(self._own)
            self._own = self._instead(own_part(self.path), error)
        elif broken:
            _close(self._shared)
            self._shared = self._instead(self.path, error)

    def _is_locked(self, connection: Optional[sqlite3.Connection]) -> None:
        """It is read without waiting from now on, and written when it is free."""
        self._wait_s = RETRY_WAIT_S
        if connection:
            connection.execute("PRAGMA busy_timeout = 0")
        self._say(f"another program has locked it; texts are parsed without it and written when it "
                  f"is free; 'fuser {self.path}' names the program, BLIP_ART_PARSES another file")

    def _instead(self, path: Path, error: sqlite3.Error) -> Optional[sqlite3.Connection]:
        """What to use in the place of a broken file; without locks nobody may replace one."""
        if not self._locks:
            self._say(f"{path.name} cannot be read now ({error})")
            return None
        try:
            with _alone(path):
                aside = _put_aside(path) if _is_broken(path) else ""
                connection = connect(path, "", wait_s=self._wait_s)
                connection.execute(TABLE)
        except (OSError, sqlite3.Error):
            self._say(f"is broken ({error}) and cannot be replaced")
            return None
        if aside and not self._optional:
            _print(f"{path} is broken ({error}): begun again, what there was is in {aside}")
        return connection

    def _say(self, what: str) -> None:
        if not self._said and not self._optional:
            _print(f"the parses in {self.path}: {what}")
        self._said = True


def own_part(path: Path) -> Path:
    """Where this process writes when it cannot share."""
    return path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.part")


def parts_of(path: Path) -> List[Path]:
    """What processes wrote that could not share."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*.part"))


def merge(target: PathLike, sources: Iterable[PathLike] = ()) -> int:
    """Add the parses of other files; with none named, of the parts beside `target`, then removed.

    A part that its process may still write to is left.

    Returns:
        How many texts were new.

    Raises:
        UserError: a file cannot be read or written.
    """
    target, named = Path(target), [Path(source) for source in sources]
    all_parts = [] if named else parts_of(target)
    parts = [part for part in all_parts if not _may_be_written(part)]
    new = 0
    for source in [*named, *parts]:
        if not source.is_file():
            raise UserError(f"no parses at {source}")
        # Not immutable: what a job that was killed left half written is first undone.
        options = "" if source in named and can_lock(source.parent) else "&nolock=1"
        try:
            with contextlib.closing(connect(source, options, "rw", WAIT_FOR_OTHERS_S)) as file:
                rows = file.execute("SELECT key, value FROM parses").fetchall()
            options = "" if can_lock(target.parent) else "&nolock=1"
            with contextlib.closing(
                    connect(target, options, wait_s=WAIT_FOR_OTHERS_S)) as file, file:
                file.execute(TABLE)
                new += file.executemany(INSERT, rows).rowcount
        except sqlite3.Error as error:
            raise UserError(f"cannot merge {source} into {target}: {error}") from error
    for part in parts:
        part.unlink()
    if len(parts) < len(all_parts):
        _print(f"{len(all_parts) - len(parts)} parts are left, which jobs may still write to; "
               "merge again later")
    return new


def _may_be_written(part: Path) -> bool:
    """Whether its process lives: known on this host; on others, judged by its age."""
    host, _, pid = part.name[:-len(".part")].rpartition("-")
    if not host.endswith(f".{os.uname().nodename}") or not pid.isdecimal():
        return time.time() - part.stat().st_mtime < QUIET_S
    return int(pid) != os.getpid() and Path("/proc", pid).exists()


def connect(path: Path, options: str, mode: str = "rwc",
            wait_s: float = RETRY_WAIT_S) -> sqlite3.Connection:
    """A connection to a file of parses; no statement waits longer for other processes."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}{options}", uri=True,
                           timeout=wait_s)


def _close(connection: Optional[sqlite3.Connection]) -> None:
    if connection:
        connection.close()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time replaces the file."""
    with open(path.with_name(f".{path.name}.lock"), "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _is_broken(path: Path) -> bool:
    """Whether it still is: another job may have begun it again."""
    try:
        with contextlib.closing(connect(path, "")) as file:
            return bool(file.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def _put_aside(path: Path) -> str:
    aside = path.with_name(f"{path.name}.broken-{os.uname().nodename}-{os.getpid()}")
    # SQLite would undo in the new file what the old one's journal says.
    with contextlib.suppress(FileNotFoundError):
        os.replace(f"{path}-journal", f"{aside}-journal")
    os.replace(path, aside)
    return aside.name


def text_key(parser: str, text: str) -> bytes:
    """What a text's parse is found by; two parsers share nothing."""
    return hashlib.blake2b(f"{parser}\0{text}".encode("utf-8", "surrogatepass"),
                           digest_size=16).digest()


def _packed(said: Propositions) -> bytes:
    return zlib.compress(json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode(), 9)


def _print(line: str) -> None:
    print(line, file=sys.stderr)
