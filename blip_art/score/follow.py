"""Scores a run's epochs as they appear, beside training, and ends when training has.

    python -m blip_art.score --follow runs/caption_art

It only reads what training writes whole, and writes what `--run` would: stop it, kill it, start it
twice, and the scores are the same.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path
from typing import Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from blip_art.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError
from blip_art.files import RunDir, read_json, write_text
from blip_art.retention import prune_weights
from blip_art.run_state import Facts, is_of_newest_start, read_best, read_facts
from blip_art.score.cpu_time import used_cpu_s
from blip_art.score.engine import Engine
from blip_art.score.lock import owner, taken
from blip_art.score.run import run_config, say, score_run

STARTED = time.monotonic()
POLL_S = 5.0
PATIENCE_MIN = 60.0
# The batch script leaves its note at once; another node may see it a minute later (NFS).
START_PATIENCE_MIN = 2.0
# Queues are longer than silences; a job that was cancelled there is never heard of again.
QUEUE_PATIENCE = 48


class End(NamedTuple):
    """Nothing more will come from training: why, and whether that is how it should end."""

    why: str
    code: int = 0
    leader: str = ""
    """The training's job, when its batch script's queue is to be asked whether it comes back."""


Ending = Callable[[], Optional[End]]
"""None while more may come; asked before the folder is looked at, so that nothing is missed."""
Signature = Tuple[Tuple[str, int, int], ...]


class Follower:
    """Scores a run until `ending` says that it has ended and all is scored."""

    def __init__(self, run: RunDir, engine: Engine, ending: Ending, metrics: Sequence[str] = (),
                 poll_s: float = POLL_S) -> None:
        self._run, self._engine, self._ending = run, engine, ending
        self._metrics, self._poll_s = metrics, poll_s
        self._seen: Tuple[Signature, Signature] = ((), ())
        self._code = 0
        self._waits_for = ""

    def follow(self) -> int:
        """Returns the exit code: 1 if a metric failed or training died, 2 if a file was wrong."""
        while True:
            end = self._ending()
            if self._pass() and end:
                say(f"{self._run.name}: {end.why}; {len(self._run.scored())} of "
                    f"{len(self._run.predicted())} epochs are scored; {used_time()}")
                if end.leader:
                    write_text(self._run.job_follows(os.environ["SLURM_JOB_ID"]),
                               f"{end.leader}\n")
                return self._code or end.code
            time.sleep(self._poll_s)

    def _pass(self) -> bool:
        """Score what is new; False when somebody else is at it."""
        seen = (self._inputs(), self._scores())
        if seen == self._seen or not seen[0] or not self._run.config.is_file():
            return True
        with taken(self._run.scoring_lock) as ours:
            if not ours:
                self._say_who()
                return False
            self._waits_for = ""
            self._score()
        # Until the next epoch others can use Java's memory; what was parsed stays here.
        self._engine.close()
        # What came while scoring is not in seen[0]: the next look will find it new.
        self._seen = (seen[0], self._scores())
        return self._inputs() == seen[0]

    def _score(self) -> None:
        try:
            written = score_run(self._run, self._engine, self._metrics)
            self._code = EXIT_FAILED if any(read_json(p)["failed"] for p in written) else 0
        except UserError as error:
            # Said, and not the end: the next epoch may be whole.
            say(f"error: {error}")
            self._code = EXIT_USER_ERROR
        self._keep_the_best()

    def _keep_the_best(self) -> None:
        try:
            prune_weights(self._run, run_config(self._run).train.keep)
            best = read_best(self._run)
        except UserError as error:
            say(f"error: {error}")
            self._code = EXIT_USER_ERROR
            return
        if best:
            say(f"best so far: {best.describe()}")

    def _say_who(self) -> None:
        who = owner(self._run.scoring_lock) or "another process"
        if who != self._waits_for:
            self._waits_for = who
            say(f"{who} is scoring {self._run.name}; waiting for it")

    def _inputs(self) -> Signature:
        predicted = self._run.predicted()
        splits = sorted({row.split for row in predicted})
        return _states([*(row.path for row in predicted), *map(self._run.references, splits)])

    def _scores(self) -> Signature:
        return _states(self._run.score_files())


def score_when_free(run: RunDir, engine: Engine, metrics: Sequence[str] = (),
                    poll_s: float = POLL_S) -> List[Path]:
    """score_run, after whoever is scoring the run at this moment; see there."""
    run_config(run)
    waited = False
    while True:
        with taken(run.scoring_lock) as ours:
            if ours:
                return score_run(run, engine, metrics)
            if not waited:
                say(f"{owner(run.scoring_lock)} is scoring {run.name}; waiting for it")
        waited = True
        time.sleep(poll_s)


def used_time() -> str:
    """'5.2 CPU-minutes in 2 h 4 min', of this process and the workers that it has ended."""
    minutes = (time.monotonic() - STARTED) / 60
    return (f"{used_cpu_s() / 60:.1f} CPU-minutes in "
            f"{minutes // 60:.0f} h {minutes % 60:.0f} min")


def until_state_ends(run: RunDir, patience_min: float = PATIENCE_MIN,
                     now: Callable[[], float] = time.monotonic,
                     while_queued: bool = True) -> Ending:
    """Training has ended when state.json says finished or failed, or its batch script that its
    job has.

    One that was stopped by hand may be started again, one that is killed cannot say so: both have
    ended when nothing in the run folder has changed for `patience_min`, or 48 times as long while
    its job waits to start again.

    Args:
        while_queued: wait for a job that is to start again; else end as soon as it has stopped, or
            is silent, and leave it to slurm/job.sh to find out whether it comes back.
    """
    last: List[Tuple[float, Signature]] = []
    # What is left of an earlier start is no news.
    old = _stops(run)

    def ending() -> Optional[End]:
        facts = _facts(run)
        state, job = facts.state.name or "not begun", facts.work.job_id
        signs = _states([run.state, run.progress, run.train_log, run.last_checkpoint,
                         *(row.path for row in run.predicted())])
        if not last or last[0][1] != signs:
            last[:] = [(now(), signs)]
        # Until a run that was submitted again starts, its state is that of an earlier job.
        if state in ("finished", "failed") and (not job or is_of_newest_start(facts)):
            return End(f"training has {state}")
        if job and run.job_ended(job).exists():
            return End(f"training's job {job} has ended and left it {state}",
                       0 if state == "stopped" else EXIT_FAILED)
        waits = bool(job) and run.job_waits(job).exists()
        silent_s = now() - last[0][0]
        if job and not while_queued:
            # That again_JOB is gone, as the job starts, is no stop.
            if (waits or state == "stopped") and set(_stops(run)) - set(old):
                return End(f"training's job {job} has stopped, perhaps to start again", leader=job)
            # Slurm starts a follower when its training starts, or is cancelled in the queue.
            has_started = not waits and run.job_progress(job).exists()
            if not has_started and silent_s >= 60 * START_PATIENCE_MIN:
                return End(f"training's job {job} has not started; is it in the queue?", leader=job)
            if silent_s >= 60 * patience_min:
                return End(f"training is {state} and has written nothing for {patience_min:g} "
                           f"minutes; is job {job} in the queue?", leader=job)
        elif silent_s >= 60 * patience_min * (QUEUE_PATIENCE if waits else 1):
            return End(f"training is {state} and has written nothing for {patience_min:g} minutes",
                       0 if state == "stopped" else EXIT_FAILED)
        return None
    return ending


def _facts(run: RunDir) -> Facts:
    facts = read_facts(run)
    if facts.state.damaged:  # a file system that stumbles does not end the follower; patience does
        raise UserError(facts.state.why)
    return facts


def _stops(run: RunDir) -> Signature:
    """What training and its batch script write when it stops."""
    return _states([run.state, run.job_waits(read_facts(run).work.job_id)])


def until_stdin_ends() -> Ending:
    """Training has ended when whoever started us closes our standard input, or is gone."""
    def ending() -> Optional[End]:
        ready, _, _ = select.select([sys.stdin], [], [], 0)
        return End("training has ended") if ready and not os.read(0, 4096) else None
    return ending


def _states(paths: Iterable[Path]) -> Signature:
    """Name, time and size of each file that is there."""
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((str(path), stat.st_mtime_ns, stat.st_size))
    return tuple(found)
