"""What Slurm's words for waiting and ending mean, and what one can do about them.

    waiting("AssocGrpGRES")      ended("OUT_OF_MEMORY", "0:125")
"""

from __future__ import annotations

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
    "InvalidAccount": "the account does not exist: mend 'account' in the site profile",
    "InvalidQOS": "the quality of service does not exist: mend 'qos' in the site profile",
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
}
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


def waiting(reason: str) -> str:
    """Why a job waits, in words, Slurm's own behind them."""
    known = _WAITING.get(reason)
    if known is None:
        known = next((text for begin, text in _WAITING_BEGINS.items()
                      if reason.startswith(begin)), "")
    if reason in ("", "None"):
        return "just submitted"
    return f"{known} ({reason})" if known else reason


def ended(state: str, exit_code: str = "") -> str:
    """How a job ended that did not end well."""
    if state in _ENDED:
        return _ENDED[state]
    code, _, signal = exit_code.partition(":")
    if signal not in ("", "0"):
        return f"killed by signal {signal}"
    return f"exit code {code}" if code else state.lower()
