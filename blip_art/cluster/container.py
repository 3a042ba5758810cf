"""Looks at image and overlay before jobs are submitted: there, whole, free, and which they are.

    check_image(site.image); check_overlay(site.overlay, tasks=8); image_identity(site.image)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from blip_art.cluster.ext3 import root_entries
from blip_art.errors import UserError
from blip_art.files import PathLike

BUILD_IMAGE = "build it with 'launch.py image build'"
BUILD_OVERLAY = "build it with 'launch.py overlay build'"
_GZIP, _SQUASHFS, _SIF, _EXT = b"\x1f\x8b", b"hsqs", b"SIF_MAGIC", b"\x53\xef"
# What is written once and tells images apart: SIF's descriptors, a file system's superblock.
_IDENTITY_BYTES = 64 * 1024
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: kind, whence, start, length, process


class Holder(NamedTuple):
    """A process that has a file open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def check_image(path: str) -> None:
    """The image is there and looks like one.

    Raises:
        UserError: what is wrong, and the next step.
    """
    if not path:
        raise UserError("no image: name one in the site profile (image), "
                        "'launch.py image build' makes it")
    if Path(path).is_dir():  # an unpacked image
        return
    start = _start(path, "image", BUILD_IMAGE)
    if _SIF not in start[:64] and start[:4] != _SQUASHFS:
        raise UserError(f"{path} is no image (neither SIF nor squashfs); {BUILD_IMAGE}")


def check_overlay(path: str, tasks: int = 1) -> None:
    """The overlay can be mounted by `tasks` processes at once; '' is none, which is well.

    Raises:
        UserError: what is wrong, and the next step.
    """
    path, _, mode = path.partition(":") if path.endswith((":rw", ":ro")) else (path, "", "ro")
    if not path:
        return
    if mode == "rw" and tasks > 1:
        raise UserError(f"overlay {path}:rw can be used by one process only, and these jobs have "
                        f"{tasks}; leave out ':rw', jobs mount it read-only")
    start = _start(path, "overlay", BUILD_OVERLAY)
    if start[:2] == _GZIP:
        raise UserError(f"overlay {path} is a packed template; unpack it with 'gunzip {path}', "
                        "or build one with 'launch.py overlay build'")
    if start[:4] != _SQUASHFS:
        _check_ext3(path, start)
    holders = _lock(path, write=mode == "rw")
    if holders is not None:
        raise UserError(f"overlay {path} is in use by {_named(holders)}: {_how_to_free(holders)}")


def lock_holder(path: PathLike, write: bool = False) -> Optional[str]:
    """Who holds a lock that keeps Apptainer from mounting `path`; None if nobody does.

    Apptainer locks the bytes of an ext3 image: for reading with ':ro', alone with ':rw'. These
    locks belong to the open file, not to a process, so the kernel does not say whose they are.
    """
    holders = _lock(path, write)
    return None if holders is None else _named(holders)


def holders_of(path: PathLike, proc: Path = Path("/proc")) -> List[Holder]:
    """Processes of this machine that have `path` open, as far as they may be looked at."""
    wanted = os.stat(path)
    found = []
    for folder in sorted(proc.glob("[0-9]*"), key=lambda folder: int(folder.name)):
        with contextlib.suppress(OSError):
            if folder.name != str(os.getpid()) and any(
                    _same(link, wanted) for link in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
                found.append(Holder(int(folder.name), " ".join(words.split())[:60]))
    return found


def image_identity(path: str) -> Dict[str, Any]:
    """What a manifest records of an image or overlay; cheap, and other for every build.

    The hash is that of the first 64 KiB: a SIF's header with its id and the times of its parts, a
    file system's superblock with its own.
    """
    if not path or not os.path.isfile(path):
        return {"path": path}
    stat = os.stat(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(_IDENTITY_BYTES)).hexdigest()
    return {"path": path, "bytes": stat.st_size, "mtime": int(stat.st_mtime),
            "header_sha256": digest}


def _start(path: str, what: str, build: str) -> bytes:
    """The first bytes; enough to tell what a file is."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise UserError(f"cannot read {what} {path}: {error.strerror}") from error
        packed = f"{path}.gz"
        raise UserError(f"no {what} at {path}; " + (
            f"unpack {packed} with 'gunzip -k {packed}'" if os.path.exists(packed) else build)
        ) from error
    if not start:
        raise UserError(f"{what} {path} is empty; {build}")
    return start


def _check_ext3(path: str, start: bytes) -> None:
    if start[1080:1082] != _EXT:
        raise UserError(f"{path} is no overlay (neither ext3 nor squashfs); {BUILD_OVERLAY}")
    with open(path, "rb") as file:
        names = root_entries(file)
    if "upper" not in names or "work" not in names:
        raise UserError(f"overlay {path} was made with mkfs alone and cannot be mounted: it lacks "
                        "the folders 'upper' and 'work'; make it with 'apptainer overlay create "
                        "--create-dir /ext3', or with 'launch.py overlay build'")


def _lock(path: PathLike, write: bool) -> Optional[List[Holder]]:
    """None if the lock could be had, else who is known to be in the way."""
    asked = _FLOCK.pack(fcntl.F_WRLCK if write else fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with open(path, "rb") as file:
            kind = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
    except OSError:  # no such file, or a file system without locks: Apptainer gets none either
        return None
    return None if kind == fcntl.F_UNLCK else holders_of(path)


def _named(holders: List[Holder]) -> str:
    return " and ".join(map(str, holders)) or "a process of another user or another machine"


def _how_to_free(holders: List[Holder]) -> str:
    if not holders:
        return ("wait for it ('squeue' shows a job that builds it); a lock that stays when no job "
                "is left is stale: copy the file and name the copy in the site profile")
    if all("fuse2fs" in holder.command for holder in holders):
        # It has inherited the lock, and outlives an Apptainer that was killed.
        pid = holders[0].pid
        return (f"a killed container left it behind; end it with 'kill {pid}', "
                f"or 'kill -9 {pid}' if it stays")
    return "wait until it ends, or end it"


def _same(link: Path, wanted: os.stat_result) -> bool:
    found = link.stat()
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
