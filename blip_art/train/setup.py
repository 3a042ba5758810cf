"""Around the loop: opening a run folder and writing what the run reports.

    open_run(run, config, resume=True, world=world)
"""

from __future__ import annotations

import os

from blip_art.config import Config, differences, dump_config, load_config
from blip_art.distributed import World
from blip_art.errors import UserError
from blip_art.files import RunDir, read_jsonl, write_json, write_jsonl, write_text
from blip_art.manifest import update_manifest
from blip_art.readable import pairs_file
from blip_art.train.checkpoint import Progress
from blip_art.train.optim import Stepper, learning_rate

# Settings that may change between two starts of a run without changing what it computes.
_HARMLESS = ("name", "output_file", "data.num_workers", "data.bad_pictures",
             "train.save_every_min", "train.keep", "score.metrics", "score.best")


def open_run(run: RunDir, config: Config, resume: bool, world: World) -> None:
    """Make the run folder, or refuse one that belongs to other settings.

    Raises:
        UserError: the folder has a checkpoint and `resume` is off, it was run with another
            configuration, or it cannot be written to.
    """
    def check_and_write() -> None:
        if run.last_checkpoint.exists() and not resume:
            raise UserError(f"{run.path} already has a checkpoint; add --resume to go on, or "
                            "choose another --run")
        if run.config.exists() and run.last_checkpoint.exists():
            changed = differences(load_config(run.config), config, skip=_HARMLESS)
            if changed:
                raise UserError(f"{run.path} was started with another configuration "
                                f"({'; '.join(changed)}); choose another --run, or undo the change")
        write_text(run.config, dump_config(config))
        # Relative paths in the configuration start here; whoever scores may stand elsewhere.
        update_manifest(run, stage="train", data=[pairs_file(config, "train")], cwd=os.getcwd())
    world.on_main(check_and_write)


def write_state(run: RunDir, world: World, state: str, why: str = "",
                **fields: int) -> None:
    """state.json: running, stopped (resumable), finished or failed."""
    if world.is_main:
        write_json(run.state, {"state": state, "why": why, **fields})


def write_epoch(run: RunDir, config: Config, progress: Progress, stepper: Stepper,
                steps: int) -> str:
    """Put this epoch's line into train.jsonl and the text log, in place of an older one.

    Returns:
        The line of the text log.
    """
    row = {
        "epoch": progress.epoch, "loss": progress.loss_sum / max(1, progress.losses),
        "lr": learning_rate(config.train, progress.epoch, steps - 1, steps),
        "images_per_s": progress.pictures / max(progress.seconds, 1e-9),
        "seconds": progress.seconds, "gpu_memory_gb": stepper.peak_memory_gb(),
        "steps": steps, "skipped_steps": progress.skipped}
    rows = [old for old in read_jsonl(run.train_log) if old["epoch"] < progress.epoch] + [row]
    write_jsonl(run.train_log, rows)
    lines = [f"epoch {r['epoch']:3d}  loss {r['loss']:.4f}  lr {r['lr']:.2e}  "
             f"{r['images_per_s']:.1f} pictures/s  {r['seconds']:.0f} s" for r in rows]
    write_text(config.output_file or run.output, "".join(line + "\n" for line in lines))
    return lines[-1]
