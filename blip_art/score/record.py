"""One row of results: scores, their intervals, and what a reader must know to believe them.

    record(engine, references, captions, ["bleu", "cider"])["captions"]["empty_share"]
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np

from blip_art.score import bootstrap
from blip_art.score.coco import Pairs, cleaned, paired
from blip_art.score.engine import Engine
from blip_art.score.limits import Limit
from blip_art.score.references import references_hashes
from blip_art.score.scoring import score_with
from blip_art.score.word_groups import brevity_penalty, length_ratio


def record(engine: Engine, references: Mapping[Any, Sequence[str]], captions: Mapping[Any, str],
           metrics: Sequence[str], *, subset: bool = False, limit: Optional[Limit] = None,
           resamples: int = bootstrap.RESAMPLES) -> Dict[str, Any]:
    """Score captions and describe them: the content of a score file.

    Args:
        limit: the most that a caption can be; None does not look for longer references.
        resamples: draws of pictures that intervals are taken from; 0 takes none.

    Raises:
        UserError: unknown metric, pictures that do not match, no CoreNLP for SPICE.
    """
    scores = score_with(engine, references, captions, metrics, subset=subset)
    pairs = paired(references, captions, subset)
    found = scores.to_json()
    found["references"] = describe_references(pairs, limit)
    if "tokenize" not in scores.seconds:  # it failed, and all metrics with it
        return found
    tokenized = engine.tokenize(pairs.captions)
    found["captions"] = describe_captions(pairs.captions, tokenized)
    if scores.bleu_counts:
        sums = np.sum(list(scores.bleu_counts.values()), axis=0)[None]
        found["bleu"] = {"brevity_penalty": float(brevity_penalty(sums)[0]),
                         "length_ratio": float(length_ratio(sums)[0])}
    if resamples and scores.metrics:
        began = time.monotonic()
        found["intervals"] = bootstrap.intervals(bootstrap.Sample.of(found), resamples)
        found["bootstrap"] = bootstrap.settings(resamples)
        found["seconds"]["intervals"] = round(time.monotonic() - began, 3)
    return found


def describe_captions(captions: Sequence[str], tokenized: Sequence[str]) -> Dict[str, Any]:
    """Signs of a model that says nothing, or always the same; told apart as the metrics do."""
    times = Counter(tokenized)
    most, count = times.most_common(1)[0]
    return {"empty_share": sum(not text.strip() for text in tokenized) / len(tokenized),
            "most_frequent": cleaned(captions[tokenized.index(most)]),
            "most_frequent_share": count / len(tokenized),
            "unique_ratio": len(times) / len(tokenized),
            "mean_words": sum(len(text.split()) for text in tokenized) / len(tokenized)}


def describe_references(pairs: Pairs, limit: Optional[Limit] = None) -> Dict[str, Any]:
    """How many there are, what they are, and the share that no caption can be as long as."""
    texts = [text for lines in pairs.references for text in lines]
    found: Dict[str, Any] = {
        **references_hashes(dict(zip(pairs.ids, pairs.references))), "count": len(texts)}
    if limit:
        found[f"max_{limit.unit}"] = limit.most
        found["longer_share"] = limit.longer(texts) / len(texts)
    return found
