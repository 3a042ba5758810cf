"""The process that holds a JVM: reads requests as JSON lines, answers as items are done.

    python -m blip_art.score.worker SETUP_JSON      (started by blip_art.score.workers)

A JVM cannot be started twice in a process, and one that hangs or dies takes its process with it;
so it has one of its own, which does not hear the job's signals. Request: {"do": name, "items":
[...], "soon": [names that will follow]}. Answers: {"java": version} once, then {"values": [[index,
value], ...], "errors": [[index, why], ...]}, at the end {"done": true}, or {"failed": why} when the
whole request cannot be done.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from typing import Any, BinaryIO, Callable, Dict, List

FLUSH_S = 0.2


def main() -> None:
    """Serve until stdin closes: then whoever asked is gone, however it went."""
    setup = json.loads(sys.argv[1])
    answers = _take_stdout()
    requests: queue.SimpleQueue[Dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()

    if setup["compiled"]:
        os.environ["BLIP_ART_COMPILED"] = setup["compiled"]
    from blip_art.score import java_side

    java = java_side.start(setup["libjvm"], setup["options"], setup["class_paths"])
    operation = java_side.service(java, setup["threads"], setup["charts_mb"])
    outbox = Outbox(answers, 0.0 if setup["careful"] else FLUSH_S)
    outbox.send({"java": setup["version"]})
    while True:
        request = requests.get()
        for name in request["soon"]:
            threading.Thread(target=_load, args=(operation, name), daemon=True).start()
        try:
            for index, value in operation(request["do"])(request["items"]):
                outbox.add(index, value)
        except java_side.JavaError as error:
            outbox.send({"failed": java_side.java_error(error)})
            continue
        outbox.flush()
        outbox.send({"done": True})


def _load(operation: Callable[[str], Any], name: str) -> None:
    """Load what will be asked for beside what is asked for now; then the problem is told too."""
    from blip_art.score.java_side import JavaError

    with contextlib.suppress(JavaError):
        operation(name)


def _take_stdout() -> BinaryIO:
    """Keep stdout for answers alone; what Java prints there goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _read_requests(requests: queue.SimpleQueue[Dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    # Java threads would outlive an orderly exit.
    os._exit(0)


class Outbox:
    """Answers, gathered for a moment: one line for each of 100,000 tokenized texts is slow."""

    def __init__(self, file: BinaryIO, flush_s: float) -> None:
        self._file, self._flush_s = file, flush_s
        self._values: List[Any] = []
        self._errors: List[Any] = []
        self._flushed = time.monotonic()

    def add(self, index: int, value: Any) -> None:
        from blip_art.score.java_side import ItemError

        if isinstance(value, ItemError):
            self._errors.append((index, value.why))
        else:
            self._values.append((index, value))
        if time.monotonic() - self._flushed >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._values or self._errors:
            self.send({"values": self._values, "errors": self._errors})
            self._values, self._errors = [], []

    def send(self, message: Dict[str, Any]) -> None:
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()


if __name__ == "__main__":
    main()
