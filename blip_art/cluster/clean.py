"""What finished runs can lose: listed with sizes, removed on demand, never anything unknown.

    found = survey(find_runs(["runs"]), Slurm(), KINDS); print(shown(found)); remove(found.items)
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

from blip_art.cluster.control import Live, living_jobs
from blip_art.cluster.ownership import own_jobs
from blip_art.cluster.pending import is_pickle_of_job
from blip_art.cluster.record import read_jobs
from blip_art.cluster.slurm import Slurm, SlurmAbsent, SlurmError
from blip_art.cluster.status import find_runs
from blip_art.cluster.sweep import record_of
from blip_art.cluster.table import table
from blip_art.errors import UserError
from blip_art.files import DAY_S, RunDir, is_left_behind
from blip_art.manifest import SNAPSHOT_RECORD
from blip_art.run_state import is_alive, read_best, read_state, unscored
from blip_art.score.lock import is_held, taken
from blip_art.work import cancelled_jobs, has_ended


class Kind(NamedTuple):
    """One kind of files, for people: what they are, and what is lost with them."""

    what: str
    lost: str


KINDS: Dict[str, Kind] = {
    "checkpoints": Kind("last.pt and previous.pt", "nothing that counts: the weights of the best "
                        "and the last epoch stay, and a finished training cannot go on anyway"),
    "code": Kind("copies of the code that jobs ran", "that very code, where it had changes that "
                 "git does not have; score and report take a copy of today's"),
    "pickles": Kind("what submitit hands to jobs", "nothing: scripts and logs stay"),
    "temporary": Kind("half-written files of processes that are gone", "nothing"),
    "scratch": Kind("scratch folders of jobs that are gone, on this machine", "nothing"),
    "weights": Kind("weights of epochs that are neither the best nor the last", "these weights: "
                    "no other captions can be made with them")}
_PICKLE = re.compile(r"\d[\d_]*_(submitted|result)\.pkl")
_TEMPORARY = re.compile(
    r"\.((last|previous)\.pt|epoch_\d+\.safetensors|\w+\.jsonl?|config\.yaml|output\.txt|"
    r"wrapper(_\d+)?\.sh|code)\..+\.\d+\.(tmp|old)")
_NAMED = 3
_WRITTEN = ("checkpoints", "predictions", "scores", "references", "bad_pictures", "slurm")
_SCRATCH = re.compile(r"blip_art-(?P<user>.+?)-(?P<number>\d+)(?:[.-]\w+)?")


@dataclass(frozen=True)
class Item:
    """Files of one kind in one folder."""

    folder: Path
    """A run, a sweep, or the scratch of this machine."""
    kind: str
    paths: Tuple[Path, ...]
    size: int
    files: int


class Found(NamedTuple):
    """What can go, and the runs that keep everything, each with the reason."""

    items: List[Item]
    kept: List[Tuple[RunDir, str]]


def survey(runs: Sequence[RunDir], slurm: Slurm, kinds: Iterable[str], scratch: str = "") -> Found:
    """Look at the runs, at sweeps of which all runs are named, and at scratch.

    Args:
        scratch: the profile's; '' looks at none.
    """
    kinds = set(kinds)
    used = _environments()
    asked = [*runs, *_other_sweeps(runs)]
    reasons = dict(zip(asked, _reasons(asked, slurm, used)))
    free = [run for run in asked if not reasons[run]]
    places = {run.path.resolve() for run in free}
    found = [(run.path, _of_report(run) if _is_report(run) else _of_run(run)) for run in free
             if not _is_sweep(run) or all(one.path.resolve() in places
                                          for one in find_runs([str(run.path)]))]
    if "scratch" in kinds and scratch:
        found.append((Path(scratch), {"scratch": _of_scratch(Path(scratch), slurm, used)}))
    items = [Item(folder, kind, tuple(paths), *_measure(paths))
             for folder, by_kind in found for kind, paths in by_kind.items()
             if paths and kind in kinds]
    return Found(items, [(run, why) for run, why in reasons.items() if why])


def shown(found: Found, width: int = 0) -> str:
    """The table, what each kind is and what is lost with it, and who keeps everything."""
    lines = []
    if found.items:
        rows = [[str(one.folder), one.kind, size_text(one.size), str(one.files)]
                for one in sorted(found.items, key=lambda one: -one.size)]
        lines += [table(("folder", "what", "size", "files"), rows, width, (2, 3)), ""]
    for kind in KINDS:
        size = sum(one.size for one in found.items if one.kind == kind)
        if any(one.kind == kind for one in found.items):
            lines.append(f"{kind}: {KINDS[kind].what}, {size_text(size)}; lost with them: "
                         f"{KINDS[kind].lost}")
    for why in dict.fromkeys(why for _, why in found.kept):
        names = [str(run.path) for run, reason in found.kept if reason == why]
        more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
        lines.append(f"kept whole: {', '.join(names[:_NAMED])}{more} ({why})")
    return "\n".join(lines)


def remove(items: Sequence[Item]) -> Tuple[int, List[str]]:
    """Remove the files, each folder's while nobody else works in it.

    Returns:
        Bytes that were removed, and what could not be.
    """
    freed, problems = 0, []
    for folder in dict.fromkeys(one.folder for one in items):
        mine = [one for one in items if one.folder == folder]
        with _alone_in(RunDir(folder), mine[0].kind != "scratch") as alone:
            if not alone:
                problems.append(f"{folder}: somebody works in it now")
                continue
            for one in mine:
                try:
                    for path in one.paths:
                        _remove(path)
                    freed += one.size
                except OSError as error:
                    problems.append(f"{error.filename or folder}: {error.strerror}")
    return freed, problems


def size_text(size: int) -> str:
    """'2.70 GB', '13 MB', '4 kB'."""
    if size >= 10**9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 10**6 else f"{-(-size // 1000)} kB"


def _reasons(runs: Sequence[RunDir], slurm: Slurm, used: bytes) -> List[str]:
    """Why each run keeps everything; '' for one that need not.

    Args:
        used: environments of this user's processes.
    """
    problem, live, elsewhere = "", [], {}
    readable = [run for run in runs if not _damage(run)]
    try:
        live = living_jobs(readable, slurm)
        elsewhere = _jobs_elsewhere(readable, slurm)
    except SlurmAbsent:
        problem = "it was submitted, and no Slurm is here to say whether a job uses it"
    except SlurmError as error:
        problem = f"whether a job uses it is not known: {error}"
    return [_reason(run, [one for one in live if one[0] is run], problem, used)
            or elsewhere.get(run, "") for run in runs]


def _jobs_elsewhere(runs: Sequence[RunDir], slurm: Slurm) -> Dict[RunDir, str]:
    """Which of the runs have a job that this cluster's Slurm knows nothing of, and that has left
    no note of its end."""
    jobs = [(run, job) for run in runs for job in own_jobs(run) if job.cluster]
    name = slurm.cluster_name() if jobs else ""
    return {run: f"{job.stage} job {job.job_id} is of cluster {job.cluster}, where it may use it"
            for run, job in jobs if job.cluster != name
            and not has_ended(run, job.job_id, job.batch_log)
            and job.job_id not in cancelled_jobs(run)}


def _reason(run: RunDir, live: Sequence[Live], problem: str, used: bytes) -> str:
    damage = _damage(run)
    if damage:
        return damage
    state = read_state(run)
    if state.name != "finished" and not _is_report(run):
        return state.why if state.damaged else state.name or "not started"
    if live:
        return f"{live[0][1].stage} job {live[0][2].job_id} is {live[0][2].state.lower()}"
    if run.pending.exists() or RunDir(run.path.parent).pending.exists():
        return "the answer to a submission is still open: 'launch.py status' asks again"
    # Who makes captions here holds no lock, but imports the run's code.
    if is_alive(run) or is_held(run.scoring_lock) or os.fsencode(run.code.resolve()) in used:
        return "a process works in it"
    return problem if read_jobs(run) else ""


def _damage(run: RunDir) -> str:
    """What is wrong with files that must be read; '' if nothing."""
    try:
        read_jobs(run)
        read_best(run)
    except UserError as error:
        return str(error)
    return ""


def _of_run(run: RunDir) -> Dict[str, List[Path]]:
    found = _of_report(run)
    found["temporary"] += [path for name in _WRITTEN for path in _leftovers(run.path / name)]
    epochs, best = run.saved_epochs(), read_best(run)
    # Weights that are nowhere else must stay, and so must what they are made of.
    if epochs and (best is None or best.epoch in epochs):
        found["checkpoints"] = run.saved_checkpoints()
    # What is not scored yet may turn out best.
    if best and not unscored(run):
        found["weights"] = [run.weights(epoch) for epoch in epochs[:-1] if epoch != best.epoch]
    return found


def _of_report(run: RunDir) -> Dict[str, List[Path]]:
    """What the folder of a sweep or a report has, as a run's."""
    is_copy = (run.code / SNAPSHOT_RECORD).is_file() and not run.code.is_symlink()
    return {"code": [run.code] if is_copy else [],
            "pickles": [path for path in _listed(run.slurm / "submitit")
                        if _PICKLE.fullmatch(path.name) or is_pickle_of_job(path.name)],
            "temporary": _leftovers(run.path)}


