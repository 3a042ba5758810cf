"""What doctor looks at on the file systems: image, overlay, room, purging, offline files.

    for check in room(site): print(check)
"""

from __future__ import annotations

import getpass
import itertools
import os
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional

from blip_art.cluster.checks import Check, fail, ok, warn
from blip_art.cluster.fetch import TOKENIZER, WEIGHTS
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import Completed, run_command
from blip_art.errors import UserError
from blip_art.score import corenlp

NEEDED_GB = 20
"""A run of the base model: optimizer state, weights of two epochs, pictures' captions."""
NEEDED_FILES = 100_000
"""The unpacked data set has 87,749 pictures; a packed one is one file."""
# A data set's oldest file is not worth a walk over all of it.
_SAMPLE = 500


def image(site: Site) -> Iterable[Check]:
    """Present, and an image."""
    if not site.container:
        yield (ok if shutil.which(site.python) else fail)(
            f"no container: jobs run {site.python} as it is")
        return
    from blip_art.cluster.container import check_image

    check_image(site.image)
    yield whole("image", site.image, "copy or build it again")


def overlay(site: Site) -> Iterable[Check]:
    """Present, whole, and not held by somebody who writes to it."""
    if not (site.container and site.overlay):
        return
    from blip_art.cluster.container import check_overlay

    check_overlay(site.overlay, site.gpus_per_node)
    yield whole("overlay", site.overlay, "copy or build it again", ", nobody writes to it")


def whole(what: str, path: str, mend: str, more: str = "") -> Check:
    """Whether a file is as long as its own head says: a copy that stopped is not."""
    if Path(path).is_dir():  # an unpacked image
        return ok(f"{what} {path}{more}")
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        said = announced_bytes(file.read(2048))
    if size < said:
        return fail(f"{what} {path} is cut short: {size:,} of {said:,} bytes", mend)
    return ok(f"{what} {path}, {_gb(size)}{more}")


def announced_bytes(head: bytes) -> int:
    """How long a SIF, squashfs or ext3 says it is; 0 if it is none of them."""
    if head[32:41] == b"SIF_MAGIC":
        start, length = struct.unpack_from("<QQ", head, 112)
        return int(start + length)
    if head[:4] == b"hsqs":
        return int(struct.unpack_from("<Q", head, 40)[0])
    if head[1080:1082] == b"\x53\xef":
        blocks, = struct.unpack_from("<I", head, 1024 + 4)
        exponent, = struct.unpack_from("<I", head, 1024 + 24)
        return int(blocks << (10 + exponent))
    return 0


class Room(NamedTuple):
    """What is free for this user; -1 is no limit, or not known."""

    gb: float
    files: int


def room(site: Site) -> Iterable[Check]:
    """Bytes and inodes where runs are written, by the file system and by quota."""
    for name, path in {"home": Path.home(), "this folder": Path.cwd()}.items():
        free = free_room(path)
        by_quota = quota_room(path)
        least = Room(_least(free.gb, by_quota.gb), int(_least(free.files, by_quota.files)))
        words = f"{name} ({path}): {least.gb:.0f} GB free" + (
            f", {least.files:,} files" if least.files >= 0 else "") + (
            " (quota)" if by_quota != (-1, -1) else "")
        if name == "home" and least.gb >= 1:
            yield ok(words)
        elif least.gb < (1 if name == "home" else NEEDED_GB):
            yield warn(words, f"a run of the base model needs {NEEDED_GB} GB; delete old "
                              "checkpoints, or work on another file system")
        elif 0 <= least.files < NEEDED_FILES:
            yield warn(words, "the unpacked data set is 87,749 files: 'launch.py data pack' makes "
                              "it one")
        else:
            yield ok(words)


def _least(*values: float) -> float:
    return min((value for value in values if value >= 0), default=-1)


def free_room(path: Path) -> Room:
    """What the file system itself has left."""
    found = os.statvfs(path)
    # Some file systems make inodes as they need them and say 0.
    return Room(found.f_bavail * found.f_frsize / 1e9, found.f_favail if found.f_files else -1)


def quota_room(path: Path) -> Room:
    """What quota leaves, of Lustre's or the usual command; (-1, -1) where there is none."""
    user = getpass.getuser()
    for argv in (["lfs", "quota", "-q", "-u", user, str(path)],
                 ["quota", "--no-wrap", "--raw-grace", "--hide-device", "--show-mntpoint",
                  "--user", user]):
        done = _said(argv)
        if done and not done.code:
            found = read_quota(done.out, path)
            if found:
                return found
    return Room(-1, -1)


