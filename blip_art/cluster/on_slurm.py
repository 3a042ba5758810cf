"""launch.py's commands with --cluster slurm: stages from the arguments, shown or submitted.

    ./launch.py train configs/caption_art.yaml --cluster slurm --site configs/sites/mine.yaml
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from blip_art.cluster import sweep as sweeps
from blip_art.cluster.batch import (
    Stage,
    eval_stages,
    slurm_place,
    sweep_stages,
    train_stages,
)
from blip_art.cluster.container import check_image, check_overlay, image_identity
from blip_art.cluster.plan import collect_job, score_job, train_job
from blip_art.cluster.record import read_jobs
from blip_art.cluster.site import ENVIRONMENT, Site, load_site
from blip_art.cluster.slurm import Slurm
from blip_art.cluster.snapshot import take_snapshot
from blip_art.cluster.submit import Submission, shown, submit, tell
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, write_json
from blip_art.score.lock import owner, taken

EXAMPLE = "configs/sites/v100.yaml"
PATIENCE_S = 120.0
# A run folder has room for one of these at a time.
_EXCLUSIVE = ("train", "predict")


def train(args: argparse.Namespace, repo: Path, run: RunDir) -> int:
    """Training, its follower, the rest of the scores, a report."""
    site = site_of(args, repo)
    place = slurm_place(site, run.code.resolve(), args.processes)
    stages = train_stages(place, run, args.config, args.overrides, args.nodes, not args.no_score)
    return _go(args, repo, site, run, stages)


def predict(args: argparse.Namespace, repo: Path, run: RunDir, options: Sequence[str],
            scored: bool) -> int:
    """Captions, and scores where they are wanted."""
    site = site_of(args, repo)
    place = slurm_place(site, run.code.resolve(), args.processes)
    return _go(args, repo, site, run, eval_stages(place, run, options, args.nodes, scored))


def score(args: argparse.Namespace, repo: Path, run: RunDir) -> int:
    """What has no scores."""
    site = site_of(args, repo)
    place = slurm_place(site, run.code.resolve())
    return _go(args, repo, site, run, [Stage("score", (score_job(place, run),), (run,))])


def collect(args: argparse.Namespace, repo: Path, runs: Sequence[RunDir], out: Path) -> int:
    """A report, made in the image, which has what plots need."""
    site = site_of(args, repo)
    place = slurm_place(site, runs[0].code.resolve())
    stage = Stage("collect", (collect_job(place, runs, out),), (runs[0],))
    return _go(args, repo, site, runs[0], [stage])


def sweep(args: argparse.Namespace, repo: Path) -> int:
    """Every run that is missing or failed, as one array; then all scores and a report."""
    plan = sweeps.load_sweep(args.sweep)
    folder = plan.members()[0].run.path.parent
    site = site_of(args, repo)
    with contextlib.nullcontext() if args.dry_run else _alone(folder):
        return _sweep(args, repo, plan, site, folder)


def _sweep(args: argparse.Namespace, repo: Path, plan: sweeps.Sweep, site: Site,
           folder: Path) -> int:
    members, code = plan.members(), folder / "code"
    active = set() if args.dry_run else active_jobs([member.run for member in members])
    todo = [m for m in members
            if m.run.path not in active and not sweeps.finished(m.run)]
    unscored = [m.run for m in members if m.run.path not in active
                and sweeps.finished(m.run) and not sweeps.scored(m.run)]
    print(f"{plan.name}: {len(members)} runs; {len(todo)} to submit, {len(active)} in the queue, "
          f"{len(members) - len(todo) - len(active)} trained", file=sys.stderr)
    place = slurm_place(site, code.resolve(), args.processes)
    stages = _sweep_stages(args, plan, place, members, todo, unscored, folder / "report")
    to = Submission(site, code, folder / "slurm", _command())
    if args.dry_run or not stages:
        print(shown(stages, to) if stages else "", end="")
        return 0
    identity = container_of(site)
    take_snapshot(repo, code)
    for member in todo:
        _note(member.run, identity)
    write_json(folder / "sweep.json", {"file": os.path.abspath(plan.path), "runs": [
        {"run": str(m.run.path), "overrides": list(m.overrides)} for m in members]}, indent=1)
    tell(submit(stages, to), RunDir(folder))
    return 0


def _sweep_stages(args: argparse.Namespace, plan: sweeps.Sweep, place: Any,
                  members: Sequence[sweeps.Member], todo: Sequence[sweeps.Member],
                  unscored: Sequence[RunDir], out: Path) -> List[Stage]:
    stages: List[Stage] = []
    if unscored:
        stages.append(Stage("rescore", tuple(score_job(place, run) for run in unscored),
                            tuple(unscored)))
    if todo:
        jobs = [train_job(place, plan.config, m.run, m.overrides) for m in todo]
        stages += sweep_stages(place, [m.run for m in todo], jobs, args.nodes, plan.parallel)
    if stages:
        # The report is of all runs, whichever of them are submitted now.
        runs = [m.run for m in members]
        after = tuple(("afterany", stage.name) for stage in stages if stage.name != "train")
        stages.append(Stage("collect", (collect_job(place, runs, out),), (runs[0],), after=after))
    return stages


def site_of(args: argparse.Namespace, repo: Path) -> Site:
    """The profile with what the command line changes; a dry run may do with the example."""
    named = getattr(args, "site", None) or os.environ.get(ENVIRONMENT, "")
    if not named and args.dry_run:
        named = str(repo / EXAMPLE)
    site = load_site(named)
    changes: Dict[str, Any] = {key: getattr(args, key) for key in ("partition", "account")
                               if getattr(args, key, None)}
    if getattr(args, "time", None):
        changes["time_min"] = args.time
    return dataclasses.replace(site, **changes)


def active_jobs(runs: Sequence[RunDir]) -> Dict[Path, str]:
    """Runs that have a training or prediction in the queue, and its job; one call at most."""
    jobs = {job.job_id: run.path for run in runs for job in read_jobs(run)
            if job.stage in _EXCLUSIVE}
    if not jobs:
        return {}
    queued = Slurm().squeue(jobs)
    return {jobs[job_id]: job_id for job_id, row in queued.items() if job_id in jobs
            and row.state in ("PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "CONFIGURING",
                              "COMPLETING", "REQUEUE_HOLD", "SPECIAL_EXIT", "STOPPED", "SIGNALING")}


def _go(args: argparse.Namespace, repo: Path, site: Site, run: RunDir,
        stages: Sequence[Stage]) -> int:
    to = Submission(site, run.code, run.slurm, _command())
    if args.dry_run:
        print(shown(stages, to), end="")
        return 0
    with _alone(run.path):
        if any(stage.name in _EXCLUSIVE for stage in stages):
            active = active_jobs([run])
            if active:
                raise UserError(f"{run.path} is already in the queue as job {active[run.path]}; "
                                f"'launch.py cancel {run.path}' first, or choose another --run")
        identity = container_of(site)
        take_snapshot(repo, run.code)
        _note(run, identity)
        tell(submit(stages, to), run)
    return 0


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One submission of a folder at a time: the second then finds the first one's jobs."""
    path = folder / "slurm" / ".submitting"
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with taken(path) as ours:
            if ours:
                yield
                return
        if time.monotonic() > deadline:
            raise UserError(f"{owner(path) or 'another process'} is submitting {folder} for more "
                            f"than {PATIENCE_S:.0f} s; wait for it, or end it")
        time.sleep(0.2)


def container_of(site: Site) -> Dict[str, Any]:
    """What the manifest says of image and overlay.

    Raises:
        UserError: one of them is absent or broken, or somebody writes to the overlay.
    """
    found: Dict[str, Any] = {}
    if site.container:
        check_image(site.image)
        found["image"] = image_identity(site.image)
    if site.container and site.overlay:
        check_overlay(site.overlay)
        found["overlay"] = image_identity(site.overlay)
    return found


def _note(run: RunDir, identity: Dict[str, Any]) -> None:
    manifest = read_json(run.manifest) if run.manifest.exists() else {}
    write_json(run.manifest, {**manifest, **identity}, indent=1, durable=False)


def _command() -> List[str]:
    return sys.argv[1:]
