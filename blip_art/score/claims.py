"""Scorers that start at once share the parsing: who begins with a text claims it in their file.

    with Claims(path, "corenlp-3.6.0", threads=2) as claims: block = claims.take(texts)

A claim saves work and decides nothing. It is void when its process is gone (on this host) or when
it was seen for longer than the work should take (by our own clock); where the file cannot be
written, everybody parses everything.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
import uuid
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

from blip_art.score.parse_cache import RETRY_WAIT_S, connect, text_key
from blip_art.score.parses import parse_cost
from blip_art.score.workers import state_of

# What is claimed at once: long enough that its last texts, which leave threads idle, do not count.
BLOCK_S = 30.0
# A claim's limit: Java's start, and several times what the texts should take.
START_S, SLOWER = 60.0, 4.0
LONGEST_S = 600.0
LOOK_S = 0.5
TABLE = ("CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT, seconds REAL) "
         "WITHOUT ROWID")
Claim = Tuple[bytes, str, float]


class Claims:
    """What this process is parsing, and what others are."""

    def __init__(self, path: Optional[Path], parser: str, threads: int) -> None:
        """Use the table in `path`, the file of parses; None where no file can be shared."""
        self._path, self._parser, self._threads = path, parser, threads
        self._us = f"{os.uname().nodename} {os.getpid()} {uuid.uuid4().hex}"
        self._blocks = 0
        self._has_waited = False
        self._seen_since: Dict[Tuple[bytes, str], float] = {}
        self._connection: Optional[sqlite3.Connection] = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        if self._connection:
            self._connection.close()

    def take(self, texts: Sequence[str]) -> List[str]:
        """A block of the first texts that nobody else is parsing, ours until `release`.

        Returns:
            None of them while others are parsing all; all of them where claims do not work.
        """
        with contextlib.suppress(sqlite3.Error):
            connection = self._opened()
            if connection:
                with _transaction(connection):
                    return self._taken(connection, texts)
        self._path = None
        return list(texts)

    def release(self) -> None:
        """Give back what is ours, parsed or not."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection:
                self._connection.execute("DELETE FROM claims WHERE owner = ?", [self._owner()])

    def wait_for_others(self, count: int) -> None:
        """A moment; what they are parsing will be in the file, or given back."""
        if not self._has_waited:
            print(f"{count:,} texts are being parsed by another scorer; waiting for it",
                  file=sys.stderr)
        self._has_waited = True
        time.sleep(LOOK_S)

    def _opened(self) -> Optional[sqlite3.Connection]:
        if self._path and not self._connection:
            self._connection = connect(self._path, "", "rw", RETRY_WAIT_S)
            self._connection.isolation_level = None  # transactions are begun by hand
            self._connection.execute(TABLE)
        return self._connection if self._path else None

    def _taken(self, connection: sqlite3.Connection, texts: Sequence[str]) -> List[str]:
        held = self._held(connection)
        block: Dict[bytes, str] = {}
        cost = longest = 0.0
        for text in texts:
            if cost >= BLOCK_S * self._threads:
                break
            key = text_key(self._parser, text)
            if key not in held:
                block[key] = text
                cost += parse_cost(text)
                longest = max(longest, parse_cost(text))
        self._blocks += 1
        seconds = START_S + SLOWER * max(longest, cost / self._threads)
        connection.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", [
            (key, self._owner(), seconds) for key in block])
        return list(block.values())

    def _held(self, connection: sqlite3.Connection) -> Set[bytes]:
        """The keys of claims that count; the others are removed."""
        claims: List[Claim] = connection.execute(
            "SELECT key, owner, seconds FROM claims").fetchall()
        now = time.monotonic()
        self._seen_since = {(key, owner): self._seen_since.get((key, owner), now)
                            for key, owner, _ in claims}
        counting = {(key, owner) for key, owner, seconds in claims if _may_live(owner)
                    and now - self._seen_since[key, owner] < min(seconds, LONGEST_S)}
        connection.executemany("DELETE FROM claims WHERE key = ? AND owner = ?",
                               self._seen_since.keys() - counting)
        return {key for key, _ in counting}

    def _owner(self) -> str:
        return f"{self._us} {self._blocks}"


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _may_live(owner: str) -> bool:
    """False for a process of this host that has ended, and for what no process of ours wrote."""
    host, pid, *_ = [*str(owner).split(" "), "", ""]
    if not pid.isdecimal():
        return False
    return host != os.uname().nodename or state_of(int(pid)) not in ("", "Z", "X")
