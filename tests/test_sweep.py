"""Sweeps: which runs a file means, and how they are called.

    python -m pytest tests/test_sweep.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from blip_art.cluster.sweep import Sweep, is_member, load_sweep, record_sweep
from blip_art.config import load_config
from blip_art.errors import UserError
from blip_art.files import RunDir, write_text


def sweep(tmp_path: Path, text: str) -> Sweep:
    (tmp_path / "base.yaml").write_text("name: base\n", encoding="utf-8")
    path = tmp_path / "lr.yaml"
    path.write_text(text.replace("BASE", str(tmp_path / "base.yaml")), encoding="utf-8")
    return load_sweep(str(path))


def test_a_grid_times_seeds_is_every_combination_named_by_what_varies(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "config: BASE\nset: {train.epochs: 2}\n"
                           "grid: {train.lr: [1e-5, 5e-5]}\nseeds: [1, 2]\n")
    assert [(m.run.path.as_posix(), m.overrides) for m in plan.members()][1:3] == [
        ("runs/lr/lr=1e-05_seed=2", ("train.epochs=2", "train.lr=1e-05", "seed=2")),
        ("runs/lr/lr=5e-05_seed=1", ("train.epochs=2", "train.lr=5e-05", "seed=1"))]
    assert len(plan.settings) == 4


def test_a_list_gives_runs_their_names(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "config: BASE\nname: ways\nlist:\n"
                           "  - {name: 'a b,c', train.lr: 1e-5}\n  - {data.train: x.json}\n")
    assert [m.run.path.as_posix() for m in plan.members()] == [
        "runs/ways/a-b-c", "runs/ways/train=x.json"]


def test_a_value_that_is_none_keeps_the_name_of_its_run(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "config: BASE\nname: lr/first\n"
                           "grid: {model.pretrained: ['', w.pth]}\nseeds: [1, 2]\n")
    assert [m.run.path.as_posix() for m in plan.members()][:2] == [
        "runs/lr/first/pretrained=_seed=1", "runs/lr/first/pretrained=_seed=2"]


def test_keys_of_the_same_end_keep_their_section(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "config: BASE\n"
                           "grid: {train.batch_size: [1, 2], generate.batch_size: [3, 4]}\n")
    assert plan.members()[0].run.name == "train.batch_size=1_generate.batch_size=3"


def test_names_that_would_be_the_same_are_told_apart(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "config: BASE\nlist:\n  - {data.train: a/x}\n  - {data.train: a-x}\n")
    first, second = (member.run.name for member in plan.members())
    assert first != second
    assert first.startswith("train=a-x_")


@pytest.mark.parametrize(("text", "message"), [
    ("config: BASE\ngrid: {train.lr: 1e-5}", "grid must hold lists"),
    ("config: BASE\ngrid: {train.rl: [1]}", "unknown key 'train.rl'"),
    ("config: BASE\nlist: [{train.lr: 1e-5}, {train.lr: 1e-5}]", "the same run twice"),
    ("config: BASE\nparalel: 2", "unknown key 'paralel'; did you mean 'parallel'"),
    ("grid: {}", "must name a configuration"),
    ("config: BASE\nparallel: many", "parallel must be a whole number"),
    ("config: BASE\nname: ..", "name must be one folder's name"),
    ("config: BASE\nname: /tmp", "name must be one folder's name"),
    ("config: BASE\nlist: [{name: ..}]", "name must be one folder's name"),
    ("config: BASE\nseeds: [010]", "seeds must be a whole number, not '010'"),
    ("config: BASE\nseeds: [1]\nseeds: [2]", "line 3: 'seeds' is there twice"),
    ("config: BASE\nset: {train: {lr: 1}}", "would replace a whole section"),
    ("config: BASE\ngrid: {seed: [" + "1, " * 999 + "], train.epochs: [" + "1, " * 999 + "]}",
     "means 998001 runs, more than 10000"),
])
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(tmp_path, text)


def test_values_reach_a_run_as_they_were_written(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "config: BASE\nset: {data.val_gt: null, train.lr: 1.23456789e-5}\n"
                           "list: [{model.prompt: 'art: '}, {model.prompt: '010 #1'}]\n")
    loaded = [load_config(plan.config, one) for one in plan.settings]
    assert [(c.data.val_gt, c.train.lr, c.model.prompt) for c in loaded] == [
        ("", 1.23456789e-5, "art: "), ("", 1.23456789e-5, "010 #1")]


def test_long_names_fit_into_a_file_system(tmp_path: Path) -> None:
    plan = sweep(tmp_path, f"config: BASE\nlist:\n  - {{model.prompt: {'画' * 200}}}\n")
    assert len(plan.members()[0].run.name.encode()) <= 200


def test_the_examples_are_valid(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    sizes = {path.stem: len(load_sweep(str(path)).settings)
             for path in Path("configs/sweeps").glob("*.yaml")}
    assert sizes == {"lr": 8, "captions": 2}


def test_a_folder_stands_for_the_runs_that_were_submitted(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "config: BASE\nparallel: 2\nseeds: [1, 2]\n")
    record_sweep(tmp_path / "six", plan)
    first, second = load_sweep(str(tmp_path / "six")).members()
    assert (first.run.path, first.overrides) == (tmp_path / "six/seed=1", ("seed=1",))
    write_text(second.run.frozen_config, "name: a\n")
    (tmp_path / "six").rename(tmp_path / "moved")
    moved = load_sweep(str(tmp_path / "moved"))
    assert (moved.name, moved.parallel) == ("moved", 2)
    assert moved.members()[1].config == str(tmp_path / "moved/seed=2/slurm/config.yaml")
    assert is_member(moved.members()[1].run)
    assert not is_member(RunDir(tmp_path / "moved/other"))
    with pytest.raises(UserError, match=r"it has no sweep\.json"):
        load_sweep(str(tmp_path))
