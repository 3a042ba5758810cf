"""Runs work in worker processes, each with a JVM: time limits, one replacement, no orphans.

    with Workers(setup, class_paths) as workers: workers.map("tokenize", texts, lambda text: 1.0)
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from blip_art.score.java import JavaSetup

START_LIMIT_S = 120.0
# Silence that is never normal, beside the time that the items may take.
PATIENCE_S = 120.0
# Beyond it a limit is none, and Python's clocks overflow; a parse of 30,000 words asks for more.
LONGEST_LIMIT_S = 30 * 86_400.0
# A worker that wanted to run and got less of a core than this was not hung, but kept waiting.
STARVED_SHARE = 0.2
LOOKS, LOOK_S = 10, 0.02
LOG_LINES = 40
# Slurm and Ctrl-C signal every process of a job; the parent decides what they mean.
JOB_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

OnValues = Callable[[List[Tuple[Any, Any]]], None]
"""Told of (item, value) as they come, some at a time."""


class MetricFailed(Exception):
    """A metric could not be computed: why, in one line. The others are still to be."""

    def __init__(self, why: str, items: Sequence[Any] = ()) -> None:
        super().__init__(why)
        self.items = list(items)
        """What could not be done twice; other items may have been left because of it."""


class WorkerLost(Exception):
    """The worker process died or went silent."""


class Limits:
    """How long a worker may be silent, and how long all of a call may take: both by the work."""

    def __init__(self, seconds: Sequence[float], patience_s: float) -> None:
        self._seconds = {n: min(value, LONGEST_LIMIT_S) for n, value in enumerate(seconds)}
        self._patience_s = patience_s
        # Twice the patience: the last item's silence is noticed as what it is.
        self.total_s = 2 * patience_s + min(sum(seconds), LONGEST_LIMIT_S)
        # Longest last; those that are done are dropped from the end when it is asked.
        self._by_length = sorted(self._seconds, key=lambda index: self._seconds[index])
        self.restart()

    def restart(self) -> None:
        """Count from now: Java's start has a limit of its own."""
        self._end = time.monotonic() + self.total_s

    def grant(self, seconds: float) -> None:
        """These were not the worker's to use."""
        self._end += seconds

    def finished(self, index: int) -> None:
        self._seconds.pop(index)

    def silence_s(self) -> float:
        """As long as the longest item that is left may take."""
        while self._by_length and self._by_length[-1] not in self._seconds:
            self._by_length.pop()
        longest = self._by_length[-1:]
        return self._patience_s + sum(self._seconds[index] for index in longest)

    def left_s(self) -> float:
        return self._end - time.monotonic()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; 0 if it is gone."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def state_of(pid: int) -> str:
    """A process's state, such as R (runs), S (sleeps), T (stopped) or Z (has ended); '' if gone."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return text.rpartition(")")[2].split()[0]
    return ""


def is_eager(pid: int) -> bool:
    """Whether one of its threads wants to run, in most of some looks; one that hangs sleeps."""
    eager = 0
    for _ in range(LOOKS):
        time.sleep(LOOK_S)
        for path in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                if path.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "R":
                    eager += 1
                    break
    return eager > LOOKS // 2


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Signals of the job wait; processes started meanwhile are deaf to them from the first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """One worker process. Not for several threads."""

    def __init__(self, setup: JavaSetup, class_paths: Mapping[str, List[str]],
                 environ: Mapping[str, str]) -> None:
        message = json.dumps({
            "libjvm": setup.libjvm, "version": setup.version, "options": setup.options(),
            "class_paths": dict(class_paths), "threads": setup.threads,
            "charts_mb": setup.charts_mb, "compiled": setup.compiled,
            "careful": setup.careful})
        # A session of its own: Ctrl-C at the terminal is the parent's, which then ends the worker.
        with _held_back():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "blip_art.score.worker", message], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                env=setup.environment(environ))
        self._answers: queue.SimpleQueue[Optional[Dict[str, Any]]] = queue.SimpleQueue()
        self._log: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        for target in (self._read_answers, self._read_log):
            threading.Thread(target=target, daemon=True).start()
        self._started = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, name: str, items: Sequence[Any], limits: Limits,
            on_values: Callable[[List[Tuple[int, Any]]], None],
            on_error: Callable[[int, str], None], soon: Sequence[str] = ()) -> None:
        """Do `name` for each item; load meanwhile what is needed `soon`.

        Raises:
            WorkerLost: it died, or took longer than its limits and was ended.
        """
        self._send({"do": name, "items": items, "soon": list(soon)})
        while True:
            answer = self._answer(limits)
            if "done" in answer:
                return
            if "failed" in answer:
                raise WorkerLost(answer["failed"])
            values, errors = answer.get("values", []), answer.get("errors", [])
            for index, _ in (*values, *errors):
                limits.finished(index)
            if values:
                on_values(values)
            for index, why in errors:
                on_error(index, why)

    def stop(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            # Closing flushes what was not sent, to nobody.
            with contextlib.suppress(OSError):
                pipe.close()

    def _send(self, request: Dict[str, Any]) -> None:
        # In a thread, so that a worker that does not read is noticed as a silent one is.
        line = json.dumps(request).encode() + b"\n"
        threading.Thread(target=self._write, args=(line,), daemon=True).start()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        # A dead worker's answers end too, which is told; stop() closes the pipe under a writer.
        with contextlib.suppress(ValueError, OSError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _answer(self, limits: Limits) -> Dict[str, Any]:
        extra_s = 0.0 if self._started else START_LIMIT_S
        while True:
            silence_s, left_s = limits.silence_s() + extra_s, limits.left_s() + extra_s
            wait_s, used_s = max(0.0, min(silence_s, left_s)), cpu_seconds(self.pid)
            try:
                answer = self._answers.get(timeout=wait_s)
                break
            except queue.Empty:
                if cpu_seconds(self.pid) - used_s < STARVED_SHARE * wait_s and is_eager(self.pid):
                    # Beside a training that takes all cores, say: slow, but not hung.
                    limits.grant(wait_s)
                    continue
                why = "stopped by a signal (SIGSTOP), " if state_of(self.pid) in ("T", "t") else ""
                raise WorkerLost(why + (
                    f"nothing for {silence_s:.0f} s" if silence_s <= left_s else
                    f"not ready after {limits.total_s + extra_s:.0f} s")) from None
        if answer is None:
            raise WorkerLost(self._last_words())
        if not self._started:
            self._started = True
            limits.restart()
        return answer

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        # The log's thread may be a moment behind the death.
        time.sleep(0.1)
        told = next((line for line in reversed(self._log) if line.strip()), "")
        return f"Java's process ended with {self._process.returncode}" + (told and f": {told}")

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        # stop() closes the pipe under a reader.
        with contextlib.suppress(ValueError, OSError):
            for line in self._process.stdout:
                self._answers.put(json.loads(line))
        self._answers.put(None)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self._process.stderr:
                self._log.append(line.decode("utf-8", "replace").rstrip())


class Workers:
    """A worker that is started when needed and replaced once in each call."""

    def __init__(self, setup: JavaSetup, class_paths: Mapping[str, List[str]],
                 environ: Mapping[str, str], patience_s: float = PATIENCE_S) -> None:
        self._setup, self._class_paths, self._environ = setup, class_paths, environ
        self._worker: Optional[Worker] = None
        self.patience_s = patience_s

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> Optional[int]:
        """The running worker's process id."""
        return self._worker.pid if self._worker else None

    def stop(self) -> None:
        if self._worker:
            self._worker.stop()
            self._worker = None

    def map(self, name: str, items: Sequence[Any], limit_s: Callable[[Any], float],
            on_values: OnValues = lambda values: None, soon: Sequence[str] = ()) -> List[Any]:
        """The value of each item; what a first worker leaves undone, a second one tries.

        The second has all of the job's memory and takes one item at a time.

        Args:
            limit_s: the longest an item may take, of which silence and the whole are bounded.
            soon: other names that will be asked for next.

        Raises:
            MetricFailed: an item failed twice; the others' values were told.
        """
        if not items:
            return []
        task = _Task(name, items, limit_s, on_values, soon)
        for first in (True, False):
            if not first:
                self.stop()
            lost = self._try(task, self._setup if first else self._setup.for_second_try())
            if not task.left():
                return [task.values[index] for index in range(len(items))]
        raise MetricFailed(task.failure(lost), [items[index] for index in task.culprits(lost)])

    def _try(self, task: _Task, setup: JavaSetup) -> str:
        """One worker's go at what is left; returns how it was lost, '' if it was not."""
        if self._worker is None:
            self._worker = Worker(setup, self._class_paths, self._environ)
        left = task.left()
        task.errors.clear()
        items = [task.items[index] for index in left]
        limits = Limits([task.limit_s(item) for item in items], self.patience_s)
        try:
            self._worker.run(task.name, items, limits,
                             lambda values: task.add([(left[n], value) for n, value in values]),
                             lambda n, why: task.errors.update({left[n]: why}), task.soon)
        except WorkerLost as error:
            if setup is self._setup:
                print(f"scoring: {error} (process {self.pid}); another takes its place",
                      file=sys.stderr)
            self.stop()
            return str(error)
        if setup is not self._setup:
            # The slow, careful setup is for this call alone.
            self.stop()
        return ""


