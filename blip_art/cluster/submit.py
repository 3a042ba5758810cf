"""Hands stages to Slurm through submitit, each waiting for those before, and records them.

    submit(train_stages(place, run, config), site, run.code, run.slurm, command, dry_run=False)
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from blip_art.cluster.allocation import run_in_allocation
from blip_art.cluster.batch import (
    Stage,
    dependency,
    job_command,
    log_pattern,
    needed_binds,
    submitit_parameters,
    submitted_name,
    wrapper_path,
    wrapper_text,
)
from blip_art.cluster.heartbeat import expected_start
from blip_art.cluster.local import import_submitit, noted
from blip_art.cluster.ownership import user_name
from blip_art.cluster.pending import (
    Pending,
    forget_pending,
    new_name,
    note_pending,
    record_pending,
    take_back,
    withdraw,
)
from blip_art.cluster.record import Submitted
from blip_art.cluster.sending import SIGNALS, Refused, Unknown, send
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import Slurm, SlurmError, run_command
from blip_art.errors import UserError
from blip_art.files import RunDir, written_aside

# Names the submission to slurm/job.sh, which finds by it what the job runs.
SUBMISSION = "BLIP_ART_SUBMISSION"
# For what is good to know, but not worth waiting for.
QUICK_S = 5.0


@dataclass(frozen=True)
class Submission:
    """What all stages of one command share."""

    site: Site
    code: Path
    """The snapshot the jobs run."""
    folder: Path
    """Where scripts, pickles and requests to be queued again lie."""
    command: Sequence[str] = ()
    """launch.py's arguments."""
    read: Sequence[Path] = ()
    """Folders that the jobs read."""
    cluster: str = ""
    """What the cluster is called, for the record."""

    @property
    def pickles(self) -> Path:
        return (self.folder / "submitit").absolute()


def submit(stages: Sequence[Stage], to: Submission, slurm: Optional[Slurm] = None
           ) -> Dict[str, str]:
    """Submit every stage and note its jobs in their run folders; the job ids by stage.

    Each is noted in the folder before it is sent, and looked for where its answer is lost.

    Raises:
        UserError: Slurm is not there, or refuses a stage (with its reason), or nobody knows
            whether it has it. Stages that were submitted before it are cancelled.
        KeyboardInterrupt: a signal came; what was submitted is cancelled.
    """
    slurm = slurm or Slurm()
    wrapper = write_wrapper(stages, to)
    numbers: Dict[str, str] = {}
    sent: Dict[str, Pending] = {}
    stops: List[int] = []
    try:
        for stage in stages:
            with noted(SIGNALS) as stops:
                sent[stage.name] = _note(stage, to, numbers)
                numbers[stage.name] = _send(stage, to, wrapper, numbers, sent[stage.name].name,
                                            slurm, stops)
                record_pending(sent[stage.name], numbers[stage.name])
                forget_pending(to.folder, [sent[stage.name].name])
            if stops:
                raise KeyboardInterrupt
    except BaseException as error:  # Ctrl-C too: jobs that no run folder knows of would be lost
        _take_back(to, sent, numbers, slurm, isinstance(error, Unknown))
        if isinstance(error, UserError) and stops:
            print(error, file=sys.stderr)
            raise KeyboardInterrupt from error
        raise
    return numbers


def write_wrapper(stages: Sequence[Stage], to: Submission) -> Path:
    """The program that enters the container."""
    path, text = _wrapper(stages, to)
    if not path.exists():
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
        mode = path.stat().st_mode  # as the umask says; but jobs run it, so no other may write it
        path.chmod((mode | (mode & 0o444) >> 2) & ~0o022)
    return path


def _wrapper(stages: Sequence[Stage], to: Submission) -> Tuple[Path, str]:
    runs = [run for stage in stages for run in stage.runs]
    text = wrapper_text(to.site, to.code.resolve(),
                        needed_binds(Path.cwd(), runs, to.site, to.read))
    return wrapper_path(to.folder, text), text


