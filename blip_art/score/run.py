"""Scores what is unscored in a run folder: every epoch, the constant-caption floor, the best epoch.

    python -m blip_art.score --run runs/caption_art
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from blip_art.config import BEST_RULES, Config, load_config
from blip_art.errors import UserError
from blip_art.files import Result, RunDir, read_json, write_json
from blip_art.score.coco import read_captions, read_references
from blip_art.score.engine import Engine
from blip_art.score.scoring import Scores, score_with


def score_run(run: RunDir, engine: Engine, metrics: Sequence[str] = ()) -> List[Path]:
    """Score the run's unscored predictions and floors and choose the best epoch.

    Returns:
        The score files that were written.

    Raises:
        UserError: no such run, or a file in it cannot be used.
    """
    if not run.config.is_file():
        raise UserError(f"{run.path} is no run folder (it has no config.yaml); "
                        "give the folder that training wrote")
    config = load_config(run.config)
    metrics = metrics or config.score.metrics
    predicted = run.predicted()
    todo = [result for result in predicted if _is_open(run, result, metrics)]
    written = []
    for split in dict.fromkeys(result.split for result in predicted):
        references = read_references(run.references(split))
        written += _score_floor(run, config, split, references, engine, metrics)
        for result in todo:
            if result.split == split:
                _say(f"scoring {result.path.name}")
                scores = score_with(engine, references, read_captions(result.path), metrics)
                written.append(_write(run.scores(split, result.epoch), scores, {
                    "split": split, "epoch": result.epoch, "predictions": _hash(result.path)}))
    write_best(run, config.score.best)
    return written


def write_best(run: RunDir, rule: str) -> Optional[Dict[str, Any]]:
    """Write best.json: the validation epoch with the highest sum of the rule's metrics."""
    values: Dict[int, float] = {}
    for result in run.scored():
        if result.split != "val":
            continue
        found = read_json(result.path)["metrics"]
        lacking = [name for name in BEST_RULES[rule] if name not in found]
        if lacking:
            _say(f"{result.path.name} has no {', '.join(lacking)}: "
                 f"not considered for the best epoch by '{rule}'")
            continue
        values[result.epoch] = sum(found[name] for name in BEST_RULES[rule])
    if not values:
        return None
    epoch = max(sorted(values), key=lambda number: values[number])
    best = {"epoch": epoch, "rule": rule, "value": values[epoch]}
    if not run.best.exists() or read_json(run.best) != best:
        write_json(run.best, best)
    return best


def most_frequent_caption(path: Path) -> str:
    """The caption that most training pairs have; of equals the first.

    Raises:
        UserError: the file is no JSON list of pairs.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} must hold a list of {{image, caption}} to take the floor from")
    captions: Counter[str] = Counter()
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or "caption" not in row:
            raise UserError(f"{path}: entry {number} has no caption")
        texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
        captions.update(str(text) for text in texts)
    return captions.most_common(1)[0][0]


def _score_floor(run: RunDir, config: Config, split: str, references: Dict[str, List[str]],
                 engine: Engine, metrics: Sequence[str]) -> List[Path]:
    path = run.floor_scores(split)
    if path.exists() and _has_all(path, metrics):
        return []
    pairs = Path(config.data.annotations) / config.data.train
    if not pairs.is_file() or pairs.suffix != ".json":
        _say(f"no floor for {split}: the training captions are not at {pairs}")
        return []
    caption = most_frequent_caption(pairs)
    _say(f"scoring the floor of {split}: every caption is {caption!r}")
    scores = score_with(engine, references, dict.fromkeys(references, caption), metrics)
    return [_write(path, scores, {"split": split, "caption": caption})]


def _is_open(run: RunDir, result: Result, metrics: Sequence[str]) -> bool:
    """Whether these predictions have no scores, or not of this text, or not all metrics."""
    path = run.scores(result.split, result.epoch)
    if not path.exists() or not _has_all(path, metrics):
        return True
    return bool(read_json(path).get("predictions") != _hash(result.path))


def _has_all(path: Path, metrics: Sequence[str]) -> bool:
    stored = read_json(path)
    return all(name in stored.get("seconds", ()) and name not in stored.get("failed", ())
               for name in metrics)


def _write(path: Path, scores: Scores, head: Dict[str, Any]) -> Path:
    write_json(path, {**head, **scores.to_json()})
    for name, why in scores.failed.items():
        _say(f"{path.name}: {name} failed: {why}")
    return path


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
