"""Exit codes, signals and durations in words, the same in status, report, state.json and logs.

    describe_exit(137) == "ended by SIGKILL (often: not enough memory)"; duration(7500)
"""

from __future__ import annotations

import signal

from blip_art.errors import EXIT_INTERRUPTED

# A shell's code for a command that a signal has ended is this much above the signal's number.
_SIGNAL_BASE = 128


def describe_exit(code: int) -> str:
    """How a command ended, by its exit code as a shell has it."""
    if code == EXIT_INTERRUPTED:
        return "stopped before its end"
    if _SIGNAL_BASE < code <= _SIGNAL_BASE + signal.SIGRTMAX:
        return describe_signal(code - _SIGNAL_BASE)
    return f"exit code {code}"


def describe_signal(number: int) -> str:
    """'ended by SIGBUS'; where a cause is frequent, with the cause."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"ended by {name}" + " (often: not enough memory)" * (name == "SIGKILL")


def join_parts(*parts: str) -> str:
    """'a; b': what there is of the parts of a line."""
    return "; ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """'3 d 4 h', '2 h 5 min', '40 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
