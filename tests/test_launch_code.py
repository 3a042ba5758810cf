"""The code a job runs and what is recorded of it: snapshot, manifest, torchrun's exit code.

    python -m pytest tests/test_launch_code.py
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blip_art.cluster.snapshot import changed_files, take_snapshot
from blip_art.errors import UserError
from blip_art.files import read_json
from blip_art.manifest import code_identity, update_manifest


def git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b",
                           *args], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with one commit, in a folder whose name has a space."""
    folder = tmp_path / "my code"
    (folder / "blip_art").mkdir(parents=True)
    (folder / "launch.py").write_text("print('launch')\n")
    (folder / "blip_art" / "a.py").write_text("A = 1\n")
    (folder / ".gitignore").write_text("*.sif\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_snapshot_holds_local_changes_and_new_modules(checkout: Path, tmp_path: Path) -> None:
    (checkout / "blip_art" / "a.py").write_text("A = 2\n")
    (checkout / "blip_art" / "new.py").write_text("B = 1\n")
    (checkout / "weights.sif").touch()
    (checkout / "notes.txt").touch()
    code = tmp_path / "run" / "code"
    assert take_snapshot(checkout, code)
    assert files(code) == {"launch.py", "blip_art/a.py", "blip_art/new.py", ".gitignore",
                           "snapshot.json"}
    assert (code / "blip_art" / "a.py").read_text() == "A = 2\n"


def test_what_users_make_is_ignored_and_no_part_of_the_code(repo: Path) -> None:
    made = ["configs/sites/mine.yaml", "report/index.html", "annotation/manifest.json",
            "model_base_caption_capfilt_large.pth", "runs/art/state.json"]
    ours = ["configs/sites/v100.yaml", "blip_art/report/new.py", "configs/my_sweep.yaml"]
    done = subprocess.run(["git", "-C", str(repo), "check-ignore", "--no-index", *made, *ours],
                          check=False, capture_output=True, text=True)
    assert done.stdout.split() == made


def test_same_code_is_not_copied_again_and_other_code_replaces_it(
        checkout: Path, tmp_path: Path) -> None:
    code = tmp_path / "run" / "code"
    take_snapshot(checkout, code)
    assert not take_snapshot(checkout, code)
    git(checkout, "mv", "blip_art/a.py", "blip_art/b.py")
    assert take_snapshot(checkout, code)
    assert files(code) == {"launch.py", "blip_art/b.py", ".gitignore", "snapshot.json"}
    assert [path.name for path in code.parent.iterdir()] == ["code"]


def test_files_that_changed_since_the_copy_are_named(checkout: Path, tmp_path: Path) -> None:
    code = tmp_path / "run" / "code"
    assert changed_files(checkout, code) == []
    (checkout / "blip_art" / "old.py").write_text("OLD = 1\n")
    take_snapshot(checkout, code)
    (code / "blip_art" / "__pycache__").mkdir()
    (code / "blip_art" / "__pycache__" / "a.pyc").touch()
    assert changed_files(checkout, code) == []
    (checkout / "blip_art" / "old.py").unlink()
    (checkout / "blip_art" / "a.py").write_text("A = 2\n")
    (checkout / "blip_art" / "new.py").touch()
    assert changed_files(checkout, code) == [f"blip_art/{name}.py" for name in ("a", "new", "old")]


def test_snapshot_without_git_takes_the_known_names(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / "blip_art" / "__pycache__").mkdir()
    (checkout / "blip_art" / "__pycache__" / "a.pyc").touch()
    (checkout / "notes.txt").touch()
    take_snapshot(checkout, tmp_path / "code")
    assert files(tmp_path / "code") == {"launch.py", "blip_art/a.py", "snapshot.json"}
    assert code_identity(tmp_path / "code") == {"commit": "", "diff_sha256": ""}


def test_snapshot_into_a_file_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="cannot copy the code to"):
        take_snapshot(checkout, tmp_path / "run" / "code")


def test_snapshot_remembers_the_commit_and_the_changes(checkout: Path, tmp_path: Path) -> None:
    take_snapshot(checkout, tmp_path / "clean")
    (checkout / "launch.py").write_text("print('changed')\n")
    take_snapshot(checkout, tmp_path / "changed")
    commit = git(checkout, "rev-parse", "HEAD")
    assert code_identity(tmp_path / "clean") == {"commit": commit, "diff_sha256": ""}
    changed = code_identity(tmp_path / "changed")
    assert changed["commit"] == commit
    assert changed == code_identity(checkout)
    assert len(changed["diff_sha256"]) == 64


def test_folder_inside_another_checkout_has_no_commit(checkout: Path) -> None:
    (checkout / "runs").mkdir()
    assert code_identity(checkout / "runs") == {"commit": "", "diff_sha256": ""}


def test_manifest_gathers_stages_data_and_restarts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", "")  # no git to be found
    data = tmp_path / "train.json"
    data.write_text("[]")
    update_manifest(tmp_path, stage="train", data=[data])
    update_manifest(tmp_path, stage="train", image="blip_art.sif")
    update_manifest(tmp_path, stage="score")
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["data"] == {str(data): hashlib.sha256(b"[]").hexdigest()}
    assert manifest["image"] == "blip_art.sif"
    assert manifest["restarts"] == 1
    assert [start["stage"] for start in manifest["starts"]] == ["train", "train", "score"]
    assert manifest["starts"][0]["job"] == {"SLURM_JOB_ID": "4711"}
    assert manifest["packages"]["submitit"] == "1.5.4"


RANK = """
import os, sys, time
if os.environ["RANK"] == "1":
    {fail}
time.sleep(60)
"""


@pytest.mark.parametrize(("fail", "code", "said"), [
    ("print('error: no such file', file=sys.stderr); sys.exit(2)", 2, "error: no such file\n"),
    ("os.kill(os.getpid(), 9)", 137,
     "error: rank 1 was ended by SIGKILL (often: not enough memory)\n")])
def test_torchrun_ends_with_the_failed_ranks_code(
        repo: Path, tmp_path: Path, fail: str, code: int, said: str) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(fail=fail))
    done = subprocess.run([sys.executable, "-m", "blip_art.torchrun", "--standalone",
                           "--nproc_per_node=2", str(script)], cwd=repo, text=True,
                          capture_output=True, check=False, timeout=100,
                          env={"OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stderr) == (code, said)


STORES = """
import os
from torch.distributed import TCPStore

parent = f"/proc/{os.getppid()}/fd/"
own = {os.readlink(parent + name) for name in os.listdir(parent)}
rows = [line.split() for name in ("tcp", "tcp6") for line in open("/proc/net/" + name)]
ports = {int(row[1].rpartition(":")[2], 16) for row in rows
         if row[3] == "0A" and f"socket:[{row[9]}]" in own}
print(len(ports), [key for port in ports for key in TCPStore("localhost", port).list_keys()
                   if "rendezvous" in key])
"""


def test_torchrun_offers_no_pickle_to_whoever_reaches_its_port(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(STORES)
    done = subprocess.run([sys.executable, "-m", "blip_art.torchrun", "--standalone",
                           "--nproc_per_node=1", str(tmp_path / "rank.py")], cwd=repo, text=True,
                          capture_output=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (0, "1 []\n"), done.stderr
