"""Sentences to trees as CoreNLP's parser annotator makes them, with our chart in place of its own.

    trees = TreeParser(java, annotator); trees.parse(sentence)

CoreNLP tokenizes, looks up what each word may be, and makes its tree out of ours; between that
stands `chart.best_tree`, with the grammar read from CoreNLP's model.
"""

from __future__ import annotations

import threading
from itertools import chain
from typing import Any, Callable, Iterable, List, Sequence, Tuple

import jpype
import numpy as np

from blip_art.score import chart
from blip_art.score.java_side import Java, field_of, method_of, opened, set_field

Rule = Tuple[int, ...]


class TreeParser:
    """Sentences to trees.

    The annotator hides a sentence that did not fit into memory behind a flat tree, from which
    SPICE reads nothing; here it is an error.
    """

    def __init__(self, java: Java, annotator: Any) -> None:
        def find(name: str) -> Any:
            return java.find("spice", "edu.stanford.nlp." + name)

        self._annotator = annotator
        self._parser = field_of(annotator, "parser")
        annotations = "ling.CoreAnnotations$"
        self._sentences = find(annotations + "SentencesAnnotation")
        self._tokens = find(annotations + "TokensAnnotation")
        self._list = jpype.JClass("java.util.LinkedList")
        self._finish = method_of(find("pipeline.ParserAnnotator"), "finishSentence",
                                 find("util.CoreMap"), jpype.JClass("java.util.List"))
        # What it would try where the grammar has no tree is ours to do: the chart is not its own.
        self._parser.getOp().testOptions.doRecovery = False
        self._grammar = read_grammar(java, self._parser)
        self._states = [self._parser.stateIndex.get(n) for n in range(len(self._grammar.is_tag))]
        self._words = _WordScores(java, self._parser)

    def sentences(self, annotation: Any) -> Any:
        return annotation.get(self._sentences.class_)

    def words(self, sentence: Any) -> Any:
        return sentence.get(self._tokens.class_)

    def parse(self, sentence: Any) -> None:
        """Write the best tree into the sentence.

        Raises:
            MemoryError: there was not enough for the chart.
        """
        query = self._parser.parserQuery()
        for flood in (False, True):
            # The second time a word may be anything, where CoreNLP would do so too.
            nodes = chart.best_tree(
                self._grammar, self._words.scores(query, self.words(sentence), flood))
            if nodes:
                break
        else:
            # Then the flat tree is the published behaviour.
            self._annotator.doOneFailedSentence(None, sentence)
            return
        tree = self._tree(field_of(query, "pparser"), nodes)
        for step in ("debinarizer", "subcategoryStripper"):
            tree = field_of(query, step).transformTree(tree)
        query.restoreOriginalWords(tree)
        self._finish.invoke(self._annotator, sentence, self._list([tree]))

    def _tree(self, parser: Any, nodes: Sequence[Tuple[int, int, int]]) -> Any:
        """CoreNLP's tree, of nodes in the order of `chart.best_tree`."""
        factory, labels = field_of(parser, "tf"), field_of(parser, "originalCoreLabels")
        made: List[Any] = []
        for state, start, children in reversed(nodes):
            if children:
                below = [made.pop() for _ in range(children)]
            else:
                below = [factory.newLeaf(labels[start])]
            made.append(factory.newTreeNode(self._states[state], self._list(below)))
        return made[0]


