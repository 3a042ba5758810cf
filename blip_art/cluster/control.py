"""Stops what is queued or running for runs, and starts again what has stopped.

    cancel(find_runs(["runs/art"]), Slurm()); resume(find_runs(["runs/art"]), Slurm())
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple, Union

from blip_art.cluster.record import Submitted, read_jobs
from blip_art.cluster.slurm import QueueRow, Slurm
from blip_art.errors import EXIT_FAILED, UserError
from blip_art.files import RunDir, write_text
from blip_art.run_state import is_finished, unscored
from blip_art.work import cancelled_jobs, cancelled_note

NOT_SUBMITTED = ("was not submitted to Slurm; the same 'launch.py train CONFIG' as before goes on "
                 "here, and with --cluster slurm there")
ONLY_REPORT = "is no run, but has a report of some; 'launch.py collect' makes it again"
# Stages that will have scored all captions when they end.
SCORING = ("score", "rescore", "follow")
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


class Again(NamedTuple):
    """What is submitted again: launch.py's arguments, where it was called, with which profile."""

    cwd: str
    command: Tuple[str, ...]
    site: str = ""


def resume(runs: Sequence[RunDir], slurm: Slurm, launch: Sequence[str] = ()) -> int:
    """Submit again what was submitted for each run, unless it is still at work or finished.

    Args:
        launch: how launch.py is called; () is as this process was.

    Raises:
        UserError: none of the runs was submitted.
    """
    launch = launch or (sys.executable, os.path.abspath(sys.argv[0]))
    live = living_jobs(runs, slurm)
    again: Dict[Again, List[str]] = {}  # runs of one sweep share a command
    found = [(run, what_again(run, [one for one in live if one[0] is run])) for run in runs]
    if found and all(what == NOT_SUBMITTED for _, what in found):
        raise UserError(f"{runs[0].path} {NOT_SUBMITTED}")
    for run, what in found:
        if isinstance(what, str):
            print(f"{run.path}: {what}")
        else:
            again.setdefault(what, []).append(str(run.path.resolve()))
    codes = []
    for what, paths in again.items():
        words = [*launch, *what.command]
        if what.site and not any(word.startswith("--site") for word in what.command):
            words += ["--site", what.site]
        if what.command[0] == "sweep":  # of which other runs may have been ended on purpose
            words += ["--only", *paths]
        codes.append(subprocess.call(words, cwd=what.cwd))
    return EXIT_FAILED if any(codes) else 0


def what_again(run: RunDir, live: Sequence[Live]) -> Union[Again, str]:
    """What a run needs submitted again, or why nothing."""
    for _, job, row in live:
        if job.stage in ("train", "predict"):
            return f"{job.stage} job {job.job_id} is {row.state.lower()}, nothing to do"
    jobs = [job for job in read_jobs(run) if job.command]
    if not jobs:
        return NOT_SUBMITTED
    if all(job.stage == "collect" for job in jobs) and not run.state.exists():
        return ONLY_REPORT
    on_gpus = [job for job in jobs if job.stage in ("train", "predict")] or jobs
    last = on_gpus[-1]
    if last.stage == "predict" and last.job_id in cancelled_jobs(run):
        return Again(last.cwd, last.command, last.site)
    if not is_finished(run):
        first = [job for job in on_gpus if job.stage == "train"] or on_gpus
        return Again(first[-1].cwd, first[-1].command, first[-1].site)
    if not unscored(run):
        return "finished and scored, nothing to do"
    for _, job, row in live:
        if job.stage in SCORING:
            return f"{job.stage} job {job.job_id} is {row.state.lower()}, nothing to do"
    return Again(last.cwd, ("score", "--run", str(run.path.resolve()), "--cluster", "slurm"),
                 last.site)


def existing(paths: Sequence[str]) -> List[RunDir]:
    """The run folders that were named.

    Raises:
        UserError: one is not there.
    """
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"no run folder at {path}; 'launch.py status' shows those there are")
    return [RunDir(path) for path in paths]
