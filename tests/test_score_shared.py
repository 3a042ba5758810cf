"""Several jobs and one file of parses: nothing is lost or replaced under another's hands.

    python -m pytest tests/test_score_shared.py
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from blip_art.errors import UserError
from blip_art.score import parse_cache
from blip_art.score.claims import Claims
from blip_art.score.engine import Engine
from blip_art.score.parse_cache import ParseCache, merge, own_part
from blip_art.score.parses import OnParsed

CAT = {"a red cat": [["cat"], ["cat", "red"]]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "parses.sqlite"


def no_locks(folder: Path) -> bool:
    return False


def test_two_processes_share_a_file(path: Path) -> None:
    code = ("import sys; from blip_art.score.parse_cache import ParseCache\n"
            "with ParseCache(sys.argv[1], 'p') as cache:\n"
            "    for n in range(40): cache.add({f'{sys.argv[2]} {n}': [[str(n)]]})")
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name],
                                stderr=subprocess.PIPE, text=True) for name in "ab"]
    assert [process.communicate()[1] for process in running] == ["", ""]
    with ParseCache(path, "p") as cache:
        assert len(cache.find([f"{name} {n}" for name in "ab" for n in range(40)])) == 80


SHARING = """
import sys, time
from blip_art.score import claims
from blip_art.score.engine import Engine
claims.BLOCK_S = 0.1
class Slow:
    version = "p"
    def __call__(self, texts, on_parsed):
        for text in texts:
            time.sleep(0.02)
            on_parsed({text: [[word] for word in text.split()]})
            print(text, flush=True)
with Engine(parser=Slow(), parses=sys.argv[1], threads=1) as engine:
    print("ready", flush=True)
    sys.stdin.readline()
    engine.propositions([f"text {n}" for n in range(200)])
