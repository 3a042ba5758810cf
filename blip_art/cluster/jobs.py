"""The callables that are submitted: each runs one command to its end and returns its exit code.

    executor.submit(run_job, Job(name="score", argv=(...), env={...}, cwd="/home/me", log="a.log"))

They live here because a function of `__main__` (launch.py) is pickled as bytecode, which breaks
between the login node's Python and the job's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple

from blip_art.errors import EXIT_FAILED, EXIT_INTERRUPTED

POLL_S = 0.1
LEFTOVERS_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Job:
    """One command, ready to run. Holds plain values only: it is pickled."""

    name: str
    """What the job is for; also the first part of its log's name."""
    argv: Tuple[str, ...]
    """The command, without a shell."""
    env: Dict[str, str] = field(default_factory=dict)
    """What is set on top of the environment the job starts in."""
    cwd: str = "."
    """Working directory: the user's, since paths in a configuration are relative to it."""
    log: str = ""
    """File the output is appended to; '' lets the command use the terminal itself."""
    columns: int = 0
    """Width of the terminal that watches the log; 0 if none does (no progress bars then)."""
    layout: str = ""
    """How ranks start in a Slurm step: 'node' (torchrun, once a node), 'gpu' (each task is a
    rank); '' for a command without ranks."""
    state: str = ""
    """state.json of a run whose command ends with 0 when it was stopped, too."""
    grace_s: float = 60.0
    """Time to stop in a resumable way before the command is ended by force."""


def run_job(job: Job) -> int:
    """Run the command and return its exit code; 130 if it was stopped on request."""
    if not job.log:
        return exit_code(_run_attached(job))
    stop = Stop(job.grace_s)
    signal.signal(signal.SIGTERM, stop.note)
    # Ctrl-C, or a terminal that is closed, is the launcher's business, which then sends SIGTERM. An
    # empty handler, not SIG_IGN: that one the command would inherit.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda signum, frame: None)
    _adopt_orphans()
    with open(os.path.join(job.cwd, job.log), "ab", buffering=0) as log:
        code = _run_logged(job, log, stop)
    _end_leftovers(time.monotonic() + LEFTOVERS_S)
    return EXIT_INTERRUPTED if stop.requests else exit_code(code)


def _environment(job: Job) -> Dict[str, str]:
    return {**os.environ, **job.env}


def _run_attached(job: Job) -> int:
    """For `--cluster debug`: the command has the terminal, a debugger inside it works."""
    child = subprocess.Popen(job.argv, cwd=job.cwd, env=_environment(job))
    while True:
        # Ctrl-C reaches the command too, which stops by itself.
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()


def _run_logged(job: Job, log: BinaryIO, stop: Stop) -> int:
    with _output(job.columns, log) as (target, pump):
        try:
            child = subprocess.Popen(job.argv, cwd=job.cwd, env=_environment(job),
                                     stdin=subprocess.DEVNULL, stdout=target, stderr=target,
                                     start_new_session=True)
        except OSError as error:
            log.write(f"error: cannot start {job.argv[0]}: {error.strerror}\n".encode())
            return EXIT_FAILED
        while child.poll() is None:
            pump(POLL_S)
            stop.enforce(child.pid)
        pump(0)
    return child.returncode


@contextlib.contextmanager
def _output(columns: int, log: BinaryIO) -> Iterator[Tuple[int, Callable[[float], None]]]:
    """Yield where the command writes, and what to call while waiting so that it is logged.

    Programs draw progress bars on a terminal only, so when somebody watches, the command gets a
    pseudo-terminal of the watcher's width.
    """
    if not columns:
        yield log.fileno(), time.sleep
        return
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    modes = termios.tcgetattr(slave)
    modes[1] &= ~termios.OPOST  # bytes go to the log as they were written
    termios.tcsetattr(slave, termios.TCSANOW, modes)

    def pump(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            log.write(os.read(master, 65536))
    try:
        yield slave, pump
    finally:
        os.close(slave)
        os.close(master)


class Stop:
    """Ends a command in steps: Ctrl-C, then SIGTERM, then SIGKILL.

    The signal handler only notes the request; `enforce`, called between waits, acts on it. Each
    further request skips the wait for the next step.
    """

    def __init__(self, grace_s: float) -> None:
        self.requests = 0
        self._taken = 0
        self._deadline = 0.0
        self._steps = ((signal.SIGINT, grace_s), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))

    def note(self, signum: int, frame: object) -> None:
        self.requests += 1

    def enforce(self, pid: int) -> None:
        due = self.requests > self._taken or time.monotonic() >= self._deadline
        if not self.requests or not due or self._taken == len(self._steps):
            return
        signum, patience_s = self._steps[self._taken]
        self._taken += 1
        self._deadline = time.monotonic() + patience_s
        if signum == signal.SIGINT:
            # As a terminal does. torchrun's workers are in groups of their own: it tells them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signum)
        else:
            signal_all(descendants(os.getpid()), signum)


def descendants(pid: int) -> List[int]:
    """Living processes below `pid`, read from /proc; empty where there is none."""
    children: Dict[int, List[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The command's name, in brackets, may itself hold spaces and brackets.
            state, parent, *_ = entry.read_text(errors="replace").rpartition(")")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def signal_all(pids: List[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _adopt_orphans() -> None:
    """Make processes whose parent has died our children (Linux), so that none is left behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_leftovers(deadline: float) -> None:
    """Wait for what the command left running, then kill it; bury the dead."""
    while descendants(os.getpid()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    signal_all(descendants(os.getpid()), signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def exit_code(returncode: Optional[int]) -> int:
    """The shell's convention: killed by signal 9 is 137."""
    assert returncode is not None
    return 128 - returncode if returncode < 0 else returncode
