"""Calls sbatch so that no job is lost: signals wait for its answer, lost answers are looked for.

    with noted(SIGNALS) as stops: number = send(script, Slurm(), stops)
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Sequence

from blip_art.cluster.pending import started_job
from blip_art.cluster.slurm import (
    Completed,
    Slurm,
    SlurmAbsent,
    SlurmError,
    clean_environment,
)
from blip_art.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.1
NOTICE_S = 5.0
# sbatch itself tries again for about two minutes when the controller asks it to.
LIMIT_S = 300.0
# A controller that did not answer in time may still be busy with the job.
LOOKS_AFTER_S = (0.0, 2.0, 3.0, 5.0, 10.0)
LOOK_LIMIT_S = 60.0
# What sbatch says when it does not know what has become of its request.
_UNSURE = re.compile(r"timed? ?out|zero bytes|send|receive|receiv|reset|response|communicat|"
                     r"transport|unexpected", re.IGNORECASE)


class Refused(Exception):
    """Slurm does not take a job; what sbatch said."""


class Unknown(UserError):
    """Nobody knows whether Slurm has the job."""


def send(script: Path, slurm: Slurm, stops: List[int]) -> str:
    """Submit a batch script whose name no other has; the number of its job.

    Args:
        stops: signals that have come so far; the caller notes them. The first waits for sbatch's
            answer, the second does not.

    Raises:
        Refused: Slurm has no such job.
        SlurmAbsent: there is no sbatch.
        Unknown: no answer came, and the queue does not have the job or does not answer either.
    """
    try:
        done = run_sbatch((slurm.path("sbatch"), str(script)), stops)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise SlurmAbsent("no sbatch on this machine; run this on a login node of the cluster, or "
                          "look at the plan with --dry-run") from error
    number = re.search(r"job (\d+)", done.out)
    if done.code == 0 and number:
        return number[1]
    if is_refusal(done):
        raise Refused(done.err or done.out)
    return _look_for(script, done, slurm, stops)


def is_refusal(done: Completed) -> bool:
    """Whether sbatch says that there is no job, rather than that it heard no answer."""
    lines = [line for line in done.err.splitlines() if "Batch job submission failed" in line]
    if lines:
        return not _UNSURE.search(lines[-1])
    return done.code > 0 and not _UNSURE.search(done.err)


def _look_for(script: Path, done: Completed, slurm: Slurm, stops: List[int]) -> str:
    said = [line.split("error: ")[-1].strip() for line in (done.err or done.out).splitlines()
            if line.strip()]
    lost = f"sbatch lost Slurm's answer ({said[-1] if said else 'it printed nothing'})"
    print(f"{lost}; looking for the job in the queue", file=sys.stderr)
    why = "and the search for its job was interrupted"
    began = time.monotonic()
    for pause_s in LOOKS_AFTER_S:
        if len(stops) > 1 or time.monotonic() - began > LOOK_LIMIT_S:
            break
        time.sleep(pause_s)
        # A job that has started needs no queue to be found.
        number = started_job(script.parent, script.stem)
        try:
            number = number or slurm.find_scripts([script.stem]).get(script.stem, "")
        except SlurmError as error:
            why = f"and squeue does not answer either ({str(error).partition(';')[0]})"
            continue
        if number:
            print(f"found: job {number}", file=sys.stderr)
            return number
        why = "and the queue does not have the job"
    raise Unknown(f"{lost}, {why}; run the same command again later. Should the job still come, "
                  "it ends as soon as it starts, and the next launch.py command for this run "
                  "cancels it")


def run_sbatch(argv: Sequence[str], stops: List[int]) -> Completed:
    """Run it to its end in a session of its own, which Ctrl-C and a closed terminal do not reach.

    A second signal, or no end after LIMIT_S, ends it by force; its code is then below 0.
    """
    kept = clean_environment()
    # Not LC_ALL, which is only for what we read: sbatch hands its environment to the job.
    environ = {key: value for key, value in os.environ.items() if key in kept}
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=environ, start_new_session=True)
    began, noticed, warned = time.monotonic(), False, False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=POLL_S)
            return Completed(process.returncode, out.decode(errors="replace"),
                             err.decode(errors="replace"))
        waited = time.monotonic() - began
        if len(stops) > 1 or waited > LIMIT_S:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Completed(-signal.SIGKILL, "", f"error: sbatch gave no answer in {waited:.0f} s")
        if stops and not warned:
            warned = True
            print("\nsbatch is still waiting for Slurm; what it submits is then cancelled (once "
                  "more: leave at once)", file=sys.stderr)
        elif waited > NOTICE_S and not noticed:
            noticed = True
            print("waiting for sbatch …", file=sys.stderr)
