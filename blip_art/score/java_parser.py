"""SPICE's first half inside a worker's JVM: texts to propositions.

    SpiceParser(java, threads=2, charts_mb=4000).run(["a red cat"])
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Sequence

import jpype

from blip_art.score.chart import chart_mb, compile_all
from blip_art.score.java_side import ItemError, Java, Results, field_of, in_threads, method_of
from blip_art.score.java_trees import TreeParser

# SPICE's own list of annotators but for ner, whose result nothing reads.
ANNOTATORS = {"annotators": "tokenize,ssplit,parse,lemma",
              "depparse.extradependencies": "MAXIMAL"}


class SpiceParser:
    """Texts to SPICE's propositions, by the exhaustive parser that SPICE was published with."""

    def __init__(self, java: Java, threads: int, charts_mb: int) -> None:
        # Beside CoreNLP's models, which Java loads.
        compiling = ThreadPoolExecutor(1).submit(compile_all)
        properties = jpype.JClass("java.util.Properties")()
        for key, value in ANNOTATORS.items():
            properties.setProperty(key, value)
        pipeline = java.find("spice", "edu.stanford.nlp.pipeline.StanfordCoreNLP")
        spice = java.find("spice", "edu.anu.spice.SpiceParser")
        self._annotation = java.find("spice", "edu.stanford.nlp.pipeline.Annotation")
        self._pipeline = pipeline(properties)
        self._spice = spice(None, 1, True)
        # The one step SPICE offers no public way to.
        self._propose = method_of(spice, "parseAnnotation", self._annotation)
        self._trees = TreeParser(java, pipeline.getExistingAnnotator("parse"))
        self._before = [pipeline.getExistingAnnotator(name) for name in ("tokenize", "ssplit")]
        self._lemma = pipeline.getExistingAnnotator("lemma")
        self._threads = threads
        self._memory = Memory(charts_mb)
        compiling.result()

    def run(self, texts: Sequence[str]) -> Results:
        return in_threads(self._parse, texts, self._threads)

    def _parse(self, text: str) -> Any:
        annotation = self._annotation(text)
        for step in self._before:
            step.annotate(annotation)
        for sentence in self._trees.sentences(annotation):
            words = int(self._trees.words(sentence).size())
            if not self._memory.could_hold(chart_mb(words)):
                return ItemError(f"{words} words need {chart_mb(words)} MB beside Java")
            try:
                with self._memory.lent(chart_mb(words)):
                    self._trees.parse(sentence)
            except MemoryError:
                return ItemError(f"the parser ran out of memory ({words} words)")
        self._lemma.annotate(annotation)
        proposed = self._propose.invoke(self._spice, annotation)
        return [[str(word) for word in proposition]
                for proposition in field_of(proposed, "tuples")]


class Memory:
    """Lets long sentences wait for each other, so that together they do not need too much."""

    def __init__(self, all_mb: int) -> None:
        self._free = self._all = max(1, all_mb)
        self._changed = threading.Condition()

    def could_hold(self, size_mb: int) -> bool:
        """False for what has no chance even alone: `lent` would wait for ever."""
        return size_mb <= self._all

    def lent(self, size_mb: int) -> _Loan:
        return _Loan(self, size_mb)

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size

    def give(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()


class _Loan:
    def __init__(self, budget: Memory, size: int) -> None:
        self._budget, self._size = budget, size

    def __enter__(self) -> None:
        self._budget.take(self._size)

    def __exit__(self, *_: object) -> None:
        self._budget.give(self._size)
