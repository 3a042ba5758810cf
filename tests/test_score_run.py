"""A run folder's predictions are scored once, beside the floor, and the best epoch is kept.

    python -m pytest tests/test_score_run.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, write_json, write_text
from blip_art.retention import prune_weights
from blip_art.score import metrics
from blip_art.score.__main__ import main
from blip_art.score.baselines import most_frequent_caption
from blip_art.score.engine import Engine
from blip_art.score.run import score_run, write_best
from blip_art.score.summary import PER_PICTURE, Summaries
from blip_art.score.workers import MetricFailed
from tests.score_data import write_vocabulary

METRICS = ["bleu", "cider"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(threads=1) as engine:
        yield engine


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two epochs of two pictures; the references' ids are numbers, the predictions' text."""
    run = RunDir(tmp_path / "run")
    write_text(run.config, f"data: {{annotations: {tmp_path}, train: train.json}}\n"
                           f"model: {{tokenizer: {tmp_path}}}\n"
                           "score: {metrics: [bleu, cider]}\n")
    write_json(tmp_path / "train.json", [
        {"image": f"{name}.jpg", "caption": caption, "image_id": name}
        for name, caption in (("a", "a ship at sea"), ("b", "a lion"), ("c", "a lion"))])
    write_vocabulary(tmp_path)
    write_json(run.references("val"), {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a lion, a tree and a crown"},
                        {"id": 2, "image_id": 2, "caption": "a ship at sea, a sun"}]})
    predict(run, 0, "a tree", "a ship")
    predict(run, 1, "a lion, a tree and a crown", "a ship at sea")
    return run


def predict(run: RunDir, epoch: int, first: str, second: str) -> None:
    write_json(run.predictions("val", epoch), [
        {"image_id": "1", "caption": first}, {"image_id": "2", "caption": second}])


def test_every_epoch_the_floor_and_the_best_are_written(run: RunDir, engine: Engine) -> None:
    written = score_run(run, engine)
    assert [path.name for path in written] == [
        "floor_val.json", "val_00.json", "val_01.json", "oracle_val.json"]
    scores = read_json(run.scores("val", 1))
    assert (scores["split"], scores["epoch"], scores["pictures"]) == ("val", 1, 2)
    assert set(scores["per_image"]["1"]) == set(scores["metrics"])
    assert read_json(run.floor_scores("val"))["caption"] == "a lion"
    best = read_json(run.best)
    assert (best["epoch"], best["rule"]) == (1, "cider+bleu_4")
    assert best["value"] == scores["metrics"]["CIDEr"] + scores["metrics"]["Bleu_4"]


def test_what_is_scored_is_left_alone(run: RunDir, engine: Engine) -> None:
    score_run(run, engine)
    before = [path.stat().st_mtime_ns for path in sorted(run.path.rglob("*.json"))]
    assert score_run(run, engine) == []
    assert [path.stat().st_mtime_ns for path in sorted(run.path.rglob("*.json"))] == before


