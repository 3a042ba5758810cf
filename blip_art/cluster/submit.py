"""Hands stages to Slurm through submitit, each waiting for those before, and records them.

    submit(train_stages(place, run, config), site, run.code, run.slurm, command, dry_run=False)
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from blip_art.cluster.allocation import run_in_allocation
from blip_art.cluster.batch import (
    Stage,
    dependency,
    job_command,
    log_pattern,
    needed_binds,
    submitit_parameters,
    wrapper_path,
    wrapper_text,
)
from blip_art.cluster.local import import_submitit
from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import SlurmAbsent, clean_environment
from blip_art.errors import UserError
from blip_art.files import RunDir, written_aside


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

    @property
    def pickles(self) -> Path:
        return (self.folder / "submitit").absolute()


def submit(stages: Sequence[Stage], to: Submission) -> Dict[str, str]:
    """Submit every stage and note its jobs in their run folders; the job ids by stage.

    Raises:
        UserError: Slurm is not there, or refuses a stage (its reason is told). Stages that were
            submitted before it are cancelled.
    """
    wrapper = write_wrapper(stages, to)
    numbers: Dict[str, str] = {}
    try:
        for stage in stages:
            numbers[stage.name] = _submit_stage(stage, to, wrapper, numbers)
            _record(stage, to, numbers)
    except BaseException:  # Ctrl-C too: jobs that no run folder knows of would be lost
        _take_back(list(numbers.values()))
        raise
    return numbers


def write_wrapper(stages: Sequence[Stage], to: Submission) -> Path:
    """The program that enters the container."""
    path, text = _wrapper(stages, to)
    if not path.exists():
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
        path.chmod(0o755)
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
        if len(stage.jobs) > 1:
            executor.parameters["map_count"] = len(stage.jobs)
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
        commands = "".join(f"#   {shlex.join(job.argv)}\n" for job in stage.jobs)
        parts.append(f"# === sbatch: {stage.name}\n{text}\n# === {stage.name} runs in the "
                     f"container\n{commands}")
        numbers[stage.name] = f"<{stage.name}>"
    return "\n".join(parts)


def _submit_stage(stage: Stage, to: Submission, wrapper: Path, numbers: Dict[str, str]) -> str:
    submitit = import_submitit()
    executor = _executor(stage, to, wrapper, numbers)
    # submitit reads its jobs' signal handlers from the class that is pickled, not from here.
    with _refusals_explained(stage, to.site, submitit), _scrubbed():
        with executor.batch():
            handles = [executor.submit(run_in_allocation, job, str(to.folder.absolute()))
                       for job in stage.jobs]
        return str(handles[0].job_id).partition("_")[0]


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


def _record(stage: Stage, to: Submission, numbers: Dict[str, str]) -> None:
    array = len(stage.jobs) > 1
    for index, (job, run) in enumerate(zip(stage.jobs, stage.runs)):
        job_id, log = log_pattern(job, index if array else None, numbers[stage.name])
        record_jobs(run, [Submitted(
            stage.name, job_id, log=os.path.join(job.cwd, log),
            batch_log=str(to.pickles / f"{job_id}_0_log.out"), gpus=stage.gpus, nodes=stage.nodes,
            after=tuple(f"{kind}:{numbers[name]}" for kind, name in stage.after),
            site=to.site.path, command=tuple(to.command), cwd=job.cwd)])


@contextlib.contextmanager
def _refusals_explained(stage: Stage, site: Site, submitit: Any) -> Iterator[None]:
    try:
        with contextlib.redirect_stderr(open(os.devnull, "w")):
            yield
    except submitit.core.utils.FailedJobError as error:
        lines = [line.split("error: ")[-1] for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "Batch job submission failed" in line),
                      lines[0] if lines else "no reason given")
        reason = reason.replace("Batch job submission failed: ", "")
        raise UserError(f"Slurm refuses the {stage.name} job: {reason}; {_hint(reason, site)}"
                        ) from error
    except (RuntimeError, FileNotFoundError) as error:
        if "srun" in str(error) or getattr(error, "filename", "") == "sbatch":
            raise SlurmAbsent("no sbatch on this machine; run this on a login node of the cluster, "
                              "or look at the plan with --dry-run") from error
        raise


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
    for word, key in (("account", "account"), ("partition", "partition"), ("qos", "qos"),
                      ("node configuration", "gres, cpus_per_gpu or mem_gb"),
                      ("time limit", "time_min"), ("gres", "gres")):
        if word in low:
            values = " ".join(f"{name}={getattr(site, name)!r}" for name in
                              key.replace(",", "").replace(" or", "").split())
            return f"look at {values} in {site.path}"
    return "'launch.py doctor' looks at the parts"


@contextlib.contextmanager
def _scrubbed() -> Iterator[None]:
    """sbatch without variables that an outer job leaked, or that win over its script's lines."""
    before = dict(os.environ)
    kept = clean_environment(before)
    for name in [name for name in before if name not in kept]:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def _take_back(numbers: List[str]) -> None:
    from blip_art.cluster.slurm import Slurm

    if numbers:
        with contextlib.suppress(UserError):
            Slurm().cancel(numbers)
            print(f"cancelled what was submitted before: {', '.join(numbers)}", file=sys.stderr)


def tell(numbers: Dict[str, str], run: RunDir) -> None:
    """What was submitted, and what to do next, on stderr."""
    jobs = ", ".join(f"{stage} {number}" for stage, number in numbers.items())
    folder = shlex.quote(str(run.path))
    print(f"submitted: {jobs}\n  launch.py status {folder}     launch.py logs -f {folder}"
          f"     launch.py cancel {folder}", file=sys.stderr)
