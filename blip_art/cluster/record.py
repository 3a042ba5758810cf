"""Which jobs were submitted for a run: runs/NAME/slurm/jobs.json, oldest first.

    record_jobs(run, [Submitted(stage="train", job_id="123", ...)]); read_jobs(run)
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, List, Sequence, Tuple

from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, write_json


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
    gpus: int = 0
    """GPUs on each node."""
    nodes: int = 1
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


def read_jobs(run: RunDir) -> List[Submitted]:
    """The jobs of a run; none if it was never submitted."""
    if not run.jobs.exists():
        return []
    known = {one.name for one in fields(Submitted)}
    rows = read_json(run.jobs)
    try:
        return [_submitted({key: value for key, value in row.items() if key in known})
                for row in rows]
    except (TypeError, AttributeError) as error:
        raise UserError(f"{run.jobs} is no list of jobs; delete it (its jobs stay in the queue: "
                        "'squeue --me')") from error


def _submitted(row: Dict[str, Any]) -> Submitted:
    values: Dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                              for key, value in row.items()}
    return Submitted(**values)


def record_jobs(run: RunDir, jobs: Sequence[Submitted]) -> None:
    """Append to the list."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    rows = [asdict(job) for job in read_jobs(run)]
    rows += [{**asdict(job), "submitted": job.submitted or now} for job in jobs]
    write_json(run.jobs, rows, indent=1, durable=False)