def test_the_summaries_beside_the_scores_are_of_these_files(
        run: RunDir, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    score_run(run, engine)
    predict(run, 1, "a lion", "a ship")
    score_run(run, engine)
    whole = {path: read_json(path) for path in run.score_files()}
    monkeypatch.setattr("blip_art.score.summary.read_head", None)  # no score file is opened
    summaries = Summaries(run)
    for path, scores in whole.items():
        assert summaries.of(path) == {k: v for k, v in scores.items() if k not in PER_PICTURE}
    assert summaries.references(run.references("val"))["pictures"] == 2
    assert len(whole) == 4


def test_new_predictions_and_a_new_metric_are_scored(run: RunDir, engine: Engine) -> None:
    score_run(run, engine)
    predict(run, 1, "nothing", "of that")
    assert [path.name for path in score_run(run, engine)] == ["val_01.json"]
    assert read_json(run.best)["epoch"] == 0
    written = score_run(run, engine, [*METRICS, "rouge_l"])
    assert len(written) == 4


def test_other_metrics_are_added_to_those_a_file_has(run: RunDir, engine: Engine) -> None:
    score_run(run, engine)
    before, best = read_json(run.scores("val", 1))["metrics"], read_json(run.best)
    assert len(score_run(run, engine, ["rouge_l"])) == 4
    after = read_json(run.scores("val", 1))["metrics"]
    assert after == {**before, "ROUGE_L": after["ROUGE_L"]}
    assert read_json(run.best) == best
    assert score_run(run, engine, ["rouge_l"]) == []


def test_a_value_is_not_lost_when_its_metric_fails_the_next_time(
        run: RunDir, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(texts: object, engine: object) -> metrics.Outcome:
        raise MetricFailed("no memory")
    score_run(run, engine)
    before = read_json(run.scores("val", 1))
    monkeypatch.setitem(metrics.METRICS, "cider", failing)
    with pytest.raises(UserError, match=r"stays as it was: cider, .* \(no memory\)"):
        score_run(run, engine, ["rouge_l"])
    assert read_json(run.scores("val", 1)) == before


def test_without_training_captions_there_is_no_floor(
        run: RunDir, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path.parent / "train.json").unlink()
    assert [path.name for path in score_run(run, engine)] == [
        "val_00.json", "val_01.json", "oracle_val.json"]
    assert "no floor for val: the training captions are not at" in capsys.readouterr().err


def test_the_oracle_is_cut_to_the_tokens_that_the_prompt_leaves(
        run: RunDir, engine: Engine) -> None:
    """max_length 10 leaves 6 after [DEC] and 'a picture of', and the comma is one of them."""
    with run.config.open("a") as file:
        file.write("generate: {max_length: 10}\n")
    # As an older version wrote it: cut to 6 words, which were whole here.
    write_json(run.oracle_scores("val"), {
        "split": "val", "max_words": 6, "metrics": {"Bleu_4": 1.0, "CIDEr": 9.0}, "failed": {},
        "seconds": {"bleu": 0.1, "cider": 0.1}, "references": read_references_of(run, engine)})
    assert run.oracle_scores("val") in score_run(run, engine)
    found = read_json(run.oracle_scores("val"))
    assert (found["max_tokens"], found["captions"]["mean_words"]) == (6, 5)  # without the comma
    assert "max_words" not in found
    references = read_json(run.scores("val", 0))["references"]
    assert (references["max_tokens"], references["longer_share"]) == (6, 1)
    assert score_run(run, engine) == []


def read_references_of(run: RunDir, engine: Engine) -> dict[str, str]:
    """What a score file says of the run's references."""
    score_run(run, engine)
    found: dict[str, str] = read_json(run.scores("val", 0))["references"]
    run.scores("val", 0).unlink()
    return found


@pytest.mark.parametrize(("breaks", "message"), [
    (lambda folder: (folder / "vocab.txt").unlink(), "has no vocab.txt or tokenizer.json"),
    (lambda folder: (folder / "vocab.txt").write_text("a\nb\n"), r"has no \[PAD\], \[UNK\]"),
    (lambda folder: (folder / "run/config.yaml").write_text(
        (folder / "run/config.yaml").read_text().replace(f"tokenizer: {folder}", "tokenizer: no/x")
    ), "no tokenizer 'no/x'")])
def test_without_the_runs_tokenizer_there_is_no_oracle_and_the_rest_is_scored(
        run: RunDir, engine: Engine, capsys: pytest.CaptureFixture[str],
        breaks: Callable[[Path], object], message: str) -> None:
    breaks(run.path.parent)
    assert [path.name for path in score_run(run, engine)] == [
        "floor_val.json", "val_00.json", "val_01.json"]
    [line] = [line for line in capsys.readouterr().err.splitlines() if "oracle" in line]
    assert re.match(f"no oracle for val: .*{message}", line)
    assert "longer_share" not in read_json(run.scores("val", 0))["references"]


def test_an_epoch_without_the_rules_metric_is_not_the_best(
        run: RunDir, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    score_run(run, engine)
    assert write_best(run, "spice") is None
    assert "val_01.json has no SPICE" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(UserError, match=r"is no run folder \(it has no config.yaml\)"):
        score_run(RunDir(tmp_path), engine)


def test_the_most_frequent_caption_counts_lists_too(tmp_path: Path) -> None:
    write_json(tmp_path / "train.json", [
        {"image": "1.jpg", "caption": ["a", "b"]}, {"image": "2.jpg", "caption": "b"}])
    assert most_frequent_caption(tmp_path / "train.json") == "b"


def test_half_a_character_in_the_training_captions_is_no_end(
        run: RunDir, engine: Engine) -> None:
    (run.path.parent / "train.json").write_text(
        json.dumps([{"image": "a.jpg", "caption": "a \ud83d lion"}]))
    score_run(run, engine)
    assert read_json(run.floor_scores("val"))["caption"] == "a \ufffd lion"


def test_half_a_character_reaches_no_file_and_no_screen(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The most frequent caption is told, of captions and of the training list."""
    refs, scores = tmp_path / "refs.json", tmp_path / "scores.json"
    refs.write_text(json.dumps([{"image_id": 1, "caption": "a \ud83d lion"}]))
    assert main([str(refs), str(refs), "--metrics", "bleu", "--floor", str(refs),
                 "--json", str(scores)]) == 0
    assert read_json(scores)["captions"]["most_frequent"] == "a \ufffd lion"
    assert capsys.readouterr().out.encode().count("a \ufffd lion".encode()) == 2


@pytest.mark.parametrize(("keep", "left"), [
    ("best_last", [0, 1, 2, 4]), ("all", [0, 1, 2, 3, 4])])
def test_weights_stay_until_their_epoch_could_have_been_the_best(
        run: RunDir, keep: str, left: list[int]) -> None:
    """Epoch 0 lacks CIDEr, which failed; 1 was cut short; 2 is the best, 4 the last."""
    write_json(run.best, {"epoch": 2, "rule": "cider", "value": 1.0})
    run.checkpoints.mkdir()
    for epoch, found in enumerate(({"Bleu_4": 1.0}, None, {"CIDEr": 1.0}, {"CIDEr": 0.5},
                                   {"CIDEr": 0.4})):
        run.weights(epoch).touch()
        write_json(run.scores("val", epoch), {"metrics": found})
    prune_weights(run, keep)
    assert run.saved_epochs() == left


@pytest.mark.parametrize("broken", ["[]", "{", '{"metrics": [], "failed": {}}', "\x00"])
def test_broken_files_in_a_run_are_made_again(run: RunDir, engine: Engine, broken: str) -> None:
    score_run(run, engine)
    best = read_json(run.best)
    for path in (run.best, run.scores("val", 0), run.floor_scores("val")):
        write_text(path, broken)
    write_text(run.scores("val", 7), broken)  # its captions are gone
    assert [path.name for path in score_run(run, engine)] == ["floor_val.json", "val_00.json"]
    assert read_json(run.best) == best


@pytest.mark.parametrize(("name", "content", "message"), [
    ("config.yaml", "score: {metrics: [bert]}", "score.metrics must be some of bleu"),
    ("references/val.json", '{"images": [{"id": 1}], "annotations": []}',
     "no reference caption for picture 1"),
    ("predictions/val_01.json", '7', "must hold a list of {image_id, caption}"),
    ("../train.json", "{", "train.json, line 1: not valid JSON")])
def test_a_wrong_file_of_a_run_is_named(
        run: RunDir, engine: Engine, name: str, content: str, message: str) -> None:
    write_text(run.path / name, content)
    with pytest.raises(UserError, match=message):
        score_run(run, engine)
