"""Columns of text for a terminal: as wide as they need, cut only where the screen ends.

    print(table(["run", "state"], [["runs/a", "running"]], width=80))
"""

from __future__ import annotations

import shutil
import sys
from typing import List, Sequence

_GAP = "  "
_FIRST_LEAST, _LAST_LEAST = 12, 16


def terminal_width() -> int:
    """Columns of the terminal that reads standard output; 0 where a program does."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0,
          right: Sequence[int] = ()) -> str:
    """The rows under their header, each a line.

    Args:
        width: columns of the screen; 0 cuts nothing. First the last column gives way, then the
            first one loses its middle.
        right: columns that are numbers, written to the right.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    if width:
        _narrow(widths, width)
    return "\n".join(_line(line, widths, right) for line in lines)


def cut_middle(text: str, width: int) -> str:
    """'runs/sw…seed_2': both ends of a path tell more than its middle."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left):]}"


def cut_end(text: str, width: int) -> str:
    """'waits for fre…'."""
    return text if len(text) <= width else f"{text[:max(0, width - 1)]}…"


def _narrow(widths: List[int], width: int) -> None:
    for column, least in ((-1, _LAST_LEAST), (0, _FIRST_LEAST)):
        too_much = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        widths[column] -= max(0, min(too_much, widths[column] - least))


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    shown = [cut_middle(cells[0], widths[0]),
             *(cut_end(cell, width) for cell, width in zip(cells[1:], widths[1:]))]
    return _GAP.join(cell.rjust(width) if i in right else cell.ljust(width)
                     for i, (cell, width) in enumerate(zip(shown, widths))).rstrip()
