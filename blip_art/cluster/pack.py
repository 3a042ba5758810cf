"""Packs a folder of pictures as one squashfs file: one inode instead of 87,749.

Or has a copy made in which the pictures are smaller, by a Python that has Pillow.

    print(how_to_mount(pack(Path("data/pictures"), Path("pictures.sqf")), Path("data/pictures")))
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Tuple

from blip_art.cluster.container import check_image
from blip_art.cluster.image import REPO, Run, call, check_target, need_program, need_space
from blip_art.cluster.overlay import squash
from blip_art.cluster.site import Site
from blip_art.errors import UserError
from blip_art.files import written_aside


def pack(folder: Path, target: Path, force: bool = False) -> Path:
    """Write all of `folder` into `target`; its path.

    Raises:
        UserError: nothing to pack, no mksquashfs, no space.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; name one with pictures")
    check_target(target.resolve(), force, "packed folder")
    need_program("mksquashfs")
    if folder.resolve() in target.resolve().parents:
        raise UserError(f"{target} lies in the folder that it would hold; choose another place "
                        "with -o")
    files, size = count(folder)
    if not files:
        raise UserError(f"{folder} holds no files; nothing to pack")
    need_space(str(target.resolve().parent), 1 + size // 10**9, "choose another place with -o")
    print(f"packing {files:,} files, {size / 1e9:.1f} GB", file=sys.stderr)
    start = time.monotonic()
    with written_aside(target.resolve()) as aside:
        # Pictures are compressed already: packing them again would only take time.
        squash([str(folder)], aside, ("-noD", "-noF"), progress=sys.stderr.isatty())
    print(f"{target}: 1 file instead of {files:,}, {target.stat().st_size / 1e9:.2f} GB in "
          f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return target.resolve()


def shrink(folder: Path, target: Path, max_side: int, site: Site, run: Run = call) -> int:
    """Run `python -m blip_art.data pack`, in the image where this Python has no Pillow.

    Returns:
        Its exit code.

    Raises:
        UserError: no Pillow here, and no image.
    """
    argv = ["-m", "blip_art.data", "pack", str(folder.resolve()), "--max-side", str(max_side),
            "-o", str(target.resolve())]
    environment = {"PYTHONPATH": str(REPO), "PYTHONSAFEPATH": "1"}
    if all(importlib.util.find_spec(name) for name in ("PIL", "numpy")):
        return run([sys.executable, *argv], environment)
    if not site.container:
        raise UserError(f"{sys.executable} has no Pillow, and the site profile no container whose "
                        "image has it; run it with a Python of 'make setup'")
    check_image(site.image)
    target.resolve().parent.mkdir(parents=True, exist_ok=True)
    binds = [*site.binds, str(REPO), str(folder.resolve()), str(target.resolve().parent)]
    with tempfile.TemporaryDirectory(prefix="blip_art_pack_") as scratch:
        return run([str(REPO / "singularity" / "run.sh"), site.python, *argv],
                   {**environment, "CONTAINER": site.container, "SIF": site.image,
                    "OVERLAY": site.overlay, "BINDS": ",".join(binds),
                    "BLIP_ART_SCRATCH": scratch})


def count(folder: Path) -> Tuple[int, int]:
    """Files below `folder`, and their bytes."""
    files = size = 0
    for parent, _, names in os.walk(folder):
        files += len(names)
        size += sum(os.lstat(os.path.join(parent, name)).st_size for name in names)
    return files, size


def how_to_mount(packed: Path, folder: Path) -> str:
    """What to write where, so that configurations need not change."""
    return (f"to let jobs see it in the folder's place, add to the site profile:\n"
            f"  binds:\n    - {packed}:{folder.resolve()}:image-src=/,ro\n"
            "when they do, the folder itself can be deleted")
