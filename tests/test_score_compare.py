"""Comparing two sets of captions on the command line: tables, JSON, and what is refused.

    python -m pytest tests/test_score_compare.py
"""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path
from typing import Any

import pytest

from blip_art.errors import UserError
from blip_art.files import read_json, write_json
from blip_art.score.__main__ import main
from tests.score_data import coco_pairs

METRICS = ["--metrics", "bleu,cider"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References of 60 COCO pictures; `good` captions them, `poor` loses half of each caption."""
    folder = tmp_path_factory.mktemp("pair")
    pairs = coco_pairs(range(60))
    write_json(folder / "refs.json", [{"image_id": int(key), "caption": text}
                                      for key, (_, texts) in pairs.items() for text in texts])
    for name, part in (("good", 1), ("poor", 2)):
        write_json(folder / f"{name}.json", [
            {"image_id": key, "caption": text[:len(text) // part]}
            for key, (text, _) in pairs.items()])
        assert main([str(folder / "refs.json"), str(folder / f"{name}.json"), *METRICS,
                     "--json", str(folder / f"{name}_scores.json")]) == 0
    return folder


def changed(folder: Path, out: Path, **changes: Any) -> str:
    write_json(out, {**read_json(folder / "good_scores.json"), **changes})
    return str(out)


def test_a_score_file_says_how_sure_it_is(folder: Path) -> None:
    scores = read_json(folder / "good_scores.json")
    for name, value in scores["metrics"].items():
        low, high = scores["intervals"][name]
        assert low < value < high
    assert scores["bootstrap"]["resamples"] == 1000
    assert scores["pictures"] == 60
    assert scores["captions"]["empty_share"] == 0
    assert 0 < scores["bleu"]["brevity_penalty"] <= 1


def test_the_better_captions_win(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(folder / f"{name}_scores.json") for name in ("poor", "good")]
    assert main(["compare", *files]) == 0
    told = capsys.readouterr().out
    assert "B is better by Bleu_1, Bleu_2, Bleu_3, Bleu_4, CIDEr (p < 0.05)" in told
    assert "60 pictures, 1,000 draws" in told


def test_two_results_files_give_what_their_score_files_give(
        folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [str(folder / f"{name}.json") for name in ("poor", "good")]
    main(["compare", *results, "--refs", str(folder / "refs.json"), *METRICS, "--json", "-"])
    printed = json.loads(capsys.readouterr().out)
    scores = [str(folder / f"{name}_scores.json") for name in ("poor", "good")]
    main(["compare", *scores, "--json", str(tmp_path / "found.json")])
    assert printed["metrics"] == read_json(tmp_path / "found.json")["metrics"]


def test_equal_captions_are_not_told_apart(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(folder / "good_scores.json")
    main(["compare", good, good, "--metrics", "cider"])
    told = capsys.readouterr().out
    assert "no difference is significant (p < 0.05)" in told
    assert "Bleu" not in told


def test_other_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    scores = read_json(folder / "good_scores.json")
    key = next(iter(scores["per_image"]))
    scores["per_image"]["new"] = scores["per_image"].pop(key)
    scores["bleu_counts"]["new"] = scores["bleu_counts"].pop(key)
    other = changed(folder, tmp_path / "b.json", **scores)
    with pytest.raises(UserError, match=f"not the same: picture {key} is in A only"):
        main(["compare", str(folder / "good_scores.json"), other])


@pytest.mark.parametrize(("changes", "message"), [
    ({"references": {"sha256": "0"}}, "different references of the same pictures"),
    ({"references": None}, "does not say what its references were.*score it again"),
    ({"metrics": {"SPICE": 1.0}}, "picture .* has no SPICE; remove the file and score"),
    ({"metrics": None}, "'metrics' is not an object of metrics"),
    ({"failed": None}, "'failed' is not an object of metrics"),
    ({"bleu_counts": {}}, "has Bleu_1 but not the counts"),
    ({"per_image": []}, "is no score file"),
    ({"per_image": {}}, "has no pictures"),
    ({"metrics": {}}, "no metric to compare: A has Bleu_1.*B none")])
def test_files_that_do_not_compare_are_refused(
        folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["compare", str(folder / "good_scores.json"),
              changed(folder, tmp_path / "b.json", **changes)])


@pytest.mark.parametrize(("place", "value", "message"), [
    ("per_image KEY", '{"CIDEr": 1.0}', "picture KEY has no Bleu_1"),
    ("per_image KEY", "null", "picture KEY has no Bleu_1"),
    ("per_image KEY CIDEr", "null", "CIDEr of picture KEY is null, not a number; remove"),
    ("per_image KEY CIDEr", "NaN", "CIDEr of picture KEY is NaN, not a number; remove"),
    ("per_image KEY CIDEr", "1" + "0" * 250, "CIDEr of picture KEY is 10.*, not a number"),
    ("per_image KEY CIDEr", "9.5", "CIDEr is .*, but its pictures give .*; remove"),
    ("metrics CIDEr", "-Infinity", "CIDEr is -Infinity, not a number; remove"),
    ("bleu_counts KEY", "[1, 2, 3]", "'bleu_counts' of picture KEY must be 10 numbers from 0, not"),
    ("bleu_counts KEY 2", "-1", "'bleu_counts' of picture KEY must be 10 numbers from 0, not"),
    ("bleu_counts KEY 2", "null", "'bleu_counts' of picture KEY must be 10 numbers from 0, not")])
def test_a_damaged_score_file_is_named_with_picture_and_metric(
        folder: Path, tmp_path: Path, place: str, value: str, message: str) -> None:
    scores = read_json(folder / "good_scores.json")
    key = list(scores["per_image"])[7]
    *above, last = [int(part) if part.isdigit() else part.replace("KEY", key)
                    for part in place.split()]
    functools.reduce(operator.getitem, above, scores)[last] = "HERE"
    broken = tmp_path / "b.json"
    broken.write_text(json.dumps(scores).replace('"HERE"', value))
    with pytest.raises(UserError, match=f"^{broken}: {message.replace('KEY', key)}"):
        main(["compare", str(folder / "good_scores.json"), str(broken)])


def test_the_same_references_in_another_order_compare(folder: Path, tmp_path: Path) -> None:
    """Neither the order of pictures nor that of a picture's references changes a score."""
    write_json(tmp_path / "refs.json", read_json(folder / "refs.json")[::-1])
    scores = str(tmp_path / "scores.json")
    main([str(tmp_path / "refs.json"), str(folder / "good.json"), *METRICS, "--json", scores])
    out = tmp_path / "found.json"
    assert main(["compare", str(folder / "good_scores.json"), scores, "--json", str(out)]) == 0
    for row in read_json(out)["metrics"].values():
        assert row["difference"] == pytest.approx(0, abs=1e-12)
        assert (row["p_value"], row["better"]) == (1.0, None)


def cut_to(folder: Path, out: Path, name: str, pictures: int) -> str:
    """Scores of the first pictures, as `name` captioned them."""
    results = read_json(folder / f"{name}.json")[:pictures]
    write_json(out / f"{name}.json", results)
    scores = str(out / f"{name}_{pictures}.json")
    assert main([str(folder / "refs.json"), str(out / f"{name}.json"), "--subset", *METRICS,
                 "--json", scores]) == 0
    return scores


@pytest.mark.parametrize(("pictures", "verdict", "warned"), [
    (1, "no verdict: it takes 10 pictures at least", True),
    (9, "no verdict: it takes 10 pictures at least", True),
    (12, "B is better by Bleu_1", True), (50, "B is better by Bleu_1", False)])
def test_few_pictures_give_a_warning_and_fewer_no_verdict(
        folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: int,
        verdict: str, warned: bool) -> None:
    files = [cut_to(folder, tmp_path, name, pictures) for name in ("poor", "good")]
    warning = "intervals of fewer than 50 pictures are unreliable"
    assert (warning in capsys.readouterr().out) == warned  # of single scores too
    assert main(["compare", *files, "--json", str(tmp_path / "found.json")]) == 0
    told = capsys.readouterr().out
    assert verdict in told
    assert (warning in told) == warned
    if pictures == 1:
        found = read_json(tmp_path / "found.json")["metrics"]
        assert {row["p_value"] for row in found.values()} == {1.0}
        assert {row["better"] for row in found.values()} == {None}


def test_a_difference_that_is_printed_as_zero_is_none(
        folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without four words in a row BLEU-4 is about 1e-5, but not quite equal."""
    references = [{"image_id": number, "caption": "a b c d e f"} for number in range(20)]
    write_json(tmp_path / "refs.json", references)
    for name, caption in (("a", "a x b y c z"), ("b", "a x b y c d")):
        write_json(tmp_path / f"{name}.json", [{**row, "caption": caption} for row in references])
    main(["compare", *(str(tmp_path / f"{name}.json") for name in "ab"), "--refs",
          str(tmp_path / "refs.json"), "--metrics", "bleu"])
    told = capsys.readouterr().out
    assert "Bleu_4      0.000    0.000   +0.000" in told
    assert "B is better by Bleu_1, Bleu_2 (p < 0.05)" in told


@pytest.mark.parametrize("resamples", ["1", "199", "100001"])
def test_too_few_and_too_many_resamples_are_refused(resamples: str) -> None:
    with pytest.raises(UserError, match=f"--resamples {resamples}: give 200 to 100,000"):
        main(["compare", "a.json", "b.json", "--resamples", resamples])


def test_results_files_need_references(folder: Path) -> None:
    with pytest.raises(UserError, match="add --refs REFS.json to compare two results files"):
        main(["compare", str(folder / "good.json"), str(folder / "poor.json")])


def test_missing_pictures_are_an_error_or_a_subset(folder: Path, tmp_path: Path) -> None:
    few = [{**row, "image_id": int(row["image_id"])} for row in read_json(folder / "good.json")[:9]]
    write_json(tmp_path / "few.json", few)
    command = [str(folder / "refs.json"), str(tmp_path / "few.json"), *METRICS]
    with pytest.raises(UserError, match="no caption for pictures .* and 48 more"):
        main(command)
    out = tmp_path / "scores.json"
    assert main([*command, "--subset", "--json", str(out)]) == 0
    assert read_json(out)["pictures"] == 9


def test_floor_and_oracle_are_rows_beside_the_scores(
        folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = tmp_path / "train.csv"
    train.write_text("image,caption\n1.jpg,a man riding a wave\n")
    assert main([str(folder / "refs.json"), str(folder / "good.json"), *METRICS, "--floor",
                 str(train), "--oracle", "8", "--json", str(tmp_path / "scores.json")]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()[1:6]] == [
        "good.json", "95", "95", "floor", "oracle"]
    assert "% of the references have more than 8 words" in told
    assert "oracle: first references, cut to 8 words" in told
    scores = read_json(tmp_path / "scores.json")
    assert scores["floor"]["caption"] == "a man riding a wave"
    assert scores["floor"]["metrics"]["CIDEr"] < scores["metrics"]["CIDEr"] < scores[
        "oracle"]["metrics"]["CIDEr"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--run", "a", "--follow", "b"], "give one of them, or two files"),
    (["--run", "a", "--oracle", "8"], "are for two files"),
    (["--follow", "a", "--json", "b"], "leave out --json"),
    (["compare", "a", "b", "--subset"], "--subset is for two results files"),
    (["--follow", "/nowhere"], "no run folder at /nowhere")])
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)
