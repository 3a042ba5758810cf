"""The one file a run resumes from.

    save_checkpoint(run, progress, model, stepper, ema)
"""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any

import torch

from blip_art.errors import UserError
from blip_art.files import RunDir, written_aside
from blip_art.model.captioner import BlipCaptioner
from blip_art.train.optim import Stepper


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

    def next_epoch(self) -> Progress:
        return Progress(epoch=self.epoch + 1)


def save_checkpoint(run: RunDir, progress: Progress, model: BlipCaptioner, stepper: Stepper,
                    ema: torch.nn.Module | None) -> None:
    """Write last.pt aside and rename it: a kill in between leaves the one before.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    state = {"progress": dataclasses.asdict(progress), "model": model.state_dict(),
             "ema": ema.state_dict() if ema is not None else None, **stepper.state_dict()}
    try:
        with written_aside(run.last_checkpoint) as aside:
            torch.save(state, aside)
    except RuntimeError as error:  # what PyTorch makes of a full disk
        raise UserError(f"cannot write {run.last_checkpoint} ({str(error).splitlines()[0]}); "
                        "free space and start again with --resume") from error


def load_checkpoint(run: RunDir, model: BlipCaptioner, stepper: Stepper,
                    ema: torch.nn.Module | None, device: torch.device) -> Progress:
    """Fill model and optimizer from last.pt; Progress() where there is none.

    Raises:
        UserError: the file is damaged or of another model.
    """
    if not run.last_checkpoint.exists():
        return Progress()
    try:
        saved: dict[str, Any] = torch.load(run.last_checkpoint, map_location=device,
                                           weights_only=True)
        model.load_state_dict(saved["model"])
        stepper.load_state_dict(saved)
        if ema is not None:
            ema.load_state_dict(saved["ema"])
        return Progress(**saved["progress"])
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot resume from {run.last_checkpoint} ({reason}); start again "
                        "in another --run, or delete this one") from error
