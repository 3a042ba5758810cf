"""What a run has taken, for after it: memory, time without data, the CPU-hours of its scores.

    describe(run, jobs, accounts).text == "… 3 % of the time waiting for data, scoring 3.2 CPU-h"
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from blip_art.cluster.record import Submitted
from blip_art.cluster.slurm import AccountRow
from blip_art.errors import UserError
from blip_art.files import RunDir, read_jsonl
from blip_art.run_state import is_number

_SCORING = ("follow", "score", "rescore")


class Usage(NamedTuple):
    """What is not known is None; old runs and sites without accounts know less."""

    gpu_memory_gb: Optional[float] = None
    """Peak of one GPU, in 10^9 bytes as all of these."""
    host_memory_gb: Optional[float] = None
    """Peak of all ranks and their loader processes together, as training saw it."""
    task_memory_gb: Optional[float] = None
    """Peak of one task of the training, as Slurm saw it: what `mem_gb` must hold."""
    data_wait_share: Optional[float] = None
    """Of the time of all epochs that say so."""
    scoring_cpu_hours: Optional[float] = None
    """CPUs that the scoring jobs held, times how long."""

    @property
    def numbers(self) -> Optional[Dict[str, Any]]:
        """For programs; None where nothing is known."""
        return self._asdict() if any(value is not None for value in self) else None

    @property
    def text(self) -> str:
        """What is known, in words."""
        memory = self.host_memory_gb if self.task_memory_gb is None else self.task_memory_gb
        parts = [f"{self.gpu_memory_gb:.1f} GB of a GPU" if self.gpu_memory_gb else "",
                 f"{memory:.1f} GB of memory" if memory else "",
                 "" if self.data_wait_share is None else
                 f"{100 * self.data_wait_share:.0f} % of the time waiting for data",
                 "" if self.scoring_cpu_hours is None else
                 f"scoring {self.scoring_cpu_hours:.1f} CPU-h"]
        return ", ".join(filter(None, parts))


def describe(run: RunDir, jobs: Sequence[Submitted],
             accounts: Optional[Mapping[str, AccountRow]]) -> Usage:
    """What train.jsonl and Slurm's accounts say."""
    rows = _read_epochs(run)
    known = [(job.stage, (accounts or {}).get(job.job_id)) for job in jobs]
    tasks = [row.task_bytes / 1e9 for stage, row in known if row and stage == "train"]
    scoring = [row.cpu_seconds / 3600 for stage, row in known if row and stage in _SCORING]
    waited = [(row["data_wait_share"] * row["seconds"], row["seconds"]) for row in rows
              if is_number(row.get("data_wait_share")) and is_number(row.get("seconds"))]
    trained_s = sum(seconds for _, seconds in waited)
    return Usage(_highest(rows, "gpu_memory_gb"), _highest(rows, "host_memory_gb"),
                 max(tasks, default=0.0) or None,
                 sum(one for one, _ in waited) / trained_s if trained_s else None,
                 sum(scoring) if scoring else None)


def _read_epochs(run: RunDir) -> List[Dict[str, Any]]:
    """The lines of train.jsonl; whoever shows the run says what is wrong with them."""
    try:
        return [row for row in read_jsonl(run.train_log) if isinstance(row, dict)]
    except UserError:
        return []


def _highest(rows: Sequence[Mapping[str, Any]], key: str) -> Optional[float]:
    """None where no epoch says so, or only 0, as a GPU's memory is on a CPU."""
    return max((row[key] for row in rows if is_number(row.get(key))), default=0.0) or None
