"""CoreNLP is fetched whole or not at all, by whoever asks first.

    python -m pytest tests/test_score_corenlp.py
"""

from __future__ import annotations

import hashlib
import http.server
import io
import resource
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blip_art.errors import UserError
from blip_art.score import corenlp

BYTES = bytes(range(256)) * 1000
JAR = corenlp.Jar("models", len(BYTES), hashlib.sha256(BYTES).hexdigest())


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder laid out as a Maven repository."""
    folder = tmp_path / "mirror"
    (folder / JAR.maven_path).parent.mkdir(parents=True)
    (folder / JAR.maven_path).write_bytes(BYTES)
    return folder


@pytest.fixture
def server(mirror: Path) -> Iterator[tuple[str, list[str]]]:
    """The mirror over HTTP, with the ranges it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = self.headers.get("Range", "")
            asked.append(start)
            path = mirror / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            body = path.read_bytes()[int(start.strip("bytes=-") or 0):]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}", asked
        http_server.shutdown()


def fetch(cache: Path, *sources: str) -> bytes:
    [path] = corenlp.fetch(cache, sources, [JAR])
    return path.read_bytes()


def test_a_folder_a_file_address_or_a_mirror_replaces_the_registry(
        tmp_path: Path, mirror: Path, server: tuple[str, list[str]]) -> None:
    for number, source in enumerate((str(mirror), mirror.as_uri(), server[0])):
        assert fetch(tmp_path / str(number), source) == BYTES


def test_the_next_source_is_tried(tmp_path: Path, mirror: Path,
                                  server: tuple[str, list[str]]) -> None:
    assert fetch(tmp_path, "/nowhere", f"{server[0]}/wrong", str(mirror)) == BYTES


def test_what_a_wrong_source_began_does_not_spoil_the_next(
        tmp_path: Path, mirror: Path, server: tuple[str, list[str]]) -> None:
    """As a portal that answers everything with a page of its own."""
    (tmp_path / "portal").mkdir()
    (tmp_path / "portal" / JAR.name).write_bytes(b"<html>please log in</html>")
    for number, good in enumerate((str(mirror), server[0])):
        assert fetch(tmp_path / str(number), str(tmp_path / "portal"), good) == BYTES


def test_without_file_locks_each_process_has_a_part_of_its_own(
        tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flock(*_: object) -> None:
        raise OSError(38, "no such thing here")
    monkeypatch.setattr(corenlp.fcntl, "flock", no_flock)
    part = corenlp.jar_folder(tmp_path) / f".{JAR.name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"another's")
    assert fetch(tmp_path, str(mirror)) == BYTES
    assert part.read_bytes() == b"another's"


def test_a_folder_in_place_of_the_file_or_a_wrong_address_leaves_the_next_source(
        tmp_path: Path, mirror: Path) -> None:
    (tmp_path / "odd" / JAR.name).mkdir(parents=True)
    sources = [str(tmp_path / "odd"), "http://host:port", "odd://host"]
    assert fetch(tmp_path, *sources, str(mirror)) == BYTES
    with pytest.raises(UserError, match=r"(?s)Is a directory.*nonnumeric port.*unknown url type"):
        fetch(tmp_path / "other", *sources)


def test_a_connection_that_breaks_in_another_way_leaves_the_next_source(
        tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        status = 200

        def read(self, size: int | None = -1) -> bytes:
            raise ssl.SSLError(1, "bad record mac")
    monkeypatch.setattr(corenlp.urllib.request, "urlopen", lambda *_, **options: Broken())
    assert fetch(tmp_path, "https://broken", str(mirror)) == BYTES


def test_a_cut_download_goes_on_where_it_stopped(tmp_path: Path,
                                                 server: tuple[str, list[str]]) -> None:
    part = corenlp.jar_folder(tmp_path) / f".{JAR.name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BYTES[:1234])
    assert fetch(tmp_path, server[0]) == BYTES
    assert server[1] == ["bytes=1234-"]


def test_other_bytes_are_refused_and_nothing_is_kept(tmp_path: Path, mirror: Path) -> None:
    (mirror / JAR.maven_path).write_bytes(BYTES[::-1])
    with pytest.raises(UserError, match="not the pinned file"):
        fetch(tmp_path / "cache", str(mirror))
    assert [path.name for path in corenlp.jar_folder(tmp_path / "cache").iterdir()] == [".lock"]


def test_what_is_there_needs_no_source(tmp_path: Path, mirror: Path) -> None:
    fetch(tmp_path, str(mirror))
    assert fetch(tmp_path, "/nowhere") == BYTES


def test_a_truncated_jar_is_named_and_fetched_again(tmp_path: Path, mirror: Path) -> None:
    [path] = corenlp.fetch(tmp_path, [str(mirror)], [JAR])
    path.write_bytes(BYTES[:100])
    with pytest.raises(UserError, match=r"has 100 bytes, not 256,000; remove it and run"):
        corenlp.find_jars(tmp_path, [JAR])
    assert fetch(tmp_path, str(mirror)) == BYTES


def test_absent_jars_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run 'python -m blip_art.score fetch'"):
        corenlp.find_jars(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, mirror: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot write to .*BLIP_ART_CACHE"):
        fetch(tmp_path / "cache", str(mirror))


def test_a_disk_that_fills_up_is_named_and_the_fetch_goes_on_later(
        tmp_path: Path, server: tuple[str, list[str]]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write to .*; free space or set"):
            fetch(tmp_path, server[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert fetch(tmp_path, server[0]) == BYTES
    assert server[1] == ["", "bytes=200000-"]


def test_four_processes_fetch_it_once(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    code = ("import sys; from pathlib import Path; from blip_art.score import corenlp\n"
            "jar = corenlp.Jar('models', int(sys.argv[3]), sys.argv[4])\n"
            "corenlp.fetch(Path(sys.argv[1]), [sys.argv[2]], [jar])")
    command = [sys.executable, "-c", code, str(tmp_path), server[0], str(JAR.size), JAR.sha256]
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert server[1] == [""]
    assert fetch(tmp_path) == BYTES
