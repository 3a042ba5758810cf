"""The commands of a cluster user's day: status, logs, cancel, resume, doctor, fetch.

    ./launch.py status      ./launch.py logs -f runs/art      ./launch.py doctor --job
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Sequence, Tuple

from blip_art.errors import EXIT_FAILED, UserError

if TYPE_CHECKING:  # --help must not wait for imports
    from blip_art.cluster.rows import Row
    from blip_art.cluster.slurm import Slurm
    from blip_art.files import RunDir

RUNS = "runs"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Put the commands into launch.py's parser."""
    status = _command(commands, "status", run_status, "one table of all runs: state, epoch, "
                      "scores, GPU-hours, and why a run waits or failed")
    _runs(status, "*", f"run folders, or folders with runs below (default: {RUNS})")
    status.add_argument("--json", action="store_true", help="the same for programs")
    status.add_argument("--sizes", action="store_true",
                        help="also what each run takes on disk (looks at every file)")
    status.add_argument("--watch", metavar="S", type=_seconds, nargs="?", const=30.0,
                        help="again every S seconds (default 30), until Ctrl-C")

    logs = _command(commands, "logs", run_logs, "the newest log of a run, over its restarts")
    logs.add_argument("run", metavar="RUN",
                      help="run folder; of a folder with runs below the one to look at, and with "
                           "-f all that are at work")
    logs.add_argument("-f", "--follow", action="store_true",
                      help="go on as it grows, over restarts, until the job has ended")
    logs.add_argument("--stage", metavar="NAME", default="",
                      help="train, follow, score, predict or collect (default: train)")

    cancel = _command(commands, "cancel", run_cancel, "cancel the jobs of runs; a training saves "
                      "first, and is not queued again")
    _runs(cancel, "+", "run folders, or folders with runs below")

    resume = _command(commands, "resume", run_resume, "submit again runs that stopped or failed, "
                      "with the configuration and in the way they were submitted")
    _runs(resume, "+", "run folders, or folders with runs below; one that was moved or copied "
                       "goes on where it is now")
    for option, metavar, text in (
            ("site", "FILE", "profile of the cluster (default: the one they were submitted with)"),
            ("partition", "NAME", "another partition than before"),
            ("account", "NAME", "another account than before")):
        resume.add_argument(f"--{option}", metavar=metavar, default="", help=text)
    resume.add_argument("--time", metavar="MIN", type=_minutes,
                        help="another time limit of the GPU jobs, in minutes")
    resume.add_argument("--code", choices=("checkout", "frozen"), default="checkout",
                        help="the code as it is in the checkout now (default; what has changed "
                             "is said), or as it was copied when the run was submitted")
    resume.add_argument("--dry-run", action="store_true",
                        help="print what would be submitted; submit nothing")
    _doctor_and_fetch(commands)


def _doctor_and_fetch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = _command(commands, "doctor", run_doctor, "look at everything a job needs; one line "
                      "each: ok, what, how to fix it")
    doctor.add_argument("--site", metavar="FILE", default="",
                        help="site profile (default: $BLIP_ART_SITE)")
    doctor.add_argument("--job", action="store_true",
                        help="also submit a 5-minute job that looks at a node, and wait for it")
    doctor.add_argument("--wait", metavar="MIN", type=_seconds, default=30.0,
                        help="with --job: how long to wait for it (default: %(default)g minutes)")

    fetch = _command(commands, "fetch", run_fetch, "bring what jobs need from the internet, "
                     "checksummed; interrupted, the same command goes on")
    fetch.add_argument("what", metavar="WHAT", nargs="*", default=["all"],
                       help="all, weights, tokenizer, corenlp or archive (default: all)")
    fetch.add_argument("--to", metavar="DIR", default="",
                       help="folder (default: .; CoreNLP: its cache)")
    fetch.add_argument("--from", metavar="FILE_OR_URL", dest="source", default="",
                       help="a folder, a file, or an address to take it from instead")


def run_status(args: argparse.Namespace) -> int:
    """Once, as JSON, or again and again.

    Standard output gets the whole table only; a terminal first sees what lies on disk where Slurm
    is slow.
    """
    from blip_art.cluster.rows import as_json, shown
    from blip_art.cluster.table import terminal_width

    if not args.runs and not Path(RUNS).is_dir():
        raise UserError(f"no folder '{RUNS}' here; name the run folders, or go to where "
                        "launch.py was called")
    on_terminal = sys.stdout.isatty()
    for turn in itertools.count():
        runs, rows, notes = _surveyed(args, on_terminal and not args.json and not turn)
        text = as_json(rows, notes) if args.json else shown(rows, notes, terminal_width())
        if args.sizes:
            text = _with_sizes(text, runs, args.json)
        if args.watch and on_terminal:
            text = f"\033[2J\033[H{time.strftime('%H:%M:%S')}, every {args.watch:g} s\n{text}"
        print(text, flush=True)
        if not args.watch:
            break
        try:
            time.sleep(args.watch)
        except KeyboardInterrupt:  # the only way to end it, so not a failure
            break
    return 0


def _surveyed(args: argparse.Namespace, early: bool
              ) -> Tuple[List[RunDir], List[Row], List[str]]:
    """Runs, rows and notes; where Slurm is slow, that is said once, after the rows as they lie on
    disk if they are wanted `early`."""
    from blip_art.cluster.slurm import Slurm, SlurmError
    from blip_art.cluster.status import find_runs, rows_on_disk, survey

    slurm, is_said = Slurm(), [False]

    def say_once(rows: List[Row]) -> None:
        if not is_said[0]:
            is_said[0] = True
            _show_meanwhile(early, rows)

    found = find_runs(args.runs or [RUNS], must=bool(args.runs))
    try:
        runs, settled = _settled(args.runs or [RUNS], found, slurm, when_slow=lambda: say_once(
            rows_on_disk(found) if early else []))
    except SlurmError as error:
        runs, settled = found, [
            f"what became of an interrupted submission is not known: {error}"]
    rows, notes = survey(runs, slurm, say_once)
    return runs, rows, settled + notes


