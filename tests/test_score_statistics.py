"""Intervals, p-values, what is said of captions and references, and the two baselines.

    python -m pytest tests/test_score_statistics.py
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.significance import bleu_pair, cider_pair
from blip_art.config import config_from_dict
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text
from blip_art.score.baselines import most_frequent_caption, oracle_captions, training_list
from blip_art.score.bootstrap import Sample, differences, intervals, randomization_p_values
from blip_art.score.coco import Pairs
from blip_art.score.limits import TokenLimit, WordLimit, WordPiece, token_limit
from blip_art.score.record import describe_captions, describe_references
from blip_art.score.references import references_hashes, same_references
from blip_art.score.shown import sentence
from blip_art.score.word_groups import corpus_bleu
from tests.score_data import write_vocabulary


def normal(pictures: int, mean: float = 0.0, seed: int = 1) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {str(n): float(value) for n, value in enumerate(rng.normal(mean, 1.0, pictures))}


def sample(values: dict[str, float]) -> Sample:
    return Sample.of({"metrics": {"CIDEr": 0.0}, "per_image": {
        key: {"CIDEr": value} for key, value in values.items()}})


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = normal(400)
    low, high = intervals(sample(values))["CIDEr"]
    assert high - low == pytest.approx(2 * 1.96 * np.std(list(values.values())) / 20, rel=0.08)


def test_pooled_metrics_are_drawn_from_their_counts() -> None:
    """BLEU of a draw is no mean of the pictures', nor is METEOR."""
    record = {"metrics": {"METEOR": 0.5, "Bleu_1": 0.5},
              "per_image": {"1": {}, "2": {}},
              "bleu_counts": {"1": [2, 2, 2, 1, 0, 0, 1, 0, 0, 0],
                              "2": [8, 8, 8, 7, 6, 5, 8, 7, 6, 5]},
              "meteor_counts": {"1": [15, 30, 15, 30, 1, 2], "2": [120, 120, 120, 120, 0, 16]}}
    drawn = Sample.of(record, ["METEOR", "Bleu_1"]).drawn(np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert list(drawn) == ["METEOR", "Bleu_1"]
    assert drawn["Bleu_1"] == pytest.approx([0.9, 1.0])
    # P = R = 135 / 150, one chunk of 9 matches.
    assert drawn["METEOR"] == pytest.approx([0.9 * (1 - 0.6 * (1 / 9) ** 0.2), 1.0])


def test_intervals_are_the_same_every_time() -> None:
    assert intervals(sample(normal(9))) == intervals(sample(normal(9)))


def test_pairing_finds_what_single_intervals_hide() -> None:
    before = normal(300)
    after = {key: value + 0.05 + 0.1 * normal(300, seed=2)[key] for key, value in before.items()}
    first, second = intervals(sample(before))["CIDEr"], intervals(sample(after))["CIDEr"]
    assert first[1] > second[0]
    found = differences(sample(before), sample(after))["CIDEr"]
    assert found.low > 0
    assert found.p_value == pytest.approx(1 / 1001)


def test_equal_captions_differ_by_nothing() -> None:
    assert differences(sample(normal(20)), sample(normal(20)))["CIDEr"] == (0.0, 0.0, 1.0)


def test_p_is_the_share_of_swaps_that_differ_as_much() -> None:
    """All 64 ways to swap the captions of six pictures; BLEU of each from its own counts."""
    first, second = bleu_pair(6, np.random.default_rng(5))
    [(_, ours)], [(_, theirs)] = first.pooled, second.pooled
    differences_of_all = []
    for swapped in itertools.product((False, True), repeat=6):
        chosen = np.array(swapped)[:, None]
        one, other = (corpus_bleu(np.where(chosen, *pair).sum(0)[None])[0, 3]
                      for pair in ((theirs, ours), (ours, theirs)))
        differences_of_all.append(abs(other - one))
    exact = np.mean([found >= differences_of_all[0] - 1e-12 for found in differences_of_all])
    assert 0.1 < exact < 0.9
    found = randomization_p_values(first, second, trials=20_000)["Bleu_4"]
    assert found == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize(("pair", "least"), [(cider_pair, 10), (bleu_pair, 4)])
def test_small_p_values_are_as_rare_as_they_claim(pair: Callable[..., Any], least: int) -> None:
    """Of 500 pairs of equally good captioners 5 % at most are told apart at 5 % by ten pictures."""
    p_values: list[float] = []
    for seed in range(500):
        first, second = pair(10, np.random.default_rng([seed, 10]))
        p_values += [found.p_value for found in differences(first, second, 200, seed).values()]
    # 0.06 and two standard errors of this simulation
    assert least <= sum(p < 0.05 for p in p_values) <= 40


def test_one_picture_has_an_interval_of_no_width() -> None:
    assert intervals(sample({"1": 0.5}))["CIDEr"] == (0.5, 0.5)


def test_captions_are_told_apart_as_the_metrics_do() -> None:
    assert describe_captions(["A cat.", "a cat", "...", "a dog"], ["a cat", "a cat", "", "a dog"]
                             ) == {"empty_share": 0.25, "most_frequent": "A cat.",
                                   "most_frequent_share": 0.5, "unique_ratio": 0.75,
                                   "mean_words": 1.5}


def test_references_longer_than_captions_can_be_are_counted() -> None:
    pairs = Pairs(["1", "2"], ["", ""], [["a b c", "a b"], ["a b c d"]])
    found = describe_references(pairs, WordLimit(2))
    assert (found["count"], found["longer_share"]) == (3, pytest.approx(2 / 3))
    assert "longer_share" not in describe_references(pairs)


def test_references_are_the_same_in_any_order_of_pictures_and_of_captions() -> None:
    one = references_hashes({"1": ["a", "b"], "2": ["c"]})
    assert one == references_hashes({"2": ["c"], "1": ["a", "b"]})
    assert same_references(one, references_hashes({"1": ["b", "a"], "2": ["c"]}))
    assert not same_references(one, references_hashes({"1": ["a", "b", "b"], "2": ["c"]}))
    assert not same_references({}, {})


def test_files_of_older_versions_still_compare() -> None:
    """They have the hash of the captions in the order listed, and no other."""
    one = {"1": ["b", "a"], "2": ["c"]}
    older = hashlib.sha256(json.dumps(sorted(one.items())).encode()).hexdigest()
    assert same_references({"sha256": older}, references_hashes(one))
    assert same_references({"sha256": older}, {"sha256": older})


def test_the_sentence_names_what_makes_scores_doubtful() -> None:
    told = sentence({"pictures": 8653, "bleu": {"brevity_penalty": 0.61, "length_ratio": 0.7},
                     "captions": {"empty_share": 0.01, "unique_ratio": 0.5, "mean_words": 9.0,
                                  "most_frequent": "sun " * 40, "most_frequent_share": 0.25},
                     "references": {"max_tokens": 16, "longer_share": 0.466},
                     "cleaned": {"line_breaks": 2, "no_words": 1}})
    for words in ("8,653 pictures", "1.0 % of the captions are empty", "(25.0 %): 'sun sun",
                  "penalty 0.610", "2 with line breaks, 1 with no words",
                  "46.6 % of the references have more than 16 tokens"):
        assert words in told


def test_the_oracle_is_what_the_first_tokens_are_decoded_to(tmp_path: Path) -> None:
    """'lions' is a word and an s, 'zoo' three letters: what is not whole is left out."""
    write_vocabulary(tmp_path)
    limit = TokenLimit(WordPiece(tmp_path), 5)
    for text, caption in {"A Lion, (a tree)!": "a lion, a tree", "a lion": "a lion",
                          "sea sea sea lions": "sea sea sea lions",
                          "sea sea sea sea lions": "sea sea sea sea",
                          "sea sea sea zoo": "sea sea sea", "": "",
                          "sea \ud83d": "sea", "qqqqqqqqq sea": "qqqqq"}.items():
        assert oracle_captions({"1": [text, "other"]}, limit) == {"1": caption}
    assert limit.longer(["a lion, a tree", "a lion, a tree,", "sea sea sea sea lions"]) == 2
    assert oracle_captions({"1": ["a b c. d", "e"]}, WordLimit(3)) == {"1": "a b c."}


def test_the_tokenizer_is_found_from_another_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    config = config_from_dict({"model": {"tokenizer": "words"}, "generate": {"max_length": 20}})
    write_vocabulary(tmp_path / "words")
    monkeypatch.chdir("/")
    write_json(run.manifest, {"cwd": str(tmp_path)})
    assert token_limit(run, config).most == 16


@pytest.mark.parametrize(("name", "content"), [
    ("a.json", [{"image": "1.jpg", "caption": ["x", "b"]}, {"image": "2.jpg", "caption": "b"}]),
    ("a.jsonl", '{"image": "1", "caption": "b"}\n{"image": "2", "caption": "b"}\n'),
    ("a.csv", "image,caption\n1.jpg,b\n2.jpg,b\n3.jpg,x\n"),
    ("karpathy.json", {"images": [
        {"filename": f"{n}.jpg", "cocoid": n, "split": split, "sentences": [{"raw": text}]}
        for n, (split, text) in enumerate([("test", "x"), ("test", "x"), ("train", "b")])]}),
    ("coco.json", {"images": [{"id": 1}], "annotations": [
        {"image_id": 1, "caption": text} for text in ("x", "b", "b")]}),
    ("plain.json", [{"image_id": n, "caption": text} for n, text in enumerate("xbb")])])
def test_the_floor_comes_from_any_list_of_training_captions(
        tmp_path: Path, name: str, content: Any) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        write_text(path, content)
    else:
        write_json(path, content)
    assert most_frequent_caption(path) == "b"


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", "[{", "not valid JSON"), ("a.json", "[]", "holds no picture"),
    ("a.json", '["a"]', "must be an object with image and caption"),
    ("a.txt", "a", r"a list of pictures is .json, .jsonl, .csv, not '.txt'"),
    ("a.csv", "image\n1.jpg\n", "no 'caption'")])
def test_a_wrong_training_list_is_named(
        tmp_path: Path, name: str, content: str, message: str) -> None:
    write_text(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        most_frequent_caption(tmp_path / name)


def test_the_training_list_is_found_from_another_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = RunDir(tmp_path / "run"), config_from_dict({"data": {"train": "t.json"}})
    write_json(tmp_path / "annotation" / "t.json", [])
    monkeypatch.chdir("/")
    assert training_list(run, config) is None
    write_json(run.manifest, {"cwd": str(tmp_path)})
    assert training_list(run, config) == tmp_path / "annotation" / "t.json"
