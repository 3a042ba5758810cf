"""A shell or a command inside image and overlay: on this machine, or on a node through srun.

    run(plan_shell(site, Node(gpus=1, time_min=60), ("python3", "-m", "blip_art.data", "--help")))
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from blip_art.cluster.container import check_image, check_overlay
from blip_art.cluster.inputs import bindable
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import SlurmAbsent, clean_environment
from blip_art.errors import UserError
from blip_art.manifest import CODE_ROOT

JOB_NAME = "blip_art-shell"
JUPYTER = ("jupyter", "jupyter-lab", "jupyter-notebook")
# Start-up files (conda, modules) would put other programs before the image's.
INTERACTIVE = ("/bin/bash", "--norc")
PROMPT = r"(blip-art) \h:\w\$ "
# What sbatch takes and srun does not.
_SBATCH_ONLY = ("requeue", "no-requeue", "array", "wrap", "parsable", "test-only", "ignore-pbs")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z_0-9]*)\}?")
Execute = Callable[[Sequence[str], Dict[str, str]], int]


@dataclass(frozen=True)
class Node:
    """What is asked of Slurm."""

    gpus: int = 0
    """0 is a job of the CPU partition."""
    time_min: int = 60


@dataclass(frozen=True)
class Plan:
    """One command, and the environment it starts in."""

    argv: Tuple[str, ...]
    script: str
    """What bash runs: argv's last word."""

    def shown(self) -> str:
        """As text that can be read, for --dry-run."""
        return f"# {shlex.join(self.argv[:-1])} '…'     with these lines in the place of …\n" \
               f"{self.script}"


def plan_shell(site: Site, node: Optional[Node], command: Sequence[str] = (), port: int = 0,
               binds: Sequence[str] = (), terminal: bool = True) -> Plan:
    """How `command`, or a shell, is started.

    Args:
        node: None is this machine.
        port: of a server in the command; the line for ssh is printed when it starts.
        binds: further folders, as in the profile.
        terminal: whether a terminal is there for a program on the node.

    Raises:
        UserError: a folder whose name the container cannot be given, or too many GPUs.
    """
    command = tuple(command)
    if is_jupyter(command):
        port = _given_port(command) or port or _own_port()
        command = _jupyter(command, port, everywhere=node is not None)
    text = _script(site, command or INTERACTIVE, binds, _ssh_lines(port, node) if port else [])
    if node is None:
        return Plan(("bash", "-c", text), text)
    return Plan((*_srun(site, node, terminal), "bash", "-c", text), text)


def prepare(site: Site) -> None:
    """Image and overlay are there and can be mounted, and so can the folder of SPICE's parses.

    Raises:
        UserError: one cannot; says how to make it.
    """
    if site.container:
        check_image(site.image)
        check_overlay(site.overlay)
    if site.parses:
        with contextlib.suppress(OSError):  # the container's own words name it
            Path(site.parses).parent.mkdir(parents=True, exist_ok=True)


def execute(argv: Sequence[str], environment: Dict[str, str]) -> int:
    """Become the command: it has the terminal, hears its signals, and ends with its own code.

    Raises:
        SlurmAbsent: there is no srun.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], list(argv), environment)
    except FileNotFoundError as error:
        raise SlurmAbsent(f"no {argv[0]} on this machine; run this on a login node of the cluster, "
                          "or without --gpus and --cpu, which is here") from error


def run(plan: Plan, run: Execute = execute) -> int:
    """Start it; with the true `execute` this does not return."""
    environment = dict(os.environ)
    if plan.argv[0] == "srun":
        # Inside a job srun would be a step of that job. LC_ALL is for commands that are read.
        environment = clean_environment()
        environment.pop("LC_ALL")
        if "LC_ALL" in os.environ:
            environment["LC_ALL"] = os.environ["LC_ALL"]
    return run(plan.argv, environment)


def is_jupyter(command: Sequence[str]) -> bool:
    """Whether the command is Jupyter, by its name or as a module."""
    return bool(command) and (Path(command[0]).name in JUPYTER or (
        len(command) > 2 and command[1] == "-m" and command[2].startswith("jupyter")))


def _jupyter(command: Tuple[str, ...], port: int, everywhere: bool) -> Tuple[str, ...]:
    """With the options without which nobody could reach it, unless they are given."""
    wanted = {"--no-browser": "--no-browser", "--port": f"--port={port}",
              # Another port than the one in the line for ssh would not be reached.
              "--port-retries": "--port-retries=0",
              "--ip": f"--ip={'0.0.0.0' if everywhere else '127.0.0.1'}"}
    given = {word.partition("=")[0] for word in command}
    return (*command, *(word for name, word in wanted.items() if name not in given))


def _given_port(command: Sequence[str]) -> int:
    """Of '--port=8888' or '--port 8888' among Jupyter's words; 0 without."""
    found = re.search(r"(?:^| )--port[= ](\d+)(?: |$)", " ".join(command))
    return int(found[1]) if found else 0


