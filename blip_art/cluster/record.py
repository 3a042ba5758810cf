"""Which jobs were submitted for a run: runs/NAME/slurm/jobs.json, oldest first.

    record_jobs(run, [Submitted(stage="train", job_id="123", ...)]); read_jobs(run)
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import List, Sequence, Tuple

from blip_art.errors import UserError
from blip_art.files import RunDir, read_json_list, write_json
from blip_art.schema import build, limited


@dataclass(frozen=True)
class Submitted:
    """One job of a run."""

    stage: str
    """train, follow, score, predict or collect."""
    job_id: str
    """Slurm's: 123, or 123_4 for an element of an array."""
    log: str = ""
    """The log of its starts: {job} and {restart} stand for their numbers."""
    batch_log: str = ""
    """What the batch script said: a container that did not start is explained there."""
    gpus: int = limited(0, min=0, max=10**6)
    """GPUs on each node."""
    nodes: int = limited(1, min=1, max=10**6)
    after: Tuple[str, ...] = ()
    """Ids of the jobs it waits for."""
    site: str = ""
    """The profile it was submitted with."""
    command: Tuple[str, ...] = ()
    """launch.py's arguments, to submit the same again."""
    cwd: str = ""
    """Where launch.py was called."""
    submitted: str = ""
    """When, ISO 8601 with the zone."""
    run: str = ""
    """The run folder then: a copy of it has this list, too, but not the job."""
    cluster: str = ""
    """Where: clusters number their jobs alike."""
    user: str = ""
    """Who submitted it: numbers come round again."""
    job_name: str = ""
    """What squeue calls it; '' if the profile names jobs."""


def read_jobs(run: RunDir) -> List[Submitted]:
    """The jobs of a run; none if it was never submitted.

    Raises:
        UserError: the list is damaged.
    """
    if not run.jobs.exists():
        return []
    known = {one.name for one in fields(Submitted)}
    rows = read_json_list(run.jobs)
    try:
        if not all(isinstance(row, dict) and {"stage", "job_id"} <= set(row) for row in rows):
            raise UserError(f"{run.jobs} is no list of jobs")
        return [build(Submitted, {key: row[key] for key in known & set(row)},
                      f"{run.jobs}, job {number}") for number, row in enumerate(rows, 1)]
    except UserError as error:
        raise UserError(f"{error}; delete the file (its jobs stay in the queue: "
                        "'squeue --me')") from error


def record_jobs(run: RunDir, jobs: Sequence[Submitted]) -> None:
    """Append to the list."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    rows = [asdict(job) for job in read_jobs(run)]
    rows += [{**asdict(job), "submitted": job.submitted or now} for job in jobs]
    write_json(run.jobs, rows, indent=1, durable=False)
