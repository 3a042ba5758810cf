"""Run folders as rows: epochs, scores, floors, the best epoch, and every hole by its name.

    runs = read_runs(["runs/joined", "runs/split"]); write_tables(runs, "report")

Needs the standard library only, so that the login node can collect with it.
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from blip_art.data.progress import progress
from blip_art.errors import UserError
from blip_art.files import PathLike, RunDir, read_jsonl, write_json, write_text
from blip_art.report.choice import is_many
from blip_art.report.costs import cost_row
from blip_art.report.runs import CAPTION_COLUMNS, METRICS, SPLITS, Best, Epoch, Run, Scores
from blip_art.run_state import (
    choose_best,
    configured_rule,
    decide,
    is_number,
    is_run_folder,
    read_best,
    read_facts,
    rule_value,
)
from blip_art.score.cpu_time import read_cpu_hours
from blip_art.score.references import references_key, same_references
from blip_art.score.summary import Summaries

TRAIN_COLUMNS = ("loss", "lr", "images_per_s", "seconds", "gpu_memory_gb", "steps",
                 "skipped_steps", "data_wait_share", "host_memory_gb")
# No training has as many.
MOST_EPOCHS = 100_000
# Spreadsheets run a cell that begins so as a formula, also one in quotes (OWASP, CSV injection).
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


def read_runs(folders: Iterable[PathLike]) -> List[Run]:
    """Read run folders in the order given; a folder that is named twice counts once.

    Raises:
        UserError: no folder, not a run folder, or a file in it that cannot be read.
    """
    paths = {Path(folder).resolve(): Path(folder) for folder in folders}
    if not paths:
        raise UserError("no run folder given; name at least one, for example runs/demo")
    named = list(zip(paths.values(), _names(list(paths))))
    # Score files of an older version have no summaries: they are read whole, once.
    return [_read_run(RunDir(path), name)
            for path, name in progress(named, "reading runs", "runs", delay_s=2.0)]


def metric_names(runs: Sequence[Run], split: str) -> List[str]:
    """Metrics that any epoch or floor has: the usual ones in the usual order, others after."""
    found: Set[str] = set()
    for run in runs:
        for scores in (*(epoch.scores.get(split) for epoch in run.epochs), run.floors.get(split)):
            if scores:
                found.update(scores.metrics)
    return [m for m in METRICS if m in found] + sorted(found - set(METRICS))


def splits_of(runs: Sequence[Run]) -> List[str]:
    """Splits that any run has scores or floors of; val first."""
    found = {s for run in runs for e in run.epochs for s in e.scores}
    found |= {s for run in runs for s in run.floors}
    return [s for s in SPLITS if s in found] + sorted(found - set(SPLITS))


def comparable_groups(runs: Sequence[Run], split: str = "val") -> List[List[Run]]:
    """Runs by equal references of `split`; a run without references stands alone."""
    hashes = [run.references.get(split, {}) for run in runs]
    # A run that an older version scored has only the hash of the order listed.
    keys = {one.get("sha256"): references_key(one) for one in hashes
            if "sha256_any_order" in one}
    groups: Dict[Any, List[Run]] = {}
    for place, (run, one) in enumerate(zip(runs, hashes)):
        key = keys.get(one.get("sha256"), references_key(one)) or f"unknown {place}"
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def epoch_rows(runs: Sequence[Run]) -> List[Dict[str, Any]]:
    """One row a run and epoch; an unknown value is None."""
    columns = [(s, m) for s in splits_of(runs) for m in metric_names(runs, s)]
    return [{"run": run.name, "epoch": e.epoch,
             "best": run.best is not None and run.best.epoch == e.epoch,
             **{key: e.train.get(key) for key in TRAIN_COLUMNS},
             **_cells("", {s: e.scores.get(s) for s, _ in columns}, columns),
             "missing": "; ".join(e.missing)}
            for run in runs for e in run.epochs]


def run_rows(runs: Sequence[Run]) -> List[Dict[str, Any]]:
    """One row a run: its best epoch, the scores there, floors and oracles."""
    splits = splits_of(runs)
    columns = [(s, m) for s in splits for m in metric_names(runs, s)]
    rows = []
    for run in runs:
        best = {s: run.best_scores(s) for s in splits}
        tested = run.shown_epoch("test")
        rows.append({
            "run": run.name, "state": run.state, "why": run.why,
            "epochs": sum(bool(e.train) for e in run.epochs), "epochs_planned": run.epochs_planned,
            "best_epoch": run.best.epoch if run.best else None,
            "rule": run.best.rule if run.best else None,
            "value": run.best.value if run.best else None,
            **({"test_epoch": tested.epoch if tested else None} if "test" in splits else {}),
            "seconds": run.seconds, **cost_row(run),
            **_cells("", best, columns), **_cells("floor_", run.floors, columns),
            **_cells("oracle_", run.oracles, columns),
            **{f"{s}_{key}": scores.shares.get(key) if scores else None
               for s, scores in best.items() for key in CAPTION_COLUMNS},
            **{f"{s}_most_frequent": scores.most_frequent if scores else None
               for s, scores in best.items()},
            **{f"references_{s}": references_key(run.references.get(s, {}))
               for s in splits},
            "missing": len(run.missing)})
    return rows


def write_tables(runs: Sequence[Run], out: PathLike) -> List[Path]:
    """Write epochs.csv, runs.csv and report.json into `out`; return their paths.

    In the CSV files an apostrophe stands before a text that a spreadsheet would run (as_cell).
    """
    folder = Path(out)
    paths = [folder / "epochs.csv", folder / "runs.csv", folder / "report.json"]
    epochs, each = epoch_rows(runs), run_rows(runs)
    write_text(paths[0], _csv(epochs, ["run", "epoch"]))
    write_text(paths[1], _csv(each, ["run"]))
    write_json(paths[2], {
        "runs": each, "epochs": epochs,
        "missing": {run.name: list(run.missing) for run in runs},
        "comparable": {s: [[run.name for run in group] for group in comparable_groups(runs, s)]
                       for s in splits_of(runs)}},
        # Indented, a thousand runs are written by Python's slow encoder.
        indent=None if is_many(runs) else 1)
    return paths


def _csv(rows: Sequence[Dict[str, Any]], columns_if_empty: Sequence[str]) -> str:
    lines = [list(rows[0]) if rows else columns_if_empty, *(list(row.values()) for row in rows)]
    return "".join(map(_csv_line, lines))


def _csv_line(values: Iterable[Any]) -> str:
    text = io.StringIO(newline="")
    # Told that lines end with \r\n, Python 3.9 to 3.12 put a text with \r in it in quotes.
    csv.writer(text, lineterminator="\r\n").writerow(map(as_cell, values))  # None: an empty cell
    return text.getvalue()[:-2] + "\n"


def as_cell(value: Any) -> Any:
    """A value for CSV: texts that spreadsheets would run get an apostrophe; numbers stay.

    To read back, take one apostrophe from the texts that FORMULA matches and that begin with one.
    """
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def _cells(prefix: str, scores: Mapping[str, Optional[Scores]],
           columns: Sequence[Tuple[str, str]]) -> Dict[str, Optional[float]]:
    """Each metric of each split and the two ends of its interval; None where unknown."""
    cells: Dict[str, Optional[float]] = {}
    for split, metric in columns:
        found = scores.get(split) or Scores({}, {})
        low, high = found.intervals.get(metric, (None, None))
        name = f"{prefix}{split}_{metric}"
        cells.update({name: found.metrics.get(metric), f"{name}_low": low, f"{name}_high": high})
    return cells


def _names(paths: Sequence[Path]) -> List[str]:
    """The shortest tails of the paths that tell all of them apart."""
    for length in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-length:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError(f"equal paths {paths}")


# Reading -----------------------------------------------------------------------------------


def _read_run(folder: RunDir, name: str) -> Run:
    if not folder.path.is_dir():
        raise UserError(f"no run folder at {folder.path}; runs are under runs/, "
                        "one folder each, made by launch.py train")
    if not is_run_folder(folder):
        signs = (folder.config, folder.state, folder.train_log)
        raise UserError(f"{folder.path} is not a run folder: it has none of "
                        f"{', '.join(p.name for p in signs)}, predictions or scores; "
                        "name the folder that --run was given")
    missing: List[str] = []
    facts = read_facts(folder)
    state, verdict = facts.state, decide(facts)
    if not state.name:
        missing.append("state.json: whether the run ended is not known")
    train = _read_train(folder, missing)
    summaries = Summaries(folder)
    scores = {(r.split, r.epoch): _read_scores(summaries, r.path) for r in folder.scored()}
    floors, oracles = ({s: _read_scores(summaries, path(s)) for s in SPLITS if path(s).exists()}
                       for path in (folder.floor_scores, folder.oracle_scores))
    references = _read_references(folder, scores, summaries)
    summaries.keep()
    best = _best(folder, {e: s for (split, e), s in scores.items() if split == "val"}, missing)
    epochs = _epochs(folder, train, scores, references, best)
    missing += _run_holes(scores, floors, references, epochs, best)
    missing += [f"epoch {e.epoch:02d}, {hole}" for e in epochs for hole in e.missing]
    status, planned = "unknown" if verdict.state == "new" else verdict.state, state.epochs
    why = verdict.why
    if train and planned and len(train) < planned:
        missing.append(f"{planned - len(train)} of {planned} epochs: not trained, the run is "
                       f"{status}" + f" ({why})" * bool(why))
    return Run(name, folder, status, why, planned, epochs, best, floors, oracles, references,
               tuple(missing), read_cpu_hours(folder))


def numbers(value: Any, where: str) -> Dict[str, float]:
    """The finite numbers of a JSON object: a null or NaN is an absent value."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object of numbers; write the file again")
    if set(map(type, value.values())) == {float} and math.isfinite(sum(value.values())):
        return value  # as nearly all are: 1,000 runs have half a million numbers
    return {str(k): v for k, v in value.items() if is_number(v)}


