"""BLEU, CIDEr and ROUGE-L of any captions are those of pycocoevalcap's classes.

    python -m pytest tests/test_score_words.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from blip_art.score.coco import Pairs
from blip_art.score.metrics import METRICS, Texts
from blip_art.score.word_groups import WordGroups, corpus_bleu
from tests.score_data import coco_pairs

# These metrics do without Java.
NO_ENGINE: Any = None
PAIRS = [coco_pairs(range(200))[key] for key in coco_pairs(range(200))]
# So few words that groups of four are often shared, and repeated within a text.
TEXT = st.lists(st.sampled_from("a b c dd".split()), max_size=9).map(" ".join)
PICTURES = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=4)), min_size=1,
                    max_size=6)


def texts_of(pairs: Any) -> Texts:
    return Texts(*Pairs([str(n) for n in range(len(pairs))], [caption for caption, _ in pairs],
                        [list(references) for _, references in pairs]))


def theirs(metric: Any, texts: Texts, **options: Any) -> Any:
    return metric.compute_score(dict(zip(texts.ids, texts.references, strict=True)),
                                {key: [caption] for key, caption in
                                 zip(texts.ids, texts.captions, strict=True)}, **options)


def check(texts: Texts) -> None:
    metrics: list[tuple[str, Any, dict[str, int]]] = [
        ("bleu", Bleu(4), {"verbose": 0}), ("rouge_l", Rouge(), {})]
    if any(text for lines in texts.references for text in lines):
        # pycocoevalcap's class stops at a set without a single word.
        metrics.append(("cider", Cider(), {}))
    for name, metric, options in metrics:
        found = METRICS[name](texts, NO_ENGINE)
        corpus, each = theirs(metric, texts, **options)
        assert list(found.corpus.values()) == pytest.approx(np.atleast_1d(corpus), abs=1e-12)
        assert np.array(list(found.per_image.values())) == pytest.approx(
            np.atleast_2d(each), abs=1e-12)


@given(PICTURES)
def test_any_small_set_of_captions(pairs: Any) -> None:
    check(texts_of(pairs))


@pytest.mark.parametrize("pairs", [
    PAIRS, PAIRS[:1], [("a " * 3000, ["a b " * 1000, "a"])], [("", ["a cat"]), ("a", ["a", "b"])],
    [("caf\u00e9 \u4e2d \U0001f600", ["\u4e2d caf\u00e9 \U0001f600"]), ("b", ["a"])]])
def test_long_short_and_foreign_captions(pairs: Any) -> None:
    check(texts_of(pairs))


def test_a_set_without_a_word_scores_nought() -> None:
    assert METRICS["cider"](texts_of([("a cat", [""])]), NO_ENGINE).corpus == {"CIDEr": 0.0}


@pytest.mark.parametrize("draw", [range(200), [0, 1, 2] * 2 + list(range(7, 90))])
def test_bleu_of_any_draw_follows_from_the_counts(draw: Any) -> None:
    counts = WordGroups(*zip(*PAIRS, strict=True)).bleu_counts()
    drawn = texts_of([PAIRS[place] for place in draw])
    corpus, _ = theirs(Bleu(4), drawn, verbose=0)
    assert corpus_bleu(counts[list(draw)].sum(axis=0)[None])[0] == pytest.approx(corpus, abs=1e-12)