def _show_meanwhile(on_terminal: bool, rows: List[Row]) -> None:
    """What lies on disk, for who looks at a terminal; that Slurm is asked, for everybody."""
    from blip_art.cluster.rows import shown
    from blip_art.cluster.table import terminal_width

    if on_terminal:
        print(shown(rows, ["as the run folders have it"], terminal_width()), flush=True)
    _say_asking()


def _say_asking() -> None:
    print("asking Slurm …", file=sys.stderr, flush=True)


def _settled(paths: Sequence[str], runs: List[RunDir], slurm: Slurm, give_up: bool = False,
             when_slow: Callable[[], None] = _say_asking) -> Tuple[List[RunDir], List[str]]:
    """The runs, after what interrupted submissions had left open, and what was done about that."""
    from blip_art.cluster.asking import with_notice
    from blip_art.cluster.pending import settle_all
    from blip_art.cluster.status import find_runs

    lines = with_notice(lambda: settle_all(runs, slurm, give_up), when_slow)
    return (find_runs(paths, must=False) if lines else runs), lines


def _with_sizes(text: str, runs: List[RunDir], as_json: bool) -> str:
    from blip_art.cluster.sizes import add_to_json, shown, size_of
    from blip_art.cluster.table import terminal_width

    found = [size_of(run) for run in runs]
    if as_json:
        return add_to_json(text, found)
    return f"{text}\n\n{shown(found, terminal_width())}" if found else text


def run_logs(args: argparse.Namespace) -> int:
    """To standard output; titles go to standard error."""
    from blip_art.cluster.logs import choose_stage, follow, newest, show
    from blip_art.cluster.run_choice import runs_with_logs
    from blip_art.cluster.slurm import Slurm
    from blip_art.cluster.sweep_logs import choose_run, follow_all

    run, *others = runs = runs_with_logs(args.run)
    stage = args.stage if others else choose_stage(run, args.stage)
    if args.follow:
        try:
            if others:
                follow_all(runs, stage, Slurm(), _write)
            else:
                follow(run, stage, Slurm(), _write)
        except KeyboardInterrupt:
            print("the job goes on; 'launch.py cancel' ends it", file=sys.stderr)
        return 0
    if others:
        run, chosen = choose_run(runs, stage)
        print(f"{args.run} has {len(runs)} runs with logs; this is {run.path}. 'logs -f "
              f"{args.run}' follows all that are at work", file=sys.stderr)
        show(chosen, _write)
        return 0
    log = newest(run, stage)
    if log is None:
        raise UserError(f"{run.path}: its {stage} job has not started yet; "
                        f"'launch.py status {run.path}' says why, 'logs -f' waits for it")
    show(log, _write)
    return 0


def run_cancel(args: argparse.Namespace) -> int:
    """One scancel for all."""
    from blip_art.cluster.control import cancel
    from blip_art.cluster.slurm import Slurm
    from blip_art.cluster.status import find_runs

    slurm = Slurm()
    runs, settled = _settled(args.runs, find_runs(args.runs), slurm, give_up=True)
    print("\n".join([*settled, *cancel(runs, slurm)]))
    return 0


def run_resume(args: argparse.Namespace) -> int:
    """launch.py's own commands, once more."""
    from blip_art.cluster.resume import Changes, resume
    from blip_art.cluster.slurm import Slurm
    from blip_art.cluster.status import find_runs

    slurm, runs = Slurm(), find_runs(args.runs)
    if not args.dry_run:
        runs, settled = _settled(args.runs, runs, slurm)
        for line in settled:
            print(line)
    changes = Changes(args.site, args.partition, args.account, args.time or "",
                      "frozen" if args.code == "frozen" else "", args.dry_run)
    return resume(runs, slurm, changes)


def run_doctor(args: argparse.Namespace) -> int:
    """Line by line, as it is found out; 1 if something is wrong."""
    from blip_art.cluster.checks import FAIL, check_python, shown, verdict
    from blip_art.cluster.table import terminal_width

    width, checks = terminal_width(), []
    for check in check_python():
        checks.append(check)
        print(shown(check, width))
    if all(check.verdict != FAIL for check in checks):
        from blip_art.cluster.doctor import check_job, check_login
        from blip_art.cluster.site import load_site

        site = load_site(args.site)
        for check in check_login(site):
            checks.append(check)
            print(shown(check, width), flush=True)
        if args.job and all(check.verdict != FAIL for check in checks):
            for check in check_job(site, 60 * args.wait):
                checks.append(check)
                print(shown(check, width), flush=True)
        elif args.job:
            print("no job is submitted before the lines above are fixed")
    print(verdict(checks))
    return EXIT_FAILED if any(check.verdict == FAIL for check in checks) else 0


def run_fetch(args: argparse.Namespace) -> int:
    """What was named, one after the other."""
    from blip_art.cluster.fetch import fetch

    for path in fetch(args.what, args.to, args.source):
        print(path)
    return 0


def _write(block: bytes) -> None:
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str,
             function: object, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(function=function)
    return parser


def _runs(parser: argparse.ArgumentParser, number: str, text: str) -> None:
    parser.add_argument("runs", metavar="RUN", nargs=number, help=text)


def _minutes(text: str) -> str:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not '{text}'")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not '{text}'")
    return value
