"""A job's command inside a Slurm allocation: which rank it is, and what signals mean there.

    executor.submit(run_in_allocation, job)      # each task of the step calls it, in the container
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import List, Mapping, Optional, Tuple

from blip_art.cluster.jobs import Job, descendants, exit_code, signal_all
from blip_art.errors import EXIT_FAILED, EXIT_INTERRUPTED
from blip_art.failure import named_run, run_note, write_killed, write_unsaid
from blip_art.files import RunDir, write_text
from blip_art.run_state import is_finished

# Ranks that were still starting when a signal came ignored it: it is told again.
REPEAT_S = 5.0
POLL_S = 0.2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Ports below are taken by services, above by what programs open by themselves.
_FIRST_PORT, _PORTS = 20_000, 10_000


@dataclass(frozen=True)
class Task:
    """This process's place in its job step."""

    job_id: str
    name: str
    restart: int
    rank: int
    tasks: int
    local_rank: int
    node: int
    nodes: Tuple[str, ...]

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Task:
        array = environ.get("SLURM_ARRAY_JOB_ID")
        number = environ["SLURM_JOB_ID"]
        name = f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else number

        def integer(key: str, default: str = "0") -> int:
            return int(environ.get(key) or default)

        return cls(number, name, integer("SLURM_RESTART_COUNT"), integer("SLURM_PROCID"),
                   integer("SLURM_NTASKS", "1"), integer("SLURM_LOCALID"),
                   integer("SLURM_NODEID"), tuple(expand_nodes(environ["SLURM_JOB_NODELIST"])))

    @property
    def port(self) -> int:
        """The same on all nodes of a job, another for a job beside it on a node."""
        return _FIRST_PORT + int(self.job_id) % _PORTS


def run_in_allocation(job: Job, folder: str) -> int:
    """Run a job's command as one task of its step; ends the process with the command's exit code.

    A command that was told to stop before its end leaves a request in `folder`, which the batch
    script (slurm/job.sh) answers by queueing the job again: the image has no scontrol.
    """
    task = Task.read(os.environ)
    job = for_task(job, task)
    mark = _mark_scratch(task)
    note_progress(job, Path(folder), task)
    stop = StopNote(Path(folder), task)
    code = _run(job, stop, task)
    if stop and not (code == 0 and _finished(job)):
        code = EXIT_INTERRUPTED
    else:
        stop.withdraw()
    _leave_scratch(mark)
    if code:
        # Not an exception, whose traceback submitit would print below the command's own last line.
        sys.stdout.flush()
        os._exit(code)
    return 0


def _mark_scratch(task: Task) -> Optional[Path]:
    """A sign that this task uses what singularity/run.sh made for the job on this node."""
    folder = Path(os.environ.get("TMPDIR", ""))
    if not folder.name.startswith("blip_art-"):
        return None
    mark = folder / f".task_{task.rank}"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)  # a task that failed at once may have removed it
        mark.touch()
    return mark


def _leave_scratch(mark: Optional[Path]) -> None:
    """Take the sign away; who finds no other removes the folder."""
    if mark:
        with contextlib.suppress(OSError):
            mark.unlink()
        if not list(mark.parent.glob(".task_*")):
            shutil.rmtree(mark.parent, ignore_errors=True)


def note_progress(job: Job, folder: Path, task: Task) -> None:
    """For the batch script: where a training's state is, and what is newer than this note once
    this start was worth it. Captions have no state of their own, and a checkpoint is not theirs.
    """
    if task.rank:
        return
    named = named_run(job.argv)
    if job.state:
        run = RunDir(Path(job.cwd, job.state).absolute().parent)
        state, checkpoint = str(run.state), str(run.last_checkpoint)
    elif named and named["stage"] == "predict":
        run, state, checkpoint = RunDir(Path(job.cwd, named["run"]).absolute()), "", ""
    else:
        return
    write_text(folder / f"progress_{task.job_id}",
               f"{state}\n{checkpoint}\n{run.predictions('val', 0).parent}\n")


