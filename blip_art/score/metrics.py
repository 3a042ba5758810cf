"""The metrics: tokenized captions and references in, one number for all and one a picture out.

    METRICS["cider"](texts, engine).corpus == {"CIDEr": 1.02}
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from blip_art.score.coco import Pairs
from blip_art.score.engine import Engine

BLEU_ORDER = 4


class Outcome(NamedTuple):
    """What a metric found."""

    corpus: Dict[str, float]
    """Values of the whole, by name."""
    per_image: Dict[str, List[float]]
    """Values of each picture, in order, under the same names."""
    counts: Optional[List[Dict[str, List[int]]]] = None
    """SPICE only: true positives, false positives, false negatives of each category."""


Metric = Callable[[Pairs, Engine], Outcome]


def bleu(texts: Pairs, engine: Engine) -> Outcome:
    """BLEU-1 to 4 (Papineni 2002): precision of word groups of the whole, short captions pay."""
    captions, references = _as_pycocoevalcap(texts)
    corpus, pictures = Bleu(BLEU_ORDER).compute_score(references, captions, verbose=0)
    names = [f"Bleu_{n}" for n in range(1, BLEU_ORDER + 1)]
    return Outcome(dict(zip(names, map(float, corpus))),
                   {name: list(map(float, values)) for name, values in zip(names, pictures)})


def meteor(texts: Pairs, engine: Engine) -> Outcome:
    """METEOR 1.5 (Denkowski 2014): aligned words, stems, synonyms and paraphrases."""
    corpus, pictures = engine.meteor(texts.captions, texts.references)
    return Outcome({"METEOR": corpus}, {"METEOR": pictures})


def rouge_l(texts: Pairs, engine: Engine) -> Outcome:
    """ROUGE-L (Lin 2004): the longest common subsequence, recall counts 1.2 times."""
    captions, references = _as_pycocoevalcap(texts)
    corpus, pictures = Rouge().compute_score(references, captions)
    return Outcome({"ROUGE_L": float(corpus)}, {"ROUGE_L": pictures.tolist()})


def cider(texts: Pairs, engine: Engine) -> Outcome:
    """CIDEr-D (Vedantam 2015): word groups weighted by their rarity in this set of references.

    The weights come from all references, so that values of parts of a set cannot be averaged.
    """
    if not any(line.strip() for lines in texts.references for line in lines):
        # pycocoevalcap's class stops at a set without a single word.
        return Outcome({"CIDEr": 0.0}, {"CIDEr": [0.0] * len(texts.ids)})
    captions, references = _as_pycocoevalcap(texts)
    corpus, pictures = Cider().compute_score(references, captions)
    return Outcome({"CIDEr": float(corpus)}, {"CIDEr": pictures.tolist()})


def spice(texts: Pairs, engine: Engine) -> Outcome:
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


def category_scores(counts: List[Dict[str, List[int]]]) -> Dict[str, float]:
    """Mean F-score of each SPICE category over the pictures whose references have it."""
    scores = {}
    for name in counts[0]:
        values = [f_score(*count[name]) for count in counts if count[name][0] + count[name][2]]
        if values and name != "All":
            scores[name] = math.fsum(values) / len(values)
    return scores


def _as_pycocoevalcap(texts: Pairs) -> Any:
    return (dict(zip(texts.ids, ([caption] for caption in texts.captions))),
            dict(zip(texts.ids, texts.references)))
