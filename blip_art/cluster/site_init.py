"""A site profile from what sinfo, scontrol and sacctmgr say; what they cannot say is marked.

    facts = find_facts(Slurm()); print(profile_text(choose(facts), facts))
"""

from __future__ import annotations

import contextlib
import getpass
import grp
import json
import os
import re
import shutil
import subprocess
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Match, NamedTuple, Optional, Sequence, Set, Tuple

from blip_art.cluster.checks_slurm import Part, read_parts, split_gres
from blip_art.cluster.site import load_site
from blip_art.cluster.slurm import Door, NoAccounting, Slurm, SlurmError, run_command
from blip_art.errors import UserError
from blip_art.files import written_aside
from blip_art.manifest import CODE_ROOT

DEFAULT_OUTPUT = CODE_ROOT / "configs" / "sites" / "mine.yaml"
MARK = "??"
CONTAINERS = ("apptainer", "singularity")
# A partition with less is for tests.
_SHORT_S = 4 * 3600
_DAY_MIN = 24 * 60
# Of a node's memory, what Slurm itself and the system leave.
_MEMORY_SHARE = .95
_MODULE = re.compile(r"((?:apptainer|singularity)[\w.+-]*(?:/[\w.+-]+)+)(\(.*\))?$")


@dataclass(frozen=True)
class Kind:
    """Nodes of a partition that are alike."""

    nodes: int
    gpus: int
    gpu_type: str
    cpus: int
    mem_gb: float

    def describe(self) -> str:
        gpu = f"{self.gpus} {self.gpu_type or 'GPU'}" if self.gpus else "no GPU"
        return (f"{self.nodes} node{'s' * (self.nodes != 1)} with {gpu}, {self.cpus} CPUs, "
                f"{self.mem_gb:.0f} GB")


