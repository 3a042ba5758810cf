"""A run's row, from what its folder says and what Slurm has answered; nobody is asked here.

    judge(folder, answers).state == "pending"

What a run's files mean is decided in blip_art/run_state.py, which the report asks, too; this adds
what only Slurm knows: whether its jobs wait or run, and how they ended.
"""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Dict, FrozenSet, NamedTuple, Optional, Sequence, Tuple

from blip_art.cluster import reasons
from blip_art.cluster.ownership import is_elsewhere
from blip_art.cluster.record import Submitted
from blip_art.cluster.rows import Row
from blip_art.cluster.slurm import AccountRow, QueueRow
from blip_art.describe import duration
from blip_art.files import RunDir
from blip_art.run_state import Facts, Verdict, decide
from blip_art.work import Work

# What a run is doing, by the first of these that one of its jobs is for.
_DOING = {"train": "running", "predict": "predicting", "follow": "scoring", "score": "scoring",
          "rescore": "scoring", "collect": "collecting"}
_COMPUTES = ("train", "predict")


class Answers(NamedTuple):
    """What Slurm said of all jobs; `accounts` is None when nobody keeps accounts."""

    queue: Dict[str, QueueRow]
    accounts: Optional[Dict[str, AccountRow]]
    notes: Tuple[str, ...]
    asked: bool
    """Whether the queue was seen: a job that is not in it has then ended."""
    cluster: str = ""
    """The name of the cluster that was asked; '' where that did not matter."""


@dataclass(frozen=True)
class Folder:
    """What one run folder says, before anybody is asked."""

    run: RunDir
    jobs: Tuple[Submitted, ...]
    facts: Facts
    cancelled: FrozenSet[str]
    """Jobs that 'launch.py cancel' ended."""
    unscored: int
    """Of a run that has finished: captions without whole scores."""
    row: Row
    """The numbers; state and why are still to be decided."""


Live = Sequence[Tuple[Submitted, QueueRow]]


def judge(folder: Folder, answers: Answers) -> Row:
    """The row of a run: a job that computes decides, else its folder, with what scores it."""
    here = tuple(job for job in folder.jobs if not is_elsewhere(job, answers.cluster))
    facts = folder.facts
    if any(job.job_id == facts.work.job_id for job in here):
        facts = facts._replace(work=add_answers(facts.work, answers))
    folder = replace(folder, jobs=here)
    rows = ((job, answers.queue.get(job.job_id)) for job in folder.jobs)
    # One that was cancelled has ended, though its node may be cleaned up for a while.
    live = [(job, row) for job, row in rows if row and row.alive and not (
        row.state == "COMPLETING" and job.job_id in folder.cancelled)]
    is_report = bool(folder.jobs) and not facts.state.name and all(
        job.stage == "collect" for job in folder.jobs)
    state, why = (_decide_report(folder, facts, live) if is_report
                  else _decide_run(folder, facts, live, answers.asked))
    hours, exact = _gpu_hours(folder, answers)
    return Row(**{**asdict(folder.row), "state": state, "why": why, "gpu_hours": hours,
                  "gpu_hours_exact": exact, "jobs": tuple(job.job_id for job, _ in live),
                  "is_report": is_report})


def add_answers(work: Work, answers: Answers) -> Work:
    """What Slurm knows of the job, beside what its folder does."""
    row = answers.queue.get(work.job_id)
    if not work.job_id or not answers.asked:
        return work
    if row and row.alive and not (row.state == "COMPLETING" and work.cancelled):
        if row.state == "PENDING":
            return work._replace(phase="pending")
        return work._replace(phase="running", started_s=time.time() - row.seconds)
    account = (answers.accounts or {}).get(work.job_id)
    state = account.state if account else row.state if row else ""
    work = work._replace(phase="ended", waits=False,
                         start=account.starts - 1 if account else work.start)
    if state == "COMPLETED":
        return work._replace(ended_well=True, how="")
    if state == "CANCELLED":
        return work._replace(cancelled=True)
    if state == "FAILED" and work.how:
        return work  # the batch script saw the exit code whole
    if state in ("", "PENDING", "RUNNING", "REQUEUED"):  # accounts may be late
        return work
    return work._replace(how=reasons.ended(state, account.exit_code if account else ""))


