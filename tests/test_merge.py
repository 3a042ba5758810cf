"""Several captions of a picture become one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_art.merge import merge_captions


@pytest.mark.parametrize(("candidates", "merged"), [
    (["sitting figure", "postures of the head"], "sitting figure, postures of the head"),
    (["sitting figure", "Sitting figure."], "sitting figure"),
    (["figure", "sitting figure, dog"], "sitting figure, dog"),
    (["dog", "a dog", "hot dogs"], "a dog, hot dogs"),
    (["sun, moon", "moon, sun", "moon, star"], "sun, moon, star"),
    (["", " , ", "tree"], "tree"),
    ([""], ""),
])
def test_order_is_kept_and_repeats_are_dropped(candidates, merged):
    assert merge_captions(candidates) == merged


words = st.text("ab ", max_size=6)


@given(st.lists(st.lists(words, max_size=3).map(",".join), max_size=4))
def test_merging_twice_changes_nothing(candidates):
    once = merge_captions(candidates)
    assert merge_captions([once]) == once


@given(st.lists(words, min_size=1, max_size=4))
def test_no_word_is_lost(candidates):
    assert set(merge_captions(candidates).replace(",", " ").split()) == set(
        " ".join(candidates).split())
