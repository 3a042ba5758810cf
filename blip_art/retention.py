"""Which epochs' weights stay on disk; training and the follower that scores beside it both ask.

    prune_weights(run, config.train.keep)
"""

from __future__ import annotations

from blip_art.config import BEST_RULES
from blip_art.errors import UserError
from blip_art.files import Result, RunDir, read_json


def prune_weights(run: RunDir, keep: str) -> None:
    """With 'best_last' remove weights that are neither best nor last, once they are scored.

    An epoch whose scores lack what chooses the best may still turn out best, so it stays.
    """
    epochs = run.saved_epochs()
    if keep == "all" or not run.best.exists() or not epochs:
        return
    best = read_json(run.best)
    scored = {result.epoch: result for result in run.scored() if result.split == "val"}
    for epoch in epochs[:-1]:
        if (epoch != best["epoch"] and epoch in scored
                and _was_considered(scored[epoch], best.get("rule", ""))):
            run.weights(epoch).unlink(missing_ok=True)


def _was_considered(scored: Result, rule: str) -> bool:
    try:
        found = read_json(scored.path)["metrics"]
        return all(name in found for name in BEST_RULES[rule])
    except (UserError, KeyError, TypeError):
        return False  # cut short or of other code: it is scored again
