"""Durations in words, the same in status, logs and reports of progress.

    duration(7500) == "2 h 5 min"
"""

from __future__ import annotations


def duration(seconds: float) -> str:
    """'3 d 4 h', '2 h 5 min', '40 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
