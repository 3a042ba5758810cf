"""How runs are doing, one row each: the run folders first, then one squeue, then one sacct.

    rows, notes = survey(find_runs(["runs"]), Slurm()); print(shown(rows))

Works without Slurm: then everything comes from the run folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from blip_art.cluster import heartbeat, reasons, usage
from blip_art.cluster.asking import with_notice
from blip_art.cluster.ownership import accounts_of, is_elsewhere, own_jobs, queue_of
from blip_art.cluster.record import Submitted
from blip_art.cluster.slurm import AccountRow, QueueRow, Slurm, SlurmAbsent, SlurmError
from blip_art.cluster.table import table
from blip_art.describe import duration
from blip_art.errors import UserError
from blip_art.files import RunDir, read_as_shown, read_jsonl
from blip_art.manifest import read_manifest
from blip_art.run_state import (
    State,
    is_alive,
    is_number,
    planned_epochs,
    read_best,
    read_state,
    rule_value,
    unscored,
)
from blip_art.score.lock import owner
from blip_art.score.summary import Summaries

# Folders inside a run: no runs are looked for there.
_PARTS = frozenset(("code", "checkpoints", "predictions", "scores", "references", "bad_pictures",
                    "slurm", "report"))
# What a run is doing, by the first of these that one of its jobs is for.
_DOING = {"train": "running", "predict": "predicting", "follow": "scoring", "score": "scoring",
          "rescore": "scoring", "collect": "collecting"}
# A run of which no process is known: told from here on, and given up after as long as the follower
# waits for it.
_SILENT_S, _LOST_S = 15 * 60, 60 * 60
HEADER = ("run", "state", "epoch", "loss", "SPICE", "best", "GPU-h", "why")
_NUMBERS = (2, 3, 4, 6)


@dataclass(frozen=True)
class Row:
    """One run; what is not known is None, or '' where it is text."""

    run: str
    state: str
    """pending, running, scoring, …; then finished, stopped, failed, cancelled or lost."""
    why: str = ""
    epochs_done: int = 0
    epochs: Optional[int] = None
    loss: Optional[float] = None
    """Of the newest epoch."""
    spice: Optional[float] = None
    """Of the newest scored epoch of val."""
    best_spice: Optional[float] = None
    """Of the epoch in best.json."""
    best_epoch: Optional[int] = None
    gpu_hours: Optional[float] = None
    gpu_hours_exact: bool = True
    """False: reckoned from train.jsonl, without what was lost or spent outside epochs."""
    jobs: Tuple[str, ...] = ()
    """Ids of its jobs that wait or run."""
    heartbeat: Optional[Dict[str, Any]] = None
    """How far it is where it runs, when it is expected to start where it waits."""
    usage: Optional[Dict[str, Any]] = None
    """Memory, waiting for data, CPU-hours of its scores; see Usage."""


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
    state: State
    alive: Optional[bool]
    """Whether a process trains here; None where nobody knows, or where it has ended for good."""
    unscored: int
    """Of a run that has finished: captions without whole scores."""
    cancelled: FrozenSet[str]
    """Jobs that 'launch.py cancel' ended."""
    silent_s: float
    """Seconds since the run last wrote its state, its log or a checkpoint."""
    row: Row
    """The numbers; state and why are still to be decided."""


def find_runs(paths: Sequence[str], must: bool = True) -> List[RunDir]:
    """Run folders among the paths and below them, in the order of their names.

    Raises:
        UserError: a path is no folder, or, if there `must` be one, no run lies in it.
    """
    found: Dict[Path, RunDir] = {}
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"no run folder at {path}; 'launch.py train CONFIG' makes one, "
                            "'launch.py status' shows those there are")
        below = sorted(_runs_below(path), key=_natural)
        if must and not below:
            raise UserError(f"no run in {path}: no folder there has a state.json or submitted "
                            "jobs; runs lie in runs/NAME")
        found.update({Path(one): RunDir(one) for one in below})
    return list(found.values())


def _runs_below(top: str) -> Iterable[str]:
    with os.scandir(top) as entries:
        folders, names = [], set()
        for entry in entries:
            names.add(entry.name)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                folders.append(entry)
    run = RunDir(top)
    if run.state.name in names or run.slurm.name in names and (
            run.jobs.exists() or run.pending.exists()):
        yield top
    for folder in folders:
        if folder.name not in _PARTS:
            yield from _runs_below(folder.path)


def _natural(text: str) -> List[Tuple[int, str]]:
    """run_2 before run_10."""
    return [(int(part), "") if part.isdigit() else (-1, part)
            for part in re.split(r"(\d+)", text)]


def survey(runs: Sequence[RunDir], slurm: Slurm,
           when_slow: Optional[Callable[[List[Row]], None]] = None
           ) -> Tuple[List[Row], List[str]]:
    """One row a run, and notes on what could not be asked.

    Args:
        when_slow: gets the rows as the run folders alone have them, if Slurm takes its time.
    """
    folders = [read_folder(run) for run in runs]
    jobs = [job for folder in folders for job in folder.jobs]
    answers = ask(slurm, jobs) if when_slow is None else with_notice(
        lambda: ask(slurm, jobs),
        lambda: when_slow([_row(folder, Answers({}, None, (), False)) for folder in folders]))
    return [_row(folder, answers) for folder in folders], list(answers.notes)


def _row(folder: Folder, answers: Answers) -> Row:
    """A run's row, with how far it is where it runs, when it is expected where it waits, and what
    it has taken where it has finished."""
    row = judge(folder, answers)
    beat = heartbeat.describe(folder.run, row.state, folder.jobs, answers.queue)
    used = usage.describe(folder.run, folder.jobs, answers.accounts)
    why = heartbeat.joined(row.why, beat.text, used.text * (row.state == "finished"))
    return replace(row, why=why, heartbeat=beat.numbers, usage=used.numbers)


def read_folder(run: RunDir) -> Folder:
    """What the files of a run say; one that cannot be read is told in its row."""
    row = Row(str(run.path), "unreadable")
    try:
        jobs, state, summaries = tuple(own_jobs(run)), read_state(run), Summaries(run)
        finished = state.name == "finished"
        return Folder(run, jobs, state, None if finished else is_alive(run),
                      len(unscored(run, summaries)) if finished else 0, cancelled_jobs(run),
                      _silence(run), _numbers(run, jobs, state, summaries))
    except UserError as error:
        why = str(error)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        why = f"a file in {run.path} is damaged ({type(error).__name__}: {error})"
    return Folder(run, (), State("unreadable", why), None, 0, frozenset(), 0.0, row)


def ask(slurm: Slurm, jobs: Sequence[Submitted]) -> Answers:
    """One squeue and one sacct for all jobs; without an answer the notes say so."""
    if not jobs:
        return Answers({}, None, (), False)
    try:
        queue = {job.job_id: row for job, row in queue_of(slurm, jobs).items()}
        cluster = slurm.cluster_name() if any(job.cluster for job in jobs) else ""
    except SlurmAbsent:
        return Answers({}, None, ("no Slurm on this machine: states as the run folders have them",
                                  ), False)
    except SlurmError as error:
        return Answers({}, None, (f"states as the run folders have them: {error}",), False)
    notes = _of_other_clusters(jobs, cluster)
    if not _has_accounts({job.site for job in jobs}):
        return Answers(queue, None, notes, True, cluster)
    try:
        accounts = {job.job_id: row for job, row in accounts_of(slurm, jobs).items()}
        return Answers(queue, accounts, notes, True, cluster)
    except SlurmError as error:
        return Answers(queue, None, (*notes, f"GPU-hours reckoned from epochs: {error}"), True,
                       cluster)


def _of_other_clusters(jobs: Sequence[Submitted], cluster: str) -> Tuple[str, ...]:
    others = sorted({job.cluster for job in jobs if is_elsewhere(job, cluster)})
    return (f"jobs of cluster {', '.join(others)} are not asked for on {cluster}: states of their "
            "runs as the run folders have them",) if others else ()


def _has_accounts(sites: Iterable[str]) -> bool:
    for site in filter(None, sites):
        # Without PyYAML, or where the profile has moved since, sacct itself will tell.
        with contextlib.suppress(UserError, ImportError):
            from blip_art.cluster.site import load_site

            if not load_site(site).has_sacct:
                return False
    return True


def judge(folder: Folder, answers: Answers) -> Row:
    """The row of a run: a living job decides, else its folder, else how its last job ended."""
    here = tuple(job for job in folder.jobs if not is_elsewhere(job, answers.cluster))
    folder = replace(folder, jobs=here)
    rows = ((job, answers.queue.get(job.job_id)) for job in folder.jobs)
    live = [(job, row) for job, row in rows if row and row.alive and not (
        row.state == "COMPLETING" and job.job_id in folder.cancelled)]
    state, why = _live(live, folder.jobs) if live else _at_rest(folder, answers)
    hours, exact = _gpu_hours(folder, answers)
    return Row(**{**asdict(folder.row), "state": state, "why": why, "gpu_hours": hours,
                  "gpu_hours_exact": exact, "jobs": tuple(job.job_id for job, _ in live)})


def _live(live: Sequence[Tuple[Submitted, QueueRow]],
          jobs: Sequence[Submitted]) -> Tuple[str, str]:
    order = list(_DOING)
    job, row = min(live, key=lambda one: (
        order.index(one[0].stage) if one[0].stage in order else len(order), one[1].state))
    if row.state == "PENDING":
        stuck = row.reason == "DependencyNeverSatisfied"
        return "stuck" if stuck else "pending", _why_pending(row, jobs)
    if row.state == "COMPLETING":
        return "ending", f"job {row.job_id} has ended, its node is being cleaned up"
    left = "" if row.left_s < 0 else f", {duration(row.left_s)} left"
    place = f" on {row.nodes}" if row.nodes else ""
    other = "" if row.state == "RUNNING" else f", {row.state.lower()}"
    return _DOING.get(job.stage, "running"), f"job {row.job_id}{place}{other}{left}"


def _why_pending(row: QueueRow, jobs: Sequence[Submitted]) -> str:
    if row.reason == "Dependency":
        stages = {job.job_id.partition("_")[0]: job.stage for job in jobs}
        waits = [f"{stages[number]} (job {number})"
                 for number in re.findall(r"\d+", row.waits_for) if number in stages]
        if waits:
            return f"waits for {', '.join(dict.fromkeys(waits))}"
    return reasons.waiting(row.reason)


def _at_rest(folder: Folder, answers: Answers) -> Tuple[str, str]:
    """No job lives, or nobody knows of any."""
    state = folder.state
    if state.name == "finished":
        return "finished", (f"{folder.unscored} not scored: launch.py score --run "
                            f"{folder.run.path}" if folder.unscored else "")
    if folder.alive:
        return "running", f"process {owner(folder.run.training_lock)}"
    if state.name in ("failed", "unreadable"):
        return state.name, state.why
    if folder.jobs and _main_job(folder.jobs).job_id in folder.cancelled:
        return "cancelled", "'launch.py resume' goes on"
    if folder.jobs and answers.asked:
        return _last_ended(folder, answers)
    if folder.jobs and not (state.name == "running" and folder.alive is False):
        return state.name or "submitted", state.why
    return _without_job(folder) if state.name == "running" else (state.name or "new", state.why)


def _without_job(folder: Folder) -> Tuple[str, str]:
    """state.json says running, which a process that was killed or had no disk left cannot take
    back; no job could tell."""
    who = owner(folder.run.training_lock)
    if folder.alive is False:
        return "lost", (f"its process {who} is gone and did not say why (killed, or a full disk): "
                        f"'launch.py logs {folder.run.path}', then start it again")
    silence = f"has written nothing for {duration(folder.silent_s)}"
    if folder.silent_s > _LOST_S:
        return "lost", f"{silence}, and no process of it is known: start it again"
    return "running", silence * (folder.silent_s > _SILENT_S)


def _main_job(jobs: Sequence[Submitted]) -> Submitted:
    """The newest job that computes the run, rather than scores it."""
    return ([job for job in jobs if job.stage in ("train", "predict")] or list(jobs))[-1]


def _last_ended(folder: Folder, answers: Answers) -> Tuple[str, str]:
    """How the newest job that computes the run ended, by what Slurm still knows."""
    job_id = _main_job(folder.jobs).job_id
    row = answers.queue.get(job_id)
    account = (answers.accounts or {}).get(job_id)
    state = account.state if account else row.state if row else ""
    if state == "CANCELLED":
        return "cancelled", f"job {job_id} was cancelled; 'launch.py resume' goes on"
    if folder.state.name == "stopped":
        return "stopped", folder.state.why
    if state and state != "COMPLETED":
        return "failed", (f"job {job_id}: "
                          f"{reasons.ended(state, account.exit_code if account else '')}")
    if folder.state.name != "running" and state == "COMPLETED":
        return (folder.state.name or "failed",
                f"job {job_id} ended; 'launch.py logs' shows its words")
    return "lost", (f"job {job_id} ended without a word; 'launch.py logs' shows its last, "
                    "'launch.py resume' goes on")


def cancelled_note(run: RunDir) -> Path:
    """Ids of jobs that were cancelled on purpose: without sacct nobody else remembers."""
    return run.slurm / "cancelled_jobs"


def cancelled_jobs(run: RunDir) -> FrozenSet[str]:
    """What the note says."""
    note = cancelled_note(run)
    if not note.exists():
        return frozenset()
    return frozenset(read_as_shown(note).split())


def _silence(run: RunDir) -> float:
    times = [path.stat().st_mtime for path in (run.state, run.train_log, run.last_checkpoint)
             if path.exists()]
    return time.time() - max(times) if times else 0.0


def _numbers(run: RunDir, jobs: Sequence[Submitted], state: State, summaries: Summaries) -> Row:
    trained = read_jsonl(run.train_log)
    if not all(isinstance(line, dict) for line in trained):
        raise UserError(f"{run.train_log} must hold one object a line; remove what is not")
    scored = [one for one in run.scored() if one.split == "val"]
    best = read_best(run)
    at_best = [one for one in scored if best and one.epoch == best.epoch]
    hours = _reckoned_hours(run, jobs, trained)
    return Row(
        str(run.path), "", epochs_done=len(trained), epochs=state.epochs or planned_epochs(run),
        loss=rule_value(trained[-1], "loss") if trained else None,
        spice=_spice(summaries, scored[-1].path) if scored else None,
        best_spice=_spice(summaries, at_best[0].path) if at_best else None,
        best_epoch=best.epoch if best else None, gpu_hours=hours, gpu_hours_exact=False)


def _spice(summaries: Summaries, path: Path) -> Optional[float]:
    return rule_value(summaries.glance(path).get("metrics"), "spice")


def _reckoned_hours(run: RunDir, jobs: Sequence[Submitted],
                    trained: Sequence[Dict[str, Any]]) -> Optional[float]:
    """GPU-hours of the epochs; None for a run that used no GPU."""
    submitted = [job.gpus * job.nodes for job in jobs if job.stage == "train"]
    gpus = submitted[-1] if submitted else 0
    if not submitted and any(row.get("gpu_memory_gb") for row in trained):
        gpus = _ranks(run)
    seconds = [row["seconds"] for row in trained if is_number(row.get("seconds"))]
    return sum(seconds) * gpus / 3600 if gpus else None


def _ranks(run: RunDir) -> int:
    """How many processes trained it; 1 where the manifest does not say."""
    return int(read_manifest(run).get("ranks", 1))


def _gpu_hours(folder: Folder, answers: Answers) -> Tuple[Optional[float], bool]:
    """GPU-hours of all the run's jobs, and whether Slurm accounted for them."""
    rows = [(job, (answers.accounts or {}).get(job.job_id)) for job in folder.jobs if job.gpus]
    # A site may account for time, but not for GPUs.
    seconds = [row.gpu_seconds or row.seconds * job.gpus * job.nodes for job, row in rows if row]
    return (sum(seconds) / 3600, True) if seconds else (folder.row.gpu_hours, False)


