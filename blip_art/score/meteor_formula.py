"""METEOR's formula: what aligned words are worth, for a picture, a set, or any draw of pictures.

    counts = meteor_counts(lines); meteor_of(counts), meteor_of(counts.sum(axis=0))
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

# METEOR 1.5's parameters for English (Denkowski & Lavie 2014).
ALPHA, BETA, GAMMA = 0.85, 0.2, 0.6
# Exact, stem, synonym and paraphrase matches weigh 1, 0.6, 0.8 and 0.6, content words three times
# as much as function words; in twentieths, so that counts and their sums are whole.
CONTENT, FUNCTION = np.array([15, 9, 12, 9]), np.array([5, 3, 4, 3])

Ints = NDArray[np.int64]


def meteor_counts(lines: Sequence[str]) -> Ints:
    """(pictures, 6) of METEOR's own statistics, of which sets of pictures have the sums.

    Weighted matches and words of the caption, the same of the reference, chunks, matched words.
    """
    rows = np.array([line.split() for line in lines], float).astype(np.int64)
    words, functions, chunks = rows[:, 0:2], rows[:, 2:4], rows[:, 20]
    # Of each kind of match: content words of caption and reference, function words of both.
    kinds = rows[:, 4:20].reshape(-1, 4, 4)
    content, function = kinds[:, :, :2], kinds[:, :, 2:]
    # A caption that is its reference has one chunk, which is not counted.
    same = ((content + function).sum(1) == words).all(1) & (chunks == 1)
    matches = (content * CONTENT[:, None] + function * FUNCTION[:, None]).sum(1)
    lengths = CONTENT[0] * (words - functions) + FUNCTION[0] * functions
    return np.stack([matches[:, 0], lengths[:, 0], matches[:, 1], lengths[:, 1],
                     np.where(same, 0, chunks), rows[:, 21:23].sum(1)], axis=1)


def meteor_of(counts: Any) -> Any:
    """The score of counts, (..., 6): weighted F-mean, less a penalty for scattered matches."""
    matches, words, matches_there, words_there, chunks, matched = np.moveaxis(
        np.asarray(counts, float), -1, 0)
    # No match is no score.
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = matches / words, matches_there / words_there
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        penalty = GAMMA * (chunks / (matched / 2)) ** BETA
        return np.nan_to_num(np.maximum(0.0, mean * (1 - penalty)))
