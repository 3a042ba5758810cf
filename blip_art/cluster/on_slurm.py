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
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from blip_art.cluster import sweep as sweeps
from blip_art.cluster.batch import (
    Stage,
    eval_stages,
    rescore_stages,
    slurm_place,
    sweep_stages,
    train_stages,
    wait_for_jobs,
)
from blip_art.cluster.container import check_image, check_overlay, image_identity
from blip_art.cluster.control import SCORING, InQueue, Live, jobs_in_queue
from blip_art.cluster.extras import check_jobs, with_extras, without_after
from blip_art.cluster.inputs import check_inputs, folders_of, inputs_of
from blip_art.cluster.limits import Limits, SubmitLimit, read_limits
from blip_art.cluster.pending import settle_all
from blip_art.cluster.plan import Place, collect_job, score_job, train_job
from blip_art.cluster.portions import in_portions, sweep_runs
from blip_art.cluster.preflight import (
    NOTHING,
    SCORE,
    check_training,
    describe_end,
    has_begun,
    is_weights_path,
    refuse_other_settings,
    site_of_runs,
    work_left,
)
from blip_art.cluster.site import ENVIRONMENT, Site, check_site, load_site
from blip_art.cluster.sizes import warn_of_room
from blip_art.cluster.slurm import Slurm
from blip_art.cluster.snapshot import changed_files, take_snapshot
from blip_art.cluster.submit import Submission, ask_expected_start, shown, submit, tell
from blip_art.config import Config, dump_config, first_of, load_config
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text
from blip_art.manifest import read_manifest
from blip_art.predict_plan import plan_predictions
from blip_art.rank_plan import fitting_processes, plan_ranks
from blip_art.run_state import is_finished, unscored
from blip_art.score.lock import owner, taken

EXAMPLE = "configs/sites/v100.yaml"
PATIENCE_S = 120.0
# A run folder has room for one of these at a time.
_EXCLUSIVE = ("train", "predict")


def train(args: argparse.Namespace, repo: Path, run: RunDir) -> int:
    """Training, its follower, the rest of the scores, a report; of a finished run what it lacks."""
    config = load_config(args.config, args.overrides)
    left = work_left(run, config)
    if left == NOTHING or left == SCORE and args.no_score:
        print(describe_end(run), file=sys.stderr)
        return 0
    site = site_of(args, repo, [run])
    place = slurm_place(site, run.code.resolve(), args.processes)
    if left == SCORE:
        return _score_the_rest(args, repo, site, run)
    place = _checked_place(args, place, [(run, config)])
    check_training(run, config, args.nodes * place.processes, place.device)
    if not args.dry_run:
        warn_of_room([run], [config], scored=not args.no_score)
    stages = train_stages(place, run, str(run.frozen_config), nodes=args.nodes,
                          scored=not args.no_score)
    return _go(args, repo, site, run, stages, {run: (args.config, tuple(args.overrides))},
               inputs=_training_inputs(run, config))


def _score_the_rest(args: argparse.Namespace, repo: Path, site: Site, run: RunDir) -> int:
    """Of a run that is trained; unless a job of it is going to."""
    scoring = [] if args.dry_run else [
        (job, row) for _, job, row in jobs_in_queue([run], Slurm()).living if job.stage in SCORING]
    if scoring:
        job, row = scoring[0]
        print(f"{run.path} is trained; {job.stage} job {job.job_id} is {row.state.lower()}, "
              "nothing to submit", file=sys.stderr)
        return 0
    print(f"{run.path} is trained: only what is not scored is submitted", file=sys.stderr)
    return _go(args, repo, site, run, rescore_stages(slurm_place(site, run.code.resolve()), run))


def _checked_place(args: argparse.Namespace, place: Place,
                   trainings: Sequence[Tuple[RunDir, Config]]) -> Place:
    """With as many ranks as all can go on with, where the command does not say how many.

    Raises:
        UserError: one cannot go on with that many.
    """
    if trainings and not args.processes:
        place = dataclasses.replace(place, processes=min(
            fitting_processes(run, config, place.processes, args.nodes)
            for run, config in trainings))
    for run, config in trainings:
        plan_ranks(run, config, args.nodes * place.processes)
    return place


