"""The same numbers as pycocoevalcap: published ones, its own classes live, its SPICE as stored.

    python -m pytest tests/test_score_equality.py
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from blip_art.score import corenlp, java
from blip_art.score.engine import Engine
from blip_art.score.meteor_formula import meteor_counts, meteor_of
from blip_art.score.parses import Parser
from blip_art.score.scoring import Scores, score_with
from tests.score_data import MANY_ART_PAIRS, MANY_PICTURES, SPICE_PICTURES, coco_pairs

# Of the first 500 pictures of val2014, the first caption against the others.
PUBLISHED = {
    "Bleu_1": 0.641811175337, "Bleu_2": 0.446372985846, "Bleu_3": 0.297373527902,
    "Bleu_4": 0.192828210015, "METEOR": 0.246489639383, "ROUGE_L": 0.473388167928,
    "CIDEr": 0.935528947599}
# What trips tokenizers; none has a line break, which pycocoevalcap cannot take.
ODD = ["", "   ", ".", "T.V.", "A cat & a dog's \"tail\" -- 50% off; it's 1/2 #1!",
       "\U0001f600 a smile \U0001f600", "Caf\u00e9 \u2014 na\u00efve \u4e2d\u6587", "a ||| b",
       "(see http://x.org/a?b=c)", "word " * 60, "tab\there", "*NL*", "cannot gonna he'll",
       "a man's t-shirt doesn't fit -- o'clock", "a-b-c 'tis two-thirds ~ of it"]


@pytest.fixture(scope="module")
def italy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a country where METEOR's numbers have commas."""
    environ = {**os.environ, "LC_ALL": "it_IT.UTF-8",
               "JAVA_TOOL_OPTIONS": "-Duser.language=it -Duser.country=IT"}
    assert Path("/usr/share/i18n/locales/it_IT").exists(), "no it_IT here; run .ci/packages.sh"
    folder = tmp_path_factory.mktemp("locales")
    subprocess.run(["localedef", "-i", "it_IT", "-f", "UTF-8", folder / "it_IT.UTF-8"], check=True)
    environ["LOCPATH"] = str(folder)
    shown = subprocess.run(
        [java.find_java_home("", os.environ) / "bin/java", "-XshowSettings:locale", "-version"],
        env={**environ, "JAVA_TOOL_OPTIONS": ""}, capture_output=True, text=True, check=True)
    assert "default locale = italiano (Italia)" in shown.stderr
    return environ


