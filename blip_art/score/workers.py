"""Runs work in worker processes, each with a JVM: time limits, one replacement, no orphans.

    with Workers(setup, class_paths) as workers: workers.map("tokenize", texts, lambda text: 60)
"""

from __future__ import annotations

import collections
import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from blip_art.score.java import JavaSetup

START_LIMIT_S = 120.0
LOG_LINES = 40


class MetricFailed(Exception):
    """A metric could not be computed: why, in one line. The others are still to be."""


class WorkerLost(Exception):
    """The worker process died or went silent."""


class Worker:
    """One worker process. Not for several threads."""

    def __init__(self, setup: JavaSetup, class_paths: Mapping[str, List[str]],
                 environ: Mapping[str, str]) -> None:
        message = json.dumps({
            "libjvm": setup.libjvm, "version": setup.version, "options": setup.options(),
            "class_paths": dict(class_paths), "threads": setup.threads})
        # A session of its own: Ctrl-C at the terminal is the parent's, which then ends the worker.
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

    def run(self, name: str, items: Sequence[Any], limit_s: Callable[[Any], float],
            on_value: Callable[[int, Any], None], on_error: Callable[[int, str], None]) -> None:
        """Do `name` for each item; the worker may be silent as long as its longest item may take.

        Raises:
            WorkerLost: it died, or was silent longer and was ended.
        """
        self._send({"do": name, "items": items})
        limits = {index: limit_s(item) for index, item in enumerate(items)}
        while True:
            answer = self._answer(max(limits.values(), default=60.0))
            if "done" in answer:
                return
            for index, value in answer.get("values", ()):
                limits.pop(index)
                on_value(index, value)
            for index, why in answer.get("errors", ()):
                limits.pop(index)
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
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerLost(self._last_words()) from None

    def _answer(self, limit_s: float) -> Dict[str, Any]:
        limit_s += 0 if self._started else START_LIMIT_S
        try:
            answer = self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise WorkerLost(f"nothing for {limit_s:.0f} s") from None
        if answer is None:
            raise WorkerLost(self._last_words())
        self._started = True
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
                 environ: Mapping[str, str]) -> None:
        self._setup, self._class_paths, self._environ = setup, class_paths, environ
        self._worker: Optional[Worker] = None

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
            on_done: Callable[[Any], None] = lambda item: None) -> List[Any]:
        """The value of each item; what a first worker leaves undone, a second one tries.

        The second has all of the job's memory and takes one item at a time.

        Raises:
            MetricFailed: an item failed twice.
        """
        values: Dict[int, Any] = {}
        errors: Dict[int, str] = {}
        if not items:
            return []
        for first in (True, False):
            left = [index for index in range(len(items)) if index not in values]
            errors.clear()
            lost = self._try(first, name, left, items, limit_s, values, errors, on_done)
            if len(values) == len(items):
                return [values[index] for index in range(len(items))]
        failed = next(index for index in range(len(items)) if index not in values)
        raise MetricFailed(f"{errors.get(failed) or lost}, at {_shown(items[failed])}")

    def _try(self, first: bool, name: str, left: List[int], items: Sequence[Any],
             limit_s: Callable[[Any], float], values: Dict[int, Any], errors: Dict[int, str],
             on_done: Callable[[Any], None]) -> str:
        """One worker's go at the items in `left`; returns how it was lost, '' if it was not."""
        def on_value(position: int, value: Any) -> None:
            values[left[position]] = value
            on_done(items[left[position]])

        def on_error(position: int, why: str) -> None:
            errors[left[position]] = why

        if not first:
            self.stop()
        if self._worker is None:
            setup = self._setup if first else self._setup.for_second_try()
            self._worker = Worker(setup, self._class_paths, self._environ)
        try:
            self._worker.run(name, [items[index] for index in left], limit_s, on_value, on_error)
        except WorkerLost as error:
            self.stop()
            return str(error)
        if not first:
            # The slow, careful setup is for this call alone.
            self.stop()
        return ""


def _shown(item: Any) -> str:
    text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    return repr(text if len(text) <= 80 else text[:77] + "...")
