"""Sweeps that are larger than a cluster's arrays, or than one may have in the queue.

    stages = in_portions(sweep_stages(…), array_size=1001)      runs = sweep_runs(free=500)

An array that is too large becomes several of even size. What runs at once is divided among them,
so that one run that waits for days does not hold up the next array; only where there are more
arrays than runs at once does an array wait for one before it.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Optional, Sequence, Tuple

from blip_art.cluster.batch import Stage

TRAIN_JOBS = 4
"""What a training with scores submits: train, follow, score, collect."""


def in_portions(stages: Sequence[Stage], array_size: Optional[int]) -> List[Stage]:
    """The stages with each array that has more jobs than `array_size` cut into several.

    The portions of 'train' are called train.1, train.2, …; what waited for it element by element
    waits for the portion with its runs, anything else for all of them.
    """
    found: List[Stage] = []
    names: Dict[str, Tuple[str, ...]] = {}
    for stage in stages:
        parts = _cut(stage, array_size or len(stage.jobs))
        names[stage.name] = tuple(part.name for part in parts)
        found += [dataclasses.replace(part, after=(*part.after, *(
            pair for kind, before in stage.after
            for pair in _wait(kind, names.get(before, (before,)), part, number))))
                  for number, part in enumerate(parts)]
    return found


def sweep_runs(free: int, rescored: int = 0) -> int:
    """How many runs may be submitted where `free` jobs may be: two each, and a report."""
    return max(0, (free - 1 - rescored) // 2)


def _cut(stage: Stage, most: int) -> List[Stage]:
    """Portions of even size, each with its share of `parallel`; they wait for each other only."""
    jobs = len(stage.jobs)
    count = -(-jobs // max(1, most))
    if count <= 1:
        return [dataclasses.replace(stage, after=())]
    ends = [jobs * number // count for number in range(count + 1)]
    lanes = min(count, stage.parallel or count)
    parts = []
    for number, (first, last) in enumerate(zip(ends, ends[1:])):
        lane = number % lanes
        share = stage.parallel // lanes + (lane < stage.parallel % lanes)
        parts.append(dataclasses.replace(
            stage, name=f"{stage.name}.{number + 1}", jobs=stage.jobs[first:last],
            runs=stage.runs[first:last], parallel=share if stage.parallel else 0,
            after=(("afterany", f"{stage.name}.{number - lanes + 1}"),) if number >= lanes else ()))
    return parts


def _wait(kind: str, before: Sequence[str], part: Stage, number: int
          ) -> Sequence[Tuple[str, str]]:
    if kind != "aftercorr":
        return [(kind, name) for name in before]
    # Both arrays have the same runs, so they are cut alike.
    return [(kind if len(part.jobs) > 1 else "afterok", before[number])]
