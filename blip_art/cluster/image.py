"""Builds the image from singularity/blip_art.def.

    plan = image_plan(site, Path("blip_art.sif")); build_image(plan)
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

from blip_art.cluster.container import check_image
from blip_art.cluster.runtime import APPTAINER, FAST, program_version
from blip_art.cluster.site import Site
from blip_art.errors import UserError
from blip_art.files import remove_leftovers, written_aside

REPO = Path(__file__).resolve().parents[2]
DEFINITION = "singularity/blip_art.def"
BUILD_ENV = "/opt/blip_art/build.env"
# Measured: 8 GB unpacked, 4.4 GB packed.
UNPACKED_GB, PACKED_GB = 12, 6
Run = Callable[[Sequence[str], Dict[str, str]], int]
UNREACHED = ("where pip reaches nothing, the profile says how: 'build_setup' (https_proxy, "
             "PIP_INDEX_URL), 'build_binds' (pip.conf, certificates)")
# What people print goes into tickets.
_PASSWORD = re.compile(r"//[^/@\s]+@")


@dataclass(frozen=True)
class Build:
    """One command that makes a file; the file's name is its argument at `place`."""

    what: str
    target: Path
    argv: Tuple[str, ...]
    place: int
    env: Dict[str, str] = field(default_factory=dict)

    def command(self, target: Path) -> List[str]:
        return [*self.argv[:self.place], str(target), *self.argv[self.place:]]

    def shown(self) -> str:
        """As a shell command that can be read, and run by hand."""
        words = [f"{name}={shlex.quote(_PASSWORD.sub('//…@', value))}"
                 for name, value in self.env.items()]
        return " \\\n    ".join([f"cd {shlex.quote(str(REPO))} &&", *words,
                                 shlex.join(self.command(self.target))])


def call(argv: Sequence[str], env: Dict[str, str]) -> int:
    """The door to the programs that build: in the checkout, their words on this terminal."""
    child = subprocess.Popen(argv, env={**os.environ, **env}, cwd=REPO, stdin=subprocess.DEVNULL)
    interrupted = False
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            interrupted = True  # the program has got it too: it removes gigabytes before it ends
            continue
        if interrupted:
            raise KeyboardInterrupt
        return code


def image_plan(site: Site, target: Path, base: str = "", squashfs: str = "") -> Build:
    """How the image is built.

    Args:
        base: name of a docker image, or path of a folder or image of this machine; default: the
            site's, else the one the definition names.
        squashfs: options for mksquashfs; default: Apptainer's fastest to read.

    Raises:
        UserError: options that the program cannot pass on.
    """
    base = base or site.base
    argv = [site.container, "build", "--fakeroot", "--force"]
    if base:
        local = Path(base).expanduser()
        argv += ["--build-arg", f"BOOTSTRAP={'localimage' if local.exists() else 'docker'}",
                 "--build-arg", f"FROM={local.resolve() if local.exists() else base}"]
    argv += _places(site.build_binds)
    for bind in site.build_binds:
        argv += ["--bind", bind]
    if program_version(site.container).name == APPTAINER:
        argv += ["--mksquashfs-args", squashfs or FAST]
    elif squashfs:
        raise UserError(f"{site.container} is SingularityCE, which packs as its administrators "
                        "say; leave --squashfs out, or build with Apptainer")
    return Build("image", target.resolve(), (*argv, DEFINITION), len(argv),
                 dict(site.build_setup))


def _places(binds: Sequence[str]) -> List[str]:
    """Arguments that let the definition make room for what is bound; pip.conf has it already."""
    targets: Dict[str, List[str]] = {"FILES": ["/etc/pip.conf"], "FOLDERS": ["/opt/blip_art"]}
    for bind in binds:
        source, _, rest = bind.partition(":")
        target = rest.partition(":")[0] or source
        paths = targets["FOLDERS" if Path(source).is_dir() else "FILES"]
        if " " not in target and target not in paths:  # with a space: the base must have it
            paths.append(target)
    return [word for key, paths in targets.items() if len(paths) > 1
            for word in ("--build-arg", f"{key}={' '.join(paths)}")]


def build_image(plan: Build, force: bool = False, run: Run = call) -> None:
    """Build aside, look at it, rename.

    Raises:
        UserError: this machine cannot build, or building has failed.
    """
    check_target(plan.target, force, "image")
    need_program(plan.argv[0])
    need_namespaces()
    folder = os.environ.get("APPTAINER_TMPDIR") or tempfile.gettempdir()
    need_space(folder, UNPACKED_GB, "set APPTAINER_TMPDIR to a folder that has them")
    need_space(str(plan.target.parent), PACKED_GB, "choose another place with -o")
    remove_leftovers(plan.target.parent, plan.target.name)
    start = time.monotonic()
    with written_aside(plan.target) as aside, tempfile.NamedTemporaryFile(
            "w", suffix=".env") as variables:
        # Apptainer itself reads its environment, but %post is not given it.
        variables.writelines(f"{key}={shlex.quote(value)}\n" for key, value in plan.env.items())
        variables.flush()
        argv = plan.command(aside)
        if plan.env:
            argv[2:2] = ["--bind", f"{variables.name}:{BUILD_ENV}"]
        if run(argv, plan.env):
            base = "" if "BOOTSTRAP=localimage" in plan.argv else (
                "where its base was not fetched, name another with --base ('base' in the site "
                "profile): in a registry that is reached, or an image or folder of this machine; ")
            raise UserError(f"the image could not be built, see {plan.argv[0]}'s words above; "
                            f"{base}{UNREACHED}; or build on a machine that reaches all, and copy "
                            "the file")
        check_image(str(aside))
    tell_built(plan.target, time.monotonic() - start)


def tell_built(target: Path, seconds: float) -> None:
    """One line on stderr: what there is now."""
    minutes, rest = divmod(int(seconds), 60)
    gigabytes = target.stat().st_size / 1e9
    print(f"{target}: {gigabytes:.2f} GB in {minutes} min {rest} s", file=sys.stderr)


def check_target(target: Path, force: bool, what: str) -> None:
    """What is there is replaced only on demand."""
    if target.exists() and not force:
        raise UserError(f"there is {'an' if what[0] in 'aeio' else 'a'} {what} at {target}; "
                        "--force replaces it, -o makes another")
    if not target.parent.is_dir():
        raise UserError(f"no folder {target.parent}; make it, or choose another place with -o")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"cannot write to {target.parent}; choose another place with -o")


def need_program(name: str) -> None:
    """The container program, or one that comes with it."""
    if not name:
        raise UserError("this site has no container program: its profile says 'container:' and "
                        "nothing else; write apptainer or singularity")
    if not shutil.which(name):
        raise UserError(f"no {name} on {os.uname().nodename}; load its module, or build where "
                        "there is one: the file can be copied")


def need_namespaces(proc: Path = Path("/proc/sys/user/max_user_namespaces")) -> None:
    """--fakeroot is built on user namespaces, which some sites switch off."""
    if proc.exists() and proc.read_text().strip() == "0":
        raise UserError(f"{os.uname().nodename} allows no user namespaces, which --fakeroot "
                        "needs; build on another machine, the file can be copied")


def need_space(folder: str, gigabytes: int, advice: str) -> None:
    """Enough free space, told before a build that takes minutes."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise UserError(f"{folder} has {free:.1f} GB free and building needs {gigabytes}; {advice}")
