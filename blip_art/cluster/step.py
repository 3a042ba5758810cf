"""What slurm/*.sbatch run in the container, for those who write their own batch scripts.

    python -m blip_art.cluster.step prepare train CONFIG [key=value …]     prints the run folder
    srun … python -m blip_art.cluster.step train CONFIG [key=value …]
    srun … python -m blip_art.cluster.step score RUN
    srun … python -m blip_art.cluster.step sweep FILE       the run is $SLURM_ARRAY_TASK_ID's
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import List, Optional, Tuple

from blip_art.cluster.allocation import Task, run_in_allocation
from blip_art.cluster.jobs import Job
from blip_art.cluster.plan import Place, score_job, train_job, visible_gpus
from blip_art.cluster.record import Submitted, read_jobs, record_jobs
from blip_art.cluster.snapshot import take_snapshot
from blip_art.cluster.sweep import load_sweep
from blip_art.config import dump_config, load_config
from blip_art.errors import UserError, exit_cleanly
from blip_art.files import RunDir, write_text
from blip_art.manifest import CODE_ROOT


def main(argv: Optional[List[str]] = None) -> int:
    args = parse_args(argv)
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError("no Slurm job here; 'sbatch slurm/train.sbatch CONFIG' starts one, "
                        "'launch.py train CONFIG' trains without Slurm")
    run, job, words = planned(args.stage, args.words)
    if args.prepare:
        prepare(run, args.stage, job, words)
        print(run.path.resolve())
        return 0
    return run_in_allocation(job, str(run.slurm))


def planned(stage: str, words: List[str]) -> Tuple[RunDir, Job, List[str]]:
    """The run and the command of a stage; for a training its configuration and overrides, too."""
    if stage == "score":
        run = RunDir(words[0])
        if not run.path.is_dir():
            raise UserError(f"no run folder at {words[0]}; slurm/train.sbatch makes one")
        return run, score_job(_place(run), run), []
    config, overrides = words[0], words[1:]
    if stage == "sweep":
        members = load_sweep(config).members()
        index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "-1"))
        if not 0 <= index < len(members):
            raise UserError(f"{config} has {len(members)} runs: sbatch --array=0-"
                            f"{len(members) - 1} slurm/sweep.sbatch {config}")
        config, run = load_sweep(config).config, members[index].run
        overrides = list(members[index].overrides)
    else:
        run = RunDir(Path("runs", load_config(config, overrides).name))
    return run, train_job(_place(run), str(run.frozen_config), run), [config, *overrides]


def prepare(run: RunDir, stage: str, job: Job, words: List[str]) -> None:
    """Before srun: copy code and configuration once, and note the job for 'launch.py status'."""
    task = Task.read(os.environ)
    if not task.restart or not run.code.exists():
        take_snapshot(CODE_ROOT, run.code)
        if stage != "score":
            config, *overrides = words
            write_text(run.frozen_config, dump_config(load_config(config, overrides)))
    if all(old.job_id != task.name for old in read_jobs(run)):
        log = os.path.join(job.cwd, job.log.replace("{job}", task.name))
        gpus = 0 if stage == "score" else len(visible_gpus())
        record_jobs(run, [Submitted("score" if stage == "score" else "train", task.name, log,
                                    gpus=gpus, nodes=len(task.nodes), cwd=job.cwd)])


def _place(run: RunDir) -> Place:
    gpus = len(visible_gpus()) or 1
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK") or len(os.sched_getaffinity(0)))
    return Place(python=sys.executable, cwd=os.getcwd(), code=str(run.code.resolve()),
                 cache=os.environ.get("BLIP_ART_CACHE", ""), processes=gpus,
                 threads=max(1, cpus // gpus), layout="node",
                 parses=os.environ.get("BLIP_ART_PARSES", ""))


def parse_args(argv: Optional[List[str]]) -> argparse.Namespace:
    """The words, with `prepare` taken off their front."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepares = words[:1] == ["prepare"]
    parser = argparse.ArgumentParser(prog="python -m blip_art.cluster.step", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "score", "sweep"))
    parser.add_argument("words", nargs="+", metavar="CONFIG_RUN_OR_FILE")
    args = parser.parse_args(words[1:] if prepares else words)
    args.prepare = prepares
    return args


if __name__ == "__main__":
    exit_cleanly(main)
