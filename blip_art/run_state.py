"""What has become of a run: its state, whether it still trains, what is scored, its best epoch.

    read_state(run).name == "finished" and all_scored(run); read_best(run).epoch

One answer for status, report, scorer, sweep, resume and demo. Needs the standard library only.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional

from blip_art.errors import UserError
from blip_art.files import Result, RunDir, open_regular, read_as_shown, read_json
from blip_art.score.lock import is_held
from blip_art.score.summary import Summaries

UNREADABLE = "unreadable"
# What chooses the best epoch: the highest sum of these, by the names they have in score files.
BEST_RULES = {"cider+bleu_4": ("CIDEr", "Bleu_4"), "spice": ("SPICE",), "cider": ("CIDEr",)}
DEFAULT_RULE = "cider+bleu_4"


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


class Best(NamedTuple):
    """The epoch to use, the rule that chose it, and the rule's value there (None: not known)."""

    epoch: int
    rule: str
    value: Optional[float]

    def describe(self) -> str:
        """'epoch 03 by spice = 0.212'."""
        value = "" if self.value is None else f" = {self.value:.3f}"
        return f"epoch {self.epoch:02d} by {self.rule}{value}"


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
                 _count(said.get("epochs")))


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
