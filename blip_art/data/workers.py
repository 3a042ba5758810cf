"""Loader processes that are forked from a process without threads.

    DataLoader(dataset, num_workers=n, **worker_options(n))
"""

from __future__ import annotations

import functools
import signal
import sys
from multiprocessing import forkserver
from typing import Any, Dict, Iterable, Tuple

# What the fork server imports once, so that its children need not.
PRELOADED = ("torch", "blip_art.data.loading")


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
            "worker_init_fn": functools.partial(_ignore, tuple(ignored))}


def _ignore(signals: Tuple[int, ...], worker_id: int) -> None:
    """Once more inside the worker: torch gives SIGTERM a handler there that ends it."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def _start_server(ignored: Tuple[int, ...]) -> None:
    # A child imports the main module again, but for a package's __main__.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    main = [spec.name] if spec and not spec.name.endswith("__main__") else []
    forkserver.set_forkserver_preload([*PRELOADED, *main])
    # Ignored signals stay ignored over exec and fork; handlers do not.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
