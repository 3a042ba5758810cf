#!/usr/bin/env python3
"""Brings up a real Slurm on this machine for the tests: 2 nodes of 4 GPUs, 1 CPU node, accounting.

    sudo python3 tests/cluster/daemons.py up      down ends it, 'status' shows it; state and logs
    are in /var/tmp/blip_art_cluster, or in $BLIP_ART_CLUSTER. Packages: .ci/packages.sh
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

HERE = Path(__file__).resolve().parent
STATE = Path(os.environ.get("BLIP_ART_CLUSTER", "/var/tmp/blip_art_cluster"))
USER, ACCOUNT = "blipuser", "art"
NODES = ("v100-1", "v100-2", "cpu-1")
SLURM_CONF = STATE / "conf" / "slurm.conf"
DATABASE_PORT = "26306"
COMMANDS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch")
# Another program than the usual one, SingularityCE for example; a path is as good.
CONTAINER = os.environ.get("BLIP_ART_CONTAINER", "apptainer")
_HOSTS = "# blip_art test cluster"


class Missing(Exception):
    """Why there can be no cluster here."""


def check_machine() -> None:
    """Whether a cluster can be brought up here; raises Missing."""
    if os.geteuid() != 0:
        raise Missing("the test cluster needs root: its daemons run as other users")
    missing = [name for name in (*COMMANDS, CONTAINER) if not shutil.which(name)]
    if missing:
        raise Missing(f"no {', '.join(missing)} here; .ci/packages.sh installs what is needed")
    if not os.path.exists("/dev/fuse"):
        raise Missing("no /dev/fuse here, which images need: this kernel or container has no FUSE")


def up() -> None:
    """Start whatever does not run yet; changed configuration starts everything anew."""
    check_machine()
    for name in ("", "conf", "log", "run", "spool"):
        (STATE / name).mkdir(parents=True, exist_ok=True, mode=0o755)
        if STATE.lstat().st_uid != os.geteuid():  # it lies where everybody can make folders
            raise Missing(f"{STATE} is another user's: remove it, or set BLIP_ART_CLUSTER")
    make_user()
    _name_nodes()
    if _configure():
        down()
    _start("munged", _munged, ready=lambda: _works("munge", "-n", "-S", _munge_socket()))
    _start("mariadbd", _mariadbd, ready=lambda: _works(*_sql("select 1")))
    _run(*_sql("create user if not exists slurm@'127.0.0.1' identified by 'slurm';"
               "grant all on slurm_acct_db.* to slurm@'127.0.0.1'"))
    _start("slurmdbd", lambda: ["slurmdbd"], ready=lambda: _works("sacctmgr", "-n", "show", "user"))
    _make_accounts()
    controlled = bool(_pid("slurmctld"))
    _start("slurmctld", lambda: ["slurmctld", "-f", str(SLURM_CONF)],
           ready=lambda: _works("scontrol", "ping"))
    for node in NODES:
        start_node(node)
    if not controlled:  # jobs of before the machine was switched off would be queued again
        _try("scancel", "--user", USER)
    wait_until(nodes_are_up, 60, "nodes idle")


def down() -> None:
    """End all daemons, the nodes first."""
    for name in [*(f"slurmd.{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadbd",
                 "munged"]:
        _stop(name)


def start_node(node: str) -> None:
    """Start the slurmd of one node, unless it runs."""
    _start(f"slurmd.{node}", lambda: ["slurmd", "-f", str(SLURM_CONF), "-N", node])


def kill_node(node: str) -> None:
    """What a power failure does: the node's slurmd, its steps and its tasks are gone at once."""
    processes = _processes()
    tasks = {pid for pid in processes if f"SLURMD_NODENAME={node}" in _environment(pid)}
    # A container's mounts are processes that know nothing of Slurm.
    tasks |= {pid for pid in processes if not tasks.isdisjoint(_ancestors(pid))}
    steps = {parent for pid in tasks for parent in _ancestors(pid)
             if _name(parent) == "slurmstepd"}
    for pid in [_pid(f"slurmd.{node}"), *steps, *tasks]:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def nodes_are_up() -> bool:
    """Whether jobs could start on every node."""
    states = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=environment(), text=True,
                            capture_output=True, check=False).stdout.split()
    return bool(states) and all(state in ("idle", "mixed", "allocated", "completing")
                                for state in states)


def environment() -> dict[str, str]:
    """This process's environment with the cluster's configuration."""
    return {**os.environ, "SLURM_CONF": str(SLURM_CONF)}


