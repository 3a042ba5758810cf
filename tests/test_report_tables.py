"""Run folders as tables: what they hold is there, what they lack is named.

    python -m pytest tests/test_report_tables.py
"""

from __future__ import annotations

import csv
import io
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip_art.config import config_from_dict, dump_config
from blip_art.files import RunDir, read_json, write_json, write_jsonl, write_text
from blip_art.report.tables import (
    METRICS,
    Best,
    comparable_groups,
    read_runs,
    run_rows,
    write_tables,
)
from blip_art.score.references import references_hashes, same_references
from tests.report_runs import (
    PICTURES,
    Page,
    described,
    html_of,
    make_run,
    predict,
    scores_of,
    train_line,
)


def test_epochs_csv_gives_back_what_the_run_wrote(tmp_path):
    run = make_run(tmp_path / "joined")
    write_tables(read_runs([run]), tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/epochs.csv").read_text())))
    for epoch, row in enumerate(rows):
        scores = read_json(run.scores("val", epoch))["metrics"]
        assert {m: float(row[f"val_{m}"]) for m in METRICS} == scores
        assert {k: float(row[k]) for k in train_line(0)} == train_line(epoch)
    assert [row["best"] for row in rows] == ["False", "True", "False"]
    assert [row["missing"] for row in rows] == ["", "", ""]


def test_runs_csv_holds_the_best_epoch_and_its_floor(tmp_path):
    write_tables(read_runs([make_run(tmp_path / "joined")]), tmp_path / "out")
    row, = csv.DictReader(io.StringIO((tmp_path / "out/runs.csv").read_text()))
    assert (row["run"], row["state"], row["epochs"], row["best_epoch"]) == (
        "joined", "finished", "3", "1")
    assert float(row["val_SPICE"]) == 0.5 * 8 / 10
    assert float(row["floor_val_SPICE"]) == 0.1 * 8 / 10
    assert float(row["seconds"]) == 3 * 80.5


def test_runs_csv_holds_intervals_oracle_and_what_captions_are_like(tmp_path):
    run = make_run(tmp_path / "joined", levels=(0.5,))
    write_json(run.scores("val", 0), scores_of(0.5, **described(0.5)))
    write_json(run.oracle_scores("val"), scores_of(0.9, max_tokens=16))
    write_tables(read_runs([run]), tmp_path / "out")
    row, = csv.DictReader(io.StringIO((tmp_path / "out/runs.csv").read_text()))
    assert float(row["val_SPICE_low"]) == pytest.approx(0.39)
    assert float(row["val_SPICE_high"]) == pytest.approx(0.41)
    assert float(row["oracle_val_SPICE"]) == 0.9 * 8 / 10
    assert row["floor_val_SPICE_low"] == ""
    assert (row["val_empty_share"], row["val_most_frequent"]) == ("0.25", "a ship & a <sun>")


@pytest.mark.parametrize("text", [
    '=HYPERLINK("http://a.b","x")', "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1"])
def test_no_text_in_csv_is_a_formula(tmp_path, text):
    """Every text of a user's: a run's name, why it ended, a caption, a metric of another tool."""
    run = make_run(tmp_path / "-joined", levels=(0.5,))
    write_json(run.state, {"state": "failed", "why": text, "epochs": 1})
    scores = scores_of(0.5, **described(0.5))
    scores["captions"]["most_frequent"] = text
    scores["metrics"]["Bleu_1"] = -0.25
    scores["metrics"]["=1+1"] = 1.0
    write_json(run.scores("val", 0), scores)
    written = (tmp_path / "out/runs.csv", tmp_path / "out/epochs.csv")
    write_tables(read_runs([run]), tmp_path / "out")
    cells = [cell for path in written for row in csv.reader(io.StringIO(
        path.read_bytes().decode(), newline="")) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n＝") and cell != "-0.25"]
    assert "-0.25" in cells  # numbers stay numbers
    assert cells.count(f"'{text}") == 2  # read back: one apostrophe less


@pytest.mark.parametrize("intervals", [None, [], {"SPICE": None}, {"SPICE": [0.1]},
                                       {"SPICE": ["low", "high"]}])
def test_odd_intervals_and_statistics_are_left_out(tmp_path, intervals):
    run = make_run(tmp_path / "joined", levels=(0.5,))
    write_json(run.scores("val", 0), scores_of(0.5, intervals=intervals, captions=[]))
    scores = read_runs([run])[0].best_scores("val")
    assert scores is not None
    assert (scores.intervals, scores.shares) == ({}, {})


def test_report_json_holds_rows_and_holes(tmp_path):
    run = make_run(tmp_path / "joined")
    run.scores("val", 2).unlink()
    write_tables(read_runs([run]), tmp_path / "out")
    report = read_json(tmp_path / "out/report.json")
    assert [row["val_CIDEr"] for row in report["epochs"]][2] is None
    assert report["missing"] == {"joined": ["epoch 02, val: captions are there, not scored"]}


def test_best_json_decides_the_best_epoch(tmp_path):
    run = make_run(tmp_path / "joined", levels=(0.5, 0.5))
    write_json(run.best, {"epoch": 1, "rule": "spice", "value": 0.4})
    read, = read_runs([run])
    assert read.best == Best(1, "spice", 0.4)
    assert read.missing == ()


def test_best_json_that_later_scores_overtook_is_named(tmp_path):
    run = make_run(tmp_path / "joined", levels=(0.2, 0.5))
    write_json(run.best, {"epoch": 0, "rule": "spice", "value": 0.16})
    assert "best.json names epoch 00, but by its rule (spice) epoch 01 is better now; score the " \
           "run again to bring it up to date" in read_runs([run])[0].missing


def test_without_best_json_the_configured_rule_decides(tmp_path):
    run = make_run(tmp_path / "joined", levels=(0.2, 0.5))
    spice_best = scores_of(0.2)
    spice_best["metrics"]["SPICE"] = 0.9
    write_json(run.scores("val", 0), spice_best)
    assert run_rows(read_runs([run]))[0]["best_epoch"] == 1
    write_text(run.config, dump_config(config_from_dict({"score": {"best": "spice"}})))
    assert read_runs([run])[0].best == Best(0, "spice", 0.9)


def test_an_epoch_without_a_part_of_the_rule_is_never_best(tmp_path):
    run = make_run(tmp_path / "joined", levels=(0.2, 0.9))
    scores = scores_of(0.9, failed={"cider": "out of memory"})
    del scores["metrics"]["CIDEr"]
    write_json(run.scores("val", 1), scores)
    row, = run_rows(read_runs([run]))
    assert row["best_epoch"] == 0
    assert read_runs([run])[0].missing == ("epoch 01, val: cider failed: out of memory",)


@pytest.mark.parametrize(("damage", "hole"), [
    (lambda run: run.predictions("val", 1).unlink() or run.scores("val", 1).unlink(),
     "epoch 01, val: not captioned"),
    (lambda run: run.floor_scores("val").unlink(), "val: no floor (scores/floor_val.json)"),
    (lambda run: run.state.unlink(), "state.json: whether the run ended is not known"),
    (lambda run: write_jsonl(run.train_log, [train_line(0), train_line(2)]),
     "epoch 01, train: not in train.jsonl"),
    (lambda run: write_jsonl(run.train_log, [train_line(e) for e in (0, 1, 1, 2)]),
     "train.jsonl: epoch 01 is there twice; the last line counts"),
    (lambda run: write_json(run.scores("val", 1), scores_of(0.5, pictures=3)),
     "epoch 01, val: 3 of 4 pictures scored"),
    (lambda run: write_json(run.scores("val", 1), scores_of(0.5, metrics={"CIDEr": 1.0})),
     "epoch 01, val: SPICE is not in the score file, which does not say why"),
    (lambda run: run.scores("val", 1).write_text('{"metrics": {"SPICE": NaN}}'),
     "epoch 01, val: SPICE failed: it is not a number"),
    (lambda run: predict(run, 1, "test"), "epoch 01, test: captions are there, not scored"),
    (lambda run: write_json(run.state, {"state": "failed", "why": "NCCL", "epochs": 10}),
     "7 of 10 epochs: not trained, the run is failed (NCCL)")])
def test_a_hole_is_named(tmp_path, damage, hole):
    run = make_run(tmp_path / "joined")
    damage(run)
    assert hole in read_runs([run])[0].missing
    assert f"joined: {hole}" in Page(html_of(run)).text


@settings(max_examples=30, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trained=st.sets(st.integers(0, 4)), predicted=st.sets(st.integers(0, 4)),
       scored=st.dictionaries(st.integers(0, 4), st.floats(0.01, 1)))
def test_every_empty_cell_has_a_reason_and_no_cell_is_invented(tmp_path_factory, trained,
                                                               predicted, scored):
    folder = tmp_path_factory.mktemp("run")
    run = RunDir(folder / "run")
    write_json(run.state, {"state": "running", "epochs": 5})
    write_jsonl(run.train_log, [train_line(epoch) for epoch in sorted(trained)])
    for epoch in predicted:
        predict(run, epoch)
    for epoch, level in scored.items():
        write_json(run.scores("val", epoch), scores_of(level, epoch))
    write_tables(read_runs([run]), folder)
    rows = {row["epoch"]: row for row in read_json(folder / "report.json")["epochs"]}
    assert set(rows) >= trained | predicted | set(scored)
    for epoch, row in rows.items():
        written = scores_of(scored[epoch])["metrics"]["SPICE"] if epoch in scored else None
        assert row.get("val_SPICE") == written
        assert (row["loss"] is None) == (epoch not in trained)
        assert (written is None) == ("val:" in row["missing"])
        assert not trained or (row["loss"] is None) == ("train:" in row["missing"])


def with_references(run, order, **scored_against):
    """The run's one picture with two captions in this order, and a score file that says so."""
    write_json(run.references("val"), [{"image_id": "a1", "caption": text} for text in order])
    write_json(run.scores("val", 0), scores_of(0.5, pictures=1, references=scored_against or
                                               references_hashes({"a1": order})))
    return run


def test_the_report_groups_runs_as_compare_does(tmp_path):
    """The same captions of a picture in another order compare, others do not."""
    runs = [with_references(make_run(tmp_path / name, (0.5,)), order) for name, order in (
        ("one", ["sun", "tree"]), ("two", ["tree", "sun"]), ("three", ["sun", "sun"]))]
    one, two, three = (read_json(run.scores("val", 0))["references"] for run in runs)
    assert (same_references(one, two), same_references(one, three)) == (True, False)
    groups = comparable_groups(read_runs(runs))
    assert [[run.name for run in group] for group in groups] == [["one", "two"], ["three"]]
    runs[1].references("val").unlink()  # what its scores say of them is enough
    runs[1].score_summaries.unlink()
    assert len(comparable_groups(read_runs(runs))[0]) == 2


def test_a_run_that_an_older_version_scored_is_in_the_same_group(tmp_path):
    new = with_references(make_run(tmp_path / "new", (0.5,)), ["tree", "sun"])
    old = make_run(tmp_path / "old", (0.5,))
    with_references(old, ["tree", "sun"],
                    sha256=references_hashes({"a1": ["tree", "sun"]})["sha256"])
    old.references("val").unlink()
    other_order = with_references(make_run(tmp_path / "other", (0.5,)), ["sun", "tree"])
    scores = read_json(old.scores("val", 0))
    scores["references"]["count"] = 2
    write_json(old.scores("val", 0), scores)
    for runs in itertools.permutations([new, old, other_order]):
        assert len(comparable_groups(read_runs(runs))) == 1


def test_scores_against_other_references_are_named(tmp_path):
    run = with_references(make_run(tmp_path / "joined", (0.5,)), ["sun"], sha256="0")
    assert read_runs([run])[0].missing[0] == (
        "epoch 00, val: scored against other references than the run has now; score it again")


def test_test_scores_of_the_best_epoch_alone_are_no_hole(tmp_path):
    run = make_run(tmp_path / "joined")
    predict(run, 1, "test")
    write_json(run.scores("test", 1), scores_of(0.6, 1, "test"))
    write_json(run.floor_scores("test"), scores_of(0.1, caption="sun."))
    write_json(run.references("test"), {"annotations": [
        {"image_id": i, "caption": "sun."} for i in PICTURES]})
    read, = read_runs([run])
    assert read.missing == ()
    assert run_rows([read])[0]["test_SPICE"] == scores_of(0.6)["metrics"]["SPICE"]
    assert "Results on test" in Page(html_of(run)).text


def test_total_time_is_unknown_when_an_epoch_is(tmp_path):
    run = make_run(tmp_path / "joined")
    write_jsonl(run.train_log, [train_line(0), {"epoch": 1, "loss": 2.0}, train_line(2)])
    assert run_rows(read_runs([run]))[0]["seconds"] is None


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / "monday" / "joined"), make_run(tmp_path / "friday" / "joined")]
    assert [run.name for run in read_runs(runs)] == ["monday/joined", "friday/joined"]
    assert len(read_runs([runs[0], runs[0]])) == 1
