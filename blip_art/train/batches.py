"""Which pairs each rank sees at each step: a pure function of (seed, epoch, step, rank).

    for batch in DataLoader(dataset, batch_sampler=EpochBatches(...), ...)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def steps_per_epoch(pairs: int, batch_size: int, ranks: int) -> int:
    """Whole batches only, as the original's drop_last; a set below one batch still makes one."""
    return max(1, pairs // (batch_size * ranks))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one rank, from `start_step` on.

    The epoch travels with the index because loader workers that live on would not hear of a new
    epoch otherwise; augmentation is drawn from both.
    """

    def __init__(self, pairs: int, batch_size: int, rank: int, ranks: int, seed: int,
                 epoch: int, start_step: int) -> None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(pairs, generator=generator)
        self.steps = steps_per_epoch(pairs, batch_size, ranks)
        needed = self.steps * batch_size * ranks
        order = order.repeat(-(-needed // pairs))[:needed]  # repeats only in a tiny set
        self.batches = order.view(self.steps, ranks, batch_size)[start_step:, rank]
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches.tolist():
            yield [(self.epoch, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)
