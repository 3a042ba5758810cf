"""What a cluster allows: how large an array may be, how many jobs one may have, what preempts.

    limits = read_limits(site, Slurm()); limits.array_size; limits.submit.most
"""

from __future__ import annotations

import getpass
import re
from typing import Dict, List, NamedTuple, Optional, Sequence

from blip_art.cluster.site import Site
from blip_art.cluster.slurm import Slurm, SlurmError

# Limits of a quality of service, by sacctmgr's short names.
_SUBMIT = {"maxsubmitpu": "MaxSubmitJobsPerUser", "maxsubmitpa": "MaxSubmitJobsPerAccount",
           "grpsubmit": "GrpSubmitJobs"}
_QOS = ("name", "preemptmode", *_SUBMIT)


class SubmitLimit(NamedTuple):
    """How many jobs may wait or run at once; each element of an array is one."""

    most: int
    whose: str
    """'MaxSubmitJobsPerUser of qos normal'."""


class Preemption(NamedTuple):
    """What happens to a job that must make room."""

    mode: str
    """CANCEL, REQUEUE, SUSPEND or OFF; GANG is left out."""
    whose: str
    """'partition preempt'."""


class Limits(NamedTuple):
    """What is not limited, or not known, is None."""

    array_size: Optional[int] = None
    """Most elements of an array; 1 where there are no arrays."""
    submit: Optional[SubmitLimit] = None
    """The tightest that counts for this user's jobs."""


def partition_names(partitions: str) -> List[str]:
    """'a,b' is what sbatch takes for 'whichever starts first'; '' is the cluster's default."""
    return [name for name in partitions.replace(" ", "").split(",") if name]


def read_limits(site: Site, slurm: Slurm) -> Limits:
    """Both limits, with one scontrol for arrays, and as many calls as accounts need.

    Raises:
        SlurmError: scontrol does not answer.
    """
    return Limits(array_size(slurm.config()), submit_limit(site, slurm))


def array_size(config: Dict[str, str]) -> Optional[int]:
    """MaxArraySize is one more than the highest index, and indices begin with 0."""
    text = config.get("MaxArraySize", "")
    sizes = [int(text)] if text.isdigit() else []
    tasks = re.search(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    sizes += [int(tasks[1])] if tasks else []
    return max(1, min(sizes)) if sizes else None


def submit_limit(site: Site, slurm: Slurm) -> Optional[SubmitLimit]:
    """The tightest of what account, quality of service and partitions set; None without accounts.

    Groups of accounts may have limits of their own (GrpSubmitJobs), which only Slurm adds up.
    """
    if not site.has_sacct:
        return None
    try:
        mine = _association(site, slurm)
        limiting = {name: row for name, row in _qos(slurm).items()
                    if any(row[key].isdigit() for key in _SUBMIT)}
        partitions = slurm.partitions() if limiting else {}
    except SlurmError:
        return None
    found = []
    if mine and mine["maxsubmit"].isdigit():
        found.append(SubmitLimit(int(mine["maxsubmit"]),
                                 f"MaxSubmitJobs of account {mine['account']}"))
    used = [_job_qos(site, mine), *(
        partitions.get(name, {}).get("QoS", "")
        for name in partition_names(f"{site.partition},{site.cpu_partition}"))]
    for name in limiting.keys() & set(used):
        found += [SubmitLimit(int(limiting[name][key]), f"{word} of qos {name}")
                  for key, word in _SUBMIT.items() if limiting[name][key].isdigit()]
    return min(found, default=None)


def preemption(site: Site, slurm: Slurm) -> List[Preemption]:
    """How the GPU partitions' jobs are preempted; nothing where nobody can preempt them.

    Raises:
        SlurmError: Slurm does not answer.
    """
    config = slurm.config()
    default = _mode(config.get("PreemptMode", ""))
    if config.get("PreemptType") == "preempt/qos":
        name = _job_qos(site, _association(site, slurm))
        mode = _mode(_qos(slurm).get(name, {}).get("preemptmode", ""))
        return [Preemption(default if mode in ("CLUSTER", "") else mode, f"qos {name}")]
    if config.get("PreemptType") != "preempt/partition_prio":
        return []
    partitions = slurm.partitions()
    tiers = [int(one.get("PriorityTier") or 0) for one in partitions.values()]
    names = partition_names(site.partition) or [
        name for name, one in partitions.items() if one.get("Default") == "YES"]
    return [Preemption(_mode(partitions[name].get("PreemptMode", "")) or default,
                       f"partition {name}")
            for name in names if name in partitions
            and int(partitions[name].get("PriorityTier") or 0) < max(tiers)]


def _mode(text: str) -> str:
    return next((word for word in text.upper().split(",") if word != "GANG"), "")


def _job_qos(site: Site, mine: Optional[Dict[str, str]]) -> str:
    """What a job runs under: the profile's, the account's default, or the only one it has."""
    if site.qos or not mine:
        return site.qos
    allowed = [name for name in mine["qos"].split(",") if name]
    return mine["defaultqos"] or (allowed[0] if len(allowed) == 1 else "normal")


def _association(site: Site, slurm: Slurm) -> Optional[Dict[str, str]]:
    """The user's line for the profile's account, else the first."""
    names = ("account", "maxsubmit", "qos", "defaultqos")
    rows = _rows(slurm.sacctmgr("show", "associations", f"user={getpass.getuser()}",
                                f"format={','.join(names)}"), names)
    return next((row for row in rows if row["account"] == site.account), rows[0] if rows else None)


def _qos(slurm: Slurm) -> Dict[str, Dict[str, str]]:
    return {row["name"]: row for row in _rows(
        slurm.sacctmgr("show", "qos", f"format={','.join(_QOS)}"), _QOS)}


def _rows(text: str, names: Sequence[str]) -> List[Dict[str, str]]:
    lines = (line.split("|") for line in text.splitlines())
    return [dict(zip(names, line)) for line in lines if len(line) >= len(names)]
