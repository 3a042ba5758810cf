"""Commands around a cluster user's day: shell.

    ./launch.py shell --gpus 1      ./launch.py shell -- python3 -m blip_art.data prepare --help
"""

from __future__ import annotations

import argparse
import sys
from typing import Callable

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
