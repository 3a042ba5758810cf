"""The metrics: tokenized captions and references in, one number for all and one a picture out.

    METRICS["cider"](texts, engine).corpus == {"CIDEr": 1.02}
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence

import numpy as np

from blip_art.score.coco import Pairs
from blip_art.score.engine import Engine
from blip_art.score.meteor_formula import meteor_counts, meteor_of
from blip_art.score.word_groups import BLEU_NAMES, WordGroups, corpus_bleu

# ROUGE-L: recall counts so many times.
BETA = 1.2


class Texts(Pairs):
    """Tokenized captions beside their references."""

    @functools.cached_property
    def groups(self) -> WordGroups:
        """What BLEU and CIDEr count."""
        return WordGroups(self.captions, self.references)


class Outcome(NamedTuple):
    """What a metric found."""

    corpus: Dict[str, float]
    """Values of the whole, by name."""
    per_image: Dict[str, List[float]]
    """Values of each picture, in order, under the same names."""
    counts: Sequence[Any] = ()
    """What the value of any set of pictures follows from, by picture: BLEU, METEOR, SPICE."""


Metric = Callable[[Texts, Engine], Outcome]


def bleu(texts: Texts, engine: Engine) -> Outcome:
    """BLEU-1 to 4 (Papineni 2002): precision of word groups of the whole, short captions pay."""
    counts = texts.groups.bleu_counts()
    [corpus] = corpus_bleu(counts.sum(axis=0, keepdims=True)).tolist()
    return Outcome(dict(zip(BLEU_NAMES, corpus)),
                   dict(zip(BLEU_NAMES, corpus_bleu(counts).T.tolist())), counts.tolist())


def meteor(texts: Texts, engine: Engine) -> Outcome:
    """METEOR 1.5 (Denkowski 2014): aligned words, stems, synonyms and paraphrases."""
    counts = meteor_counts(engine.meteor(texts.captions, texts.references))
    return Outcome({"METEOR": float(meteor_of(counts.sum(axis=0)))},
                   {"METEOR": meteor_of(counts).tolist()}, counts.tolist())


def rouge_l(texts: Texts, engine: Engine) -> Outcome:
    """ROUGE-L (Lin 2004): the longest common subsequence, recall counts 1.2 times."""
    pictures = [_rouge(*pair) for pair in zip(texts.captions, texts.references)]
    return Outcome({"ROUGE_L": float(np.mean(pictures))}, {"ROUGE_L": pictures})


def cider(texts: Texts, engine: Engine) -> Outcome:
    """CIDEr-D (Vedantam 2015): word groups weighted by their rarity in this set of references.

    The weights come from all references, so that values of parts of a set cannot be averaged.
    """
    pictures = texts.groups.cider()
    return Outcome({"CIDEr": float(pictures.mean())}, {"CIDEr": pictures.tolist()})


def spice(texts: Texts, engine: Engine) -> Outcome:
    """SPICE (Anderson 2016): F-score of objects, attributes and relations in scene graphs."""
    said = engine.propositions([*texts.captions, *(t for lines in texts.references for t in lines)])
    counts = engine.spice([said[text] for text in texts.captions],
                          [[said[text] for text in lines] for lines in texts.references])
    pictures = [f_score(*count["All"]) for count in counts]
    return Outcome({"SPICE": float(np.mean(pictures))}, {"SPICE": pictures}, counts)


METRICS: Dict[str, Metric] = {
    "bleu": bleu, "meteor": meteor, "rouge_l": rouge_l, "cider": cider, "spice": spice}


def f_score(true_positives: int, false_positives: int, false_negatives: int) -> float:
    """Harmonic mean of precision and recall; 0 where one of them has nothing to count."""
    said, expected = true_positives + false_positives, true_positives + false_negatives
    if not true_positives or not said or not expected:
        return 0.0
    precision, recall = true_positives / said, true_positives / expected
    return 2.0 * (precision * recall) / (precision + recall)


def category_scores(counts: Sequence[Mapping[str, Sequence[int]]]) -> Dict[str, float]:
    """Mean F-score of each SPICE category over the pictures whose references have it."""
    scores = {}
    for name in counts[0]:
        values = [f_score(*count[name]) for count in counts if count[name][0] + count[name][2]]
        if values and name != "All":
            scores[name] = math.fsum(values) / len(values)
    return scores


def _rouge(caption: str, references: Sequence[str]) -> float:
    words = caption.split(" ")
    lengths = [(common_length(words, theirs), len(theirs))
               for theirs in (text.split(" ") for text in references)]
    precision = max(common for common, _ in lengths) / len(words)
    recall = max(common / length for common, length in lengths)
    if not precision or not recall:
        return 0.0
    return (1 + BETA ** 2) * precision * recall / (recall + BETA ** 2 * precision)


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time (Hyyro 2004).

    A bit of `open_` stands for a word of `second`; it is 0 where the row's value grows.
    """
    places: Dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    every = open_ = (1 << len(second)) - 1
    for word in first:
        matched = open_ & places.get(word, 0)
        open_ = (open_ + matched | open_ - matched) & every
    return len(second) - bin(open_).count("1")
