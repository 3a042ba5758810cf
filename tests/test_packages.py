"""An interpreter without the packages that a command needs: one line says what to do.

    python -m pytest tests/test_packages.py
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip_art.files import RunDir, write_json, write_text


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration and a run that can be scored or captioned."""
    monkeypatch.chdir(tmp_path)
    write_text("a.yaml", "name: a\n")
    write_text("b.yaml", "name: b\n")
    run = RunDir("runs/a")
    write_text(run.config, "name: a\n")
    write_json(run.weights(0), {})
    return tmp_path


def bare_python(tmp_path: Path, packages: Sequence[str] = ()) -> Path:
    """An interpreter with these packages of ours and no others."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    [site] = (tmp_path / "venv/lib").glob("*/site-packages")
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.origin
        found = Path(spec.origin)
        found = found.parent if spec.submodule_search_locations else found
        (site / found.name).symlink_to(found)
    return tmp_path / "venv/bin/python"


LOGIN = ("yaml", "submitit", "cloudpickle", "typing_extensions")


@pytest.mark.parametrize(("slurm", "advice"), [
    (True, "--cluster slurm runs it on the cluster's nodes"), (False, "'make setup' installs")])
@pytest.mark.parametrize("words", [
    ["train", "b.yaml"], ["score", "--run", "runs/a"], ["eval", "a.yaml"], ["demo"]])
def test_a_login_node_without_torch_says_what_to_do(
        here: Path, repo: Path, tmp_path: Path, slurm: bool, advice: str,
        words: list[str]) -> None:
    python = bare_python(tmp_path, LOGIN)
    (tmp_path / "bin").mkdir()
    if slurm:
        (tmp_path / "bin/sbatch").symlink_to("/bin/true")
    before = sorted(here.glob("runs/*/*"))
    done = subprocess.run([python, repo / "launch.py", *words, "--python", python], text=True,
                          capture_output=True, check=False, env={"PATH": str(tmp_path / "bin")})
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert " has no " in line
    assert advice in line or words == ["demo"]
    assert ("--cluster" in line) == (slurm and words != ["demo"])
    assert sorted(here.glob("runs/*/*")) == before


def test_the_jobs_interpreter_is_asked_rather_than_this_one(
        here: Path, repo: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, repo / "launch.py", "train", "b.yaml", "--python",
                           bare_python(tmp_path)], text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "venv/bin/python has no torch, which 'train' needs; " in done.stderr


@pytest.mark.parametrize(("packages", "missing"), [((), "yaml"), (("yaml",), "submitit")])
def test_an_interpreter_without_what_launch_needs_says_so(
        here: Path, tmp_path: Path, repo: Path, packages: Sequence[str], missing: str) -> None:
    for name in ("launch.py", "blip_art"):  # a checkout without .venv
        (tmp_path / "checkout").mkdir(exist_ok=True)
        (shutil.copytree if (repo / name).is_dir() else shutil.copy)(
            repo / name, tmp_path / "checkout" / name)
    done = subprocess.run([bare_python(tmp_path, packages), tmp_path / "checkout/launch.py",
                           "train", "b.yaml", "--cluster", "slurm", "--site",
                           repo / "configs/sites/v100.yaml", "--dry-run"],
                          text=True, capture_output=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"has no {missing}: 'make setup' installs all in .venv; a login node only" in line
    assert line.endswith("-m pip install 'submitit>=1.5.4,<1.6' pyyaml")
