"""What doctor asks of Slurm: commands, daemons, partitions, account, accounting, a trial.

    for check in controller(site, Slurm()): print(check)
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
from dataclasses import dataclass
from typing import Dict, Iterable, List, Tuple

from blip_art.cluster.checks import FAIL, WARN, Check, fail, ok, warn
from blip_art.cluster.limits import partition_names, preemption, read_limits
from blip_art.cluster.portions import TRAIN_JOBS, sweep_runs
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import NoAccounting, Slurm, SlurmError, run_command, seconds_of

NEEDED = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")
_BARRED = re.compile(r"down|drain|fail|maint|unk|inval|no_respond", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A line of sinfo: nodes of a partition that are alike."""

    partition: str
    up: bool
    limit_s: int
    """-1 is none."""
    gres: str
    nodes: int
    state: str
    cpus: int
    mem_gb: float


def commands(site: Site, slurm: Slurm) -> Iterable[Check]:
    """Slurm's."""
    missing = [name for name in NEEDED if not shutil.which(slurm.path(name))]
    if missing:
        yield fail(f"no {', '.join(missing)} in PATH", "run it on a login node of the cluster, "
                   "after 'module load slurm' where that is needed")
        return
    yield ok(f"Slurm {slurm.version()}")


def controller(site: Site, slurm: Slurm) -> Iterable[Check]:
    """slurmctld, and munge, without which it answers nobody."""
    said = slurm.ping()
    if " is UP" not in said:
        yield fail(f"controller does not answer: {said}", "ask the administrators, or wait")
        return
    yield ok(f"controller answers: {said}")
    try:
        slurm.squeue(["1"])
        yield ok("Slurm accepts your credentials (munge)")
    except SlurmError as error:
        yield fail(str(error).partition("; ")[0], _munge())


def _munge() -> str:
    """What munge itself says, where it is installed for users."""
    if not shutil.which("munge"):
        return "ask the administrators"
    done = run_command(["munge", "--no-input", "--output=/dev/null"])
    return ("munge works here, so ask about the controller" if not done.code else
            f"the administrators must start munged ({(done.err or done.out).strip()})")


def partitions(site: Site, slurm: Slurm) -> Iterable[Check]:
    """Whether each exists, and has what the profile asks of it."""
    parts = read_parts(slurm.sinfo("--format=%R|%a|%l|%G|%D|%T|%c|%m"))
    yield from _partition(parts, site.partition, "partition", site.time_min)
    yield from _gpu_nodes(parts, site)
    if site.cpu_partition not in ("", site.partition):
        yield from _partition(parts, site.cpu_partition, "cpu_partition", site.cpu_time_min)


def read_parts(text: str) -> List[Part]:
    """sinfo's lines."""
    parts = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 8:
            name, up, limit, gres, nodes, state, cpus, mem = fields
            parts.append(Part(name, up == "up", seconds_of(limit), gres, _number(nodes), state,
                              _number(cpus), _number(mem) / 1000))
    return parts


def _number(text: str) -> int:
    match = re.match(r"\d+", text)  # '36+' where nodes differ
    return int(match[0]) if match else 0


def _partition(parts: List[Part], names: str, key: str, time_min: int) -> Iterable[Check]:
    """Each of 'a,b'; a job starts in whichever has room first, so one that fits is enough."""
    found = [_one_partition(parts, name, key, time_min) for name in partition_names(names)]
    fits = any(check.verdict != FAIL for check in found)
    for name, check in zip(partition_names(names), found):
        exists = any(part.partition == name for part in parts)  # sbatch refuses all for one unknown
        yield Check(WARN, f"{check.what}: no job starts there", check.fix) if (
            fits and exists and check.verdict == FAIL) else check


def _one_partition(parts: List[Part], name: str, key: str, time_min: int) -> Check:
    mine = [part for part in parts if part.partition == name]
    if not mine:
        names = ", ".join(dict.fromkeys(part.partition for part in parts))
        return fail(f"no partition {name}", f"there are: {names or 'none'}; fix '{key}' in the "
                                            "site profile")
    limit = mine[0].limit_s
    if not mine[0].up:
        return fail(f"partition {name} is closed", "ask the administrators, or name another")
    if 0 <= limit < 60 * time_min:
        short = "cpu_time_min" if key == "cpu_partition" else "time_min"
        return fail(f"partition {name} gives {limit // 60} minutes, the profile asks for "
                    f"{time_min}",
                    f"{short}: {limit // 60} (a training that needs more is queued again)")
    usable = sum(part.nodes for part in mine if not _BARRED.search(part.state))
    total = sum(part.nodes for part in mine)
    text = f"partition {name}: {usable} of {total} nodes in service"
    return ok(text) if usable else warn(text, "jobs wait until the nodes are back")