def shown(stages: Sequence[Stage], to: Submission) -> str:
    """The exact scripts, for --dry-run: nothing is written, no Slurm is needed."""
    wrapper, text = _wrapper(stages, to)
    parts = [f"# === {wrapper}\n{text}"]
    numbers: Dict[str, str] = {}
    for stage in stages:
        executor = _executor(stage, to, wrapper, numbers)
        text = _script(executor, stage, f"{stage.name}-NUMBER")
        commands = "".join(f"#   {shlex.join(job.argv)}\n" for job in stage.jobs)
        parts.append(f"# === sbatch: {stage.name}\n{text}\n# === {stage.name} runs in the "
                     f"container\n{commands}")
        numbers[stage.name] = f"<{stage.name}>"
    return "\n".join(parts)


def ask_expected_start(stage: Stage, to: Submission) -> str:
    """When the first stage would start, in words; '' of one that waits for a job or needs no GPU,
    and where Slurm does not say so at once."""
    if stage.waits_for or not stage.gpus:
        return ""
    wrapper, _ = _wrapper([stage], to)
    script = _script(_executor(stage, to, wrapper, {}), stage, f"{stage.name}-NUMBER")
    return expected_start(script, Slurm(functools.partial(run_command, timeout_s=QUICK_S)))


def _note(stage: Stage, to: Submission, numbers: Dict[str, str]) -> Pending:
    """Write down what is about to be sent: whoever comes after a killed launch.py looks for it."""
    name = new_name(stage.name)
    pending = Pending(name, stage.name, _jobs(stage, to, {**numbers, stage.name: name}),
                      time.time())
    note_pending(to.folder, pending)
    return pending


def _send(stage: Stage, to: Submission, wrapper: Path, numbers: Dict[str, str], name: str,
          slurm: Slurm, stops: List[int]) -> str:
    """Write the stage's files and submit it.

    They are not left to submitit, which runs sbatch first and then tells the jobs what to run: a
    job whose launch.py is gone would wait a minute for that, on its GPUs.
    """
    submitit = import_submitit()
    executor = _executor(stage, to, wrapper, numbers)
    to.pickles.mkdir(parents=True, exist_ok=True)
    pickles = [to.pickles / f"{name}_{index}.pkl" for index in range(len(stage.jobs))]
    for job, pickle in zip(stage.jobs, pickles):
        # submitit reads its jobs' signal handlers from the class that is pickled, not from here.
        call = submitit.core.utils.DelayedSubmission(run_in_allocation, job,
                                                     str(to.folder.absolute()))
        call.set_timeout(executor.parameters["time"], executor.max_num_timeout)
        call.dump(pickle)
    script = to.pickles / f"{name}.sh"
    script.write_text(_script(executor, stage, name), encoding="utf-8")
    try:
        number = send(script, slurm, stops)
    except Refused as refusal:
        raise _explained(str(refusal), stage, to.site) from None
    # The names that submitit's own files have; a job that starts at once makes the link itself.
    for index, pickle in enumerate(pickles):
        job_id = f"{number}_{index}" if len(pickles) > 1 else number
        _link(to.pickles / f"{job_id}_submitted.pkl", pickle.name)
    _link(to.pickles / f"{number}_submission.sh", script.name)
    return number


def _link(path: Path, target: str) -> None:
    with contextlib.suppress(FileExistsError):
        path.symlink_to(target)


def _script(executor: Any, stage: Stage, name: str) -> str:
    """The batch script; job.sh reads the submission's name from the environment."""
    if len(stage.jobs) > 1:
        executor.parameters["map_count"] = len(stage.jobs)
    executor.parameters["setup"] = [*executor.parameters["setup"],
                                    f"export {SUBMISSION}={shlex.quote(name)}"]
    return str(executor._make_submission_file_text(executor._submitit_command_str, name))


