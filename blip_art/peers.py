"""What the ranks of a run know of each other: which one has failed first, and why.

    peers = connect(rank, size, gather)
    first = peers.report(Failure(rank, 1, "why")); …; peers.leave()

Every rank has a connection to rank 0 on which nothing is said until one fails. A rank that is
killed needs to say nothing: the system closes its connection. So all learn of a failure at once, by
a thread, also while they wait in a collective that will never return (NCCL notices a lost peer
after its time limit of many minutes).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from blip_art.errors import EXIT_FAILED, UserError, end_now
from blip_art.failure import LOST, NOTE, Failure

# After the first failure there is nothing left to do but to end; a rank that has not ended by
# itself after this long is stuck in a collective or in its own cleaning up.
GRACE_S = 10.0
# An error that a lost peer causes comes in the same moment as the news that the peer is lost.
NEWS_S = 2.0
_ANSWER_S, _CONNECT_S = 5.0, 60.0


class Peers:
    """This rank's connections: rank 0 has one to each other rank, the others one to rank 0."""

    def __init__(self, rank: int, connections: dict[int, socket.socket]) -> None:
        self.rank = rank
        self.first: Failure | None = None
        self.record: Callable[[Failure], None] = lambda failure: None
        """Writes the first failure where the user looks for it."""
        self._connections = connections
        self._printed = False
        self._known, self._lock = threading.Event(), threading.Lock()
        for peer, connection in connections.items():
            threading.Thread(target=self._listen, args=(peer, connection), daemon=True).start()

    def report(self, failure: Failure, wait_s: float = 0.0) -> Failure:
        """Tell the others of this rank's failure, unless they have failed before.

        Args:
            wait_s: time to wait for news of an earlier one, which may be the cause.

        Returns:
            The first failure of all. It has been recorded.
        """
        if not (self._connections and self._known.wait(wait_s)):
            if self.rank and self._send(failure, self._connections.get(0)):
                self._known.wait(_ANSWER_S)
            self._settle(failure)
        assert self.first
        if self.rank in (0, self.first.rank) or self.first.rank == 0:
            self.record(self.first)
        if not self.first.is_printed and self.rank == (self.first.rank == 0):
            self._print_once(f"error: {self.first.why}")
        return self.first

    def _print_once(self, line: str) -> None:
        """Unless who started the ranks sees for itself how each one ended, and prints that."""
        with self._lock:
            if NOTE not in os.environ and not self._printed:
                print(line, file=sys.stderr, flush=True)
            self._printed = True

    def leave(self) -> None:
        """Say goodbye; all ranks do at the same point."""
        for connection in self._connections.values():
            self._send(None, connection)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    def _listen(self, peer: int, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                said = json.loads(line)
                if said is None:
                    return
                self._settle(Failure(**said))
        self._settle(Failure(peer, EXIT_FAILED, f"rank {peer} {LOST}", is_printed=False))

    def _settle(self, failure: Failure) -> None:
        """Take this failure for the first one, unless there is one already."""
        with self._lock:
            if self.first:
                return
            self.first = failure
        if self.rank == 0:
            for connection in self._connections.values():
                self._send(failure, connection)
        if self._connections:
            end = threading.Timer(GRACE_S, self._end)
            end.daemon = True
            end.start()
        self._known.set()

    def _end(self) -> None:
        assert self.first
        bound = threading.Timer(GRACE_S, os._exit, (self.first.code,))
        bound.daemon = True  # the file system of state.json may be what hangs
        bound.start()
        try:
            self.report(self.first)
        finally:
            end_now(self.first.code)

    @staticmethod
    def _send(failure: Failure | None, connection: socket.socket | None) -> bool:
        line = json.dumps(asdict(failure) if failure else None) + "\n"
        try:
            assert connection
            connection.sendall(line.encode())
        except OSError:
            return False  # the peer is gone, which the listener notices
        return True


def connect(rank: int, size: int, gather: Callable[[Any], list[Any]]) -> Peers:
    """Connect all ranks of a group with rank 0, on a port that `gather` makes known.

    Raises:
        UserError: a rank cannot be reached.
    """
    host = os.environ["MASTER_ADDR"]
    try:
        if rank == 0:
            with _server(size) as server:
                port, token = server.getsockname()[1], secrets.token_hex()
                gather((port, token))
                return Peers(0, dict(_accept(server, token) for _ in range(size - 1)))
        port, token = gather(None)[0]
        connection = socket.create_connection((host, port), timeout=_CONNECT_S)
        _wait_without_limit(connection)
        connection.sendall(f"{token} {rank}\n".encode())
        return Peers(rank, {0: connection})
    except OSError as error:
        raise UserError(f"rank {rank} of {size} has no connection to rank 0 on {host} ({error}); "
                        "nodes of a job must reach each other on all ports") from error


def _server(size: int) -> socket.socket:
    try:
        server = socket.create_server(("", 0), family=socket.AF_INET6, backlog=size,
                                      dualstack_ipv6=True)
    except (OSError, ValueError):  # nodes without IPv6
        server = socket.create_server(("", 0), backlog=size)
    server.settimeout(_CONNECT_S)
    return server


def _accept(server: socket.socket, token: str) -> tuple[int, socket.socket]:
    """(rank, connection) of the next one that knows the token."""
    while True:
        connection, _ = server.accept()
        # Somebody else's, who looked for another service or scans ports, may say or do anything.
        with contextlib.suppress(OSError):
            connection.settimeout(_CONNECT_S)
            said = _first_line(connection).split()
            if len(said) == 2 and secrets.compare_digest(said[0], token.encode()):
                _wait_without_limit(connection)
                return int(said[1]), connection
        connection.close()


def _wait_without_limit(connection: socket.socket) -> None:
    """Nothing is said for days; the system asks each minute, so that no firewall forgets the
    connection, and a node that lost its power is noticed after ten."""
    connection.settimeout(None)
    for level, option, value in ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                                 (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
                                 (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60),
                                 (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9)):
        connection.setsockopt(level, option, value)


def _first_line(connection: socket.socket) -> bytes:
    """Byte by byte, to leave what follows to the listener."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 200:
        byte = connection.recv(1)
        if not byte:
            break
        line += byte
    return line
