"""SPICE's second half inside a worker's JVM: propositions to counts of matches.

    SpiceScorer(java, threads=1).run([(mine, [theirs])])
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Sequence, Tuple

import jpype

from blip_art.score.java_side import Java, Results, field_of
from blip_art.score.parses import Propositions

CATEGORIES = ("Object", "Attribute", "Relation", "Cardinality", "Color", "Size")
SCORED_AT_ONCE = 200


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
