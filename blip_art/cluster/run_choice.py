"""Which runs a command means that is given any folders: runs, sweeps, and what lies beside them.

    runs, skipped = runs_to_collect(["runs/art", "runs/six", "runs/demo_archive"])
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from blip_art.cluster.logs import stages_with_logs
from blip_art.cluster.status import find_runs
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.run_state import is_run_folder


def runs_to_collect(paths: Sequence[str]) -> Tuple[List[RunDir], List[str]]:
    """The runs among the paths and below them, each once, and the paths without any.

    Raises:
        UserError: a path does not exist, or there is no run at all.
    """
    found: Dict[Path, RunDir] = {}
    skipped: List[str] = []
    for path in paths:
        if not Path(path).exists():
            raise UserError(f"no run folder at {path}; 'launch.py train CONFIG' makes one, "
                            "'ls runs' shows those there are")
        below = [RunDir(path)]
        if not is_run_folder(below[0]):
            below = [run for run in find_runs([path], must=False)
                     if is_run_folder(run)] if Path(path).is_dir() else []
        if not below:
            skipped.append(path)
        for run in below:
            found.setdefault(run.path.resolve(), run)
    if not found:
        raise UserError(f"no run in {', '.join(skipped[:3])}: a run folder has a config.yaml, a "
                        "state.json, captions or scores; runs lie in runs/NAME")
    return list(found.values()), skipped


def runs_with_logs(path: str) -> List[RunDir]:
    """The run at `path`, or those below it that were started or submitted."""
    run = RunDir(path)
    # A sweep's folder has jobs of its own, too: its report's.
    if not run.path.is_dir() or is_run_folder(run):
        return [run]
    return [one for one in find_runs([path], must=False) if stages_with_logs(one)] or [run]
