"""A worker that is killed, silent or out of memory costs time, never a wrong number or an orphan.

    python -m pytest tests/test_score_workers.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blip_art.score import corenlp, java
from blip_art.score.engine import Engine
from blip_art.score.scoring import score_with
from blip_art.score.workers import MetricFailed, Workers

TEXTS = [f"a {colour} cat sits on a mat" for colour in "red green blue white black grey".split()]
LONG = "a cat and a dog " * 30


@pytest.fixture(scope="module")
def jars() -> list[Path]:
    return corenlp.fetch(corenlp.cache_folder(), corenlp.sources_from())


@pytest.fixture(scope="module")
def workers(jars: list[Path]) -> Iterator[Workers]:
    with Workers(java.java_setup(threads=1), java.class_paths(jars), os.environ) as workers:
        yield workers


def limit_s(item: object) -> float:
    return 60.0


def wait_for(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_killed_worker_is_replaced_with_what_it_left(workers: Workers) -> None:
    killed: list[int] = []

    def kill_once(values: object) -> None:
        if not killed and workers.pid:
            killed.append(workers.pid)
            os.kill(workers.pid, signal.SIGKILL)

    parses = workers.map("parse", TEXTS, limit_s, kill_once)
    assert killed
    for text, parse in zip(TEXTS, parses, strict=True):
        assert ["cat", text.split()[1]] in parse


def test_signals_of_the_job_do_not_reach_java(workers: Workers) -> None:
    workers.map("parse", TEXTS[:1], limit_s)
    pid = workers.pid
    assert pid

    def signal_it(values: object) -> None:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.kill(pid, number)

    assert len(workers.map("parse", TEXTS, limit_s, signal_it)) == len(TEXTS)
    assert workers.pid == pid


def test_a_silent_worker_is_ended_and_the_caption_named(
        workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    workers.map("tokenize", TEXTS, limit_s)
    monkeypatch.setattr(workers, "patience_s", 0.5)
    began = time.monotonic()
    silence = r"(nothing for|not ready after) \d+ s, at 'a cat and a dog"
    with pytest.raises(MetricFailed, match=silence):
        workers.map("parse", [LONG], lambda text: 0.5)
    monkeypatch.undo()
    assert time.monotonic() - began < 60
    assert workers.pid is None
    assert workers.map("tokenize", ["A cat."], limit_s) == ["a cat"]


def test_jars_may_lie_in_a_folder_with_an_odd_name(jars: list[Path], tmp_path: Path) -> None:
    package = java.package_folder()
    odd = tmp_path / "my 100% clone"
    odd.symlink_to(package)
    paths = {part: [path.replace(str(package), str(odd)) for path in paths]
             for part, paths in java.class_paths(jars).items()}
    assert str(odd) in paths["meteor"][0]
    with Workers(java.java_setup(threads=1), paths, os.environ) as workers:
        [statistics] = workers.map("meteor", [["a big cat", ["a large cat"]]], limit_s)
        assert workers.map("tokenize", ["A cat."], limit_s) == ["a cat"]
        [parse] = workers.map("parse", ["a red cat"], limit_s)
    assert statistics.split()[0] == "3.0"
    assert ["cat", "red"] in parse


def test_a_request_that_java_refuses_is_one_line(jars: list[Path]) -> None:
    paths = {**java.class_paths(jars), "spice": ["/nowhere.jar"]}
    with (Workers(java.java_setup(threads=1), paths, os.environ) as workers,
          pytest.raises(MetricFailed, match=r"^java.lang.ClassNotFound.*at 'a red cat'$")):
        workers.map("parse", ["a red cat"], limit_s)


def test_a_caption_that_does_not_fit_is_tried_with_more_heap_then_named(jars: list[Path]) -> None:
    words = LONG.split()
    small = java.JavaSetup(java.java_setup().libjvm, java.java_setup().version, 400, 700, 1)
    with Workers(small, java.class_paths(jars), os.environ) as workers:
        [short, long] = workers.map("parse", [TEXTS[0], " ".join(words[:35])], limit_s)
        assert ["cat"] in short
        assert long.count(["dog"]) > 5
        with pytest.raises(MetricFailed, match=r"30000 words need a heap of \d+ MB.*, at 'word w"):
            workers.map("parse", ["word " * 29999 + "word"], limit_s)


def test_a_second_death_costs_its_metric_alone_and_the_cache_stays_as_it_was(
        jars: list[Path], tmp_path: Path) -> None:
    def cached() -> list[tuple[str, int]]:
        return [(str(path), path.stat().st_mtime_ns)
                for path in sorted(jars[0].parent.rglob("*"))]

    before = cached()
    references, captions = {"1": [TEXTS[0]], "2": [TEXTS[1]]}, {"1": TEXTS[1], "2": TEXTS[0]}
    with Engine(threads=1, parses=tmp_path / "parses.sqlite") as engine:
        engine.tokenize(TEXTS)
        killer = threading.Thread(target=kill_two_workers, args=(engine,))
        killer.start()
        scores = score_with(engine, references, captions, ["bleu", "cider", "spice"])
        killer.join()
        assert "Bleu_4" in scores.metrics
        assert "SPICE" not in scores.metrics
        assert scores.failed["spice"].startswith("Java's process ended with -9")
        assert score_with(engine, references, captions, ["spice"]).failed == {}
    assert cached() == before


def kill_two_workers(engine: Engine) -> None:
    killed: set[int] = set()
    end = time.monotonic() + 60
    while len(killed) < 2 and time.monotonic() < end:
        pid = engine.worker_pid
        if pid and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@pytest.mark.usefixtures("jars")
@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_no_java_outlives_the_command(tmp_path: Path, number: signal.Signals, code: int) -> None:
    refs, results = tmp_path / "refs.json", tmp_path / "results.json"
    refs.write_text(json.dumps([{"image_id": 1, "caption": LONG}]))
    results.write_text(json.dumps([{"image_id": 1, "caption": LONG + "x"}]))
    command = subprocess.Popen(
        [sys.executable, "-m", "blip_art.score", str(refs), str(results), "--metrics", "spice"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "BLIP_ART_PARSES": str(tmp_path / "parses.sqlite")},
        # A shell's background jobs, such as these tests may be, begin with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    wait_for(children.read_text)
    worker = int(children.read_text())
    # Until Java is inside, which is when something could be left behind.
    wait_for(lambda: "libjvm" in Path(f"/proc/{worker}/maps").read_text())
    command.send_signal(number)
    _, errors = command.communicate(timeout=10)
    assert command.returncode == code
    assert "Traceback" not in errors
    wait_for(lambda: not is_running(worker), 5)


def test_a_caption_of_30000_words_costs_spice_alone(jars: list[Path], tmp_path: Path) -> None:
    with Engine(parses=tmp_path / "parses.sqlite") as engine:
        long = " ".join(f"word{n}" for n in range(30_000))
        scores = score_with(engine, {1: ["a cat on a ship"], 2: ["a dog"]}, {1: long, 2: "a dog"})
        assert list(scores.failed) == ["spice"]
        assert "30000 words need a heap" in scores.failed["spice"]
        # The other texts are known, so that the next call asks for none.
        assert engine.unparsed(["a cat on a ship", "a dog"]) == []
    assert scores.per_image["2"]["METEOR"] > 0.9
    assert {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr"} <= set(scores.metrics)
