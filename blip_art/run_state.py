"""What has become of a run: its state, whether it still trains, what is scored, its best epoch.

    read_state(run).name == "finished" and all_scored(run); read_best(run).epoch
    decide(read_facts(run)) == Verdict("failed", "rank 0 was ended by SIGKILL …")

One answer for status, report, scorer, sweep, resume and demo. Needs the standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from blip_art.describe import duration, join_parts
from blip_art.errors import UserError
from blip_art.files import Result, RunDir, open_regular, read_as_shown, read_json
from blip_art.score.lock import is_held, owner
from blip_art.score.summary import Summaries
from blip_art.work import Work, read_work

UNREADABLE = "unreadable"
# What chooses the best epoch: the highest sum of these, by the names they have in score files.
BEST_RULES = {"cider+bleu_4": ("CIDEr", "Bleu_4"), "spice": ("SPICE",), "cider": ("CIDEr",)}
DEFAULT_RULE = "cider+bleu_4"
# A run of which no process is known: said from here on, and given up after as long as the follower
# waits for it.
_SILENT_S, _LOST_S = 15 * 60, 60 * 60
# The clocks of a file system and of Slurm's controller differ by less; no start is as short.
_CLOCKS_S = 2.0


class State(NamedTuple):
    """What state.json says."""

    name: str
    """running, stopped (resumable), finished or failed; '' for a run that never started;
    'unreadable'."""
    why: str = ""
    epoch: Optional[int] = None
    epochs: Optional[int] = None
    """How many are planned."""
    damaged: bool = False
    """Unreadable because of what is in the file, not because of the file system."""
    job: str = ""
    """The Slurm job that wrote it; '' where none did."""
    start: Optional[int] = None
    """Which of the job's starts wrote it, from 0."""


class Best(NamedTuple):
    """The epoch to use, the rule that chose it, and the rule's value there (None: not known)."""

    epoch: int
    rule: str
    value: Optional[float]

    def describe(self) -> str:
        """'epoch 03 by spice = 0.212'."""
        value = "" if self.value is None else f" = {self.value:.3f}"
        return f"epoch {self.epoch:02d} by {self.rule}{value}"


def is_run_folder(run: RunDir) -> bool:
    """Whether anything was computed there, so that a report can be made of it."""
    return (any(path.exists() for path in (run.config, run.state, run.train_log))
            or bool(run.predicted() or run.scored()))


# State -------------------------------------------------------------------------------------


def read_state(run: RunDir) -> State:
    """The state, whatever is in the file: one that cannot be read says why in one line."""
    try:
        said = read_json(run.state)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return State("")
        return State(UNREADABLE, str(error), damaged=not isinstance(error.__cause__, OSError))
    if not isinstance(said, dict) or not isinstance(said.get("state"), str):
        return State(UNREADABLE, f"{run.state} does not say 'state'; remove it, training writes "
                     "it again", damaged=True)
    return State(said["state"], str(said.get("why") or ""), _count(said.get("epoch")),
                 _count(said.get("epochs")), job=str(said.get("job") or ""),
                 start=_count(said.get("start")))


def this_start(environ: Mapping[str, str] = os.environ) -> Dict[str, Any]:
    """What state.json says of the job that writes it; {} outside of Slurm."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    array = environ.get("SLURM_ARRAY_JOB_ID")
    return {"job": (f"{array}_{environ.get('SLURM_ARRAY_TASK_ID', '')}" if array
                    else environ["SLURM_JOB_ID"]),
            "start": int(environ.get("SLURM_RESTART_COUNT") or 0)}


def is_finished(run: RunDir) -> bool:
    """Whether training came to its end."""
    return read_state(run).name == "finished"


def is_alive(run: RunDir) -> Optional[bool]:
    """Whether a process trains in the run folder now; None where that is not known from here.

    The training's lock tells, never state.json: a process that was killed or whose disk was full
    could not write there that it ended.
    """
    return is_held(run.training_lock)


def _count(value: Any) -> Optional[int]:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# Decision ----------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What one run folder says of itself."""

    run: RunDir
    state: State
    work: Work
    written_s: float
    """When state.json was written; 0 if there is none."""
    alive: Optional[bool]
    """Whether a process trains here; None where nobody knows."""
    silent_s: float
    """Seconds since the run last wrote its state, its log or a checkpoint."""


