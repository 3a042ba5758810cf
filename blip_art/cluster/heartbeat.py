"""How far a run is that runs, and when one is expected to start that waits.

    describe(run, "running", jobs, queue).text == "epoch 3/10 step 120/541, 2 h 5 min to go, …"

Training writes runs/NAME/progress.json (blip_art/train/heartbeat.py); nothing here is reason enough
to hide what else is known of a run, so a file that is not as it should be counts as none.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from blip_art.cluster.record import Submitted
from blip_art.cluster.slurm import QueueRow, Slurm, SlurmError
from blip_art.describe import duration
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json_object
from blip_art.run_state import is_number

# It is written every 30 s. Clocks of nodes, file systems and of this machine differ.
_SILENT_S, _CLOCKS_S = 5 * 60.0, 5.0
_COUNTS = ("epoch", "epochs", "step", "steps", "restart")


class Heartbeat(NamedTuple):
    """In words for people, and in numbers for programs; '' and None where nothing is known."""

    text: str = ""
    numbers: Optional[Dict[str, Any]] = None


def describe(run: RunDir, state: str, jobs: Sequence[Submitted],
             queue: Mapping[str, QueueRow]) -> Heartbeat:
    """What to say of a run beside its state.

    Args:
        state: as status has judged it.
        queue: what Slurm said of its jobs, by id.
    """
    trainings = [(job, queue[job.job_id]) for job in jobs
                 if job.stage == "train" and job.job_id in queue]
    if state == "running":
        began_s = max((time.time() - row.seconds for _, row in trainings
                       if row.state == "RUNNING"), default=0.0)
        return _describe_running(run, began_s, jobs)
    if state == "pending":
        starts = [row.start for row in queue.values() if row.state == "PENDING"
                  and row.job_id in {job.job_id for job in jobs}]
        text = next(filter(None, map(describe_start, sorted(starts))), "")
        return Heartbeat(text, {"expected_start": min(starts)} if text else None)
    return Heartbeat()


def _describe_running(run: RunDir, began_s: float, jobs: Sequence[Submitted]) -> Heartbeat:
    age_s = _age(run.progress)
    said = _read(run.progress)
    if said is None or age_s is None or time.time() - age_s < began_s - _CLOCKS_S:
        return Heartbeat()  # of an earlier start
    place = f"epoch {said['epoch'] + 1}/{said['epochs']}"
    if said["doing"] == "training":
        place += f" step {said['step']}/{said['steps']}"
        parts = _rates(said) if age_s < _SILENT_S else [f"no step for {duration(age_s)}"]
    else:
        parts = [f"{said['doing']} for {duration(age_s)}", *_time_left(said)]
    saved = [age for age in map(_age, run.saved_checkpoints()) if age is not None]
    parts.append(f"checkpoint {duration(min(saved))} old" if saved else "no checkpoint yet")
    most = _most_restarts(jobs)
    if said["restart"]:
        parts.append(f"restart {said['restart']}" + (f" of {most}" if most is not None else ""))
    numbers = {**said, "age_s": round(age_s), "most_restarts": most,
               "checkpoint_age_s": round(min(saved)) if saved else None}
    return Heartbeat(", ".join([place, *parts]), numbers)


def _rates(said: Mapping[str, Any]) -> List[str]:
    parts = [f"{said['images_per_s']:.0f} pictures/s"] if said["images_per_s"] else []
    share = said["data_wait_share"]
    # Less is what every training has.
    parts += [f"{100 * share:.0f} % of the time waiting for data"] * bool(share and share >= 0.1)
    return parts + _time_left(said)


def _time_left(said: Mapping[str, Any]) -> List[str]:
    return [f"{duration(said['eta_s'])} to go"] if said["eta_s"] else []


def _read(path: Path) -> Optional[Dict[str, Any]]:
    """What training wrote; None where there is nothing, or something else."""
    try:
        said = read_json_object(path)
    except UserError:
        return None
    counts = {key: said.get(key) for key in _COUNTS}
    if said.get("doing") not in ("training", "captioning") or not all(
            type(value) is int and value >= 0 for value in counts.values()):
        return None
    rates = {key: said[key] if is_number(said.get(key)) and said[key] >= 0 else None
             for key in ("images_per_s", "data_wait_share", "eta_s")}
    return {"doing": said["doing"], **counts, **rates}


def _age(path: Path) -> Optional[float]:
    """Seconds since it was written; None if it is not there."""
    with contextlib.suppress(OSError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return None


def _most_restarts(jobs: Sequence[Submitted]) -> Optional[int]:
    """`max_requeues` of the profile of the newest training; None where it cannot be read."""
    sites = [job.site for job in jobs if job.stage == "train" and job.site]
    # Without PyYAML, or where the profile has moved since, it is left out.
    with contextlib.suppress(UserError, ImportError):
        from blip_art.cluster.site import load_site

        return load_site(sites[-1]).max_requeues if sites else None
    return None


def describe_start(start: str, now: Optional[datetime] = None) -> str:
    """'expected to start in 2 h 5 min (17:05)'; '' where Slurm does not know.

    Args:
        start: as Slurm writes it, by the clock of this machine: '2026-11-24T17:05:00' or 'N/A'.
    """
    try:
        when = datetime.strptime(start, "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return ""
    now = now or datetime.now()
    left_s = (when - now).total_seconds()
    if left_s < 60:
        return "expected to start soon"
    clock = when.strftime("%H:%M" if when.date() == now.date() else "%d %b %H:%M")
    return f"expected to start in {duration(left_s)} ({clock})"


def expected_start(script: str, slurm: Slurm) -> str:
    """When Slurm would start a batch script that is submitted now; '' where it does not say.

    One call, which submits nothing. Slurm itself only knows of a job that has been submitted when
    its scheduler has looked at it, often minutes later.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "expected.sh")
        path.write_text(script, encoding="utf-8")
        try:
            said = slurm.try_script(str(path))
        except SlurmError:
            return ""
    match = re.search(r"to start at (\S+)", said)
    return describe_start(match[1]) if match else ""