def predict(args: argparse.Namespace, repo: Path, run: RunDir, options: Sequence[str],
            scored: bool) -> int:
    """Captions, and scores where they are wanted."""
    site = site_of(args, repo, [run])
    place = slurm_place(site, run.code.resolve(), args.processes)
    inputs = {f"--{key}": Path(name).expanduser()
              for key, name in (("config", args.config), ("weights", args.weights))
              if name and is_weights_path(name)}
    if args.config or run.config.exists():
        plan = plan_predictions(run, args.config or "", args.weights or "", args.epoch,
                                (args.split,) if args.split else (), args.overrides)
        inputs.update(inputs_of(plan.config, plan.splits,
                                weights=not args.weights and not run.saved_epochs()))
    return _go(args, repo, site, run, eval_stages(place, run, options, args.nodes, scored),
               inputs=inputs)


def score(args: argparse.Namespace, repo: Path, run: RunDir) -> int:
    """What has no scores."""
    site = site_of(args, repo, [run])
    place = slurm_place(site, run.code.resolve())
    return _go(args, repo, site, run, [Stage("score", (score_job(place, run),), (run,))])


def collect(args: argparse.Namespace, repo: Path, runs: Sequence[RunDir], out: Path) -> int:
    """A report, made in the image, which has what plots need."""
    site = site_of(args, repo, runs)
    report = RunDir(out)  # its own copy of the code: a run's may be that of a running job
    place = slurm_place(site, report.code.resolve())
    return _go(args, repo, site, report,
               [Stage("collect", (collect_job(place, runs, out),), (report,))],
               inputs={str(run.path): run.path for run in runs})


def sweep(args: argparse.Namespace, repo: Path) -> int:
    """Every run that is missing or failed, as one array; then all scores and a report."""
    plan = sweeps.load_sweep(args.sweep, args.overrides)
    folder = plan.members()[0].run.path.parent
    site = site_of(args, repo, [member.run for member in plan.members()])
    with contextlib.nullcontext() if args.dry_run else _alone(folder):
        return _sweep(args, repo, plan, site, folder)


def _sweep(args: argparse.Namespace, repo: Path, plan: sweeps.Sweep, site: Site,
           folder: Path) -> int:
    members, code = plan.members(), folder / "code"
    slurm = Slurm()
    # The sweep's own folder has the job of its report, which uses the code there, too.
    queue = InQueue([], []) if args.dry_run else jobs_in_queue(
        [*(m.run for m in members), RunDir(folder)], slurm)
    todo, to_score, active = lacking(
        [m for m in members if sweeps.is_asked(m, args.only)], queue.living)
    refuse_other_settings((m.run, load_config(m.config, m.overrides))
                          for m in members if has_begun(m.run))
    print(f"{plan.name}: {len(members)} runs; {len(todo)} to submit, {active} in the queue, "
          f"{sum(is_finished(m.run) for m in members)} trained", file=sys.stderr)
    place = slurm_place(site, code.resolve(), args.processes)
    configs = [(m.run, load_config(m.config, m.overrides)) for m in todo]
    place = _checked_place(args, place, configs)
    asks = not args.dry_run and (todo or to_score)
    limits = read_limits(site, slurm) if asks else Limits()
    todo = fitting(todo, len(to_score), limits.submit)
    stages = with_extras(in_portions(_sweep_stages(
        args, plan, place, members, todo, to_score, folder / "report"), limits.array_size),
        args.after, args.mail)
    asked = {run.path for run in [*(m.run for m in todo), *to_score]}
    stages = _after_ending(stages, [one for one in queue.ending if one[0].path in asked])
    inputs = [_training_inputs(run, config) for run, config in configs[:len(todo)]]
    to = Submission(site, code, folder / "slurm", _command(),
                    folders_of((path for one in inputs for path in one.values()), site))
    if args.dry_run:
        _show_changed_code(args, repo, code, stages)
    if args.dry_run or not stages:
        print(shown(stages, to) if stages else "", end="")
        return 0
    check_jobs(args.after, slurm, site.has_sacct)
    identity = container_of(site)
    for one in inputs:
        check_inputs(one, site)
    if todo:  # they differ in little that takes room
        warn_of_room([m.run for m in todo], [configs[0][1]] * len(todo))
    _snapshot(args, repo, code, queue.living, stages)
    for member in todo:
        _note(member.run, identity)
        _freeze(member.run, member.config, member.overrides)
    if not plan.submitted:
        sweeps.record_sweep(folder, plan)
    tell(submit(stages, dataclasses.replace(to, cluster=slurm.cluster_name())), RunDir(folder))
    return 0


