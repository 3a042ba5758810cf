"""What another user can put where everybody can write is not run.

    python -m pytest tests/test_own_folder.py      see tests/test_container.py for jobs' scratch
"""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from blip_art.errors import UserError
from blip_art.own_folder import own_folder
from blip_art.score.engine import Engine
from blip_art.train.faster import faster_steps

OTHER = 65534


def plant(path: Path, kind: str) -> None:
    """What another user could have made in a shared folder."""
    if kind == "link":
        (path.parent / "elsewhere").mkdir()
        path.symlink_to(path.parent / "elsewhere")
    elif kind == "file":
        path.touch()
    else:
        if os.geteuid() != 0 and os.environ.get("CI") != "true":
            pytest.skip("files of a second account need root")
        path.mkdir()
        os.chown(path, OTHER, OTHER)


def give_group(path: Path, mode: int) -> None:
    """Make the folder one of a group that has more members than this user."""
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("folders of a second group need root")
    os.chown(path, -1, OTHER)
    path.chmod(mode)


@pytest.mark.parametrize("kind", ["link", "file", "theirs"])
def test_what_others_made_is_no_own_folder(tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "cache", kind)
    assert not own_folder(tmp_path / "cache")


def test_an_own_folder_is_shared_and_closed_to_others(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert own_folder(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    if grp.getgrgid(os.getegid()).gr_name == pwd.getpwuid(os.geteuid()).pw_name:
        os.chown(cache, -1, os.getegid())
        cache.chmod(0o775)
        assert own_folder(cache)
        assert cache.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_what_others_could_write_into_is_no_own_folder(tmp_path: Path, mode: int) -> None:
    """They may have put anything there, also where the folder is closed now."""
    cache = tmp_path / "cache"
    cache.mkdir()
    give_group(cache, mode)
    assert not own_folder(cache)


@pytest.mark.parametrize(("mode", "safe"), [
    (0o2770, False), (0o3770, True), (0o777, False), (0o1777, True), (0o2750, True)])
def test_a_folder_is_not_own_where_others_can_exchange_it(
        tmp_path: Path, mode: int, safe: bool) -> None:
    (tmp_path / "lab" / "mine").mkdir(parents=True)
    give_group(tmp_path / "lab", mode)
    assert own_folder(tmp_path / "lab" / "cache") == safe
    assert own_folder(tmp_path / "lab" / "mine" / "cache") == safe


def test_inductor_runs_no_code_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.ModuleDict({"visual_encoder": nn.Identity(), "text_decoder": nn.ModuleDict(
        {"bert": nn.ModuleDict({"encoder": nn.Linear(1, 1)})})})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CC", "true")
    faster_steps(model, "inductor", None)
    [own] = tmp_path.glob("torchinductor_*")
    own.rmdir()
    plant(own, "theirs")
    with pytest.raises(UserError, match=f"keeps code in {own}, which is not yours alone; .*TMPDIR"):
        faster_steps(model, "inductor", None)


@pytest.mark.parametrize("kind", ["link", "theirs"])
def test_a_shared_cache_gives_no_compiled_code_to_others(tmp_path: Path, kind: str) -> None:
    (tmp_path / "home").mkdir()
    plant(tmp_path / "compiled", kind)
    with Engine(cache=tmp_path, parses=tmp_path / "parses.sqlite",
                environ={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home")}) as engine:
        assert engine._setup.compiled == str(tmp_path / "home" / "blip_art_compiled")
