"""Stops what is queued or running for runs, and starts again what has stopped.

    cancel(find_runs(["runs/art"]), Slurm()); resume(find_runs(["runs/art"]), Slurm())
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from blip_art.cluster.record import Submitted, read_jobs
from blip_art.cluster.slurm import QueueRow, Slurm
from blip_art.cluster.status import cancelled_jobs, cancelled_note
from blip_art.errors import EXIT_FAILED, UserError
from blip_art.files import RunDir, read_json, write_text

Live = Tuple[RunDir, Submitted, QueueRow]


def living_jobs(runs: Sequence[RunDir], slurm: Slurm) -> List[Live]:
    """Jobs of the runs that wait or run; one squeue."""
    jobs = [(run, job) for run in runs for job in read_jobs(run)]
    if not jobs:
        return []
    queue = slurm.squeue(job.job_id for _, job in jobs)
    return [(run, job, queue[job.job_id]) for run, job in jobs
            if job.job_id in queue and queue[job.job_id].alive]


def cancel(runs: Sequence[RunDir], slurm: Slurm) -> List[str]:
    """Cancel all their jobs with one scancel; the lines to tell.

    A training saves first: Slurm sends SIGTERM and waits (KillWait, 30 s by default) before it
    kills. It is not queued again, because the batch script does that only for jobs that run.
    """
    live = living_jobs(runs, slurm)
    slurm.cancel(list(dict.fromkeys(job.job_id for _, job, _ in live)))
    lines = []
    for run in runs:
        mine = [(job, row) for owner, job, row in live if owner is run]
        if mine:
            ids = cancelled_jobs(run) | {job.job_id for job, _ in mine}
            write_text(cancelled_note(run), "".join(f"{one}\n" for one in sorted(ids)))
        lines += [f"{run.path}: cancelled {job.stage} job {job.job_id} ({row.state.lower()})"
                  for job, row in mine] or [f"{run.path}: no job of it is queued or running"]
    return lines


def resume(runs: Sequence[RunDir], slurm: Slurm, launch: Sequence[str] = ()) -> int:
    """Submit again what was submitted for each run, unless it is still at work or finished.

    Args:
        launch: how launch.py is called; () is as this process was.
    """
    from blip_art.cluster.submit import resubmit

    launch = launch or (sys.executable, os.path.abspath(sys.argv[0]))
    live = living_jobs(runs, slurm)
    commands: Dict[Tuple[str, Tuple[str, ...]], None] = {}
    for run in runs:
        why_not = _why_not(run, [one for one in live if one[0] is run])
        if why_not:
            print(f"{run.path}: {why_not}")
            continue
        start = os.getcwd()
        command = tuple(resubmit(run))  # leaves us where it was called
        commands[os.getcwd(), command] = None  # runs of one sweep share a command
        os.chdir(start)
    codes = [subprocess.call([*launch, *command], cwd=cwd) for cwd, command in commands]
    return EXIT_FAILED if any(codes) else 0


def _why_not(run: RunDir, live: Sequence[Live]) -> str:
    """Why a run needs no new start, or ''."""
    working = [(job, row) for _, job, row in live if job.stage in ("train", "predict")]
    if working:
        job, row = working[0]
        return f"{job.stage} job {job.job_id} is {row.state.lower()}, nothing to do"
    finished = run.state.exists() and read_json(run.state).get("state") == "finished"
    unscored = {one[:2] for one in run.predicted()} - {one[:2] for one in run.scored()}
    return "finished and scored, nothing to do" if finished and not unscored else ""


def existing(paths: Sequence[str]) -> List[RunDir]:
    """The run folders that were named.

    Raises:
        UserError: one is not there.
    """
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"no run folder at {path}; 'launch.py status' shows those there are")
    return [RunDir(path) for path in paths]
