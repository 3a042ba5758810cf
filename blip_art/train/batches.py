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

    def __init__(self, pairs: int, batch_size: int, rank: int, ranks: int, seed: int) -> None:
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.steps = steps_per_epoch(pairs, batch_size, ranks)
        self.epoch = self.start_step = 0

    def begin(self, epoch: int, start_step: int = 0) -> None:
        """What the next iteration yields."""
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.pairs, generator=generator)
        needed = self.steps * self.batch_size * self.ranks
        order = order.repeat(-(-needed // self.pairs))[:needed]  # repeats only in a tiny set
        batches = order.view(self.steps, self.ranks, self.batch_size)[self.start_step:, self.rank]
        epoch = self.epoch
        for batch in batches.tolist():
            yield [(epoch, index) for index in batch]

    def __len__(self) -> int:
        return self.steps - self.start_step