def shown(rows: Sequence[Row], notes: Sequence[str] = (), width: int = 0) -> str:
    """The table, a line of totals, the notes."""
    if not rows:
        return "no runs yet; 'launch.py train CONFIG' makes one"
    lines = [table(HEADER, [_cells(row) for row in rows], width, _NUMBERS)]
    if len(rows) > 1:
        lines.append(_totals(rows))
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def as_json(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The same for programs."""
    return json.dumps({"runs": [asdict(row) for row in rows], "notes": list(notes)},
                      ensure_ascii=False, indent=1)


def _cells(row: Row) -> Tuple[str, ...]:
    epochs = f"{row.epochs_done}/{row.epochs}" if row.epochs else str(row.epochs_done or "")
    best = "" if row.best_epoch is None else f"{_number(row.best_spice)} @{row.best_epoch:02d}"
    return (row.run, row.state, epochs, _number(row.loss), _number(row.spice), best.strip(),
            _hours(row.gpu_hours, row.gpu_hours_exact), " ".join(row.why.split()))


def _number(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.3f}"


def _hours(value: Optional[float], exact: bool) -> str:
    return "" if value is None else f"{'' if exact else '~'}{value:.{1 if value >= 10 else 2}f}"


def _totals(rows: Sequence[Row]) -> str:
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    hours = [row.gpu_hours for row in rows if row.gpu_hours is not None]
    exact = all(row.gpu_hours_exact for row in rows if row.gpu_hours is not None)
    return f"{len(rows)} runs: {counts}" + (
        f"; {_hours(sum(hours), exact)} GPU-hours" if hours else "")
