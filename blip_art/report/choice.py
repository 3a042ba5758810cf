"""Which of many runs the page shows: the best of each set that compares, and how all of them do.

    shown = best_of(group, TABLE_RUNS); what_is_left_out(runs)

A page of up to MANY_RUNS shows every run. Of a thousand nobody reads a thousand tables: the page
has the best ones, medians and bands of all, and the CSV files have every number.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, List, Sequence

from blip_art.report.runs import Run

MANY_RUNS = 50
# Of many: rows of a table, sets of runs that compare, runs with their epochs and files, lines of
# what is missing, names in a sentence.
TABLE_RUNS, GROUPS, DETAILED_RUNS, MISSING_LINES, NAMES = 20, 5, 3, 40, 8


def is_many(runs: Sequence[Run]) -> bool:
    """Whether there are too many to show each."""
    return len(runs) > MANY_RUNS


def ranked(runs: Sequence[Run]) -> List[Run]:
    """Runs by the value that chose their best epoch, highest first; those without one last."""
    values = {run.name: run.best.value if run.best else None for run in runs}
    return sorted(runs, key=lambda run: -(values[run.name] or 0.0))


def detailed(runs: Sequence[Run]) -> List[Run]:
    """Those whose epochs and files are shown."""
    return ranked(runs)[:DETAILED_RUNS] if is_many(runs) else list(runs)


def first(items: Sequence[Any], limit: int, many: bool) -> List[Any]:
    """All, or the first ones of many."""
    return list(items[:limit] if many else items)


def named(names: Sequence[str], limit: int = NAMES) -> str:
    """'a, b and 998 more'."""
    more = len(names) - limit
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:limit])} and {more:,} more"


def states(runs: Sequence[Run]) -> str:
    """'990 finished, 10 failed'."""
    return ", ".join(f"{count:,} {state}"
                     for state, count in Counter(run.state for run in runs).most_common())


def what_is_left_out(runs: Sequence[Run]) -> str:
    """A sentence for a page of many runs; '' where all are shown."""
    if not is_many(runs):
        return ""
    return (f"Of {len(runs):,} runs this page shows the best: up to {TABLE_RUNS} in each table, "
            f"epochs and configuration of {DETAILED_RUNS}, plots of the main metrics with bands "
            "of all runs. Every run and epoch is in runs.csv and epochs.csv.")
