"""What is refused, or known to be done, before anything is queued or started.

    python -m pytest tests/test_preflight.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from blip_art.cluster.preflight import site_of_runs
from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.status import survey
from blip_art.config import dump_config, load_config
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_jsonl, write_text
from blip_art.predict_plan import plan_predictions

NOBODY = Slurm(lambda argv: Completed(0))
Launch = Callable[..., int]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration and no Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLIP_ART_SITE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_text("a.yaml", "name: a\ntrain: {epochs: 2, batch_size: 4}\n")
    return tmp_path


@pytest.fixture
def launch(here: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """launch.py in this process; nothing may be started or submitted."""
    monkeypatch.syspath_prepend(str(repo))
    program = importlib.import_module("launch")

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a job was started")
    monkeypatch.setattr("blip_art.cluster.local.CLUSTERS", {"local": start})
    monkeypatch.setattr("blip_art.cluster.snapshot.take_snapshot", start)
    monkeypatch.setattr("blip_art.cluster.on_slurm.submit", start)
    return lambda *words: int(program.main(words))


def make_run(path: str = "runs/a", state: str = "stopped", epochs: int = 1, scored: int = 0,
             ranks: int = 2) -> RunDir:
    """A run of a.yaml with so many epochs trained and scored."""
    run = RunDir(path)
    write_text(run.config, dump_config(load_config("a.yaml")))
    write_json(run.state, {"state": state})
    write_json(run.manifest, {"ranks": ranks, "device": "cpu"})
    write_json(run.last_checkpoint, [])
    write_jsonl(run.train_log, [{"epoch": epoch, "loss": 1.0} for epoch in range(epochs)])
    for epoch in range(epochs):
        write_json(run.weights(epoch), {})
        write_json(run.predictions("val", epoch), [])
        if epoch < scored:
            write_json(run.scores("val", epoch), {"metrics": {}})
    return run


SLURM = ("--cluster", "slurm")


@pytest.mark.parametrize("where", [SLURM, ()])
@pytest.mark.parametrize(("words", "message"), [
    (["eval", "a.yaml", "--epoch", "77"], r"runs/a has no weights of epoch 77 \(there are 0\)"),
    (["eval", "a.yaml", "--epoch", "-1"], "epochs are counted from 0"),
    (["predict", "a.yaml", "generate.num_beams=5"], "is there, with the run's settings"),
    (["eval", "--run", "runs/a", "--weights", "coco.pth"], "runs/a is a training's"),
    (["eval", "--run", "runs/empty", "--epoch", "1"], "has no config.yaml; train first"),
    (["train", "a.yaml", "--gpus", "3"], "begun with 2 processes .*go on with 1 or 2 in all"),
    (["train", "a.yaml", "train.lr=3"], "run with another configuration"),
])
def test_what_would_fail_is_refused_before_it_waits(
        launch: Launch, repo: Path, where: Sequence[str], words: Sequence[str],
        message: str) -> None:
    make_run()
    Path("runs/empty").mkdir()
    site = ["--site", str(repo / "configs/sites/v100.yaml")] if where else []
    with pytest.raises(UserError, match=message):
        launch(*words, *where, *site)


def test_settings_that_the_run_has_may_be_named_again(here: Path) -> None:
    run = RunDir("runs/coco")
    settings = ("train.epochs=2", "generate.num_beams=5", "generate.splits=[val, test]")
    write_text(run.config, dump_config(load_config("a.yaml", settings)))
    write_json(run.predictions("val", 0), [])
    plan = plan_predictions(run, weights="coco.pth", overrides=settings)
    assert (plan.splits, plan.config.generate.num_beams) == (("val", "test"), 5)
    with pytest.raises(UserError, match="is there, with the run's settings"):
        plan_predictions(run, weights="coco.pth", overrides=["generate.num_beams=4"])


def test_a_split_that_is_none_is_refused(launch: Launch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    with pytest.raises(SystemExit) as end:
        launch("eval", "a.yaml", "--split", "tst", *SLURM)
    assert end.value.code == 2
    assert "choose from" in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_are_not_here_are_named(launch: Launch) -> None:
    with pytest.raises(UserError, match=r"no weights at coco\.pth"):
        launch("eval", "--run", "runs/new", "--config", "a.yaml", "--weights", "coco.pth")


@pytest.mark.parametrize("where", [SLURM, ()])
def test_of_a_finished_run_only_what_it_lacks_is_started(
        launch: Launch, where: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    make_run(state="finished", epochs=2, scored=2)
    assert launch("train", "a.yaml", *where) == 0
    assert "runs/a is finished and scored, nothing to do" in capsys.readouterr().err
    RunDir("runs/a").scores("val", 1).unlink()
    assert launch("train", "a.yaml", "--no-score", *where) == 0
    assert "1 epochs are not scored" in capsys.readouterr().err
    assert launch("train", "a.yaml", "--dry-run", *where) == 0
    said = capsys.readouterr().out
    assert "blip_art.score --run runs/a" in said
    assert "blip_art.train" not in said


def test_a_run_made_with_wider_limits_is_captioned_on_slurm(
        launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    write_text(run.config, run.config.read_text().replace("seed: 42", f"seed: {2**40}"))
    assert launch("eval", "--run", "runs/a", "--split", "test", "--dry-run", *SLURM) == 0
    assert "blip_art.predict" in capsys.readouterr().out


def test_captions_that_were_removed_are_made_again(launch: Launch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    make_run(state="finished", epochs=2, scored=1).predictions("val", 1).unlink()
    words = ("train", "a.yaml", "--gpus", "1", "--dry-run", *SLURM)
    with pytest.raises(UserError, match="was started on cpu, not on cuda"):
        launch(*words)
    write_json("runs/a/manifest.json", {"ranks": 2, "device": "cuda"})
    launch(*words)
    said = capsys.readouterr()
    assert "blip_art.train" in said.out
    assert "goes on with 1 processes, 2 began it: train.accumulate is 2 instead of 1" in said.err


@pytest.mark.parametrize("where", [SLURM, ()])
def test_without_a_number_as_many_go_on_as_can(
        launch: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        where: Sequence[str]) -> None:
    make_run(ranks=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    write_json("runs/a/manifest.json", {"ranks": 2, "device": "cuda"})
    assert launch("train", "a.yaml", "--dry-run", *where) == 0
    assert "--nproc_per_node=2 " in capsys.readouterr().out


def test_what_status_proposes_works_on_a_login_node(launch: Launch, repo: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(state="finished", epochs=2, scored=1)
    assert survey([run], NOBODY)[0][0].why == "1 not scored: launch.py score --run runs/a"
    record_jobs(run, [Submitted("train", "1", site=str(repo / "configs/sites/v100.yaml"))])
    proposed = survey([run], NOBODY)[0][0].why.partition("launch.py ")[2]
    assert proposed == "score --run runs/a --cluster slurm"
    assert launch(*proposed.split(), "--dry-run") == 0  # with the profile it was submitted with
    assert "#SBATCH --account" in capsys.readouterr().out


def test_the_profile_of_another_cluster_is_not_taken_for_this_ones(here: Path) -> None:
    far, near, runs = here / "far.yaml", here / "near.yaml", [RunDir("runs/a"), RunDir("runs/b")]
    for path in (far, near):
        write_text(path, "partition: gpu\n")
    slurm = Slurm(lambda argv: Completed(0, "ClusterName = beta\n"))
    record_jobs(runs[0], [Submitted("train", "1", site=str(near), cluster="beta"),
                          Submitted("train", "7", site=str(far), cluster="alpha")])
    assert site_of_runs(runs, slurm) == str(near)
    record_jobs(runs[1], [Submitted("train", "7", site=str(far), cluster="alpha")])
    with pytest.raises(UserError, match=r"far\.yaml, a profile of cluster alpha.*--site FILE"):
        site_of_runs(runs[1:], slurm)
    assert site_of_runs(runs[1:], Slurm(bin="/nowhere")) == str(far)
    assert site_of_runs([RunDir("runs/c")], slurm) == ""