def fitting(todo: List[sweeps.Member], to_score: int, limit: Optional[SubmitLimit],
            queued: Callable[[], int] = lambda: Slurm().own_jobs()) -> List[sweeps.Member]:
    """The first of the runs, as many as may be in the queue; a line on stderr about the others.

    Raises:
        UserError: there is no room for one.
    """
    if limit is None or sweep_runs(limit.most - (there := queued()), to_score) >= len(todo):
        return todo
    room = sweep_runs(limit.most - there, to_score)
    why = (f"you may have {limit.most} jobs in the queue ({limit.whose}), {there} are there, and "
           "a run is 2")
    if not room:
        raise UserError(f"{why}; wait until some have ended, the same command then goes on")
    print(f"{len(todo) - room} of {len(todo)} runs are not submitted yet: {why}; the same command "
          "again submits more once these have ended", file=sys.stderr)
    return todo[:room]


def lacking(members: Sequence[sweeps.Member], living: Sequence[Live]
            ) -> Tuple[List[sweeps.Member], List[RunDir], int]:
    """Which are to be trained, which to be scored alone, and how many train or wait to."""
    training = {run.path for run, job, _ in living if job.stage in _EXCLUSIVE}
    scoring = {run.path for run, job, _ in living if job.stage in SCORING}
    idle = [m for m in members if m.run.path not in training]
    to_score = [m.run for m in idle if m.run.path not in scoring
                and is_finished(m.run) and unscored(m.run)]
    return [m for m in idle if not is_finished(m.run)], to_score, len(training)


def _sweep_stages(args: argparse.Namespace, plan: sweeps.Sweep, place: Any,
                  members: Sequence[sweeps.Member], todo: Sequence[sweeps.Member],
                  to_score: Sequence[RunDir], out: Path) -> List[Stage]:
    stages: List[Stage] = []
    if to_score:
        stages.append(Stage("rescore", tuple(score_job(place, run) for run in to_score),
                            tuple(to_score)))
    if todo:
        jobs = [train_job(place, str(m.run.frozen_config), m.run) for m in todo]
        stages += sweep_stages(place, [m.run for m in todo], jobs, args.nodes, plan.parallel)
    if stages:
        # The report is of all runs, whichever of them are submitted now.
        runs = [m.run for m in members]
        after = tuple(("afterany", stage.name) for stage in stages if stage.name != "train")
        # It is the job of the sweep's folder, and of none of its runs.
        stages.append(Stage("collect", (collect_job(place, runs, out, partial=True),),
                            (RunDir(out.parent),), after=after))
    return stages


def site_of(args: argparse.Namespace, repo: Path, runs: Sequence[RunDir] = ()) -> Site:
    """The profile with what the command line changes.

    Where none is named it is the one that the runs were submitted with on this cluster; a dry run
    may do with the example.
    """
    named = (getattr(args, "site", None) or os.environ.get(ENVIRONMENT, "")
             or site_of_runs(runs, Slurm()))
    if not named and args.dry_run:
        named = str(repo / EXAMPLE)
    site = load_site(named)
    changes: Dict[str, Any] = {key: getattr(args, key) for key in ("partition", "account")
                               if getattr(args, key, None)}
    if getattr(args, "time", None):
        changes["time_min"] = args.time
    site = dataclasses.replace(site, **changes)
    check_site(site)
    if getattr(args, "processes", 0) > site.gpus_per_node:
        raise UserError(f"--gpus {args.processes}: nodes have {site.gpus_per_node} "
                        f"('gpus_per_node' in {site.path}); --nodes asks for more of them")
    return site


