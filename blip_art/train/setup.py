"""Around the loop: opening a run folder and writing what the run reports.

    open_run(run, config, resume=True, world=world)
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

from blip_art.config import (
    HARMLESS,
    Config,
    config_to_dict,
    dump_config,
)
from blip_art.distributed import World
from blip_art.errors import UserError
from blip_art.files import (
    RunDir,
    read_jsonl,
    remove_leftovers,
    write_json,
    write_jsonl,
    write_text,
)
from blip_art.manifest import read_manifest, update_manifest
from blip_art.outputs import refuse_input
from blip_art.rank_plan import RankPlan, begun_with, describe_plan, plan_ranks
from blip_art.resume_checks import refuse_changes, training_lists
from blip_art.run_state import is_finished, this_start
from blip_art.score.lock import STALE_S, owner, taken
from blip_art.train.checkpoint import Identity, Progress
from blip_art.train.optim import Stepper, learning_rate

# Folders of a run that trainings, and others beside them, write to.
_WRITTEN = ("predictions", "references", "bad_pictures", "scores")
_TOLD = ("loss", "lr", "images_per_s", "seconds")
WAIT_S, REQUEUED_WAIT_S = 5.0, STALE_S + 60.0


@contextlib.contextmanager
def alone_in(run: RunDir, world: World) -> Iterator[None]:
    """No other training writes to the run folder meanwhile.

    Raises:
        UserError: another one does. A requeued job waits longer: the node it ran on may be the
            one whose lock has not been given up yet.
    """
    wait_s = REQUEUED_WAIT_S if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else WAIT_S
    with contextlib.ExitStack() as held:
        def take() -> None:
            deadline = time.monotonic() + wait_s
            while not held.enter_context(taken(run.training_lock)):
                if time.monotonic() > deadline:
                    who = owner(run.training_lock) or "another process"
                    raise UserError(f"{who} is training in {run.path}; wait for it or stop it, "
                                    "or choose another --run")
                time.sleep(0.5)
        world.on_main(take)
        yield


def open_run(run: RunDir, config: Config, resume: bool, world: World) -> None:
    """Make the run folder, or refuse one that belongs to other settings, data or captions.

    Raises:
        UserError: the folder has a checkpoint and `resume` is off, it was run with another
            configuration, other data or a number of ranks that the batches do not go with, it
            holds captions or weights of something else, it cannot be written to, or its
            output_file is a list of pictures.
    """
    def check_and_write() -> None:
        refuse_input(config.output_file or run.output, training_lists(config), "output_file")
        _remove_litter(run)
        if run.saved_checkpoints():
            if not resume:
                raise UserError(f"{run.path} already has a checkpoint; add --resume to go on, or "
                                "choose another --run")
            read_train_log(run)  # fail now, not when the epoch is written
        refuse_changes(run, config, world.size, world.device.type)
        if not run.saved_checkpoints():
            write_text(config.output_file or run.output, "")  # fail now, not after an epoch
        write_text(run.config, dump_config(config))
        # Relative paths in the configuration start here; whoever scores may stand elsewhere.
        # `ranks` stays what the run was begun with: what a step is depends on it.
        update_manifest(run, stage="train", data=training_lists(config), cwd=os.getcwd(),
                        ranks=begun_with(run) or world.size, ranks_now=world.size,
                        device=world.device.type, run_id=_run_id(run))
        if not is_finished(run):  # what an earlier start has said is over
            write_state(run, world, "running", epochs=config.train.epochs)
    world.on_main(check_and_write)


def _remove_litter(run: RunDir) -> None:
    """What killed writers have left; nobody else writes checkpoints while the lock is held."""
    with contextlib.suppress(OSError):
        run.progress.unlink()
    remove_leftovers(run.checkpoints, alone=True)
    for folder in {run.path, *(run.path / name for name in _WRITTEN)}:
        remove_leftovers(folder)


def _run_id(run: RunDir) -> str:
    """A name of the run that no other has, whatever its folder is called."""
    return str(read_manifest(run).get("run_id") or uuid.uuid4().hex)


def run_identity(config: Config, run: RunDir, world: World) -> Identity:
    """What stands in the files of a run, so that another run's are not taken for its own."""
    found: list[Identity] = []
    world.on_main(lambda: found.append(_identity(config, run)))
    identity: Identity = world.gather(found)[0][0]
    return identity


def share_batches(config: Config, run: RunDir, world: World) -> RankPlan:
    """Which rank computes what; a line says so where the run was begun with other ranks."""
    found: list[RankPlan] = []
    world.on_main(lambda: found.append(plan_ranks(run, config, world.size)))
    plan: RankPlan = world.gather(found)[0][0]
    line = describe_plan(plan, config.train.accumulate)
    if line and world.is_main:
        print(f"{run.path} {line}", flush=True)
    return plan


def _identity(config: Config, run: RunDir) -> Identity:
    values: dict[str, Any] = {}
    for name, value in config_to_dict(config).items():
        values.update({f"{name}.{key}": part for key, part in value.items()}
                      if isinstance(value, dict) else {name: value})
    manifest = read_manifest(run)
    return {"seed": config.seed, "run": manifest["run_id"],
            "configuration": {name: value for name, value in values.items()
                              if name not in (*HARMLESS, "seed")},
            "data": {path.name: manifest["data"][str(path)] for path in training_lists(config)}}


def write_state(run: RunDir, world: World, state: str, why: str = "",
                **fields: int) -> None:
    """state.json: running, stopped (resumable) or finished; see also write_failure."""
    if world.is_main:
        write_json(run.state, {"state": state, "why": why, **this_start(), **fields})


def read_train_log(run: RunDir) -> list[dict[str, float]]:
    """The lines of train.jsonl, one an epoch, checked.

    Raises:
        UserError: the file is damaged.
    """
    rows = read_jsonl(run.train_log)
    for number, row in enumerate(rows, 1):
        if not (isinstance(row, dict) and isinstance(row.get("epoch"), int) and all(
                isinstance(row.get(key), (int, float)) for key in _TOLD)):
            raise UserError(f"{run.train_log}, line {number}: not as training wrote it; put a "
                            "whole file there, or take the line out")
    return rows


def write_epoch(run: RunDir, config: Config, progress: Progress, stepper: Stepper,
                steps: int, host_memory_gb: float, ranks: int) -> str:
    """Put this epoch's line into train.jsonl and the text log, in place of an older one.

    Args:
        host_memory_gb: peak of all ranks and their loader processes together.
        ranks: how many train now; a run may go on with another number.

    Returns:
        The line of the text log.
    """
    row = {
        "epoch": progress.epoch, "loss": progress.loss_sum / max(1, progress.losses),
        "lr": learning_rate(config.train, progress.epoch, steps - 1, steps),
        "images_per_s": progress.pictures / max(progress.seconds, 1e-9),
        "seconds": progress.seconds, "gpu_memory_gb": stepper.peak_memory_gb(),
        "steps": steps, "skipped_steps": progress.skipped,
        "data_wait_share": progress.waited_s / max(progress.seconds, 1e-9),
        "host_memory_gb": host_memory_gb, "ranks": ranks}
    rows = [old for old in read_train_log(run) if old["epoch"] < progress.epoch] + [row]
    write_jsonl(run.train_log, rows)
    lines = [f"epoch {r['epoch']:3d}  loss {r['loss']:.4f}  lr {r['lr']:.2e}  "
             f"{r['images_per_s']:.1f} pictures/s  {r['seconds']:.0f} s" for r in rows]
    write_text(config.output_file or run.output, "".join(line + "\n" for line in lines))
    return lines[-1]
