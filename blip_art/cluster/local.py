"""Runs jobs on this machine through submitit, and shows their output while they run.

    code = CLUSTERS["local"](job)
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List

from blip_art.cluster.jobs import POLL_S, Job, run_job
from blip_art.cluster.packages import describe_missing
from blip_art.cluster.plan import Place, import_environment, pick_gpus, visible_gpus
from blip_art.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from blip_art.score.corenlp import cache_folder

# submitit ends a local job after 2 minutes unless told otherwise.
TIMEOUT_MIN = 365 * 24 * 60
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def this_machine(python: str, code: Path, processes: int, attached: bool) -> Place:
    """The Place of a job on this machine; `processes` 0 means one a GPU."""
    gpus = visible_gpus()
    processes = processes or len(gpus) or 1
    cores = len(os.sched_getaffinity(0))
    columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else 0
    return Place(python=python, cwd=os.getcwd(), code=str(code),
                 cache=str(cache_folder().resolve()), processes=processes,
                 gpus=pick_gpus(gpus, processes), threads=max(1, cores // processes),
                 columns=columns, attached=attached)


def run_debug(job: Job) -> int:
    """Run a job inside this process, its command in this terminal."""
    submitit = import_submitit()
    with tempfile.TemporaryDirectory(prefix="blip_art_debug_") as folder:
        return int(submitit.DebugExecutor(folder).submit(run_job, job).result())


def run_local(job: Job) -> int:
    """Run a job with submitit's local executor; its output goes to stderr and to its log.

    Ctrl-C (or SIGTERM) asks the job to stop, a second one hurries it; the exit code is then 130.
    """
    submitit = import_submitit()
    log = Path(job.cwd, job.log)
    touch(log)
    folder = log.parent / "submitit"
    # Through sh, for env takes a path that has an equals sign in it for one more variable.
    python = ["env", *(f"{name}={value}" for name, value in _submitit_environment(job).items()),
              "sh", "-c", 'exec "$0" "$@"', sys.executable]
    executor = submitit.LocalExecutor(folder, python=shlex.join(python))
    executor.update_parameters(timeout_min=TIMEOUT_MIN, stderr_to_stdout=True)
    with _deaf_to_ctrl_c():
        handle = executor.submit(run_job, job)
    stops = follow(log, handle.done, lambda: os.kill(int(handle.job_id), signal.SIGTERM))
    code = EXIT_INTERRUPTED if stops else _result(handle, submitit)
    for left in folder.glob(f"{handle.job_id}_*"):
        left.unlink()
    return code


def follow(log: Path, done: Callable[[], bool], stop: Callable[[], None]) -> int:
    """Copy what is added to `log` to stderr until `done`; the number of times it was stopped."""
    stops = 0
    with open(log, "rb") as stream, noted(_STOP_SIGNALS) as notes:
        while True:
            finished = done()  # asked before reading, so that last words are not lost
            _copy(stream)
            if finished:
                return stops
            if len(notes) > stops:
                stops = len(notes)
                print("\nstopping the job in an orderly way; once more to hurry it"
                      if stops == 1 else "\nhurrying", file=sys.stderr)
                with contextlib.suppress(ProcessLookupError):
                    stop()
            time.sleep(POLL_S)


def explain(job: Job, code: int) -> None:
    """Tell on stderr how a job ended that did not succeed."""
    log = f"; its log: {job.log}" if job.log else ""
    if code == EXIT_INTERRUPTED:
        print(f"{job.name} stopped; run the same command again to go on{log}", file=sys.stderr)
    elif code != EXIT_USER_ERROR:  # a user's mistake has been told by the job, in one line
        print(f"error: {job.name} failed with exit code {code}, see the lines above{log}",
              file=sys.stderr)


def import_submitit() -> Any:
    """submitit, loaded only when something is submitted.

    Raises:
        UserError: this Python does not have it.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(describe_missing("submitit")) from error
    return submitit


def _submitit_environment(job: Job) -> Dict[str, str]:
    # The process that runs the job must find the snapshot's blip_art.cluster.jobs.
    return import_environment(job.env["PYTHONPATH"])


def _result(handle: Any, submitit: Any) -> int:
    try:
        return int(handle.result())
    except submitit.core.utils.UncompletedJobError:
        # Not the command but the process around it failed, which the command's log cannot tell.
        print(handle.stdout() or "", file=sys.stderr)
        return EXIT_FAILED


def touch(log: Path) -> None:
    """Make the log, empty, unless it is there.

    Raises:
        UserError: its folder cannot be written to.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise UserError(f"cannot write {log}: {error.strerror}; "
                        "free space or choose another folder") from error


def _copy(stream: BinaryIO) -> None:
    said = stream.read()
    if said:
        sys.stderr.buffer.write(said)
        sys.stderr.buffer.flush()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C and a closed terminal: the launcher decides how a job
    ends.

    submitit would kill a job one second after Ctrl-C, too soon to save anything.
    """
    old = {number: signal.signal(number, signal.SIG_IGN)
           for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def noted(signums: Any) -> Iterator[List[int]]:
    """Signals that arrive inside are only appended to the list; ignored ones stay ignored."""
    notes: List[int] = []
    old = {signum: signal.getsignal(signum) for signum in signums}
    for signum, handler in old.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(signum, lambda received, frame: notes.append(received))
    try:
        yield notes
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


CLUSTERS: Dict[str, Callable[[Job], int]] = {"local": run_local, "debug": run_debug}
