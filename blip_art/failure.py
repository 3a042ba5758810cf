"""Why a run has failed, in its state.json: by the rank that knows, or by who started the ranks.

    write_failure(run, "train", Failure(1, EXIT_FAILED, "rank 1: …"))      in a rank
    with run_note() as note: …; write_killed(note, 1, signal.SIGKILL)    around the ranks
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator

from blip_art.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from blip_art.files import RunDir, read_json, write_json

# A file in which ranks note which run is theirs, for the process that started them.
NOTE = "BLIP_ART_RUN_NOTE"
# Signals that ask to stop: what ends by one has not failed.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_CAPTIONS = "captions have failed: "


@dataclass(frozen=True)
class Failure:
    """Why a rank ends before its time."""

    rank: int
    code: int
    why: str
    is_printed: bool = True
    """Whether the rank prints the reason itself; one that is gone does not."""


def write_failure(run: RunDir, stage: str, failure: Failure) -> None:
    """Say in state.json why a training ('train') or captioning ('predict') has ended early.

    A training stays what it is when captions of its weights fail. Nothing is raised where the file
    cannot be written: the error that is at hand is the one to print.
    """
    with contextlib.suppress(UserError):
        said = _state(run) if stage == "predict" else {}
        if said.get("state") == "finished" and _is_trained(run):
            write_json(run.state, {**said, "why": f"{_CAPTIONS}{failure.why}"})
        elif said.get("state") != "running" and not (said and _is_trained(run)):
            write_json(run.state, {
                "state": "stopped" if failure.code == EXIT_INTERRUPTED else "failed",
                "why": failure.why})


def forget_failure(run: RunDir) -> None:
    """Captions are made: what write_failure said of earlier ones is over."""
    said = _state(run)
    if str(said.get("why") or "").startswith(_CAPTIONS):
        write_json(run.state, {**said, "why": ""})
    elif said.get("state") in ("failed", "stopped") and not _is_trained(run):
        write_json(run.state, {"state": "finished", "why": ""})


def _state(run: RunDir) -> Dict[str, Any]:
    said = read_json(run.state) if run.state.exists() else {}
    return said if isinstance(said, dict) else {}


def _is_trained(run: RunDir) -> bool:
    return run.last_checkpoint.exists() or bool(run.saved_epochs())


def note_run(run: RunDir, stage: str) -> None:
    """Tell who started this rank which run is its own."""
    if NOTE in os.environ:
        write_json(os.environ[NOTE], {"run": str(run.path.resolve()), "stage": stage},
                   durable=False)


@contextlib.contextmanager
def run_note() -> Iterator[Path]:
    """A note for the ranks that are started inside the block."""
    with tempfile.TemporaryDirectory(prefix="blip_art_ranks_") as folder:
        note = Path(folder, "note.json")
        os.environ[NOTE] = str(note)
        try:
            yield note
        finally:
            del os.environ[NOTE]


def write_killed(note: Path, rank: int, number: int) -> str:
    """Record that a rank was ended by a signal, of which it could not tell; returns the reason."""
    name = signal.Signals(number).name
    why = f"rank {rank} was ended by {name}"
    why += " (often: not enough memory)" if name == "SIGKILL" else ""
    if number not in STOP_SIGNALS and note.exists():
        noted = read_json(note)
        write_failure(RunDir(noted["run"]), noted["stage"], Failure(rank, EXIT_FAILED, why))
    return why
