"""What a run has taken: what scorers keep of their CPU time, and what the report shows.

    python -m pytest tests/test_costs.py
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from blip_art.files import RunDir, read_json, write_json, write_jsonl, write_text
from blip_art.report.tables import read_runs, write_tables
from blip_art.score.cpu_time import Count, counted, read_cpu_hours
from tests.report_runs import Page, html_of, make_run, train_line

JOB = {"SLURM_JOB_ID": "13", "SLURM_CPUS_ON_NODE": "8", "SLURM_RESTART_COUNT": "1"}


def test_a_scorer_keeps_its_time_beside_that_of_others(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = RunDir(tmp_path), [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    Count(run).write()
    assert not run.cpu_time.exists()  # nothing was scored: a run that is empty stays so
    write_json(run.scores("val", 0), {})
    count = Count(run, JOB)
    ask = count.while_asking(lambda: "end")
    now[0] += 200
    assert (ask(), run.cpu_time.exists()) == ("end", False)
    now[0] += 1600
    assert ask() == "end"
    assert read_json(run.cpu_time)["job 13, start 1"]["cpus"] == 8
    assert read_cpu_hours(run) == 0.5 * 8
    with pytest.raises(KeyboardInterrupt), counted(run):
        raise KeyboardInterrupt
    here, = set(read_json(run.cpu_time)) - {"job 13, start 1"}
    # Outside of Slurm only what was computed is known.
    cpu_s = read_json(run.cpu_time)[here]["cpu_seconds"]
    assert cpu_s > 0
    assert read_cpu_hours(run) == 0.5 * 8 + cpu_s / 3600


@pytest.mark.parametrize("content", ["{half", "[]", '{"job 1": 3}', '{"job 1": {"seconds": "1"}}'])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path / "run")
    write_text(run.cpu_time, content)
    assert read_cpu_hours(run) is None
    assert read_runs([run])[0].scoring_cpu_hours is None
    Count(run, JOB).write()
    assert "job 13, start 1" in read_json(run.cpu_time)


def test_the_report_shows_what_a_run_took(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old"), make_run(tmp_path / "new")
    write_jsonl(new.train_log, [
        {**train_line(epoch), "gpu_memory_gb": 12.14, "host_memory_gb": 20.0 + epoch,
         "data_wait_share": share} for epoch, share in enumerate((0.4, 0.1, 0.1))])
    write_json(new.cpu_time, {"job 13, start 0": {"seconds": 3600, "cpus": 8, "cpu_seconds": 99}})
    assert "What it took" not in Page(html_of(old)).text
    page = Page(html_of(old, new)).text
    assert "What it took" in page
    for value in ("20.0 %", "12.1", "22.0", "8.00"):
        assert value in page.split("What it took")[1].split("Every epoch")[0]
    write_tables(read_runs([old, new]), tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/runs.csv").read_text())))
    assert [row["scoring_cpu_hours"] for row in rows] == ["", "8.0"]
    assert [row["host_memory_gb"] for row in rows] == ["", "22.0"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/epochs.csv").read_text())))
    assert [row["data_wait_share"] for row in rows] == ["", "", "", "0.4", "0.1", "0.1"]