def _go(args: argparse.Namespace, repo: Path, site: Site, run: RunDir, stages: Sequence[Stage],
        trains: Optional[Dict[RunDir, Tuple[str, Tuple[str, ...]]]] = None,
        inputs: Optional[Dict[str, Path]] = None) -> int:
    inputs = inputs or {}
    stages = with_extras(stages, args.after, args.mail)
    to = Submission(site, run.code, run.slurm, _command(), folders_of(inputs.values(), site))
    if args.dry_run:
        _show_changed_code(args, repo, run.code, stages)
        print(shown(stages, to), end="")
        return 0
    with _alone(run.path):
        slurm = Slurm()
        living, ending = jobs_in_queue([run], slurm)
        busy = [job for _, job, _ in living if job.stage in _EXCLUSIVE]
        if busy and any(stage.kind in _EXCLUSIVE for stage in stages):
            raise UserError(f"{run.path} is already in the queue as job {busy[0].job_id}; "
                            f"'launch.py cancel {run.path}' first, or choose another --run")
        check_jobs(args.after, slurm, site.has_sacct)
        identity = container_of(site)
        check_inputs(inputs, site)
        _snapshot(args, repo, run.code, living, stages)
        if stages[0].kind != "collect":
            _note(run, identity)
        for one, (config, overrides) in (trains or {}).items():
            _freeze(one, config, overrides)
        to = dataclasses.replace(to, cluster=slurm.cluster_name())
        stages = _after_ending(stages, ending)
        expected = ask_expected_start(stages[0], to)  # before: then it is not behind itself
        tell(submit(stages, to), run)
        print(f"  {expected}, as the queue is now\n" * bool(expected), end="", file=sys.stderr)
    return 0


def _after_ending(stages: Sequence[Stage], ending: Sequence[Live]) -> List[Stage]:
    """Slurm starts them when what was cancelled has left its nodes: two must not write at once.

    A dependency, and no waiting here: it holds however long that takes, also when this command is
    interrupted.
    """
    ids = [job.job_id for _, job, _ in ending]
    if ids:
        print(f"{_count(ids, 'job')} ended but not yet on all nodes ({first_of(ids)}): what is "
              "submitted now starts when that is over", file=sys.stderr)
    return wait_for_jobs(stages, ids)


def _training_inputs(run: RunDir, config: Config) -> Dict[str, Path]:
    return inputs_of(config, weights=not run.saved_checkpoints())


def _snapshot(args: argparse.Namespace, repo: Path, code: Path, living: Sequence[Live],
              stages: Sequence[Stage]) -> None:
    """Copy the code, unless jobs use the copy that is there: they go on with what they began.

    Raises:
        UserError: the copy is of a version whose scripts do not know what is written for them now.
    """
    kept = code.exists() and (bool(living) or _keeps_code(args))
    if kept and not (code / "singularity" / "scratch.sh").is_file():
        raise UserError(f"{code} is of an older version, whose scripts this one cannot start; " + (
            "wait until its jobs have ended, or cancel them" if living else
            "leave out --code frozen"))
    if living and code.exists():
        print(f"the code in {code} stays as it is: {len(living)} jobs use it", file=sys.stderr)
        return
    _show_changed_code(args, repo, code, stages)
    if not (_keeps_code(args) and code.exists()):
        take_snapshot(repo, code)


def _show_changed_code(args: argparse.Namespace, repo: Path, code: Path,
                       stages: Sequence[Stage]) -> None:
    """Which files of the copy that a run began with are others in the checkout.

    The checkout's are used unless the user says otherwise: it is what writes the scripts of the
    jobs, and most of those who resume have just fixed something.
    """
    changed = changed_files(repo, code)
    if changed and any(stage.kind in _EXCLUSIVE for stage in stages):
        which = ("the copy goes on" if _keeps_code(args) else
                 "the checkout's are used, '--code frozen' keeps the copy")
        print(f"{_count(changed, 'file')} of the code changed since {code} was copied "
              f"({first_of(changed)}): {which}", file=sys.stderr)


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _keeps_code(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "code", "") == "frozen")


def _freeze(run: RunDir, config: str, overrides: Sequence[str]) -> None:
    """What queued and requeued jobs read, whatever becomes of the file it came from."""
    write_text(run.frozen_config, dump_config(load_config(config, overrides)), durable=False)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One submission of a folder at a time: the second then finds the first one's jobs, also
    where that was ended before it knew them."""
    path = RunDir(folder).submission_lock
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with taken(path) as ours:
            if ours:
                for line in settle_all([RunDir(folder)], Slurm(), give_up=True, held=folder):
                    print(line, file=sys.stderr)
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
    write_json(run.manifest, {**read_manifest(run), **identity}, indent=1, durable=False)


def _command() -> List[str]:
    return without_after(sys.argv[1:])
