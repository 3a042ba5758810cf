"""Commands around a cluster user's day: shell, site init, clean.

    ./launch.py shell --gpus 1      ./launch.py site init      ./launch.py clean runs/art --yes
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Callable, Sequence

from blip_art.errors import EXIT_FAILED, UserError

# As blip_art/cluster/clean.py has them, which --help does not wait for.
CLEANED = ("checkpoints", "code", "pickles", "temporary", "scratch", "weights")
EXAMPLES_SHELL = """\
examples:
  ./launch.py shell                                 a shell here, in image and overlay
  ./launch.py shell -- python3 -m blip_art.data prepare ARCHIVE.zip -o annotation
  ./launch.py shell --gpus 1 --time 120             on a node, for two hours
  ./launch.py shell --cpu -- python3 -m blip_art.score REFS.json RESULTS.json
  ./launch.py shell -- python3 -m venv --system-site-packages ~/notebook     once, with network:
  ./launch.py shell -- ~/notebook/bin/pip install jupyterlab                 for notebooks
  ./launch.py shell --gpus 1 -- ~/notebook/bin/jupyter lab     prints the line for ssh

python3 is the jobs' own, with PyTorch and blip_art. Seen inside: the working directory, your home,
the profile's `binds`, and --bind. On a node the job ends with the command. The exit code is the
command's."""

EXAMPLES_SITE = """\
examples:
  ./launch.py site init                   asks Slurm and writes configs/sites/mine.yaml
  ./launch.py site init --dry-run         prints it
  export BLIP_ART_SITE=$PWD/configs/sites/mine.yaml; ./launch.py doctor

The profile is yours to edit: choose another partition or account in it. An existing one is not
replaced without --force."""

EXAMPLES_CLEAN = """\
examples:
  ./launch.py clean                       what all finished runs can lose, with sizes
  ./launch.py clean runs/art runs/lr      of one run, and of all runs of a sweep
  ./launch.py clean --yes                 remove it
  ./launch.py clean --what code,weights   these kinds alone

Kinds: {kinds}.
Weights go only when they are named. Nothing is removed without --yes, nothing of a run that is
queued, running or not finished, and no file that blip-art did not write. Captions, scores, reports,
logs, scripts, the configuration, and the weights of the best and the last epoch always stay."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Put the commands into launch.py's parser."""
    shell = _command(commands, "shell", run_shell, "a shell, or a command, inside image and "
                     "overlay: here, or on a node", EXAMPLES_SHELL)
    shell.add_argument("words", metavar="-- COMMAND", nargs="*",
                       help="what to run instead of a shell")
    where = shell.add_mutually_exclusive_group()
    where.add_argument("--gpus", metavar="N", type=_at_least_one, default=0,
                       help="on a node, with N GPUs (default: here)")
    where.add_argument("--cpu", action="store_true", help="on a node of the CPU partition")
    shell.add_argument("--time", metavar="MIN", type=_at_least_one, default=60,
                       help="with --gpus or --cpu: minutes (default: %(default)s)")
    shell.add_argument("--partition", metavar="NAME", help="another partition than the profile's")
    shell.add_argument("--account", metavar="NAME", help="another account than the profile's")
    shell.add_argument("--port", metavar="N", type=_at_least_one, default=0,
                       help="port of a server in the command: prints the line for ssh (Jupyter "
                            "has a port of your own without it)")
    shell.add_argument("--bind", metavar="DIR[:TARGET[:ro]]", action="append", default=[],
                       help="a folder to see inside; may be given again")
    shell.add_argument("--site", metavar="FILE", default="",
                       help="site profile (default: $BLIP_ART_SITE; without one, image and "
                            "overlay lie beside launch.py)")
    shell.add_argument("--dry-run", action="store_true", help="print the command, run nothing")
    _add_site(commands)
    _add_clean(commands)


