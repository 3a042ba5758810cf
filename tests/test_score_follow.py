"""A follower scores what appears, once, beside others, after a kill, and ends with training.

    python -m pytest tests/test_score_follow.py
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, write_json, write_text
from blip_art.score.engine import Engine
from blip_art.score.follow import (
    START_PATIENCE_MIN,
    End,
    Follower,
    score_when_free,
    until_state_ends,
)
from blip_art.score.lock import owner, taken
from tests.score_data import write_vocabulary

TEXTS = {"1": "a lion, a tree and a crown", "2": "a ship at sea, a sun"}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(threads=1) as engine:
        yield engine


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that is training, without an epoch yet."""
    run = RunDir(tmp_path / "run")
    write_text(run.config, f"data: {{annotations: {tmp_path}, train: train.json}}\n"
                           f"model: {{tokenizer: {tmp_path}}}\n"
                           "score: {metrics: [bleu, cider]}\n")
    write_json(tmp_path / "train.json", [{"image": "1.jpg", "caption": "a lion"}])
    write_vocabulary(tmp_path)
    write_json(run.references("val"), {
        "images": [{"id": key} for key in TEXTS],
        "annotations": [{"id": n, "image_id": key, "caption": text}
                        for n, (key, text) in enumerate(TEXTS.items())]})
    write_json(run.state, {"state": "running"})
    return run


def predict(run: RunDir, epoch: int, words: int = 9) -> None:
    write_json(run.predictions("val", epoch), [
        {"image_id": key, "caption": " ".join(text.split()[:words])}
        for key, text in TEXTS.items()])
    run.checkpoints.mkdir(exist_ok=True)
    run.weights(epoch).touch()


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in (run.path / "scores").glob("*.json"))


def follow(run: RunDir, engine: Engine, events: list[Callable[[], None]]) -> int:
    """Follow a training that does one of `events` between two looks, then says it has finished."""
    left = [*events, lambda: write_json(run.state, {"state": "finished"})]
    by_state = until_state_ends(run)

    def ending() -> End | None:
        if left:
            left.pop(0)()
        return by_state()
    return Follower(run, engine, ending, poll_s=0.01).follow()


def start(run: RunDir, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "blip_art.score", "--follow", str(run.path),
                             *arguments], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_epochs_are_scored_as_they_appear_and_the_best_is_kept(
        run: RunDir, engine: Engine) -> None:
    bests: list[int] = []

    def note() -> None:
        bests.append(read_json(run.best)["epoch"])
    assert follow(run, engine, [lambda: predict(run, 0, 2), note, lambda: predict(run, 1), note,
                                lambda: predict(run, 2, 1), note]) == 0
    assert bests == [0, 1, 1]
    assert names(run) == ["floor_val.json", "oracle_val.json", "val_00.json", "val_01.json",
                          "val_02.json"]
    assert run.saved_epochs() == [1, 2]


def test_captions_that_come_with_the_end_are_scored(run: RunDir, engine: Engine) -> None:
    def last() -> None:
        predict(run, 0)
        write_json(run.state, {"state": "failed"})
    assert follow(run, engine, [last]) == 0
    assert run.scores("val", 0).exists()


def test_a_training_without_an_epoch_ends_too(run: RunDir, engine: Engine) -> None:
    assert follow(run, engine, []) == 0
    assert names(run) == []


