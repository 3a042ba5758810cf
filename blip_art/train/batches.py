"""Which pairs each rank sees at each step: a pure function of (seed, epoch, step, rank).

    batches = EpochBatches(...); loader = DataLoader(dataset, batch_sampler=batches, …)
    batches.begin(epoch, step); for batch in loader: …
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def steps_per_epoch(pairs: int, batch_size: int, ranks: int) -> int:
    """Whole batches only, as the original's drop_last; a set below one batch still makes one."""
    return max(1, pairs // (batch_size * ranks))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one rank, of the epoch and from the step that `begin` says.

    The epoch travels with the index because loader workers live on and would not hear of a new one
    otherwise; augmentation is drawn from both.
    """

    def __init__(self, pairs: int, batch_size: int, rank: int, ranks: int, seed: int,
                 begun: int = 0) -> None:
        """
        Args:
            begun: ranks the run was begun with, which decides what an epoch is; 0 is `ranks`.
        """
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed
        self.rank, self.ranks = rank, ranks
        begun = begun or ranks
        # One part is what one rank computes in one step.
        self.parts = steps_per_epoch(pairs, batch_size, begun) * begun
        self.steps = -(-self.parts // ranks)
        self.epoch = self.start_step = 0

    def begin(self, epoch: int, start_step: int = 0) -> None:
        """What the next iteration yields."""
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.pairs, generator=generator)
        needed = self.parts * self.batch_size
        order = order.repeat(-(-needed // self.pairs))[:needed]  # repeats only in a tiny set
        parts = order.view(self.parts, self.batch_size)
        epoch = self.epoch
        for step in range(self.start_step, self.steps):
            yield [(epoch, index) for index in parts[self.part(step)].tolist()]

    def part(self, step: int) -> int:
        """The part of the epoch that this rank computes at `step`: its last one, where there are
        not enough for all ranks (see `has_part`)."""
        return min(step * self.ranks + self.rank, self.parts - 1)

    def has_part(self, step: int) -> bool:
        """Whether there is a part for this rank at `step`; else its batch must not count."""
        return step * self.ranks + self.rank < self.parts

    def group(self, step: int, accumulate: int) -> tuple[int, int]:
        """The steps, from the first up to the second, whose gradients are added up with `step`'s;
        an epoch's last group may have fewer."""
        start = step // accumulate * accumulate
        return start, min(start + accumulate, self.steps)

    def parts_between(self, start: int, end: int) -> int:
        """How many parts the steps from `start` up to `end` have, of all ranks."""
        return min(end * self.ranks, self.parts) - start * self.ranks

    def __len__(self) -> int:
        return self.steps - self.start_step
