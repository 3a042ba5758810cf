"""A text is parsed once, ever: remembered on disk whatever happens to the file, disk or process.

    python -m pytest tests/test_score_cache.py
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from blip_art.errors import UserError
from blip_art.score import answers as java_answers
from blip_art.score import corenlp, paraphrases
from blip_art.score.__main__ import main
from blip_art.score.answers import Answers
from blip_art.score.engine import JAVA_PARSER, PARSER_RULES, Engine
from blip_art.score.parse_cache import ParseCache
from blip_art.score.parses import OnParsed, parse_cost, shard
from blip_art.score.prepare import report
from blip_art.score.scoring import score_with
from blip_art.score.workers import MetricFailed

CAT = {"a red cat": [["cat"], ["cat", "red"]]}
LONG = "caf\u00e9 \U0001f600 " * 20_000


class FakeParser:
    """Says each text's words, and notes what it was asked."""

    version = "fake-1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str], on_parsed: OnParsed) -> None:
        self.asked += texts
        on_parsed({text: [[word] for word in text.split()] for text in texts})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "parses.sqlite"


def parsed(path: Path, *texts: str) -> list[str]:
    """What an engine that starts now asks the parser."""
    parser = FakeParser()
    with Engine(parser=parser, parses=path) as engine:
        assert engine.propositions(texts) == {text: [[word] for word in text.split()]
                                              for text in texts}
        assert engine.parsed == len(parser.asked)
    return parser.asked


def test_a_text_that_fails_costs_no_other_and_is_given_up_the_third_time(path: Path) -> None:
    class Poisoned(FakeParser):
        def __call__(self, texts: Sequence[str], on_parsed: OnParsed) -> None:
            if "poison" in texts:
                self.asked += ["poison"]
                raise MetricFailed("nothing for 9 s, at 'poison'", ["poison"])
            super().__call__(texts, on_parsed)

    parser = Poisoned()
    with Engine(parser=parser, parses=path) as engine:
        for _ in range(2):
            with pytest.raises(MetricFailed, match="nothing for 9 s"):
                engine.propositions(["a b", "poison"])
        assert engine.unparsed(["a b", "poison"]) == ["poison"]
        with pytest.raises(MetricFailed, match="failed 2 times before, at 'poison'"):
            engine.propositions(["c", "poison"])
    assert parser.asked == ["poison", "a b", "poison", "c"]


def test_a_part_that_was_merged_under_its_writer_is_begun_again(path: Path) -> None:
    with ParseCache(path, "p", can_lock=lambda folder: False) as writer:
        writer.add(CAT)
        [part] = path.parent.glob("*.part")
        part.unlink()
        writer.add({"a dog": [["dog"]]})
    with ParseCache(path, "p", can_lock=lambda folder: False) as reader:
        assert reader.find(["a dog"]) == {"a dog": [["dog"]]}


def test_only_new_texts_reach_the_parser_each_once_and_longest_first(path: Path) -> None:
    assert parsed(path, "a", "a b c", "a", LONG) == [LONG, "a b c", "a"]
    assert parsed(path, LONG, "a", "", "d e", "a b c") == ["d e", ""]
    assert parsed(path, LONG, "a", "", "d e", "a b c") == []


def test_another_parser_has_a_memory_of_its_own(path: Path) -> None:
    with ParseCache(path, "one") as cache:
        cache.add(CAT)
    with ParseCache(path, "two") as cache:
        assert cache.find(list(CAT)) == {}
        cache.add({"a red cat": []})
    with ParseCache(path, "one") as cache:
        assert cache.find(["a red cat", "a dog"]) == CAT


def test_the_file_is_small(path: Path) -> None:
    said = [["man"], ["woman"], ["man", "talk to", "woman"], ["street"], ["woman", "young"]]
    with ParseCache(path, "p") as cache:
        cache.add({f"a man talks to a young woman in street {n}": said for n in range(5000)})
    assert path.stat().st_size < 5000 * 110


