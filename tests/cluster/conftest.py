"""The fixture `cluster`: a real Slurm with image and overlay, used as an ordinary user.

    python -m pytest tests/cluster      as root; without root or Slurm these tests are skipped
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import daemons, images

REPO = Path(__file__).resolve().parents[2]
SESSIONS_KEPT = 4
# What pip and downloads need on this machine; everything else the user has to himself.
PASSED = re.compile(r"(?i)PIP_.*|.*_proxy|SSL_CERT_.*|(REQUESTS|CURL)_CA_BUNDLE|BLIP_ART_CORENLP")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bringing everything up takes minutes, once: a test's time limit is its own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900, func_only=True))


class Cluster:
    """A student's view of a cluster: a home, a checkout, a site profile, and the commands."""

    def __init__(self) -> None:
        self.user = pwd.getpwnam(daemons.USER)
        self.home = self._session_folder()
        """A folder of the user's own, new for this session of tests."""
        self.scratch = Path("/tmp", self.home.name)
        """Made by jobs that are given it; not in `home`, for sockets must have short names."""
        self.python = str(self._login_python())
        """The login node's interpreter: submitit and PyYAML, no torch."""
        self.checkout = self._clone()
        """A clone with the work tree's files as they are now."""
        self.image, self.overlay = images.build(
            self.checkout, lambda argv: self._must(argv, self.checkout), self.python)
        self.site = self.write_site("blip")
        """The site profile of this cluster."""

    def run(self, argv: Sequence[str | Path], cwd: Path | None = None,
            env: dict[str, str] | None = None, timeout: float = 600,
            ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, in `home` if nothing else is said."""
        return subprocess.run(
            [str(word) for word in argv], cwd=cwd or self.home, text=True, check=False,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout,
            env={**self.environment(), **(env or {})}, **self._as_user())

    def popen(self, argv: Sequence[str | Path], cwd: Path | None = None,
              env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command as the user and leave it running."""
        return subprocess.Popen(
            [str(word) for word in argv], cwd=cwd or self.home, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**self.environment(), **(env or {})}, **self._as_user())

    def launch(self, *words: str | Path, cwd: Path | None = None,
               env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """launch.py of the checkout, with the cluster's site profile."""
        return self.run([self.python, self.checkout / "launch.py", *words], cwd or self.checkout,
                        {"BLIP_ART_SITE": str(self.site), **(env or {})})

    def as_root(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """What the cluster's administrator does."""
        return subprocess.run(argv, env=daemons.environment(), text=True, check=False,
                              capture_output=True, stdin=subprocess.DEVNULL)

    def wait(self, true: Callable[[], Any], timeout: float = 120, what: str = "change") -> None:
        """Poll until it is true."""
        daemons.wait_until(lambda: bool(true()), timeout, what)

    def kill_node(self, node: str) -> None:
        """As a power failure; `start_node` brings it back."""
        daemons.kill_node(node)

    def start_node(self, node: str) -> None:
        """Bring a killed node back; returns when jobs can start on it."""
        daemons.start_node(node)
        self.wait(daemons.nodes_are_up, 60, f"{node} up")

    def write_site(self, name: str, **changes: Any) -> Path:
        """A site profile of this cluster with some keys changed."""
        values = {
            "name": name, "partition": "gpu", "cpu_partition": "cpu", "account": daemons.ACCOUNT,
            "gres": "gpu:v100:{gpus}", "device": "cpu", "gpus_per_node": 4, "cpus_per_gpu": 1,
            "mem_gb": 16, "cpu_cpus": 2, "cpu_mem_gb": 8, "time_min": 60, "signal_delay_s": 30,
            "container": daemons.CONTAINER, "image": str(self.image), "overlay": str(self.overlay),
            "scratch": "/tmp", "parses": str(self.home / "parses.sqlite"),
            "build_binds": [path for path in images.PIP_SETTINGS if Path(path).exists()],
            **changes}
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def environment(self) -> dict[str, str]:
        """A login shell's."""
        passed = {key: value for key, value in os.environ.items() if PASSED.fullmatch(key)}
        return {**passed, "HOME": self.user.pw_dir, "USER": self.user.pw_name,
                "LOGNAME": self.user.pw_name, "LANG": "C.UTF-8",
                "PATH": "/usr/local/bin:/usr/bin:/bin", "SLURM_CONF": str(daemons.SLURM_CONF)}

    def _as_user(self) -> dict[str, Any]:
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def _must(self, argv: Sequence[str | Path], cwd: Path) -> None:
        done = self.run(argv, cwd, timeout=1800)
        assert done.returncode == 0, f"{argv}: {done.stdout[-4000:]}{done.stderr[-4000:]}"

    def _session_folder(self) -> Path:
        sessions = Path(self.user.pw_dir) / "sessions"
        path = sessions / f"{time.strftime('%d_%H%M%S')}_{os.getpid()}"
        path.mkdir(parents=True)
        for folder in (sessions, path):
            shutil.chown(folder, self.user.pw_uid, self.user.pw_gid)
        ended = [one for one in sessions.iterdir()
                 if not Path("/proc", one.name.rpartition("_")[2]).exists()]
        for old in sorted(ended, key=lambda one: one.stat().st_mtime)[:-SESSIONS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def _login_python(self) -> Path:
        """An environment that other users can run: not made from an interpreter below /root."""
        pins = [line.split()[0] for line in (REPO / "requirements.txt").read_text().splitlines()
                if line.startswith(("submitit", "PyYAML"))]
        folder = daemons.STATE / f"login-{'-'.join(pins)}"
        with images.locked():
            if not (folder / "done").exists():
                subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", folder], check=True)
                subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", *pins],
                               check=True)
                (folder / "done").touch()
        return folder / "bin" / "python"

    def _clone(self) -> Path:
        checkout = self.home / "blip-art"
        checkout.mkdir()
        listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=REPO,
                                check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, listed):
            if (REPO / name).is_file():
                (checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / name, checkout / name)
        subprocess.run(["chown", "-R", f"{self.user.pw_uid}:{self.user.pw_gid}", checkout],
                       check=True)
        who = ["-c", "user.name=student", "-c", "user.email=student@localhost"]
        for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "clone"]):
            self._must(["git", *words], checkout)
        return checkout


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, up; the daemons stay up for the next session, its jobs are cancelled."""
    try:
        daemons.check_machine()
    except daemons.Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    with images.locked():
        daemons.up()
    cluster = Cluster()
    yield cluster
    shutil.rmtree(cluster.scratch, ignore_errors=True)
    jobs = cluster.run(["squeue", "-h", "-A", daemons.ACCOUNT, "-o", "%A %Z"]).stdout.splitlines()
    own = {job for job, folder in (line.split(" ", 1) for line in jobs)
           if folder.startswith(str(cluster.home))}
    if own:
        cluster.run(["scancel", *own])