def _other_sweeps(runs: Sequence[RunDir]) -> List[RunDir]:
    """Folders of the runs' sweeps that are not among these."""
    here = {run.path.resolve() for run in runs}
    parents = (RunDir(parent) for parent in dict.fromkeys(run.path.parent for run in runs))
    return [parent for parent in parents
            if _is_sweep(parent) and parent.path.resolve() not in here]


def _is_sweep(run: RunDir) -> bool:
    return record_of(run.path).is_file()


def _is_report(run: RunDir) -> bool:
    """Whether nothing was computed there: a sweep's folder, or one that reports were made in."""
    if run.state.exists():
        return False
    jobs = read_jobs(run)
    return all(job.stage == "collect" for job in jobs) and (bool(jobs) or _is_sweep(run))


def _leftovers(folder: Path) -> List[Path]:
    return [path for path in _listed(folder)
            if _TEMPORARY.fullmatch(path.name) and is_left_behind(path)]


def _listed(folder: Path) -> List[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _of_scratch(folder: Path, slurm: Slurm, used: bytes) -> List[Path]:
    """Folders of ours that nobody has used for a day, whose job or process is gone."""
    found: Dict[Path, str] = {}
    for path in _listed(folder):
        match = _SCRATCH.fullmatch(path.name)
        if match and match["user"] == getpass.getuser() and _is_own_old_folder(path):
            found[path] = match["number"]
    try:
        # An element of an array has a number of its own in its folder's name.
        at_work = slurm.own_raw_ids() if found else set()
    except SlurmError:
        return []  # any of them may be a running job's: other machines may share this scratch
    return [path for path, number in found.items() if os.fsencode(path) not in used
            and number not in at_work]


def _environments() -> bytes:
    """Of this user's processes on this machine: PYTHONPATH names the code of each, TMPDIR its
    scratch."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return b"\0".join(found)


def _is_own_old_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        about = path.lstat()
        return (path.is_dir() and not path.is_symlink() and about.st_uid == os.getuid()
                and time.time() - about.st_mtime > DAY_S)
    return False


def _measure(paths: Sequence[Path]) -> Tuple[int, int]:
    """Bytes and number of files; links are not followed."""
    size = files = 0
    for path in paths:
        for one in _files(path):
            with contextlib.suppress(OSError):
                size += one.lstat().st_size
                files += 1
    return size, files


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for parent, _, names in os.walk(path):
        yield from (Path(parent, name) for name in names)


@contextlib.contextmanager
def _alone_in(run: RunDir, is_run: bool) -> Iterator[bool]:
    """While no training, no scorer and no submission works there, and none can begin."""
    locks = [lock for lock in (run.training_lock, run.scoring_lock, run.submission_lock)
             if is_run and lock.parent.is_dir()]
    with contextlib.ExitStack() as held:
        yield all(held.enter_context(taken(lock)) for lock in locks)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    if path.name.startswith("."):
        shutil.rmtree(path)
        return
    # First out of the way: half a copy of the code must not be taken for a whole one.
    aside = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.old")
    path.rename(aside)
    shutil.rmtree(aside)
