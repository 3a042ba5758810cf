"""What doctor looks at on the file systems: image, overlay, room, purging, offline files.

    for check in room(site): print(check)
"""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Iterable, Optional

from blip_art.cluster.checks import Check, fail, ok, warn
from blip_art.cluster.fetch import TOKENIZER, WEIGHTS
from blip_art.cluster.quota import free_room, least, quota_room
from blip_art.cluster.site import Site
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


def whole(what: str, path: str, fix: str, more: str = "") -> Check:
    """Whether a file is as long as its own head says: a copy that stopped is not."""
    if Path(path).is_dir():  # an unpacked image
        return ok(f"{what} {path}{more}")
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        said = announced_bytes(file.read(2048))
    if size < said:
        return fail(f"{what} {path} is cut short: {size:,} of {said:,} bytes", fix)
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


def room(site: Site) -> Iterable[Check]:
    """Bytes and inodes where runs are written, by the file system and by quota."""
    for name, path in {"home": Path.home(), "this folder": Path.cwd()}.items():
        by_quota = quota_room(path)
        left = least([free_room(path), *by_quota])
        words = f"{name} ({path}): {left.gb:.0f} GB free" + (
            f", {left.files:,} files" if left.files >= 0 else "") + (
            " (quota)" if by_quota else "")
        if name == "home" and left.gb >= 1:
            yield ok(words)
        elif left.gb < (1 if name == "home" else NEEDED_GB):
            yield warn(words, f"a run of the base model needs {NEEDED_GB} GB; delete old "
                              "checkpoints, or work on another file system")
        elif 0 <= left.files < NEEDED_FILES:
            yield warn(words, "the unpacked data set is 87,749 files: 'launch.py data pack' makes "
                              "it one")
        else:
            yield ok(words)


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
