"""Which packages an interpreter lacks: asked before a job is started that would end in a traceback.

    refuse_without_packages([train_job(place, "configs/demo.yaml", run)])
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, Sequence

from blip_art.cluster.checks import install_command
from blip_art.cluster.jobs import Job
from blip_art.errors import UserError

# Packages that a stage cannot do without; the first that is missing is named.
_TRAINS = ("torch", "torchvision", "timm", "transformers", "tqdm")
_SCORES = ("numpy", "tqdm", "jpype", "pycocoevalcap")
PACKAGES = {"train": _TRAINS, "predict": _TRAINS, "score": _SCORES, "draw": ("numpy", "PIL")}
_ASK = ("import importlib.util, json, sys; "
        "print(json.dumps([name for name in sys.argv[1:] if not importlib.util.find_spec(name)]))")
_ASK_TIMEOUT_S = 30.0


def refuse_without_packages(jobs: Sequence[Job], on_cluster: bool = True) -> None:
    """The jobs' interpreter has what they import; asked without importing it.

    Args:
        on_cluster: whether the same could be submitted.

    Raises:
        UserError: it has not; says what to do on this machine.
    """
    for job in jobs:
        missing = missing_packages(job, PACKAGES.get(job.name, ()))
        if missing:
            raise UserError(f"{job.argv[0]} has no {missing[0]}, which '{job.name}' needs; "
                            f"{_where_else(on_cluster and has_slurm())}")


def missing_packages(job: Job, names: Sequence[str]) -> List[str]:
    """Which of the packages the job's interpreter does not find; [] where that is not known."""
    if not names:
        return []
    python = job.argv[0]
    if python == sys.executable:
        return [name for name in names if importlib.util.find_spec(name) is None]
    try:
        done = subprocess.run([python, "-c", _ASK, *names], cwd=job.cwd, text=True, check=False,
                              env={**os.environ, **job.env}, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=_ASK_TIMEOUT_S)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []  # the job itself will say what is wrong with it
    return [name for name in found if name in names] if isinstance(found, list) else []


def _where_else(can_submit: bool) -> str:
    here = "'make setup' installs what runs on this machine"
    return (f"this is a login node: --cluster slurm runs it on the cluster's nodes; {here}"
            if can_submit else here)


def has_slurm() -> bool:
    """Whether jobs can be submitted from this machine."""
    return bool(shutil.which("sbatch"))


def describe_missing(name: str) -> str:
    """What to do about a package that launch.py itself needs, in one line."""
    own = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"
    if own.exists() and Path(sys.executable) != own:
        return f"{sys.executable} has no {name}: run launch.py with {own}"
    return (f"{sys.executable} has no {name}: 'make setup' installs all in .venv; a login node "
            f"only needs: {install_command('pyyaml')}")
