"""Stops what is queued or running for runs, and tells what is from what only ends.

    cancel(find_runs(["runs/art"]), Slurm())
"""

from __future__ import annotations

import contextlib
from typing import List, NamedTuple, Sequence, Tuple

from blip_art.cluster.ownership import accounts_of, other_clusters, own_jobs, queue_of
from blip_art.cluster.record import Submitted
from blip_art.cluster.slurm import QueueRow, Slurm, SlurmError
from blip_art.files import RunDir, write_text
from blip_art.work import cancelled_jobs, cancelled_note, has_ended

# Stages that will have scored all captions when they end.
SCORING = ("score", "rescore", "follow")
Live = Tuple[RunDir, Submitted, QueueRow]


class InQueue(NamedTuple):
    """What squeue shows of runs."""

    living: List[Live]
    """Jobs that wait or run, or may be about to be queued again."""
    ending: List[Live]
    """Jobs that have ended for good, but not yet on all their nodes."""


def jobs_in_queue(runs: Sequence[RunDir], slurm: Slurm) -> InQueue:
    """Jobs of the runs that the queue still has; one squeue."""
    jobs = [(run, job) for run in runs for job in own_jobs(run)]
    rows = queue_of(slurm, [job for _, job in jobs]) if jobs else {}
    found = [(run, job, rows[job]) for run, job in jobs if job in rows and rows[job].alive]
    ending = _ending(found, slurm)
    return InQueue([one for one in found if one not in ending], ending)


def living_jobs(runs: Sequence[RunDir], slurm: Slurm) -> List[Live]:
    """Jobs of the runs that wait or run; one squeue."""
    return jobs_in_queue(runs, slurm).living


def _ending(found: Sequence[Live], slurm: Slurm) -> List[Live]:
    """Of these the ones that will not be queued again.

    Slurm calls both COMPLETING: a job that was cancelled, and one that it is about to queue again
    after preemption.
    """
    unclear = [one for one in found if one[2].state == "COMPLETING"]
    ending = [(run, job, row) for run, job, row in unclear
              if job.job_id in cancelled_jobs(run) or has_ended(run, job.job_id, job.batch_log)]
    unclear = [one for one in unclear if one not in ending]
    if unclear:  # somebody may have called scancel by hand
        with contextlib.suppress(SlurmError):
            accounts = accounts_of(slurm, [job for _, job, _ in unclear])
            ending += [(run, job, row) for run, job, row in unclear
                       if job in accounts and accounts[job].state == "CANCELLED"]
    return ending


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
                  for job, row in mine] or [f"{run.path}: {_why_none(run, slurm)}"]
    return lines


def _why_none(run: RunDir, slurm: Slurm) -> str:
    others = other_clusters(slurm, own_jobs(run))
    if others:
        return f"its jobs are of cluster {', '.join(others)}; cancel them there"
    return "no job of it is queued or running"
