"""What Slurm is given for a stage of a run: sbatch scripts and the container's wrapper, as text.

    print(wrapper_text(site, code)); submitit_parameters(site, stage, code, folder)
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from blip_art.cluster.inputs import bindable
from blip_art.cluster.jobs import Job
from blip_art.cluster.plan import (
    Place,
    collect_job,
    follow_job,
    import_environment,
    predict_job,
    score_job,
    train_job,
)
from blip_art.cluster.site import Site
from blip_art.files import RunDir

# A step whose task has failed must not wait for the others, which wait for it.
_SRUN = ("--kill-on-bad-exit=1", "--wait=60")


@dataclass(frozen=True)
class Stage:
    """One submission: a job, or the jobs of an array."""

    name: str
    """train, follow, score, predict or collect; train.2 is the second portion of a sweep's."""
    jobs: Tuple[Job, ...]
    runs: Tuple[RunDir, ...]
    """The run of each job."""
    gpus: int = 0
    """GPUs on each node; 0 is a job for the CPU partition."""
    nodes: int = 1
    after: Tuple[Tuple[str, str], ...] = ()
    """Dependencies: (afterok, name of an earlier stage)."""
    parallel: int = 0
    """Most elements of the array at a time; 0 is no limit."""
    waits_for: Tuple[str, ...] = ()
    """Dependencies on jobs that were submitted before: 'afterany:123'."""
    options: Tuple[Tuple[str, str], ...] = ()
    """Options of sbatch for this stage alone: (mail-type, END)."""

    @property
    def kind(self) -> str:
        """The name without the number of a portion."""
        return self.name.partition(".")[0]


def slurm_place(site: Site, code: Path, gpus: int = 0) -> Place:
    """Where the jobs of a site run; `gpus` 0 means all of a node."""
    return Place(python=site.python, cwd=os.getcwd(), code=str(code), cache=site.cache,
                 processes=gpus or site.gpus_per_node, threads=site.cpus_per_gpu,
                 layout=site.layout, parses=site.parses,
                 device="cuda" if site.gres and site.device == "cuda" else "")


def train_stages(place: Place, run: RunDir, config: str, overrides: Sequence[str] = (),
                 nodes: int = 1, scored: bool = True) -> List[Stage]:
    """Training; beside it a follower that scores; when both have ended, the rest and a report."""
    train = Stage("train", (train_job(place, config, run, overrides),), (run,), place.processes,
                  nodes)
    if not scored:
        return [train]
    return [train,
            Stage("follow", (follow_job(place, run),), (run,), after=(("after", "train"),)),
            Stage("score", (score_job(place, run),), (run,),
                  after=(("afterok", "train"), ("afterany", "follow"))),
            # Also when a metric has failed, or training: the report names what is missing.
            Stage("collect", (collect_job(place, [run], run.path / "report", run.slurm),), (run,),
                  after=(("afterany", "score"),))]


def rescore_stages(place: Place, run: RunDir) -> List[Stage]:
    """What a run that is trained lacks: scores, and a report with them."""
    return [Stage("score", (score_job(place, run),), (run,)),
            Stage("collect", (collect_job(place, [run], run.path / "report", run.slurm),), (run,),
                  after=(("afterany", "score"),))]


def eval_stages(place: Place, run: RunDir, options: Sequence[str], nodes: int = 1,
                scored: bool = True) -> List[Stage]:
    """Captions on the GPUs, then scores on the CPU, and the run's report with them."""
    predict = Stage("predict", (predict_job(place, run, options),), (run,), place.processes, nodes)
    if not scored:
        return [predict]
    return [predict, Stage("score", (score_job(place, run),), (run,),
                           after=(("afterok", "predict"),)),
            Stage("collect", (collect_job(place, [run], run.path / "report", run.slurm),), (run,),
                  after=(("afterany", "score"),))]


def sweep_stages(place: Place, runs: Sequence[RunDir], trainings: Sequence[Job],
                 nodes: int, parallel: int) -> List[Stage]:
    """An array of trainings, and an array that scores each as it ends."""
    return [Stage("train", tuple(trainings), tuple(runs), place.processes, nodes,
                  parallel=parallel),
            Stage("score", tuple(score_job(place, run) for run in runs), tuple(runs),
                  after=(("aftercorr" if len(runs) > 1 else "afterok", "train"),))]


def wrapper_text(site: Site, code: Path, binds: Sequence[str] = ()) -> str:
    """The program that submitit takes for Python: it enters the container, then becomes it."""
    exported = import_environment(str(code))
    command = [site.python]
    if site.container:
        exported.update(CONTAINER=site.container, SIF=site.image, OVERLAY=site.overlay,
                        BINDS=",".join([*site.binds, *binds]),
                        BLIP_ART_SCRATCH=site.scratch, NV="1")
        command = [str(code / "singularity" / "run.sh"), site.python]
    lines = ["#!/usr/bin/env bash",
             "# Usage: wrapper.sh [PYTHON'S ARGUMENTS]     written by launch.py from the profile "
             f"{site.name}",
             "set -euo pipefail",
             *(f"export {name}={shlex.quote(value)}" for name, value in exported.items()),
             f'exec {shlex.join(command)} "$@"']
    return "\n".join(lines) + "\n"


