"""How many notations of a list have a text, and by which rule: a table.

    python -m blip_art.data coverage notations.csv     (or an archive, or its data.json)
"""

from __future__ import annotations

import collections
import csv
from pathlib import Path
from typing import Dict, List, NamedTuple

from blip_art.data.archive import open_archive
from blip_art.data.captions import Captioner
from blip_art.data.iconclass import RULES
from blip_art.errors import UserError
from blip_art.files import PathLike

_EXAMPLES = 3


class Coverage(NamedTuple):
    """Notations under one rule: how many different ones, how often they are used, a few."""

    rule: str
    notations: int
    uses: int
    examples: List[str]


def count_notations(path: PathLike) -> Dict[str, int]:
    """How often each notation is used: from a CSV (columns notation, count) or an archive.

    Raises:
        UserError: no such file, no column 'notation', or a count that is no whole number.
    """
    if Path(path).suffix.lower() != ".csv":
        records = open_archive(path, md5="none", pictures=False).notations
        return collections.Counter(n for notations in records.values() for n in notations)
    uses: Dict[str, int] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                notation, count = row.get("notation"), row.get("count") or "1"
                if notation is None or not count.isdecimal():
                    raise UserError(f"{path}, line {number}: needs the columns 'notation' and, "
                                    "if you like, 'count' with whole numbers")
                uses[notation] = uses.get(notation, 0) + int(count)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a UTF-8 CSV file ({error})") from error
    if not uses:
        raise UserError(f"{path} holds no notation")
    return uses


def measure_coverage(captioner: Captioner, uses: Dict[str, int]) -> List[Coverage]:
    """A row a rule, from best to worst; every notation counts under one."""
    found: Dict[str, List[str]] = {rule: [] for rule in RULES}
    for notation in uses:
        found[captioner.rule_of(notation)].append(notation)
    return [Coverage(rule, len(notations), sum(uses[n] for n in notations),
                     sorted(notations, key=lambda n: -uses[n])[:_EXAMPLES])
            for rule, notations in found.items()]


def format_coverage(rows: List[Coverage]) -> str:
    """The table, with shares."""
    notations, uses = sum(row.notations for row in rows), sum(row.uses for row in rows)
    lines = [f"{'rule':<13}{'notations':>10}{'share':>9}{'uses':>10}{'share':>9}  examples"]
    for row in rows:
        examples = "; ".join(map(repr, row.examples)) if row.rule != "exact" else ""
        lines.append(f"{row.rule:<13}{row.notations:>10,}{row.notations / notations:>9.2%}"
                     f"{row.uses:>10,}{row.uses / uses:>9.2%}  {examples}".rstrip())
    without = rows[-1]
    lines.append(f"{notations - without.notations:,} of {notations:,} notations have a text "
                 f"({1 - without.notations / notations:.2%}; {1 - without.uses / uses:.2%} of "
                 f"{uses:,} uses)")
    return "\n".join(lines)
