"""METEOR's paraphrases, cut to those that given texts can match: all take seconds and 2 GB to load.

    path = indexed(table, cache_folder()); Paraphrases(path).select(["a big dog"])

METEOR uses a paraphrase where one phrase stands in a caption and the other in a reference. Rows
with a word, or two words in a row, that no text has can be left out: the scores are the same.
"""

from __future__ import annotations

import gzip
import itertools
import sys
from array import array
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterable, Optional, Sequence

import numpy as np

from blip_art.errors import UserError
from blip_art.files import written_aside

FILE_NAME = "meteor-1.5-paraphrases.npz"
ROWS_AT_ONCE = 200_000
# No word of the table; it also parts the texts.
OTHER = 65_535
PAIRS = 1 << 24


def table_of(class_path: Sequence[str]) -> Path:
    """The table that comes with METEOR's jar."""
    return Path(class_path[0]).parent / "data" / "paraphrase-en.gz"


def indexed(table: Path, folder: Path) -> Optional[Path]:
    """The index of METEOR's table, made once; None where the folder cannot be written to."""
    path = folder / FILE_NAME
    if path.exists():
        return path
    print(f"indexing METEOR's paraphrases, once, into {path}", file=sys.stderr)
    try:
        with written_aside(path) as aside, open(aside, "wb") as file:
            np.savez(file, **_read(table))
    except UserError as error:
        print(f"METEOR reads all of its paraphrases each time: {error}", file=sys.stderr)
        return None
    return path


def _read(table: Path) -> dict[str, Any]:
    """Rows of (probability, phrase, phrase) as numbers of words and lengths of phrases."""
    numbers: defaultdict[bytes, int] = defaultdict(itertools.count().__next__)
    words, lengths = array("H"), bytearray()
    with gzip.open(table) as file:
        while phrases := list(itertools.islice(file, 3 * ROWS_AT_ONCE)):
            del phrases[::3]
            words.extend(map(numbers.__getitem__, b"".join(phrases).split()))
            lengths.extend(len(phrase.split()) for phrase in phrases)
    assert len(numbers) < OTHER, len(numbers)
    return {"vocabulary": np.frombuffer(b"\n".join(numbers), np.uint8),
            "words": np.frombuffer(words, np.uint16), "lengths": np.frombuffer(lengths, np.uint8)}


class Paraphrases:
    """The whole table as arrays."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as index:
            self._vocabulary = index["vocabulary"].tobytes().split(b"\n")
            self._words, self._lengths = index["words"], index["lengths"]
        self._numbers = {word: number for number, word in enumerate(self._vocabulary)}

    def select(self, texts: Iterable[str]) -> bytes:
        """METEOR's table of the rows that these texts can match, and of some more."""
        tokens = self._tokens(texts)
        known = np.zeros(OTHER + 1, bool)
        known[tokens] = True
        known[OTHER] = False
        adjacent = np.zeros(PAIRS, bool)
        adjacent[_hashed(tokens[:-1], tokens[1:])] = True
        ends = np.cumsum(self._lengths, dtype=np.int64)
        starts = ends - self._lengths
        # Both phrases of a row follow each other.
        rows = np.flatnonzero(np.logical_and.reduceat(known[self._words], starts[::2]))
        for phrase in (2 * rows, 2 * rows + 1):
            rows = np.intersect1d(rows, self._adjacent(phrase, starts, adjacent) // 2)
        return self._as_table(rows, starts, ends)

    def _tokens(self, texts: Iterable[str]) -> Any:
        number = self._numbers.get
        return np.fromiter((number(word, OTHER) for text in texts
                            for word in (*text.encode("utf-8", "replace").split(), b"")), np.uint16)

    def _adjacent(self, phrases: Any, starts: Any, adjacent: Any) -> Any:
        """The phrases whose every two words in a row stand so in a text."""
        for offset in range(1, int(self._lengths.max())):
            long = self._lengths[phrases] > offset
            at = starts[phrases[long]] + offset
            fits = np.ones(len(phrases), bool)
            fits[long] = adjacent[_hashed(self._words[at - 1], self._words[at])]
            phrases = phrases[fits]
        return phrases

    def _as_table(self, rows: Any, starts: Any, ends: Any) -> bytes:
        lines = []
        for row in rows.tolist():
            for phrase in (2 * row, 2 * row + 1):
                numbers = self._words[starts[phrase]:ends[phrase]].tolist()
                lines.append(b" ".join([self._vocabulary[number] for number in numbers]))
        # METEOR skips the line with the probability.
        return b"".join(b"1\n%b\n%b\n" % pair for pair in zip(lines[::2], lines[1::2]))


def _hashed(first: Any, second: Any) -> Any:
    """A number for two words; that others may share it only lets a few rows more through."""
    return (first.astype(np.uint32) * 40_503 + second) % PAIRS
