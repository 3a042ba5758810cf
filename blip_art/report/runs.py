"""A run folder as the report knows it: epochs, scores, the rows around them, every hole.

    run.best_scores("val").metrics["CIDEr"]; see read_runs in blip_art.report.tables
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from blip_art.files import RunDir
from blip_art.run_state import Best

SPLITS = ("val", "test")
METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
CAPTION_COLUMNS = ("empty_share", "unique_ratio", "most_frequent_share", "mean_words")


@dataclass(frozen=True)
class Scores:
    """One score file without its per-image part."""

    metrics: Dict[str, float]
    failed: Dict[str, str]
    pictures: Optional[int] = None
    caption: str = ""
    """The constant caption, of a floor."""
    cut_to: str = ""
    """'16 tokens': what references were cut to, of an oracle; older ones were cut to words."""
    intervals: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    """The middle 95 % of each metric over draws of pictures."""
    shares: Dict[str, float] = field(default_factory=dict)
    """What the captions are like: CAPTION_COLUMNS."""
    most_frequent: str = ""
    """The caption that most pictures got."""
    references: Dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Hashes of what the captions were scored against; an older file may not say."""


@dataclass(frozen=True)
class Epoch:
    """What is known of one epoch; what is not known is absent, never a zero."""

    epoch: int
    train: Dict[str, float]
    scores: Dict[str, Scores]
    predicted: Tuple[str, ...]
    """Splits that have captions."""
    missing: Tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    name: str
    folder: RunDir
    state: str
    why: str
    epochs_planned: Optional[int]
    epochs: Tuple[Epoch, ...]
    best: Optional[Best]
    floors: Dict[str, Scores]
    """One constant caption, by split."""
    oracles: Dict[str, Scores]
    """The references themselves, cut to what captions can be."""
    references: Dict[str, Dict[str, Any]]
    """Hashes of the references of each split: equal ones make scores comparable."""
    missing: Tuple[str, ...]
    """Everything that is missing, the epochs' holes included."""
    scoring_cpu_hours: Optional[float] = None
    """Of all that scored it; see score/cpu_time.py."""

    def best_scores(self, split: str) -> Optional[Scores]:
        """Scores of the epoch that is shown."""
        epoch = self.shown_epoch(split)
        return epoch.scores.get(split) if epoch else None

    def shown_epoch(self, split: str) -> Optional[Epoch]:
        """The best epoch; of test, where that is not scored, the newest one that is: somebody asked
        for it ('launch.py eval --epoch'), or the run has nothing else."""
        best = [e for e in self.epochs if self.best and e.epoch == self.best.epoch]
        if split == "val" or any(split in e.scores for e in best):
            return best[0] if best else None
        scored = [e for e in self.epochs if split in e.scores]
        return scored[-1] if scored else None

    @property
    def seconds(self) -> Optional[float]:
        """Training time; None when one epoch's is unknown, because a part is no total."""
        known = [e.train["seconds"] for e in self.epochs if "seconds" in e.train]
        trained = [e for e in self.epochs if e.train]
        return sum(known) if known and len(known) == len(trained) else None