def _read_train(folder: RunDir, missing: List[str]) -> Dict[int, Dict[str, float]]:
    rows: Dict[int, Dict[str, float]] = {}
    for row in read_jsonl(folder.train_log):
        values = numbers(row, f"each line of {folder.train_log}")
        if not isinstance(values.get("epoch"), int) or not 0 <= values["epoch"] < MOST_EPOCHS:
            # Each number up to the last is a row: of 10^9 they would fill the memory.
            raise UserError(f"{folder.train_log} has a line without an epoch number below "
                            f"{MOST_EPOCHS:,}; write it again")
        epoch = int(values.pop("epoch"))
        if epoch in rows:
            missing.append(f"train.jsonl: epoch {epoch:02d} is there twice; the last line counts")
        rows[epoch] = values
    if not rows:
        missing.append("train.jsonl: no trained epoch")
    return rows


def _read_scores(summaries: Summaries, path: Path) -> Scores:
    value = summaries.of(path)
    failed = value.get("failed") or {}
    metrics = numbers(value.get("metrics", {}), f"'metrics' of {path}")
    if not isinstance(failed, dict):
        raise UserError(f"'failed' of {path} must be an object of metric: why; score it again")
    lost = {name: "it is not a number" for name in value.get("metrics", {}) if name not in metrics}
    captions, references = value.get("captions"), value.get("references")
    captions = captions if isinstance(captions, dict) else {}
    return Scores(
        metrics, {**lost, **{str(k): str(v) for k, v in failed.items()}},
        _whole(value.get("pictures")), str(value.get("caption", "")), _cut_to(value),
        _read_intervals(value.get("intervals")),
        {key: captions[key] for key in CAPTION_COLUMNS if is_number(captions.get(key))},
        str(captions.get("most_frequent", "")),
        references if isinstance(references, dict) and "sha256" in references else {})


