"""METEOR's paraphrases, cut to those that given texts can match: all take seconds and 2 GB to load.

    path = indexed(table, cache_folder()); Paraphrases(path).select(["a big dog"])

METEOR uses a paraphrase where one phrase stands in a caption and the other in a reference. Rows
with a word, or two words in a row, that no text has can be left out: the scores are the same.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import sys
import zlib
from array import array
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from blip_art.errors import UserError
from blip_art.files import written_aside

# To be raised where the arrays mean something else; a test holds them against it.
FORMAT = 2
FILE_NAME = f"meteor-1.5-paraphrases-{FORMAT}.npy"
ROWS_AT_ONCE = 200_000
# No word of the table; it also parts the texts, and stands behind each phrase.
OTHER = 65_535
PAIRS, PAIRS_A_SHELF = 1 << 24, 4
SHELVES = PAIRS // PAIRS_A_SHELF
ARRAYS = 6
# The last array is a checksum of all before it: one number behind a header of numpy's.
CHECK_BYTES = 128 + 4


def table_of(class_path: Sequence[str]) -> Path:
    """The table that comes with METEOR's jar."""
    return Path(class_path[0]).parent / "data" / "paraphrase-en.gz"


def indexed(table: Path, folder: Path) -> Optional[Path]:
    """The index of METEOR's table, made once; None where the folder cannot be written to."""
    path = folder / FILE_NAME
    if is_sound(path):
        return path
    print(f"indexing METEOR's paraphrases, once, into {path}", file=sys.stderr)
    try:
        with written_aside(path) as aside, open(aside, "wb") as file:
            for values in _shelved(*_read(table)):
                np.save(file, values)
            file.flush()
            np.save(file, np.array([zlib.crc32(aside.read_bytes())], np.uint32))
    except UserError as error:
        print(f"METEOR reads all of its paraphrases each time: {error}", file=sys.stderr)
        return None
    return path


def _read(table: Path) -> Tuple[bytes, Any, Any]:
    """Words, rows of (probability, phrase, phrase) as numbers of words, lengths of phrases."""
    numbers: defaultdict[bytes, int] = defaultdict(itertools.count().__next__)
    words, lengths = array("H"), bytearray()
    with gzip.open(table) as file:
        while phrases := list(itertools.islice(file, 3 * ROWS_AT_ONCE)):
            del phrases[::3]
            words.extend(map(numbers.__getitem__, b"".join(phrases).split()))
            lengths.extend(len(phrase.split()) for phrase in phrases)
    assert len(numbers) < OTHER, len(numbers)
    return b"\n".join(numbers), np.frombuffer(words, np.uint16), np.frombuffer(lengths, np.uint8)


def _shelved(vocabulary: bytes, words: Any, lengths: Any) -> List[Any]:
    """Rows in order of their rarest pair of words, so that a text's pairs lead to them.

    Large numbers first: then all of them begin where a computer likes them to in the file.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    pairs = _hashed(words, _followers(words, ends))
    times = np.bincount(pairs, minlength=PAIRS)[pairs] * PAIRS + pairs
    starts = np.append(0, ends[1::2])
    shelves = np.minimum.reduceat(times, starts[:-1]) % PAIRS // PAIRS_A_SHELF
    order = np.argsort(shelves, kind="stable")
    sizes = np.diff(starts)[order]
    return [np.searchsorted(shelves[order], np.arange(SHELVES + 1)).astype(np.uint32),
            np.append(0, np.cumsum(sizes)).astype(np.uint32),
            words[_ranges(starts[order], sizes)], lengths[::2][order],
            np.frombuffer(vocabulary, np.uint8)]


class Paraphrases:
    """The whole table, of which only the pages that are asked for are read."""

    def __init__(self, path: Path) -> None:
        (self._shelves, self._starts, self._words, self._first_lengths, vocabulary,
         _) = _mapped(path)
        self._vocabulary = vocabulary.tobytes().split(b"\n")
        self._numbers = {word: number for number, word in enumerate(self._vocabulary)}

    def select(self, texts: Iterable[str]) -> bytes:
        """METEOR's table of the rows that these texts can match, and of some more."""
        tokens = self._tokens(texts)
        present = np.zeros(PAIRS, bool)
        present[_hashed(tokens[:-1], tokens[1:])] = True
        present[_hashed(tokens, OTHER)] = True
        shelves = np.unique(np.flatnonzero(present) // PAIRS_A_SHELF)
        rows = _ranges(self._shelves[shelves], np.diff(self._shelves)[shelves])
        return self._as_table(self._possible(rows, present))

    def _tokens(self, texts: Iterable[str]) -> Any:
        number = self._numbers.get
        return np.array([number(word, OTHER) for text in texts
                         for word in (*text.encode("utf-8", "replace").split(), b"")], np.uint16)

    def _possible(self, rows: Any, present: Any) -> Any:
        """The rows of which a text has every two words that follow each other."""
        starts = self._starts[rows].astype(np.int64)
        sizes = self._starts[rows + 1] - starts
        words = self._words[_ranges(starts, sizes)]
        ends = np.cumsum(sizes)
        borders = np.stack([ends - sizes + self._first_lengths[rows], ends], axis=1).ravel()
        fits = present[_hashed(words, _followers(words, borders))]
        return rows[np.logical_and.reduceat(fits, ends - sizes)] if len(rows) else rows

    def _as_table(self, rows: Any) -> bytes:
        starts, firsts = self._starts[rows], self._first_lengths[rows]
        sizes = self._starts[rows + 1] - starts
        words = map(self._vocabulary.__getitem__, self._words[_ranges(starts, sizes)].tolist())
        # METEOR skips the line with the probability.
        return b"".join(b"1\n%b\n%b\n" % tuple(
            b" ".join(itertools.islice(words, length)) for length in phrases)
            for phrases in zip(firsts.tolist(), (sizes - firsts).tolist()))


def _followers(words: Any, ends: Any) -> Any:
    """The word after each word of a phrase, OTHER after its last."""
    followers = np.append(words[1:], np.uint16(OTHER))
    followers[ends - 1] = OTHER
    return followers


def _hashed(first: Any, second: Any) -> Any:
    """A number for two words; that others may share it only lets a few rows more through."""
    return (first.astype(np.uint32) * np.uint32(40_503) + second) % np.uint32(PAIRS)


def _ranges(starts: Any, sizes: Any) -> Any:
    """All numbers from each start on, as many as its size says."""
    sizes = sizes.astype(np.int64)
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts.astype(np.int64) - before, sizes) + np.arange(sizes.sum())


def _is_whole(path: Path) -> bool:
    """Whether it is there and was not cut short, as by a copy that was interrupted."""
    try:
        return len(_mapped(path)) == ARRAYS
    except (OSError, ValueError):
        return False


def is_sound(path: Path) -> bool:
    """Whether it holds what was written; read once a process, a tenth of a second."""
    try:
        state = path.stat()
    except OSError:
        return False
    return _is_whole(path) and _has_its_checksum(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _has_its_checksum(path: Path, size: int, mtime_ns: int) -> bool:
    content: Any = np.memmap(path, np.uint8, "r")[:-CHECK_BYTES]
    return zlib.crc32(content) == int(_mapped(path)[-1][0])


def _mapped(path: Path) -> List[Any]:
    """The arrays that np.save wrote one after the other."""
    arrays = []
    with open(path, "rb") as file:
        while file.peek(1):
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            arrays.append(np.asarray(np.memmap(path, kind, "r", file.tell(), shape)))
            file.seek(arrays[-1].nbytes, 1)
    return arrays
