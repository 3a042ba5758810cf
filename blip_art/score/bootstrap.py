"""How sure a score is: percentile bootstrap over pictures, of one set of captions or of two.

    sample = Sample.of(scores); intervals(sample)["CIDEr"] == (0.91, 0.96)

Pictures are drawn with replacement, as many as there are, again and again (Efron & Tibshirani 1993;
for corpus BLEU Koehn 2004), and the metric of each draw is what it would be for those pictures:
BLEU and METEOR, which are no means, are computed anew from the counts they are made of. CIDEr's
word weights stay those of the whole set of references.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from blip_art.score.meteor_formula import meteor_of
from blip_art.score.word_groups import BLEU_NAMES, Array, corpus_bleu

RESAMPLES = 1000
SEED = 20141124
LEVEL = 0.95
BLOCK_ENTRIES = 1_000_000


class Pooled(NamedTuple):
    """A metric that is no mean over pictures: what it is made of, and how."""

    names: Tuple[str, ...]
    counts: str
    """Where a score file has the counts of each picture."""
    values: Callable[[Array], Array]
    """(sets, counts) added up to (names, sets)."""


POOLED = (Pooled(BLEU_NAMES, "bleu_counts", lambda sums: corpus_bleu(sums).T),
          Pooled(("METEOR",), "meteor_counts", lambda sums: meteor_of(sums)[None]))


class Sample(NamedTuple):
    """What the metrics of any draw of pictures follow from."""

    names: List[str]
    """Metrics, in the order of the score file."""
    means: Dict[str, Array]
    """(pictures,) of each metric that is a mean."""
    pooled: List[Tuple[Pooled, Array]]
    """(pictures, counts) of each metric that is none."""

    @classmethod
    def of(cls, record: Mapping[str, Any], names: Sequence[str] = (),
           order: Sequence[str] = ()) -> Sample:
        """From what a score file holds: these metrics or all, pictures in this order or its own."""
        keys = list(order or record["per_image"])
        pooled = [kind for kind in POOLED if set(kind.names) & set(names or record["metrics"])]
        no_means = {name for kind in pooled for name in kind.names}
        names = list(names or record["metrics"])
        return cls(names, {name: np.array([record["per_image"][key][name] for key in keys], float)
                           for name in names if name not in no_means},
                   [(kind, np.array([record[kind.counts][key] for key in keys], float))
                    for kind in pooled])

    @property
    def pictures(self) -> int:
        return len(next(iter([*self.means.values(), *(counts for _, counts in self.pooled)])))

    def drawn(self, times: Array) -> Dict[str, Array]:
        """Metrics of draws; `times` (draws, pictures) is how often each picture was drawn."""
        found = {name: times @ values / times.sum(axis=1) for name, values in self.means.items()}
        for kind, counts in self.pooled:
            found.update(zip(kind.names, kind.values(times @ counts)))
        return {name: found[name] for name in self.names}


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


def _all_draws(samples: Sequence[Sample], resamples: int, seed: int) -> List[Dict[str, Array]]:
    parts = [[sample.drawn(times) for sample in samples]
             for times in _draws(samples[0].pictures, resamples, seed)]
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