def _read_intervals(value: Any) -> Dict[str, Tuple[float, float]]:
    """Those that are two numbers; an older file has none."""
    if not isinstance(value, dict):
        return {}
    pairs = {name: ends for name, ends in value.items()
             if isinstance(ends, list) and len(ends) == 2}
    low, high = (numbers({name: ends[i] for name, ends in pairs.items()}, "intervals")
                 for i in (0, 1))
    return {name: (low[name], high[name]) for name in pairs if name in low and name in high}


def _cut_to(value: Mapping[str, Any]) -> str:
    units = [unit for unit in ("tokens", "words") if _whole(value.get(f"max_{unit}"))]
    return f"{value[f'max_{units[0]}']} {units[0]}" if units else ""


def _whole(value: Any) -> Optional[int]:
    return value if isinstance(value, int) else None


def _read_references(folder: RunDir, scores: Dict[Tuple[str, int], Scores],
                     summaries: Summaries) -> Dict[str, Dict[str, Any]]:
    """Hashes and, where the file is there, number of pictures of each split's references."""
    found: Dict[str, Dict[str, Any]] = {}
    for split in SPLITS:
        said = [s.references for (one, _), s in scores.items() if one == split and s.references]
        if folder.references(split).exists():
            found[split] = summaries.references(folder.references(split))
        elif said:
            found[split] = said[-1]
    return found


