"""Loader processes that are forked from a process without threads, and end with their rank.

    loader = DataLoader(dataset, num_workers=n, **worker_options(n))
    for batch in load_batches(loader): ...
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from typing import Any, Dict, Iterable, Iterator, Tuple

from blip_art.errors import EXIT_FAILED, UserError

# What the fork server imports once, so that its children need not.
PRELOADED = ("torch", "blip_art.data.loading")
_STEP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1,
                 signal.SIGUSR2)
# Of a rank that is killed, semaphores are left for Python's tracker to remove. That is all right,
# and its warning would stand below the reason in the log.
_NO_WARNING = "ignore:resource_tracker:UserWarning"


def worker_options(num_workers: int, ignored: Iterable[int] = ()) -> Dict[str, Any]:
    """Keyword arguments of a DataLoader.

    A rank has threads (gloo's, the progress bar's, pinned memory's). Forked at the wrong moment
    from such a process, a child waits for ever for a lock of the interpreter that nobody holds any
    more: seen with CPython 3.11 at the start of captioning, the rank and all others with it.

    Args:
        ignored: signals that loader processes ignore. They go to every process of a job step, and
            a worker that dies of one takes its rank along before the rank could save; left alone,
            it ends when its rank does.
    """
    if not num_workers:
        return {}
    _start_server(tuple(ignored))
    return {"multiprocessing_context": "forkserver",
            "worker_init_fn": functools.partial(_start_worker, tuple(ignored))}


def load_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a DataLoader.

    Raises:
        UserError: a loader process was killed.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise UserError(f"a loader process was killed ({error}); often there is not enough memory:"
                        " lower data.num_workers, or ask for more memory") from error


def end_with_parent() -> None:
    """End this process when the one it works for is gone, even if that was killed.

    The parent that the system knows is the fork server, which waits for its children. But each
    child has a pipe whose other end only the process it works for holds.
    """
    parent = multiprocessing.parent_process()
    assert parent, "the main process has no parent to end with"

    def wait() -> None:
        parent.join()
        os._exit(EXIT_FAILED)
    threading.Thread(target=wait, daemon=True).start()


def _start_worker(ignored: Tuple[int, ...], worker_id: int) -> None:
    end_with_parent()
    # Once more inside the worker: torch gives SIGTERM a handler there that ends it.
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def _start_server(ignored: Tuple[int, ...]) -> None:
    # A child imports the main module again, but for a package's __main__.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    main = [spec.name] if spec and not spec.name.endswith("__main__") else []
    forkserver.set_forkserver_preload([*PRELOADED, *main])
    start_resource_tracker()
    with _ignoring(ignored):
        forkserver.ensure_running()


@functools.cache
def start_resource_tracker() -> None:
    """Before the first process pool or loader, or the tracker of these starts with its warning, and
    dies of the signals that go to every process of a job step."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before},{_NO_WARNING}" if before else _NO_WARNING
    try:
        with _ignoring(_STEP_SIGNALS):
            resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


@contextlib.contextmanager
def _ignoring(numbers: Iterable[int]) -> Iterator[None]:
    """Processes started inside ignore these signals: over exec and fork they stay ignored, which
    handlers do not. Only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
