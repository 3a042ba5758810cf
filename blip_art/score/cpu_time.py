"""The CPU time that scoring a run takes, kept in the run folder for reports.

    with counted(run) as count: follow(count.while_asking(ending))      read_cpu_hours(run)

A report is made in the image, where nobody can ask Slurm's accounts.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, TypeVar

from blip_art.errors import UserError
from blip_art.files import RunDir, read_json_object, write_json
from blip_art.run_state import is_number

# A follower that is killed loses what is younger.
_WRITE_S = 300.0
Answer = TypeVar("Answer")


class Count:
    """The time of this process; its record stands beside those of other processes."""

    def __init__(self, run: RunDir, environ: Mapping[str, str] = os.environ) -> None:
        self._run, self._began, self._written = run, time.monotonic(), time.monotonic()
        self._cpus = environ.get("SLURM_CPUS_ON_NODE", "")
        job = environ.get("SLURM_ARRAY_JOB_ID", "") + environ.get("SLURM_ARRAY_TASK_ID", "")
        self._name = (f"job {job or environ['SLURM_JOB_ID']}, "
                      f"start {environ.get('SLURM_RESTART_COUNT', 0)}"
                      if "SLURM_JOB_ID" in environ else f"{os.uname().nodename}:{os.getpid()}")

    def write(self) -> None:
        """Nothing ends because of it: a full disk is for scores to complain of."""
        self._written = time.monotonic()
        if not self._run.scores("val", 0).parent.is_dir():
            return  # nothing was scored
        record = {"seconds": time.monotonic() - self._began,
                  "cpus": int(self._cpus) if self._cpus.isdigit() else None,
                  "cpu_seconds": used_cpu_s()}
        with contextlib.suppress(UserError, OSError):
            write_json(self._run.cpu_time, {**_read(self._run), self._name: record}, indent=1,
                       durable=False)

    def while_asking(self, ask: Callable[[], Answer]) -> Callable[[], Answer]:
        """The same question, which also writes now and then."""
        def asked() -> Answer:
            if time.monotonic() - self._written > _WRITE_S:
                self.write()
            return ask()
        return asked


def used_cpu_s() -> float:
    """CPU time of this process and of the workers that it has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextlib.contextmanager
def counted(run: RunDir) -> Iterator[Count]:
    """Counts until the end of the block, however it ends."""
    count = Count(run)
    try:
        yield count
    finally:
        count.write()


def read_cpu_hours(run: RunDir) -> Optional[float]:
    """Of all that scored the run: the CPUs that Slurm's jobs held, else what was computed; None
    where nobody wrote it."""
    hours = [_hours(record) for record in _read(run).values() if isinstance(record, dict)]
    known = [one for one in hours if one is not None]
    return sum(known) if known else None


def _hours(record: Dict[str, Any]) -> Optional[float]:
    if not all(is_number(record.get(key)) for key in ("seconds", "cpu_seconds")):
        return None
    cpus = record.get("cpus")
    return (record["seconds"] * cpus if is_number(cpus) else record["cpu_seconds"]) / 3600


def _read(run: RunDir) -> Dict[str, Any]:
    try:
        return read_json_object(run.cpu_time)
    except UserError:  # not there, or not as it was written: it is no reason to stop for
        return {}
