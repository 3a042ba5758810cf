"""The one door to Slurm's commands: what is asked is counted, what is answered is parsed.

    slurm = Slurm(); slurm.squeue(["12", "13_4"]); slurm.cancel(["12"])
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set

from blip_art.errors import UserError

TIMEOUT_S = 60.0
# Of the variables that steer Slurm's commands, those a user sets on purpose.
_KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS",
         # What a site profile does not say; the rest of SBATCH_* wins over a batch script's lines:
         # SBATCH_NO_REQUEUE in somebody's .bashrc would end recovery from a dead node.
         "SBATCH_RESERVATION", "SBATCH_EXCLUSIVE", "SBATCH_CLUSTERS", "SBATCH_DEBUG")
# SLURM_* leak from an outer job; the others change what the commands below print.
_SCRUBBED = ("SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
_DEAD_CONTROLLER = re.compile(
    r"contact slurm controller|connect failure|connection refused|timed out|zero bytes|"
    r"authentication|munge|could not establish a configuration source|resolve", re.IGNORECASE)
ENDED = frozenset("COMPLETED FAILED CANCELLED TIMEOUT OUT_OF_MEMORY NODE_FAIL PREEMPTED BOOT_FAIL "
                   "DEADLINE REVOKED".split())
# The name comes last: it may hold anything.
_QUEUE_FIELDS = "%i|%A|%T|%r|%M|%L|%S|%N|%P|%E|%u|%j"
_ACCOUNT_FIELDS = "JobID,State,ExitCode,ElapsedRaw,AllocTRES,Start,End,NodeList,User,MaxRSS"


class SlurmError(UserError):
    """A Slurm command failed; its own words are in the message."""


class SlurmAbsent(SlurmError):
    """The command is not on this machine."""


class ControllerDown(SlurmError):
    """The command is there, but nobody answers it."""


class NoAccounting(SlurmError):
    """sacct cannot answer: no slurmdbd, or it is down."""


class Completed(NamedTuple):
    """How a command ended."""

    code: int
    out: str = ""
    err: str = ""


Door = Callable[[Sequence[str]], Completed]


@dataclass(frozen=True)
class QueueRow:
    """A job that waits or runs (or has just ended), from squeue."""

    job_id: str
    """'123', or '123_4' for a task of an array."""
    raw_id: str
    """The number that scontrol and the job's own SLURM_JOB_ID use."""
    state: str
    """PENDING, RUNNING, COMPLETING, …"""
    reason: str
    """Why it waits, in Slurm's word; 'None' when it does not."""
    seconds: int
    """Run time so far, of this start."""
    left_s: int
    """Until the time limit; -1 if there is none."""
    start: str
    """Start, or expected start, as Slurm writes it; 'N/A' when not known."""
    nodes: str
    partition: str
    waits_for: str
    """Dependencies that are not met yet, as Slurm writes them."""
    user: str = ""
    """Whose it is; '' if Slurm did not say."""
    name: str = ""

    @property
    def alive(self) -> bool:
        """Whether it waits, runs or is about to be queued again."""
        return self.state not in ENDED


@dataclass(frozen=True)
class AccountRow:
    """A job and all its restarts, from sacct."""

    job_id: str
    state: str
    """Of the last start, in one word: COMPLETED, FAILED, CANCELLED, TIMEOUT, …"""
    exit_code: str
    """'code:signal' of the last start."""
    seconds: int
    """Over all starts."""
    gpu_seconds: int
    """Over all starts; 0 where the site does not account for GPUs."""
    starts: int
    end: str
    nodes: str
    user: str = ""
    """Whose it is; '' if Slurm did not say."""
    cpu_seconds: int = 0
    """CPUs it held, times how long, over all starts."""
    task_bytes: int = 0
    """Peak memory of one task; 0 where the site does not measure it."""


def clean_environment(environ: Mapping[str, str] = os.environ) -> Dict[str, str]:
    """The environment without variables that an outer job leaked or that change formats."""
    return {**{name: value for name, value in environ.items()
               if name in _KEPT or not name.startswith(_SCRUBBED)}, "LC_ALL": "C"}


