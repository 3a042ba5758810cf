"""The newest log of a run, over its restarts; followed until its job has ended.

    log = newest(run, "train"); follow(run, "train", Slurm(), sys.stdout.buffer.write)
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Tuple

from blip_art.cluster import reasons
from blip_art.cluster.ownership import jobs_here, own_jobs, queue_of
from blip_art.cluster.record import Submitted, read_jobs
from blip_art.cluster.slurm import QueueRow, Slurm, SlurmAbsent, SlurmError
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.run_state import is_alive, read_state

LOOK_S = 0.5
# squeue is everybody's: a log may be read twice a second, the controller may not be asked so often.
ASK_S = 10.0
Write = Callable[[bytes], object]


class Log(NamedTuple):
    """One start of one job; `job_id` is '' for a start on this machine."""

    path: Path
    stage: str
    job_id: str
    restart: int
    batch: bool = False
    """What the batch script said: all there is of a job whose command never started."""


def newest(run: RunDir, stage: str) -> Optional[Log]:
    """The log of the stage's newest start; None before the first."""
    found = [_newest_here(run, stage), _newest_submitted(run, stage)]
    logs = [log for log in found if log]
    # A run may go on elsewhere: numbers of Slurm's and of this machine do not compare.
    return max(logs, key=lambda log: log.path.stat().st_mtime, default=None)


def stages_with_logs(run: RunDir) -> List[str]:
    """Stages that have a log or a job, training first."""
    names = (re.fullmatch(r"([a-z]+)_\d+(_\d+)*\.log", path.name)
             for path in run.slurm.glob("*.log"))
    found = {match[1] for match in names if match} | {job.stage for job in read_jobs(run)}
    order = ["train", "predict", "follow", "score", "collect"]
    return sorted(found, key=lambda name: (order.index(name) if name in order else 9, name))


def choose_stage(run: RunDir, stage: str = "") -> str:
    """The stage whose log is meant: training's, unless there is none.

    Raises:
        UserError: the run has no log, or none of that stage.
    """
    if not run.path.is_dir():
        raise UserError(f"no run folder at {run.path}; 'launch.py status' shows those there are")
    stages = stages_with_logs(run)
    if not stages:
        raise UserError(f"{run.path} has no log yet: nothing was started for it")
    if stage and stage not in stages:
        raise UserError(f"{run.path} has no log of '{stage}'; there are: {', '.join(stages)}")
    return stage or stages[0]


def follow(run: RunDir, stage: str, slurm: Slurm, write: Write,
           sleep: Callable[[float], None] = time.sleep) -> None:
    """Copy the newest log and what is added to it, over restarts, until the job has ended."""
    follower = Follower(run, stage, write)
    said, next_ask = "", 0.0
    alive, word = True, ""
    while True:
        if time.monotonic() >= next_ask:
            alive, word = _still_going(run, stage, slurm)
            next_ask = time.monotonic() + ASK_S
        moved = follower.poll(alive)
        if word != said and word:
            print(f"-- {word}", file=sys.stderr)
        said = word
        if not alive and not moved:
            return
        sleep(LOOK_S)


class Follower:
    """Copies the newest log of a stage and what is added to it, over restarts."""

    def __init__(self, run: RunDir, stage: str, write: Write) -> None:
        self.run, self.stage, self.write = run, stage, write
        self.shown: Optional[Log] = None
        self.offset = 0

    def poll(self, alive: bool) -> bool:
        """Copy what is new; whether there was something.

        Args:
            alive: whether a job may still write.
        """
        log = newest(self.run, self.stage)
        if log and log.path != (self.shown.path if self.shown else None) and not (
                alive and _is_of_the_past(self.run, self.stage, log)):
            if self.shown:
                _copy(self.shown, self.offset, self.write)
            self.shown, self.offset = log, 0
            _title(log)
        before = self.offset
        self.offset = _copy(self.shown, before, self.write) if self.shown else 0
        return self.offset != before


def _is_of_the_past(run: RunDir, stage: str, log: Log) -> bool:
    """Whether a later job will write another log, or this one will write a better one."""
    jobs = [job for job in read_jobs(run) if job.stage == stage]
    return bool(jobs) and (log.job_id != jobs[-1].job_id or log.batch)


def _still_going(run: RunDir, stage: str, slurm: Slurm) -> Tuple[bool, str]:
    """Whether more may be written, and what is to be told about it."""
    try:
        jobs = jobs_here(slurm, [job for job in own_jobs(run) if job.stage == stage])
        if not jobs:
            return _is_going_here(run), ""
        rows = queue_of(slurm, jobs)
    except SlurmAbsent:  # a workstation: it sees the folder
        return _is_going_here(run), ""
    except SlurmError as error:
        return True, f"not known whether the job still runs: {error}"
    live = [row for row in rows.values() if row.alive]
    if not live:
        return False, f"job {jobs[-1].job_id} has ended"
    return True, _waiting(live[-1])


def _is_going_here(run: RunDir) -> bool:
    return read_state(run).name in ("running", "") and is_alive(run) is not False


def _waiting(row: QueueRow) -> str:
    return f"job {row.job_id} waits: {reasons.waiting(row.reason)}" * (row.state == "PENDING")


def _title(log: Log) -> None:
    print(f"==> {log.path}", file=sys.stderr, flush=True)


def show(log: Log, write: Write) -> None:
    """The whole log."""
    _title(log)
    _copy(log, 0, write)


def _copy(log: Log, offset: int, write: Write) -> int:
    """Write what the log has behind `offset`; returns its new end."""
    with open(log.path, "rb") as file:
        file.seek(offset)
        while True:
            block = file.read(1 << 16)
            if not block:
                return offset
            write(block)
            offset += len(block)


def _newest_here(run: RunDir, stage: str) -> Optional[Log]:
    """train_007.log: the eighth start on this machine."""
    names = ((re.fullmatch(re.escape(stage) + r"_(\d{3,})\.log", path.name), path)
             for path in run.slurm.glob(f"{stage}_*.log"))
    logs = [Log(path, stage, "", int(match[1])) for match, path in names if match]
    return max(logs, key=lambda log: log.restart, default=None)


def _newest_submitted(run: RunDir, stage: str) -> Optional[Log]:
    """The last start of the last job that wrote something."""
    for job in reversed(read_jobs(run)):
        log = _log_of(run, job) if job.stage == stage else None
        if log:
            return log
    return None


def _log_of(run: RunDir, job: Submitted) -> Optional[Log]:
    """A job's newest log; what its batch script said, where the command never started."""
    pattern = re.escape(Path(job.log).name).replace(re.escape("{restart}"), r"(\d+)")
    # By name in the run's own folder, for the run may have been moved or copied since; else where
    # the job wrote it: a sweep's report has a folder of its own.
    for folder in (run.slurm, Path(job.log).parent):
        names = ((re.fullmatch(pattern, path.name), path) for path in folder.glob("*.log"))
        logs = [Log(path, job.stage, job.job_id, int(match[1]) if match.groups() else 0)
                for match, path in names if match]
        if logs:
            return max(logs, key=lambda log: log.restart)
    batch = Path(job.batch_log) if job.batch_log else None
    return Log(batch, job.stage, job.job_id, 0, True) if batch and batch.is_file() else None
