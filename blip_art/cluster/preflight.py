"""What is wrong with a command, or done already: known before its jobs are queued or started.

    left = work_left(run, config); refuse_changes(run, config, ranks=4)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Iterable, Tuple

from blip_art.cluster.ownership import jobs_here
from blip_art.cluster.record import read_jobs
from blip_art.cluster.site import ENVIRONMENT
from blip_art.cluster.slurm import Slurm
from blip_art.config import HARMLESS, Config, differences, first_of, load_run_config
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.predict_plan import plan_predictions
from blip_art.rank_plan import describe_plan, plan_ranks
from blip_art.resume_checks import refuse_changes
from blip_art.run_state import is_finished, unscored

# What is left of a training.
TRAIN, SCORE, NOTHING = "train", "score", ""
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")


# Training ----------------------------------------------------------------------------------


def work_left(run: RunDir, config: Config) -> str:
    """TRAIN, SCORE of what has been trained, or NOTHING.

    Raises:
        UserError: the run has begun with another configuration.
    """
    if has_begun(run):
        refuse_other_settings([(run, config)])
    last = config.train.epochs - 1
    done = is_finished(run) and run.train_log.exists() and all(
        run.predictions(split, last).exists() for split in config.generate.splits)
    if not done:
        return TRAIN
    return SCORE if unscored(run) else NOTHING


def check_training(run: RunDir, config: Config, ranks: int, device: str = "") -> None:
    """Refuse a training that could not go on; say what is special about one that can.

    Raises:
        UserError: see `refuse_changes`.
    """
    refuse_changes(run, config, ranks, device)
    line = describe_plan(plan_ranks(run, config, ranks), config.train.accumulate)
    if line:
        print(f"{run.path} {line}", file=sys.stderr)


def describe_end(run: RunDir) -> str:
    """One line about a run of which nothing is left to be trained."""
    missing = len(unscored(run))
    if missing:
        return (f"{run.path} is trained, nothing to do; {missing} epochs are not scored: leave out "
                "--no-score")
    return f"{run.path} is finished and scored, nothing to do"


def has_begun(run: RunDir) -> bool:
    """Whether there is something of a run that other settings would not go with."""
    return run.config.exists() and (bool(run.saved_checkpoints() or run.predicted()))


def refuse_other_settings(asked: Iterable[Tuple[RunDir, Config]]) -> None:
    """A run that has begun is not taken for one of another configuration."""
    other = [(run, changed) for run, config in asked
             if (changed := differences(load_run_config(run.config), config, skip=HARMLESS))]
    if other:
        run, changed = other[0]
        more = f", as were {len(other) - 1} others" if other[1:] else ""
        raise UserError(f"{run.path} was run with another configuration ({first_of(changed)})"
                        f"{more}; undo the change, or give the run or sweep another name")


# Captions ----------------------------------------------------------------------------------


def check_predictions(args: argparse.Namespace, run: RunDir) -> None:
    """What `predict` and `eval` would do can be done.

    Raises:
        UserError: there are no such weights, or captions of other settings would be replaced.
    """
    plan = plan_predictions(run, args.config or "", args.weights or "", args.epoch,
                            (args.split,) if args.split else (), args.overrides)
    if args.cluster != "slurm" and is_weights_path(plan.source) and not Path(
            plan.source).expanduser().exists():  # on Slurm the profile may bind it
        raise UserError(f"no weights at {plan.source}; give the path of a file or folder, or "
                        "'launch.py fetch weights' brings those of BLIP")


def is_weights_path(name: str) -> bool:
    """Whether --weights means a file or folder here, rather than a name of the model hub."""
    return (Path(name).expanduser().exists() or name.endswith(_WEIGHTS)
            or name.startswith(("/", "./", "../", "~")))


# Profiles ----------------------------------------------------------------------------------


def site_of_runs(runs: Iterable[RunDir], slurm: Slurm) -> str:
    """The profile that the first of the runs was submitted with last here; '' if none is there.

    Raises:
        UserError: the only ones are of other clusters, whose names are not for this one.
    """
    elsewhere = ""
    for run in runs:
        for job in reversed(read_jobs(run)):
            if job.site and Path(job.site).is_file():
                if jobs_here(slurm, [job]):
                    return job.site
                elsewhere = elsewhere or (f"{run.path} was submitted with {job.site}, a profile "
                                          f"of cluster {job.cluster}")
    if elsewhere:
        raise UserError(f"{elsewhere}; name a profile of this cluster ({slurm.cluster_name()}) "
                        f"with --site FILE or {ENVIRONMENT}")
    return ""