class Verdict(NamedTuple):
    """pending, running; then finished, stopped, failed, cancelled or lost; and why."""

    state: str
    why: str = ""


def read_facts(run: RunDir, jobs: Optional[Sequence[Mapping[str, Any]]] = None) -> Facts:
    """All that the folder says, without asking anybody.

    Args:
        jobs: the rows of jobs.json, where they have been read; a damaged list counts as none.
    """
    state = read_state(run)
    times = [_modified(path) for path in (run.state, run.progress, run.train_log,
                                            run.last_checkpoint)]
    return Facts(run, state, read_work(run, jobs), times[0],
                 None if state.name == "finished" else is_alive(run),
                 time.time() - max(times) if any(times) else 0.0)


def is_of_newest_start(facts: Facts) -> bool:
    """Whether state.json is the word of the newest start of the newest job, and not of one before,
    which it still is when a start ends before it can write."""
    state, work = facts.state, facts.work
    if state.job in work.earlier:
        return False
    if work.started_s:
        return facts.written_s > work.started_s - _CLOCKS_S
    if state.job == work.job_id and None not in (state.start, work.start):
        return bool(state.start == work.start)
    # An older version did not write the job, and a training by hand is in none.
    return state.job == work.job_id or facts.written_s >= work.submitted_s


def decide(facts: Facts) -> Verdict:
    """What has become of a run: the one answer that status and report show."""
    state, work = facts.state, facts.work
    is_new = is_of_newest_start(facts)
    if work.phase in ("pending", "running"):
        if work.phase == "running" and is_new and state.name in ("finished", "failed", "stopped"):
            why = join_parts(state.why, f"job {work.job_id} has not ended yet")
            return Verdict(state.name, why)
        return Verdict(work.phase, f"job {work.job_id}")
    if state.name in ("finished", UNREADABLE):
        return Verdict(state.name, state.why)
    if facts.alive:
        return Verdict("running", f"process {owner(facts.run.training_lock)}")
    if not work.job_id:
        return _decide_without_job(facts)
    if is_new and state.name == "failed":
        return Verdict("failed", join_parts(state.why, f"job {work.job_id}: {work.how}" * (
            work.how not in state.why and not work.how.startswith("exit code"))))
    if work.cancelled:
        return Verdict("cancelled", f"job {work.job_id} was cancelled; 'launch.py resume' goes on")
    if work.waits and not work.phase:
        return Verdict("pending", f"job {work.job_id} was stopped and waits to start again")
    if is_new and state.name == "stopped":
        return Verdict("stopped", work.note or state.why)
    if work.phase == "ended":
        return _decide_ended(facts, is_new)
    return _decide_unasked(facts, is_new)


def _decide_ended(facts: Facts, is_new: bool) -> Verdict:
    """The job has ended, and its newest start has not said how."""
    work = facts.work
    if work.how:
        return Verdict("failed", join_parts(f"job {work.job_id}: {work.how}", work.note))
    if work.ended_well and work.stage != "train":
        return Verdict("finished")
    if work.ended_well and not (is_new and facts.state.name):
        return Verdict("failed", f"job {work.job_id} ended; 'launch.py logs' shows its words")
    return Verdict("lost", f"job {work.job_id} ended without a word; 'launch.py logs' shows its "
                           "last, 'launch.py resume' goes on")


def _decide_unasked(facts: Facts, is_new: bool) -> Verdict:
    """Nobody knows whether the job still waits or runs."""
    state, work = facts.state, facts.work
    if state.name == "running" and facts.alive is False:
        return _decide_without_job(facts)
    if not state.name or is_new:
        return Verdict(state.name or "submitted", state.why)
    before = join_parts(state.name, state.why)
    return Verdict("submitted", f"job {work.job_id}; before it: {before}")


