"""Ranks: who am I, what do we agree on, and a note that somebody asked us to stop.

    with process_group() as world: ...   # under torchrun, srun or alone
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from blip_art.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    AnotherRankFailed,
    UserError,
    error_line,
    is_output_read,
)
from blip_art.failure import Failure
from blip_art.memory import keep_freed_memory
from blip_art.peers import NEWS_S, Peers, connect

# "cuda" where a rank without a GPU must end instead of computing on the CPU.
DEVICE = "BLIP_ART_DEVICE"
TIMEOUT = timedelta(minutes=30)
# Ranks wait here while rank 0 looks at every picture, or writes a large checkpoint, on a slow file
# system. One that dies is noticed at once all the same: its connections close.
CONTROL_TIMEOUT = timedelta(hours=6)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int
    size: int
    device: torch.device
    # Small decisions (stop? what did you write?) travel over gloo on the CPU: they never make
    # the GPU wait, and NCCL's watchdog does not count them.
    control: Any = None
    peers: Peers = field(default_factory=lambda: Peers(0, {}))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def most(self, vote: int) -> int:
        """The highest vote of all ranks, on every rank."""
        if self.size == 1:
            return vote
        votes = torch.tensor([vote])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return int(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over the ranks, in float64."""
        if self.size == 1:
            return values
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals, group=self.control)
        return totals.tolist()

    def on_main(self, action: Callable[[], None]) -> None:
        """Run `action` on rank 0 while the others wait; its UserError is raised on every rank."""
        message = ""
        if self.is_main:
            try:
                action()
            except UserError as error:
                message = str(error)
        message = self.gather(message)[0]
        if message:
            raise UserError(message)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.control)


def _environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun or srun tell them; (0, 1, 0) alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1 and "MASTER_ADDR" in env:
        return int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Gloo prints a line a rank on standard output when it connects; no setting keeps it quiet."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


@contextlib.contextmanager
def process_group() -> Iterator[World]:
    """Join the other ranks for the length of the block: NCCL where there are GPUs, else gloo.

    An error in the block is reported to all ranks, and what was first is recorded as
    `world.peers.record` says.

    Raises:
        AnotherRankFailed: in place of an error that came after another rank's.
        UserError: there is no GPU for this rank, or it cannot reach the others.
    """
    rank, size, local_rank = _environment()
    cuda = torch.cuda.is_available()
    if os.environ.get(DEVICE) == "cuda" and torch.cuda.device_count() <= local_rank:
        raise UserError(f"rank {local_rank} has no GPU: PyTorch sees {torch.cuda.device_count()} "
                        f"on {os.uname().nodename}; 'launch.py doctor --job' tells why, and "
                        "'#SBATCH --exclude' or 'sbatch: {exclude: NODE}' in the site profile "
                        "avoids a broken node")
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        # fp32 is fp32: convolutions would have ten bits of each factor, as fp16 has.
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    if size == 1:
        with _failures_reported(World(0, 1, device)) as world:
            yield world
        return
    # MASTER_ADDR and MASTER_PORT are torchrun's, or the launcher's under srun.
    with _without_greetings():
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size,
                                timeout=TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    peers = connect(rank, size, World(rank, size, device, control).gather)
    with _failures_reported(World(rank, size, device, control, peers)) as world:
        yield world
        world.barrier()
        peers.leave()
    # Not after an error: it would wait for collectives that other ranks are in.
    dist.destroy_process_group()


@contextlib.contextmanager
def _failures_reported(world: World) -> Iterator[World]:
    try:
        with _broken_pipe_explained():
            yield world
    except BaseException as error:
        failure = _failure(world.rank, error)
        # A mistake that all ranks meet is rank 0's to report.
        is_cause = isinstance(error, UserError) and world.rank == 0
        with Stop():  # torchrun ends the ranks that are left, and this one may be writing
            first = world.peers.report(failure, 0.0 if is_cause else NEWS_S)
        if first != failure:
            raise AnotherRankFailed(first.code) from error
        if isinstance(error, UserError):
            error.is_first = True
        raise


@contextlib.contextmanager
def _broken_pipe_explained() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        if is_output_read():  # it was another pipe
            raise
        raise UserError("nobody reads the output any more (broken pipe), so this has ended; write "
                        "it to a file instead, and run the same command again to go on") from error


def _failure(rank: int, error: BaseException) -> Failure:
    if isinstance(error, KeyboardInterrupt):
        return Failure(rank, EXIT_INTERRUPTED, "by Ctrl-C; --resume goes on")
    why = f"{f'rank {rank}: ' if rank else ''}{error_line(error)}"
    return Failure(rank, EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED, why)


class Interrupted(Exception):
    """A signal asked to stop in the middle; what is on disk is whole."""


class Stop:
    """Remembers that a signal asked the run to stop; the loop reads it once a step.

    The signal reaches every process of a job step, and a forked one has the handler too: the note
    is only taken by the process that installed it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None
