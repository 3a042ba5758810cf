"""The original's split, the random one, and the one that keeps books and captions together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_art.data.splits import (
    SEED_COUNTS,
    book_of,
    has_seed_names,
    seed_positions,
    split_pictures,
)
from blip_art.errors import UserError

names = st.one_of(
    st.integers(0, 99).map(lambda n: f"IIHIM_{n}.jpg"),
    st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)).map(
        lambda bn: f"uiuc_83{bn[0]}_pic{bn[1]:03d}.jpg"))
pictures = st.dictionaries(names, st.sampled_from([f"caption {n}" for n in range(20)]),
                           min_size=1, max_size=60)


def test_the_shipped_list_is_whole():
    positions = seed_positions()
    assert sorted(positions.values()) == list(range(1, sum(SEED_COUNTS) + 1))


def test_the_original_split_puts_pictures_and_ids_where_they_were():
    split = split_pictures("seed", dict.fromkeys([
        "bsb00024918_136.jpg", "IIHIM_-1607445036.jpg", "IIHIM_1956438510.jpg", "a stranger.jpg",
    ], "a caption"))
    assert split.train == [("IIHIM_1956438510.jpg", 1)]
    assert split.val == [("IIHIM_-1607445036.jpg", 69_225), ("bsb00024918_136.jpg", 77_877)]
    assert split.test == []


def test_a_part_of_the_archive_is_not_taken_for_all_of_it():
    assert not has_seed_names(["IIHIM_1956438510.jpg", "IIHIM_-1607445036.jpg"])
    with pytest.raises(UserError, match="--split random"):
        split_pictures("seed", {"a stranger.jpg": "a caption"})


@given(pictures, st.integers(0, 2**32), st.sampled_from(["random", "grouped"]))
def test_every_picture_is_in_one_part_and_ids_count_through(captions, seed, kind):
    placed = [item for part in split_pictures(kind, captions, seed) for item in part]
    assert sorted(name for name, _ in placed) == sorted(captions)
    assert [number for _, number in placed] == list(range(1, len(captions) + 1))


@given(pictures, st.integers(0, 2**32))
def test_no_book_and_no_caption_is_on_both_sides(captions, seed):
    parts = split_pictures("grouped", captions, seed)
    for key in (lambda name: captions[name], book_of):
        seen = [{key(name) for name, _ in part} - {""} for part in parts]
        assert sum(map(len, seen)) == len(set().union(*seen))


@given(pictures, st.integers(0, 2**32), st.randoms())
def test_the_split_depends_on_the_seed_and_not_on_the_order_of_records(captions, seed, rng):
    shuffled = list(captions.items())
    rng.shuffle(shuffled)
    for kind in ("random", "grouped"):
        assert split_pictures(kind, dict(shuffled), seed) == split_pictures(kind, captions, seed)


def test_another_seed_makes_another_split():
    captions = {f"{n}.jpg": str(n) for n in range(50)}
    assert split_pictures("random", captions, 1) != split_pictures("random", captions, 2)


def test_a_tenth_each_goes_to_validation_and_test():
    captions = {f"{n}.jpg": str(n) for n in range(86_530)}
    for kind in ("random", "grouped"):
        assert tuple(map(len, split_pictures(kind, captions))) == SEED_COUNTS


@pytest.mark.parametrize(("name", "book"), [
    ("uiuc_832w91o_pic012.jpg", "uiuc_832w91o"),
    ("embhab_uk-70_pic205.jpg", "embhab_uk-70"),
    ("embhab_p-524-2f-helmst_pic753a.jpg", "embhab_p-524-2f-helmst"),
    ("embhab_wa6395_pic338_05.jpg", "embhab_wa6395"),
    ("bsbink_B_965_fac019.jpg", "bsbink_B_965"),
    ("bsb00029770_23.jpg", "bsb00029770"),
    ("mmw_10b23_332v_min.jpg", "mmw_10b23"),
    ("IIHIM_-859728949.jpg", ""),
    ("IIHIM_RIJKS_1155186918.jpg", ""),
    ("folger_ill_fac063106.jpg", ""),
    ("dpd_0116.jpg", ""),
    ("ursicula_01915.jpg", ""),
    ("biblia_sacra_20140728234.jpg", ""),
])
def test_books_are_told_from_flat_numbers(name, book):
    assert book_of(name) == book


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="seed, random, grouped"):
        split_pictures("sed", {"a.jpg": "a"})