def _best(folder: RunDir, scores: Dict[int, Scores], missing: List[str]) -> Optional[Best]:
    """What best.json says, else the rule applied to the val scores that are there."""
    said = read_best(folder)
    rule = said.rule if said and said.rule else configured_rule(folder)
    values = {epoch: value for epoch, value in
              ((e, rule_value(s.metrics, rule)) for e, s in scores.items()) if value is not None}
    top = choose_best(values)
    if said is None:
        return None if top is None else Best(top, rule, values[top])
    epoch = said.epoch
    if epoch not in values:
        missing.append(f"best.json names epoch {epoch:02d}, whose val scores are not there")
    elif top is not None and values[top] > values[epoch]:
        missing.append(f"best.json names epoch {epoch:02d}, but by its rule ({rule}) epoch "
                       f"{top:02d} is better now; score the run again to bring it up to date")
    return Best(epoch, rule, values.get(epoch))


# Holes -------------------------------------------------------------------------------------


def _epochs(folder: RunDir, train: Dict[int, Dict[str, float]],
            scores: Dict[Tuple[str, int], Scores], references: Dict[str, Dict[str, Any]],
            best: Optional[Best]) -> Tuple[Epoch, ...]:
    predicted = {(r.split, r.epoch) for r in folder.predicted()}
    metrics = {split: {m: None for (s, _), v in scores.items() if s == split for m in v.metrics}
               for split in SPLITS}
    numbers = {*train, *(e for _, e in scores), *(e for _, e in predicted)}
    rows = []
    for epoch in sorted({*numbers, *range(max(train, default=-1) + 1)}):
        found = {s: value for (s, e), value in scores.items() if e == epoch}
        captioned = tuple(sorted(s for s, e in predicted if e == epoch))
        holes = ([] if epoch in train or not train else ["train: not in train.jsonl"])
        if epoch in train and "loss" not in train[epoch]:
            holes.append("train: no loss")
        for split in SPLITS:
            # Test is usually captioned at the best epoch only: elsewhere it is not missed.
            wanted = split == "val" or split in captioned or split in found or (
                best is not None and best.epoch == epoch and any(s == split for s, _ in predicted))
            if wanted:
                holes += [f"{split}: {hole}" for hole in _score_holes(
                    found.get(split), split in captioned, metrics[split],
                    references.get(split, {}))]
        rows.append(Epoch(epoch, train.get(epoch, {}), found, captioned, tuple(holes)))
    return tuple(rows)


def _score_holes(scores: Optional[Scores], captioned: bool, metrics: Iterable[str],
                 references: Dict[str, Any]) -> List[str]:
    if scores is None:
        return ["captions are there, not scored" if captioned else "not captioned"]
    holes = [f"{metric} failed: {why}" for metric, why in sorted(scores.failed.items())]
    excused = {name.lower() for name in scores.failed}
    for metric in metrics:
        # 'bleu' covers Bleu_1 to Bleu_4.
        if metric not in scores.metrics and not {
                metric.lower(), metric.lower().split("_")[0]} & excused:
            holes.append(f"{metric} is not in the score file, which does not say why")
    pictures = references.get("pictures")
    if pictures and scores.pictures is not None and scores.pictures != pictures:
        holes.append(f"{scores.pictures} of {pictures} pictures scored")
    elif scores.references and not same_references(scores.references, references):
        holes.append("scored against other references than the run has now; score it again")
    return holes


def _run_holes(scores: Dict[Tuple[str, int], Scores], floors: Dict[str, Scores],
               references: Dict[str, Dict[str, Any]], epochs: Sequence[Epoch],
               best: Optional[Best]) -> List[str]:
    holes = []
    for split in [s for s in SPLITS if any(key[0] == s for key in scores)]:
        if split not in floors:
            holes.append(f"{split}: no floor (scores/floor_{split}.json)")
        if split not in references:
            holes.append(f"{split}: no references/{split}.json, so whether other runs' scores "
                         "compare with these is not known")
        holes += [f"{split}, floor: {metric} failed: {why}" for metric, why
                  in sorted(floors.get(split, Scores({}, {})).failed.items())]
    if best is None:
        holes.append("no best epoch: none has all the val scores that the rule needs")
    if any(e.train and "seconds" not in e.train for e in epochs):
        holes.append("training time: an epoch's seconds are not known")
    return holes
