"""The image and overlay of the test cluster, built once for each content of their inputs.

    image, overlay = build(checkout, run_as_user)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blip_art.cluster.runtime import squashfs_options
from tests.cluster.daemons import CONTAINER, STATE, USER

IMAGES = STATE / "images"
# What the site of this machine has for pip, where it has it.
PIP_SETTINGS = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
DEBOOTSTRAP = ("--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm")
IMAGE_INPUTS = ("singularity/blip_art.def", "requirements.txt")
OVERLAY_INPUTS = ("singularity/overlay.sh", "blip_art/score/corenlp.py",
                  "blip_art/score/paraphrases.py")
KEPT_S = 24 * 3600.0
AsUser = Callable[[Sequence[str]], None]


def build(checkout: Path, as_user: AsUser, python: str) -> tuple[Path, Path]:
    """Paths of image and overlay, of the checkout's definition and requirements.

    Args:
        as_user: runs a command as the ordinary user, in the checkout; raises if it fails.
        python: the login side's interpreter.
    """
    IMAGES.mkdir(exist_ok=True)
    shutil.chown(IMAGES, USER)
    with locked():
        base = _base()
        image_key = _key(checkout, IMAGE_INPUTS, " ".join(
            (*DEBOOTSTRAP, squashfs_options(CONTAINER))))
        image = IMAGES / f"image-{image_key}.sif"
        overlay = IMAGES / f"overlay-{_key(checkout, OVERLAY_INPUTS, image_key)}.img"
        profile = _profile(image, overlay, base)
        for path, words in ((image, ["image", "build"]),
                            (overlay, ["overlay", "build"])):
            if not path.exists():
                _told(path.name, lambda words=words: as_user(  # type: ignore[misc]
                    [python, "launch.py", *words, "--site", str(profile)]))
        _forget_old({image, overlay})
    return image, overlay


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Two sessions of tests on one machine must not build the same thing."""
    STATE.mkdir(parents=True, exist_ok=True)
    with open(STATE / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _base() -> Path:
    """A minimal Debian, in the place of the docker image that a real site builds on."""
    key = hashlib.sha256(" ".join(DEBOOTSTRAP).encode()).hexdigest()[:12]
    base = IMAGES / f"base-{key}"
    if not base.exists():
        aside = base.with_suffix(".tmp")
        shutil.rmtree(aside, ignore_errors=True)
        _told(base.name, lambda: _debootstrap(aside))
        aside.rename(base)
    return base


def _debootstrap(folder: Path) -> None:
    subprocess.run(["debootstrap", *DEBOOTSTRAP, str(folder), _mirror()], check=True,
                   stdout=subprocess.DEVNULL)
    for name in ("dev", "var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(folder / name)
        (folder / name).mkdir()
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)


def _mirror() -> str:
    """The one this machine has its own packages from."""
    ask = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages",
           "Origin: Debian", "Codename: bookworm", "Component: main"]
    for _ in range(2):
        found = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.split()
        if found:
            return found[0]
        subprocess.run(["apt-get", "update", "-qq"], check=True)
    raise AssertionError("apt has no Debian bookworm among its sources")


def _profile(image: Path, overlay: Path, base: Path) -> Path:
    path = IMAGES / "build.yaml"
    binds = "".join(f"\n  - {name}" for name in PIP_SETTINGS if Path(name).exists())
    path.write_text(f"container: {CONTAINER}\nimage: {image}\noverlay: {overlay}\nbase: {base}\n"
                    f"build_binds:{binds}\n")
    return path


def _key(checkout: Path, inputs: Sequence[str], start: str) -> str:
    digest = hashlib.sha256(start.encode())
    for name in inputs:
        digest.update((checkout / name).read_bytes())
    return digest.hexdigest()[:12]


def _told(what: str, make: Callable[[], None]) -> None:
    start = time.monotonic()
    make()
    print(f"{what}: built in {time.monotonic() - start:.0f} s", file=sys.__stderr__)


def _forget_old(current: set[Path]) -> None:
    for path in {*IMAGES.glob("image-*"), *IMAGES.glob("overlay-*")} - current:
        if time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink()