def _own_port() -> int:
    """A user's own, since machines are shared."""
    return 20_000 + os.getuid() % 10_000


def _ssh_lines(port: int, node: Optional[Node]) -> List[str]:
    """Shell lines that tell how to reach the port from the user's own computer."""
    login = f"{getpass.getuser()}@{socket.getfqdn()}"
    place = "localhost" if node is None else "${SLURMD_NODENAME:-$(hostname)}"
    return [f'echo "on your own computer:  ssh -N -L {port}:{place}:{port} {login}" >&2',
            f'echo "and in its browser:    http://localhost:{port}" >&2']


def _script(site: Site, command: Sequence[str], binds: Sequence[str],
            first: Sequence[str]) -> str:
    """What bash runs where the command is to run."""
    repo = str(CODE_ROOT)
    exported = {"PYTHONPATH": repo, "BLIP_ART_CACHE": site.cache,
                **({"BLIP_ART_PARSES": site.parses} if site.parses else {})}
    lines = [*(f"module load {shlex.quote(name)} || exit 1" for name in site.modules),
             *site.setup]
    # Said inside, where the image has its own PATH and Apptainer its own prompt.
    place = (f"PATH={shlex.quote(str(Path(site.python).parent))}:$PATH; "
             f"PS1={shlex.quote(PROMPT)}; export PATH PS1; unset PROMPT_COMMAND")
    if site.container:
        folders = [CODE_ROOT, *([Path(site.parses).parent] if site.parses else [])]
        exported.update(CONTAINER=site.container, SIF=site.image, OVERLAY=site.overlay, NV="1",
                        BINDS=",".join([*site.binds, *binds, *bindable(folders, Path.cwd())]))
    lines += [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    if not site.container:
        return "\n".join([*lines, place, *first, f"exec {shlex.join(command)}"]) + "\n"
    inside = ["/bin/sh", "-c", f'{place}; exec "$@"', "sh", *command]
    return "\n".join([
        *lines,
        f'BLIP_ART_SCRATCH=$(mktemp -d "{_scratch(site.scratch)}/{JOB_NAME}.XXXXXX") || exit 2',
        "export BLIP_ART_SCRATCH",
        """trap 'rm -rf -- "$BLIP_ART_SCRATCH"' EXIT""",
        "trap : INT  # Ctrl-C is the command's",
        *first,
        shlex.join([f"{repo}/singularity/run.sh", *inside])]) + "\n"


def _scratch(path: str) -> str:
    """For double quotes: only $NAME and ${NAME} mean something, on the machine that runs it."""
    parts = _VARIABLE.split(path)
    parts[0::2] = [re.sub(r'([\\"$`])', r"\\\1", text) for text in parts[0::2]]
    parts[1::2] = [f"${{{name}:?is not set here, and scratch in the profile names it}}"
                   for name in parts[1::2]]
    return "".join(parts)


def _srun(site: Site, node: Node, terminal: bool) -> List[str]:
    if node.gpus > site.gpus_per_node:
        raise UserError(f"--gpus {node.gpus}: nodes have {site.gpus_per_node} ('gpus_per_node' in "
                        f"{site.path})")
    if node.gpus and not site.gres:
        raise UserError(f"{site.path} says 'gres:' and nothing else, so Slurm is asked for no "
                        "GPUs; leave out --gpus, or write it there")
    # A shell beside others' jobs takes its share of a node's memory.
    mem_gb = -(-site.mem_gb * node.gpus // site.gpus_per_node) if node.gpus else site.cpu_mem_gb
    own = site.sbatch if node.gpus else site.cpu_sbatch
    options = {
        "job-name": JOB_NAME, "account": site.account, "qos": site.qos,
        "partition": site.partition if node.gpus else site.cpu_partition or site.partition,
        "time": str(node.time_min), "nodes": "1", "ntasks": "1",
        "cpus-per-task": str(site.cpus_per_gpu * node.gpus if node.gpus else site.cpu_cpus),
        "mem": f"{mem_gb}GB" if mem_gb else "",
        "gres": site.gres.format(gpus=node.gpus) if node.gpus else "",
        **{key: value for key, value in own.items() if key not in _SBATCH_ONLY}}
    return ["srun", *(["--pty"] if terminal else []),
            *(f"--{key}" if value is True else f"--{key}={value}"
              for key, value in options.items() if value)]
