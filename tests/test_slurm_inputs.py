"""What jobs read is looked for before they wait in the queue, and the container sees it.

    python -m pytest tests/test_slurm_inputs.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from blip_art.cluster.inputs import bindable, check_inputs, folders_of, inputs_of
from blip_art.cluster.site import Site
from blip_art.config import Config, config_from_dict
from blip_art.errors import UserError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration whose lists are in the working directory, its pictures elsewhere."""
    (tmp_path / "work" / "annotation").mkdir(parents=True)
    (tmp_path / "art").mkdir()
    (tmp_path / "weights.pth").touch()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("train.json", "val.json"):
        Path("annotation", name).touch()
    return config_from_dict({
        "data": {"annotations": "annotation", "train": "train.json", "val": "val.json",
                 "images": str(tmp_path / "art")},
        "model": {"pretrained": "../weights.pth", "tokenizer": "bert-base-uncased"}})


def test_what_is_outside_the_working_directory_is_bound(config: Config, tmp_path: Path) -> None:
    check_inputs(inputs_of(config), Site())
    folders = folders_of([*inputs_of(config).values(), tmp_path / "not there"], Site())
    assert bindable(folders, tmp_path / "work") == [str(tmp_path)]
    assert bindable([tmp_path / "art", tmp_path / "work/annotation", tmp_path / "art/prints"],
                    tmp_path / "work") == [str(tmp_path / "art")]
    assert "model.tokenizer" not in inputs_of(config)  # a name of the hub


@pytest.mark.parametrize(("name", "key"), [
    ("work/annotation/val.json", "data.val"), ("weights.pth", "model.pretrained")])
def test_what_is_not_there_is_named_by_its_key(
        config: Config, tmp_path: Path, name: str, key: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"no \S*{Path(name).name} here \({key}\); fix the path"):
        check_inputs(inputs_of(config), Site())
    if key == "model.pretrained":
        check_inputs(inputs_of(config, weights=False), Site())


def test_what_only_the_nodes_have_is_left_to_the_profile(config: Config, tmp_path: Path) -> None:
    (tmp_path / "art").rmdir()
    site = Site(binds=(f"/nodes/art.sqf:{tmp_path}/art:image-src=/",))
    check_inputs(inputs_of(config), site)
    assert tmp_path / "art" not in folders_of(inputs_of(config).values(), site)


def test_a_folder_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a, b has a comma or a colon in its name"):
        bindable([tmp_path / "a, b"], tmp_path / "work")
