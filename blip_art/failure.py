"""Why a run has failed, in its state.json: by the rank that knows, or by who started the ranks.

    write_failure(run, "train", Failure(1, EXIT_FAILED, "rank 1: …"))      in a rank
    with run_note(argv) as note: …; write_killed(note, 1, signal.SIGKILL)    around the ranks
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Sequence, Union

from blip_art.describe import describe_exit, describe_signal
from blip_art.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from blip_art.files import RunDir, read_as_shown, read_json, write_json
from blip_art.run_state import State, is_alive, is_finished, read_state, this_start

# A file in which ranks note which run is theirs, for the process that started them.
NOTE = "BLIP_ART_RUN_NOTE"
# Signals that ask to stop: what ends by one has not failed.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_CAPTIONS = "captions have failed: "
# What the other ranks say of one that is gone; who started it knows more.
LOST = "ended without a message (killed? often there is not enough memory)"
# As much of a log's end as can hold its last error line.
_TAIL_BYTES = 1 << 14


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
    write_json(run.state, {"state": state.name, "why": state.why, **this_start(),
                           **{key: value for key, value in epochs.items() if value is not None}})


def _is_trained(run: RunDir) -> bool:
    return bool(run.saved_checkpoints() or run.saved_epochs())


def note_run(run: RunDir, stage: str) -> None:
    """Tell who started this rank which run is its own."""
    if NOTE in os.environ:
        _write_note(os.environ[NOTE], run, stage)


def _write_note(note: Union[str, Path], run: RunDir, stage: str, is_open: bool = True) -> None:
    write_json(note, {"run": str(run.path.resolve()), "stage": stage, "is_open": is_open,
                      "state_ns": _changed_ns(run)}, durable=False)


@contextlib.contextmanager
def run_note(argv: Sequence[str] = ()) -> Iterator[Path]:
    """A note for the ranks that are started inside the block.

    Args:
        argv: their command, which names the run: one may be killed before it notes anything.
    """
    with tempfile.TemporaryDirectory(prefix="blip_art_ranks_") as folder:
        note = Path(folder, "note.json")
        named = named_run(argv)
        if named:
            _write_note(note, RunDir(named["run"]), named["stage"], is_open=False)
        os.environ[NOTE] = str(note)
        try:
            yield note
        finally:
            del os.environ[NOTE]


def named_run(argv: Sequence[str]) -> Dict[str, str]:
    """The run folder and the stage of a command of ranks; {} where it does not name them."""
    words = list(argv)
    stages = [stage for stage in ("train", "predict") if f"blip_art.{stage}" in words]
    folders = [words[place + 1] for place, word in enumerate(words[:-1])
               if word in ("--run", "--run-dir")]
    return {"run": folders[-1], "stage": stages[0]} if stages and folders else {}


def write_killed(note: Path, rank: int, number: int) -> str:
    """Record that a rank was ended by a signal, of which it could not tell; returns the reason.

    Where a rank has recorded a failure before, that is the reason: NCCL aborts a process whose peer
    has ended. But a SIGKILL is the cause, whatever error it led to elsewhere.
    """
    why = f"rank {rank} was {describe_signal(number)}"
    if number not in STOP_SIGNALS and note.exists():
        noted = read_json(note)
        run = RunDir(noted["run"])
        first = _first_reason(run) if _changed_ns(run) != noted["state_ns"] else ""
        if first and LOST not in first and number != signal.SIGKILL:
            return first
        if noted["is_open"] or _may_fail(run, noted["stage"]):
            write_failure(run, noted["stage"], Failure(rank, EXIT_FAILED, why))
    return why


def write_unsaid(note: Path, code: int, log: Path) -> None:
    """Record why a command has failed whose ranks ended before they could: by its log's last error.

    Without it the run would keep the state of an earlier start.
    """
    with contextlib.suppress(UserError, OSError):
        noted = read_json(note)
        run = RunDir(noted["run"])
        if _changed_ns(run) == noted["state_ns"] and _may_fail(run, noted["stage"]):
            lines = read_as_shown(log)[-_TAIL_BYTES:].splitlines()
            errors = [line[len("error: "):] for line in lines if line.startswith("error: ")]
            write_failure(run, noted["stage"], Failure(
                0, EXIT_FAILED, errors[-1] if errors else describe_exit(code)))


def _may_fail(run: RunDir, stage: str) -> bool:
    """Whether a run has failed with a command that did not come to open it: a training that another
    process is at, or that is finished, has not. Of captions write_failure knows."""
    return stage == "predict" or not (is_finished(run) or is_alive(run))


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
