"""How often compare's p-value and interval are wrong: captioners that are equally good, drawn.

    python bench/significance.py

Two captioners are drawn that differ by chance alone: which picture is easy is common to both, the
rest is not, and their scores are exchangeable. A test at 5 % may call 5 % of such pairs different.
Scores are skewed as CIDEr's and SPICE's are (many pictures near zero, a few high), or are the
counts that BLEU-4 is made of. The last rows have equal means but other shapes, which no test that
swaps captions promises anything about. The table goes to bench/results/significance.md and .json.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes share the cores

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blip_art.files import write_json, write_text  # noqa: E402
from blip_art.score.bootstrap import (  # noqa: E402
    POOLED,
    Sample,
    middle,
    randomization_p_values,
    resampled_differences,
)

RESULTS = ROOT / "bench" / "results"
PICTURES = (5, 10, 20, 50, 60, 300)
LEVEL = 0.05
Pair = tuple[Sample, Sample]


def cider_pair(pictures: int, rng: np.random.Generator) -> Pair:
    """Scores from 0 to 10, most near 0, a few above 3; half of the variance is the picture's."""
    easy = rng.gamma(0.6, 1.0, pictures)
    return _means("CIDEr", np.minimum(10.0, easy * rng.lognormal(0.0, 0.8, (2, pictures))))


def spice_pair(pictures: int, rng: np.random.Generator) -> Pair:
    """F-scores of 1 to 4 of 4 to 12 propositions; a third of the captions has none right."""
    easy, expected = rng.beta(0.6, 2.0, pictures), rng.integers(2, 10, pictures)
    said = rng.integers(2, 6, (2, pictures))
    right = rng.binomial(np.minimum(said, expected), easy)
    return _means("SPICE", 2 * right / (said + expected))


def bleu_pair(pictures: int, rng: np.random.Generator) -> Pair:
    """Counts of captions of 4 to 14 words, of which those that are right stand together."""
    easy, closest = rng.beta(0.8, 1.2, pictures), rng.integers(3, 25, pictures)
    words = rng.integers(4, 15, (2, pictures))
    right = rng.binomial(np.minimum(words, closest), easy)
    counts = np.stack([words, np.broadcast_to(closest, words.shape),
                       *(np.maximum(0, words - size) for size in range(4)),
                       *(np.maximum(0, right - size) for size in range(4))], axis=-1)
    first, second = (Sample(["Bleu_4"], {}, [(POOLED[0], part.astype(float))])
                     for part in counts)
    return first, second


def other_shapes_pair(pictures: int, rng: np.random.Generator) -> Pair:
    """Equal means, but one captioner is always fair and the other bad or very good."""
    return _means("CIDEr", np.stack([rng.exponential(1.0, pictures),
                                     rng.normal(1.0, 0.2, pictures)]))


def _means(name: str, values: Any) -> Pair:
    first, second = (Sample([name], {name: part}, []) for part in values)
    return first, second


SCENARIOS: dict[str, Callable[[int, np.random.Generator], Pair]] = {
    "CIDEr, skewed": cider_pair, "SPICE, skewed": spice_pair, "BLEU-4, from counts": bleu_pair,
    "equal means, other shapes": other_shapes_pair}


class Outcome(NamedTuple):
    """Of one simulated comparison."""

    rejected: bool
    """p by swapping is below 5 %."""
    rejected_before: bool
    """So was the p that compare had before: how often a draw of pictures turns the sign."""
    covered: bool
    """The 95 % interval holds the true difference, which is zero."""


def simulate(scenario: str, pictures: int, resamples: int, seed: int) -> Outcome:
    first, second = SCENARIOS[scenario](pictures, np.random.default_rng([seed, pictures]))
    [p_value] = randomization_p_values(first, second, resamples, seed).values()
    [gains] = resampled_differences(first, second, resamples, seed).values()
    low, high = middle(gains)
    turned = min(np.sum(gains <= 0), np.sum(gains >= 0))
    return Outcome(p_value < LEVEL, 2 * int(turned + 1) / (resamples + 1) < LEVEL, low <= 0 <= high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000, help="a row (default 4000)")
    parser.add_argument("--resamples", type=int, default=1000, help="default 1000")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(args.processes) as pool:
        for scenario in SCENARIOS:
            for pictures in PICTURES:
                outcomes = pool.map(partial(simulate, scenario, pictures, args.resamples),
                                    range(args.simulations), chunksize=50)
                shares = np.mean(list(outcomes), axis=0).tolist()
                rows.append({"scores": scenario, "pictures": pictures,
                             **dict(zip(Outcome._fields, shares, strict=True))})
                print(rows[-1], flush=True)
    settings = {"simulations": args.simulations, "resamples": args.resamples, "level": LEVEL}
    write_json(RESULTS / "significance.json", {"settings": settings, "rows": rows}, indent=1)
    write_text(RESULTS / "significance.md", as_text(settings, rows))


def as_text(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table, each share with its Monte Carlo error (one standard error)."""
    count = settings["simulations"]

    def share(value: float) -> str:
        return f"{value:.3f} ± {math.sqrt(value * (1 - value) / count):.3f}"

    lines = ["# How often `compare` is wrong about captioners that are equally good", "",
             f"`python bench/significance.py --simulations {count} "
             f"--resamples {settings['resamples']}`; {count:,} simulated comparisons a row.",
             "Type I error: the share with p below 0.05, which should be at most 0.05. Coverage: "
             "the share of 95 % intervals that hold the true difference. ± is one standard error "
             "of the simulation.", "",
             "| per-picture scores | pictures | type I error | of the p-value before | coverage |",
             "|---|---:|---:|---:|---:|"]
    lines += [f"| {row['scores']} | {row['pictures']} | {share(row['rejected'])} "
              f"| {share(row['rejected_before'])} | {share(row['covered'])} |" for row in rows]
    return "\n".join([*lines, "", NOTE, ""])


NOTE = """p is by paired approximate randomization: a picture's two captions are swapped or not. It
keeps its promise for captioners whose scores are exchangeable. The last rows are not: their
means are equal and their shapes are not, and with few pictures no test that looks at means alone
is right there. "The p-value before" is how often a draw of pictures turned the sign, doubled, as
`compare` computed it until now. Intervals stay the paired percentile bootstrap, which is too narrow
with few pictures: hence the line below 50 pictures, and no verdict below 10."""


if __name__ == "__main__":
    main()
