"""A run as a row of numbers, and the rows as a table or as JSON.

    print(shown([read_numbers(run, jobs, state, summaries)]))
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from blip_art.cluster.record import Submitted
from blip_art.cluster.table import table
from blip_art.errors import UserError
from blip_art.files import RunDir, read_jsonl
from blip_art.manifest import read_manifest
from blip_art.run_state import State, is_number, planned_epochs, read_best, rule_value
from blip_art.score.summary import Summaries

HEADER = ("run", "state", "epoch", "loss", "SPICE", "best", "GPU-h", "why")
_NUMBERS = (2, 3, 4, 6)
_BEFORE_HOURS = 6


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
    best_rule: str = ""
    """What chose that epoch."""
    best_value: Optional[float] = None
    """The rule's value there."""
    test_spice: Optional[float] = None
    """Of test, at the best epoch if that is scored, else at the newest one that is."""
    test_epoch: Optional[int] = None
    gpu_hours: Optional[float] = None
    gpu_hours_exact: bool = True
    """False: computed from train.jsonl, without what was lost or spent outside epochs."""
    jobs: Tuple[str, ...] = ()
    """Ids of its jobs that wait or run."""
    is_report: bool = False
    """Whether this is no run, but the folder of a report, or of a sweep's."""
    heartbeat: Optional[Dict[str, Any]] = None
    """How far it is where it runs, when it is expected to start where it waits."""
    usage: Optional[Dict[str, Any]] = None
    """Memory, waiting for data, CPU-hours of its scores; see Usage."""


def read_numbers(run: RunDir, jobs: Sequence[Submitted], state: State,
                 summaries: Summaries) -> Row:
    """The numbers of a run; its state and why are still to be decided.

    Raises:
        UserError: a file of the run is damaged.
    """
    trained = read_jsonl(run.train_log)
    if not all(isinstance(line, dict) for line in trained):
        raise UserError(f"{run.train_log} must hold one object a line; remove what is not")
    scored = {split: {one.epoch: one.path for one in run.scored() if one.split == split}
              for split in ("val", "test")}
    best = read_best(run)
    at_best = _metrics(summaries, scored["val"].get(best.epoch)) if best else {}
    newest = _metrics(summaries, scored["val"][max(scored["val"])]) if scored["val"] else {}
    tested = (best.epoch if best and best.epoch in scored["test"]
              else max(scored["test"], default=None))
    test = _metrics(summaries, scored["test"][tested]) if tested is not None else {}
    value = rule_value(at_best, best.rule) if best else None
    return Row(
        str(run.path), "", epochs_done=len(trained), epochs=state.epochs or planned_epochs(run),
        loss=rule_value(trained[-1], "loss") if trained else None,
        spice=rule_value(newest, "spice"), best_spice=rule_value(at_best, "spice"),
        best_epoch=best.epoch if best else None, best_rule=best.rule if best else "",
        best_value=best.value if best and value is None else value,
        test_spice=rule_value(test, "spice"), test_epoch=tested,
        gpu_hours=_hours_of_epochs(run, jobs, trained), gpu_hours_exact=False)


def _metrics(summaries: Summaries, path: Optional[Path]) -> Any:
    return summaries.glance(path).get("metrics") if path else {}


def _hours_of_epochs(run: RunDir, jobs: Sequence[Submitted],
                    trained: Sequence[Dict[str, Any]]) -> Optional[float]:
    """GPU-hours of the epochs; None for a run that used no GPU.

    An epoch of an older version, which does not say how many ranks it had, counts with those of
    the newest job, or of the run's beginning.
    """
    submitted = [job.gpus * job.nodes for job in jobs if job.stage == "train"]
    gpus = submitted[-1] if submitted else 0
    if not submitted and any(row.get("gpu_memory_gb") for row in trained):
        gpus = _ranks(run)
    seconds = [float(row["seconds"]) * (row["ranks"] if is_number(row.get("ranks")) else gpus)
               for row in trained if is_number(row.get("seconds"))]
    return sum(seconds) / 3600 if gpus else None


def _ranks(run: RunDir) -> int:
    """How many processes trained it; 1 where the manifest does not say."""
    return int(read_manifest(run).get("ranks", 1))


def shown(rows: Sequence[Row], notes: Sequence[str] = (), width: int = 0) -> str:
    """The table, a line of totals, the rule of the best epochs, the notes."""
    if not rows:
        return "no runs yet; 'launch.py train CONFIG' makes one"
    header, numbers = list(HEADER), list(_NUMBERS)
    lines = [_cells(row, _rules(rows)) for row in rows]
    if any(row.test_epoch is not None for row in rows):  # few runs have it, all pay for the width
        header.insert(_BEFORE_HOURS, "test")
        numbers[-1] += 1
        for line, row in zip(lines, rows):
            line.insert(_BEFORE_HOURS, _at(row.test_spice, row.test_epoch))
    texts = [table(header, lines, width, numbers)]
    if len(rows) > 1:
        texts.append(_totals(rows))
    return "\n".join([*texts, *_legend(rows), *(f"note: {note}" for note in notes)])


def as_json(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The same for programs."""
    return json.dumps({"runs": [asdict(row) for row in rows], "notes": list(notes)},
                      ensure_ascii=False, indent=1)


def _rules(rows: Sequence[Row]) -> Set[str]:
    return {row.best_rule for row in rows if row.best_rule}


def _legend(rows: Sequence[Row]) -> List[str]:
    """What the columns 'best' and 'test' show."""
    rules = _rules(rows)
    parts = [f"best: highest {' '.join(rules)} on val @ epoch"] * (len(rules) == 1)
    parts += ["test: SPICE @ epoch"] * any(row.test_epoch is not None for row in rows)
    return ["; ".join(parts)] if parts else []


def _cells(row: Row, rules: Set[str]) -> List[str]:
    epochs = f"{row.epochs_done}/{row.epochs}" if row.epochs else str(row.epochs_done or "")
    best = _at(row.best_value, row.best_epoch)
    if len(rules) > 1 and row.best_rule:
        best += f" by {row.best_rule}"
    return [row.run, row.state, epochs, _number(row.loss), _number(row.spice), best,
            _hours(row.gpu_hours, row.gpu_hours_exact), " ".join(row.why.split())]


def _at(value: Optional[float], epoch: Optional[int]) -> str:
    """'0.212 @03'."""
    return "" if epoch is None else f"{_number(value)} @{epoch:02d}".strip()


def _number(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.3f}"


def _hours(value: Optional[float], exact: bool) -> str:
    return "" if value is None else f"{'' if exact else '~'}{value:.{1 if value >= 10 else 2}f}"


def _totals(rows: Sequence[Row]) -> str:
    states = [row.state for row in rows if not row.is_report]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    hours = [row.gpu_hours for row in rows if row.gpu_hours is not None]
    exact = all(row.gpu_hours_exact for row in rows if row.gpu_hours is not None)
    return f"{len(states)} runs: {counts}" + (
        f"; {_hours(sum(hours), exact)} GPU-hours" if hours else "")
