"""How runs are doing, one row each: the run folders first, then one squeue, then one sacct.

    rows, notes = survey(find_runs(["runs"]), Slurm()); print(shown(rows))

Works without Slurm: then everything comes from the run folders.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from blip_art.cluster import heartbeat, usage
from blip_art.cluster.asking import with_notice
from blip_art.cluster.judge import Answers, Folder, judge
from blip_art.cluster.ownership import accounts_of, is_elsewhere, own_jobs, queue_of
from blip_art.cluster.record import Submitted
from blip_art.cluster.rows import Row, read_numbers
from blip_art.cluster.slurm import Slurm, SlurmAbsent, SlurmError
from blip_art.describe import join_parts
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.run_state import Facts, State, read_facts, unscored
from blip_art.score.summary import Summaries
from blip_art.work import Work, cancelled_jobs

# Folders inside a run: no runs are looked for there.
_PARTS = frozenset(("code", "checkpoints", "predictions", "scores", "references", "bad_pictures",
                    "slurm", "report"))


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
        lambda: when_slow(_unasked(folders)))
    return [_row(folder, answers) for folder in folders], list(answers.notes)


def rows_on_disk(runs: Sequence[RunDir]) -> List[Row]:
    """One row a run as its folder alone has it; Slurm is not asked."""
    return _unasked([read_folder(run) for run in runs])


def _unasked(folders: Sequence[Folder]) -> List[Row]:
    return [_row(folder, Answers({}, None, (), False)) for folder in folders]


def _row(folder: Folder, answers: Answers) -> Row:
    """A run's row, with how far it is where it runs, when it is expected where it waits, and what
    it has taken where it has finished."""
    row = judge(folder, answers)
    beat = heartbeat.describe(folder.run, row.state, folder.jobs, answers.queue)
    used = usage.describe(folder.run, folder.jobs, answers.accounts)
    # What is to be done stands alone: people copy the command.
    cost = used.text * (row.state == "finished" and not row.why)
    why = join_parts(row.why, beat.text, cost)
    return replace(row, why=why, heartbeat=beat.numbers, usage=used.numbers)


def read_folder(run: RunDir) -> Folder:
    """What the files of a run say; one that cannot be read is told in its row."""
    try:
        jobs, summaries = tuple(own_jobs(run)), Summaries(run)
        facts = read_facts(run, [asdict(job) for job in jobs])
        finished = facts.state.name == "finished"
        return Folder(run, jobs, facts, cancelled_jobs(run),
                      len(unscored(run, summaries)) if finished else 0,
                      read_numbers(run, jobs, facts.state, summaries))
    except UserError as error:
        why = str(error)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        why = f"a file in {run.path} is damaged ({type(error).__name__}: {error})"
    facts = Facts(run, State("unreadable", why), Work(), 0.0, None, 0.0)
    return Folder(run, (), facts, frozenset(), 0, Row(str(run.path), "unreadable"))


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
