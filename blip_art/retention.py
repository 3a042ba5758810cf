"""Which epochs' weights stay on disk; training and the follower that scores beside it both ask.

    prune_weights(run, config.train.keep)
"""

from __future__ import annotations

from blip_art.files import RunDir, read_json


def prune_weights(run: RunDir, keep: str) -> None:
    """With 'best_last' remove weights that are neither best nor last, once they are scored.

    An epoch that has captions but no scores yet may still turn out best, so it stays.
    """
    epochs = run.saved_epochs()
    if keep == "all" or not run.best.exists() or not epochs:
        return
    best = int(read_json(run.best)["epoch"])
    scored = {result.epoch for result in run.scored() if result.split == "val"}
    for epoch in epochs[:-1]:
        if epoch != best and epoch in scored:
            run.weights(epoch).unlink(missing_ok=True)
