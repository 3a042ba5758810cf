"""How sure a score is, and whether two differ: intervals by bootstrap, p-values by randomization.

    sample = Sample.of(scores); intervals(sample)["CIDEr"] == (0.91, 0.96)

Intervals: pictures are drawn with replacement, as many as there are, again and again (Efron &
Tibshirani 1993; for corpus BLEU Koehn 2004). p-values: were the two captioners the same, it would
not matter which wrote which of a picture's two captions, so these are swapped at random (Noreen
1989; for translation Riezler & Maxwell 2005; sacreBLEU's paired-ar). Either way the metric is what
it would be for those captions: BLEU and METEOR, which are no means, are computed again from the
counts they are made of. CIDEr's word weights stay those of the whole set of references.
bench/significance.py measures how often both are wrong.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from blip_art.errors import UserError
from blip_art.score.meteor_formula import meteor_of
from blip_art.score.word_groups import BLEU_NAMES, Array, corpus_bleu

RESAMPLES = 1000
# Fewer leave a p-value too coarse for 0.05, and the ends of an interval to a handful of draws.
LEAST_RESAMPLES = 200
MOST_RESAMPLES = 100_000
SEED = 20141124
LEVEL = 0.95
BLOCK_ENTRIES = 1_000_000
# Swaps that give the same difference do so but for the order in which numbers are added up.
ROUNDING = 1e-9


class Pooled(NamedTuple):
    """A metric that is no mean over pictures: what it is made of, and how."""

    names: Tuple[str, ...]
    counts: str
    """Where a score file has the counts of each picture."""
    size: int
    """How many counts a picture has."""
    values: Callable[[Array], Array]
    """(sets, counts) added up to (names, sets)."""


POOLED = (Pooled(BLEU_NAMES, "bleu_counts", 10, lambda sums: corpus_bleu(sums).T),
          Pooled(("METEOR",), "meteor_counts", 6, lambda sums: meteor_of(sums)[None]))


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

    def with_captions_of(self, other: Sample) -> Sample:
        """(2 · pictures,): these captions of all pictures, then the other captioner's."""
        assert self.names == other.names, (self.names, other.names)
        return Sample(self.names,
                      {name: np.concatenate([values, other.means[name]])
                       for name, values in self.means.items()},
                      [(kind, np.concatenate([counts, theirs]))
                       for (kind, counts), (_, theirs) in zip(self.pooled, other.pooled)])


class Difference(NamedTuple):
    """Between two sets of captions of the same pictures, second less first."""

    low: float
    high: float
    p_value: float
    """Two-sided: how often swapped captions differ as much; 1 for equal captions."""


def intervals(sample: Sample, resamples: int = RESAMPLES,
              seed: int = SEED) -> Dict[str, Tuple[float, float]]:
    """The middle 95 % of each metric over draws of pictures."""
    drawn = _all_draws([sample], resamples, seed)[0]
    return {name: middle(values) for name, values in drawn.items()}


def differences(first: Sample, second: Sample, resamples: int = RESAMPLES,
                seed: int = SEED) -> Dict[str, Difference]:
    """Paired: both sets of captions are measured on the same draws of pictures, and swapped.

    Both samples have the same metrics.
    """
    gains = resampled_differences(first, second, resamples, seed)
    p_values = randomization_p_values(first, second, resamples, seed)
    return {name: Difference(*middle(gains[name]), p_values[name]) for name in first.names}


def resampled_differences(first: Sample, second: Sample, resamples: int = RESAMPLES,
                          seed: int = SEED) -> Dict[str, Array]:
    """(resamples,) of each metric: second less first, on draws of pictures."""
    before, after = _all_draws([first, second], resamples, seed)
    return {name: after[name] - before[name] for name in first.names}


def randomization_p_values(first: Sample, second: Sample, trials: int = RESAMPLES,
                           seed: int = SEED) -> Dict[str, float]:
    """Two-sided p of each metric's difference, by paired approximate randomization.

    What was observed is one of the ways to swap, so it is counted on both sides: p is never 0.
    """
    both = first.with_captions_of(second)

    def gains(swapped: Array) -> Dict[str, Array]:  # (trials, pictures) of 0 and 1
        before, after = (both.drawn(np.hstack(parts)) for parts in (
            (1 - swapped, swapped), (swapped, 1 - swapped)))
        return {name: np.abs(after[name] - before[name]) for name in both.names}

    observed = gains(np.zeros((1, first.pictures)))
    as_large = dict.fromkeys(both.names, 0)
    for swapped in _swaps(first.pictures, trials, seed):
        for name, found in gains(swapped).items():
            as_large[name] += int(np.sum(found >= observed[name] * (1 - ROUNDING) - ROUNDING))
    return {name: (count + 1) / (trials + 1) for name, count in as_large.items()}


def check_resamples(resamples: int) -> None:
    """Refuse numbers that give no p-value or no end.

    Raises:
        UserError: fewer than 200 or more than 100,000.
    """
    if not LEAST_RESAMPLES <= resamples <= MOST_RESAMPLES:
        raise UserError(f"--resamples {resamples}: give {LEAST_RESAMPLES:,} to "
                        f"{MOST_RESAMPLES:,}; the default is {RESAMPLES:,}")


def _all_draws(samples: Sequence[Sample], resamples: int, seed: int) -> List[Dict[str, Array]]:
    parts = [[sample.drawn(times) for sample in samples]
             for times in _draws(samples[0].pictures, resamples, seed)]
    return [{name: np.concatenate([part[place][name] for part in parts])
             for name in parts[0][place]} for place in range(len(samples))]


def _draws(pictures: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks of (draws, pictures): how often each picture was drawn."""
    rng = np.random.default_rng(seed)
    for draws in _blocks(pictures, resamples):
        picks = rng.integers(0, pictures, (draws, pictures))
        picks += pictures * np.arange(draws)[:, None]
        yield np.bincount(picks.ravel(), minlength=draws * pictures
                          ).reshape(draws, pictures).astype(float)


def _swaps(pictures: int, trials: int, seed: int) -> Iterator[Array]:
    """Blocks of (trials, pictures): 1 where the two captions of a picture are swapped."""
    rng = np.random.default_rng(seed)
    for count in _blocks(pictures, trials):
        yield rng.integers(0, 2, (count, pictures), dtype=np.int8).astype(float)


def _blocks(pictures: int, rows: int) -> Iterator[int]:
    """Rows at a time, so that memory does not grow with their number."""
    block = max(1, BLOCK_ENTRIES // pictures)
    for start in range(0, rows, block):
        yield min(block, rows - start)


def middle(values: Array) -> Tuple[float, float]:
    """The two ends of the interval: percentiles of draws."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def settings(resamples: int = RESAMPLES) -> Dict[str, Any]:
    """What is written beside intervals."""
    return {"resamples": resamples, "seed": SEED, "level": LEVEL, "unit": "picture"}