"""


def scorers(path: Path, count: int) -> list[subprocess.Popen[str]]:
    """Processes that are about to parse the same 200 texts."""
    running = [subprocess.Popen([sys.executable, "-c", SHARING, str(path)], text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
               for _ in range(count)]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    return running


def test_two_scorers_that_start_at_once_parse_each_text_once(path: Path) -> None:
    running = scorers(path, 2)
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    parsed = [process.communicate(timeout=200)[0].split("\n")[:-1] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert all(parsed)
    assert sorted(parsed[0] + parsed[1]) == sorted(f"text {n}" for n in range(200))


def engine_of(path: Path) -> Engine:
    class Words:
        version = "p"

        def __call__(self, texts: Sequence[str], on_parsed: OnParsed) -> None:
            on_parsed({text: [[word] for word in text.split()] for text in texts})

    return Engine(parser=Words(), parses=path, threads=1)


def test_a_scorer_that_was_killed_keeps_nobody_waiting(
        path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [process] = scorers(path, 1)
    assert process.stdin
    assert process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    process.stdout.readline()
    process.kill()
    done = process.stdout.read().split("\n")
    with engine_of(path) as engine:
        engine.propositions([f"text {n}" for n in range(200)])
        assert 200 - len(done) - 1 <= engine.parsed < 200
    assert "waiting" not in capsys.readouterr().err
    process.wait()


def test_what_another_host_does_not_parse_in_time_is_parsed(
        path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ParseCache(path, "p"), Claims(path, "p", 1) as claims:
        assert claims.take(["a", "b"]) == ["a", "b"]
        with contextlib.closing(sqlite3.connect(path)) as file, file:
            file.execute("UPDATE claims SET owner = 'node9 1 x 1', seconds = 1")
        with engine_of(path) as engine:
            assert len(engine.propositions(["a", "b", "c"])) == 3
    assert "2 texts are being parsed by another scorer; waiting" in capsys.readouterr().err


def test_after_one_time_out_a_locked_file_costs_nothing(
        path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parse_cache, "WAIT_FOR_OTHERS_S", 3.0)
    texts = [f"text {n}" for n in range(100 * parse_cache.KEYS_AT_ONCE)]
    with ParseCache(path, "p") as cache, contextlib.closing(sqlite3.connect(path)) as other:
        cache.add(CAT)
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert cache.find([*CAT, *texts]) == {}
        for text in texts[:50]:
            cache.add({text: []})
        assert time.monotonic() - began < 60  # not 3 s for each of 100 questions
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"'fuser {path}' names the program" in said
        other.rollback()
        assert cache.find(list(CAT)) == CAT
    with ParseCache(path, "p") as cache:
        assert len(cache.find(texts[:60])) == 50


def test_without_locks_each_process_writes_its_own_part_that_is_merged(path: Path) -> None:
    with ParseCache(path, "p") as cache:
        cache.add(CAT)
    with ParseCache(path, "p", can_lock=no_locks) as cache:
        cache.add({"a dog": [["dog"]]})
        assert len(cache.find(["a red cat", "a dog"])) == 2
    assert own_part(path).exists()
    assert merge(path) == 1
    assert not own_part(path).exists()
    with ParseCache(path, "p") as cache:
        assert cache.find(["a red cat", "a dog"]) == {**CAT, "a dog": [["dog"]]}


def part_of(path: Path, host: str, pid: int, text: str) -> Path:
    """What a process without locks left beside `path`."""
    made = path.with_name("made")
    with ParseCache(made, "p", can_lock=no_locks) as cache:
        cache.add({text: []})
    return own_part(made).rename(path.with_name(f"{path.name}.{host}-{pid}.part"))


@pytest.mark.parametrize("can_lock", [lambda _: True, no_locks])
def test_parts_of_others_are_read_and_one_line_says_so(
        path: Path, capsys: pytest.CaptureFixture[str],
        can_lock: Callable[[Path], bool]) -> None:
    """A job that is put back in the queue finds what it parsed as another process."""
    part_of(path, "node1", 17, "a")
    part_of(path, "node2", 17, "b").write_bytes(b"cut short" * 900)
    capsys.readouterr()
    for _ in range(2):
        with ParseCache(path, "p", can_lock=can_lock) as cache:
            assert cache.find(["a", "b"]) == {"a": []}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "2 parts beside" in said


def test_parts_that_a_job_may_still_write_are_left(path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    here, gone = os.uname().nodename, subprocess.Popen(["true"])
    gone.wait()
    parts = [part_of(path, here, os.getppid(), "lives"), part_of(path, "node9", 1, "fresh"),
             part_of(path, here, gone.pid, "dead"), part_of(path, "node9", 2, "old")]
    os.utime(parts[3], (0, 0))
    assert merge(path) == 2
    assert [part.exists() for part in parts] == [True, True, False, False]
    assert "2 parts are left" in capsys.readouterr().err


HALF = """
import os, sqlite3, sys
file = sqlite3.connect(f"file:{sys.argv[1]}?nolock=1", uri=True, isolation_level=None)
file.execute("PRAGMA cache_size=1")
file.execute("BEGIN")
for n in range(3000): file.execute("INSERT INTO parses VALUES (?, ?)", (b"%d" % n, bytes(99)))
os._exit(9)
"""


def test_what_a_killed_job_left_half_written_is_undone_before_a_merge(path: Path) -> None:
    part = part_of(path, "node9", 1, "whole")
    subprocess.run([sys.executable, "-c", HALF, str(part)], check=False)
    assert part.with_name(f"{part.name}-journal").exists()
    whole = part.read_bytes()
    # A page that was being written.
    part.write_bytes(whole[:4096] + bytes(4096) + whole[8192:])
    os.utime(part, (0, 0))
    assert merge(path) == 1


def test_without_locks_no_broken_file_is_replaced(path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    with ParseCache(path, "p") as cache:
        cache.add(CAT)
    with ParseCache(path, "p", can_lock=no_locks) as cache:
        own_part(path).write_bytes(b"no database" * 900)
        cache.add({"a": []})
        assert cache.find(["a red cat"]) == CAT
        assert cache.flush() == 1
    assert "cannot be read now" in capsys.readouterr().err
    own_part(path).unlink()
    path.write_bytes(b"no database" * 900)
    with ParseCache(path, "p", can_lock=no_locks) as cache:
        cache.add({"a": []})
        assert cache.flush() == 0
    assert path.read_bytes() == b"no database" * 900


def test_of_many_jobs_that_see_a_broken_file_one_replaces_it(path: Path) -> None:
    with ParseCache(path, "p") as cache:
        cache.add({f"text number {n}": [] for n in range(3000)})
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(ParseCache(path, "p")) for _ in range(3)]
        path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))
        for number, job in enumerate(jobs):
            job.add({f"{n} {number}": [] for n in range(2000)})
            assert job.find([f"0 {number}"])
    with ParseCache(path, "p") as cache:
        assert len(cache.find([f"{n} {job}" for job in range(3) for n in range(2000)])) == 6000
    assert len(list(path.parent.glob("parses.sqlite.broken-*"))) == 1


def test_one_time_out_of_a_lock_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_cache, "WAIT_FOR_OTHERS_S", 0.1)
    with ParseCache(path, "p") as cache:
        cache.add(CAT)
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            cache.add({"a": []})
        cache.add({"b": []})
    with ParseCache(path, "p") as cache:
        assert cache.find(["a", "b"]) == {"a": [], "b": []}


def test_files_of_others_are_merged_and_stay(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other.sqlite"
    for file in (path, other):
        with ParseCache(file, "p") as cache:
            cache.add({"both": [], file.name: []})
    assert merge(path, [other]) == 1
    assert other.exists()
    with pytest.raises(UserError, match="no parses at"):
        merge(path, [tmp_path / "nowhere"])
