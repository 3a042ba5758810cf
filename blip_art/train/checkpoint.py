"""The files a run resumes from: last.pt and, for the day it is damaged, the one before.

    save_checkpoint(run, identity, progress, model, stepper, ema)

A digest in the zip's comment covers every byte. Inside stands which run the file belongs to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import struct
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch

from blip_art.digest import BLANK, LENGTH, check_digest, write_digest
from blip_art.distributed import World
from blip_art.errors import UserError, error_line
from blip_art.files import RunDir, sync, written_aside
from blip_art.model.captioner import BlipCaptioner
from blip_art.model.unpickle import load_pth
from blip_art.model.weights import find_problems
from blip_art.train.optim import Stepper

Identity = dict[str, Any]
# A zip ends in a record of 22 bytes and a comment whose length the record's last two bytes say.
_END, _END_SIZE = b"PK\x05\x06", 22
_COMMENT = b"blip-art sha256 "


@dataclass
class Progress:
    """How far a run is. All else is a function of (seed, epoch, step, rank).

    `step` batches of `epoch` are done; the sums belong to the epoch so far and to all ranks.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    pictures: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0  # for data, the mean of the ranks

    def next_epoch(self) -> Progress:
        return Progress(epoch=self.epoch + 1)


def save_checkpoint(run: RunDir, identity: Identity, progress: Progress, model: BlipCaptioner,
                    stepper: Stepper, ema: torch.nn.Module | None) -> None:
    """Write last.pt aside and rename it; what it replaces becomes previous.pt.

    A kill between the two renames leaves previous.pt alone, from which the run goes on.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    state = {"identity": identity, "progress": dataclasses.asdict(progress),
             "model": model.state_dict(),
             "ema": ema.state_dict() if ema is not None else None, **stepper.state_dict()}
    try:
        with written_aside(run.last_checkpoint) as aside:
            torch.save(state, aside)
            _sign(aside)
            sync(aside)  # the one before the last is given up only then
            with contextlib.suppress(FileNotFoundError):  # the first one has none before it
                os.replace(run.last_checkpoint, run.previous_checkpoint)
    except RuntimeError as error:  # what PyTorch makes of a full disk
        raise UserError(f"cannot write {run.last_checkpoint} ({str(error).splitlines()[0]}); "
                        "free space and start again with --resume") from error


def _sign(path: Path) -> None:
    """Give the zip a comment that ends in the file's digest."""
    comment = _COMMENT + BLANK.encode()
    with open(path, "r+b") as file:
        file.seek(-_END_SIZE, os.SEEK_END)
        end = file.read()
        assert end.startswith(_END), end
        assert end.endswith(b"\0\0"), end
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", len(comment)) + comment)
    write_digest(path, path.stat().st_size - LENGTH)


class _Verdict(NamedTuple):
    """What a rank found in a checkpoint."""

    content: str = ""  # the same on all ranks, or they have read different files
    damage: str = ""
    error: str = ""  # of the file system, so the file may be whole


def load_checkpoint(run: RunDir, identity: Identity, epochs: int, steps: int, model: BlipCaptioner,
                    stepper: Stepper, ema: torch.nn.Module | None, world: World) -> Progress:
    """Fill model and optimizer from the newest checkpoint that is whole; Progress() without any.

    All ranks take the same one. If it is not the newest, a line says so and it takes its place.

    Args:
        epochs, steps: of the whole run, and of an epoch.

    Raises:
        UserError: all are damaged, or it belongs to another run or model.
    """
    paths = world.gather(run.saved_checkpoints())[0]
    damages: list[str] = []
    for path in paths:
        saved, damage = _read_together(path, world)
        if saved is not None:
            _refuse_foreign(path, saved, world.gather(identity)[0])
            progress = _check_progress(path, saved, epochs, steps)
            _fill(path, saved, model, stepper, ema)
            world.on_main(lambda: _put_first(run, path, saved, damages))  # noqa: B023 (runs now)
            return progress
        damages.append(damage)
    if damages:
        raise UserError(f"nothing to resume from: {'; '.join(damages)}; start again in another "
                        f"--run, or delete {run.path}")
    return Progress()


def _read_together(path: Path, world: World) -> tuple[dict[str, Any] | None, str]:
    """The content of a checkpoint, or None and what is wrong with it; the same on every rank."""
    saved, verdict = read_checkpoint(path, world.device)
    verdicts = world.gather(verdict)
    for error in (v.error for v in verdicts if v.error):
        raise UserError(error)
    damage = next((v.damage for v in verdicts if v.damage), "")
    if damage:
        return None, damage
    if len({v.content for v in verdicts}) > 1:
        raise UserError(f"processes see different files at {path}; wait until the file system has "
                        "caught up, and start again with --resume")
    return saved, ""