def _add_site(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    site = commands.add_parser("site", help="the profile of your cluster",
                               description="The profile of your cluster.")
    actions = site.add_subparsers(dest="action", required=True, metavar="ACTION")
    init = _command(actions, "init", run_site_init, "write a profile from what sinfo, scontrol "
                    "and sacctmgr say; what they cannot say is marked with ??", EXAMPLES_SITE)
    init.add_argument("-o", "--output", metavar="FILE", default="",
                      help="default: configs/sites/mine.yaml beside launch.py")
    init.add_argument("--force", action="store_true", help="replace what is there")
    init.add_argument("--dry-run", action="store_true", help="print the profile, write nothing")


def _add_clean(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    clean = _command(commands, "clean", run_clean, "list what finished runs can lose, with sizes; "
                     "--yes removes it", EXAMPLES_CLEAN.format(kinds=", ".join(CLEANED)))
    clean.add_argument("runs", metavar="RUN", nargs="*",
                       help="run folders, or folders with runs below (default: runs)")
    clean.add_argument("--what", metavar="KIND,…", type=_kinds, default=CLEANED[:-1],
                       help=f"of {', '.join(CLEANED)} (default: all but weights)")
    clean.add_argument("--yes", action="store_true", help="remove what is listed")
    clean.add_argument("--site", metavar="FILE", default="",
                       help="site profile, which says where scratch is (default: $BLIP_ART_SITE)")


def run_shell(args: argparse.Namespace) -> int:
    """Become the shell, or show how."""
    import dataclasses

    from blip_art.cluster import shell
    from blip_art.cluster.cli_build import profile_or_default
    from blip_art.cluster.site import load_site

    node = shell.Node(args.gpus, args.time) if args.gpus or args.cpu else None
    # To Slurm a profile must be named: nothing is known of this cluster without one.
    site = load_site(args.site) if node else profile_or_default(args.site)
    if args.partition:
        site = dataclasses.replace(site, partition=args.partition, cpu_partition=args.partition)
    if args.account:
        site = dataclasses.replace(site, account=args.account)
    plan = shell.plan_shell(site, node, args.words, args.port, args.bind,
                            terminal=sys.stdin.isatty() and sys.stdout.isatty())
    if args.dry_run:
        print(plan.shown(), end="")
        return 0
    shell.prepare(site)
    return shell.run(plan)


def run_site_init(args: argparse.Namespace) -> int:
    """Ask, write, and say what to do next."""
    from blip_art.cluster import site_init
    from blip_art.cluster.slurm import Slurm

    target = Path(args.output or site_init.DEFAULT_OUTPUT)
    if not args.dry_run:
        site_init.refuse_existing(target, args.force)  # before Slurm is asked
    facts = site_init.find_facts(Slurm())
    lines = site_init.choose(facts, target.parent)
    text = site_init.profile_text(lines, facts)
    if args.dry_run:
        print(text, end="")
        return 0
    site_init.write_profile(text, target)
    marked = ", ".join(line.key for line in lines if not line.known)
    print(f"{target} is written; look at what is marked in it: {marked}\n"
          f"  export BLIP_ART_SITE={shlex.quote(str(target.resolve()))}\n"
          "  ./launch.py doctor")
    return 0


def run_clean(args: argparse.Namespace) -> int:
    """The list, then the deed if it is wanted."""
    from blip_art.cluster import clean
    from blip_art.cluster.cli_build import profile_or_default
    from blip_art.cluster.cli_day import RUNS
    from blip_art.cluster.slurm import Slurm
    from blip_art.cluster.status import find_runs
    from blip_art.cluster.table import terminal_width

    if not args.runs and not Path(RUNS).is_dir():
        raise UserError(f"no folder '{RUNS}' here; name the run folders, or go to where "
                        "launch.py was called")
    scratch = os.path.expandvars(profile_or_default(args.site).scratch)
    found = clean.survey(find_runs(args.runs or [RUNS], must=bool(args.runs)), Slurm(), args.what,
                         scratch)
    print(clean.shown(found, terminal_width()))
    size = clean.size_text(sum(one.size for one in found.items))
    if not found.items:
        print("nothing to remove")
        return 0
    if not args.yes:
        print(f"{size} can be removed; --yes removes it")
        return 0
    freed, problems = clean.remove(found.items)
    print(f"removed {clean.size_text(freed)}")
    for problem in problems:
        print(f"not removed: {problem}", file=sys.stderr)
    return EXIT_FAILED if problems else 0


def _kinds(text: str) -> Sequence[str]:
    found = [word.strip() for word in text.split(",")]
    wrong = [word for word in found if word not in CLEANED]
    if wrong:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(CLEANED)}, not '{wrong[0]}'")
    return found


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str,
             function: Callable[[argparse.Namespace], int], text: str,
             examples: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(function=function)
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not '{text}'")
    return int(text)
