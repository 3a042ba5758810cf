#!/usr/bin/env python3
"""The login node's door to blip-art: plans jobs, runs them, shows what they say.

    ./launch.py train configs/caption_art.yaml      ./launch.py demo      ./launch.py --help
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Sequence

from blip_art.cluster import cli_build, cli_day, cli_tools, extras
from blip_art.errors import UserError, exit_cleanly

if TYPE_CHECKING:  # --help must not wait for imports
    from blip_art.cluster.jobs import Job
    from blip_art.cluster.plan import Place
    from blip_art.files import RunDir

REPO = Path(__file__).resolve().parent
# What this program itself needs; see blip_art/cluster/checks.py.
LOGIN_PACKAGES = ("yaml", "submitit")

EXAMPLES = """\
examples:
  ./launch.py demo                                    everything, on drawn pictures, in minutes
  ./launch.py train configs/caption_art.yaml          fine-tune; again: go on where it stopped
  ./launch.py train configs/caption_art.yaml train.lr=5e-5 --run runs/lr5e-5
  ./launch.py train configs/caption_art.yaml --dry-run     show the commands, run nothing
  ./launch.py score --run runs/caption_art            score every epoch's captions
  ./launch.py eval configs/caption_art.yaml --split test   caption the test set, then score
  ./launch.py collect runs/* -o report                tables, curves and one page
  ./launch.py train configs/caption_art.yaml --cluster slurm --site configs/sites/mine.yaml
  ./launch.py sweep configs/sweeps/lr.yaml --cluster slurm     again: what is missing or failed
  ./launch.py status; ./launch.py logs -f runs/caption_art; ./launch.py cancel runs/caption_art
  ./launch.py site init; ./launch.py image build; ./launch.py overlay build; ./launch.py fetch
  ./launch.py doctor --job; ./launch.py shell --gpus 1; ./launch.py clean

Every stage reads and writes files in a run folder (runs/NAME) and can be run alone.
Commands end with 0 (done), 1 (failed), 2 (your input: one line says how to fix it)
or 130 (interrupted; the same command goes on)."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse the command line and run one subcommand; the exit code."""
    parser = build_parser()
    args, extra = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):
        # argparse gives up on key=value behind an option: train X.yaml --run R key=value
        args.overrides += [word for word in extra if not word.startswith("-")]
        extra = [word for word in extra if word.startswith("-")]
    if extra:
        parser.error(f"unknown argument {extra[0]}; see launch.py {args.command} --help")
    try:
        extras.check_arguments(args)
        return int(args.function(args))
    except ModuleNotFoundError as error:
        if error.name not in LOGIN_PACKAGES:
            raise
        from blip_art.cluster.packages import describe_missing

        raise UserError(describe_missing(error.name)) from error


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="launch.py", description="Fine-tune, evaluate and compare art captioners.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(commands, "train", run_train, "fine-tune a model, or go on with a run")
    train.add_argument("config", metavar="CONFIG", help="for example configs/caption_art.yaml")
    train.add_argument("overrides", metavar="key=value", nargs="*",
                       help="change the configuration, for example train.batch_size=16")
    train.add_argument("--run", metavar="DIR", help="run folder (default: runs/NAME, NAME being "
                                                    "`name` in the configuration)")
    train.add_argument("--no-score", action="store_true",
                       help="do not score each epoch's captions beside training")
    _processes(train)

    sweep = _command(commands, "sweep", run_sweep, "many runs of one configuration")
    sweep.add_argument("sweep", metavar="FILE",
                       help="for example configs/sweeps/lr.yaml; or the folder of a sweep that "
                            "was submitted, whose runs go on with the settings they had")
    sweep.add_argument("overrides", metavar="key=value", nargs="*",
                       help="change the configuration of all runs, as `set:` in the file does")
    sweep.add_argument("--only", metavar="RUN", nargs="+",
                       help="of the missing and failed runs only these")
    _processes(sweep)

    _add_predict_and_eval(commands)
    score = _command(commands, "score", run_score, "score all captions that have no scores yet")
    _run_folder(score)
    score.add_argument("overrides", metavar="CONFIG", nargs="*",
                       help="stands for --run runs/NAME, NAME being `name` in the configuration")

    collect = _command(commands, "collect", run_collect, "tables, curves and a page from runs")
    collect.add_argument("runs", metavar="RUN", nargs="+",
                         help="run folders, or folders with runs below; others are passed over")
    collect.add_argument("-o", "--output", metavar="DIR",
                         help="folder of the report (default: RUN/report, or ./report for several)")

    demo = _command(commands, "demo", run_demo,
                    "the whole pipeline on drawn pictures; stages that are done are skipped")
    demo.add_argument("--run", metavar="DIR", default="runs/demo", help="default: %(default)s")
    demo.add_argument("--fresh", action="store_true", help="delete the earlier demo first")
    _processes(demo, default=2)

    cli_day.add_commands(commands)
    cli_build.add_commands(commands)
    cli_tools.add_commands(commands)
    return parser


def _add_predict_and_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, function, text in (
            ("predict", run_predict, "caption pictures with a run's weights"),
            ("eval", run_eval, "predict on the GPUs, then score on the CPU")):
        command = _command(commands, name, function, text)
        _run_folder(command)
        command.add_argument("--config", metavar="CONFIG",
                             help="settings for a run folder that has none yet")
        command.add_argument("--weights", metavar="FILE_OR_DIR",
                             help="weights that were not trained here, for example COCO's")
        command.add_argument("--epoch", metavar="N", type=int,
                             help="epoch (default: the best, or the last)")
        command.add_argument("--split", choices=("val", "test"),
                             help="what is captioned (default: generate.splits)")
        command.add_argument("overrides", metavar="[CONFIG] key=value", nargs="*",
                             help="CONFIG stands for --run runs/NAME, and for --config where that "
                                  "folder has none; key=value changes the configuration, for "
                                  "example generate.num_beams=5")
        _processes(command)


def run_train(args: argparse.Namespace) -> int:
    """CONFIG and overrides are checked here: a typo should not wait in a queue."""
    from blip_art.cluster.plan import follow_job, score_job, train_job
    from blip_art.cluster.preflight import NOTHING, SCORE, check_training, describe_end, work_left
    from blip_art.config import load_config
    from blip_art.files import RunDir
    from blip_art.rank_plan import fitting_processes

    config = load_config(args.config, args.overrides)
    run = RunDir(args.run or Path("runs", config.name))
    if args.cluster == "slurm":
        return _on_slurm().train(args, REPO, run)
    left = work_left(run, config)
    if left == NOTHING or left == SCORE and args.no_score:
        print(describe_end(run), file=sys.stderr)
        return 0
    place = _place(args, run)
    if left == SCORE:
        return _execute(args, [score_job(place, run)], run)
    if not args.processes:
        args.processes = fitting_processes(run, config, place.processes)
        place = _place(args, run)
    check_training(run, config, place.processes, "" if place.gpus else "cpu")
    # A debugger's terminal is for one program.
    follower = None if args.no_score or place.attached else follow_job(place, run)
    return _execute(args, [train_job(place, args.config, run, args.overrides)], run, follower)


def run_predict(args: argparse.Namespace) -> int:
    """Caption a split."""
    run = _run_to_predict(args)
    if args.cluster == "slurm":
        return _on_slurm().predict(args, REPO, run, _predict_options(args), scored=False)
    return _execute(args, [_predict_job(args, run)], run)


def run_sweep(args: argparse.Namespace) -> int:
    """An array on the cluster; here one run after the other."""
    from blip_art.cluster.sweep import is_asked, load_sweep

    if args.cluster == "slurm":
        return _on_slurm().sweep(args, REPO)
    sweep = load_sweep(args.sweep, args.overrides)
    members = sweep.members()
    for number, member in enumerate(members, 1):
        print(f"{number}/{len(members)}: {member.run.path}", file=sys.stderr)
        if not is_asked(member, args.only):
            continue
        words = ["train", member.config, *member.overrides, "--run", str(member.run.path),
                 "--cluster", args.cluster, *(["--dry-run"] if args.dry_run else []),
                 *(["--processes", str(args.processes)] if args.processes else []),
                 *(["--python", args.python] if args.python else [])]
        code = main(words)
        if code:
            return code
    runs = [str(member.run.path) for member in members if member.run.path.is_dir()]
    return 0 if args.dry_run else main(
        ["collect", *runs, "-o", str(members[0].run.path.parent / "report")])


def run_score(args: argparse.Namespace) -> int:
    """Score what is not scored."""
    from blip_art.cluster.plan import score_job

    run = _existing_run(_run_of_config(args))
    if args.overrides:
        raise UserError(f"score takes no {args.overrides[0]}: metrics are set where the run was "
                        "trained ('score.metrics'), others with 'python -m blip_art.score'")
    if args.cluster == "slurm":
        return _on_slurm().score(args, REPO, run)
    return _execute(args, [score_job(_place(args, run), run)], run)


def run_eval(args: argparse.Namespace) -> int:
    """Two jobs, because GPUs must not wait for Java."""
    from blip_art.cluster.plan import score_job

    run = _run_to_predict(args)
    if args.cluster == "slurm":
        return _on_slurm().predict(args, REPO, run, _predict_options(args), scored=True)
    return _execute(args, [_predict_job(args, run), score_job(_place(args, run), run)], run)


def run_collect(args: argparse.Namespace) -> int:
    """Compare runs; the code is the checkout's own, since nothing waits in a queue."""
    from blip_art.cluster.plan import collect_job
    from blip_art.cluster.run_choice import runs_to_collect

    runs, skipped = runs_to_collect(args.runs)
    if skipped:
        print(f"skipped, no runs: {', '.join(skipped)}", file=sys.stderr)
    one = args.runs[0] if len(args.runs) == 1 else runs[0].path if len(runs) == 1 else ""
    out = Path(args.output or Path(one, "report"))
    if args.cluster == "slurm":
        return _on_slurm().collect(args, REPO, runs, out)
    return _execute(args, [collect_job(_place(args), runs, out)])


def run_demo(args: argparse.Namespace) -> int:
    """Every stage in order, see blip_art/cluster/demo.py."""
    if args.cluster == "slurm":
        raise UserError("the demo runs on one machine; for the cluster there is 'launch.py doctor "
                        "--job', and then 'launch.py train CONFIG --cluster slurm'")
    from blip_art.cluster.demo import Demo
    from blip_art.cluster.packages import refuse_without_packages
    from blip_art.files import RunDir

    run = RunDir(args.run)
    demo = Demo(run, REPO, checkout=_place(args), place=_place(args, run))
    if args.fresh and not args.dry_run:
        demo.delete()
    if args.dry_run:
        return _execute(args, demo.jobs())
    refuse_without_packages(demo.jobs(), on_cluster=False)
    return demo.play(lambda job: _submit(args.cluster, job))


def _execute(args: argparse.Namespace, jobs: List[Job], run: Optional[RunDir] = None,
             follower: Optional[Job] = None) -> int:
    """Show the jobs, or run them one after the other until one fails, the follower beside them."""
    from blip_art.cluster.local import import_submitit
    from blip_art.cluster.packages import refuse_without_packages
    from blip_art.cluster.plan import dry_run_text
    from blip_art.cluster.snapshot import take_snapshot

    if args.dry_run:
        print(dry_run_text([*([follower] if follower else []), *jobs]), end="")
        return 0
    # What is missing is said before anything is written.
    refuse_without_packages(jobs)
    import_submitit()
    if run:
        take_snapshot(REPO, run.code)
    if follower:
        return _run_beside(args, jobs, follower)
    return _run_all(args, jobs)


def _run_beside(args: argparse.Namespace, jobs: List[Job], follower: Job) -> int:
    from blip_art.cluster.beside import Beside
    from blip_art.cluster.local import explain

    with Beside(follower) as beside:
        code = _run_all(args, jobs)
        if code:
            return code
        code = beside.finish()
    if code:
        explain(follower, code)
    return code


def _run_all(args: argparse.Namespace, jobs: List[Job]) -> int:
    for job in jobs:
        code = _submit(args.cluster, job)
        if code:
            return code
    return 0


def _submit(cluster: str, job: Job) -> int:
    from blip_art.cluster.local import CLUSTERS, explain

    code = CLUSTERS[cluster](job)
    if code:
        explain(job, code)
    return code


def _predict_job(args: argparse.Namespace, run: RunDir) -> Job:
    from blip_art.cluster.plan import predict_job

    return predict_job(_place(args, run), run, _predict_options(args))


def _predict_options(args: argparse.Namespace) -> List[str]:
    options = [word for name in ("config", "weights", "epoch", "split")
               if getattr(args, name) is not None
               for word in (f"--{name}", str(getattr(args, name)))]
    return options + list(args.overrides)


def _on_slurm() -> Any:
    from blip_art.cluster import on_slurm

    return on_slurm


def _place(args: argparse.Namespace, run: Optional[RunDir] = None) -> Place:
    """Where jobs run and what they import: the run's snapshot, or else this checkout."""
    from blip_art.cluster.local import this_machine

    return this_machine(python=args.python or _default_python(),
                        code=run.code.resolve() if run else REPO,
                        processes=getattr(args, "processes", 1),
                        attached=args.cluster == "debug")


def _default_python() -> str:
    """The checkout's virtual environment, which has torch, rather than the login node's Python."""
    own = REPO / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def _run_to_predict(args: argparse.Namespace) -> RunDir:
    """The run folder; with --config it may be a new one. A dry run may be of a run to come."""
    from blip_art.cluster.preflight import check_predictions
    from blip_art.config import load_config
    from blip_art.files import RunDir

    run = RunDir(_run_of_config(args))
    if not run.config.exists():
        args.config = args.config or args.named
    if args.config:
        load_config(args.config, args.overrides)
    else:
        _existing_run(str(run.path))
    if not args.dry_run:
        check_predictions(args, run)
    return run


def _run_of_config(args: argparse.Namespace) -> str:
    """--run, or runs/NAME of the CONFIG that stands before the overrides; it is taken out."""
    from blip_art.config import load_config

    args.named = ""
    if args.overrides and "=" not in args.overrides[0]:
        args.named = args.overrides.pop(0)
        config = load_config(args.named, args.overrides)
        return str(args.run or Path("runs", config.name))
    if not args.run:
        raise UserError("no run is named: --run runs/NAME, or the configuration it was trained by")
    return str(args.run)


def _existing_run(path: str) -> RunDir:
    from blip_art.files import RunDir

    run = RunDir(path)
    if not run.path.is_dir():
        raise UserError(f"no run folder at {path}; "
                        "'launch.py train CONFIG' makes one, 'ls runs' shows those there are")
    return run


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str,
             function: object, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(function=function)
    parser.add_argument("--cluster", choices=("local", "debug", "slurm"), default="local",
                        help="local (this machine, output also in a log; the default), debug "
                             "(this process and terminal, for breakpoints) or slurm")
    slurm = parser.add_argument_group("with --cluster slurm")
    slurm.add_argument("--site", metavar="FILE",
                       help="profile of the cluster (default: $BLIP_ART_SITE)")
    slurm.add_argument("--partition", metavar="NAME", help="another partition than the profile's")
    slurm.add_argument("--account", metavar="NAME", help="another account than the profile's")
    slurm.add_argument("--time", metavar="MIN", type=_at_least_one,
                       help="minutes of a GPU job; one that needs more is queued again")
    slurm.add_argument("--code", choices=("checkout", "frozen"), default="checkout",
                       help="of a run that goes on: the code as it is now (default), or as it was "
                            "copied before")
    extras.add_arguments(slurm)
    parser.add_argument("--dry-run", action="store_true",
                        help="print the commands, their environment and logs; run nothing")
    parser.add_argument("--python", metavar="PATH",
                        help="interpreter of the jobs (default: .venv/bin/python beside launch.py)")
    return parser


def _processes(parser: argparse.ArgumentParser, default: int = 0) -> None:
    parser.add_argument("--processes", "--gpus", metavar="N", type=_at_least_one, default=default,
                        help="processes a node, one a GPU (default: "
                             f"{default or 'all GPUs, or 1 process on the CPU'})")
    if not default:
        parser.add_argument("--nodes", metavar="N", type=_at_least_one, default=1,
                            help="nodes, with --cluster slurm (default: 1)")


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not '{text}'")
    return int(text)


def _run_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", metavar="DIR", help="run folder")


if __name__ == "__main__":
    exit_cleanly(main)
