"""A worker that is killed, silent or out of memory costs time, never a wrong number or an orphan.

    python -m pytest tests/test_score_workers.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blip_art.score import corenlp, java
from blip_art.score.engine import Engine
from blip_art.score.scoring import score_with
from blip_art.score.workers import (
    STARVED_SHARE,
    MetricFailed,
    Workers,
    _Task,
    cpu_seconds,
    is_eager,
)

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


HEEDLESS = """
import os, signal, sys
from blip_art.score.__main__ import main
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda *_: None)
print("ready", flush=True)
code = main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""


@pytest.mark.usefixtures("jars")
def test_slurms_warning_to_every_process_of_a_job_harms_nothing(tmp_path: Path) -> None:
    """From the first moment of a worker on, before it can say that it ignores signals."""
    refs = tmp_path / "refs.json"
    refs.write_text(json.dumps([{"image_id": n, "caption": text} for n, text in enumerate(TEXTS)]))
    command = subprocess.Popen(
        [sys.executable, "-c", HEEDLESS, str(refs), str(refs), "--metrics", "meteor,spice"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "BLIP_ART_PARSES": str(tmp_path / "parses.sqlite")})
    assert command.stdout
    assert command.stdout.readline() == "ready\n"
    told: set[int] = set()
    while command.poll() is None:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        told.update(map(int, children))
        for pid in (command.pid, *map(int, children)):
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, number)
        time.sleep(0.02)
    output, errors = command.communicate()
    assert command.returncode == 0, errors
    assert "1.000" in output
    assert len(told) == 1


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


