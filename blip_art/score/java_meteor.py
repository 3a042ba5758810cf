"""METEOR inside a worker's JVM: captions and references to statistics of their alignment.

    Meteor(java, threads=2).run([("a big cat", ["a large cat"])])
"""

from __future__ import annotations

import contextlib
import gzip
import queue
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

import jpype

from blip_art.score.java_side import Java, Results, field_of, in_threads, set_field
from blip_art.score.paraphrases import Paraphrases, is_sound, table_of

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
        self._transducer = java.find("meteor", package + "aligner.ParaphraseTransducer")
        self._normalizer = java.find("meteor", package + "util.Normalizer")
        self._list = jpype.JClass("java.util.ArrayList")
        self._scorer = self._without_paraphrases()
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
        """Load the paraphrases of these texts, or all where there is no index."""
        if self._served is None or texts <= self._served:
            return
        index = next(map(Path, self._java.class_paths["paraphrases"]), None)
        if index and is_sound(index):
            with _table(Paraphrases(index).select(text.lower() for text in texts)) as table:
                self._load(table)
            self._served = texts
        else:
            self._load(table_of(self._java.class_paths["meteor"]))
            self._served = None

    def _load(self, table: Path) -> None:
        aligner = field_of(self._scorer, "aligner")
        set_field(aligner, "paraphrase", self._transducer(_url(table)))
        self._scorers = queue.SimpleQueue()
        for _ in range(self._threads):
            self._scorers.put(self._scorer_class(self._scorer))

    def _without_paraphrases(self) -> Any:
        """A scorer with all that does not depend on the texts, most of it synonyms."""
        configuration = self._java.find("meteor", "edu.cmu.meteor.scorer.MeteorConfiguration")
        arguments = jpype.JArray(jpype.JString)(METEOR_ARGUMENTS)
        properties = self._java.find("meteor", "Meteor").createPropertiesFromArgs(arguments, 2)
        with _table(b"") as empty:
            properties.setProperty("paraFile", str(empty))
            return self._scorer_class(configuration(properties))


@contextlib.contextmanager
def _table(rows: bytes) -> Iterator[Path]:
    """A file that METEOR reads as its paraphrases."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "paraphrases.gz"
        path.write_bytes(gzip.compress(rows, 1))
        yield path


def _url(path: Path) -> Any:
    return jpype.JClass("java.io.File")(str(path)).toURI().toURL()


def _on_a_line(text: str) -> str:
    """Without the mark that separates texts on pycocoevalcap's line to METEOR."""
    return text.replace("|||", "")
