"""Lines of doctor's table: ok or not, what, how to fix it.

    for check in guarded(partitions, site, slurm): print(shown(check))
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import dataclass
from typing import Callable, Iterable, List, Sequence

from blip_art.errors import UserError

# As the image's own in requirements.txt; parts of it that are not public are used.
SUBMITIT = "submitit>=1.5.4,<1.6"
OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    verdict: str
    """ok, warn (jobs run, perhaps not as you expect) or fail (jobs will not run)."""
    what: str
    fix: str = ""


def ok(what: str) -> Check:
    """As it should be."""
    return Check(OK, what)


def warn(what: str, fix: str = "") -> Check:
    """Jobs run, perhaps not as you expect."""
    return Check(WARN, what, fix)


def fail(what: str, fix: str = "") -> Check:
    """Jobs will not run."""
    return Check(FAIL, what, fix)


def check_python() -> List[Check]:
    """The interpreter that launch.py runs under; without these packages nothing else can be
    asked."""
    version = platform.python_version()
    checks = [ok(f"Python {version}") if sys.version_info >= (3, 9) else
              fail(f"Python {version} is too old", "3.9 or newer: 'module load python', perhaps")]
    checks += _submitit_version()
    missing = [name for name in ("yaml", "submitit") if importlib.util.find_spec(name) is None]
    if missing:
        checks.append(fail(f"{sys.executable} has no {' and no '.join(missing)}",
                           install_command("pyyaml")))
    return checks


def _submitit_version() -> List[Check]:
    """Jobs are pickled here and read in the image: both sides must be of one kind."""
    try:
        found = importlib.metadata.version("submitit")
    except importlib.metadata.PackageNotFoundError:
        return []
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    if (1, 5, 4) <= numbers < (1, 6):
        return [ok(f"submitit {found}")]
    return [fail(f"submitit {found} is not what the image has",
                 install_command())]


def install_command(*more: str) -> str:
    """How this interpreter, or one like it, gets submitit and more packages; Debian 12 and newer
    refuse 'pip install --user'."""
    inside = sys.prefix != sys.base_prefix
    python = sys.executable if inside else "~/blip/bin/python"
    words = f"{python} -m pip install {' '.join([repr(SUBMITIT), *more])}"
    return words if inside else (f"python3 -m venv ~/blip && {words}, then 'source "
                                 "~/blip/bin/activate'")


def guarded(check: Callable[..., Iterable[Check]], *about: object) -> Iterable[Check]:
    """A check's lines; one that cannot be made is itself a line, and the next go on."""
    try:
        yield from check(*about)
    except UserError as error:
        what, _, fix = str(error).partition("; ")
        yield fail(what, fix)


def shown(check: Check, width: int = 0) -> str:
    """'fail | no partition gpu | there are: a, b', cut to the terminal only where one reads."""
    text = " | ".join(part for part in (f"{check.verdict:4}", check.what, check.fix) if part)
    return text if not width or len(text) <= width else _wrapped(check, width)


def _wrapped(check: Check, width: int) -> str:
    """The same with its second half on lines of its own, for nothing of it may be lost."""
    import textwrap

    lines = textwrap.wrap(check.what, max(20, width - 7)) + [
        f"→ {line}" if not number else f"  {line}"
        for number, line in enumerate(textwrap.wrap(check.fix, max(20, width - 9)))]
    return "\n".join([f"{check.verdict:4} | {lines[0]}", *(f"     | {one}" for one in lines[1:])])


def verdict(checks: Sequence[Check]) -> str:
    """The last line."""
    failed = sum(check.verdict == FAIL for check in checks)
    warned = sum(check.verdict == WARN for check in checks)
    if not failed:
        return f"{len(checks)} looked at, jobs can run" + f"; {warned} to know about" * (warned > 0)
    return f"{failed} of {len(checks)} must be fixed before jobs run"
