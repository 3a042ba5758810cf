"""What a user asks of Slurm beside the stages: to wait for another job, and mail.

    stages = with_extras(stages, after="123", mail="me@example.org")
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Set, Union

from blip_art.errors import UserError

if TYPE_CHECKING:  # --help must not wait for imports
    from blip_art.cluster.batch import Stage
    from blip_art.cluster.slurm import AccountRow, QueueRow, Slurm

# How sbatch may wait for a job; what it names after the colon is checked by Slurm.
_KINDS = ("afterok", "afterany", "afternotok", "after")
_JOB = re.compile(r"\d+(_\d+)?")
_ADDRESS = re.compile(r"[\w.+-]+(@[\w.-]+)?")


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """--after and --mail, for a command that submits."""
    group.add_argument("--after", metavar="JOB[,JOB…]",
                       help="start only when these jobs of Slurm have ended well; 'afterany:JOB': "
                            "however they ended")
    group.add_argument("--mail", metavar="ADDRESS", nargs="?", const="",
                       help="mail when the last job has ended, or one fails; without ADDRESS: to "
                            "where the cluster sends yours")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse them where nothing is submitted to Slurm, and what is no job or address.

    Raises:
        UserError: see above.
    """
    after, mail = getattr(args, "after", None), getattr(args, "mail", None)
    if (after or mail is not None) and args.cluster != "slurm":
        raise UserError(f"{'--after' if after else '--mail'} is for --cluster slurm")
    if after:
        dependencies(after)
    # argparse takes the word behind --mail for its address, also where it is the configuration.
    if mail and (not _ADDRESS.fullmatch(mail) or mail.endswith((".yaml", ".yml"))
                 or os.path.exists(mail)):
        raise UserError(f"--mail {mail}: no address; write --mail=ADDRESS, or --mail last for "
                        "the address that the cluster has of you")


def with_extras(stages: Sequence[Stage], after: Optional[str] = None,
                mail: Optional[str] = None) -> List[Stage]:
    """The stages as they are to be submitted: those that wait for no other of them wait for the
    jobs; all mail when they fail, the last also when it ends.

    Args:
        after: what --after says.
        mail: the address, '' for the user's own; None for no mail.
    """
    waits_for = dependencies(after) if after else ()
    stages = [stage if stage.after else dataclasses.replace(
        stage, waits_for=(*stage.waits_for, *waits_for)) for stage in stages]
    if mail is None:
        return stages
    to = (("mail-user", mail),) if mail else ()
    return [dataclasses.replace(stage, options=(
        *stage.options, ("mail-type", "END,FAIL" if stage is stages[-1] else "FAIL"), *to))
            for stage in stages]


def dependencies(text: str) -> Sequence[str]:
    """('afterok:12', 'afterany:13_4') of '12,afterany:13_4'.

    Raises:
        UserError: it names no job.
    """
    found = []
    for word in text.split(","):
        kind, colon, job = word.strip().rpartition(":")
        if not _JOB.fullmatch(job) or colon and kind not in _KINDS:
            raise UserError(f"--after {text}: must be a job's number, as squeue shows it, or "
                            "several: 123,afterany:124_7")
        found.append(f"{kind or 'afterok'}:{job}")
    return tuple(found)


def check_jobs(after: Optional[str], slurm: Slurm, has_sacct: bool) -> None:
    """Refuse a job that Slurm does not know, which it would take for one that ended well, and one
    that has failed, behind which nothing would start.

    Raises:
        UserError: see above.
    """
    from blip_art.cluster.slurm import ENDED, SlurmError

    states: Dict[str, Set[str]] = {}
    words = [word.split(":") for word in dependencies(after)] if after else []
    ids = [job for _, job in words]
    rows: List[Union[QueueRow, AccountRow]] = list(slurm.squeue(ids).values())
    if has_sacct and ids:
        with contextlib.suppress(SlurmError):
            # What is in the queue is there as it is now; accounts may be behind.
            rows += [row for row in slurm.sacct(ids).values()
                     if row.job_id not in {one.job_id for one in rows}]
    for row in rows:
        for job in (row.job_id, row.job_id.partition("_")[0]):
            states.setdefault(job, set()).add(row.state)
    for kind, job in words:
        if job not in states:
            raise UserError(f"--after {after}: Slurm knows no job {job}; 'squeue --me' shows yours")
        failed = sorted(states[job] & (ENDED - {"COMPLETED"}))
        if kind == "afterok" and failed:
            raise UserError(f"--after {after}: job {job} is {failed[0].lower()}, and nothing "
                            f"starts after that; 'afterany:{job}' does, however it ended")


def without_after(words: Sequence[str]) -> List[str]:
    """A command line as it is to be repeated: the job has been waited for by then."""
    kept, skips = [], False
    for word in words:
        if skips:
            skips = False
        elif re.fullmatch(r"--af(t(er?)?)?", word):
            skips = True
        elif not re.match(r"--af(t(er?)?)?=", word):
            kept.append(word)
    return kept
