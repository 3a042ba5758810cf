"""Copies the code into the run folder, so that editing the checkout never changes a queued job.

    take_snapshot(repo, run.code)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import List, Optional

from blip_art.errors import UserError
from blip_art.files import read_json_object, write_json
from blip_art.manifest import SNAPSHOT_RECORD, code_identity, git

# What a copy of the project without its git history is known to consist of.
TOP_LEVEL = ("launch.py", "blip_art", "configs", "singularity", "slurm", "requirements.txt",
             "pyproject.toml")
# A new module that was not added to git yet is code too; a stray data file is not.
UNTRACKED_IN = ("blip_art", "configs")


def code_files(repo: Path) -> List[str]:
    """Files that make up the code, relative to `repo`: what git tracks, plus new modules."""
    tracked = git(repo, "ls-files", "-z")
    if tracked is None:
        names = [str(path.relative_to(repo)) for top in TOP_LEVEL
                 for path in (repo / top, *(repo / top).rglob("*"))
                 if "__pycache__" not in path.parts]
    else:
        new = git(repo, "ls-files", "-z", "--others", "--exclude-standard", "--", *UNTRACKED_IN)
        names = os.fsdecode(tracked + (new or b"")).split("\0")
    return sorted({name for name in names if name and (repo / name).is_file()})


def take_snapshot(repo: Path, code: Path) -> bool:
    """Make `code` a copy of the code in `repo`; False if it already was.

    The copy is made aside and renamed, so that a job that starts meanwhile finds one or the
    other. A job that already runs has its modules loaded.
    """
    names = code_files(repo)
    digest = _digest(repo, names)
    record = code / SNAPSHOT_RECORD
    with contextlib.suppress(UserError):  # a damaged record: the code is copied again
        if record.exists() and read_json_object(record).get("files_sha256") == digest:
            return False
    aside = code.with_name(f".{code.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        for name in names:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo / name, aside / name)
        write_json(aside / SNAPSHOT_RECORD,
                   {"files_sha256": digest, "code": code_identity(repo)}, indent=1)
        _swap(aside, code)
    except OSError as error:
        raise UserError(f"cannot copy the code to {code}: {error.strerror}; "
                        "free space or choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def changed_files(repo: Path, code: Path) -> List[str]:
    """Files that a snapshot has otherwise than the checkout, or that only one of them has."""
    if not (code / SNAPSHOT_RECORD).exists():
        return []
    copied = (path.relative_to(code) for path in code.rglob("*") if path.is_file())
    names = {str(name) for name in copied if "__pycache__" not in name.parts}
    return sorted(name for name in {*code_files(repo), *names} - {SNAPSHOT_RECORD}
                  if _content(repo / name) != _content(code / name))


def _content(path: Path) -> Optional[bytes]:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def _digest(repo: Path, names: List[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        content = (repo / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _swap(new: Path, place: Path) -> None:
    """Rename `new` to `place`; a folder cannot be renamed onto one that holds files."""
    old = new.with_suffix(".old")
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
