"""Remembers on disk what texts say, so that each is parsed once, ever; jobs may share the file.

    with ParseCache(path, "corenlp-3.6.0") as cache: cache.add({text: said}); cache.find([text])

One SQLite file with a row a text, found by a hash of text and parser: 60 bytes for a COCO caption.
On a file system without locks each process writes a file of its own, which `merge` adds later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sqlite3
import sys
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from blip_art.errors import UserError
from blip_art.files import PathLike
from blip_art.score.parses import Propositions

FILE_NAME = "parses.sqlite"
WAIT_FOR_OTHERS_S = 60.0
# SQLite's limit for one question was 999 for long.
KEYS_AT_ONCE = 900
TABLE = "CREATE TABLE IF NOT EXISTS parses (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
INSERT = "INSERT OR IGNORE INTO parses VALUES (?, ?)"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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
        self._shared: Optional[sqlite3.Connection] = None
        self._own: Optional[sqlite3.Connection] = None
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._locks = can_lock(self.path.parent)
        self._open()

    def __enter__(self) -> ParseCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for connection in (self._shared, self._own):
            if connection:
                connection.close()
        self._shared = self._own = None

    def find(self, texts: Sequence[str]) -> Dict[str, Propositions]:
        """What is known of the texts."""
        found: Dict[str, Propositions] = {}
        for first in range(0, len(texts), KEYS_AT_ONCE):
            keys = {_key(self._parser, text): text for text in texts[first:first + KEYS_AT_ONCE]}
            question = f"SELECT key, value FROM parses WHERE key IN ({','.join('?' * len(keys))})"
            for connection in (self._shared, self._own):
                for key, value in self._do(connection, question, list(keys)):
                    # A row that cannot be read is parsed again.
                    with contextlib.suppress(zlib.error, ValueError):
                        found[keys[key]] = json.loads(zlib.decompress(value))
        return found

    def add(self, parses: Mapping[str, Propositions]) -> None:
        """Remember these; they are on disk when this returns, unless a line said why not."""
        rows = [(_key(self._parser, text), _packed(said)) for text, said in parses.items()]
        if not self._said and rows:
            self._do(self._writer(), INSERT, rows)

    def _open(self) -> None:
        if self._locks:
            self._shared = self._connect(self.path, "")
        elif self.path.exists():
            self._shared = self._connect(self.path, "&immutable=1")

    def _writer(self) -> Optional[sqlite3.Connection]:
        if self._locks:
            return self._shared
        if not self._own and not self._optional:
            self._own = self._connect(own_part(self.path), "&nolock=1")
        return self._own

    def _connect(self, path: Path, options: str) -> Optional[sqlite3.Connection]:
        connection = None
        try:
            connection = _connected(path, options)
            # Reads the header, and leaves an existing file as it is.
            connection.execute(TABLE)
            return connection
        except sqlite3.OperationalError as error:
            if connection and "readonly" in str(error):
                return connection
            self._say(f"cannot be used ({error})")
        except sqlite3.DatabaseError as error:
            if connection:
                connection.close()
            return self._begin_again(path, options, error)
        return None

    def _begin_again(self, path: Path, options: str,
                     error: sqlite3.Error) -> Optional[sqlite3.Connection]:
        aside = path.with_name(f"{path.name}.broken")
        try:
            os.replace(path, aside)
            connection = _connected(path, options)
            connection.execute(TABLE)
        except (OSError, sqlite3.Error):
            self._say(f"is broken ({error}) and cannot be replaced")
            return None
        if not self._optional:
            _print(f"{path} is broken ({error}): begun again, what there was is in {aside.name}")
        return connection

    def _do(self, connection: Optional[sqlite3.Connection], statement: str,
            values: Sequence[object]) -> List[Tuple[bytes, bytes]]:
        if connection is None:
            return []
        try:
            if statement is INSERT:
                with connection:
                    connection.executemany(statement, values)  # type: ignore[arg-type]
                return []
            return connection.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            self._say(f"keeps nothing new ({error}); results are not affected; free space or "
                      "name another file in BLIP_ART_PARSES")
        except sqlite3.DatabaseError as error:
            self.close()
            self._shared = self._begin_again(self.path, "", error)
        return []

    def _say(self, what: str) -> None:
        if not self._said and not self._optional:
            _print(f"the parses in {self.path}: {what}")
        self._said = True


def own_part(path: Path) -> Path:
    """Where this process writes when it cannot share."""
    return path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.part")


def merge(target: PathLike, sources: Iterable[PathLike] = ()) -> int:
    """Add the parses of other files; with none named, of the parts beside `target`, then removed.

    Returns:
        How many texts were new.

    Raises:
        UserError: a file cannot be read or written.
    """
    target = Path(target)
    parts = [] if sources else sorted(target.parent.glob(f"{target.name}.*.part"))
    new = 0
    options = "" if can_lock(target.parent) else "&nolock=1"
    for source in [*map(Path, sources), *parts]:
        if not source.is_file():
            raise UserError(f"no parses at {source}")
        try:
            with contextlib.closing(_connected(source, "&immutable=1")) as file:
                rows = file.execute("SELECT key, value FROM parses").fetchall()
            with contextlib.closing(_connected(target, options)) as file, file:
                file.execute(TABLE)
                new += file.executemany(INSERT, rows).rowcount
        except sqlite3.Error as error:
            raise UserError(f"cannot merge {source} into {target}: {error}") from error
    for part in parts:
        part.unlink()
    return new


def _connected(path: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rwc{options}", uri=True,
                           timeout=WAIT_FOR_OTHERS_S)


def _key(parser: str, text: str) -> bytes:
    return hashlib.blake2b(f"{parser}\0{text}".encode("utf-8", "surrogatepass"),
                           digest_size=16).digest()


def _packed(said: Propositions) -> bytes:
    return zlib.compress(json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode(), 9)


def _print(line: str) -> None:
    print(line, file=sys.stderr)
