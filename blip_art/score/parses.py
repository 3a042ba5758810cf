"""The seam between texts and SPICE: whatever turns captions into propositions fits behind it.

    parser: Parser = ...; parser(["a red cat"]) == {"a red cat": [["cat", "red"], ["cat"]]}
"""

from __future__ import annotations

from typing import Dict, List, Protocol, Sequence

Propositions = List[List[str]]
"""What a text says: [object], [object, attribute] or [subject, object, relation], SPICE's order."""


class Parser(Protocol):
    """Tokenized texts to their propositions."""

    def __call__(self, texts: Sequence[str]) -> Dict[str, Propositions]:
        """Parse texts, each distinct and not parsed before.

        Raises:
            MetricFailed: a text could not be parsed; it is named.
        """


def by_cost(texts: Sequence[str]) -> List[str]:
    """Longest first, so that no long one is left alone at the end."""
    return sorted(texts, key=lambda text: (-word_count(text), text))


def word_count(text: str) -> int:
    return text.count(" ") + 1
