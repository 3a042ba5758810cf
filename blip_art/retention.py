"""Which epochs' weights stay on disk; training and the follower that scores beside it both ask.

    prune_weights(run, config.train.keep)
"""

from __future__ import annotations

from blip_art.errors import UserError
from blip_art.files import Result, RunDir
from blip_art.run_state import read_best, rule_value
from blip_art.score.summary import Summaries


def prune_weights(run: RunDir, keep: str) -> None:
    """With 'best_last' remove weights that are neither best nor last, once they are scored.

    An epoch whose scores lack what chooses the best may still turn out best, so it stays.
    """
    epochs = run.saved_epochs()
    best = read_best(run)
    if keep == "all" or best is None or not epochs:
        return
    summaries = Summaries(run)
    scored = {result.epoch: result for result in run.scored() if result.split == "val"}
    for epoch in epochs[:-1]:
        if (epoch != best.epoch and epoch in scored
                and _was_considered(scored[epoch], best.rule, summaries)):
            run.weights(epoch).unlink(missing_ok=True)


def _was_considered(scored: Result, rule: str, summaries: Summaries) -> bool:
    try:
        return rule_value(summaries.glance(scored.path).get("metrics"), rule) is not None
    except UserError:
        return False  # cut short: it is scored again