def read_quota(text: str, path: Path) -> Optional[Room]:
    """The line of the file system that holds `path` in a quota table, else the tightest one that
    names none: KB used, soft, hard, grace, then the same of files."""
    rooms: Dict[str, List[Room]] = {}
    for line in text.splitlines():
        # '*' marks what is exceeded; the last eight words are numbers, or '-' for no grace.
        words = [word.rstrip("*") for word in line.split()][-8:]
        if len(words) == 8 and all(re.fullmatch(r"\d+|-|\w+", word) for word in words) and \
                words[0].isdigit() and words[4].isdigit():
            used, soft, hard, _, files, files_soft, files_hard, _ = (
                int(word) if word.isdigit() else 0 for word in words)
            limit, files_limit = hard or soft, files_hard or files_soft
            first = line.split()[0]
            rooms.setdefault(first if first.startswith("/") else "", []).append(
                Room(max(0, limit - used) / 1e6 if limit else -1,
                     max(0, files_limit - files) if files_limit else -1))
    holds = [name for name in rooms if name and Path(name) in (path, *path.parents)]
    mine = rooms.get(max(holds, key=len) if holds else "")
    if not mine:
        return None
    return Room(_least(*(one.gb for one in mine)), int(_least(*(one.files for one in mine))))


def _said(argv: List[str]) -> Optional[Completed]:
    try:
        return run_command(argv)
    except (OSError, subprocess.TimeoutExpired):
        return None  # not installed, or its server is asleep


def purging(site: Site) -> Iterable[Check]:
    """Files that the site will soon delete because nobody touched them."""
    if not site.purge_days:
        return
    scratch = _device(Path(site.purged or os.path.expandvars(site.scratch)))
    kept = [Path(name) for name in (site.image, site.overlay, WEIGHTS, TOKENIZER, "Dataset",
                                    "annotation", "runs") if name]
    here = [path for path in kept if path.exists() and _device(path) == scratch]
    ages = {path: _age_days(path) for path in here}
    old = {path: age for path, age in ages.items() if age > .7 * site.purge_days}
    for path, age in old.items():
        yield warn(f"{path} has not been touched for {age:.0f} days; after {site.purge_days} the "
                   "site deletes it", f"find {path} -type f -exec touch -a {{}} +   (or copy it "
                   "to a file system that is kept)")
    if here and not old:
        yield ok(f"where files are deleted, oldest untouched for {max(ages.values()):.0f} of "
                 f"{site.purge_days} days: {', '.join(map(str, here))}")


def _device(path: Path) -> int:
    try:
        return path.stat().st_dev
    except OSError:
        return -1


def _age_days(path: Path) -> float:
    """Days since the least touched of its files was read or written."""
    files = itertools.islice((one for one in path.rglob("*") if one.is_file()), _SAMPLE) \
        if path.is_dir() else iter([path])
    times = [max(one.stat().st_atime, one.stat().st_mtime) for one in files]
    return (time.time() - min(times, default=time.time())) / 86400


def offline(site: Site) -> Iterable[Check]:
    """What `fetch` brings, where the configurations look for it."""
    weights, vocabulary = Path(WEIGHTS), Path(TOKENIZER, "vocab.txt")
    for path, what in ((weights, "weights"), (vocabulary, "tokenizer")):
        hub = _in_hub(TOKENIZER) if what == "tokenizer" else None
        if path.is_file() or hub:
            yield ok(f"{what}: {path if path.is_file() else hub}")
        else:
            yield warn(f"{what}: no {path} here", f"launch.py fetch {what}, unless model."
                       f"{'pretrained' if what == 'weights' else what} names another")
    if site.container and site.overlay:
        return  # CoreNLP is in the overlay; the job looks at it
    cache = Path(site.cache)
    try:
        corenlp.find_jars(cache)
        yield ok(f"CoreNLP: {corenlp.jar_folder(cache)}")
    except UserError as error:
        yield fail(f"CoreNLP: {str(error).partition('; ')[0]}", f"launch.py fetch corenlp --to "
                                                                f"{cache}")


def _in_hub(name: str) -> Optional[Path]:
    """A snapshot of the model hub's cache."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    found = sorted(hub.glob(f"models--*{name}/snapshots/*/vocab.txt"))
    return found[0].parent if found else None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


CHECKS = (image, overlay, room, purging, offline)
