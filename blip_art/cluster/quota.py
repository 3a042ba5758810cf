"""How much a user may still write: by the file system, and by quota where there is one.

    least([free_room(path), *quota_room(path)]).gb
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, Sequence, Tuple

from blip_art.cluster.slurm import Completed, run_command

MOUNTS = "/proc/self/mounts"


class Room(NamedTuple):
    """What is free for this user; -1 is no limit, or not known."""

    gb: float
    files: int


def least(rooms: Sequence[Room]) -> Room:
    """What all of them leave."""
    return Room(_least(room.gb for room in rooms), int(_least(room.files for room in rooms)))


def _least(values: Iterable[float]) -> float:
    return min((value for value in values if value >= 0), default=-1)


def free_room(path: Path) -> Room:
    """What the file system itself has left."""
    found = os.statvfs(path)
    # Some file systems make inodes as they need them and say 0.
    return Room(found.f_bavail * found.f_frsize / 1e9, found.f_favail if found.f_files else -1)


def quota_room(path: Path, run: Callable[[Sequence[str]], Completed] = run_command) -> List[Room]:
    """What quota leaves, by the command of the file system that holds `path`; none is [].

    The commands are Lustre's, GPFS's and the usual one; the first that knows the path is believed.
    """
    user = getpass.getuser()
    device, kind = mounted(path, Path(MOUNTS).read_text(errors="replace"))
    table = ["quota", "--no-wrap", "--raw-grace", "--hide-device", "--show-mntpoint",
             "--user", user]
    asked: Dict[str, Tuple[List[str], Callable[[str], List[Room]]]] = {
        "lustre": (["lfs", "quota", "-q", "-u", user, str(path)],
                   lambda text: read_quota(text, path)),
        "gpfs": (["mmlsquota", "-Y", "-u", user], lambda text: read_gpfs_quota(text, device)),
        "": (table, lambda text: read_quota(text, path))}
    argv, read = asked.get(kind, asked[""])
    try:
        done = run(argv)
    except (OSError, subprocess.TimeoutExpired):
        return []  # not installed, or its server is asleep
    return [] if done.code else read(done.out)


def mounted(path: Path, mounts: str) -> Tuple[str, str]:
    """Device and kind of the file system that holds `path`, of the lines of /proc/self/mounts."""
    path = path.resolve()
    best = ("", "", "")
    for line in mounts.splitlines():
        device, point, kind = line.split()[:3]
        point = point.replace("\\040", " ")
        # The last of equals is the one on top.
        if Path(point) in (path, *path.parents) and len(point) >= len(best[1]):
            best = (device, point, kind)
    return best[0], best[2]


def read_quota(text: str, path: Path) -> List[Room]:
    """The lines of the file system that holds `path` in a quota table, else those that name none:
    KB used, soft, hard, grace, then the same of files."""
    rooms: Dict[str, List[Room]] = {}
    for line in text.splitlines():
        # '*' marks what is exceeded; the last eight words are numbers, or '-' for no grace.
        words = [word.rstrip("*") for word in line.split()][-8:]
        if len(words) == 8 and all(re.fullmatch(r"\d+|-|\w+", word) for word in words) and \
                words[0].isdigit() and words[4].isdigit():
            used, soft, hard, _, files, files_soft, files_hard, _ = (
                int(word) if word.isdigit() else 0 for word in words)
            first = line.split()[0]
            rooms.setdefault(first if first.startswith("/") else "", []).append(
                _room(used, hard or soft, files, files_hard or files_soft))
    holds = [name for name in rooms if name and Path(name) in (path, *path.parents)]
    return rooms.get(max(holds, key=len) if holds else "", [])


def read_gpfs_quota(text: str, device: str) -> List[Room]:
    """The user's lines of one file system in what `mmlsquota -Y` prints: fields between colons,
    named by a HEADER line, sizes in KB."""
    names: List[str] = []
    rooms = []
    for line in text.splitlines():
        words = line.split(":")
        if words[2:3] == ["HEADER"]:
            names = words
            continue
        row = dict(zip(names, words))
        if row.get("quotaType") != "USR" or row.get("filesystemName") != Path(device).name:
            continue
        used, soft, hard, files, files_soft, files_hard = (
            int(row.get(name) or 0) for name in ("blockUsage", "blockQuota", "blockLimit",
                                                 "filesUsage", "filesQuota", "filesLimit"))
        rooms.append(_room(used, hard or soft, files, files_hard or files_soft))
    return rooms


def _room(used_kb: int, limit_kb: int, files: int, files_limit: int) -> Room:
    return Room(max(0, limit_kb - used_kb) / 1e6 if limit_kb else -1,
                max(0, files_limit - files) if files_limit else -1)