@pytest.mark.parametrize("damage", [b"not a database at all" * 500, None])
def test_a_broken_file_is_put_aside_in_one_line(path: Path, capsys: pytest.CaptureFixture[str],
                                                damage: bytes | None) -> None:
    texts = [f"text number {n} with some words" for n in range(3000)]
    parsed(path, *texts)
    whole = path.read_bytes()
    # Else the middle is lost: the header looks well.
    path.write_bytes(damage or whole[:4096] + bytes(len(whole) - 4096))
    capsys.readouterr()
    assert len(parsed(path, *texts)) == len(texts)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is broken" in said
    assert len(list(path.parent.glob("parses.sqlite.broken-*"))) == 1
    assert parsed(path, *texts) == []


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below may be written; root may all the same, and so becomes somebody else."""
    root = os.geteuid() == 0
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """The folders above tmp_path are the test runner's alone."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_read_only_file_is_used_and_one_line_says_nothing_is_kept(
        public_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = public_folder / "parses.sqlite"
    parsed(path, "a", "b c")
    with read_only(public_folder), ParseCache(path, "fake-1") as cache:
        assert cache.find(["a", "d"]) == {"a": [["a"]]}
        cache.add({"d": []})
        cache.add({"e": []})
        assert cache.find(["d"]) == {}
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line(
        public_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with read_only(public_folder):
        assert parsed(public_folder / "new" / "parses.sqlite", "a", "b") == ["a", "b"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_costs_the_memory_not_the_result(path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    parsed(path, "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        texts = [f"{n} " + "word " * 9 for n in range(2000)]
        parser = FakeParser()
        with Engine(parser=parser, parses=path) as engine:
            for first in range(0, 2000, 100):
                engine.propositions(texts[first:first + 100])
            assert len(engine.propositions(texts)) == 2000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "free space" in said
    assert parsed(path, "a") == []


def test_parsing_ahead_says_where_the_parses_are_or_fails(
        tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for file, code, said in ((path, 0, "1 parsed in 9 s; all are in"),
                             (tmp_path / "file" / "below", 1, "1 of them could not be kept")):
        with Engine(parser=FakeParser(), parses=file) as engine:
            engine.propositions(["a"])
            assert report(engine, 9) == code
        assert said in capsys.readouterr().err
    shutil.copy(path, path.with_name("parses.sqlite.node1-17.part"))
    with Engine(parser=FakeParser(), parses=path) as engine:
        assert report(engine, 9) == 0
    assert f"score merge {path}\n" in capsys.readouterr().err


def test_jobs_of_an_array_share_the_work_not_the_texts() -> None:
    texts = [" ".join(["word"] * (1 + n % 60)) + f" {n}" for n in range(400)]
    shares = [shard(texts, index, 3) for index in range(3)]
    assert sorted(text for share in shares for text in share) == sorted(texts)
    costs = [sum(map(parse_cost, share)) for share in shares]
    assert max(costs) < 1.02 * min(costs)


PREPARE = """
import sys, time
from pathlib import Path
from blip_art.score import corenlp, paraphrases
from blip_art.score.__main__ import main
from blip_art.score.engine import JAVA_PARSER, PARSER_RULES, Engine
class Slow:
    version = "fake-1"
    def __call__(self, texts, on_parsed):
        for text in texts:
            time.sleep(0.01)
            on_parsed({text: [[word] for word in text.split()]})
            print(text, flush=True)
with Engine(parser=Slow(), parses=sys.argv[1]) as engine:
    engine.propositions([f"text {n}" for n in range(300)])
"""


def test_a_kill_loses_what_was_running_only(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(path)], stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout
    done = [process.stdout.readline().strip() for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    done += process.stdout.read().split("\n")[:-1]
    assert 30 <= len(done) < 300
    left = parsed(path, *[f"text {n}" for n in range(300)])
    assert set(left).isdisjoint(done)
    assert len(left) >= 299 - len(done)


def prepare(path: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "blip_art.score", *arguments], text=True,
                          env={**os.environ, "BLIP_ART_PARSES": str(path)}, check=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return done.stderr


def test_an_array_prepares_what_scoring_then_finds(tmp_path: Path, path: Path) -> None:
    refs = tmp_path / "refs.json"
    captions = ["A red cat.", "A red cat", "Two dogs run on the beach", "A ship at sea"]
    refs.write_text(json.dumps([{"image_id": n, "caption": text}
                                for n, text in enumerate(captions)]))
    corenlp.fetch(corenlp.cache_folder(), corenlp.sources_from())
    said = [prepare(path, "prepare", str(refs), "--shard", f"{job}/2") for job in (1, 2)]
    assert all("3 distinct references" in text for text in said)
    assert "0 parsed in" in prepare(path, "prepare", str(refs))
    with Engine(parses=path) as engine:
        scores = score_with(engine, {1: captions[:1], 2: captions[2:]},
                            {1: "a ship at sea", 2: "a red cat"}, ["spice"])
        assert engine.parsed == 0
    assert scores.metrics == {"SPICE": 0.0}


def test_the_same_captions_again_start_no_java(
        path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corenlp.fetch(corenlp.cache_folder(), corenlp.sources_from())
    scores = []
    answers = path.with_name("parses_answers.sqlite")
    for damage in (b"", b"", b"not a database " * 500):
        if damage:
            answers.write_bytes(damage)
        capsys.readouterr()
        with Engine(parses=path) as engine:
            scores.append(score_with(engine, {1: ["A red cat"], 2: ["a ship"]},
                                     {1: "a red cat.", 2: "two ships"}))
            # Asked in the first run, and where the answers are lost.
            assert (engine.worker_pid is None) is (len(scores) == 2)
        assert capsys.readouterr().err == ""
    assert [each.per_image for each in scores] == [scores[0].per_image] * 3
    assert [each.spice_counts for each in scores] == [scores[0].spice_counts] * 3


def test_answers_count_for_the_same_java_and_the_same_code(path: Path, tmp_path: Path) -> None:
    for version in ("17", "25"):
        answers = Answers(path, version)
        assert answers.find("meteor", [["a"]]) is None
        answers.add("meteor", [["a"]], [version])
        assert answers.find("meteor", [["a"]]) == [version]
        answers.close()
    hashes = set()
    for changed in (None, *java_answers.RULES):
        folder = tmp_path / str(changed)
        folder.mkdir()
        for name in java_answers.RULES:
            (folder / name).write_text(f"{name} {name == changed}")
        hashes.add(java_answers.rules(folder))
    assert len(hashes) == 1 + len(java_answers.RULES)


# The code behind each number of PARSER_RULES, without comments and docstrings.
PARSER_CODE = {1: {"chart.py": "050719a5d312a005", "java_parser.py": "e0db12ecc11bc736",
                   "java_trees.py": "e9e591989b687d4b"}}


def code_hash(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        first = getattr(node, "body", None)
        if isinstance(first, list) and first and isinstance(first[0], ast.Expr) and isinstance(
                first[0].value, ast.Constant):
            skipped.update(range(first[0].lineno, (first[0].end_lineno or 0) + 1))
    lines = (line.partition("  #")[0].rstrip() for number, line in enumerate(text.split("\n"), 1)
             if number not in skipped)
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def test_parses_are_kept_under_the_version_of_the_code_that_made_them(repo: Path) -> None:
    """If this fails: can a parse come out otherwise? Then raise PARSER_RULES and add its hashes.

    If it cannot, as after a renaming, put the new hashes in the place of the old ones: nobody
    parses again.
    """
    found = {name: code_hash(repo / "blip_art" / "score" / name)
             for name in ("chart.py", "java_parser.py", "java_trees.py")}
    assert found == PARSER_CODE[PARSER_RULES]
    # What users parsed before there were numbers is the first's.
    assert PARSER_RULES > 1 or JAVA_PARSER == "corenlp-3.6.0 englishPCFG, spice-1.0"


def test_tests_leave_the_users_parses_alone() -> None:
    with Engine() as engine:
        assert engine.parses_file.is_relative_to(tempfile.gettempdir())


def test_an_engine_that_was_closed_remembers_what_it_parses_then(path: Path) -> None:
    """As a follower's between epochs."""
    with Engine(parser=FakeParser(), parses=path) as engine:
        engine.propositions(["a"])
        engine.close()
        engine.propositions(["a b"])
    assert parsed(path, "a", "a b") == []


def test_a_command_works_from_a_cache_that_it_cannot_write_to(tmp_path: Path) -> None:
    """A folder that somebody shares: jars, METEOR's index and parses are read, nothing is kept."""
    cache, refs = tmp_path / "cache", tmp_path / "refs.json"
    cache.mkdir()
    real = corenlp.jar_folder(corenlp.cache_folder())
    corenlp.jar_folder(cache).symlink_to(real)
    with contextlib.suppress(FileNotFoundError):
        # Else METEOR makes it, which takes some seconds.
        shutil.copy(real.with_name(paraphrases.FILE_NAME), cache)
    refs.write_text(json.dumps([{"image_id": 1, "caption": "A red cat."}]))
    command = [sys.executable, "-m", "blip_art.score", str(refs), str(refs)]
    environ = {**os.environ, "BLIP_ART_CACHE": str(cache), "BLIP_ART_PARSES": ""}
    subprocess.run(command, env=environ, check=True, capture_output=True)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in cache.iterdir())
    refs.write_text(json.dumps([{"image_id": 1, "caption": "A blue ship."}]))
    for path in (*cache.glob("*.*"), cache):
        path.chmod(0o555)
    # Root may write everywhere all the same, but for this.
    as_others = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    done = subprocess.run([*as_others, *command], env=environ, check=True, capture_output=True,
                          text=True)
    cache.chmod(0o755)
    assert "1.000" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "keeps nothing new (attempt to write a readonly database)" in done.stderr
    assert sorted((path.name, path.stat().st_mtime_ns) for path in cache.iterdir()) == before


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b"])
def test_a_wrong_shard_is_named(shard: str) -> None:
    with pytest.raises(UserError, match="must be I/N with I from 1 to N"):
        main(["prepare", "refs.json", "--shard", shard])