def _gpu_nodes(parts: List[Part], site: Site) -> Iterable[Check]:
    """Whether some kind of node is large enough."""
    mine = [part for part in parts if part.partition in partition_names(site.partition)]
    if not mine or not site.gres:
        return
    asked = site.gres.format(gpus=site.gpus_per_node)
    cpus = site.cpus_per_gpu * site.gpus_per_node
    fitting = [part for part in mine if _has_gres(part.gres, asked)]
    kinds = ", ".join(dict.fromkeys(part.gres for part in mine))
    if not fitting:
        yield fail(f"no node of {site.partition} has {asked}",
                   f"its nodes have {kinds}; fix 'gres' or 'gpus_per_node' in the site profile")
        return
    most_cpus, most_gb = max(p.cpus for p in fitting), max(p.mem_gb for p in fitting)
    if cpus > most_cpus:
        yield fail(f"{cpus} CPUs are asked for with {asked}, nodes have {most_cpus}",
                   f"cpus_per_gpu: {max(1, most_cpus // site.gpus_per_node)}")
    elif site.mem_gb > most_gb:
        yield fail(f"{site.mem_gb} GB of memory are asked for, nodes have {most_gb:.0f}",
                   f"mem_gb: {most_gb * .95:.0f}, or less")
    else:
        yield ok(f"nodes have {asked}, {cpus} CPUs and the memory for it")


def _has_gres(offered: str, asked: str) -> bool:
    """'gpu:v100:4(S:0-1),nvme:1' has 'gpu:v100:4', 'gpu:2' and 'gpu'."""
    name, kind, number = split_gres(asked)
    return any(name == other and kind in ("", sort) and number <= count
               for other, sort, count in map(split_gres, re.split(r",(?![^(]*\))", offered)))


def split_gres(text: str) -> Tuple[str, str, int]:
    """('gpu', 'v100', 4) of 'gpu:v100:4(S:0-1)'; the number is 1 unless it is said."""
    words = re.sub(r"\(.*?\)", "", text.strip()).split(":")
    number = int(words.pop()) if words[-1].isdigit() else 1
    return words[0], words[1] if len(words) > 1 else "", number


def environment(site: Site, slurm: Slurm) -> Iterable[Check]:
    """What the user has set for sbatch by hand, and submission leaves out."""
    for name, key in (("SBATCH_ACCOUNT", "account"), ("SBATCH_PARTITION", "partition"),
                      ("SBATCH_QOS", "qos")):
        value = os.environ.get(name)
        if value and value != getattr(site, key):
            yield warn(f"{name}={value} is not used", f"write '{key}: {value}' into the site "
                       "profile: variables would change what --dry-run shows")


def account(site: Site, slurm: Slurm) -> Iterable[Check]:
    """Whether the account and the quality of service are this user's."""
    if not site.has_sacct:
        return
    user = getpass.getuser()
    try:
        text = slurm.sacctmgr("show", "associations", f"user={user}", "format=account,qos")
    except SlurmError as error:
        yield warn(f"accounts of {user} not known: {error}")
        return
    # One line a cluster and partition: what any of them allows may be asked for.
    mine: Dict[str, List[str]] = {}
    for line in text.splitlines():
        name, bar, qos = line.partition("|")
        if bar:
            mine.setdefault(name, []).extend(qos.split("|")[0].split(","))
    if site.account and site.account not in mine:
        yield fail(f"{user} has no account {site.account}",
                   f"yours: {', '.join(mine) or 'none'}; fix 'account' in the site profile")
    elif not mine:
        yield warn(f"{user} has no account at all", "where accounts are enforced, ask for one")
    else:
        chosen = site.account or next(iter(mine))
        yield ok(f"account {chosen}")
        allowed = list(dict.fromkeys(filter(None, mine[chosen])))
        if site.qos and site.qos not in allowed:
            yield fail(f"account {chosen} may not use qos {site.qos}",
                       f"it may use: {', '.join(allowed)}; fix 'qos' in the site profile")


