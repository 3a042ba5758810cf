"""Whose a job is: numbers come round again, clusters count alike, and run folders are copied.

    jobs = own_jobs(run); queue = queue_of(slurm, jobs)

What an older version did not record is not compared.
"""

from __future__ import annotations

import os
import pwd
from typing import Dict, Iterable, List, Sequence, Union

from blip_art.cluster.record import Submitted, read_jobs
from blip_art.cluster.slurm import AccountRow, QueueRow, Slurm
from blip_art.files import RunDir
from blip_art.work import is_of_original


def user_name() -> str:
    """As squeue shows it, which goes by the number and not by $USER."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def own_jobs(run: RunDir) -> List[Submitted]:
    """Jobs that were submitted for this folder, and not for the one that it is a copy of.

    Raises:
        UserError: the list of jobs is damaged.
    """
    return [job for job in read_jobs(run) if not is_of_original(run, job.run)]


def jobs_here(slurm: Slurm, jobs: Iterable[Submitted]) -> List[Submitted]:
    """Those that this cluster's Slurm can know; asks for its name only where it matters."""
    jobs = list(jobs)
    name = slurm.cluster_name() if any(job.cluster for job in jobs) else ""
    return [job for job in jobs if not is_elsewhere(job, name)]


def other_clusters(slurm: Slurm, jobs: Iterable[Submitted]) -> List[str]:
    """Names of the clusters that have those of the jobs which this one has not."""
    jobs = list(jobs)
    here = set(jobs_here(slurm, jobs))
    return sorted({job.cluster for job in jobs if job not in here})


def is_elsewhere(job: Submitted, cluster: str) -> bool:
    """Whether another cluster than the one of this name has the job."""
    return bool(job.cluster and cluster) and job.cluster != cluster


def is_ours(job: Submitted, row: Union[QueueRow, AccountRow]) -> bool:
    """Whether what Slurm shows under the number of a job is the job."""
    name = row.name if isinstance(row, QueueRow) else ""
    return (_agree(job.user, row.user)) and _agree(job.job_name, name)


def _agree(noted: str, shown: str) -> bool:
    return not (noted and shown) or noted == shown


def queue_of(slurm: Slurm, jobs: Sequence[Submitted]) -> Dict[Submitted, QueueRow]:
    """What squeue shows of these jobs; one call."""
    here = jobs_here(slurm, jobs)
    rows = slurm.squeue(job.job_id for job in here)
    return {job: rows[job.job_id] for job in here
            if job.job_id in rows and is_ours(job, rows[job.job_id])}


def accounts_of(slurm: Slurm, jobs: Sequence[Submitted]) -> Dict[Submitted, AccountRow]:
    """What sacct knows of these jobs; one call.

    Raises:
        NoAccounting: it does not answer.
    """
    here = jobs_here(slurm, jobs)
    since = min((job.submitted[:10] for job in here if job.submitted), default="")
    rows = slurm.sacct((job.job_id for job in here), since)
    return {job: rows[job.job_id] for job in here
            if job.job_id in rows and is_ours(job, rows[job.job_id])}
