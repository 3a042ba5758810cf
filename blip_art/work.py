"""The newest job that computes a run, as far as the run's folder knows it.

    read_work(run).note == "limit of restarts reached …"

The folder knows which jobs were submitted (jobs.json), which 'launch.py cancel' ended, and what
their batch script (slurm/job.sh) left at their end: this needs neither Slurm nor its accounts.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence

from blip_art.describe import describe_exit
from blip_art.errors import UserError
from blip_art.files import RunDir, read_as_shown, read_json


class Work(NamedTuple):
    """The newest job that computes a run, as far as its folder knows; status adds Slurm's word."""

    job_id: str = ""
    """'' if no job was submitted to compute it."""
    stage: str = ""
    earlier: FrozenSet[str] = frozenset()
    """Ids of the jobs before it."""
    submitted_s: float = 0.0
    """When; 0 if that is not known."""
    cancelled: bool = False
    """By 'launch.py cancel'."""
    waits: bool = False
    """Its batch script has had it queued again, and it has not started since."""
    start: Optional[int] = None
    """The number of its newest start, from 0."""
    started_s: float = 0.0
    """When that one began; 0 if that is not known."""
    phase: str = ""
    """pending, running or ended; '' where nobody knows."""
    how: str = ""
    """How it ended, in words; '' if it ended well or nobody knows."""
    ended_well: bool = False
    note: str = ""
    """Why its batch script did not queue it again."""


def read_work(run: RunDir, jobs: Optional[Sequence[Mapping[str, Any]]] = None) -> Work:
    """The newest job that computes the run; one that scores decides only where nothing was
    trained, as in the folder of a report."""
    rows = _job_rows(run) if jobs is None else list(jobs)
    found = [row for row in rows if row["stage"] == "train"]
    if not found and not run.train_log.exists():
        found = [row for row in rows if row["stage"] == "predict"] or (
            [] if run.state.exists() else rows)
    if not found:
        return Work()
    last, job_id = found[-1], str(found[-1]["job_id"])
    ids = frozenset(str(row["job_id"]) for row in found[:-1])
    folders = _note_folders(run, str(last.get("batch_log") or ""))
    code, start, note = _read_end([folder / run.job_ended(job_id).name for folder in folders])
    waits = any((folder / run.job_waits(job_id).name).exists() for folder in folders)
    return Work(job_id, str(last["stage"]), ids - {job_id}, _seconds(last.get("submitted")),
                job_id in cancelled_jobs(run), waits, start,
                phase="" if code is None else "ended", how=describe_exit(code) if code else "",
                ended_well=code == 0, note=note)


def has_ended(run: RunDir, job_id: str, batch_log: str) -> bool:
    """Whether the batch script of a job says that it has ended for good."""
    return any((folder / run.job_ended(job_id).name).exists()
               for folder in _note_folders(run, batch_log))


def _note_folders(run: RunDir, batch_log: str) -> List[Path]:
    """Where a job's batch script leaves its notes: a sweep's is submitted in the sweep's folder."""
    return [run.slurm, *([Path(batch_log).parent.parent] if batch_log else [])]


def cancelled_note(run: RunDir) -> Path:
    """Ids of jobs that were cancelled on purpose: without sacct nobody else remembers."""
    return run.slurm / "cancelled_jobs"


def cancelled_jobs(run: RunDir) -> FrozenSet[str]:
    """What the note says."""
    note = cancelled_note(run)
    if not note.exists():
        return frozenset()
    return frozenset(read_as_shown(note).split())


def is_of_original(run: RunDir, folder: str) -> bool:
    """Whether a job that was submitted for `folder` is not the run's, which is a copy of it. A
    folder that is gone was moved here; then, too, the job must be found to be cancelled."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a name that no file can have
        return bool(folder) and not os.path.samefile(folder, run)
    return False


def _job_rows(run: RunDir) -> List[Mapping[str, Any]]:
    """The run's rows of jobs.json; none where it is not as it was written."""
    with contextlib.suppress(UserError):
        rows = read_json(run.jobs)
        if isinstance(rows, list) and all(
                isinstance(row, dict) and {"stage", "job_id"} <= set(row) for row in rows):
            return [row for row in rows if not is_of_original(run, str(row.get("run") or ""))]
    return []


def _read_end(notes: Sequence[Path]) -> Any:
    """(exit code, number of the start, why it was not queued again) as slurm/job.sh left them."""
    for note in notes:
        with contextlib.suppress(OSError, UserError, ValueError):
            numbers, _, why = read_as_shown(note).partition("\n")
            code, *start = map(int, numbers.split())
            return code, start[0] if start else None, " ".join(why.split())
    return None, None, ""


def _seconds(when: Any) -> float:
    """Of '2026-11-24T02:00:00+0000'; 0 if it is something else."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return datetime.strptime(when, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    return 0.0
