"""Captions in the original's style, faults included, and in ours."""

import csv
import json
import socket
import urllib.error
import urllib.request
from email.message import Message

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blip_art.data.captions import Captioner, Style, join_seed, pre_caption, seed_text
from blip_art.data.iconclass import Found, Iconclass, split_chain
from blip_art.errors import UserError
from tests.conftest import REPO

HALF = REPO.parent / "shared" / "data" / "iconclass" / "notations_half.csv"
EVERY_STYLE = [Style("seed"), Style("clean"), Style("clean", parents=2)]

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


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """The package asks Wikidata for names, and for its vocabulary where that is missing."""
    def refuse(*args, **kwargs):
        pytest.fail("asked the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(urllib.request, "urlopen", refuse)
        yield


@pytest.fixture(scope="module")
def iconclass(no_network):
    return Iconclass()


@pytest.fixture(scope="module")
def half():
    """Half of the real archive's notations, malformed ones too."""
    with open(HALF, encoding="utf-8", newline="") as file:
        return [row["notation"] for row in csv.DictReader(file)]


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


def test_real_notations_have_the_texts_that_the_package_gives_in_seed_style(
        iconclass, half, monkeypatch):
    def no_answer(uri):
        raise urllib.error.HTTPError(uri, 404, "not asked", Message(), None)

    monkeypatch.setattr(urllib.request, "urlopen", no_answer)
    source, captioner, compared = iconclass._source, Captioner(iconclass, Style("seed")), 0
    for notation in half:
        try:
            [first, *_] = split_chain(notation)
            text = seed_text(Found(source.text_(first), (), ""))
        except iconclass._misses:
            continue
        assert captioner.of([notation]).joined == join_seed([text]), notation
        compared += 1
    assert (len(half), compared) == (17_386, 17_032)


def test_real_notations_all_fall_under_a_rule_in_clean_style(clean, half):
    for notation in half:
        clean.of([notation])
    assert clean.rules == {"exact": 17_025, "stripped": 22, "key_dropped": 48,
                           "name_dropped": 131, "undoubled": 10, "parent": 140, "unknown": 10}
    assert not [text for text in clean.phrases.values() if "  " in text]


@pytest.mark.parametrize(("notation", "caption"), [
    ("46A12(+)", "nobility and patriciate; chivalry, knighthood"),
    ("31A2515(+(+933)", "arm held downwards"),
    # A bracket that is missing at the end, and brackets inside a name.
    ("31A24(+1", "postures of the head (front view)"),
    ("94L8(CLUB (WEAPON))", "attributes of Hercules (CLUB (WEAPON))"),
    ("11HH((MARGARET)", "female saints (MARGARET)"),
])
def test_malformed_notations_keep_what_can_be_read(clean, notation, caption):
    assert clean.of([notation]).joined == caption


# What notations are made of, put together as typing errors do.
pieces = st.sampled_from([
    "31A24", "46A12", "61B2", "25F23", "43C1111", "0", "44A1", "AA", "9", "(", ")", "(+", "+", "1",
    "(...)", "wd:Q5598", "(LION)", ":", " ", "\t", "(+1)", "(+5", "ICONCLASS", "[", "]", "\\1", "é",
    "\ud83d", "\x00", "q", "k0", "…", "~"])


@given(st.one_of(st.lists(pieces, max_size=12).map("".join),
                 st.text(st.characters(), max_size=60)))
@example("(" * 2_000)
@example(" " * 2_000 + ")")
@example("25F" * 5_000)
def test_any_string_becomes_captions_that_can_be_written(iconclass, notation):
    for style in EVERY_STYLE:
        captioner = Captioner(iconclass, style)
        captions = captioner.of([notation, "31A235"])
        json.dumps([captions, captioner.phrases], ensure_ascii=False).encode()
        assert captions.joined.startswith("sitting figure") or len(captions.split) > 0
        assert sum(captioner.rules.values()) == 2


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
