"""How much runs take on disk, and whether the next one will fit.

    print(shown([size_of(run) for run in runs])); warn_of_room(folder, [config])
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Sequence

from blip_art.cluster.clean import size_text
from blip_art.cluster.quota import free_room, least, quota_room
from blip_art.cluster.slurm import Completed, clean_environment
from blip_art.cluster.table import table
from blip_art.config import Config, ModelConfig
from blip_art.files import PathLike, RunDir

# A submission must not wait for a server that is asleep.
_PATIENCE_S = 5.0
# Parameters of the vision encoders, and how wide a patch of a picture is.
_VISION = {"tiny": (0.62e6, 128), "base": (86e6, 768), "large": (304e6, 1024)}
_VOCABULARY = 30524
# Two checkpoints stay, and a third is written before the older one goes; of weights the best, the
# last and the next one.
_CHECKPOINTS, _WEIGHTS = 3, 3


class Size(NamedTuple):
    """What a run takes; links are not followed."""

    run: str
    bytes: int
    files: int
    checkpoints: int
    """Of the bytes, those of checkpoints and weights."""


def size_of(run: RunDir) -> Size:
    """Walk through a run's folder."""
    total = files = checkpoints = 0
    for parent, _, names in os.walk(run.path):
        size = 0
        for name in names:
            with contextlib.suppress(OSError):  # removed this moment
                size += os.lstat(os.path.join(parent, name)).st_size
        total, files = total + size, files + len(names)
        if Path(parent) == run.checkpoints:
            checkpoints = size
    return Size(str(run.path), total, files, checkpoints)


def shown(sizes: Sequence[Size], width: int = 0) -> str:
    """A table, the largest first, and a line of totals."""
    rows = [[one.run, size_text(one.bytes), size_text(one.checkpoints), str(one.files)]
            for one in sorted(sizes, key=lambda one: -one.bytes)]
    total = size_text(sum(one.bytes for one in sizes))
    return "\n".join([
        table(("run", "size", "checkpoints", "files"), rows, width, (1, 2, 3)),
        f"{total} in {sum(one.files for one in sizes)} files; 'launch.py clean' lists what "
        "finished runs can lose"])


def add_to_json(text: str, sizes: Sequence[Size]) -> str:
    """What 'status --json' prints, each run with its bytes and files."""
    value = json.loads(text)
    found = {one.run: one for one in sizes}
    for row in value["runs"]:
        one = found[row["run"]]
        row.update(bytes=one.bytes, checkpoint_bytes=one.checkpoints, files=one.files)
    return json.dumps(value, ensure_ascii=False, indent=1)


def weights_gb(model: ModelConfig) -> float:
    """GB of a model's weights: 0.89 for BLIP base, 1.8 for large."""
    vision, patch = _VISION[model.vit]
    width = model.text_width
    # Attention on words 4 width², on patches 2 width² and two matrices from theirs, the rest 8.
    layer = 14 * width**2 + 2 * width * patch
    return 4 * (vision + _VOCABULARY * width + model.text_layers * layer) / 1e9


def run_gb(config: Config, scored: bool = True) -> float:
    """GB that a run takes at most while it trains: checkpoints, and weights of epochs.

    Args:
        scored: whether a follower chooses the best epoch; without one all weights stay.
    """
    weights = weights_gb(config.model)
    # The weights, two moments of the optimizer, and the average's.
    checkpoint = weights * (4 if config.train.ema_decay else 3)
    pruned = scored and config.train.keep == "best_last"
    kept = min(config.train.epochs, _WEIGHTS) if pruned else config.train.epochs
    return _CHECKPOINTS * checkpoint + kept * weights


def warn_of_room(runs: Sequence[RunDir], configs: Sequence[Config], scored: bool = True) -> None:
    """One line on stderr if the disk or the quota has less than these runs need; best effort."""
    there = sum(path.stat().st_size for run in runs for path in run.saved_checkpoints()) / 1e9
    need = sum(run_gb(config, scored) for config in configs) - there
    if not runs or need <= 0:
        return
    place = _existing(runs[0].path)
    with contextlib.suppress(OSError, ValueError):
        by_quota = quota_room(place, _ask_quickly)
        left = least([free_room(place), *by_quota]).gb
        if 0 <= left < need:
            print(f"warning: {place} has {left:.3g} GB left{' (quota)' * bool(by_quota)} and "
                  f"{f'{len(runs)} runs need' if runs[1:] else 'a run needs'} about {need:.3g}: "
                  "'launch.py clean' lists what finished runs can lose", file=sys.stderr)


def _existing(path: PathLike) -> Path:
    """The nearest folder that is there."""
    absolute = Path(path).resolve()
    return next(one for one in (absolute, *absolute.parents) if one.is_dir())


def _ask_quickly(argv: Sequence[str]) -> Completed:
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True,
                          env=clean_environment(), timeout=_PATIENCE_S)
    return Completed(done.returncode, done.stdout.decode(errors="replace"),
                     done.stderr.decode(errors="replace"))