def test_a_second_follower_finds_nothing_to_do(
        run: RunDir, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    predict(run, 0)
    follow(run, engine, [])
    capsys.readouterr()
    follow(run, engine, [])
    assert "scoring" not in capsys.readouterr().err


def test_a_broken_epoch_is_told_and_the_others_are_scored(
        run: RunDir, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    predict(run, 0)
    write_json(run.predictions("val", 1), [{"image_id": "1", "caption": "a lion"}])
    write_text(run.predictions("val", 2), "[{")
    predict(run, 3)
    assert follow(run, engine, []) == 2
    assert names(run) == ["floor_val.json", "oracle_val.json", "val_00.json", "val_03.json"]
    told = capsys.readouterr().err
    assert "no caption for picture 2" in told
    assert "; and 1 more" in told


def test_a_cut_score_file_is_made_again(run: RunDir, engine: Engine) -> None:
    predict(run, 0)
    follow(run, engine, [])
    write_text(run.scores("val", 0), '{"split": "val"')
    follow(run, engine, [])
    assert read_json(run.scores("val", 0))["pictures"] == 2


def test_other_references_are_scored_again(run: RunDir, engine: Engine) -> None:
    predict(run, 0)
    score_when_free(run, engine)
    references = read_json(run.references("val"))
    references["annotations"][0]["caption"] = "two lions"
    write_json(run.references("val"), references)
    assert [path.name for path in score_when_free(run, engine)] == [
        "floor_val.json", "val_00.json", "oracle_val.json"]


def test_no_references_is_one_line(run: RunDir, engine: Engine) -> None:
    predict(run, 0)
    run.references("val").unlink()
    with pytest.raises(UserError, match="cannot read .*val.json"):
        score_when_free(run, engine)


@pytest.mark.parametrize(("state", "code"), [("stopped", 0), ("running", 1)])
def test_patience_with_a_silent_training_has_an_end(run: RunDir, state: str, code: int) -> None:
    seconds = [0.0]
    write_json(run.state, {"state": state})
    ending = until_state_ends(run, patience_min=2, now=lambda: seconds[0])
    assert ending() is None
    seconds[0] = 100.0
    predict(run, 0)
    assert ending() is None
    seconds[0] = 219.0
    assert ending() is None
    seconds[0] = 220.0
    end = ending()
    assert end
    assert end.code == code
    assert f"training is {state} and has written nothing for 2 minutes" in end.why


def test_the_end_of_its_job_is_trainings_end_and_its_wait_in_the_queue_is_not(run: RunDir) -> None:
    seconds = [0.0]
    write_json(run.state, {"state": "stopped"})
    write_json(run.jobs, [{"stage": "train", "job_id": "7"}, {"stage": "follow", "job_id": "8"}])
    ending = until_state_ends(run, patience_min=2, now=lambda: seconds[0])
    write_text(run.job_waits("7"), "130")
    assert ending() is None
    seconds[0] = 47 * 120.0
    assert ending() is None
    run.job_waits("7").unlink()
    write_text(run.job_ended("7"), "130")
    assert ending() == End("training's job 7 has ended and left it stopped")
    run.state.unlink()
    end = ending()
    assert end
    assert end.code == 1


def test_a_follower_in_slurm_does_not_wait_for_a_queued_training(
        run: RunDir, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    write_json(run.jobs, [{"stage": "train", "job_id": "7"}, {"stage": "follow", "job_id": "8"}])
    write_json(run.state, {"state": "stopped"})  # both are just starting again
    write_text(run.job_waits("7"), "130")
    by_state = until_state_ends(run, 2, lambda: seconds[0], while_queued=False)
    run.job_waits("7").unlink()
    assert by_state() is None  # it starts: no new stop
    write_json(run.state, {"state": "running"})
    assert by_state() is None
    seconds[0] = 120.0
    silent = by_state()
    assert silent
    assert (silent.leader, silent.code) == ("7", 0)
    predict(run, 0)
    assert by_state() is None
    write_json(run.state, {"state": "stopped", "why": "by a signal"})
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert Follower(run, engine, by_state, poll_s=0.01).follow() == 0
    assert run.job_follows("8").read_text() == "7\n"
    assert run.scores("val", 0).exists()


@pytest.mark.parametrize("waits", [False, True])
def test_a_follower_in_slurm_does_not_wait_for_a_training_that_never_starts(
        run: RunDir, waits: bool) -> None:
    """Slurm starts it when training has started, or was cancelled in the queue."""
    seconds = [0.0]
    write_json(run.jobs, [{"stage": "train", "job_id": "7", "submitted": "2035-01-01T00:00:00+0000"
                           }, {"stage": "follow", "job_id": "8"}])
    write_json(run.state, {"state": "stopped", "job": "6"})  # of a job before
    if waits:  # it has run before, and was cancelled while it waited to start again
        run.job_progress("7").touch()
        write_text(run.job_waits("7"), "130 0")
    by_state = until_state_ends(run, now=lambda: seconds[0], while_queued=False)
    assert by_state() is None
    seconds[0] = 60 * START_PATIENCE_MIN - 1
    assert by_state() is None
    seconds[0] += 1
    assert by_state() == End("training's job 7 has not started; is it in the queue?", leader="7")
    run.job_waits("7").unlink(missing_ok=True)
    run.job_progress("7").touch()
    write_json(run.state, {"state": "running", "job": "7"})
    seconds[0] += 60 * START_PATIENCE_MIN
    assert by_state() is None
    seconds[0] += 60 * START_PATIENCE_MIN
    assert by_state() is None


def test_a_state_that_cannot_be_read_for_a_moment_is_no_end(run: RunDir) -> None:
    ending = until_state_ends(run)
    run.state.unlink()
    run.state.mkdir()  # an error of the system, whoever we are
    assert ending() is None
    run.state.rmdir()
    write_json(run.state, {"state": "finished"})
    assert ending() == End("training has finished")


@pytest.mark.parametrize("state", ["[]", '{"why": ""}', "{"])
def test_a_broken_state_is_named(run: RunDir, state: str) -> None:
    write_text(run.state, state)
    with pytest.raises(UserError, match="state.json"):
        until_state_ends(run)()


def test_a_killed_follower_leaves_no_lock_and_a_new_one_goes_on(run: RunDir) -> None:
    predict(run, 0)
    with taken(run.scoring_lock):
        first = start(run)
        assert first.stderr
        assert f"{os.uname().nodename}:{os.getpid()} is scoring run" in first.stderr.readline()
    wait_for(lambda: owner(run.scoring_lock).endswith(f":{first.pid}"))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    write_json(run.state, {"state": "finished"})
    second = start(run)
    _, told = second.communicate(timeout=60)
    assert second.returncode == 0, told
    assert "1 of 1 epochs are scored" in told
    assert names(run) == ["floor_val.json", "oracle_val.json", "val_00.json"]


def test_a_launchers_follower_ends_with_its_input_whatever_an_old_state_says(run: RunDir) -> None:
    write_json(run.state, {"state": "failed"})
    process = start(run, "--until-eof")
    assert process.stdin
    predict(run, 0)
    wait_for(run.scores("val", 0).exists)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr
    assert "training has ended; 1 of 1 epochs are scored" in process.stderr.read()
    process.stderr.close()


def no_flock(file: IO[str], operation: int) -> None:
    raise OSError(errno.ENOSYS, "no such thing here")


def test_one_process_has_the_lock(tmp_path: Path) -> None:
    for flock in ({}, {"flock": no_flock}):
        with taken(tmp_path / ".lock", **flock) as first, taken(tmp_path / ".lock", **flock) as two:
            assert (first, two) == (True, False)
            assert owner(tmp_path / ".lock") == f"{os.uname().nodename}:{os.getpid()}"
        with taken(tmp_path / ".lock", **flock) as again:
            assert again


@pytest.mark.parametrize(("host", "pid", "age_s", "void"), [
    ("", 2 ** 22 + 1, 0, True),  # a process of this host that is gone
    ("", os.getpid(), 10, False),
    ("", os.getpid(), 9999, True),  # another's number
    ("elsewhere", 1, 10, False),
    ("elsewhere", 1, 9999, True)])
def test_without_file_locks_a_dead_owner_is_forgotten(
        tmp_path: Path, host: str, pid: int, age_s: float, void: bool) -> None:
    path = tmp_path / ".lock.owner"
    path.write_text(json.dumps({"host": host or os.uname().nodename, "pid": pid}))
    os.utime(path, (time.time() - age_s,) * 2)
    with taken(tmp_path / ".lock", no_flock) as ours:
        assert ours is void
    assert path.exists() is not void
