"""Which command each stage is, and how a plan is shown: pure functions, nothing is run.

    print(dry_run_text([train_job(place, "configs/demo.yaml", run, ["train.epochs=2"])]))
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from blip_art.cluster.jobs import Job
from blip_art.errors import UserError
from blip_art.files import RunDir


@dataclass(frozen=True)
class Place:
    """All that a command depends on beside its own arguments."""

    python: str
    """Interpreter of the jobs."""
    cwd: str
    """The user's working directory: relative paths in configurations start here."""
    code: str
    """Folder the jobs import blip_art from, absolute: the run's snapshot."""
    cache: str = ""
    """Where CoreNLP and parsed captions are kept: the checkout's, not one in the snapshot."""
    processes: int = 1
    """Processes of a train or predict job, one a GPU."""
    gpus: Tuple[str, ...] = ()
    """Devices to use, as CUDA_VISIBLE_DEVICES names them; none means CPU."""
    threads: int = 1
    """CPU threads of each of those processes."""
    columns: int = 0
    """Width of the terminal that watches; 0 if none does."""
    attached: bool = False
    """Give the commands the terminal itself instead of a log (--cluster debug)."""
    layout: str = ""
    """'node' or 'gpu' for jobs of Slurm, see Site.layout; '' for this machine."""
    device: str = ""
    """'cuda' for ranks that must not go without a GPU; '' for those that take what there is."""
    parses: str = ""
    """Where SPICE's parses are kept; '' is in `cache`."""


def train_job(place: Place, config: str, run: RunDir, overrides: Sequence[str] = ()) -> Job:
    """Fine-tune; always with --resume, so that the same command also continues."""
    job = _ranks(place, "train", run, "blip_art.train", config, *overrides,
                 "--run", str(run.path), "--resume")
    return replace(job, state=str(run.state))


def predict_job(place: Place, run: RunDir, options: Sequence[str] = ()) -> Job:
    """Caption a split with the run's weights, or with `--weights`."""
    return _ranks(place, "predict", run, "blip_art.predict", "--run", str(run.path), *options)


def score_job(place: Place, run: RunDir) -> Job:
    """Score every prediction that has no scores yet. Needs no GPU."""
    return module_job(place, "score", run.slurm, "blip_art.score", "--run", str(run.path))


def follow_job(place: Place, run: RunDir) -> Job:
    """Score epochs while training goes on: in a small job of its own, which leaves the node while
    training waits in the queue; or else on what training leaves of the CPU, until its input ends.
    """
    follow = ("blip_art.score", "--follow", str(run.path))
    if place.layout:
        return module_job(place, "follow", run.slurm, *follow, "--not-while-queued")
    job = module_job(place, "follow", run.slurm, *follow, "--until-eof")
    return replace(job, argv=("nice", "-n", "19", *job.argv))


def collect_job(place: Place, runs: Sequence[RunDir], out: Path, logs: Optional[Path] = None,
                partial: bool = False) -> Job:
    """Tables, plots and one page from several runs; logs are beside the page by default.

    Args:
        partial: leave out runs that have not begun, as of a sweep.
    """
    return module_job(place, "collect", logs or out / "slurm", "blip_art.report",
                      *(str(run.path) for run in runs), "-o", str(out),
                      *(["--partial"] if partial else []))


def module_job(place: Place, name: str, logs: Path, module: str, *args: str) -> Job:
    """One process on the CPU: `python -m module args`."""
    return _job(place, name, logs, (place.python, "-m", module, *args),
                {"CUDA_VISIBLE_DEVICES": ""})


def _ranks(place: Place, name: str, run: RunDir, module: str, *args: str) -> Job:
    torchrun = ("-m", "blip_art.torchrun", "--standalone", f"--nproc_per_node={place.processes}")
    argv = (place.python, *(torchrun if place.layout != "gpu" else ()), "-m", module, *args)
    env = {"OMP_NUM_THREADS": str(place.threads)}
    if not place.layout:  # Slurm gives a job its GPUs itself
        env = {"CUDA_VISIBLE_DEVICES": ",".join(place.gpus[:place.processes]), **env}
    if place.device:
        env["BLIP_ART_DEVICE"] = place.device
    return replace(_job(place, name, run.slurm, argv, env), layout=place.layout)


def _job(place: Place, name: str, logs: Path, argv: Tuple[str, ...], env: Dict[str, str]) -> Job:
    parses = {"BLIP_ART_PARSES": place.parses} if place.parses else {}
    return Job(name, argv, {**import_environment(place.code), "BLIP_ART_CACHE": place.cache,
                            **parses, **env, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "1"},
               cwd=place.cwd, log=_log(place, logs, name), columns=place.columns)


def _log(place: Place, folder: Path, name: str) -> str:
    if place.attached:
        return ""
    if place.layout:  # the job knows its numbers when it starts
        return str(folder / f"{name}_{{job}}_{{restart}}.log")
    return str(next_log(folder, name))


def import_environment(code: str) -> Dict[str, str]:
    """Makes Python import blip_art from `code`, even where the working directory has another."""
    return {"PYTHONPATH": code, "PYTHONSAFEPATH": "1"}


def next_log(folder: Path, name: str) -> Path:
    """The first free one of train_000.log, train_001.log, …: one log a start."""
    taken = (re.fullmatch(re.escape(name) + r"_(\d+)\.log", path.name)
             for path in folder.glob(f"{name}_*.log"))
    number = max((int(match[1]) for match in taken if match), default=-1) + 1
    return folder / f"{name}_{number:03d}.log"


def pick_gpus(visible: Sequence[str], processes: int) -> Tuple[str, ...]:
    """The GPUs for that many processes; none on a machine without any."""
    if visible and processes > len(visible):
        raise UserError(f"--processes {processes} is more than the {len(visible)} GPU(s) of this "
                        f"machine; ask for {len(visible)}, or set CUDA_VISIBLE_DEVICES= "
                        "to run on the CPU")
    return tuple(visible[:processes])


def visible_gpus() -> List[str]:
    """GPUs this process may use, without asking torch, which the login side does not have."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip()]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return [str(index) for index in range(sum(1 for match in found if match))]


def dry_run_text(jobs: Iterable[Job]) -> str:
    """The jobs as shell commands that can be read, and run by hand."""
    return "\n".join(_shown(job) for job in jobs)


def _shown(job: Job) -> str:
    lines = [f"# {job.name}",
             f"#   code: {job.env['PYTHONPATH']}",
             f"#   log:  {job.log or 'this terminal'}",
             f"cd {shlex.quote(job.cwd)} && env \\"]
    lines += [f"  {name}={shlex.quote(value)} \\" for name, value in job.env.items()]
    return "\n".join([*lines, "  " + shlex.join(job.argv)]) + "\n"
