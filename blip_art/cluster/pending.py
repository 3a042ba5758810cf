"""Submissions whose answer is still open: noted before sbatch is called, settled by any command.

    note_pending(folder, Pending(new_name("train"), "train", rows)); settle_all([run], Slurm())

sbatch may be killed, or lose Slurm's answer, after Slurm has taken the job: it then holds GPUs and
no run folder knows its number. So a submission has a name before it is sent, that of its batch
script, by which the queue is searched: squeue shows the path of each job's script (%o). A comment
or a wckey may be set in a site's profile, required or rewritten by its job_submit plugin, and a
job's name is what users filter by; the path is nobody's, and needs no option. What the job runs
lies beside the script under the same name: a submission is withdrawn by deleting that, and its job
then ends as soon as it starts (slurm/job.sh).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from blip_art.cluster.record import Submitted, read_jobs, record_jobs
from blip_art.cluster.slurm import Slurm, SlurmError
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json_list, write_json, write_text
from blip_art.schema import build
from blip_art.score.lock import owner, taken
from blip_art.work import cancelled_jobs, cancelled_note

# A busy controller may still take a job whose sbatch has given up waiting.
FORGOTTEN_S = 10 * 60.0


@dataclass(frozen=True)
class Pending:
    """A submission of which it is not known whether Slurm has its job."""

    name: str
    """Its batch script's, without .sh; it stands for the job's number in `jobs`."""
    stage: str
    jobs: Tuple[Tuple[str, Submitted], ...]
    """What is to be recorded once the number is known: (run folder, job)."""
    began: float = 0.0
    """Seconds since 1970."""
    withdrawn: bool = False
    """Given up: its job is to be cancelled, and not to be recorded as one that works."""
    job_id: str = ""
    """The number of a job that could not be cancelled yet; it is recorded already."""

    @property
    def cluster(self) -> str:
        """Where it was sent to; '' where that is not known."""
        return self.jobs[0][1].cluster if self.jobs else ""


def new_name(stage: str) -> str:
    """A name for a submission that no other has."""
    return f"{stage}-{uuid.uuid4().hex[:16]}"


def is_pickle_of_job(file: str) -> bool:
    """Whether a file is what a job of a submission with a `new_name` runs."""
    return re.fullmatch(r"[a-z]+(\.\d+)?-[0-9a-f]{16}_\d+\.pkl", file) is not None


def pickles_of(folder: Path) -> Path:
    """Where scripts and pickles of a submission folder lie."""
    return folder / "submitit"


def read_pending(folder: Path) -> List[Pending]:
    """The open submissions of a submission folder (RUN/slurm), oldest first.

    Raises:
        UserError: the note is damaged.
    """
    path = RunDir(folder.parent).pending
    if not path.exists():
        return []
    try:
        return [_pending(row, path) for row in read_json_list(path)]
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no list of open submissions ({error}); delete it (their jobs "
                        "stay in the queue: 'squeue --me')") from error


def _pending(row: Dict[str, Any], path: Path) -> Pending:
    known = {one.name for one in fields(Submitted)}
    jobs = tuple((str(job["run"]), build(Submitted, {key: job[key] for key in known & set(job)},
                                         str(path))) for job in row["jobs"])
    return Pending(str(row["name"]), str(row["stage"]), jobs, float(row["began"]),
                   bool(row["withdrawn"]), str(row["job_id"]))


def note_pending(folder: Path, *pending: Pending) -> None:
    """Add submissions, or replace those of the same name."""
    names = {one.name for one in pending}
    _write(folder, [*(one for one in read_pending(folder) if one.name not in names), *pending])


def forget_pending(folder: Path, names: Iterable[str]) -> None:
    """These submissions are settled."""
    gone = set(names)
    _write(folder, [one for one in read_pending(folder) if one.name not in gone])


def _write(folder: Path, pending: Sequence[Pending]) -> None:
    path = RunDir(folder.parent).pending
    if pending:
        write_json(path, [{**asdict(one), "jobs": [{"run": run, **asdict(job)}
                                                   for run, job in one.jobs]}
                          for one in pending], indent=1, durable=False)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def withdraw(folder: Path, name: str) -> None:
    """Delete what the job would run: it ends when it starts, before it enters the container."""
    for pickle in pickles_of(folder).glob(f"{name}_*.pkl"):
        with contextlib.suppress(FileNotFoundError):
            pickle.unlink()


def record_pending(pending: Pending, number: str) -> None:
    """Its jobs in the run folders, now that the number is known."""
    for run, job in pending.jobs:
        named = {one: getattr(job, one).replace(pending.name, number)
                 for one in ("job_id", "log", "batch_log")}
        if named["job_id"] not in [known.job_id for known in read_jobs(RunDir(run))]:
            record_jobs(RunDir(run), [replace(job, **named)])


def note_cancelled(pending: Pending, number: str) -> None:
    """That its jobs were cancelled on purpose, in the run folders."""
    for path, job in pending.jobs:
        run = RunDir(path)
        ids = cancelled_jobs(run) | {job.job_id.replace(pending.name, number)}
        write_text(cancelled_note(run), "".join(f"{one}\n" for one in sorted(ids)), durable=False)


def take_back(folder: Path, sent: Sequence[Tuple[Pending, str]], slurm: Slurm) -> List[str]:
    """Give up submissions: (submission, number of its job, '' where it is not known).

    What cannot be cancelled now stays noted, and ends by itself when it starts.

    Returns:
        The numbers that were cancelled.

    Raises:
        SlurmError: Slurm does not answer.
    """
    for pending, _ in sent:
        withdraw(folder, pending.name)
    with contextlib.suppress(UserError, OSError):  # a full disk must not keep the jobs
        note_pending(folder, *(replace(one, withdrawn=True, job_id=number)
                               for one, number in sent))
    known = [(pending, number) for pending, number in sent if number]
    slurm.cancel([number for _, number in known])
    for pending, number in known:
        note_cancelled(pending, number)
    forget_pending(folder, [pending.name for pending, _ in known])
    return [number for _, number in known]


def settle_all(runs: Sequence[RunDir], slurm: Slurm, give_up: bool = False,
               held: Optional[Path] = None) -> List[str]:
    """Settle what earlier commands left open in these runs, or in the sweeps they belong to.

    A folder whose note is damaged, or that cannot be written to, is named in a line: the others
    are settled all the same.

    Args:
        give_up: what is not found is not wanted any more: it is about to be submitted again.
        held: a run or sweep whose submission lock is held by this process: nothing is to be
            submitted there while its note is damaged.

    Returns:
        What was done, in lines for the user; none if nothing was open.

    Raises:
        SlurmError: Slurm does not answer.
        UserError: the folder that is `held` cannot be settled.
    """
    folders = dict.fromkeys(path.resolve() for run in runs for path in (run.path, run.path.parent))
    lines: List[str] = []
    for folder in folders:
        run = RunDir(folder)
        if not run.pending.exists() or run.pending.stat().st_uid != os.getuid():
            continue
        lock = run.submission_lock
        ours_already = held is not None and held.resolve() == folder
        try:
            with contextlib.nullcontext(True) if ours_already else taken(lock) as ours:
                lines += settle(run.slurm, slurm, give_up) if ours else [
                    f"{run.path} is being submitted by {owner(lock) or 'another process'}"]
        except SlurmError:
            raise
        except UserError as error:
            if ours_already:
                raise
            lines.append(f"an interrupted submission is left as it is: {error}")
    return lines


def settle(folder: Path, slurm: Slurm, give_up: bool = False,
           now: Optional[float] = None) -> List[str]:
    """Look for the jobs of open submissions, take them over or back; see `settle_all`."""
    open_ones = read_pending(folder)
    if not open_ones:
        return []
    cluster = slurm.cluster_name() if any(one.cluster for one in open_ones) else ""
    found = slurm.find_scripts([one.name for one in open_ones])
    lines, over = [], []
    for one in open_ones:
        if cluster and one.cluster not in ("", cluster):
            lines.append(f"{folder.parent}: the submission of a {one.stage} job was interrupted on "
                         f"cluster {one.cluster}; 'launch.py status' looks for it there")
            continue
        number = one.job_id or found.get(one.name) or started_job(pickles_of(folder), one.name)
        where = f"{folder.parent}: {one.stage} job {number}"
        if number and one.withdrawn:
            over.append((one, number))
            lines.append(f"{where} is cancelled: its submission had been given up")
        elif number:
            record_pending(one, number)
            forget_pending(folder, [one.name])
            lines.append(f"{where} is taken over: launch.py was ended before it had noted the job, "
                         "and submitted none of those that follow it")
        elif (now or time.time()) - one.began > FORGOTTEN_S:
            withdraw(folder, one.name)
            forget_pending(folder, [one.name])
            lines.append(f"{folder.parent}: Slurm never had the {one.stage} job whose submission "
                         "was interrupted")
        else:
            if give_up:
                withdraw(folder, one.name)
                note_pending(folder, replace(one, withdrawn=True))
            lines.append(f"{folder.parent}: the submission of a {one.stage} job was interrupted; "
                         "Slurm does not have it, so far")
    for one, number in over:
        if not one.job_id:
            record_pending(one, number)
    take_back(folder, over, slurm)
    return lines


def started_job(pickles: Path, name: str) -> str:
    """The number of a submission's job that has started, and may have ended: its batch script has
    left a link. '' for none."""
    for link in pickles.glob("*_submitted.pkl"):
        if link.is_symlink() and os.readlink(link).startswith(f"{name}_"):
            return link.name.partition("_")[0]
    return ""
