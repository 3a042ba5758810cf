"""METEOR inside a worker's JVM: captions and references to statistics of their alignment.

    Meteor(java, threads=2).run([("a big cat", ["a large cat"])])
"""

from __future__ import annotations

import gzip
import queue
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

import jpype

from blip_art.score.java_side import Java, Results, in_threads
from blip_art.score.paraphrases import Paraphrases, table_of

# METEOR's arguments in pycocoevalcap but '-norm', which is done here, once a text; METEOR reads
# them from the third on.
METEOR_ARGUMENTS = ["-", "-", "-stdio", "-l", "en", "-lower"]
ENGLISH, WITH_PUNCTUATION = 0, True
# What Java's String.trim removes.
JAVA_SPACES = "".join(map(chr, range(33)))
# METEOR's normalizer takes most of the time where it is asked. It changes nothing in plain texts,
# and in apart ones it looks at one word at a time; not so where there are dots.
PLAIN = re.compile("[a-z0-9 ]*")
APART = re.compile("[a-z0-9 ~]*(?:(?:(?<=[a-z0-9])-(?=[a-z0-9])|'(?=[a-z]))[a-z0-9 ~]*)*")
ALIGNED_AT_ONCE = 20


class Meteor:
    """METEOR 1.5 (Denkowski and Lavie 2014) with pycocoevalcap's arguments."""

    def __init__(self, java: Java, threads: int = 1) -> None:
        self._java, self._threads = java, threads
        package = "edu.cmu.meteor."
        self._scorer_class = java.find("meteor", package + "scorer.MeteorScorer")
        self._configuration = java.find("meteor", package + "scorer.MeteorConfiguration")
        self._normalizer = java.find("meteor", package + "util.Normalizer")
        self._list = jpype.JClass("java.util.ArrayList")
        self._normalized: Dict[str, str] = {}
        # Texts that the loaded paraphrases serve; None is all.
        self._served: Optional[FrozenSet[str]] = frozenset()
        # A scorer is for one thread; copies share the tables.
        self._scorers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, pairs: Sequence[Tuple[str, List[str]]]) -> Results:
        """Statistics, as METEOR writes them down, of each (caption, references)."""
        lines = [(self._as_compared(_on_a_line(caption).replace("  ", " ")),
                  [self._as_compared(_on_a_line(text)) for text in references])
                 for caption, references in pairs]
        self._serve(frozenset(text for caption, references in lines
                              for text in (caption, *references)))
        return in_threads(self._align, lines, self._threads, ALIGNED_AT_ONCE)

    def _align(self, pair: Tuple[str, List[str]]) -> str:
        scorer = self._scorers.get()
        try:
            return str(scorer.getMeteorStats(pair[0], self._list(pair[1])).toString())
        finally:
            self._scorers.put(scorer)

    def _as_compared(self, text: str) -> str:
        if PLAIN.fullmatch(text):
            return text
        if APART.fullmatch(text):
            return " ".join(map(self._normalized_once, text.split()))
        return self._normalized_once(text.strip(JAVA_SPACES))

    def _normalized_once(self, text: str) -> str:
        if text not in self._normalized:
            self._normalized[text] = str(
                self._normalizer.normalizeLine(text, ENGLISH, WITH_PUNCTUATION))
        return self._normalized[text]

    def _serve(self, texts: FrozenSet[str]) -> None:
        """Load what METEOR needs for these texts."""
        if self._served is None or texts and texts <= self._served:
            return
        table = table_of(self._java.class_paths["meteor"])
        index = next(map(Path, self._java.class_paths["paraphrases"]), None)
        with tempfile.TemporaryDirectory() as folder:
            self._served = None
            if index and index.exists():
                self._served = texts
                table = Path(folder) / "paraphrases.gz"
                rows = Paraphrases(index).select(text.lower() for text in texts)
                table.write_bytes(gzip.compress(rows, 1))
            self._load(table)

    def _load(self, table: Path) -> None:
        arguments = jpype.JArray(jpype.JString)(METEOR_ARGUMENTS)
        properties = self._java.find("meteor", "Meteor").createPropertiesFromArgs(arguments, 2)
        # METEOR looks beside its jar, but not in a folder with a space or '%' in its name.
        properties.setProperty("paraFile", str(table))
        scorer = self._scorer_class(self._configuration(properties))
        self._scorers = queue.SimpleQueue()
        self._scorers.put(scorer)
        for _ in range(1, self._threads):
            self._scorers.put(self._scorer_class(scorer))


def _on_a_line(text: str) -> str:
    """Without the mark that separates texts on pycocoevalcap's line to METEOR."""
    return text.replace("|||", "")