def read_checkpoint(path: Path, device: torch.device) -> tuple[dict[str, Any] | None, _Verdict]:
    digest = ""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            return None, _Verdict(damage=f"{path} is no file")
        place = _digest_place(path)
        digest = check_digest(path, place) if place else ""
        if place and not digest:
            return None, _Verdict(damage=f"{path} is damaged (its content is not what its digest "
                                  "was made of)")
        saved = load_pth(path, device, verified=bool(digest))
        if not isinstance(saved, dict) or not isinstance(saved.get("progress"), dict):
            return None, _Verdict(damage=f"{path} is no checkpoint of a training")
        if "identity" in saved and not digest:
            return None, _Verdict(damage=f"{path} is damaged (its digest is missing)")
        return saved, _Verdict(content=digest or str(saved["progress"]))
    except UserError as error:
        if digest:  # it is whole: memory was short, or the device failed
            return None, _Verdict(error=f"cannot load {path}, which is whole "
                                  f"({error_line(error.__cause__ or error)}); start again with "
                                  "--resume")
        return None, _Verdict(damage=str(error).removesuffix("; fetch it again"))
    except OSError as error:
        return None, _Verdict(error=f"cannot read {path}: {error.strerror}; start again with "
                              "--resume, or delete it to go on from the one before")


def _digest_place(path: Path) -> int | None:
    """Where the digest stands; None in a checkpoint of a version that wrote none."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - LENGTH - len(_COMMENT)))
        return size - LENGTH if file.read(len(_COMMENT)) == _COMMENT else None


def _refuse_foreign(path: Path, saved: dict[str, Any], identity: Identity) -> None:
    theirs = saved.get("identity", identity)  # an older version wrote none
    if theirs == identity:
        return
    # Settings that only one version of the code has are no difference.
    settings = [{"seed": one["seed"], **one["configuration"]} for one in (theirs, identity)]
    what = [f"{name} {value!r}, here {settings[1][name]!r}" for name, value in settings[0].items()
            if settings[1].get(name, value) != value]
    what += [f"another {part}" for part in ("data", "run") if theirs[part] != identity[part]]
    if what:
        raise UserError(f"{path} belongs to another run ({'; '.join(what[:3])}); put this run's "
                        "own there, or delete it and start again")


def _check_progress(path: Path, saved: dict[str, Any], epochs: int, steps: int) -> Progress:
    try:
        progress = Progress(**saved["progress"])
        whole = [progress.epoch, progress.step, progress.losses, progress.pictures,
                 progress.skipped]
        fits = (all(type(number) is int and number >= 0 for number in whole)
                and progress.epoch < epochs and progress.step <= steps
                and progress.skipped <= progress.step and progress.losses <= progress.pictures
                and all(map(isfinite, (progress.loss_sum, progress.seconds, progress.waited_s))))
    except TypeError:
        fits = False
    if not fits:
        raise UserError(f"{path} says it is at epoch {saved['progress'].get('epoch')}, step "
                        f"{saved['progress'].get('step')}, which a run of {epochs} epochs of "
                        f"{steps} steps is never; start again in another --run")
    return progress


def _fill(path: Path, saved: dict[str, Any], model: BlipCaptioner, stepper: Stepper,
          ema: torch.nn.Module | None) -> None:
    """Copy the state where it belongs, once all of it is seen to fit: torch's optimizer would take
    any shape, and its kernels read behind the end of a short one."""
    problems = [f"{name}: {problem}" for name, module in (("model", model), ("ema", ema))
                if module is not None
                for problem in find_problems(saved.get(name), module.state_dict())]
    problems += list(stepper.find_problems(saved))
    if problems:
        raise UserError(f"{path} does not fit this run's model ({'; '.join(problems[:3])}); start "
                        "again in another --run")
    model.load_state_dict(saved["model"])
    stepper.load_state_dict(saved)
    if ema is not None:
        ema.load_state_dict(saved["ema"])


def _put_first(run: RunDir, path: Path, saved: dict[str, Any], damages: list[str]) -> None:
    """Say what is special about the checkpoint that was taken; it becomes last.pt."""
    for damage in damages:
        print(f"{damage}; going on from the checkpoint before it, {path.name}", flush=True)
    if "identity" not in saved:
        print(f"{path} was written by a version without digests: only its checksums were compared",
              flush=True)
    if path != run.last_checkpoint:
        try:
            os.replace(path, run.last_checkpoint)
        except OSError as error:
            raise UserError(f"cannot put {path.name} in the place of {run.last_checkpoint}: "
                            f"{error.strerror}; remove what is there") from error
