"""What a captioning reads and writes, decided before it waits for a GPU.

    plan = plan_predictions(RunDir("runs/art"), splits=["test"]); plan.source, plan.epoch
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

from blip_art.config import HARMLESS, Config, differences, load_config, load_run_config
from blip_art.errors import UserError
from blip_art.files import PathLike, RunDir
from blip_art.run_state import read_best


@dataclass(frozen=True)
class PredictPlan:
    """One start of `python -m blip_art.predict`."""

    config: Config
    source: str
    """The weights: a file, a folder or a hub name."""
    epoch: int
    """What the captions are filed under."""
    splits: Tuple[str, ...]


def plan_predictions(run: RunDir, config: PathLike = "", weights: str = "",
                     epoch: Optional[int] = None, splits: Sequence[str] = (),
                     overrides: Sequence[str] = ()) -> PredictPlan:
    """Which weights caption what.

    Args:
        config: for a run folder that has none; '' takes the run's own.
        weights: those that were not trained here; '' takes the run's own.
        epoch: None is the best, or the last.
        splits: none is what the configuration says.

    Raises:
        UserError: there is no configuration or there are no such weights, or captions of other
            settings would replace those that are there.
    """
    if config:
        settings = load_config(config, overrides)
    elif run.config.exists():
        settings = load_run_config(run.config, overrides)
    else:
        raise UserError(f"{run.path} has no config.yaml; train first, or give --config CONFIG.yaml")
    source, number = _choose_weights(run, settings, weights, epoch)
    plan = PredictPlan(settings, source, number, tuple(splits) or settings.generate.splits)
    # Those of a command that is repeated may be what the run's configuration was made with.
    other = overrides and not config and differences(load_run_config(run.config), settings,
                                                     skip=HARMLESS)
    for split in plan.splits:
        if other and run.predictions(split, number).exists():
            raise UserError(f"{run.predictions(split, number)} is there, with the run's settings; "
                            f"for others use another --run, --config {run.config} and "
                            f"--weights {source}")
    return plan


def _choose_weights(run: RunDir, config: Config, weights: str,
                    wanted: Optional[int]) -> Tuple[str, int]:
    """The weights to read and the epoch their captions are filed under."""
    saved = run.saved_epochs()
    if wanted is not None and wanted < 0:
        raise UserError(f"--epoch {wanted}: epochs are counted from 0")
    if weights:
        if saved or run.saved_checkpoints():
            raise UserError(f"{run.path} is a training's: captions of other weights would replace "
                            "its own; choose another --run, with --config CONFIG.yaml")
        return weights, wanted or 0
    if not saved and config.model.pretrained and not run.saved_checkpoints():
        return config.model.pretrained, wanted or 0
    epoch = wanted if wanted is not None else (
        best.epoch if (best := read_best(run)) else (saved or [-1])[-1])
    if epoch not in saved:
        which = f"of epoch {epoch} (there are {', '.join(map(str, saved))})" if saved else "yet"
        raise UserError(f"{run.path} has no weights {which}; train, choose an --epoch, or give "
                        "--weights FILE")
    return str(run.weights(epoch)), epoch