@pytest.fixture(scope="module")
def engine(italy: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine in Italy."""
    corenlp.fetch(corenlp.cache_folder(), corenlp.sources_from())
    parses = tmp_path_factory.mktemp("parses") / "new.sqlite"
    with Engine(environ=italy, parses=parses) as engine:
        yield engine


@pytest.fixture(scope="module")
def their_meteor() -> Iterator[Meteor]:
    """pycocoevalcap's own class, and on PATH the `java` that it starts."""
    home = java.find_java_home("", os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
        yield Meteor()


def split(pairs: dict[str, tuple[str, list[str]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    return ({key: references for key, (_, references) in pairs.items()},
            {key: caption for key, (caption, _) in pairs.items()})


# What turns texts into propositions for SPICE. Another parser is put here: it must pass all below.
PARSERS: dict[str, Parser | None] = {"CoreNLP": None}


@pytest.fixture(scope="module", params=PARSERS)
def spice(request: pytest.FixtureRequest, italy: dict[str, str],
          tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with one of the parsers, which knows no text yet."""
    corenlp.fetch(corenlp.cache_folder(), corenlp.sources_from())
    parses = tmp_path_factory.mktemp("parses") / "new.sqlite"
    with Engine(environ=italy, parses=parses, parser=PARSERS[request.param]) as engine:
        yield engine


def scored(engine: Engine, pairs: dict[str, tuple[str, list[str]]], *metrics: str) -> Scores:
    scores = score_with(engine, *split(pairs), metrics)
    assert scores.failed == {}
    return scores


@pytest.fixture(scope="module")
def engine_17(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the system's Java, which has no answers of the other."""
    homes = [release.parent for release in Path("/usr/lib/jvm").glob("*/release")
             if 'JAVA_VERSION="17' in release.read_text()]
    assert homes, "no Java 17 in /usr/lib/jvm; install openjdk-17-jre-headless"
    parses = tmp_path_factory.mktemp("parses") / "new.sqlite"
    with Engine(java_home=str(homes[0]), parses=parses) as engine:
        yield engine


@pytest.mark.parametrize(("name", "version"), [("engine", "25."), ("engine_17", "17.")])
def test_published_values(request: pytest.FixtureRequest, name: str, version: str) -> None:
    engine: Engine = request.getfixturevalue(name)
    assert engine.java_version.startswith(version)
    scores = scored(engine, coco_pairs(range(500)), "bleu", "meteor", "rouge_l", "cider")
    assert scores.metrics == pytest.approx(PUBLISHED, abs=1e-12)


def test_pycocoevalcaps_classes_agree_on_odd_captions_too(
        engine: Engine, their_meteor: Meteor) -> None:
    pairs = coco_pairs(range(30000, 30030))
    pairs.update({f"odd {number}": (text, ["a cat and a dog", text])
                  for number, text in enumerate(ODD)})
    references, captions = split(pairs)
    tokenize = PTBTokenizer().tokenize
    references = tokenize({key: [{"caption": text} for text in texts]
                           for key, texts in references.items()})
    captions = tokenize({key: [{"caption": text}] for key, text in captions.items()})
    expected: dict[str, Any] = {}
    for metric, names in ((Bleu(4), "Bleu_1 Bleu_2 Bleu_3 Bleu_4"), (their_meteor, "METEOR"),
                          (Rouge(), "ROUGE_L"), (Cider(), "CIDEr")):
        corpus, each = metric.compute_score(references, captions)
        if isinstance(metric, Bleu):
            expected.update(zip(names.split(), zip(corpus, each, strict=True), strict=True))
        else:
            expected[names] = (corpus, list(each))

    scores = scored(engine, pairs, "bleu", "meteor", "rouge_l", "cider")
    for name, (value, values) in expected.items():
        assert scores.metrics[name] == pytest.approx(value, abs=1e-9), name
        mine = [scores.per_image[key][name] for key in references]
        assert mine == pytest.approx(values, abs=1e-9), name


def test_meteor_reads_hyphens_and_apostrophes_as_pycocoevalcaps(
        engine: Engine, their_meteor: Meteor) -> None:
    """Its normalizer is not asked for all texts, nor for whole ones where words will do."""
    choice = random.Random(0)
    texts = ["".join(choice.choices("ab1 ~-'s -.'a9/&", k=18)) + " a-b-c it's" for _ in range(300)]
    pairs = list(zip(texts, texts[1:] + texts[:1], strict=True))
    corpus, each = their_meteor.compute_score({n: [b] for n, (_, b) in enumerate(pairs)},
                                              {n: [a] for n, (a, _) in enumerate(pairs)})
    counts = meteor_counts(engine.meteor([a for a, _ in pairs], [[b] for _, b in pairs]))
    assert meteor_of(counts.sum(axis=0)) == pytest.approx(corpus, abs=1e-12)
    assert meteor_of(counts) == pytest.approx(each, abs=1e-12)


@pytest.mark.parametrize("draw", [[3] * 5, [*range(20), 2, 2, 39, 39], list(range(0, 40, 3))])
def test_meteor_of_any_draw_follows_from_the_counts(
        engine: Engine, their_meteor: Meteor, draw: list[int]) -> None:
    """The last two captions are one of their references, and a word of it."""
    captions = coco_pairs(range(100, 140))
    pairs = [([caption.lower().strip(".")], texts) for caption, texts in captions.values()]
    pairs[-2:] = [(["a small dog"], ["a small dog", "a cat"]), (["dog"], ["a small dog"])]
    corpus, each = their_meteor.compute_score({n: pairs[place][1] for n, place in enumerate(draw)},
                                              {n: pairs[place][0] for n, place in enumerate(draw)})
    counts = meteor_counts(engine.meteor([text for [text], _ in pairs], [t for _, t in pairs]))
    assert meteor_of(counts[draw].sum(axis=0)) == pytest.approx(corpus, abs=1e-12)
    assert meteor_of(counts[draw]) == pytest.approx(each, abs=1e-12)


def test_spice_counts_are_pycocoevalcaps(spice: Engine) -> None:
    golden = json.loads(Path(__file__).with_name("golden").joinpath("spice.json").read_text())
    pairs = coco_pairs(SPICE_PICTURES)
    expected = dict(golden["coco"])
    for key, row in golden["art"].items():
        pairs[key] = (row["caption"], row["references"])
        expected[key] = row["counts"]
    scores = scored(spice, pairs, "spice")
    assert scores.spice_counts == expected
    each = [row["SPICE"] for row in scores.per_image.values()]
    assert scores.metrics["SPICE"] == pytest.approx(sum(each) / len(each))


def test_spice_counts_are_pycocoevalcaps_on_pictures_of_many(spice: Engine) -> None:
    """Golden/compare_spice.py compares all of them, and 1,000 of art."""
    stored = Path(__file__).with_name("golden").joinpath("spice_many.json.gz").read_bytes()
    golden = json.loads(gzip.decompress(stored))
    assert (len(golden["coco"]), len(golden["art"])) == (len(MANY_PICTURES), MANY_ART_PAIRS)
    pairs = coco_pairs(MANY_PICTURES[::85])
    scores = scored(spice, pairs, "spice")
    assert {key: [n for name in golden["categories"] for n in counts[name]]
            for key, counts in scores.spice_counts.items()} == {
                key: golden["coco"][key] for key in pairs}


def test_the_systems_java_17_gives_the_same(engine: Engine, engine_17: Engine) -> None:
    pairs = coco_pairs(SPICE_PICTURES[:4])
    scores = scored(engine_17, pairs, "meteor", "spice")
    assert engine_17.parsed == sum(1 + len(texts) for _, texts in pairs.values())
    expected = scored(engine, pairs, "meteor", "spice")
    assert (scores.per_image, scores.spice_counts) == (expected.per_image, expected.spice_counts)


def test_a_line_break_in_a_caption_stays_in_it(engine: Engine) -> None:
    clean = {"1": ("a cat sits", ["the cat sits"]), "2": ("a dog", ["a small dog runs"]),
             "3": ("two ships", ["two ships at sea"])}
    broken = {**clean, "1": ("a cat\r\n\u2028sits", ["the\x85cat sits"])}
    assert scored(engine, broken, "bleu", "spice").per_image == scored(
        engine, clean, "bleu", "spice").per_image


def test_an_empty_caption_and_half_a_character_score_nought(engine: Engine) -> None:
    pairs = {"1": ("", ["a cat"]), "2": ("\ud83d", ["a\tdog\u2028"]),
             "3": ("a ship", ["a ship", "\U0001f600"])}
    scores = scored(engine, pairs, "bleu", "meteor", "rouge_l", "cider", "spice")
    assert scores.cleaned == {"half_characters": 1, "line_breaks": 1, "tabs": 1, "beyond_bmp": 1,
                              "emoji": 1, "no_words": 3}
    assert scores.per_image["3"]["SPICE"] == 1.0
    assert scores.per_image["1"] == scores.per_image["2"]
    assert scores.per_image["1"]["SPICE"] == scores.per_image["1"]["METEOR"] == 0.0
