"""Scores captions against references with every metric asked for; one that fails stands alone.

    scores = score({"1": ["a cat sits"]}, {"1": "a cat"}, ["bleu", "cider"]); scores.to_json()
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Dict, List, Sequence

from blip_art import __version__
from blip_art.config import METRIC_NAMES
from blip_art.errors import UserError
from blip_art.score import corenlp
from blip_art.score.coco import LINE_BREAKS, LONE_SURROGATES, Pairs, paired
from blip_art.score.engine import Engine
from blip_art.score.metrics import METRICS, Outcome, Texts, category_scores
from blip_art.score.parses import word_count
from blip_art.score.workers import MetricFailed

ODD = {"line_breaks": LINE_BREAKS, "half_characters": LONE_SURROGATES,
       "tabs": re.compile("\t"), "beyond_bmp": re.compile("[\U00010000-\U0010ffff]"),
       "emoji": re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]")}
# Words of a text whose parse takes seconds of a core, as SPICE's cost is the cube.
LONG_WORDS = 100


@dataclass
class Scores:
    """Everything that is known about one set of captions."""

    pictures: int
    metrics: Dict[str, float] = field(default_factory=dict)
    """Values of the whole set: Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr, SPICE."""
    per_image: Dict[str, Dict[str, float]] = field(default_factory=dict)
    """The same by picture."""
    spice_categories: Dict[str, float] = field(default_factory=dict)
    """SPICE of objects, attributes, relations, numbers, colours and sizes alone."""
    bleu_counts: Dict[str, List[int]] = field(default_factory=dict)
    """By picture, what BLEU of any set is made of; see WordGroups.bleu_counts."""
    meteor_counts: Dict[str, List[int]] = field(default_factory=dict)
    """By picture, what METEOR of any set is made of; see meteor_formula.meteor_counts."""
    spice_counts: Dict[str, Dict[str, List[int]]] = field(default_factory=dict)
    """By picture and category: true positives, false positives, false negatives."""
    seconds: Dict[str, float] = field(default_factory=dict)
    versions: Dict[str, str] = field(default_factory=dict)
    failed: Dict[str, str] = field(default_factory=dict)
    """Metrics that could not be computed, and why."""
    cleaned: Dict[str, int] = field(default_factory=dict)
    """Captions and references with line_breaks, tabs, half_characters (all read as a space or
    U+FFFD), with emoji or other characters beyond_bmp, and those that are long (100 words and
    more) or of no_words after tokenizing."""
    parsed: Dict[str, int] = field(default_factory=dict)
    """SPICE only: distinct texts, and how many of them were new to the parser."""

    def to_json(self) -> Dict[str, Any]:
        """The layout of a score file, without its split and epoch."""
        return {"pictures": self.pictures, "metrics": self.metrics, "failed": self.failed,
                "cleaned": self.cleaned, "parsed": self.parsed,
                "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
                "versions": self.versions, "spice_categories": self.spice_categories,
                "per_image": self.per_image, "bleu_counts": self.bleu_counts,
                "meteor_counts": self.meteor_counts, "spice_counts": self.spice_counts}


def score(references: Any, captions: Any, metrics: Sequence[str] = METRIC_NAMES, *,
          subset: bool = False, **engine_options: Any) -> Scores:
    """Score one set of captions; see Engine for the options.

    Args:
        references: {id: [texts]}, or what else coco.references_by_id takes.
        captions: {id: text} or {id: [text]}, or what else coco.captions_by_id takes.

    Raises:
        UserError: references or captions of another shape, unknown metric, pictures that do not
            match, no Java, no CoreNLP for SPICE.
    """
    with Engine(**engine_options) as engine:
        return score_with(engine, references, captions, metrics, subset=subset)


def score_with(engine: Engine, references: Any, captions: Any,
               metrics: Sequence[str] = METRIC_NAMES, *, subset: bool = False) -> Scores:
    """The same with an engine that stays, so that a second set's references cost nothing."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric '{name}'; there are {', '.join(METRICS)}")
    pairs = paired(references, captions, subset)
    if "spice" in metrics:
        engine.require_corenlp()
    scores = Scores(pictures=len(pairs.ids), versions=_versions(engine))
    for key in pairs.ids:
        scores.per_image[key] = {}
    began = time.monotonic()
    try:
        texts = _tokenized(pairs, engine, metrics)
    except MetricFailed as error:
        scores.failed = dict.fromkeys(metrics, f"tokenizer: {error}")
        return scores
    scores.seconds["tokenize"] = time.monotonic() - began
    scores.cleaned = _cleaned(pairs, texts)
    known = engine.parsed
    for name in METRICS:
        if name in metrics:
            _add(scores, name, texts, engine)
    if "SPICE" in scores.metrics:
        scores.parsed = {"texts": len(set(_all(texts))), "new": engine.parsed - known}
    return scores


def _all(pairs: Pairs) -> List[str]:
    return [*pairs.captions, *(text for texts in pairs.references for text in texts)]


def _cleaned(given: Pairs, tokenized: Pairs) -> Dict[str, int]:
    """How many texts were not read as they stand; kinds that do not occur are left out."""
    texts = _all(given)
    found = {name: sum(1 for text in texts if pattern.search(text))
             for name, pattern in ODD.items()}
    found["no_words"] = sum(1 for text in _all(tokenized) if not text)
    found["long"] = sum(1 for text in _all(tokenized) if word_count(text) >= LONG_WORDS)
    return {name: count for name, count in found.items() if count}


def _tokenized(pairs: Pairs, engine: Engine, metrics: Sequence[str]) -> Texts:
    lines = iter(engine.tokenize(_all(pairs), soon=metrics))
    captions = [next(lines) for _ in pairs.captions]
    return Texts(pairs.ids, captions, [[next(lines) for _ in texts] for texts in pairs.references])


def _add(scores: Scores, name: str, texts: Texts, engine: Engine) -> None:
    began = time.monotonic()
    try:
        outcome: Outcome = METRICS[name](texts, engine)
    except MetricFailed as error:
        scores.failed[name] = str(error)
        return
    finally:
        scores.seconds[name] = time.monotonic() - began
    scores.metrics.update(outcome.corpus)
    for label, values in outcome.per_image.items():
        for key, value in zip(texts.ids, values):
            scores.per_image[key][label] = value
    if outcome.counts:
        setattr(scores, f"{name}_counts", dict(zip(texts.ids, outcome.counts)))
    if name == "spice":
        scores.spice_categories = category_scores(outcome.counts)


def _versions(engine: Engine) -> Dict[str, str]:
    return {"blip_art": __version__, "pycocoevalcap": version("pycocoevalcap"),
            "java": engine.java_version,
            "corenlp": corenlp.VERSION, "jpype1": version("jpype1"), "numba": version("numba")}