def _decide_without_job(facts: Facts) -> Verdict:
    """No job is known. A state.json that says running may be of a process that was killed or had no
    disk left, and could not take it back."""
    state, run = facts.state, facts.run
    if state.name != "running":
        return Verdict(state.name or "new", state.why)
    if facts.alive is False:
        return Verdict("lost", f"its process {owner(run.training_lock)} is gone and did not say "
                               f"why (killed, or a full disk): 'launch.py logs {run.path}', then "
                               "start it again")
    silence = f"has written nothing for {duration(facts.silent_s)}"
    if facts.silent_s > _LOST_S:
        return Verdict("lost", f"{silence}, and no process of it is known: start it again")
    return Verdict("running", silence if facts.silent_s > _SILENT_S else state.why)


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


# Scores ------------------------------------------------------------------------------------


def unscored(run: RunDir, summaries: Optional[Summaries] = None) -> List[Result]:
    """Captions whose score file is absent or damaged, is of older captions, or lacks a metric
    that failed: what the scorer would score again."""
    summaries = summaries or Summaries(run)
    scores = {row[:2]: row for row in run.scored()}
    return [row for row in run.predicted()
            if row[:2] not in scores or not _is_scored(row, scores[row[:2]].path, summaries)]


def all_scored(run: RunDir) -> bool:
    """Whether there are captions, and every epoch's have whole scores."""
    return bool(run.predicted()) and not unscored(run)


def _is_scored(captions: Result, scores: Path, summaries: Summaries) -> bool:
    try:
        said = summaries.glance(scores)
        return not said.get("failed") and (
            scores.stat().st_mtime_ns >= captions.path.stat().st_mtime_ns
            # A folder that was copied has other times; captions may be written twice alike.
            or said.get("predictions") == sha256_of(captions.path))
    except (UserError, OSError):
        return False  # cut short, or gone this moment


def sha256_of(path: Path) -> str:
    """Of a regular file that fits in memory.

    Raises:
        UserError: it is no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.sha256(file.read()).hexdigest()


# Best epoch --------------------------------------------------------------------------------


def rule_value(metrics: Any, rule: str) -> Optional[float]:
    """The sum of the rule's metrics; None where one is missing or is no number."""
    if not isinstance(metrics, dict):
        return None
    names = BEST_RULES.get(rule, (rule,))
    values = [metrics[name] for name in names if is_number(metrics.get(name))]
    return sum(values) if len(values) == len(names) else None


def choose_best(values: Mapping[int, float]) -> Optional[int]:
    """The epoch with the highest value, the first of equals; None without any."""
    return max(sorted(values), key=lambda epoch: values[epoch], default=None)


def read_best(run: RunDir) -> Optional[Best]:
    """What the scorer chose; None before it has.

    Raises:
        UserError: best.json cannot be read.
    """
    try:
        said = read_json(run.best)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    epoch = _count(said.get("epoch")) if isinstance(said, dict) else None
    if epoch is None or not isinstance(said.get("rule", ""), str):
        raise UserError(f"{run.best} does not name an epoch; remove it and score the run again")
    value = said.get("value")
    return Best(epoch, said.get("rule", ""), value if is_number(value) else None)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can be."""
    if type(value) is int:  # bool is another type
        return abs(value) <= sys.float_info.max
    return type(value) is float and math.isfinite(value)


# Configuration -----------------------------------------------------------------------------


def configured(run: RunDir, key: str) -> str:
    """A value of config.yaml, found as text by the last part of its name; '' where it is not.

    The login side does without a YAML parser here, which takes seconds for 200 runs: training
    writes one `key: value` a line.
    """
    try:
        text = read_as_shown(run.config)
    except (OSError, UserError):
        return ""
    found = re.search(rf"^\s+{key}:\s*['\"]?([\w+]+)", text, re.MULTILINE)
    return found[1] if found else ""


def planned_epochs(run: RunDir) -> Optional[int]:
    """`train.epochs`."""
    value = configured(run, "epochs")
    return int(value) if value.isdecimal() else None


def configured_rule(run: RunDir) -> str:
    """`score.best`."""
    return configured(run, "best") or DEFAULT_RULE
