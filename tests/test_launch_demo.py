"""The demo's order, and that a stage whose output is there is not run again.

    python -m pytest tests/test_launch_demo.py
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from blip_art.cluster.demo import Demo, score_table
from blip_art.cluster.jobs import Job
from blip_art.cluster.plan import Place
from blip_art.config import dump_config
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_jsonl, write_text
from blip_art.report.tables import read_runs

ALL = ["draw", "prepare", "vocabulary", "train", "score", "collect"]
CONFIG = """
name: demo
data: {images: runs/data/archive, annotations: runs/data/annotation,
       val_gt: art_gt/art_val_gt.json}
model: {tokenizer: runs/data/tokenizer}
train: {epochs: 1}
"""


def scores(cider: float) -> dict[str, object]:
    return {"split": "val", "metrics": {"CIDEr": cider, "SPICE": cider / 4}, "per_image": {},
            "pictures": 1, "failed": {}}


class Stages:
    """Stands for the jobs: notes their names and writes what each would write."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.ran: list[str] = []

    def submit(self, job: Job) -> int:
        demo, run = self.demo, self.demo.run
        self.ran.append(job.name)
        if job.name == "draw":
            write_json(demo.archive / "demo.json", {})
            write_json(demo.archive / "data.json", {})
        elif job.name == "prepare":
            data = demo.config.data
            for name in (data.train, data.val, data.val_gt):
                write_json(demo.annotations / name, [])
        elif job.name == "vocabulary":
            write_text(demo.tokenizer / "vocab.txt", "sun\n")
        elif job.name == "train":
            write_text(run.config, dump_config(demo.config))
            write_jsonl(run.train_log, [{"epoch": 0, "loss": 2.5}])
            write_json(run.predictions("val", 0), [])
            write_json(run.state, {"state": "finished", "epoch": 0, "epochs": 1})
        elif job.name == "score":
            write_json(run.scores("val", 0), scores(1.5))
            write_json(run.floor_scores("val"), {**scores(0.3), "caption": "the moon"})
        elif job.name == "collect":
            write_text(demo.report / "index.html", "<!doctype html>")
        return 0


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "repo" / "configs" / "demo.yaml", CONFIG)
    run = RunDir("runs/demo")
    checkout = Place(python="python", cwd=str(tmp_path), code=str(tmp_path / "repo"))
    place = Place(python="python", cwd=str(tmp_path), code=str(run.code.resolve()), processes=2)
    return Demo(run, tmp_path / "repo", checkout, place)


@pytest.fixture
def stages(demo: Demo) -> Stages:
    return Stages(demo)


def test_runs_all_stages_in_order_then_none(demo: Demo, stages: Stages,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.play(stages.submit) == 0
    assert stages.ran == ALL
    assert demo.play(stages.submit) == 0
    assert stages.ran == ALL
    assert capsys.readouterr().out.splitlines()[-1] == "runs/demo/report/index.html"


def test_new_captions_are_scored_and_the_page_is_made_again(demo: Demo, stages: Stages) -> None:
    demo.play(stages.submit)
    later = time.time() + 9
    os.utime(demo.run.predictions("val", 0), (later, later))
    stages.ran.clear()
    demo.play(stages.submit)
    assert stages.ran == ["score", "collect"]


def test_stopped_training_goes_on(demo: Demo, stages: Stages) -> None:
    demo.play(stages.submit)
    write_json(demo.run.state, {"state": "stopped"})
    stages.ran.clear()
    demo.play(stages.submit)
    assert stages.ran == ["train", "score", "collect"]


def test_failed_stage_ends_the_demo(demo: Demo, stages: Stages) -> None:
    def submit(job: Job) -> int:
        return 137 if job.name == "train" else stages.submit(job)
    assert demo.play(submit) == 137
    assert stages.ran == ALL[:3]


def test_jobs_of_the_run_import_its_snapshot(demo: Demo, stages: Stages) -> None:
    demo.play(stages.submit)
    assert (demo.run.code / "configs" / "demo.yaml").exists()
    assert {job.name for job in demo.jobs()
            if job.env["PYTHONPATH"] == str(demo.run.code.resolve())} == {"train", "score"}


def test_fresh_deletes_the_demo_and_its_data(demo: Demo, stages: Stages, tmp_path: Path) -> None:
    demo.play(stages.submit)
    demo.run.slurm.mkdir()
    demo.delete()
    assert list((tmp_path / "runs").rglob("*")) == [tmp_path / "runs" / "data"]


@pytest.mark.parametrize("own", ["runs/demo/thesis.txt", "runs/data/archive/data.json"])
def test_fresh_does_not_delete_what_the_demo_did_not_make(demo: Demo, own: str) -> None:
    write_text(own, "{}")
    with pytest.raises(UserError, match="which is not a demo's"):
        demo.delete()
    assert Path(own).exists()


def test_table_shows_epochs_above_the_floor(demo: Demo, stages: Stages) -> None:
    demo.play(stages.submit)
    assert score_table(read_runs([demo.run])[0]).splitlines() == [
        "  epoch     loss    CIDEr    SPICE",
        "      0    2.500    1.500    0.375",
        "  floor             0.300    0.075",
        "floor: 'the moon' for every picture"]