class StopNote:
    """True once the job was told to stop: by a signal, or by the batch script's file.

    The request to be queued again is written at once: a signal to all of the step may also end the
    processes that serve the image's files, and then the command fails.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self._told: List[str] = []
        self._file = folder / f"stop_{task.job_id}"
        self._request = folder / f"requeue_{task.job_id}" if task.rank == 0 else None
        self._written = False
        for number in STOP_SIGNALS:
            signal.signal(number, lambda received, frame: self._told.append(
                signal.Signals(received).name))

    def __bool__(self) -> bool:
        if not self._told and self._request and self._file.exists():
            self._told.append(self._file.read_text(encoding="utf-8").strip() or "SIGUSR2")
        if self._told and self._request and not self._written:
            write_text(self._request, f"{self._told[0]}\n")
            self._written = True
        return bool(self._told)

    def withdraw(self) -> None:
        """The command came to its end after all."""
        if self._request:
            with contextlib.suppress(FileNotFoundError):
                self._request.unlink()


def for_task(job: Job, task: Task) -> Job:
    """The job with its log named and its ranks told who they are."""
    log = job.log.replace("{job}", task.name).replace("{restart}", str(task.restart))
    argv, env = list(job.argv), dict(job.env)
    if job.layout == "node":
        at = argv.index("--standalone")
        # It would end its ranks 30 s after SIGTERM, whatever they are saving.
        argv.insert(at, "--signals-to-handle=SIGQUIT")
    if job.layout == "node" and len(task.nodes) > 1:
        argv[at + 1:at + 2] = [f"--nnodes={len(task.nodes)}", f"--node_rank={task.node}",
                           f"--master_addr={task.nodes[0]}", f"--master_port={task.port}"]
    if job.layout == "gpu":
        env.update(RANK=str(task.rank), WORLD_SIZE=str(task.tasks),
                   LOCAL_RANK=str(task.local_rank), MASTER_ADDR=task.nodes[0],
                   MASTER_PORT=str(task.port))
    return dataclasses.replace(job, argv=tuple(argv), env=env, log=log)


def expand_nodes(listed: str) -> List[str]:
    """Slurm's short form: 'v100-[1-2,07],login' → v100-1, v100-2, v100-07, login."""
    nodes = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", listed):
        prefix, bracket, rest = name.partition("[")
        if not bracket:
            nodes.append(name)
            continue
        ranges, _, suffix = rest.partition("]")
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            nodes += [f"{prefix}{number:0{len(first)}}{suffix}"
                      for number in range(int(first), int(last or first) + 1)]
    return nodes


def _run(job: Job, stop: StopNote, task: Task) -> int:
    log = Path(job.cwd, job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab", buffering=0) as output, run_note(_at(job)) as note:
        if task.local_rank == 0:
            output.write(f"# {job.name}: job {task.name}, start {task.restart}, node "
                         f"{task.nodes[task.node]}, {time.strftime('%F %T')}\n".encode())
        try:
            child = subprocess.Popen(
                job.argv, cwd=job.cwd, env={**os.environ, **job.env}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, preexec_fn=_deaf if job.layout else None)
        except OSError as error:
            output.write(f"error: cannot start {job.argv[0]}: {error.strerror}\n".encode())
            return EXIT_FAILED
        told = 0.0
        while child.poll() is None:
            if stop and time.monotonic() - told > REPEAT_S:
                told = time.monotonic()
                # Ranks save and leave together; other commands lose nothing by ending at once.
                number = signal.SIGUSR2 if job.layout else signal.SIGTERM
                signal_all(descendants(os.getpid()), number)
            time.sleep(POLL_S)
        if job.layout and child.returncode < 0:  # with 'node' torchrun itself, and all its ranks
            why = write_killed(note, task.rank, -child.returncode)
            output.write(f"error: {why}\n".encode())
        elif job.layout and child.returncode and not stop:
            write_unsaid(note, child.returncode, log)
    return exit_code(child.returncode)


def _at(job: Job) -> List[str]:
    """The command with its run folder as this process finds it."""
    named = named_run(job.argv)
    return [str(Path(job.cwd, word)) if named and word == named["run"] else word
            for word in job.argv]


def _deaf() -> None:
    """Until a rank listens, a signal must not end it; torchrun must not hear it at all."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _finished(job: Job) -> bool:
    """Whether a command that ends with 0 when it is stopped, too, came to its end."""
    if not job.state:
        return True
    return is_finished(RunDir(Path(job.cwd, job.state).parent))
