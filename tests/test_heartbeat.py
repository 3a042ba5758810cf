"""How far a run is: what training notes, and what status makes of it.

    python -m pytest tests/test_heartbeat.py
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
import torch

from blip_art.cluster.heartbeat import describe_start, expected_start
from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.status import survey
from blip_art.files import RunDir, read_json, write_json, write_jsonl, write_text
from blip_art.train import heartbeat
from blip_art.train.heartbeat import Heartbeat, Waits


class Clock:
    """A clock that only goes when it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_the_rest_of_a_run_is_its_steps_and_its_captions(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, run, waits = Clock(monkeypatch), RunDir(tmp_path), Waits(torch.device("cpu"))
    beats = Heartbeat(run, epochs=3, steps=100, pictures_a_step=8, is_main=True)
    beats.begin_epoch(0)
    clock.now += 50  # the first step starts the loaders: it is no measure of the others
    beats.beat(1, waits)
    assert read_json(run.progress)["eta_s"] is None
    clock.now += 60
    waits.seconds = 11.0
    beats.beat(31, waits)
    said = read_json(run.progress)
    assert (said["step"], said["images_per_s"], said["data_wait_share"]) == (31, 4.0, 0.1)
    assert said["eta_s"] == 2.0 * (69 + 2 * 100)
    clock.now += heartbeat.BEAT_S - 1
    beats.beat(50, waits)
    assert read_json(run.progress)["step"] == 31
    beats.begin_captions(0)
    assert read_json(run.progress)["doing"] == "captioning"
    clock.now += 20
    beats.begin_epoch(1)
    clock.now += heartbeat.BEAT_S
    beats.beat(1, waits)
    step_s = (60 + 29) / 49
    assert read_json(run.progress)["eta_s"] == pytest.approx(step_s * 199 + 2 * 20)


class Note:
    """A note of a GPU that is never asked before it is there."""

    def __init__(self, at_ms: float) -> None:
        self.at_ms, self.done = at_ms, False

    def elapsed_time(self, later: Note) -> float:
        assert self.done
        assert later.done
        return later.at_ms - self.at_ms


def test_a_gpu_that_is_busy_does_not_wait_for_data() -> None:
    # By the GPU's clock: it waits 40 ms for the first batch, and is busy when the second comes.
    notes = [Note(at_ms) for at_ms in (0, 40, 90, 90, 150)]
    marks = iter(notes)
    waits = Waits(torch.device("cuda"), mark=lambda: next(marks))
    assert list(waits.batches(["a", "b"])) == ["a", "b"]
    for note in notes:
        note.done = True
    waits.settle()
    assert waits.seconds == 0.04


def test_a_run_goes_on_where_it_cannot_say_how_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    beats = Heartbeat(RunDir(tmp_path / "file"), 1, 10, 8, is_main=True)
    beats.begin_epoch(0)
    beats.beat(1, Waits(torch.device("cpu")))
    beats.end()


def make_run(folder: Path, **changed: object) -> RunDir:
    """A run that says it is in the middle of its third epoch, in the first start but one."""
    run = RunDir(folder / "art")
    site = folder / "site.yaml"
    write_text(site, "partition: gpu\n")
    record_jobs(run, [Submitted("train", "12", site=str(site)), Submitted("follow", "13")])
    write_json(run.state, {"state": "running", "why": "", "epochs": 10})
    write_json(run.progress, {
        "doing": "training", "epoch": 2, "epochs": 10, "step": 120, "steps": 541,
        "images_per_s": 210.4, "data_wait_share": 0.02, "eta_s": 7500.0, "restart": 1, **changed})
    return run


def queue_says(*lines: str) -> Slurm:
    return Slurm(lambda argv: Completed(0, "".join(f"{line}\n" for line in lines)
                                        if argv[0] == "squeue" else ""))


RUNNING = "12|12|RUNNING|None|10:00|1:00:00|N/A|v100-1|gpu|(null)"


def test_status_says_how_far_a_run_is(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.touch()
    os.utime(run.last_checkpoint, (time.time() - 245,) * 2)
    [row], _ = survey([run], queue_says(RUNNING))
    assert row.why == (
        "job 12 on v100-1, 1 h 0 min left; epoch 3/10 step 120/541, 210 pictures/s, "
        "2 h 5 min to go, checkpoint 4 min old, restart 1 of 20")
    assert row.heartbeat
    assert (row.heartbeat["eta_s"], row.heartbeat["checkpoint_age_s"]) == (7500, 245)


@pytest.mark.parametrize(("changed", "old_s", "text"), [
    ({"data_wait_share": 0.314}, 0,
     "210 pictures/s, 31 % of the time waiting for data, 2 h 5 min to go"),
    ({"images_per_s": None, "eta_s": None, "restart": 0}, 0,
     "left; epoch 3/10 step 120/541, no checkpoint yet"),
    ({"doing": "captioning"}, 240, "epoch 3/10, captioning for 4 min, 2 h 5 min to go, no"),
    ({}, 500, "epoch 3/10 step 120/541, no step for 8 min, no checkpoint yet, restart 1 of 20"),
    # Of the start before: this one began ten minutes ago.
    ({}, 700, "left"), ({"epoch": "two"}, 0, "left"), ({"step": None}, 0, "left")])
def test_what_a_run_says_is_taken_for_what_it_is(
        tmp_path: Path, changed: dict[str, object], old_s: int, text: str) -> None:
    run = make_run(tmp_path, **changed)
    os.utime(run.progress, (time.time() - old_s,) * 2)
    [row], _ = survey([run], queue_says(RUNNING))
    assert text in row.why
    assert (row.heartbeat is None) == (text == "left") == row.why.endswith("left")


def test_a_damaged_heartbeat_hides_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for content in ("{half", "[]", "{}"):
        write_text(run.progress, content)
        [row], _ = survey([run], queue_says(RUNNING))
        assert (row.state, row.why) == ("running", "job 12 on v100-1, 1 h 0 min left")


def test_what_waits_says_when_it_is_expected_to_start(tmp_path: Path) -> None:
    line = "12|12|PENDING|Resources|0:00|1:00:00|{}||gpu|(null)"
    run = make_run(tmp_path)
    [row], _ = survey([run], queue_says(line.format("2099-01-01T17:00:00")))
    assert row.why.startswith("waits for free nodes (Resources); expected to start in ")
    assert row.why.endswith(" h (01 Jan 17:00)")
    [row], _ = survey([run], queue_says(line.format("N/A")))
    assert row.why == "waits for free nodes (Resources)"


@pytest.mark.parametrize(("start", "text"), [
    ("2026-11-24T17:05:00", "expected to start in 2 h 5 min (17:05)"),
    ("2026-11-25T15:00:00", "expected to start in 1 d 0 h (25 Nov 15:00)"),
    ("2026-11-24T14:00:00", "expected to start soon"), ("N/A", ""), ("", "")])
def test_an_expected_start_is_read_easily(start: str, text: str) -> None:
    assert describe_start(start, datetime(2026, 11, 24, 15, 0)) == text


def test_a_slow_or_silent_slurm_tells_no_start() -> None:
    def refuse(argv: Sequence[str]) -> Completed:
        raise subprocess.TimeoutExpired("sbatch", 5)
    assert expected_start("#!/bin/sh\n", Slurm(refuse)) == ""
    assert expected_start("#!/bin/sh\n", Slurm(lambda argv: Completed(1, "", "error: no"))) == ""


def test_a_finished_run_says_what_it_has_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_json(run.state, {"state": "finished", "why": "", "epochs": 2})
    write_jsonl(run.train_log, [
        {"epoch": 0, "loss": 1.0, "seconds": 100.0, "data_wait_share": 0.3,
         "gpu_memory_gb": 12.14, "host_memory_gb": 20.5},
        {"epoch": 1, "loss": 1.0, "seconds": 300.0, "data_wait_share": 0.1}])
    lines = ("12|COMPLETED|0:0|3600|cpu=16,gres/gpu=4|a|b|n|me|",
             "12.batch|COMPLETED|0:0|3600|cpu=16|a|b|n||20000000K",
             "12.0|COMPLETED|0:0|3600|cpu=16|a|b|n||40000000K",
             "13|PREEMPTED|0:0|1800|billing=8,cpu=8,mem=16384M|a|b|n|me|",
             "13|COMPLETED|0:0|3600|billing=8,cpu=8,mem=16384M|a|b|n|me|")
    used = Slurm(lambda argv: Completed(0, "\n".join(lines) if argv[0] == "sacct" else ""))
    [row], _ = survey([run], used)
    assert row.why == ("12.1 GB of a GPU, 41.0 GB of memory, 15 % of the time waiting for data, "
                       "scoring 12.0 CPU-h")
    assert row.usage
    assert (row.usage["task_memory_gb"], row.usage["host_memory_gb"]) == (40.96, 20.5)
    [row], _ = survey([run], queue_says())
    assert row.why == "12.1 GB of a GPU, 20.5 GB of memory, 15 % of the time waiting for data"
    write_jsonl(run.train_log, [{"epoch": 0, "loss": 1.0, "seconds": 100.0, "gpu_memory_gb": 0.0,
                                 "data_wait_share": "much"}])  # of an older version, or damaged
    [row], _ = survey([run], queue_says())
    assert (row.why, row.usage) == ("", None)
