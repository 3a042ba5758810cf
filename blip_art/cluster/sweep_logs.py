"""The logs of many runs: of all at work, line by line as they come, or of the one to look at.

    follow_all(find_runs(["runs/six"]), "", Slurm(), sys.stdout.buffer.write)
"""

from __future__ import annotations

import os
import sys
import time
from typing import Callable, Dict, List, Sequence, Tuple

from blip_art.cluster.logs import ASK_S, LOOK_S, Follower, Log, Write, newest, stages_with_logs
from blip_art.cluster.ownership import own_jobs, queue_of
from blip_art.cluster.record import Submitted
from blip_art.cluster.slurm import QueueRow, Slurm, SlurmError
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.run_state import is_alive, read_state

# Whose log is shown first, if only one is.
_FIRST = ("running", "failed")
_WAITS, _RUNS = "waits", "runs"
# So many logs are looked at as often as a single one.
_QUICKLY = 8


def choose_run(runs: Sequence[RunDir], stage: str = "") -> Tuple[RunDir, Log]:
    """The run to look at, and its newest log: one that runs, or has failed, or wrote last.

    Raises:
        UserError: none has a log.
    """
    logs = [(run, log) for run in runs for log in [newest(run, _stage_of(run, stage))] if log]
    if not logs:
        raise UserError(f"none of {len(runs)} runs has a log{f' of {stage!r}' * bool(stage)} yet; "
                        "'launch.py status' says why, 'logs -f' waits for it")
    states = {run: read_state(run).name for run, _ in logs}
    return max(logs, key=lambda one: (
        -_FIRST.index(states[one[0]]) if states[one[0]] in _FIRST else -len(_FIRST),
        one[1].path.stat().st_mtime))


def follow_all(runs: Sequence[RunDir], stage: str, slurm: Slurm, write: Write,
               sleep: Callable[[float], None] = time.sleep) -> None:
    """Copy the logs of all runs at work as they grow, each line behind its run's name.

    It ends when none of them is queued or running.

    Raises:
        UserError: none is from the start, or Slurm does not tell.
    """
    names = _short_names(runs)
    writers: Dict[RunDir, LineWriter] = {}
    followers: Dict[RunDir, Follower] = {}
    at_work: Dict[RunDir, str] = {}
    said, seen, next_ask = "", False, 0.0
    while True:
        if time.monotonic() >= next_ask:
            before = at_work
            at_work, word = _ask(runs, stage, slurm, before)
            next_ask = time.monotonic() + ASK_S
            for run in runs:
                # Also a run that was short: it waited, and is over.
                if run not in followers and (at_work[run] == _RUNS or before.get(run) == _WAITS
                                             and not at_work[run]):
                    writers[run] = LineWriter(write, names[run])
                    followers[run] = Follower(run, _stage_of(run, stage), writers[run])
            if word != said:
                print(f"-- {word}", file=sys.stderr, flush=True)
            said, seen = word, seen or any(at_work.values())
        moved = [follower.poll(bool(at_work[run])) for run, follower in followers.items()]
        if not any(at_work.values()) and not any(moved):
            break
        sleep(LOOK_S * max(1.0, len(followers) / _QUICKLY))  # the file system is everybody's
    for writer in writers.values():
        writer.end()
    if not seen:
        raise UserError(f"none of {len(runs)} runs is queued or running; 'launch.py logs RUN' "
                        "shows the log of one that has ended")


class LineWriter:
    """Writes whole lines, each behind a name; of a line that was drawn over, its last state."""

    def __init__(self, write: Write, name: str) -> None:
        self.write, self.name, self.rest = write, name.encode(errors="surrogateescape"), b""

    def __call__(self, block: bytes) -> None:
        *lines, self.rest = (self.rest + block).split(b"\n")
        for line in lines:
            shown = line.rstrip(b"\r").rpartition(b"\r")[2]
            self.write(self.name + b" | " + shown + b"\n")

    def end(self) -> None:
        """Write what has no line end."""
        if self.rest:
            self(b"\n")


def _ask(runs: Sequence[RunDir], stage: str, slurm: Slurm,
         before: Dict[RunDir, str]) -> Tuple[Dict[RunDir, str], str]:
    """Which runs wait or run, by one squeue for all ('' has ended), and a line about them."""
    jobs: Dict[RunDir, List[Submitted]] = {
        run: [job for job in own_jobs(run) if job.stage == _stage_of(run, stage)] for run in runs}
    submitted = [job for of_run in jobs.values() for job in of_run]
    try:
        rows = queue_of(slurm, submitted) if submitted else {}
    except SlurmError as error:
        if not before:
            raise
        return before, f"not known which jobs still run: {error}"
    live = {run: [rows[job] for job in jobs[run] if job in rows and rows[job].alive]
            for run in runs}
    at_work = {run: _doing(run, live[run], bool(jobs[run])) for run in runs}
    doing = list(at_work.values())
    return at_work, (f"{doing.count(_RUNS)} of {len(runs)} runs at work"
                     + f", {doing.count(_WAITS)} wait" * (_WAITS in doing))


def _doing(run: RunDir, live: Sequence[QueueRow], was_submitted: bool) -> str:
    if live:
        return _WAITS if all(row.state == "PENDING" for row in live) else _RUNS
    here = not was_submitted and read_state(run).name == "running" and is_alive(run) is not False
    return _RUNS if here else ""


def _stage_of(run: RunDir, stage: str) -> str:
    return stage or (stages_with_logs(run) or ["train"])[0]


def _short_names(runs: Sequence[RunDir]) -> Dict[RunDir, str]:
    """What tells the runs apart, padded to one width."""
    top = os.path.commonpath([os.path.abspath(run.path) for run in runs])
    names = {run: os.path.relpath(run.path, top) for run in runs}
    width = max(map(len, names.values()))
    return {run: name.ljust(width) for run, name in names.items()}
