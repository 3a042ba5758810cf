"""How far a run is: what training notes, and what status makes of it.

    python -m pytest tests/test_heartbeat.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip_art.files import RunDir, read_json
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
