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
from contextlib import nullcontext
from pathlib import Path
from typing import List, Optional, Tuple

from blip_art.cluster.allocation import Task, run_in_allocation
from blip_art.cluster.container import image_identity
from blip_art.cluster.jobs import Job
from blip_art.cluster.plan import Place, score_job, train_job, visible_gpus
from blip_art.cluster.record import Submitted, read_jobs, record_jobs
from blip_art.cluster.snapshot import take_snapshot
from blip_art.cluster.sweep import load_sweep
from blip_art.config import dump_config, load_config
from blip_art.errors import UserError, exit_cleanly
from blip_art.files import RunDir, read_json_object, write_json, write_text
from blip_art.manifest import CODE_ROOT, read_manifest
from blip_art.score.lock import owner, taken

# Of each job, by its number, what it was planned to do; in the checkout.
NOTES = Path(".cache", "blip_art", "jobs")


def main(argv: Optional[List[str]] = None) -> int:
    args = parse_args(argv)
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError("no Slurm job here; 'sbatch slurm/train.sbatch CONFIG' starts one, "
                        "'launch.py train CONFIG' trains without Slurm")
    task = Task.read(os.environ)
    run, words = planned_once(args.stage, args.words, task,
                              first=args.prepare and not task.restart)
    job = (score_job(_place(run), run) if args.stage == "score" else
           train_job(_place(run), str(run.frozen_config), run))
    if args.prepare:
        prepare(run, args.stage, job, words)
        print(run.path.resolve())
        return 0
    return run_in_allocation(job, str(run.slurm))


def planned_once(stage: str, words: List[str], task: Task,
                 first: bool) -> Tuple[RunDir, List[str]]:
    """What is planned at a job's first start, also when its files have been edited since."""
    note = NOTES / f"{task.name}.json"
    if first or not note.exists():  # numbers of jobs come round again
        run, words = planned(stage, words)
        write_json(note, {"run": str(run.path), "words": words})
    noted = read_json_object(note)
    path, kept = noted.get("run"), noted.get("words")
    if not (isinstance(path, str) and isinstance(kept, list)
            and all(isinstance(word, str) for word in kept)):
        raise UserError(f"{note} is not as this job wrote it; cancel the job and submit it again")
    return RunDir(path), kept


def planned(stage: str, words: List[str]) -> Tuple[RunDir, List[str]]:
    """The run of a stage; for a training its configuration and overrides, too."""
    if stage == "score":
        run = RunDir(words[0])
        if not run.path.is_dir():
            raise UserError(f"no run folder at {words[0]}; slurm/train.sbatch makes one")
        return run, []
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
    return run, [config, *overrides]


def prepare(run: RunDir, stage: str, job: Job, words: List[str]) -> None:
    """Before srun: copy code and configuration once, and note the job for 'launch.py status'.

    Raises:
        UserError: another training is at work in the run folder, with a copy of its own.
    """
    task = Task.read(os.environ)
    if not task.restart or not run.code.exists():
        with taken(run.training_lock) if stage != "score" else nullcontext(True) as free:
            if not free:
                raise UserError(f"{owner(run.training_lock) or 'another job'} is training in "
                                f"{run.path}; wait for it, or choose another name=…")
            take_snapshot(CODE_ROOT, run.code)
            if stage != "score":
                config, *overrides = words
                write_text(run.frozen_config, dump_config(load_config(config, overrides)))
    _note_images(run)
    if all(old.job_id != task.name for old in read_jobs(run)):
        log = os.path.join(job.cwd, job.log.replace("{job}", task.name))
        gpus = 0 if stage == "score" else len(visible_gpus())
        record_jobs(run, [Submitted("score" if stage == "score" else "train", task.name, log,
                                    gpus=gpus, nodes=len(task.nodes), cwd=job.cwd)])


def _note_images(run: RunDir) -> None:
    """Which image and overlay this is, where the container can see their files."""
    known = {name: image_identity(path) for name, path in
             (("image", os.environ.get("SIF", "")), ("overlay", os.environ.get("OVERLAY", "")))
             if path and Path(path).exists()}
    write_json(run.manifest, {**read_manifest(run), **known}, indent=1)


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
