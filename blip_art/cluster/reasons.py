"""What Slurm's words for waiting and ending mean, and what one can do about them.

    waiting("AssocGrpGRES")      ended("OUT_OF_MEMORY", "0:125")
"""

from __future__ import annotations

from blip_art.describe import describe_exit, describe_signal
from blip_art.errors import EXIT_USER_ERROR

_WAITING = {
    "Priority": "others are before it",
    "Resources": "waits for free nodes",
    "Dependency": "waits for an earlier job",
    "DependencyNeverSatisfied": "what it waits for has failed: cancel it, then resume",
    "BeginTime": "queued again, starts in a minute or two",
    "JobArrayTaskLimit": "as many of its sweep run as may at a time",
    "JobHeldUser": "held by you: 'scontrol release' lets it go",
    "JobHeldAdmin": "held by the administrators: ask them",
    "JobHoldMaxRequeue": "queued again too often, held: look at its logs",
    "PartitionTimeLimit": "asks for more time than the partition gives: lower time_min",
    "PartitionNodeLimit": "asks for more nodes than the partition has",
    "PartitionDown": "the partition is down: ask the administrators",
    "PartitionInactive": "the partition is closed: ask the administrators",
    "BadConstraints": "no node is as it asks: look at gres, constraint and memory",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation",
    "NodeDown": "a node it needs is down",
    "InvalidAccount": "the account does not exist: fix 'account' in the site profile",
    "InvalidQOS": "the quality of service does not exist: fix 'qos' in the site profile",
    "launch failed requeued held": "it did not start and is held: ask the administrators",
}
# Families: QOSMaxGRESPerUser, AssocGrpCPUMinutesLimit, ReqNodeNotAvail, UnavailableNodes:…
_WAITING_BEGINS = {
    "ReqNodeNotAvail": "nodes it needs are down or reserved, often for maintenance",
    "QOSMax": "you have as much running as the quality of service allows",
    "QOSGrp": "your group has as much running as the quality of service allows",
    "QOS": "the quality of service does not allow more now",
    "AssocMax": "you have as much running as your account allows",
    "AssocGrp": "your account has used or runs as much as it may",
    "MaxGRESPerAccount": "your account runs as many GPUs as it may",
    # What Slurm says where all nodes are merely busy, too.
    "Nodes required for job are DOWN": "waits for free nodes (some may be down, or kept for "
                                       "partitions with a higher priority)",
}
# Slurm's own words are shown behind ours, unless they are a sentence.
_LONGEST_REASON = 40
_ENDED = {
    "TIMEOUT": "the time limit was reached before it could save: raise time_min or signal_delay_s",
    "OUT_OF_MEMORY": "out of memory: raise mem_gb, or lower data.num_workers",
    "NODE_FAIL": "the node failed",
    "BOOT_FAIL": "the node did not start",
    "PREEMPTED": "preempted by another job",
    "DEADLINE": "its deadline passed",
    "CANCELLED": "cancelled",
    "REVOKED": "moved to another cluster",
}
# What Slurm ends a job with whose output it could not open: no command of the job was run.
_NO_LOG = "0:53"


def waiting(reason: str) -> str:
    """Why a job waits, in words, Slurm's own behind them."""
    known = _WAITING.get(reason)
    if known is None:
        plain = reason.replace("_", " ")  # as scontrol writes sentences
        known = next((text for begin, text in _WAITING_BEGINS.items()
                      if plain.startswith(begin)), "")
    if reason in ("", "None"):
        return "just submitted"
    if not known:
        return reason
    return known if len(reason) > _LONGEST_REASON else f"{known} ({reason})"


def ended(state: str, exit_code: str = "") -> str:
    """How a job ended that did not end well.

    Args:
        exit_code: 'code:signal', as sacct has it.
    """
    if state in _ENDED:
        return _ENDED[state]
    if exit_code == _NO_LOG:
        return "Slurm could not open its log: is its folder there, and is there room on its disk?"
    code, _, signal = exit_code.partition(":")
    if signal.isdigit() and int(signal):
        return describe_signal(int(signal))
    if not code.isdigit():
        return state.lower()
    # sacct takes 128 off: a job's 137 (SIGKILL) is its 9. None of ours ends with such a code.
    return describe_signal(int(code)) if EXIT_USER_ERROR < int(code) < 65 else describe_exit(
        int(code))