def accounting(site: Site, slurm: Slurm) -> Iterable[Check]:
    """sacct: without it status cannot tell GPU-hours, nor why an old job ended."""
    if not shutil.which(slurm.path("sacct")):
        works, why = False, "there is no command sacct"
    else:
        try:
            slurm.sacct(["1"])
            works, why = True, ""
        except NoAccounting as error:
            works, why = False, str(error).partition("; say")[0]
    if works and site.has_sacct:
        yield ok("accounting answers")
    elif works:
        yield warn("sacct answers, but the profile says there is none", "has_sacct: true")
    elif site.has_sacct:
        yield warn(f"no accounting: {why}", "has_sacct: false, if that is so on this site; status "
                   "then reckons GPU-hours from epochs")
    else:
        yield ok("no accounting, as the profile says")


def preempted(site: Site, slurm: Slurm) -> Iterable[Check]:
    """What becomes of a job that must make room: where it is cancelled, --requeue does nothing."""
    for one in preemption(site, slurm):
        if one.mode == "CANCEL":
            yield warn(f"{one.whose} cancels what it preempts (PreemptMode=CANCEL)",
                       "--requeue does nothing there: a preempted training may save, but does not "
                       "come back; 'launch.py resume' goes on")
        elif one.mode == "SUSPEND":
            yield warn(f"{one.whose} suspends what it preempts (PreemptMode=SUSPEND)",
                       "a suspended training keeps its memory and goes on by itself")
        elif one.mode == "REQUEUE":
            yield ok(f"{one.whose} queues again what it preempts")


def amounts(site: Site, slurm: Slurm) -> Iterable[Check]:
    """How many jobs a sweep may be, and what happens to more."""
    limits = read_limits(site, slurm)
    if limits.array_size:
        yield ok(f"arrays of up to {limits.array_size} jobs; larger sweeps are several arrays")
    if limits.submit:
        most, whose = limits.submit
        text = f"you may have {most} jobs in the queue ({whose})"
        if most < TRAIN_JOBS:
            yield warn(f"{text}, and a training is {TRAIN_JOBS}", "train with --no-score, then "
                       "'launch.py score'; or ask for more")
        else:
            yield ok(f"{text}: a sweep submits at most {sweep_runs(most)} runs at a time, the "
                     "same command again the next")


def trial(site: Site, slurm: Slurm) -> Iterable[Check]:
    """Slurm's own word on what a job would ask for; nothing is submitted."""
    gpu = [f"--gres={site.gres.format(gpus=site.gpus_per_node)}"] if site.gres else []
    for kind, partition, more, minutes, cpus, mem_gb, own in (
            ("GPU", site.partition, gpu, site.time_min, site.cpus_per_gpu * site.gpus_per_node,
             site.mem_gb, site.sbatch),
            ("CPU", site.cpu_partition or site.partition, [], site.cpu_time_min, site.cpu_cpus,
             site.cpu_mem_gb, site.cpu_sbatch)):
        options = {"partition": partition, "account": site.account, "qos": site.qos,
                   "time": str(minutes), "cpus-per-task": str(cpus),
                   "mem": f"{mem_gb}G" if mem_gb else "", **own}
        words = [f"--{key}" if value is True else f"--{key}={value}"
                 for key, value in options.items() if value]
        yield _tried(kind, slurm.try_sbatch("--nodes=1", "--ntasks=1", *words, *more))


def _tried(kind: str, said: str) -> Check:
    match = re.search(r"to start at (\S+).* on nodes? (\S+)", said)
    if match:
        return ok(f"a {kind} job is accepted; it would start at {match[1]} on {match[2]}")
    reason = re.sub(r"^(\w+: )?(error: |allocation failure: )*", "", said.strip().split("\n")[-1])
    return fail(f"a {kind} job is refused: {reason}", "fix what it names in the site profile")


DECISIVE = (commands, controller)
CHECKS = (commands, controller, environment, partitions, account, accounting, preempted, amounts,
          trial)