def _executor(stage: Stage, to: Submission, wrapper: Path, numbers: Dict[str, str]) -> Any:
    submitit = import_submitit()

    class Executor(submitit.SlurmExecutor):  # type: ignore[name-defined]
        """A dry run needs no srun."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Executor(to.pickles, python=job_command(
        to.site, stage, to.code.resolve(), wrapper.absolute(), to.pickles))
    executor.update_parameters(**submitit_parameters(
        to.site, stage, dependency(stage, numbers)))
    return executor


def _jobs(stage: Stage, to: Submission, numbers: Dict[str, str]
          ) -> Tuple[Tuple[str, Submitted], ...]:
    """What is recorded of a stage, and in which run folders."""
    array, found = len(stage.jobs) > 1, []
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    for index, (job, run) in enumerate(zip(stage.jobs, stage.runs)):
        job_id, log = log_pattern(job, index if array else None, numbers[stage.name])
        found.append((str(run.path.absolute()), Submitted(
            stage.kind, job_id, log=os.path.join(job.cwd, log),
            batch_log=str(to.pickles / f"{job_id}_0_log.out"), gpus=stage.gpus, nodes=stage.nodes,
            after=(*(f"{kind}:{numbers[name]}" for kind, name in stage.after), *stage.waits_for),
            site=to.site.path, command=tuple(to.command), cwd=job.cwd, submitted=now,
            run=str(run.path.resolve()), cluster=to.cluster, user=user_name(),
            job_name=submitted_name(to.site, stage))))
    return tuple(found)


def _explained(said: str, stage: Stage, site: Site) -> UserError:
    """What sbatch said of a job that Slurm does not take, and where to look."""
    lines = [line.split("error: ")[-1] for line in said.splitlines() if line.strip()]
    reason = next((line for line in lines if "Batch job submission failed" in line),
                  lines[0] if lines else "no reason given")
    reason = reason.replace("Batch job submission failed: ", "")
    return UserError(f"Slurm refuses the {stage.name} job: {reason}; {_hint(reason, site)}")


def _hint(reason: str, site: Site) -> str:
    low = reason.lower()
    if "array" in low:
        return ("this cluster allows fewer runs in an array ('scontrol show config' calls it "
                "MaxArraySize); split the sweep")
    if "policy" in low:  # "Job violates accounting/QOS policy (job submit limit, …)"
        qos = f" and 'sacctmgr show qos {site.qos}'" if site.qos else " and 'sacctmgr show qos'"
        return ("too many jobs at once, or too much asked for: 'sacctmgr show assoc "
                f"user=$USER'{qos} show the limits; submit again when others have ended, or ask "
                "for less")
    if "dependency" in low:
        return "look at the jobs that --after names ('squeue --me', 'sacct --jobs=…')"
    for word, key in (("account", "account"), ("partition", "partition"), ("qos", "qos"),
                      ("node configuration", "gres, cpus_per_gpu or mem_gb"),
                      ("time limit", "time_min"), ("gres", "gres")):
        if word in low:
            values = " ".join(f"{name}={getattr(site, name)!r}" for name in
                              key.replace(",", "").replace(" or", "").split())
            return f"look at {values} in {site.path}"
    return "'launch.py doctor' looks at the parts"


def _take_back(to: Submission, sent: Dict[str, Pending], numbers: Dict[str, str], slurm: Slurm,
               unknown: bool) -> None:
    """Cancel what was submitted; what Slurm may still get, or keeps, stays noted."""
    refused = [one.name for stage, one in sent.items() if stage not in numbers and not unknown]
    for name in refused:
        withdraw(to.folder, name)
        with contextlib.suppress(FileNotFoundError):
            (to.pickles / f"{name}.sh").unlink()
    given_up = [(one, numbers.get(stage, "")) for stage, one in sent.items()
                if one.name not in refused]
    cancelled: List[str] = []
    try:
        cancelled = take_back(to.folder, given_up, slurm)
    except SlurmError as error:
        print(f"not cancelled: {', '.join(numbers.values())} ({error}); they end as soon as they "
              "start, and the next launch.py command for this run cancels them", file=sys.stderr)
    finally:
        with contextlib.suppress(UserError, OSError):  # a full disk must not keep the jobs
            forget_pending(to.folder, refused)
    if cancelled:
        print(f"cancelled what was submitted before: {', '.join(cancelled)}", file=sys.stderr)


def tell(numbers: Dict[str, str], run: RunDir) -> None:
    """What was submitted, and what to do next, on stderr."""
    jobs = ", ".join(f"{stage} {number}" for stage, number in numbers.items())
    folder = shlex.quote(str(run.path))
    print(f"submitted: {jobs}\n  launch.py status {folder}     launch.py logs -f {folder}"
          f"     launch.py cancel {folder}", file=sys.stderr)
