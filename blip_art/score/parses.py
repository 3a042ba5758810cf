"""The seam between texts and SPICE: whatever turns captions into propositions fits behind it.

    parser(["a red cat"], on_parsed) calls on_parsed({"a red cat": [["cat", "red"], ["cat"]]})
"""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List, Protocol, Sequence

Propositions = List[List[str]]
"""What a text says: [object], [object, attribute] or [subject, object, relation], SPICE's order."""

OnParsed = Callable[[Dict[str, Propositions]], None]


class Parser(Protocol):
    """Tokenized texts to their propositions."""

    @property
    def version(self) -> str:
        """Names everything that decides the result: texts are remembered under it for ever."""

    def __call__(self, texts: Sequence[str], on_parsed: OnParsed) -> None:
        """Parse texts, each distinct and not parsed before; tell some results as they come.

        Raises:
            MetricFailed: a text could not be parsed; it is named. The others were told.
        """


def by_cost(texts: Iterable[str]) -> List[str]:
    """Longest first, so that no long one is left alone at the end."""
    return sorted(texts, key=lambda text: (-word_count(text), text))


def parse_cost(text: str) -> float:
    """Seconds on one core, roughly: the chart parser's time is the cube of the length."""
    return 0.015 + 1.9 * (word_count(text) / 100) ** 3


def shard(texts: Iterable[str], index: int, count: int) -> List[str]:
    """The texts of job `index` (from 0) of `count`; all jobs have about the same work.

    Every job must ask with the same texts; what is parsed meanwhile must not move the borders.
    """
    work = [0.0] * count
    mine = []
    for text in by_cost(texts):
        least = work.index(min(work))
        work[least] += parse_cost(text)
        if least == index:
            mine.append(text)
    return mine


def word_count(text: str) -> int:
    return text.count(" ") + 1
