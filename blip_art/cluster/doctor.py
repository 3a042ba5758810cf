"""Looks at everything a job needs: on the login node, and with a job on a compute node.

    for check in check_login(site): print(shown(check))      check_job(site, wait_s=600)
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional

from blip_art.cluster import checks_container, checks_files, checks_slurm, reasons
from blip_art.cluster.batch import Stage, slurm_place
from blip_art.cluster.checks import FAIL, Check, fail, guarded, ok
from blip_art.cluster.logs import newest
from blip_art.cluster.plan import predict_job
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import QueueRow, Slurm, SlurmError
from blip_art.cluster.snapshot import take_snapshot
from blip_art.cluster.submit import Submission, submit
from blip_art.files import RunDir, read_json
from blip_art.manifest import CODE_ROOT

STAGE = "doctor"
JOB_MIN = 5
LOOK_S = .5
ASK_S = 5.0
END_S = 30.0
SIGNAL = "USR2"
# Hidden: it is no run, and status does not show it.
FOLDER = Path("runs", ".doctor")


def check_login(site: Site, slurm: Optional[Slurm] = None) -> Iterable[Check]:
    """Everything that can be seen without a job, one after the other as it is found out."""
    slurm = slurm or Slurm()
    for ask in checks_slurm.CHECKS:
        found = list(guarded(ask, site, slurm))
        yield from found
        if ask in checks_slurm.DECISIVE and any(check.verdict == FAIL for check in found):
            break  # the others would only say the same again
    for look in (*checks_container.CHECKS, *checks_files.CHECKS):
        yield from guarded(look, site)


def check_job(site: Site, wait_s: float, slurm: Optional[Slurm] = None) -> Iterable[Check]:
    """Submit a job of 5 minutes on all GPUs of a node, signal it, and tell what its ranks found.

    Raises:
        UserError: it cannot be submitted.
    """
    slurm = slurm or Slurm()
    shutil.rmtree(FOLDER, ignore_errors=True)
    run = RunDir(FOLDER)
    take_snapshot(CODE_ROOT, run.code)
    stage = doctor_stage(site, run)
    numbers = submit([stage], Submission(dataclasses.replace(
        site, time_min=JOB_MIN, signal_delay_s=30), run.code, run.slurm, sys.argv[1:]))
    job_id = numbers[STAGE]
    print(f"job {job_id} is submitted; Ctrl-C leaves it alone, 'scancel {job_id}' ends it",
          file=sys.stderr)
    watch = Watch(run, job_id, site.gpus_per_node, slurm)
    yield from watch.until_done(wait_s)


def doctor_stage(site: Site, run: RunDir) -> Stage:
    """A job like any other that has ranks, but for what it runs."""
    place = slurm_place(site, run.code.resolve())
    like = predict_job(place, run)
    # As Slurm counts: a task is a rank, or all ranks of a node.
    cpus = site.cpus_per_gpu * (1 if site.layout == "gpu" else site.gpus_per_node)
    at = like.argv.index("blip_art.predict")
    argv = (*like.argv[:at], "blip_art.cluster.doctor_job", "--folder", str(run.slurm),
            "--cpus", str(cpus), "--gpus", str(site.gpus_per_node),
            *(["--internet"] if site.has_internet else []))
    job = dataclasses.replace(like, name=STAGE, argv=argv,
                              log=like.log.replace("predict_", f"{STAGE}_"))
    return Stage(STAGE, (job,), (run,), place.processes)


class Watch:
    """Follows doctor's job: waits for its ranks, signals them, gathers their reports."""

    def __init__(self, run: RunDir, job_id: str, ranks: int, slurm: Slurm,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._run, self._job_id, self._ranks = run, job_id, ranks
        self._slurm, self._sleep = slurm, sleep
        self._said = ""

    def until_done(self, wait_s: float) -> Iterable[Check]:
        """What the ranks found; why there is nothing, if the job did not get so far."""
        deadline, next_ask, signalled = time.monotonic() + wait_s, 0.0, 0.0
        row: Optional[QueueRow] = None
        while True:
            states = [report.get("state") for report in self._reports()]
            if len(states) == self._ranks and set(states) == {"done"}:
                break
            if not signalled and len(states) == self._ranks and set(states) == {
                    "waiting for the signal"}:
                self._slurm.cancel([self._job_id], SIGNAL, batch=True)
                signalled = time.monotonic()
            if time.monotonic() >= next_ask:
                row = self._ask()
                next_ask = time.monotonic() + ASK_S
                if row is None or not row.alive:
                    break
            if time.monotonic() > deadline:
                yield from self._gathered()
                yield fail(f"job {self._job_id} is {row.state.lower() if row else 'gone'} after "
                           f"{wait_s / 60:.0f} minutes", f"wait for it with --wait, or 'scancel "
                                                         f"{self._job_id}'")
                return
            self._sleep(LOOK_S)
        yield from self._gathered()
        yield from self._end(row, signalled)

    def _ask(self) -> Optional[QueueRow]:
        try:
            row = self._slurm.squeue([self._job_id]).get(self._job_id)
        except SlurmError:
            # A busy controller is no news of the job.
            return QueueRow(self._job_id, self._job_id, "UNKNOWN", "", 0, 0, "", "", "", "")
        words = "" if row is None else {
            "PENDING": f"waits: {reasons.waiting(row.reason)}",
            "RUNNING": f"runs on {row.nodes}"}.get(row.state, "")
        if words and words != self._said:
            self._said = words
            print(f"job {self._job_id} {words}", file=sys.stderr)
        return row

    def _reports(self) -> List[Dict[str, Any]]:
        paths = (self._run.slurm / f"rank_{rank}.json" for rank in range(self._ranks))
        return [read_json(path) for path in paths if path.exists()]

    def _gathered(self) -> Iterable[Check]:
        """Rank 0's lines, and those of others that are not ok; equal ones once."""
        reports = self._reports()
        lines: Dict[Check, List[int]] = {}
        for rank, report in enumerate(reports):
            for row in report["checks"]:
                lines.setdefault(Check(**row), []).append(rank)
        for check, found in lines.items():
            of = f" ({len(found)} ranks)" if len(found) > 1 else (
                f" (rank {found[0]})" if found != [0] else "")
            yield dataclasses.replace(check, what=check.what + of)

    def _left(self) -> Iterable[Check]:
        """How the job ends once its ranks have said all they have to say."""
        until = time.monotonic() + END_S
        row = self._ask()
        while row and row.alive and time.monotonic() < until:
            self._sleep(1)
            row = self._ask()
        if row and row.alive:
            self._slurm.cancel([self._job_id])
        if row and row.state != "COMPLETED":
            yield fail(f"the job is {row.state.lower()} instead of completed after its ranks were "
                       "done", "a job that was told to save would not end well; its words: "
                               f"{self._run.slurm}")

    def _end(self, row: Optional[QueueRow], signalled: float) -> Iterable[Check]:
        states = [str(report.get("state")) for report in self._reports()]
        if len(states) == self._ranks and set(states) == {"done"}:
            if signalled:
                yield ok(f"signal round trip: {time.monotonic() - signalled:.1f} s from scancel "
                         "to what Python wrote")
            yield from self._left()
            return
        log = newest(self._run, STAGE)
        where = f"its words: {log.path}" if log else f"look into {self._run.slurm}"
        if not states:
            yield fail(f"job {self._job_id} ended before it looked at anything "
                       f"({row.state.lower() if row else 'gone from the queue'})", where)
        else:
            yield fail(f"job {self._job_id} ended while {', '.join(dict.fromkeys(states))}",
                       where)
        if log:
            print(*log.path.read_text(errors="replace").splitlines()[-5:], sep="\n",
                  file=sys.stderr)

