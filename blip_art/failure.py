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
from typing import Iterator

from blip_art.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from blip_art.files import RunDir, read_json, write_json
from blip_art.run_state import State, read_state

# A file in which ranks note which run is theirs, for the process that started them.
NOTE = "BLIP_ART_RUN_NOTE"
# Signals that ask to stop: what ends by one has not failed.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_CAPTIONS = "captions have failed: "
# What the other ranks say of one that is gone; who started it knows more.
LOST = "ended without a message (killed? often there is not enough memory)"


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
    # OSError: even to look for a file may fail, on a network file system that is away.
    with contextlib.suppress(UserError, OSError):
        state = read_state(run) if stage == "predict" else State("")
        if state.name == "finished" and _is_trained(run):
            _write(run, state._replace(why=f"{_CAPTIONS}{failure.why}"))
        elif state.name != "running" and not (state.name and _is_trained(run)):
            _write(run, State("stopped" if failure.code == EXIT_INTERRUPTED else "failed",
                              failure.why))


def forget_failure(run: RunDir) -> None:
    """Captions are made: what write_failure said of earlier ones is over."""
    state = read_state(run)
    if state.why.startswith(_CAPTIONS):
        _write(run, state._replace(why=""))
    elif state.name in ("failed", "stopped") and not _is_trained(run):
        _write(run, State("finished"))


def _write(run: RunDir, state: State) -> None:
    epochs = {"epoch": state.epoch, "epochs": state.epochs}
    write_json(run.state, {"state": state.name, "why": state.why,
                           **{key: value for key, value in epochs.items() if value is not None}})


def _is_trained(run: RunDir) -> bool:
    return bool(run.saved_checkpoints() or run.saved_epochs())


def note_run(run: RunDir, stage: str) -> None:
    """Tell who started this rank which run is its own."""
    if NOTE in os.environ:
        write_json(os.environ[NOTE], {"run": str(run.path.resolve()), "stage": stage,
                                      "state_ns": _changed_ns(run)}, durable=False)


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
    """Record that a rank was ended by a signal, of which it could not tell; returns the reason.

    Where a rank has recorded a failure before, that is the reason: NCCL aborts a process whose peer
    has ended. But a SIGKILL is the cause, whatever error it led to elsewhere.
    """
    name = signal.Signals(number).name
    why = f"rank {rank} was ended by {name}"
    why += " (often: not enough memory)" if name == "SIGKILL" else ""
    if number not in STOP_SIGNALS and note.exists():
        noted = read_json(note)
        run = RunDir(noted["run"])
        first = _first_reason(run) if _changed_ns(run) != noted["state_ns"] else ""
        if first and LOST not in first and name != "SIGKILL":
            return first
        write_failure(run, noted["stage"], Failure(rank, EXIT_FAILED, why))
    return why


def _changed_ns(run: RunDir) -> int:
    """When state.json was written last, by the clock of its file system."""
    with contextlib.suppress(OSError):
        return run.state.stat().st_mtime_ns
    return 0


def _first_reason(run: RunDir) -> str:
    with contextlib.suppress(UserError, OSError):
        state = read_state(run)
        if state.name == "failed" or state.why.startswith(_CAPTIONS):
            return state.why.removeprefix(_CAPTIONS)
    return ""
