"""What another user can put where everybody can write is not run.

    python -m pytest tests/test_own_folder.py      see tests/test_container.py for jobs' scratch
"""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("kind", ["link", "file", "theirs"])
def test_what_others_made_is_no_own_folder(tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "cache", kind)
    assert not own_folder(tmp_path / "cache")


def test_an_own_folder_is_shared_and_closed_to_others(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert own_folder(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    assert own_folder(cache)
    assert cache.stat().st_mode & 0o777 == 0o755


def test_inductor_runs_no_code_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.ModuleDict({"visual_encoder": nn.Identity(), "text_decoder": nn.ModuleDict(
        {"bert": nn.ModuleDict({"encoder": nn.Linear(1, 1)})})})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CC", "true")
    faster_steps(model, "inductor", None)
    [own] = tmp_path.glob("torchinductor_*")
    own.rmdir()
    plant(own, "theirs")
    with pytest.raises(UserError, match=f"keeps code in {own}, which is not yours; set TMPDIR"):
        faster_steps(model, "inductor", None)


@pytest.mark.parametrize("kind", ["link", "theirs"])
def test_a_shared_cache_gives_no_compiled_code_to_others(tmp_path: Path, kind: str) -> None:
    (tmp_path / "home").mkdir()
    plant(tmp_path / "compiled", kind)
    with Engine(cache=tmp_path, parses=tmp_path / "parses.sqlite",
                environ={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home")}) as engine:
        assert engine._setup.compiled == str(tmp_path / "home" / "blip_art_compiled")