class _Task:
    """What one call of `map` has to do, and what of it is done."""

    def __init__(self, name: str, items: Sequence[Any], limit_s: Callable[[Any], float],
                 on_values: OnValues, soon: Sequence[str]) -> None:
        self.name, self.items, self.limit_s, self.soon = name, items, limit_s, soon
        self._on_values = on_values
        self.values: Dict[int, Any] = {}
        self.errors: Dict[int, str] = {}

    def left(self) -> List[int]:
        return [index for index in range(len(self.items)) if index not in self.values]

    def add(self, values: List[Tuple[int, Any]]) -> None:
        self.values.update(values)
        self._on_values([(self.items[index], value) for index, value in values])

    def failure(self, lost: str) -> str:
        """Why, the first item it happened to, and to how many."""
        left, at = self.left(), self.culprits(lost)[0]
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        return f"{lost or self.errors[at]}, at {shorten(self.items[at])}{more}"

    def culprits(self, lost: str) -> List[int]:
        """The items that failed; a careful worker was lost at the first that is open."""
        left = self.left()
        if not lost:
            return left
        return [next((index for index in left if index not in self.errors), left[0])]


def shorten(item: Any) -> str:
    """An item for a message: quoted, printable, its first 80 characters."""
    text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    return repr(text if len(text) <= 80 else text[:77] + "...")
