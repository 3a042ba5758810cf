"""Submits again what stopped: in the folder that was named, with the configuration it began with.

    resume(find_runs(["runs/art"]), Slurm(), Changes(time="120"))
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Sequence, Tuple, Union

from blip_art.cluster.control import SCORING, InQueue, Live, jobs_in_queue
from blip_art.cluster.ownership import other_clusters
from blip_art.cluster.record import Submitted, read_jobs
from blip_art.cluster.site import ENVIRONMENT
from blip_art.cluster.slurm import Slurm, SlurmError
from blip_art.cluster.sweep import is_member
from blip_art.errors import EXIT_FAILED, UserError
from blip_art.files import RunDir
from blip_art.run_state import decide, is_finished, read_facts, unscored
from blip_art.work import cancelled_jobs

NOT_SUBMITTED = ("was not submitted to Slurm; the same 'launch.py train CONFIG' as before goes on "
                 "here, and with --cluster slurm there")
ONLY_REPORT = "is no run, but has a report of some; 'launch.py collect' makes it again"


class Changes(NamedTuple):
    """What is other than when the runs were submitted; '' is the same."""

    site: str = ""
    partition: str = ""
    account: str = ""
    time: str = ""
    code: str = ""
    """'frozen' keeps the copy of the code."""
    dry_run: bool = False


class Resubmission(NamedTuple):
    """launch.py's arguments, and where it is called: paths in configurations start there."""

    cwd: str
    words: Tuple[str, ...]


def resume(runs: Sequence[RunDir], slurm: Slurm, changes: Optional[Changes] = None,
           launch: Sequence[str] = ()) -> int:
    """Submit again what each run lacks, unless it is still at work or finished.

    Args:
        launch: how launch.py is called; () is as this process was.

    Raises:
        UserError: none of the runs was submitted.
    """
    changes = changes or Changes()
    launch = launch or (sys.executable, os.path.abspath(sys.argv[0]))
    queue = _queue(runs, slurm, changes)
    todo = [(run, job_to_repeat(run, [one for one in queue.living if one[0] is run]))
            for run in runs]
    if todo and all(job == NOT_SUBMITTED for _, job in todo):
        raise UserError(f"{runs[0].path} {NOT_SUBMITTED}")
    together: Dict[Resubmission, List[str]] = {}  # runs of one sweep are one array
    for run, job in todo:
        if isinstance(job, str):
            print(f"{run.path}: {job}")
            continue
        others: List[str] = []
        with contextlib.suppress(SlurmError):  # of which a dry run has been warned
            others = other_clusters(slurm, read_jobs(run)) if job.cluster else []
        if others:
            print(f"{run.path}: was begun on cluster {', '.join(others)}, whose queue is not asked "
                  "from here: look there that none of its jobs is left", file=sys.stderr)
        words = words_to_repeat(run, job, changes, elsewhere=bool(others))
        together.setdefault(Resubmission(_folder_of(run, job), words), []).append(
            str(run.path.resolve()))
    codes = []
    for one, paths in together.items():
        # Of a sweep other runs may have been ended on purpose.
        words = (*one.words, "--only", *paths) if one.words[0] == "sweep" else one.words
        if changes.dry_run:
            print(f"cd {shlex.quote(one.cwd)} && {shlex.join(('launch.py', *words))}",
                  file=sys.stderr, flush=True)
            words = (*words, "--dry-run")
        codes.append(subprocess.call([*launch, *words], cwd=one.cwd))
    return EXIT_FAILED if any(codes) else 0


def _queue(runs: Sequence[RunDir], slurm: Slurm, changes: Changes) -> InQueue:
    try:
        return jobs_in_queue(runs, slurm)
    except SlurmError as error:
        if not changes.dry_run:
            raise
        print(f"not known what is in the queue: {error}", file=sys.stderr)
        return InQueue([], [])


def job_to_repeat(run: RunDir, living: Sequence[Live]) -> Union[Submitted, str]:
    """The job of a run whose command goes on with it, or why nothing is to be submitted.

    A run that only lacks scores is scored, whatever the command was: its stage is then 'score'.
    """
    for _, job, row in living:
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
        return last
    if not (is_finished(run) or last.stage == "predict"
            and decide(read_facts(run)).state == "finished"):
        return ([job for job in on_gpus if job.stage == "train"] or on_gpus)[-1]
    if not unscored(run):
        return "finished and scored, nothing to do"
    for _, job, row in living:
        if job.stage in SCORING:
            return f"{job.stage} job {job.job_id} is {row.state.lower()}, nothing to do"
    return replace(last, stage="score")


