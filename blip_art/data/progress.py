"""A progress bar on stderr where somebody looks at it and tqdm is installed, else nothing.

    for item in progress(items, "checking pictures", "pictures"): ...
"""

from __future__ import annotations

from typing import Iterable, Iterator, Optional, TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], what: str, unit: str,
             total: Optional[int] = None, delay_s: float = 0.0) -> Iterator[T]:
    """Yield `items`; the login node may have no tqdm, and a log file needs no bar.

    Args:
        delay_s: no bar before that many seconds, for work that is usually quick.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield from items
    else:
        tqdm.monitor_interval = 0  # no thread: see workers.py for what they do to a fork
        yield from tqdm(items, desc=what, unit=f" {unit}", total=total, disable=None,
                        delay=delay_s)