def test_a_worker_that_does_not_read_is_replaced(
        workers: Workers, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    """Requests are larger than a pipe holds; what cost the time is said."""
    workers.map("tokenize", TEXTS, limit_s)
    pid = workers.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    rescue = threading.Timer(60.0, os.kill, (pid, signal.SIGKILL))
    rescue.start()
    monkeypatch.setattr(workers, "patience_s", 3.0)
    texts = [f"{text} " * 5000 for text in TEXTS]
    try:
        assert len(workers.map("tokenize", texts, lambda text: 1.0)) == len(TEXTS)
        assert rescue.is_alive()
    finally:
        rescue.cancel()
    assert re.fullmatch(rf"scoring: stopped by a signal \(SIGSTOP\), nothing for \d+ s "
                        rf"\(process {pid}\); another takes its place\n",
                        capsys.readouterr().err)


def test_what_a_worker_died_at_is_named_not_its_neighbour(jars: list[Path]) -> None:
    told: list[str] = []
    texts = [f"a cat sits on {number} mats" for number in range(100)]
    with Workers(java.java_setup(threads=2), java.class_paths(jars), os.environ) as workers:
        def kill(values: list[tuple[str, object]]) -> None:
            told.extend(text for text, _ in values)
            if workers.pid:
                os.kill(workers.pid, signal.SIGKILL)

        with pytest.raises(MetricFailed, match="ended with -9") as failure:
            workers.map("parse", texts, limit_s, kill)
    first_open = next(text for text in texts if text not in told)
    assert failure.value.items == [first_open]
    assert f"at '{first_open}'" in str(failure.value)


def test_who_is_kept_waiting_is_told_from_who_hangs() -> None:
    core, spin = min(os.sched_getaffinity(0)), "while True: pass"

    def start(code: str, nice: int) -> subprocess.Popen[bytes]:
        def pinned() -> None:
            os.sched_setaffinity(0, {core})
            os.nice(nice)
        return subprocess.Popen([sys.executable, "-c", code], preexec_fn=pinned)

    processes = [start(spin, 0), start(spin, 0), start(spin, 19),
                 start("import time; time.sleep(60)", 0)]
    _, busy, starved, asleep = (process.pid for process in processes)
    try:
        time.sleep(1)
        before = {pid: cpu_seconds(pid) for pid in (busy, starved)}
        time.sleep(2)
        used = {pid: cpu_seconds(pid) - seconds for pid, seconds in before.items()}
        assert used[starved] < 2 * STARVED_SHARE < used[busy]
        assert is_eager(starved)
        assert not is_eager(asleep)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_last_words_of_a_worker_that_left_nothing_open_are_told() -> None:
    task = _Task("parse", ["a cat"], limit_s, lambda values: None, ())
    task.errors[0] = "too long"
    assert task.failure("nothing for 3 s") == "nothing for 3 s, at 'a cat'"


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


def test_a_caption_that_does_not_fit_is_tried_with_more_memory_then_named(jars: list[Path]) -> None:
    words = LONG.split()
    small = java.JavaSetup(java.java_setup().libjvm, java.java_setup().version, 400, 700, 1)
    with Workers(small, java.class_paths(jars), os.environ) as workers:
        [short, long] = workers.map("parse", [TEXTS[0], " ".join(words[:35])], limit_s)
        assert ["cat"] in short
        assert long.count(["dog"]) > 5
        with pytest.raises(MetricFailed, match=r"30000 words need \d+ MB.*, at 'word w"):
            workers.map("parse", ["word " * 29999 + "word"], limit_s)


BURSTING = """
import json, os, resource, sys
from pathlib import Path
from blip_art.score import corenlp, java, java_parser, java_side
setup = java.java_setup(threads=2)
paths = java.class_paths(corenlp.find_jars(corenlp.cache_folder()))
started = java_side.start(setup.libjvm, setup.options(), paths)
parser = java_parser.SpiceParser(started, 2, charts_mb=10_000)
texts = json.loads(sys.argv[1])
list(parser.run(texts[::2]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (250 << 20),) * 2)
print(json.dumps(dict(parser.run(texts))), flush=True)
os._exit(0)
"""


@pytest.mark.usefixtures("jars")
def test_a_parse_that_runs_out_of_memory_is_an_error_in_every_thread() -> None:
    """CoreNLP would give a flat tree, from which SPICE reads nothing, and say nothing."""
    long = [" ".join(LONG.split()[:words]) for words in (110, 111)]
    command = [sys.executable, "-c", BURSTING, json.dumps([TEXTS[0], long[0], TEXTS[1], long[1]])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          check=True, timeout=100)
    parses: dict[str, Any] = json.loads(done.stdout.split("\n")[-2])
    assert parses["1"] == ["the parser ran out of memory (110 words)"]
    assert parses["3"] == ["the parser ran out of memory (111 words)"]
    assert ["cat", "red"] in parses["0"]
    assert ["cat", "green"] in parses["2"]


def test_the_jobs_heap_may_be_too_small_for_a_caption(jars: list[Path], tmp_path: Path) -> None:
    """It is parsed alone, with all the memory of the job, to what a large heap gives."""
    long = " ".join(LONG.split()[:70])
    parses = []
    for heap_mb in ("400", "4000"):
        path = tmp_path / f"{heap_mb}.sqlite"
        with Engine(parses=path, environ={**os.environ, "BLIP_ART_HEAP_MB": heap_mb}) as engine:
            parses.append(engine.propositions([long, TEXTS[0]]))
            # The worker of the second try is not kept.
            assert (engine.worker_pid is None) is (heap_mb == "400")
    assert parses[0] == parses[1]
    assert parses[0][long]


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


def test_the_same_words_over_and_over_cost_meteor_no_hours() -> None:
    often, endless = "the cat " * 150 + "sat", "the cat " * 2000
    with Engine(threads=1) as engine:
        assert engine.meteor([often], [[often]])[0].startswith("301.0 301.0")
        scores = score_with(engine, {1: [endless], 2: ["a dog"]}, {1: endless, 2: "a dog"},
                            ["bleu", "meteor"])
    assert "Bleu_4" in scores.metrics
    assert "repeat the same words so often, at 'the cat the cat" in scores.failed["meteor"]


def test_a_caption_of_30000_words_costs_spice_alone(jars: list[Path], tmp_path: Path) -> None:
    with Engine(parses=tmp_path / "parses.sqlite") as engine:
        long = " ".join(f"word{n}" for n in range(30_000))
        scores = score_with(engine, {1: ["a cat on a ship"], 2: ["a dog"]}, {1: long, 2: "a dog"})
        assert list(scores.failed) == ["spice"]
        assert "30000 words need " in scores.failed["spice"]
        # The other texts are known, so that the next call asks for none.
        assert engine.unparsed(["a cat on a ship", "a dog"]) == []
    assert scores.per_image["2"]["METEOR"] > 0.9
    assert {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr"} <= set(scores.metrics)
