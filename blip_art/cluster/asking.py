"""Asks Slurm without leaving the user before an empty screen.

    answers = with_notice(lambda: ask(slurm, jobs), when_slow=lambda: print("asking Slurm …"))
"""

from __future__ import annotations

import threading
from typing import Callable, List, TypeVar

PATIENCE_S = 1.0
Answer = TypeVar("Answer")


def with_notice(ask: Callable[[], Answer], when_slow: Callable[[], None],
                patience_s: float = PATIENCE_S) -> Answer:
    """What `ask` returns or raises; `when_slow` is called once if that takes longer.

    Ctrl-C ends the waiting at once: the thread that asks does not keep the process alive.
    """
    answers: List[Answer] = []
    errors: List[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(patience_s)
    if asking.is_alive():
        when_slow()
        asking.join()
    if errors:
        raise errors[0]
    return answers[0]
