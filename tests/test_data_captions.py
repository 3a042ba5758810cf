"""Captions in the original's style, faults included, and in ours."""

import pytest

from blip_art.data.captions import Captioner, Style, pre_caption
from blip_art.data.iconclass import Iconclass
from blip_art.errors import UserError

# Whole captions of the original's validation list, with notations whose texts they are.
ORIGINALS = [
    # Brackets are gone with the space behind them, not the one before.
    (["61B(+54)"], "historical persons ."),
    (["11H(FRANCIS)59"], "stigmatization of St."),
    (["73D24", "73D244"],
     "Last Supper , institution of the Eucharist, i.e. Christ showing or blessing bread and/or "
     "wine ."),
    # "etc." is gone, and the comma before it where nothing is left behind that comma.
    (["86(SOME TEXT)"], "proverbs, sayings."),
    # Pieces between commas are kept once; 'heroines  ' is not 'heroines'.
    (["12E13", "12EE13", "12FF13", "9"],
     "representations ~ gods, demi-gods, heroes, representations ~ goddesses, demi-goddesses, "
     "heroines, heroines  , Classical Mythology and Ancient History."),
    # The first full stop cuts off all that follows, but only if a comma follows.
    (["11F4", "25H"], "Madonna: i."),
    (["23U11", "24B3"], "perpetual calendar, waning moon, i.e. facing this way (."),
    (["25F25(ELEPHANT)", "45L3111"],
     "trunked animals: elephant, 'tropaion', i.e. decorative ornament ~ weapons."),
    # The texts of doubled letters are two pieces.
    (["49MM32"], "book, book open."),
    (["44BB11"], "ranks ~ rulers, sovereigns, female ruler."),
]


@pytest.fixture(scope="module")
def iconclass():
    return Iconclass()


@pytest.fixture
def seed(iconclass):
    return Captioner(iconclass, Style("seed"))


@pytest.fixture
def clean(iconclass):
    return Captioner(iconclass, Style("clean"))


@pytest.mark.parametrize(("notations", "caption"), ORIGINALS)
def test_seed_style_repeats_the_original(seed, notations, caption):
    assert seed.of(notations).joined == caption


def test_seed_style_of_the_one_picture_we_know(seed):
    captions = seed.of(["31A235", "31A24(+1)", "61B(+54)", "61B:31A2212(+1)", "61B:31D14"])
    assert captions.joined == "sitting figure, postures of the head , historical persons ."
    assert captions.split == ["sitting figure.", "postures of the head .", "historical persons ."]


def test_clean_style_cuts_nothing(clean):
    assert clean.of(["11F4", "31A24(+1)", "86(SOME TEXT)"]).joined == (
        "Madonna: i.e. Mary with the Christ-child, postures of the head (front view), "
        "proverbs, sayings, etc. (SOME TEXT)")


def test_clean_style_says_each_phrase_once(clean):
    captions = clean.of(["31D14", " 31D14", "61B:31D14"])
    assert captions.joined == (
        "adult man, historical persons (portraits and scenes from the life)")


def test_split_captions_are_one_a_notation_and_never_cut_at_commas(clean):
    captions = clean.of(["25F23(LION)", "46C24"])
    assert captions.split == ["beasts of prey, predatory animals: lion",
                              "sailing-ship, sailing-boat"]


def test_a_template_without_a_name_leaves_no_template_words(clean):
    assert clean.of(["61B2(...)"]).joined == "historical person"


def test_keys_can_be_left_out_and_parents_added(iconclass):
    style = Style("clean", keys=False, parents=1)
    assert Captioner(iconclass, style).of(["31A24(+1)"]).joined == (
        "postures of the head, anatomy (non-medical)")


def test_every_notation_counts_under_one_rule(clean):
    for notations in (["31A235", "zzz"], ["31A235", "0(+1)", "61B:61B2(wd:Q5598)"], []):
        clean.of(notations)
    assert {rule: n for rule, n in clean.rules.items() if n} == {
        "exact": 3, "key_dropped": 1, "unknown": 1}
    assert (clean.notes["colon"], clean.notes["wikidata"]) == (1, 1)
    assert clean.unknown() == ["zzz"]


def test_a_picture_without_text_has_no_captions(seed, clean):
    assert seed.of(["zzz"]) == clean.of([]) == ("", [])


def test_an_unknown_style_is_refused():
    with pytest.raises(UserError, match="choose one of seed, clean"):
        Style("fancy")


@pytest.mark.parametrize(("caption", "trained_on"), [
    ("Historical persons .", "historical persons"),
    ("Luck; 'Fato' (Ripa) ~ rain:  a, b-c!\n", "luck 'fato' ripa rain a, b-c"),
    ("one two three four", "one two three"),
])
def test_pre_caption_lowers_strips_and_cuts(caption, trained_on):
    assert pre_caption(caption, 3 if caption.startswith("one") else 30) == trained_on
