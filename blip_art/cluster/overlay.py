"""Builds, checks and freezes the overlay, which adds the scorers to the image.

    build_overlay(overlay_plan(site, Path("overlay.img"))); verify(site, "overlay.img")
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Sequence

from blip_art.cluster.container import check_image, check_overlay, lock_holder
from blip_art.cluster.image import (
    REPO,
    UNREACHED,
    Build,
    Run,
    call,
    check_target,
    need_program,
    need_space,
    tell_built,
)
from blip_art.cluster.runtime import squashfs_options
from blip_art.cluster.site import Site
from blip_art.errors import EXIT_FAILED, UserError
from blip_art.files import remove_leftovers, written_aside

# Measured: 1.0 GB.
OVERLAY_GB = 2
_SCRIPT, _WRAPPER = "singularity/overlay.sh", "singularity/run.sh"


def overlay_plan(site: Site, target: Path) -> Build:
    """How the overlay is built: one process writes, nobody else can have the file open."""
    env = {**site.build_setup, "CONTAINER": site.container, "SIF": site.image,
           "BINDS": ",".join(site.build_binds)}
    return Build("overlay", target.resolve(), (str(REPO / _SCRIPT),), 1, env)


def build_overlay(site: Site, plan: Build, force: bool = False, run: Run = call) -> None:
    """Build; the script itself writes aside and renames.

    Raises:
        UserError: this machine cannot build, somebody uses the old one, or building has failed.
    """
    if plan.target.suffix == ".sqf":
        raise UserError(f"an overlay is built as {plan.target.with_suffix('.img').name}, and "
                        "'launch.py overlay freeze' makes the .sqf of it; say -o FILE.img")
    check_target(plan.target, force, "overlay")
    need_program(site.container)
    check_image(site.image)
    holder = lock_holder(plan.target, write=True)
    if holder:
        raise UserError(f"overlay {plan.target} is in use by {holder}; wait, or choose another "
                        "place with -o")
    need_space(str(plan.target.parent), OVERLAY_GB, "choose another place with -o")
    remove_leftovers(plan.target.parent, plan.target.name)
    start = time.monotonic()
    if run(plan.command(plan.target), plan.env):
        raise UserError(f"the overlay could not be built, see the words above; {UNREACHED}")
    tell_built(plan.target, time.monotonic() - start)


def verify(site: Site, overlay: str, run: Run = call) -> int:
    """Compute known scores inside, as a job would: read-only, through the wrapper."""
    need_program(site.container)
    check_image(site.image)
    check_overlay(overlay)
    with tempfile.TemporaryDirectory(prefix="blip_art_verify_") as folder:
        argv = [str(REPO / _WRAPPER), site.python, "-m", "blip_art.cluster.golden", folder]
        return EXIT_FAILED if run(argv, _inside(site, overlay, folder)) else 0


def _inside(site: Site, overlay: str, folder: str) -> Dict[str, str]:
    return {"CONTAINER": site.container, "SIF": site.image, "OVERLAY": overlay,
            "BINDS": ",".join([*site.binds, folder]), "BLIP_ART_SCRATCH": folder,
            "PYTHONPATH": str(REPO), "PYTHONSAFEPATH": "1", "BLIP_ART_CACHE": site.cache}


def freeze(site: Site, overlay: str, target: Path, force: bool = False) -> None:
    """A squashfs of the overlay's /ext3: smaller, mounted faster, and nobody can write to it.

    Raises:
        UserError: a program is missing, or one has failed.
    """
    check_target(target, force, "overlay")
    for program in (site.container, "mksquashfs"):
        need_program(program)
    check_image(site.image)
    check_overlay(overlay)
    start = time.monotonic()
    with written_aside(target) as aside, \
            tempfile.TemporaryDirectory(prefix="blip_art_freeze_") as folder:
        # .wh.*: what fuse-overlayfs notes in folders that hide the image's.
        _unpack([site.container, "--quiet", "exec", "--overlay", f"{overlay}:ro", site.image,
                 "tar", "-C", "/", "-cf", "-", "--exclude=.wh.*", "ext3"], folder)
        squash([folder], aside, squashfs_options(site.container).split())
    tell_built(target, time.monotonic() - start)


def _unpack(tar: Sequence[str], folder: str) -> None:
    """Write what the command packs into `folder`; the image itself has no mksquashfs."""
    with subprocess.Popen(tar, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as packing:
        unpacked = subprocess.run(["tar", "-C", folder, "-xf", "-"], stdin=packing.stdout,
                                  check=False)
    if packing.returncode or unpacked.returncode:
        raise UserError(f"the overlay could not be unpacked to {folder}, see the words above; "
                        "set TMPDIR to a folder with more space")


def squash(sources: Sequence[str], target: Path, options: Sequence[str] = (),
           progress: bool = False) -> None:
    """Pack folders as one squashfs file.

    Raises:
        UserError: mksquashfs has failed.
    """
    argv: List[str] = ["mksquashfs", *sources, str(target), "-noappend", "-no-xattrs", "-quiet",
                       *([] if progress else ["-no-progress"]), *options]
    cores = len(os.sched_getaffinity(0))  # mksquashfs would take all there are of a login node
    if subprocess.run([*argv, "-processors", str(cores)], check=False,
                      stdin=subprocess.DEVNULL).returncode:
        raise UserError(f"mksquashfs could not write {target.parent}, see its words above; "
                        "free space or choose another place with -o")