def wait_until(true: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until it is true; TimeoutError names `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {timeout_s:g} s; logs are in {STATE / 'log'}")
        time.sleep(0.2)


def make_user() -> pwd.struct_passwd:
    """The ordinary user of the tests, who may use FUSE as users of a cluster may."""
    if USER not in (entry.pw_name for entry in pwd.getpwall()):
        _run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    os.chmod("/dev/fuse", 0o666)
    return pwd.getpwnam(USER)


def _configure() -> bool:
    """Write the configuration files; whether they differ from what daemons may run with."""
    values = {"state": str(STATE), "host": socket.gethostname()}
    changed = False
    for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
        text = string.Template((HERE / name).read_text()).substitute(values)
        target = STATE / "conf" / name
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            changed = True
    (STATE / "conf" / "slurmdbd.conf").chmod(0o600)  # slurmdbd insists
    return changed


def _name_nodes() -> None:
    """Ranks find each other by the nodes' names."""
    hosts = Path("/etc/hosts")
    line = f"127.0.0.1 {' '.join(NODES)} {_HOSTS}\n"
    if line not in hosts.read_text():
        with hosts.open("a") as file:
            file.write(line)


def _munge_socket() -> str:
    return str(STATE / "run" / "munge.socket")


def _munged() -> list[str]:
    key = STATE / "conf" / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
    return ["munged", "--force", "--socket", _munge_socket(), "--key-file", str(key),
            "--pid-file", str(STATE / "run/munged.pid"), "--seed-file", str(STATE / "run/seed"),
            "--log-file", str(STATE / "log/munged.log")]


def _mariadbd() -> list[str]:
    database = STATE / "db"
    if not (database / "mysql").exists():
        _run("mariadb-install-db", "--no-defaults", f"--datadir={database}", "--user=root",
             "--skip-test-db", "--auth-root-authentication-method=normal")
    return ["mariadbd", "--no-defaults", f"--datadir={database}", "--user=root",
            f"--socket={STATE}/run/mariadb.socket", f"--pid-file={STATE}/run/mariadbd.pid",
            "--bind-address=127.0.0.1", f"--port={DATABASE_PORT}", "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=2"]


def _sql(statements: str) -> list[str]:
    return ["mariadb", "--no-defaults", f"--socket={STATE}/run/mariadb.socket", "-e", statements]


def _make_accounts() -> None:
    """The user may submit with account 'art' only."""
    for words in (["cluster", "blip"], ["account", ACCOUNT, "Cluster=blip"],
                  ["user", USER, f"Account={ACCOUNT}"]):
        done = _try("sacctmgr", "-i", "add", *words)
        there = ("Nothing new added", "already exists")
        assert not done.returncode or any(words in done.stdout for words in there), done


def _start(name: str, argv: Callable[[], Sequence[str]],
           ready: Callable[[], bool] = lambda: True) -> None:
    """Start a daemon unless it runs, and wait until it answers."""
    if _pid(name):
        return
    with open(STATE / "log" / f"{name}.out", "ab") as log:
        subprocess.Popen(argv(), env=environment(), stdin=subprocess.DEVNULL, stdout=log,
                         stderr=log, start_new_session=True)
    wait_until(lambda: _pid(name) != 0 and ready(), 60, name)


def _stop(name: str) -> None:
    pid = _pid(name)
    if pid:
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not _pid(name), 20, "end of " + name)
            return
        os.kill(pid, signal.SIGKILL)


def _pid(name: str) -> int:
    """Process of a daemon of ours that runs, else 0; another may have got an old one's number."""
    try:
        pid = int((STATE / "run" / f"{name}.pid").read_text())
    except (FileNotFoundError, ValueError):
        return 0
    return pid if _name(pid) == name.partition(".")[0] else 0


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _environment(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return []


def _ancestors(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        while pid > 1:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            pid = int(stat.rpartition(")")[2].split()[1])
            found.append(pid)
    return found


def _try(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environment(), text=True, capture_output=True, check=False,
                          stdin=subprocess.DEVNULL)


def _works(*argv: str) -> bool:
    return _try(*argv).returncode == 0


def _run(*argv: str) -> None:
    done = _try(*argv)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: {done.stdout}{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("up", "down", "status", "start-node", "kill-node"))
    parser.add_argument("node", nargs="?", choices=NODES, default=NODES[0])
    options = parser.parse_args()
    try:
        {"up": up, "down": down, "status": lambda: print(_try("sinfo", "-N", "-l").stdout),
         "start-node": lambda: start_node(options.node),
         "kill-node": lambda: kill_node(options.node)}[options.what]()
    except (Missing, TimeoutError) as error:
        sys.exit(f"error: {error}")
    print(f"SLURM_CONF={SLURM_CONF}")


if __name__ == "__main__":
    main()
