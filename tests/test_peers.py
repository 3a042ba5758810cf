"""How ranks are connected, whoever else knocks, and that none outlives the first failure.

    python -m pytest tests/test_peers.py
"""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from blip_art import peers
from blip_art.failure import LOST, Failure, note_run, run_note, write_failure, write_killed
from blip_art.files import RunDir, read_json, write_json
from blip_art.peers import Peers, connect
from tests.conftest import REPO

# The ranks of these tests are threads of pytest, which is not to end with them.
peers.GRACE_S = 10.0**6


def connect_two(monkeypatch: pytest.MonkeyPatch,
                before: Callable[[int], Any] = lambda port: None) -> list[Peers]:
    """Ranks 0 and 1; `before` gets the port before rank 1 does."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    told: Queue[Any] = Queue()
    strangers = []

    def tell(value: Any) -> list[Any]:
        strangers.append(before(value[0]))
        told.put(value)
        return [value, None]
    with ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(connect, 0, 2, tell),
                 pool.submit(connect, 1, 2, lambda _: [told.get(timeout=20), None])]
        return [rank.result(timeout=30) for rank in ranks]


def knock(say: bytes, reset: bool = False) -> Callable[[int], socket.socket]:
    def stranger(port: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(say)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        return connection
    return stranger


@pytest.mark.parametrize(("say", "reset"), [
    (b"GET / HTTP/1.1\r\n", False), (b"\xff\xfe 1\n", False), (b"x" * 999, False), (b"", True),
    (b"", False)], ids=["http", "bytes", "long", "reset", "silent"])
def test_a_stranger_at_the_port_stops_no_run(
        monkeypatch: pytest.MonkeyPatch, say: bytes, reset: bool) -> None:
    monkeypatch.setattr(peers, "_CONNECT_S", 0.5)
    two = connect_two(monkeypatch, knock(say, reset))
    two[1].report(Failure(1, 1, "why"))
    assert two[0]._known.wait(5)
    assert two[0].first == Failure(1, 1, "why")


def test_connections_that_are_silent_for_days_are_kept_alive(
        monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in connect_two(monkeypatch):
        [connection] = rank._connections.values()
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.gettimeout() is None


STUCK = """
import socket, sys, time
from blip_art import peers
from blip_art.failure import Failure

peers.GRACE_S = 0.3
def record(failure):
    {record}
here, other = socket.socketpair()
rank = peers.Peers(1, {{0: here}})
rank.record = record
other.close()
time.sleep(60)
"""


@pytest.mark.parametrize("record", ["raise OSError('no such file system')", "time.sleep(60)"],
                         ids=["fails", "hangs"])
def test_a_rank_ends_where_the_failure_cannot_be_recorded(record: str) -> None:
    done = subprocess.run([sys.executable, "-c", STUCK.format(record=record)], timeout=30,
                          check=False, capture_output=True, env={"PYTHONPATH": str(REPO)})
    assert done.returncode == 1


def test_a_file_system_that_is_away_hides_no_error(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(*args: Any, **options: Any) -> None:
        raise OSError(116, "Stale file handle")
    monkeypatch.setattr("pathlib.Path.stat", stat)
    write_failure(RunDir(tmp_path), "predict", Failure(0, 1, LOST))


OLD, LOSS = "rank 2: of the start before", "rank 1: RuntimeError: the loss is lost"


@pytest.mark.parametrize(("recorded", "number", "first"), [
    (LOSS, signal.SIGABRT, LOSS),  # by NCCL, whose peer has ended
    (f"rank 0 {LOST}", signal.SIGABRT, "rank 0 was ended by SIGABRT"),
    (LOSS, signal.SIGKILL, "rank 0 was ended by SIGKILL (often: not enough memory)"),
    ("", signal.SIGABRT, "rank 0 was ended by SIGABRT")])
def test_the_first_reason_stays_when_other_ranks_are_aborted(
        tmp_path: Path, recorded: str, number: int, first: str) -> None:
    run = RunDir(tmp_path / "run")
    write_json(run.state, {"state": "failed", "why": OLD})
    with run_note() as note:
        note_run(run, "train")
        if recorded:
            write_failure(run, "train", Failure(1, 1, recorded))
        assert write_killed(note, 0, number) == first
    assert read_json(run.state) == {"state": "failed", "why": first}
