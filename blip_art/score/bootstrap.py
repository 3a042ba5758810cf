"""How sure a score is: percentile bootstrap over pictures, of one set of captions or of two.

    sample = Sample.of(scores); intervals(sample)["CIDEr"] == (0.91, 0.96)

Pictures are drawn with replacement, as many as there are, again and again (Efron & Tibshirani 1993;
for corpus BLEU Koehn 2004), and the metric of each draw is what it would be for those pictures:
BLEU is computed anew from their word group counts. CIDEr's word weights stay those of the whole set
of references; ROUGE-L, CIDEr and SPICE are means over pictures. METEOR of a set is pooled, not a
mean: its interval is that of the mean over pictures, moved to the pooled value.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 20141124
LEVEL = 0.95
BLEU_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
# pycocoevalcap's, against division by nought.
TINY, SMALL = 1e-15, 1e-9
BLOCK_ENTRIES = 1_000_000

Array = NDArray[np.float64]


class Sample(NamedTuple):
    """What the metrics of any draw of pictures follow from."""

    names: List[str]
    """Metrics that are means over pictures."""
    values: Array
    """(pictures, names)"""
    shift: Array
    """(names,): value of the whole set less the mean; not nought for METEOR only."""
    bleu: Optional[Array]
    """(pictures, 10): see bleu_counts."""

    @classmethod
    def of(cls, metrics: Mapping[str, float], per_image: Mapping[str, Mapping[str, float]],
           counts: Optional[Mapping[str, Sequence[int]]]) -> Sample:
        """From what a score file holds, pictures in the order of `per_image`."""
        names = [name for name in metrics if name not in BLEU_NAMES]
        values = np.array([[row[name] for name in names] for row in per_image.values()], dtype=float
                          ).reshape(len(per_image), len(names))
        shift = np.array([metrics[name] for name in names]) - values.mean(axis=0)
        return cls(names, values, shift, None if not counts else
                   np.array([counts[key] for key in per_image], dtype=float))

    def drawn(self, times: Array) -> Dict[str, Array]:
        """Metrics of draws; `times` (draws, pictures) is how often each picture was drawn."""
        means = times @ self.values / times.sum(axis=1, keepdims=True) + self.shift
        found = {} if self.bleu is None else dict(zip(BLEU_NAMES, corpus_bleu(times @ self.bleu).T))
        return {**found, **dict(zip(self.names, means.T))}


class Difference(NamedTuple):
    """Between two sets of captions of the same pictures, second less first."""

    low: float
    high: float
    p_value: float
    """Two-sided: how often a draw turns the sign round, doubled; 1 for equal captions."""


def intervals(sample: Sample, resamples: int = RESAMPLES,
              seed: int = SEED) -> Dict[str, Tuple[float, float]]:
    """The middle 95 % of each metric over draws of pictures."""
    drawn = _all_draws([sample], resamples, seed)[0]
    return {name: _middle(values) for name, values in drawn.items()}


def differences(first: Sample, second: Sample, resamples: int = RESAMPLES,
                seed: int = SEED) -> Dict[str, Difference]:
    """Paired: both sets of captions are measured on the same draws of pictures."""
    before, after = _all_draws([first, second], resamples, seed)
    found = {}
    for name in (name for name in before if name in after):
        gains = after[name] - before[name]
        turned = min(np.sum(gains <= 0), np.sum(gains >= 0))
        # One more on both sides: that no draw of 1,000 did is not certainty.
        p_value = min(1.0, 2 * float(turned + 1) / (resamples + 1))
        found[name] = Difference(*_middle(gains), p_value)
    return found


def bleu_counts(caption: str, references: Sequence[str]) -> List[int]:
    """Words, words of the reference closest in length, groups of 1 to 4 words, those matched."""
    words = caption.split()
    allowed: Counter[Tuple[str, ...]] = Counter()
    lengths = []
    for reference in references:
        theirs = reference.split()
        lengths.append(len(theirs))
        allowed |= _groups(theirs)
    matched = [0, 0, 0, 0]
    for group, count in (_groups(words) & allowed).items():
        matched[len(group) - 1] += count
    closest = min(lengths, key=lambda length: (abs(length - len(words)), length))
    return [len(words), closest, *(max(0, len(words) - n) for n in range(4)), *matched]


def corpus_bleu(sums: Array) -> Array:
    """BLEU-1 to 4, (draws, 4), of added up counts, (draws, 10)."""
    with np.errstate(divide="ignore"):
        logs = np.log((sums[:, 6:] + TINY) / (sums[:, 2:6] + SMALL))
    precision = np.exp(np.cumsum(logs, axis=1) / np.arange(1, 5))
    return precision * brevity_penalty(sums)[:, None]


def brevity_penalty(sums: Array) -> Array:
    """What BLEU is multiplied by where the captions are shorter than the references."""
    return np.exp(np.minimum(0.0, 1.0 - 1.0 / length_ratio(sums)))


def length_ratio(sums: Array) -> Array:
    """Words of captions to words of the closest references."""
    return (sums[:, 0] + TINY) / (sums[:, 1] + SMALL)


def _groups(words: Sequence[str]) -> Counter[Tuple[str, ...]]:
    return Counter(tuple(words[start:start + size]) for size in range(1, 5)
                   for start in range(len(words) - size + 1))


def _all_draws(samples: Sequence[Sample], resamples: int, seed: int) -> List[Dict[str, Array]]:
    parts = [[sample.drawn(times) for sample in samples]
             for times in _draws(len(samples[0].values), resamples, seed)]
    return [{name: np.concatenate([part[place][name] for part in parts])
             for name in parts[0][place]} for place in range(len(samples))]


def _draws(pictures: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks of (draws, pictures): how often each picture was drawn."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_ENTRIES // pictures)
    for start in range(0, resamples, block):
        draws = min(block, resamples - start)
        picks = rng.integers(0, pictures, (draws, pictures))
        picks += pictures * np.arange(draws)[:, None]
        yield np.bincount(picks.ravel(), minlength=draws * pictures
                          ).reshape(draws, pictures).astype(float)


def _middle(values: Array) -> Tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def settings(resamples: int = RESAMPLES) -> Dict[str, Any]:
    """What is written beside intervals."""
    return {"resamples": resamples, "seed": SEED, "level": LEVEL, "unit": "picture"}
