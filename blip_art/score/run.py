"""Scores what is unscored in a run folder: every epoch, floor and oracle, and the best epoch.

    python -m blip_art.score --run runs/caption_art
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set

from blip_art.config import METRIC_NAMES, Config, load_run_config
from blip_art.errors import UserError
from blip_art.files import Result, RunDir, read_json, write_json
from blip_art.run_state import (
    BEST_RULES,
    Best,
    choose_best,
    is_number,
    read_best,
    rule_value,
    sha256_of,
)
from blip_art.score import baselines
from blip_art.score.coco import read_captions, read_references
from blip_art.score.engine import Engine
from blip_art.score.limits import Limit, token_limit
from blip_art.score.record import record
from blip_art.score.references import references_hashes
from blip_art.score.summary import Summaries, is_whole, summary_first


def score_run(run: RunDir, engine: Engine, metrics: Sequence[str] = ()) -> List[Path]:
    """Score the run's unscored predictions, floors and oracles and choose the best epoch.

    Returns:
        The score files that were written.

    Raises:
        UserError: no such run, or a file in it cannot be used; what can be scored is, first.
    """
    config = run_config(run)
    metrics = metrics or config.score.metrics
    summaries = Summaries(run)
    written: List[Path] = []
    refused: List[str] = []
    for split in dict.fromkeys(result.split for result in run.predicted()):
        try:
            scorer = SplitScorer(run, config, split, engine, metrics, summaries)
        except UserError as error:
            refused.append(str(error))
            continue
        epochs = [partial(scorer.epoch, result) for result in run.predicted()
                  if result.split == split]
        # The oracle last: it says least, and long captions are the dearest.
        steps: List[Callable[[], Optional[Path]]] = [scorer.floor, *epochs, scorer.oracle]
        for step in steps:
            try:
                path = step()
                written += [path] if path else []
            except UserError as error:
                refused.append(str(error))
    write_best(run, config.score.best, summaries)
    summaries.keep()
    if refused:
        more = f"; and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise UserError(f"{refused[0]}{more}")
    return written


def run_config(run: RunDir) -> Config:
    """The configuration of a run.

    Raises:
        UserError: the folder is no run's.
    """
    if not run.config.is_file():
        raise UserError(f"{run.path} is no run folder (it has no config.yaml); "
                        "give the folder that training wrote")
    return load_run_config(run.config)


class SplitScorer:
    """Writes the score files of one split that are not there yet, or not of these texts."""

    def __init__(self, run: RunDir, config: Config, split: str, engine: Engine,
                 metrics: Sequence[str], summaries: Summaries) -> None:
        self._run, self._config, self._split = run, config, split
        self._engine, self._metrics, self._summaries = engine, metrics, summaries
        self._references = read_references(run.references(split))
        self._hash = references_hashes(self._references)["sha256"]
        summaries.references(run.references(split))  # kept for the report
        self._limit = self._find_limit()

    def epoch(self, result: Result) -> Optional[Path]:
        """Captions of one epoch."""
        path = self._run.scores(self._split, result.epoch)
        head = {"split": self._split, "epoch": result.epoch,
                "predictions": sha256_of(result.path)}
        return self._score(path, head, lambda: read_captions(result.path))

    def floor(self) -> Optional[Path]:
        """The most frequent training caption for every picture."""
        path = self._run.floor_scores(self._split)
        if self._is_current(path, {"split": self._split}):
            return None
        pairs = baselines.training_list(self._run, self._config)
        if pairs is None:
            say(f"no floor for {self._split}: the training captions are not at "
                f"{Path(self._config.data.annotations, self._config.data.train)}")
            return None
        caption = baselines.most_frequent_caption(pairs)
        return self._score(path, {"split": self._split, "caption": caption},
                           lambda: baselines.floor_captions(self._references, caption))

    def oracle(self) -> Optional[Path]:
        """Each picture's first reference, cut to the tokens a caption can have."""
        limit = self._limit
        if limit is None:
            return None
        return self._score(
            self._run.oracle_scores(self._split),
            {"split": self._split, "max_tokens": limit.most},
            lambda: baselines.oracle_captions(self._references, limit))

    def _find_limit(self) -> Optional[Limit]:
        """None, and a line, where the run's tokenizer is not: scores do not need it."""
        try:
            return token_limit(self._run, self._config)
        except UserError as error:
            say(f"no oracle for {self._split}: {error}")
            return None

    def _score(self, path: Path, head: Dict[str, Any],
               captions: Callable[[], Mapping[str, str]]) -> Optional[Path]:
        if self._is_current(path, head):
            return None
        # What the file has is scored again, not lost, when other metrics are asked for.
        held = self._held(path, head)
        say(f"scoring {path.stem}" + (f": every caption is {head['caption']!r}"
                                      if "caption" in head else ""))
        found = record(self._engine, self._references, captions(),
                       [name for name in METRIC_NAMES if name in (*self._metrics, *held)],
                       limit=self._limit)
        for name, why in found["failed"].items():
            if name in held:
                raise UserError(f"{path} stays as it was: {name}, which it has, failed this time "
                                f"({why}); run it again")
        write_json(path, summary_first({**head, **found}))
        self._summaries.of(path)
        self._summaries.keep()
        for name, why in found["failed"].items():
            say(f"{path.name}: {name} failed: {why}")
        return path

    def _is_current(self, path: Path, head: Mapping[str, Any]) -> bool:
        """Whether the file is of these captions and references and has all metrics."""
        return set(self._metrics) <= self._held(path, head)

    def _held(self, path: Path, head: Mapping[str, Any]) -> Set[str]:
        """The metrics that the file has of these captions and references."""
        stored = summary_or_none(self._summaries, path)
        if (stored is None or not stored.items() >= head.items()
                # The oracle is each picture's first reference: here their order counts.
                or (stored.get("references") or {}).get("sha256") != self._hash):
            return set()
        return set(stored.get("seconds") or ()) & set(METRIC_NAMES) - set(stored["failed"])


def read_scores(path: Path) -> Optional[Dict[str, Any]]:
    """The content of a score file; None where there is no whole one, which is then made again."""
    try:
        stored = read_json(path)
    except UserError:
        return None
    return stored if is_whole(stored) else None


def summary_or_none(summaries: Summaries, path: Path) -> Optional[Dict[str, Any]]:
    """The same without its single pictures."""
    try:
        stored = summaries.of(path)
    except UserError:
        return None
    return stored if is_whole(stored) else None


def write_best(run: RunDir, rule: str, summaries: Optional[Summaries] = None) -> Optional[Best]:
    """Write best.json: the validation epoch with the highest sum of the rule's metrics."""
    summaries = summaries or Summaries(run)
    values: Dict[int, float] = {}
    for result in run.scored():
        if result.split != "val":
            continue
        stored = summary_or_none(summaries, result.path)
        found = stored["metrics"] if stored else {}
        value = rule_value(found, rule)
        if value is None:
            lacking = [name for name in BEST_RULES[rule] if not is_number(found.get(name))]
            say(f"{result.path.name} has no {', '.join(lacking)}: "
                f"not considered for the best epoch by '{rule}'")
            continue
        values[result.epoch] = value
    epoch = choose_best(values)
    if epoch is None:
        return None
    best = Best(epoch, rule, values[epoch])
    if not _is_written(run, best):
        write_json(run.best, best._asdict())
    return best


def _is_written(run: RunDir, best: Best) -> bool:
    try:
        return read_best(run) == best
    except UserError:
        return False  # damaged: it is made again


def say(line: str) -> None:
    """To whoever watches, or the job's log."""
    print(line, file=sys.stderr, flush=True)