class _WordScores:
    """What CoreNLP's lexicon says of each word, without the charts that come with it."""

    def __init__(self, java: Java, parser: Any) -> None:
        self._n_states, self._n_tags = int(parser.stateIndex.size()), int(parser.tagIndex.size())
        self._fill = jpype.JClass("java.util.Arrays").fill
        self._unread = threading.local()
        self._constraint = java.find("spice", "edu.stanford.nlp.parser.common.ParserConstraint")
        self._list = jpype.JClass("java.util.ArrayList")
        self._any = jpype.JClass("java.util.regex.Pattern").compile(".*")

    def scores(self, query: Any, words: Any, flood: bool) -> np.ndarray:
        """(words, states), the boundary's last.

        Args:
            flood: let every word be anything; after a call without, for the same words.
        """
        parser = field_of(query, "pparser")
        if flood:
            set_field(parser, "floodTags", True)
            parser.parse(field_of(parser, "sentence"))
            rows = field_of(parser, "iScore")
        else:
            rows = self._prepare(parser, int(words.size()) + 1)
            query.setConstraints(self._no_spans(int(words.size()) + 1))
            query.parse(words)
            if query.parseNoMemory():
                raise MemoryError
        return np.stack([np.asarray(rows[n][n + 1]) for n in range(len(rows))])

    def _prepare(self, parser: Any, length: int) -> Any:
        """Give it arrays for single words; what is for longer spans is one and the same."""
        def table(kind: Any, row: Any, count: int) -> Any:
            rows = jpype.JArray(kind, 2)(count)
            self._fill(rows, row)
            return rows

        # Where it writes what nobody will read: each thread for itself, or cores would wait.
        unread = self._unread
        if not hasattr(unread, "scores"):
            unread.scores = jpype.JArray(jpype.JFloat)(self._n_states)
            unread.extents = jpype.JArray(jpype.JInt)(self._n_states)
            unread.tags = jpype.JArray(jpype.JBoolean)(self._n_tags)
        rows = jpype.JArray(jpype.JFloat, 3)(length)
        for start in range(length):
            rows[start] = table(jpype.JFloat, unread.scores, length + 1)
            rows[start][start + 1] = jpype.JArray(jpype.JFloat)(self._n_states)
        set_field(parser, "iScore", rows)
        for name in ("narrowLExtent", "wideLExtent", "narrowRExtent", "wideRExtent"):
            set_field(parser, name, table(jpype.JInt, unread.extents, length + 1))
        set_field(parser, "tags", table(jpype.JBoolean, unread.tags, length))
        set_field(parser, "arraySize", jpype.JInt(length))
        return rows

    def _no_spans(self, length: int) -> Any:
        """Constraints that no span of several words keeps: it crosses their end."""
        return self._list([self._constraint(-1, end, self._any) for end in range(1, length)])


def read_grammar(java: Java, parser: Any) -> chart.Grammar:
    """The rules of a LexicalizedParser, in the order in which it tries them."""
    def reader(name: str, *fields: str) -> Callable[[Any], Rule]:
        kind = java.find("spice", f"edu.stanford.nlp.parser.lexparser.{name}").class_
        getters = [opened(kind.getDeclaredField(field)).getInt for field in fields]
        score = opened(kind.getDeclaredField("score")).getFloat
        return lambda rule: (*(get(rule) for get in getters), score(rule))

    binary_rule = reader("BinaryRule", "leftChild", "rightChild", "parent")
    unary_rule = reader("UnaryRule", "child", "parent")
    binary, unary = parser.bg, parser.ug
    states = range(int(parser.stateIndex.size()))
    split = [[binary_rule(rule) for rule in binary.ruleListByParent(s)] for s in states]
    closed = [[unary_rule(rule) for rule in unary.closedRulesByChild(s)] for s in states]
    single = [[unary_rule(rule) for rule in unary.rulesByParent(s)] for s in states]
    by_left: List[List[Rule]] = [[] for _ in states]
    for rule in sorted(chain.from_iterable(split)):
        by_left[int(rule[0])].append(rule)
    is_right = np.zeros(len(states), np.bool_)
    is_right[[int(rule[1]) for rule in chain.from_iterable(split)]] = True
    is_tag = np.zeros(len(states), np.bool_)
    is_tag[[n for tag in parser.tagIndex.objectsList()
            if (n := int(parser.stateIndex.indexOf(tag))) >= 0]] = True
    return chart.Grammar(
        _borders(by_left), _states(by_left, 1), _states(by_left, 2), _scores(by_left),
        _borders(closed), _states(closed, 1), _scores(closed),
        _borders(split), _states(split, 0), _states(split, 1), _scores(split),
        _borders(single), _states(single, 0), _scores(single), is_right, is_tag,
        int(parser.stateIndex.indexOf(parser.getOp().langpack().startSymbol())))


def _borders(groups: Sequence[Sequence[Rule]]) -> np.ndarray:
    return np.cumsum([0, *map(len, groups)]).astype(np.int32)


def _states(groups: Iterable[Sequence[Rule]], position: int) -> np.ndarray:
    return np.array([rule[position] for rule in chain.from_iterable(groups)], np.uint16)


def _scores(groups: Iterable[Sequence[Rule]]) -> np.ndarray:
    return np.array([rule[-1] for rule in chain.from_iterable(groups)], np.float32)
