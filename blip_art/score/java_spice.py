"""SPICE inside a worker's JVM: texts to propositions, propositions to counts of matches.

    SpiceParser(java, threads=2).run(["a red cat"]); SpiceScorer(java, 1).run([(mine, [theirs])])
"""

from __future__ import annotations

import json
import threading
from typing import Any, Dict, List, Sequence, Tuple

import jpype

from blip_art.score.java_side import ItemError, Java, Results, field_of, in_threads, method_of
from blip_art.score.parses import Propositions

CATEGORIES = ("Object", "Attribute", "Relation", "Cardinality", "Color", "Size")
# SPICE's own list of annotators but for ner, whose result nothing reads.
ANNOTATORS = {"annotators": "tokenize,ssplit,parse,lemma",
              "depparse.extradependencies": "MAXIMAL"}
SCORED_AT_ONCE = 200
# The parser's chart: one float a state of the grammar and span of words, and its index tables.
CHART_BYTES_A_WORD_SQUARED = 12_977 * 4 / 2 * 1.4
MODELS_MB = 350


class SpiceParser:
    """Texts to SPICE's propositions, by the exhaustive parser that SPICE was published with."""

    def __init__(self, java: Java, threads: int) -> None:
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
        self._heap = HeapBudget(int(jpype.java.lang.Runtime.getRuntime().maxMemory()) >> 20)

    def run(self, texts: Sequence[str]) -> Results:
        return in_threads(self._parse, texts, self._threads)

    def _parse(self, text: str) -> Any:
        annotation = self._annotation(text)
        for step in self._before:
            step.annotate(annotation)
        for sentence in self._trees.sentences(annotation):
            words = int(self._trees.words(sentence).size())
            if not self._heap.could_hold(words):
                return ItemError(f"{words} words need a heap of {chart_mb(words) + MODELS_MB} MB")
            with self._heap.lent(words):
                problem = self._trees.parse(sentence)
            if problem:
                return ItemError(f"{problem} ({words} words)")
        self._lemma.annotate(annotation)
        proposed = self._propose.invoke(self._spice, annotation)
        return [[str(word) for word in proposition]
                for proposition in field_of(proposed, "tuples")]


class TreeParser:
    """Sentences to trees, as CoreNLP's annotator does, but for its silence.

    The annotator hides a sentence that did not fit into memory behind a flat tree, from which
    SPICE reads nothing; asked directly, the parser tells.
    """

    def __init__(self, java: Java, annotator: Any) -> None:
        def find(name: str) -> Any:
            return java.find("spice", name)

        self._annotator = annotator
        self._parser = field_of(annotator, "parser")
        annotations = "edu.stanford.nlp.ling.CoreAnnotations$"
        self._sentences = find(annotations + "SentencesAnnotation")
        self._tokens = find(annotations + "TokensAnnotation")
        core_map = find("edu.stanford.nlp.util.CoreMap")
        kind = find("edu.stanford.nlp.pipeline.ParserAnnotator")
        java_list = jpype.JClass("java.util.List")
        self._list = jpype.JClass("java.util.LinkedList")
        self._finish = method_of(kind, "finishSentence", core_map, java_list)

    def sentences(self, annotation: Any) -> Any:
        return annotation.get(self._sentences.class_)

    def words(self, sentence: Any) -> Any:
        return sentence.get(self._tokens.class_)

    def parse(self, sentence: Any) -> str:
        """Write the best tree into the sentence; returns what went wrong, '' if nothing did."""
        query = self._parser.parserQuery()
        query.parse(self.words(sentence))
        if query.parseNoMemory() or query.parseSkipped():
            return "the parser ran out of memory"
        best = query.getKBestPCFGParses(1)
        if best is None or best.isEmpty():
            # The grammar has no tree for it; then the flat one is the published behaviour.
            self._annotator.doOneFailedSentence(None, sentence)
            return ""
        self._finish.invoke(self._annotator, sentence, self._list([best.get(0).object()]))
        return ""


def chart_mb(words: int) -> int:
    """Memory that parsing a sentence takes."""
    return 10 + (int(words ** 2 * CHART_BYTES_A_WORD_SQUARED) >> 20)


class HeapBudget:
    """Lets long sentences wait for each other, so that together they do not fill the heap."""

    def __init__(self, heap_mb: int) -> None:
        self._free = self._all = max(1, heap_mb - MODELS_MB)
        self._changed = threading.Condition()

    def could_hold(self, words: int) -> bool:
        """False for what has no chance even alone (the estimate is rather high than low)."""
        return chart_mb(words) <= 1.5 * self._all

    def lent(self, words: int) -> _Loan:
        return _Loan(self, min(chart_mb(words), self._all))

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size

    def give(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()


class _Loan:
    def __init__(self, budget: HeapBudget, size: int) -> None:
        self._budget, self._size = budget, size

    def __enter__(self) -> None:
        self._budget.take(self._size)

    def __exit__(self, *_: object) -> None:
        self._budget.give(self._size)


class SpiceScorer:
    """Propositions of a caption and of its references to counts of matches (Anderson 2016)."""

    def __init__(self, java: Java, threads: int) -> None:
        spice = "edu.anu.spice."
        self._graph = java.find("spice", spice + "SceneGraph")
        self._stats = java.find("spice", spice + "SpiceStats")
        parser = java.find("spice", spice + "SpiceParser")
        self._synonyms = field_of(parser(None, 1, True), "synonyms")
        filters = java.find("spice", spice + "TupleFilter")
        self._filters = jpype.JClass("java.util.HashMap")()
        for name in CATEGORIES:
            self._filters.put(name, getattr(filters, f"{name.lower()}Filter"))

    def run(self, pairs: Sequence[Tuple[Propositions, List[Propositions]]]) -> Results:
        """{category: (true positives, false positives, false negatives)} of each pair."""
        for first in range(0, len(pairs), SCORED_AT_ONCE):
            stats = self._stats(self._filters, False)
            for index, pair in enumerate(pairs[first:first + SCORED_AT_ONCE], first):
                caption, references = pair
                stats.score(jpype.JInt(index), self._scene([caption]), self._scene(references),
                            True)
            for row in json.loads(str(stats.toJSONString())):
                yield row["image_id"], _counts(row["scores"])

    def _scene(self, texts: Sequence[Propositions]) -> Any:
        """One graph of all texts, where words that mean the same become one node."""
        graph = self._graph(self._synonyms, True)
        add = (None, graph.addObject, graph.addAttribute, graph.addRelation)
        for propositions in texts:
            for proposition in propositions:
                add[len(proposition)](*proposition)  # type: ignore[misc]
        return graph


def _counts(scores: Dict[str, Dict[str, Any]]) -> Dict[str, List[int]]:
    return {name: [int(score[key]) for key in ("tp", "fp", "fn")]
            for name, score in scores.items()}
