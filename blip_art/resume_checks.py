"""Whether a training can go on in a run folder: asked before it is queued, and when it starts.

    refuse_changes(RunDir("runs/art"), load_config("configs/caption_art.yaml"), ranks=4)
"""

from __future__ import annotations

from pathlib import Path
from typing import List

from blip_art.config import HARMLESS, Config, differences, first_of, load_run_config
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.manifest import read_manifest, sha256_of_file
from blip_art.rank_plan import plan_ranks
from blip_art.run_state import is_finished


def pairs_file(config: Config, split: str) -> Path:
    """The list of pictures and captions of 'train', 'val' or 'test'."""
    return Path(config.data.annotations) / str(getattr(config.data, split))


def training_lists(config: Config) -> List[Path]:
    """The lists that a training reads, as far as they are there."""
    return [path for split in ("train", *config.generate.splits)
            if (path := pairs_file(config, split)).exists()]


def refuse_changes(run: RunDir, config: Config, ranks: int, device: str = "") -> None:
    """A run that goes on must compute what it would have computed undisturbed.

    Args:
        device: 'cuda' or 'cpu'; '' where it is not known yet.

    Raises:
        UserError: its folder belongs to other settings, data, captions or another device, or the
            ranks cannot share its batches.
    """
    if not run.saved_checkpoints():
        if run.saved_epochs() and is_finished(run):
            raise UserError(f"{run.path} is finished and its checkpoints are gone ('launch.py "
                            "clean' removes them): there is nothing to go on with; choose another "
                            "--run to train again")
        if run.predicted() or run.saved_epochs():
            raise UserError(f"{run.path} has captions or weights but no checkpoint, so they are "
                            "not this training's; choose another --run, or delete it")
        return
    changed = differences(load_run_config(run.config), config, skip=HARMLESS)
    if changed:
        raise UserError(f"{run.path} was started with another configuration "
                        f"({first_of(changed)}); choose another --run, or undo the change: its "
                        f"own is in {run.config.name}")
    plan_ranks(run, config, ranks)
    manifest = read_manifest(run)
    if device and manifest.get("device", device) != device:
        raise UserError(f"{run.path} was started on {manifest['device']}, not on "
                        f"{device}, which gives other numbers; go on where it was "
                        "started, or choose another --run")
    for path in training_lists(config):
        if manifest.get("data", {}).get(str(path), sha256_of_file(path)) != sha256_of_file(path):
            raise UserError(f"{path} has changed since {run.path} was started; choose another "
                            "--run, or put the old file back")
