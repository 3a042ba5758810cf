"""What runs take on disk, and the line before one that will not fit.

    python -m pytest tests/test_sizes.py
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from blip_art.cluster import sizes
from blip_art.cluster.quota import Room
from blip_art.config import Config, ModelConfig
from blip_art.files import RunDir, write_json, write_text
from blip_art.model.captioner import build_captioner
from tests.mini import write_mini

BASE = Config()


def make_run(path: Path) -> RunDir:
    run = RunDir(path)
    write_json(run.state, {"state": "finished"})
    write_text(run.last_checkpoint, "c" * 3000)
    return run


def test_status_shows_sizes_when_asked(repo: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "art")

    def say(*words: str) -> str:
        return subprocess.run([sys.executable, repo / "launch.py", "status", *words], text=True,
                              cwd=tmp_path, capture_output=True, check=True).stdout
    assert "checkpoints" not in say()
    assert "runs/art  4 kB         3 kB      2" in say("--sizes")
    [row] = json.loads(say("--sizes", "--json"))["runs"]
    assert (row["state"], row["checkpoint_bytes"], row["files"]) == ("finished", 3000, 2)


def test_a_models_weights_are_estimated_without_torch(tmp_path: Path) -> None:
    from blip_art.config import load_config
    from blip_art.model.tokenizer import CaptionTokenizer

    config = load_config(str(write_mini(tmp_path)))
    model = build_captioner(config.model, CaptionTokenizer(config.model.tokenizer))
    counted = 4 * sum(p.numel() for p in model.parameters()) / 1e9
    vocabulary = 4 * 30524 * config.model.text_width / 1e9  # its own is tiny
    assert sizes.weights_gb(config.model) - vocabulary == pytest.approx(counted, rel=.1)
    # The original's files: 896 MB and 1.8 GB.
    assert sizes.weights_gb(ModelConfig()) == pytest.approx(.896, rel=.01)
    assert sizes.weights_gb(ModelConfig(vit="large")) == pytest.approx(1.79, rel=.01)


@pytest.mark.parametrize(("keep", "scored", "weights"), [
    ("best_last", True, 3), ("best_last", False, 10), ("all", True, 10)])
def test_a_run_needs_checkpoints_and_weights(keep: str, scored: bool, weights: int) -> None:
    config = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, keep=keep))
    one = sizes.weights_gb(BASE.model)
    assert sizes.run_gb(config, scored) == pytest.approx((9 + weights) * one)


def test_less_room_than_runs_need_is_said_in_one_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDir(tmp_path / "runs" / "new")
    monkeypatch.setattr(sizes, "free_room", lambda path: Room(1000, -1))
    monkeypatch.setattr(sizes, "quota_room", lambda path, run: [])
    sizes.warn_of_room([run], [BASE])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sizes, "quota_room", lambda path, run: [Room(4.2, -1)])
    sizes.warn_of_room([run, run], [BASE, BASE])
    assert capsys.readouterr().err == (
        f"warning: {tmp_path} has 4.2 GB left (quota) and 2 runs need about 21.4: 'launch.py "
        "clean' lists what finished runs can lose\n")


def test_a_quota_that_cannot_be_asked_is_no_obstacle(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_PATIENCE_S", .2)
    slow = tmp_path / "quota"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sizes.warn_of_room([RunDir(tmp_path)], [BASE])
