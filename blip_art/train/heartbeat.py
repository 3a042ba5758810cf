"""How far a training is: progress.json for who asks, a line now and then where no bar is drawn.

    for step, batch in enumerate(waits.batches(loader)): ...; heartbeat.beat(step + 1, waits)

Nothing here waits for the GPU: what needs its answers is called where the loop has waited anyway.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from blip_art.describe import duration
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json

# How often the file is written, and how often a log gets a line.
BEAT_S, LINE_S = 30.0, 180.0


class Waits:
    """How long the device had nothing to do because the next batch was not there yet.

    A GPU is some steps behind the loop, which may wait for a batch while the GPU is busy. So the
    GPU notes itself when it has done a step and when the next batch has come: as long as it is
    busy, the two notes are taken together.
    """

    def __init__(self, device: torch.device, mark: Callable[[], Any] | None = None) -> None:
        self._mark = mark or (_recorded_event if device.type == "cuda" else time.monotonic)
        self._is_cuda = device.type == "cuda"
        self._gaps: list[tuple[Any, Any]] = []
        self.seconds = 0.0
        """Of this epoch in this process, as far as `settle` has come."""

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of an epoch, each wait noted."""
        self.seconds, self._gaps = 0.0, []
        source = iter(loader)
        while True:
            done = self._mark()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._gaps.append((done, self._mark()))
            yield batch

    def settle(self) -> None:
        """Add up what was noted; only when the GPU has done all that it was given up to here."""
        self.seconds += sum(done.elapsed_time(came) / 1000 if self._is_cuda else came - done
                            for done, came in self._gaps)
        self._gaps = []


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Heartbeat:
    """Says how far the run is, on rank 0; on other ranks it is quiet."""

    def __init__(self, run: RunDir, epochs: int, steps: int, pictures_a_step: int,
                 is_main: bool) -> None:
        self._path, self._is_main = run.progress, is_main
        self._epochs, self._steps, self._pictures = epochs, steps, pictures_a_step
        self._epoch, self._started, self._done = 0, 0.0, 0
        # Time and step after the first step of an epoch, which is slow: it starts the loaders.
        self._first: tuple[float, int] | None = None
        self._step_s = 0.0  # 0: not known yet
        self._captions_s = self._captions_began = 0.0
        self._written = -BEAT_S
        self._said = time.monotonic()

    def begin_epoch(self, epoch: int) -> None:
        """Its steps begin."""
        now = time.monotonic()
        if self._captions_began:
            self._captions_s, self._captions_began = now - self._captions_began, 0.0
        self._epoch, self._started, self._first = epoch, now, None

    def beat(self, step: int, waits: Waits) -> None:
        """`step` steps of the epoch are done; writes if the last time is a while ago."""
        if not self._is_main:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, step
        elif step > self._first[1]:
            self._step_s = (now - self._first[0]) / (step - self._first[1])
        self._done = step
        if now - self._written >= BEAT_S:
            self._write("training", waits.seconds / max(now - self._started, 1e-9))

    def say(self, losses: torch.Tensor, waits: Waits) -> None:
        """A line for the log, if the last one is a while ago; where the GPU was waited for."""
        now = time.monotonic()
        if not self._is_main or not self._step_s or now - self._said < LINE_S:
            return
        self._said = now
        total, number = losses.tolist()
        share = waits.seconds / max(now - self._started, 1e-9)
        print(f"epoch {self._epoch:3d}  step {self._done}/{self._steps}  "
              f"loss {total / max(1, number):.4f}  {self._images_per_s():.1f} pictures/s  "
              f"{100 * share:.0f} % waiting for data  {duration(self._seconds_left())} to go",
              flush=True)

    def begin_captions(self, epoch: int) -> None:
        """The epoch's steps are done, its captions begin."""
        self._epoch, self._done, self._captions_began = epoch, self._steps, time.monotonic()
        if self._is_main:
            self._write("captioning")

    def end(self) -> None:
        """The run is finished: state.json says so."""
        if self._is_main:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _write(self, doing: str, wait_share: float | None = None) -> None:
        self._written = time.monotonic()
        # A run must not end because it could not say how it is; what it must save complains.
        with contextlib.suppress(UserError, OSError):
            write_json(self._path, {
                "doing": doing, "epoch": self._epoch, "epochs": self._epochs, "step": self._done,
                "steps": self._steps, "images_per_s": self._images_per_s() or None,
                "data_wait_share": wait_share, "eta_s": self._seconds_left() or None,
                "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}, durable=False)

    def _images_per_s(self) -> float:
        return self._pictures / self._step_s if self._step_s else 0.0

    def _seconds_left(self) -> float:
        """Of the whole run; 0 while it is not known."""
        later = self._epochs - self._epoch - 1
        steps = self._steps - self._done + later * self._steps
        return self._step_s * steps + self._captions_s * (later + 1) if self._step_s else 0.0


def peak_memory_gb() -> float:
    """Most memory that this rank and its loader processes held, in 10^9 bytes, each counted whole
    as Slurm does: pages that they share count several times."""
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            + sum(_peak_bytes(child.pid) for child in multiprocessing.active_children())) / 1e9


def _peak_bytes(pid: int | None) -> int:
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:  # it has ended
        return 0
    return int(found[1]) * 1024 if found else 0