def run_command(argv: Sequence[str], timeout_s: float = 0.0) -> Completed:
    """Run one command to its end, in TIMEOUT_S if no other time is given; the default door."""
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True,
                          env=clean_environment(), timeout=timeout_s or TIMEOUT_S)
    return Completed(done.returncode, done.stdout.decode(errors="replace"),
                     done.stderr.decode(errors="replace"))


class Slurm:
    """Asks Slurm. Every method raises a SlurmError that says what is wrong and what to do.

    Args:
        run: runs a command; a test brings its own.
        bin: folder of the commands; '' looks in PATH.
    """

    def __init__(self, run: Door = run_command, bin: str = "") -> None:
        self._run = run
        self._bin = bin
        self.calls: List[Sequence[str]] = []
        """Every command that was run, the words as they were given."""
        self._config: Optional[Dict[str, str]] = None

    def config(self) -> Dict[str, str]:
        """The cluster's settings, by their names in slurm.conf. Asked once."""
        if self._config is None:
            out = self._checked("scontrol", self._call("scontrol", "show", "config"))
            self._config = {name.strip(): value.strip() for name, equals, value in
                            (line.partition(" = ") for line in out.splitlines()) if equals}
        return self._config

    def cluster_name(self) -> str:
        """What this cluster is called; '' where that cannot be found out.

        Raises:
            ControllerDown: nobody answers.
        """
        try:
            return self.config().get("ClusterName", "")
        except ControllerDown:
            raise
        except SlurmError:
            return ""

    def squeue(self, job_ids: Iterable[str]) -> Dict[str, QueueRow]:
        """Of these jobs those that the controller still knows, by id; arrays by task.

        One call, however many jobs; '123' also finds the tasks '123_0', '123_1', …
        """
        ids = set(job_ids)
        if not ids:
            return {}
        jobs = sorted({job_id.partition("_")[0] for job_id in ids})
        argv = ("--noheader", "--array", "--states=all", f"--format={_QUEUE_FIELDS}",
                f"--jobs={','.join(jobs)}")
        done = self._call("squeue", *argv)
        if done.code and "invalid job id" in done.err.lower():
            return {}  # a single job that is long gone; of several, such ones are just left out
        rows = (_queue_row(line) for line in self._checked("squeue", done).splitlines())
        return {row.job_id: row for row in rows if row and _is_asked(row.job_id, ids)}

    def find_scripts(self, names: Sequence[str]) -> Dict[str, str]:
        """Of these batch scripts (NAME.sh) those that this user has in the queue: name to job id.

        One call; an array counts as one job.
        """
        if not names:
            return {}
        out = self._checked("squeue", self._call(
            "squeue", "--noheader", f"--user={os.getuid()}", "--format=%F|%o"))
        rows = [line.strip().partition("|") for line in out.splitlines()]
        return {name: job_id for job_id, _, script in rows if job_id.isdigit()
                for name in names if f"{name}.sh" in script}

    def sacct(self, job_ids: Iterable[str], since: str = "") -> Dict[str, AccountRow]:
        """What accounting knows of these jobs, by id; one call.

        Args:
            since: earliest start to look at ('2026-11-24'): numbers of jobs come round again.

        Raises:
            NoAccounting: there is no slurmdbd, or it does not answer.
        """
        ids = set(job_ids)
        if not ids:
            return {}
        jobs = sorted({job_id.partition("_")[0] for job_id in ids})
        # --duplicates: a requeued job has a record for each of its starts.
        # The steps, too: only they have a peak of memory.
        argv = ["--parsable2", "--noheader", "--noconvert", "--duplicates",
                f"--format={_ACCOUNT_FIELDS}", f"--jobs={','.join(jobs)}"]
        done = self._call("sacct", *argv, *([f"--starttime={since}"] if since else []))
        if done.code:
            raise NoAccounting(f"sacct does not answer ({_first_line(done)}); say 'has_sacct: "
                               "false' in the site profile if this site has no accounting")
        starts: Dict[str, List[List[str]]] = {}
        peaks: Dict[str, int] = {}
        for line in done.out.splitlines():
            fields = line.split("|")
            job_id, _, step = fields[0].partition(".")
            if len(fields) not in (8, 9, 10) or not _is_asked(job_id, ids):
                continue
            if step:
                peaks[job_id] = max(peaks.get(job_id, 0), *map(_bytes, fields[9:]), 0)
            else:
                starts.setdefault(job_id, []).append(fields)
        return {job_id: _account_row(rows, peaks.get(job_id, 0))
                for job_id, rows in starts.items()}

    def sbatch(self, *argv: str) -> str:
        """Submit; the job's number."""
        out = self._checked("sbatch", self._call("sbatch", "--parsable", *argv)).strip()
        match = re.fullmatch(r"(\d+)(;.*)?", out.splitlines()[-1] if out else "")
        if not match:
            raise SlurmError(f"sbatch said '{out[:200]}' instead of a job number")
        return match[1]

    def try_sbatch(self, *argv: str) -> str:
        """What Slurm says to a job with these options, which is not submitted."""
        return self.try_script(*argv, "--wrap=true")

    def try_script(self, *argv: str) -> str:
        """The same of a batch script; it is not submitted either."""
        done = self._call("sbatch", "--test-only", *argv)
        if _DEAD_CONTROLLER.search(done.err):
            raise self._failure("sbatch", done)
        return done.err + done.out

    def cancel(self, job_ids: Iterable[str], signal: str = "", batch: bool = False) -> None:
        """Cancel jobs, or send them a signal ('USR2'); one call.

        Jobs that have ended meanwhile are no error.

        Args:
            batch: send it to the batch script alone, as Slurm does before a time limit; else to
                every process of the job's steps.
        """
        ids = list(dict.fromkeys(job_ids))
        if not ids:
            return
        options = [*(["--batch"] if batch else []), *([f"--signal={signal}"] if signal else [])]
        done = self._call("scancel", *options, *ids)
        problems = [line for line in done.err.splitlines() if line.strip() and not re.search(
            r"invalid job id|already complet|job/step", line, re.IGNORECASE)]
        if done.code and problems:
            raise self._failure("scancel", Completed(done.code, "", "\n".join(problems)))

    def sinfo(self, *argv: str) -> str:
        """What sinfo prints."""
        return self._checked("sinfo", self._call("sinfo", "--noheader", *argv))

    def ping(self) -> str:
        """'Slurmctld(primary) at head is UP', or DOWN; asks without credentials."""
        done = self._call("scontrol", "ping")
        return (done.out or done.err).split("\n")[0]

    def sacctmgr(self, *argv: str) -> str:
        """What sacctmgr prints, one record a line, fields between bars."""
        done = self._call("sacctmgr", "--noheader", "--parsable2", "--immediate", *argv)
        if done.code:
            raise NoAccounting(f"sacctmgr does not answer ({_first_line(done)})")
        return done.out

    def partitions(self) -> Dict[str, Dict[str, str]]:
        """Each partition's settings, by its name."""
        lines = self._checked("scontrol", self._call(
            "scontrol", "--oneliner", "show", "partition")).splitlines()
        found = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines)
        return {one["PartitionName"]: one for one in found if "PartitionName" in one}

    def own_raw_ids(self) -> Set[str]:
        """Numbers of this user's jobs that have not ended, as each has it in SLURM_JOB_ID."""
        return set(self._checked("squeue", self._call(
            "squeue", "--noheader", "--array", "--me", "--format=%A")).split())

    def own_jobs(self) -> int:
        """How many jobs of this user wait or run; each element of an array is one."""
        return len(self._checked("squeue", self._call(
            "squeue", "--noheader", "--array", "--me", "--states=PENDING,RUNNING,SUSPENDED",
            "--format=%i")).split())

    def version(self) -> str:
        """'22.05.8', as sbatch says it; asks no daemon."""
        out = self._checked("sbatch", self._call("sbatch", "--version"))
        return out.strip().rpartition(" ")[2]

    def path(self, command: str) -> str:
        """The command as it is run."""
        return str(Path(self._bin, command)) if self._bin else command

    def _call(self, command: str, *argv: str) -> Completed:
        self.calls.append((command, *argv))
        try:
            return self._run((self.path(command), *argv))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise SlurmAbsent(
                f"no command {self.path(command)} on this machine ({error.strerror}); run this on "
                "a login node of the cluster, after 'module load slurm' where that is needed"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ControllerDown(f"{command} gave no answer in {error.timeout:.0f} s; Slurm's "
                                 "controller is down or busy, try again later") from error

    def _checked(self, command: str, done: Completed) -> str:
        if done.code:
            raise self._failure(command, done)
        return done.out

    def _failure(self, command: str, done: Completed) -> SlurmError:
        said = _first_line(done)
        if _DEAD_CONTROLLER.search(done.err):
            return ControllerDown(f"{command}: {said}; Slurm's controller does not answer, try "
                                  "again later, 'launch.py doctor' looks at the parts")
        return SlurmError(f"{command} failed: {said}")


def _first_line(done: Completed) -> str:
    """The first thing a command complained of, without its own name."""
    lines = [line.strip() for line in (done.err or done.out).splitlines() if line.strip()]
    said = re.sub(r"^\w+: (error: |fatal: )?|, retrying in .*", "", lines[0]) if lines else ""
    return said or f"exit code {done.code} and no word why"


def _is_asked(job_id: str, asked: Set[str]) -> bool:
    """'12_3' is asked for by '12_3' and by '12'; '12' only by itself."""
    return job_id in asked or job_id.partition("_")[0] in asked


def _queue_row(line: str) -> Optional[QueueRow]:
    fields = line.strip().split("|", 11)
    if len(fields) not in (10, 12):
        return None  # a site's banner, or a word of warning
    job_id, raw_id, state, reason, used, left, start, nodes, partition, waits_for, *whose = fields
    return QueueRow(job_id, raw_id, state, reason, max(0, seconds_of(used)), seconds_of(left),
                    start, nodes, partition, "" if waits_for == "(null)" else waits_for, *whose)


def _account_row(starts: List[List[str]], task_bytes: int) -> AccountRow:
    """One job from the records of its starts, oldest first."""
    seconds = [int(fields[3] or 0) if fields[3].isdigit() else 0 for fields in starts]
    job_id, state, exit_code, _, _, _, end, nodes, *user = starts[-1][:9]
    return AccountRow(job_id, state.split(" ")[0].rstrip("+"), exit_code, sum(seconds),
                      sum(n * _gpus(fields[4]) for n, fields in zip(seconds, starts)),
                      len(starts), end, nodes, "".join(user),
                      sum(n * _cpus(fields[4]) for n, fields in zip(seconds, starts)), task_bytes)


def _gpus(tres: str) -> int:
    """4 of 'billing=8,cpu=8,gres/gpu:v100=4,gres/gpu=4,node=1'."""
    counts = re.findall(r"gres/gpu(:[^=,]+)?=(\d+)", tres)
    total = [int(number) for kind, number in counts if not kind]
    return total[0] if total else sum(int(number) for _, number in counts)


def _cpus(tres: str) -> int:
    """8 of 'billing=8,cpu=8,gres/gpu=4,node=1'."""
    match = re.search(r"(?:^|,)cpu=(\d+)", tres)
    return int(match[1]) if match else 0


def _bytes(text: str) -> int:
    """Of '1234K', as sacct writes it; 0 of ''."""
    match = re.fullmatch(r"(\d+)(?:\.\d+)?([KMGT]?)", text)
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ") if match else 0


def seconds_of(text: str) -> int:
    """Seconds of Slurm's 'days-hours:minutes:seconds'; -1 for UNLIMITED, INVALID and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(?:(\d+):)?(\d+)", text.strip())
    if not match:
        return -1
    days, *rest = match.groups()
    hours, minutes, seconds = ([0, 0, 0] + [int(part) for part in rest if part])[-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
