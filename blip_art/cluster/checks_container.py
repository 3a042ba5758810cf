"""What doctor looks at in the program that runs images: there, new enough, its own helpers.

    for check in program(site): print(check)
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Iterable

from blip_art.cluster.checks import Check, fail, ok, warn
from blip_art.cluster.runtime import (
    SINGULARITY,
    Version,
    packed_with,
    program_version,
    read_version,
)
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import run_command

# run.sh needs --mount (for names with commas or colons), image build needs --build-arg.
RUNS = {"apptainer": (1, 0), "singularity": (3, 9)}
BUILDS = {"apptainer": (1, 2), "singularity": (4, 0)}
# Its own fuse2fs refuses an overlay that the user may not write to (Apptainer's changes of 1.4.4).
NO_READ_ONLY_OVERLAY = {"apptainer": (1, 4, 3)}


def program(site: Site) -> Iterable[Check]:
    """What jobs start, as far as the login node knows it."""
    if not site.container:
        return
    if not shutil.which(site.container):
        where = f"after 'module load {' '.join(site.modules)}'" if site.modules else "on the nodes"
        yield warn(f"no {site.container} on this machine", f"doctor --job looks for it {where}; "
                   "to build images it must be here")
        return
    said = run_command([site.container, "--version"])
    if said.code:
        yield fail(f"{site.container} --version: {(said.err or said.out).strip()}")
        return
    yield fits(said.out.strip(), site.overlay)
    helper = _bundled_helper(site.container)
    if helper:
        yield warn(f"{helper} serves images and hears the jobs' signals", "a job that is preempted "
                   "or cancelled cannot save first and goes on from its last checkpoint: keep "
                   "train.save_every_min small; time limits are not affected")


def fits(said: str, overlay: str = "") -> Check:
    """Whether a version ('apptainer version 1.4.5', 'singularity-ce version 3.11.4-jammy') has
    what run.sh and the builds use."""
    found = read_version(said)
    if not found:
        return warn(f"{said}: not a version that is known here", "doctor --job shows whether it "
                    "works")
    name, version = found
    if version < RUNS[name]:
        return fail(f"{said} is too old", f"jobs need Apptainer {_dotted(RUNS['apptainer'])} or "
                    f"SingularityCE {_dotted(RUNS['singularity'])}: 'module avail {name}' lists "
                    "others; name the module in the site profile ('modules')")
    if version == NO_READ_ONLY_OVERLAY.get(name) and overlay and not overlay.endswith(".sqf"):
        return warn(f"{said} cannot mount an ext3 overlay that you may not write to",
                    "'launch.py overlay freeze' makes one that it can; or ask for 1.4.4")
    if version < BUILDS[name]:
        return warn(f"{said} runs jobs, but is too old to build an image",
                    f"build it with Apptainer {_dotted(BUILDS['apptainer'])} or SingularityCE "
                    f"{_dotted(BUILDS['singularity'])}, on any machine, and copy it here")
    return ok(said)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _bundled_helper(container: str) -> str:
    """The squashfuse that a container program prefers to the one in PATH, which run.sh shields."""
    libexec = re.search(r"^LIBEXECDIR=(.+)$", run_command([container, "buildcfg"]).out,
                        re.MULTILINE)
    helpers = [Path(libexec[1], name, "bin", "squashfuse_ll")
               for name in ("apptainer", "singularity")] if libexec else []
    return next((str(path) for path in helpers if path.exists()), "")


def compression(site: Site) -> Iterable[Check]:
    """Images that were built by the one program and are run by the other."""
    if program_version(site.container).name != SINGULARITY:
        return
    for path, command in ((site.image, "image build' (with Apptainer: --squashfs '-comp gzip')"),
                          (site.overlay, "overlay freeze'")):
        if Path(path).is_file() and packed_with(path) == "zstd":
            yield fail(f"{path} is packed with zstd, which {site.container} cannot read",
                       f"make it again: 'launch.py {command}")


CHECKS = (program, compression)
