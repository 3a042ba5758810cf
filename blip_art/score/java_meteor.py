"""METEOR inside a worker's JVM: captions and references to statistics and scores.

    Meteor(java, threads=2).run([("a big cat", ["a large cat"])])
"""

from __future__ import annotations

import gzip
import queue
import re
import tempfile
from pathlib import Path
from typing import Any, FrozenSet, Iterable, List, Optional, Sequence, Tuple

import jpype
import numpy as np

from blip_art.score.java_side import Java, Results, in_threads
from blip_art.score.paraphrases import Paraphrases, table_of

# METEOR's arguments in pycocoevalcap; it reads them from the third on.
METEOR_ARGUMENTS = ["-", "-", "-stdio", "-l", "en", "-norm"]
ENGLISH, WITH_PUNCTUATION = 0, True
# What Java's String.trim removes.
JAVA_SPACES = "".join(map(chr, range(33)))
# METEOR's normalizer changes nothing in these, and asking it takes most of the time.
PLAIN = re.compile("[a-z0-9 ]*")


class Meteor:
    """METEOR 1.5 (Denkowski and Lavie 2014) with pycocoevalcap's arguments."""

    def __init__(self, java: Java, threads: int = 1) -> None:
        self._java, self._threads = java, threads
        package = "edu.cmu.meteor."
        self._stats = java.find("meteor", package + "scorer.MeteorStats")
        self._scorer_class = java.find("meteor", package + "scorer.MeteorScorer")
        self._configuration = java.find("meteor", package + "scorer.MeteorConfiguration")
        self._normalizer = java.find("meteor", package + "util.Normalizer")
        self._list = jpype.JClass("java.util.ArrayList")
        self._scorer: Any = None
        # Texts that the loaded paraphrases serve; None is all.
        self._served: Optional[FrozenSet[str]] = frozenset()
        # A scorer is for one thread; copies share the tables.
        self._scorers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, pairs: Sequence[Tuple[str, List[str]]]) -> Results:
        """(statistics as METEOR writes them down, score) of each (caption, references)."""
        lines = [(_on_a_line(caption).replace("  ", " ").strip(JAVA_SPACES),
                  [_on_a_line(text).strip(JAVA_SPACES) for text in references])
                 for caption, references in pairs]
        self._serve(text for caption, references in lines for text in (caption, *references))
        return in_threads(self._align, lines, self._threads)

    def evaluate(self, sets: Sequence[Sequence[str]]) -> Results:
        """The score of each set of pictures, given their statistics."""
        self._serve(())
        for index, lines in enumerate(sets):
            stats = self._stats(summed(lines))
            self._scorer.computeMetrics(stats)
            yield index, float(stats.score)

    def _align(self, pair: Tuple[str, List[str]]) -> Tuple[str, float]:
        scorer = self._scorers.get()
        try:
            stats = scorer.getMeteorStats(pair[0], self._list(pair[1]))
            return str(stats.toString()), float(stats.score)
        finally:
            self._scorers.put(scorer)

    def _serve(self, texts: Iterable[str]) -> None:
        """Load what METEOR needs for these texts."""
        new = frozenset(texts)
        if self._scorer and (self._served is None or new <= self._served):
            return
        table = table_of(self._java.class_paths["meteor"])
        index = next(map(Path, self._java.class_paths["paraphrases"]), None)
        with tempfile.TemporaryDirectory() as folder:
            self._served = None
            if index and index.exists():
                self._served = new
                rows = Paraphrases(index).select(map(self._as_compared, new))
                table = Path(folder) / "paraphrases.gz"
                table.write_bytes(gzip.compress(rows, 1))
            self._load(table)

    def _as_compared(self, text: str) -> str:
        if PLAIN.fullmatch(text):
            return text
        return str(self._normalizer.normalizeLine(text, ENGLISH, WITH_PUNCTUATION)).lower()

    def _load(self, table: Path) -> None:
        arguments = jpype.JArray(jpype.JString)(METEOR_ARGUMENTS)
        properties = self._java.find("meteor", "Meteor").createPropertiesFromArgs(arguments, 2)
        # METEOR looks beside its jar, but not in a folder with a space or '%' in its name.
        properties.setProperty("paraFile", str(table))
        self._scorer = self._scorer_class(self._configuration(properties))
        self._scorers = queue.SimpleQueue()
        for _ in range(self._threads):
            self._scorers.put(self._scorer_class(self._scorer))


def summed(lines: Iterable[str]) -> str:
    """Statistics of many pictures as one, as METEOR adds them."""
    rows = np.array([line.split() for line in lines], float)
    lengths, matches, chunks = rows[:, 0:2], rows[:, 4:20], rows[:, 20]
    # A caption that is its reference has one chunk, which is not counted.
    same = (matches[:, 0::2].sum(1) == lengths[:, 0]) & (matches[:, 1::2].sum(1) == lengths[:, 1])
    chunks[same & (chunks == 1)] = 0
    return " ".join(map(str, rows.sum(0).tolist()))


def _on_a_line(text: str) -> str:
    """Without the mark that separates texts on pycocoevalcap's line to METEOR."""
    return text.replace("|||", "")