def needed_binds(cwd: Path, runs: Sequence[RunDir], site: Site,
                 read: Sequence[Path] = ()) -> List[str]:
    """Folders that jobs use and the working directory does not hold."""
    folders = [*(run.path.resolve().parent for run in runs), *read]
    if site.parses:
        folders.append(Path(site.parses).parent)
    return bindable(folders, cwd)


def submitit_parameters(site: Site, stage: Stage, dependency: str = "") -> Dict[str, Any]:
    """What submitit's SlurmExecutor is told; it refuses words it does not know."""
    gpu = stage.gpus > 0
    tasks = stage.gpus if gpu and site.layout == "gpu" else 1
    cpus, mem = ((site.cpus_per_gpu * stage.gpus // tasks, site.mem_gb) if gpu else
                 (min(site.follow_cpus, site.cpu_cpus), site.follow_mem_gb)
                 if stage.kind == "follow" else (site.cpu_cpus, site.cpu_mem_gb))
    asked: Dict[str, Any] = {
        "job_name": job_name(stage), "account": site.account, "qos": site.qos,
        "partition": site.partition if gpu else site.cpu_partition or site.partition,
        "time": site.time_min if gpu else site.cpu_time_min, "nodes": stage.nodes,
        "ntasks_per_node": tasks, "cpus_per_task": cpus, "mem": f"{mem}GB" if mem else "",
        "gres": site.gres.format(gpus=stage.gpus) if gpu else "", "dependency": dependency}
    return {
        **{key: value for key, value in asked.items() if value not in ("", None)},
        "wckey": None, "stderr_to_stdout": True,
        "array_parallelism": stage.parallel or max(1, len(stage.jobs)),
        # slurm/job.sh calls srun, to be there when a signal comes.
        "use_srun": False,
        "additional_parameters": {
            # To the batch script alone: see slurm/job.sh.
            "signal": f"B:USR2@{site.signal_delay_s}",
            # A job whose condition can no longer be met must not wait for ever.
            "requeue": True, "kill-on-invalid-dep": "yes",
            **(site.sbatch if gpu else site.cpu_sbatch), **dict(stage.options)},
        "setup": [*(f"module load {shlex.quote(name)} || exit 1" for name in site.modules),
                  *site.setup]}


def job_command(site: Site, stage: Stage, code: Path, wrapper: Path, pickles: Path) -> str:
    """What submitit takes for Python in its batch script."""
    cpus = submitit_parameters(site, stage)["cpus_per_task"]
    numbers = "%A_%a" if len(stage.jobs) > 1 else "%j"
    # The script removes there what the wrapper has made.
    scratch = ["env", f"BLIP_ART_SCRATCH={site.scratch}"] if site.container else []
    return "exec " + shlex.join([
        *scratch, "bash", str(code / "slurm" / "job.sh"), str(wrapper.parent),
        str(site.max_requeues), "srun", "--unbuffered", f"--output={pickles}/{numbers}_%t_log.out",
        f"--cpus-per-task={cpus}", *_SRUN, str(wrapper)])


def job_name(stage: Stage) -> str:
    """What squeue shows; without characters that need quoting."""
    of = stage.runs[0].name if len(stage.jobs) == 1 else stage.runs[0].path.resolve().parent.name
    return re.sub(r"[^\w.-]+", "_", f"{stage.kind}-{of}")


def submitted_name(site: Site, stage: Stage) -> str:
    """The same; '' where the profile gives jobs a name of its own."""
    options = site.sbatch if stage.gpus else site.cpu_sbatch
    return "" if {"job-name", "J"} & set(options) else job_name(stage)


def wait_for_jobs(stages: Sequence[Stage], job_ids: Sequence[str]) -> List[Stage]:
    """The stages, none of which starts before these jobs have ended on all their nodes."""
    waits = tuple(f"afterany:{job_id}" for job_id in dict.fromkeys(job_ids))
    return [stage if stage.after else replace(stage, waits_for=(*stage.waits_for, *waits))
            for stage in stages]


def dependency(stage: Stage, submitted: Dict[str, str]) -> str:
    """'afterok:12,afterany:13', from the numbers of the stages before."""
    kinds = [f"{kind}:{submitted[name]}" for kind, name in stage.after]
    return ",".join([*kinds, *stage.waits_for])


def wrapper_path(folder: Path, text: str) -> Path:
    """Where a wrapper of this text is, or is to be: jobs that were submitted before keep theirs."""
    for number in itertools.count():
        path = folder / (f"wrapper_{number}.sh" if number else "wrapper.sh")
        if not path.exists() or path.read_text(encoding="utf-8") == text:
            return path
    raise AssertionError


def log_pattern(job: Job, index: Optional[int], number: str) -> Tuple[str, str]:
    """A submitted job's id and the pattern of its logs, {restart} being left open."""
    job_id = number if index is None else f"{number}_{index}"
    return job_id, job.log.replace("{job}", job_id)
