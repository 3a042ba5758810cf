"""Notations to texts: the ladder, names, keys and chains, on the real vocabulary."""

import socket

import pytest

from blip_art.data.iconclass import Iconclass, split_chain
from blip_art.errors import UserError


@pytest.fixture(scope="module")
def iconclass():
    return Iconclass()


@pytest.mark.parametrize(("notation", "text", "rule"), [
    ("31A235", "sitting figure", "exact"),
    (" 25H ", "landscapes", "stripped"),
    ("25 F 23 (LION)", "beasts of prey, predatory animals: lion", "stripped"),
    ("25F23(LION)(+999)", "beasts of prey, predatory animals: lion", "key_dropped"),
    ("0(+1)", "Abstract, Non-representational Art", "key_dropped"),
    ("31A235(ANNA)", "sitting figure", "name_dropped"),
    ("31AA71", "male sex; man", "undoubled"),
    ("31A235199", "sitting on the ground", "parent"),
    ("no notation", "", "unknown"),
    ("", "", "unknown"),
])
def test_a_notation_is_found_on_the_first_rung_that_has_it(iconclass, notation, text, rule):
    found = iconclass.find(notation)
    assert (found.text, found.rule) == (text, rule)


def test_a_key_brings_its_own_text(iconclass):
    assert iconclass.find("31A24(+1)")[:2] == ("postures of the head", ("front view",))


def test_both_of_two_keys_are_kept(iconclass):
    found = iconclass.find("43C1111(+5)(+6)")
    assert len(found.keys) == 2
    assert found.notes == ("two_keys",)


def test_the_good_key_survives_a_bad_one_behind_it(iconclass):
    found = iconclass.find("43C1111(+5)(+nonsense)")
    assert (len(found.keys), found.rule) == (1, "key_dropped")


def test_a_name_is_put_in_once_and_only_where_it_belongs(iconclass):
    assert iconclass.find("61D(GERMANY)").text == (
        "geographical names of countries, regions, mountains, rivers, etc. "
        "(names of cities and villages excepted) (GERMANY)")


def test_wikidata_names_do_not_open_the_network(iconclass, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = iconclass.find("61B2(wd:Q5598)")
    assert (found.text, found.notes) == ("historical person", ("wikidata",))


def test_a_package_without_its_vocabulary_is_a_users_error(monkeypatch, tmp_path):
    monkeypatch.setattr("iconclass.__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr("iconclass.init", lambda: pytest.fail("asked the network"))
    with pytest.raises(UserError, match="--force-reinstall iconclass"):
        Iconclass()


def test_a_chain_is_split_at_colons_outside_brackets():
    assert split_chain("61B:31D14") == ["61B", "31D14"]
    assert split_chain("71X1(PSALM 23:4)") == ["71X1(PSALM 23:4)"]


def test_parents_come_nearest_first(iconclass):
    assert iconclass.parents("25F23(LION)", 2) == ["beasts of prey, predatory animals", "mammals"]


def test_other_languages_fall_back_to_english_text(iconclass):
    assert Iconclass("de").find("31A235").text == "sitzende Figur"
    with pytest.raises(UserError, match="choose one of en, de"):
        Iconclass("la")
