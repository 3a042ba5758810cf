"""What has become of a run: one answer for status, report, scorer, sweep, resume and demo.

    python -m pytest tests/test_run_state.py
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.status import survey
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text
from blip_art.report.__main__ import build
from blip_art.report.tables import read_runs
from blip_art.run_state import (
    Best,
    State,
    all_scored,
    choose_best,
    is_finished,
    read_best,
    read_state,
    rule_value,
    sha256_of,
    unscored,
)
from blip_art.score.claims import TABLE, Claims
from blip_art.score.lock import taken
from blip_art.score.parse_cache import text_key
from blip_art.score.summary import PER_PICTURE, Summaries, summary_first
from blip_art.work import cancelled_note

SCORES = {"split": "val", "epoch": 0, "metrics": {"SPICE": 0.5}, "failed": {},
          "per_image": {"a": {"SPICE": 0.5}}, "spice_counts": {"a": {"All": [1, 0, 0]}},
          "references": {"sha256": "0"}, "intervals": {"SPICE": [0.4, 0.6]}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """One epoch, captioned and scored."""
    run = RunDir(tmp_path / "run")
    write_json(run.predictions("val", 0), [{"image_id": "a", "caption": "a lion"}])
    write_scores(run)
    return run


def write_scores(run: RunDir, **changed: Any) -> None:
    write_json(run.scores("val", 0), summary_first({**SCORES, **changed}))


PLACES = ("config", "state", "train_log", "manifest", "best", "training_lock", "score_summaries")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("place", [*PLACES, "predictions", "scores", "cancelled"])
def test_a_pipe_in_a_run_folder_does_not_hang_its_readers(run: RunDir, place: str) -> None:
    path = (cancelled_note(run) if place == "cancelled" else getattr(run, place)
            if place in PLACES else getattr(run, place)("val", 0))
    path.parent.mkdir(exist_ok=True)
    if place == "predictions":  # is it what was scored?
        os.utime(run.scores("val", 0), (1, 1))
    if place != "state":
        write_json(run.state, {"state": "running" if place == "training_lock" else "finished"})
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    [row] = survey([run], Slurm(lambda argv: Completed(0, "")))[0]
    assert row.state in ("finished", "running", "unreadable")
    with contextlib.suppress(UserError):
        runs = read_runs([run.path])
        if place in ("config", "manifest"):  # which the page shows
            build(runs, str(run.path / "report"))


# State -------------------------------------------------------------------------------------


def test_a_state_is_read_and_a_run_that_never_started_has_none(run: RunDir) -> None:
    assert read_state(run) == State("")
    write_json(run.state, {"state": "finished", "why": None, "epoch": 9, "epochs": "ten"})
    assert read_state(run) == State("finished", epoch=9)
    assert is_finished(run)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"{\"state\": 5}", b"[" * 100_000])
def test_a_damaged_state_is_told_in_one_line(run: RunDir, damage: bytes) -> None:
    run.state.write_bytes(damage)
    state = read_state(run)
    assert (state.name, state.damaged) == ("unreadable", True)
    assert "state.json" in state.why
    assert "\n" not in state.why
    assert not is_finished(run)


# Scores ------------------------------------------------------------------------------------


def test_captions_are_scored_when_the_scorer_would_leave_them_alone(run: RunDir) -> None:
    assert all_scored(run)
    write_scores(run, failed={"spice": "out of memory"})
    assert [row.epoch for row in unscored(run)] == [0]
    write_scores(run)
    write_json(run.predictions("test", 3), [])
    assert [row[:2] for row in unscored(run)] == [("test", 3)]
    assert not all_scored(run)


def test_scores_of_older_captions_are_none_and_a_copied_folder_is_not_older(run: RunDir) -> None:
    captions = run.predictions("val", 0)
    write_scores(run, predictions=sha256_of(captions))
    os.utime(run.scores("val", 0), (1, 1))  # as a copy has it
    assert all_scored(run)
    write_json(captions, [{"image_id": "a", "caption": "a tree"}])
    assert len(unscored(run)) == 1


@pytest.mark.parametrize("bytes_left", [0, 1, 60, -2])
def test_a_score_file_that_was_cut_short_is_no_score(run: RunDir, bytes_left: int) -> None:
    scores = run.scores("val", 0)
    scores.write_bytes(scores.read_bytes()[:bytes_left])
    assert len(unscored(run)) == 1
    with pytest.raises(UserError, match="val_00.json, line 1: not valid JSON"):
        Summaries(run).of(scores)


# Summaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [SCORES, summary_first(SCORES)], ids=["older", "now"])
def test_a_summary_is_all_but_the_single_pictures_and_is_kept(
        run: RunDir, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.scores("val", 0)
    write_json(path, record)
    summaries = Summaries(run)
    said = summaries.of(path)
    assert said == {key: value for key, value in SCORES.items() if key not in PER_PICTURE}
    summaries.keep()
    monkeypatch.setattr("blip_art.score.summary.read_head", None)  # the file is not opened again
    assert Summaries(run).of(path) == said


def test_a_summary_of_a_file_that_was_replaced_is_not_believed(run: RunDir) -> None:
    path = run.scores("val", 0)
    summaries = Summaries(run)
    summaries.of(path)
    summaries.keep()
    size = path.stat().st_size
    write_scores(run, metrics={"SPICE": 0.6})
    assert path.stat().st_size == size
    assert Summaries(run).of(path)["metrics"] == {"SPICE": 0.6}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"val_00.json": 1}', '{"val_00.json": {}}'])
def test_damaged_summaries_are_made_again(run: RunDir, damage: str) -> None:
    write_text(run.score_summaries, damage)
    assert Summaries(run).of(run.scores("val", 0))["metrics"] == {"SPICE": 0.5}


def test_summaries_that_cannot_be_written_are_done_without(run: RunDir) -> None:
    run.score_summaries.mkdir()  # an error of the system, whoever we are
    summaries = Summaries(run)
    assert summaries.of(run.scores("val", 0))["metrics"] == {"SPICE": 0.5}
    summaries.keep()


# Best epoch --------------------------------------------------------------------------------


def test_the_first_of_equal_epochs_is_best() -> None:
    assert choose_best({2: 0.5, 1: 0.5, 0: 0.1}) == 1
    assert choose_best({}) is None


@pytest.mark.parametrize("metrics", [None, [], {}, {"CIDEr": 1.0}, {"CIDEr": 1.0, "Bleu_4": None},
                                     {"CIDEr": float("nan"), "Bleu_4": 0.2}])
def test_without_a_part_of_the_rule_there_is_no_value(metrics: Any) -> None:
    assert rule_value(metrics, "cider+bleu_4") is None


def test_what_the_scorer_chose_is_read_and_damage_is_told(run: RunDir) -> None:
    assert read_best(run) is None
    write_json(run.best, {"epoch": 3, "rule": "spice", "value": None})
    assert read_best(run) == Best(3, "spice", None)
    for damage in ("{", "[]", '{"epoch": "3"}', '{"epoch": true}', '{"epoch": 1, "rule": []}'):
        write_text(run.best, damage)
        with pytest.raises(UserError, match="best.json"):
            read_best(run)


def test_a_run_whose_process_is_gone_is_lost_where_slurm_cannot_be_asked(run: RunDir) -> None:
    write_json(run.state, {"state": "running"})
    with taken(run.training_lock):
        pass
    record_jobs(run, [Submitted("train", "7")])

    def no_slurm(argv: Any) -> Completed:
        raise FileNotFoundError

    [row], notes = survey([run], Slurm(no_slurm))
    assert (row.state, len(notes)) == ("lost", 1)


@pytest.mark.parametrize("owner", ["host", "", None, "host x y"])
def test_a_damaged_claim_of_a_parse_is_void(tmp_path: Path, owner: Any) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "parses")) as file, file:
        file.execute(TABLE)
        file.execute("INSERT INTO claims VALUES (?, ?, 100)", [text_key("v", "a lion"), owner])
    with Claims(tmp_path / "parses", "v", 1) as claims:
        assert claims.take(["a lion"]) == ["a lion"]