def _decide_run(folder: Folder, facts: Facts, live: Live, asked: bool) -> Verdict:
    computing = [(job, row) for job, row in live if job.stage in _COMPUTES]
    verdict = decide(facts)
    is_ending = facts.work.phase == "running" and verdict.state != "running"
    if computing and not is_ending:
        return _describe(computing, folder.jobs)
    if verdict.state == "finished" and live:
        doing, why = _describe(live, folder.jobs)
        if doing in ("pending", "stuck"):  # what waits is its scores, or its report
            return Verdict("finished", f"{_first(live)[0].stage} {doing}: {why}")
        return Verdict(doing, why)
    if verdict.state in ("", "new", "submitted") and live:
        return _describe(live, folder.jobs)
    if verdict.state == "finished" and folder.unscored:
        # A login node has no torch and no Java: there it is a job again, of the same profile.
        where = " --cluster slurm" if folder.jobs and asked else ""
        score = (f"{folder.unscored} not scored: launch.py score --run "
                 f"{shlex.quote(str(folder.run.path))}{where}")
        return Verdict("finished", f"{verdict.why}; {score}" if verdict.why else score)
    return verdict


def _decide_report(folder: Folder, facts: Facts, live: Live) -> Verdict:
    """A folder that only reports were made in: of runs that are elsewhere."""
    if live:
        state, why = _describe(live, folder.jobs)
        return Verdict(state, f"report: {why}")
    page = find_page(folder.run)
    verdict = decide(facts)
    made = page and page.stat().st_mtime >= facts.work.submitted_s
    if page and (verdict.state == "finished" or made and verdict.state in ("lost", "submitted")):
        return Verdict("finished", f"report: {page}")
    return verdict


def find_page(run: RunDir) -> Optional[Path]:
    """The page of a report's own folder, or of a sweep's."""
    pages = (run.path / "index.html", run.path / "report" / "index.html")
    return next((page for page in pages if page.is_file()), None)


def _first(live: Live) -> Tuple[Submitted, QueueRow]:
    """The job that says what is done for a run now."""
    order = list(_DOING)
    return min(live, key=lambda one: (
        order.index(one[0].stage) if one[0].stage in order else len(order), one[1].state))


def _describe(live: Live, jobs: Sequence[Submitted]) -> Verdict:
    """What a run's jobs that wait or run do for it."""
    job, row = _first(live)
    if row.state == "PENDING":
        stuck = row.reason == "DependencyNeverSatisfied"
        return Verdict("stuck" if stuck else "pending", _why_pending(row, jobs))
    if row.state == "COMPLETING":
        return Verdict("ending", f"job {row.job_id} has ended, its node is being cleaned up")
    left = "" if row.left_s < 0 else f", {duration(row.left_s)} left"
    place = f" on {row.nodes}" if row.nodes else ""
    other = "" if row.state == "RUNNING" else f", {row.state.lower()}"
    return Verdict(_DOING.get(job.stage, "running"), f"job {row.job_id}{place}{other}{left}")


def _why_pending(row: QueueRow, jobs: Sequence[Submitted]) -> str:
    if row.reason == "Dependency":
        stages = {job.job_id.partition("_")[0]: job.stage for job in jobs}
        waits = [f"{stages[number]} (job {number})"
                 for number in re.findall(r"\d+", row.waits_for) if number in stages]
        if waits:
            return f"waits for {', '.join(dict.fromkeys(waits))}"
    return reasons.waiting(row.reason)


def _gpu_hours(folder: Folder, answers: Answers) -> Tuple[Optional[float], bool]:
    """GPU-hours of all the run's jobs, and whether Slurm accounted for them."""
    rows = [(job, (answers.accounts or {}).get(job.job_id)) for job in folder.jobs if job.gpus]
    # A site may account for time, but not for GPUs.
    seconds = [row.gpu_seconds or row.seconds * job.gpus * job.nodes for job, row in rows if row]
    return (sum(seconds) / 3600, True) if seconds else (folder.row.gpu_hours, False)