def words_to_repeat(run: RunDir, job: Submitted, changes: Changes,
                    elsewhere: bool = False) -> Tuple[str, ...]:
    """launch.py's arguments that go on with the run in this folder.

    Args:
        elsewhere: another cluster began it, whose names are not for this one.

    Raises:
        UserError: there is no configuration to go on with.
    """
    command = "score" if job.stage == "score" else job.command[0]
    options, positional = _parse(job.command)
    folder, config = run.path.resolve(), run.submitted_config()
    if command == "sweep" and is_member(run):
        words = [command, str(folder.parent)]
    elif command in ("train", "sweep"):  # one that was copied out of its sweep is a run of its own
        if command == "sweep" and not config:
            raise UserError(f"{run.path} has no configuration to go on with; submit it with "
                            "'launch.py train CONFIG'")
        command = "train"
        words = [command, *([str(config.resolve())] if config else positional)]
    elif command in ("predict", "eval"):
        # Its own configuration stands for the file that was named.
        own = run.config.exists()
        words = [command, *(word for word in positional if "=" in word or not own)]
        options["config"] = None if own else options["config"]
    else:
        words = [command, *(positional if command != "score" else ())]
    options["run"] = str(folder)
    # Each resume says which code is used: '--code frozen' of an earlier command would stay.
    options.update(cluster="slurm", site=_site_of(job, changes, elsewhere), only=None,
                   code=changes.code)
    if options["site"] != job.site:
        options.update(partition=None, account=None)
    options.update({key: value for key in ("partition", "account", "time")
                    if (value := getattr(changes, key))})
    return (*words, *(word for name in (*_OF_COMMAND.get(command, ()), *_COMMON)
                      for word in _option(name, options.get(name))))


def _site_of(job: Submitted, changes: Changes, elsewhere: bool) -> str:
    """The profile, absolute: launch.py is called elsewhere."""
    set_here = os.environ.get(ENVIRONMENT, "")
    if changes.site or (set_here and (elsewhere or not Path(job.site).is_file())):
        return os.path.abspath(changes.site or set_here)
    return "" if elsewhere else job.site


def _folder_of(run: RunDir, job: Submitted) -> str:
    with contextlib.suppress(ValueError):  # a name that no folder can have
        if os.access(job.cwd, os.R_OK | os.X_OK):
            return job.cwd
    here = os.getcwd()
    print(f"{run.path}: {job.cwd}, where it was begun, is gone; paths in its configuration start "
          f"in {here} now", file=sys.stderr)
    return here


# launch.py's options that say what is submitted: of all commands, and of each.
_COMMON = ("cluster", "site", "partition", "account", "time", "code", "mail")
_OF_COMMAND = {"train": ("run", "gpus", "nodes", "no-score"), "sweep": ("gpus", "nodes", "only"),
               **dict.fromkeys(("predict", "eval"), ("run", "config", "weights", "epoch", "split",
                                                     "gpus", "nodes")),
               "score": ("run",), "collect": ("output",)}
_SPELLINGS = {"gpus": ("--gpus", "--processes"), "output": ("-o", "--output")}
_KINDS: Dict[str, Dict[str, Any]] = {"only": {"nargs": "+"}, "mail": {"nargs": "?", "const": True},
                                     "no-score": {"action": "store_const", "const": True}}


class _Parser(argparse.ArgumentParser):
    """Reads what launch.py has accepted before."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"cannot read how the run was submitted ({message}); submit it with the "
                        "command it was begun with")


def _parse(command: Sequence[str]) -> Tuple[Dict[str, Any], List[str]]:
    """The options of a recorded command by name, and its other words."""
    parser = _Parser(prog="launch.py", add_help=False)
    for name in (*_COMMON, *_OF_COMMAND.get(command[0], ()), "python"):
        parser.add_argument(*_SPELLINGS.get(name, (f"--{name}",)), dest=name,
                            **_KINDS.get(name, {}))
    options, others = parser.parse_known_args(list(command[1:]))
    return vars(options), [word for word in others if not word.startswith("-")]


def _option(name: str, value: Any) -> Tuple[str, ...]:
    if not value:
        return ()
    return (f"--{name}",) if value is True else (f"--{name}", str(value))