@dataclass(frozen=True)
class Partition:
    """One that this user may use."""

    name: str
    is_default: bool
    limit_s: int
    """-1 is none."""
    preempts: str
    """What becomes of a preempted job: OFF, REQUEUE, CANCEL, …"""
    kinds: Tuple[Kind, ...]

    @property
    def gpus(self) -> int:
        return sum(kind.nodes * kind.gpus for kind in self.kinds)

    @property
    def is_short(self) -> bool:
        return 0 <= self.limit_s < _SHORT_S

    def usual(self) -> Kind:
        """The most frequent kind of node; in a partition with GPUs, of those with some."""
        kinds = [kind for kind in self.kinds if kind.gpus] or list(self.kinds)
        return max(kinds, key=lambda kind: (kind.nodes, kind.gpus, kind.cpus))

    def minutes(self) -> int:
        """A time limit that it allows, a day at most."""
        return _DAY_MIN if self.limit_s < 0 else max(1, min(_DAY_MIN, self.limit_s // 60))

    def describe(self) -> str:
        limit = "no time limit" if self.limit_s < 0 else f"limit {self.limit_s / 3600:g} h"
        preempts = "" if self.preempts == "OFF" else f", preemptible ({self.preempts})"
        return f"{self.name}: {self.usual().describe()}; {limit}{preempts}"


@dataclass(frozen=True)
class Facts:
    """What was found out about a cluster."""

    cluster: str
    partitions: Tuple[Partition, ...]
    accounts: Dict[str, List[str]]
    """The user's, each with the qualities of service that it may use."""
    account: str
    """The default one."""
    has_sacct: bool
    scratch: str
    container: str
    """'' where neither program was found."""
    modules: Tuple[str, ...]
    notes: Tuple[str, ...] = ()
    """What could not be asked."""


class Line(NamedTuple):
    """A key of the profile."""

    key: str
    value: Any
    comment: str = ""
    known: bool = True


def find_facts(slurm: Slurm, run: Door = run_command) -> Facts:
    """Ask Slurm, PATH and the modules.

    Raises:
        SlurmError: Slurm is not here, or its controller does not answer.
    """
    parts = read_parts(slurm.sinfo("--exact", "--format=%R|%a|%l|%G|%D|%T|%c|%m"))
    config = slurm.config()
    notes: List[str] = []
    accounts, account = _accounts(slurm, notes)
    partitions = [_partition(one, parts) for one in slurm.partitions().values()
                  if one.get("State") == "UP" and _may_use(one, set(accounts), _groups())]
    container, modules = _find_container(run)
    return Facts(config.get("ClusterName", ""), tuple(one for one in partitions if one.kinds),
                 accounts, account, _has_sacct(slurm), config.get("TmpFS") or "/tmp", container,
                 modules, tuple(notes))


def choose(facts: Facts, folder: Path = DEFAULT_OUTPUT.parent) -> List[Line]:
    """The profile's keys, in the order in which they are written."""
    gpu, others = _gpu_partition(facts)
    cpu = _cpu_partition(facts)
    if gpu is None:
        raise UserError("no partition that you may use has GPUs ('sinfo -o \"%P %G %a\"' lists "
                        "them); ask the administrators for access, or copy "
                        "configs/sites/v100.yaml and write the profile by hand")
    kind, cpu_kind = gpu.usual(), (cpu or gpu).usual()
    cpu_min = (cpu or gpu).minutes()
    gres = f"gpu:{kind.gpu_type}:{{gpus}}" if kind.gpu_type else "gpu:{gpus}"
    other_kinds = [one.describe() for one in gpu.kinds if one != kind]
    return [
        Line("name", facts.cluster or "cluster"),
        Line("partition", gpu.name, "\n".join([
            f"GPU jobs. {gpu.describe()}", *(f"or {one.describe()}" for one in others)])),
        Line("cpu_partition", cpu.name if cpu else "",
             f"Scoring and reports. {cpu.describe()}" if cpu else
             "Scoring and reports: no partition without GPUs, so they wait in the one above.",
             known=cpu is not None),
        *_account_lines(facts),
        Line("gres", gres, "\n".join(["Other nodes of this partition:", *other_kinds])
             if other_kinds else ""),
        Line("gpus_per_node", kind.gpus),
        Line("cpus_per_gpu", max(1, min(16, kind.cpus // kind.gpus))),
        Line("mem_gb", int(kind.mem_gb * _MEMORY_SHARE), "Of a job on all GPUs of a node."),
        Line("cpu_cpus", max(1, min(16, cpu_kind.cpus))),
        Line("cpu_mem_gb", max(1, int(min(32, cpu_kind.mem_gb * _MEMORY_SHARE)))),
        Line("time_min", gpu.minutes(), "A training that needs more is queued again and goes on."),
        Line("cpu_time_min", cpu_min),
        Line("signal_delay_s", min(120, 30 * min(gpu.minutes(), cpu_min))),
        *_container_lines(facts, folder),
        Line("scratch", facts.scratch, "A folder of each node for temporary files. Slurm's word "
             "is TmpFS; many sites have a larger one: /scratch, or $TMPDIR of a job.", False),
        Line("binds", [], "Folders that jobs see beside the working directory and your home: data "
             "on other file systems, as /data:/data:ro.", False),
        Line("has_sacct", facts.has_sacct),
        Line("has_internet", False, "Whether nodes reach the internet; 'doctor --job' tells.",
             False),
        Line("purge_days", 0, "After how many days unused files are deleted where you work; 0 is "
             "never.", False)]


def profile_text(lines: Sequence[Line], facts: Facts) -> str:
    """The profile as YAML, a comment above a key that needs one."""
    marked = ", ".join(line.key for line in lines if not line.known)
    text = [f"# Written by 'launch.py site init' on {os.uname().nodename}, "
            f"{time.strftime('%Y-%m-%d')}, from sinfo, scontrol and sacctmgr.",
            f"# {MARK} marks what they cannot tell: {marked}.",
            "# Every key, explained: blip_art/cluster/site.py. 'launch.py doctor' says what is "
            "wrong.", *(f"# {note}" for note in facts.notes)]
    for line in lines:
        comment = " ".join(filter(None, ["" if line.known else MARK, line.comment]))
        text += [f"# {one}" for words in comment.splitlines() for one in textwrap.wrap(words, 96)]
        text.append(f"{line.key}: {_yaml(line.value)}")
    return "\n".join(text) + "\n"


def refuse_existing(target: Path, force: bool) -> None:
    """A profile that somebody has edited is replaced only on demand.

    Raises:
        UserError: there is one.
    """
    if target.exists() and not force:
        raise UserError(f"there is a profile at {target}; --force replaces it, -o makes another, "
                        "--dry-run prints it")


def write_profile(text: str, target: Path) -> None:
    """Write it, if it can be read.

    Raises:
        UserError: it cannot be written.
    """
    with written_aside(target) as aside:
        aside.write_text(text, encoding="utf-8")
        load_site(str(aside))


def _gpu_partition(facts: Facts) -> Tuple[Optional[Partition], List[Partition]]:
    """The one for training, and others that have GPUs."""
    found = sorted((one for one in facts.partitions if one.gpus), key=lambda one: (
        one.is_short, one.preempts != "OFF", not one.is_default, -one.gpus))
    return (found[0] if found else None), found[1:]


def _cpu_partition(facts: Facts) -> Optional[Partition]:
    found = sorted((one for one in facts.partitions if not one.gpus), key=lambda one: (
        one.is_short, one.preempts != "OFF", not one.is_default,
        -sum(kind.nodes for kind in one.kinds)))
    return found[0] if found else None


def _account_lines(facts: Facts) -> List[Line]:
    if not facts.accounts:
        return [Line("account", "", "No account of yours is known; '' is the cluster's default.",
                     False), Line("qos", "")]
    allowed = facts.accounts.get(facts.account, [])
    return [Line("account", facts.account, "" if len(facts.accounts) == 1 else
                 f"Yours: {', '.join(facts.accounts)}."),
            Line("qos", "", f"'' is the default. This account may use: {', '.join(allowed)}."
                 if len(allowed) > 1 else "")]


def _container_lines(facts: Facts, folder: Path) -> List[Line]:
    where = ("Found in PATH here; 'doctor --job' looks for it on a node." if not facts.modules
             else f"Loaded with the module {facts.modules[0]}.")
    inside = folder.resolve() == DEFAULT_OUTPUT.parent.resolve()
    place = "../.." if inside else str(CODE_ROOT)
    return [
        Line("container", facts.container or "apptainer",
             where if facts.container else "No apptainer or singularity in PATH or among the "
             "modules here: ask for its module ('module spider apptainer').",
             bool(facts.container)),
        Line("modules", list(facts.modules)),
        Line("image", f"{place}/blip_art.sif", "Made by 'launch.py image build'; on a file system "
             "that all nodes see."),
        Line("overlay", f"{place}/overlay.img", "Made by 'launch.py overlay build'."),
        Line("parses", f"{place}/.cache/blip_art/parses.sqlite")]


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z./][\w./-]*", value) and \
            value.lower() not in ("yes", "no", "on", "off", "true", "false", "null", "y", "n"):
        return value
    return json.dumps(value, ensure_ascii=False)


def _partition(about: Dict[str, str], parts: Sequence[Part]) -> Partition:
    """One line of scontrol, and the nodes that sinfo has for it."""
    name = about.get("PartitionName", "")
    kinds: Dict[Tuple[int, str, int, float], int] = {}
    limit = -1
    for part in parts:
        if part.partition == name:
            limit = part.limit_s
            gpu_type, gpus = _gpus(part.gres)
            key = gpus, gpu_type, part.cpus, part.mem_gb
            kinds[key] = kinds.get(key, 0) + part.nodes
    return Partition(name, about.get("Default") == "YES", limit, about.get("PreemptMode", "OFF"),
                     tuple(Kind(nodes, *key) for key, nodes in kinds.items() if nodes))


def _gpus(gres: str) -> Tuple[str, int]:
    """Kind and number of a node's GPUs: ('v100', 4) of 'gpu:v100:4(S:0-1),nvme:1'."""
    for one in re.split(r",(?![^(]*\))", gres):
        name, kind, number = split_gres(one)
        if name == "gpu":
            return kind, number
    return "", 0


def _may_use(about: Dict[str, str], accounts: Set[str], groups: Set[str]) -> bool:
    """By the lists of a partition; where no account is known, only groups can tell."""
    def named(key: str) -> Set[str]:
        return set(about.get(key, "ALL").split(","))
    if not (named("AllowGroups") & (groups | {"ALL"})):
        return False
    if not accounts:
        return True
    denied = set(about.get("DenyAccounts", "").split(","))
    return bool(named("AllowAccounts") & (accounts | {"ALL"})) and bool(accounts - denied)


def _accounts(slurm: Slurm, notes: List[str]) -> Tuple[Dict[str, List[str]], str]:
    user = getpass.getuser()
    found: Dict[str, List[str]] = {}
    try:
        text = slurm.sacctmgr("show", "associations", f"user={user}", "format=account,qos")
        default = slurm.sacctmgr("show", "user", user, "format=defaultaccount").strip()
    except SlurmError as error:
        notes.append(f"{MARK} accounts are not known: {error}")
        return {}, ""
    for line in text.splitlines():
        name, bar, qos = line.partition("|")
        if bar:
            found.setdefault(name, []).extend(
                one for one in qos.split("|")[0].split(",") if one and one not in found[name])
    return found, default if default in found else next(iter(found), "")


def _has_sacct(slurm: Slurm) -> bool:
    try:
        slurm.sacct(["1"])
    except (NoAccounting, SlurmError):
        return False
    return True


def _find_container(run: Door) -> Tuple[str, Tuple[str, ...]]:
    """The program in PATH, else the module that has it."""
    for name in CONTAINERS:
        if shutil.which(name):
            return name, ()
    try:
        # A login shell, where modules are known.
        done = run(["bash", "-lc", f"module --terse avail {' '.join(CONTAINERS)} 2>&1"])
    except (OSError, subprocess.TimeoutExpired):
        return "", ()
    module = newest_module(done.out)
    return next((name for name in CONTAINERS if module.startswith(name)), ""), (
        (module,) if module else ())


def newest_module(text: str) -> str:
    """Of what 'module avail' lists: the default, else the highest version; Apptainer first."""
    found = [match for match in map(_MODULE.match, text.split()) if match]

    def rank(match: Match[str]) -> Tuple[bool, bool, List[int]]:
        numbers = [int(part) for part in re.findall(r"\d+", match[1])]
        return match[1].startswith(CONTAINERS[0]), bool(match[2]), numbers
    return str(max(found, key=rank)[1]) if found else ""


def _groups() -> Set[str]:
    found = set()
    for gid in os.getgroups():
        with contextlib.suppress(KeyError):  # a number without a name
            found.add(grp.getgrgid(gid).gr_name)
    return found
