"""How the batches of a training are shared among its processes, also by another number of them.

    plan = plan_ranks(begun=4, accumulate=1, ranks=2); plan.accumulate == 2

An optimizer step takes begun × accumulate batches of `train.batch_size`. They are the same batches,
with the same dropout and the same weight in the gradient, whichever ranks compute them: another
number of ranks changes the order of sums, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

from blip_art.config import Config
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.manifest import read_manifest

_MOST_RANKS = 4096


@dataclass(frozen=True)
class RankPlan:
    """Who computes which batch.

    The run's steps, which checkpoints, schedules and logs count, are one batch of each rank that
    it was begun with. A rank's own steps are one batch of each rank that there is now.
    """

    begun: int
    """Ranks the run was begun with."""
    ranks: int
    """Ranks that there are now."""
    accumulate: int
    """Own steps whose gradients are added before the optimizer moves."""

    def own_steps(self, steps: int) -> int:
        """How many own steps make that many of the run; an epoch's last may lack batches."""
        return -(-steps * self.begun // self.ranks)

    def run_steps(self, own_steps: int, steps_per_epoch: int) -> int:
        """How many of the run's steps are done after that many own ones of an epoch."""
        return min(own_steps * self.ranks // self.begun, steps_per_epoch)


def plan_ranks(run: RunDir, config: Config, ranks: int) -> RankPlan:
    """The plan of a run that is begun, or goes on, with `ranks` processes.

    Raises:
        UserError: they cannot share the batches evenly; names the numbers that can.
    """
    train = config.train
    begun = begun_with(run) or ranks
    if ranks == begun:
        return RankPlan(begun, ranks, train.accumulate)
    parts, possible = begun * train.accumulate, possible_ranks(begun, config)
    if ranks not in possible:
        why = ("train.compile=cudagraphs cannot accumulate what others computed"
               if train.compile == "cudagraphs" else
               f"the optimizer takes {parts} batches of {train.batch_size} a step, which {ranks} "
               "cannot share evenly")
        raise UserError(f"{run.path} was begun with {begun} processes (GPUs), not {ranks}: {why}; "
                        f"go on with {_one_of(possible)} in all, or choose another --run")
    return RankPlan(begun, ranks, parts // ranks)


def possible_ranks(begun: int, config: Config) -> List[int]:
    """The numbers of processes that can go on with a run."""
    if config.train.compile == "cudagraphs":
        return [begun]
    parts = begun * config.train.accumulate
    return [one for one in range(1, min(parts, _MOST_RANKS) + 1) if parts % one == 0]


def fitting_processes(run: RunDir, config: Config, most: int, nodes: int = 1) -> int:
    """Processes on each node where nobody said how many: the most that can go on with the run, or
    `most` if none can, which `plan_ranks` then explains."""
    begun = begun_with(run)
    if not begun:
        return most
    possible = set(possible_ranks(begun, config))
    return next((one for one in range(most, 0, -1) if one * nodes in possible), most)


def describe_plan(plan: RankPlan, accumulate: int) -> str:
    """One line about another number of ranks; '' where it is the same.

    Args:
        accumulate: what the configuration says.
    """
    if plan.ranks == plan.begun:
        return ""
    return (f"goes on with {plan.ranks} processes, {plan.begun} began it: train.accumulate is "
            f"{plan.accumulate} instead of {accumulate}, so each optimizer step sees the same "
            "pictures")


def begun_with(run: RunDir) -> int:
    """How many processes computed the run's first checkpoint; 0 where there is none, so that any
    number can begin it."""
    return max(0, read_manifest(run).get("ranks", 0)) if run.saved_checkpoints() else 0


def _one_of(numbers: List[int]) -> str:
    *others, last = [str(number) for number in numbers]
    return f"{', '.join(others)} or {last}" if others else last
