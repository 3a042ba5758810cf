"""Writes that leave a whole file or none."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blip_art import files, outputs
from blip_art.errors import UserError
from blip_art.files import (
    RunDir,
    read_json,
    read_json_list,
    read_json_object,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
    written_aside,
)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"epoch": 1})
    def half_a_write() -> None:
        with written_aside(path) as aside:
            aside.write_text("half")
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        half_a_write()
    assert read_json(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_readable_for_the_group_whoever_wrote_them(tmp_path):
    before = os.umask(0o022)
    try:
        with written_aside(tmp_path / "w.safetensors") as aside:
            save_file({"x": torch.zeros(1)}, aside)
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file/x\.json: .*; free space or choose"):
        write_json(tmp_path / "file" / "x.json", 1)


def test_a_write_that_hits_a_limit_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*x\.json: File too large"):
            write_json(path, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_json(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".x.{os.uname().nodename}.{os.getpid()}.tmp").symlink_to(victim)
    write_text(tmp_path / "x", "new")
    assert (victim.read_text(), (tmp_path / "x").read_text()) == ("mine", "new")
    assert not (tmp_path / "x").is_symlink()


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    for name in ("there", "not_yet"):
        link, target = tmp_path / f"{name}.json", tmp_path / "far" / f"{name}.json"
        link.symlink_to(target)
        if name == "there":
            write_json(target, "old")
        write_json(link, "new")
        assert link.is_symlink()
        assert read_json(target) == "new"
    assert len(list((tmp_path / "far").iterdir())) == 2


def test_a_pipe_is_written_into_once_it_has_a_reader(tmp_path, capsys):
    """More than a pipe holds, and a reader that is later than the writer."""
    pipe, value = tmp_path / "pipe", "x" * 200_000
    os.mkfifo(pipe)
    reader = subprocess.Popen(["sh", "-c", 'sleep 0.5; cat "$1" > "$2"', "-", pipe,
                               tmp_path / "copy"])
    write_json(pipe, value)
    assert reader.wait(timeout=60) == 0
    assert read_json(tmp_path / "copy") == value
    assert pipe.is_fifo()
    assert capsys.readouterr().err.count("waiting 60 s for a reader of") == 1


def test_a_pipe_that_nobody_reads_ends_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "READER_WAIT_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"nobody reads the pipe .*; start its reader first"):
        write_json(tmp_path / "pipe", 1)


def test_a_device_is_written_into(tmp_path):
    for name in ("null", "full"):
        (tmp_path / name).symlink_to(f"/dev/{name}")
    write_json(tmp_path / "null", 1)
    with pytest.raises(UserError, match="cannot write .*full: No space left on device"):
        write_json(tmp_path / "full", 1)
    assert (tmp_path / "null").is_char_device()


def test_our_own_output_may_be_a_file_that_goes_on(tmp_path):
    code = ("from blip_art.files import write_json\n"
            "print('before', flush=True); write_json('/dev/fd/1', 1); print('after')")
    with open(tmp_path / "out", "wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "before\n1\nafter\n"


def test_lines_come_back_and_an_absent_file_is_empty(tmp_path):
    rows = [{"epoch": 0, "loss": 2.5}, {"caption": "a\u2028b"}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert read_jsonl(tmp_path / "train.jsonl") == rows
    assert read_jsonl(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize("reader", [read_json, read_jsonl])
def test_a_damaged_file_is_named(tmp_path, reader):
    (tmp_path / "x.json").write_text('{"half": ')
    with pytest.raises(UserError, match=r"x\.json, line 1: not valid JSON"):
        reader(tmp_path / "x.json")


@pytest.mark.parametrize(("content", "message"), [
    (b"", r"line 1: not valid JSON \(it is empty\)"),
    (b'{"a": 1,\n"b" 2}', r"line 2: not valid JSON \(Expecting ':' delimiter\)"),
    (b'{"a":\n "\xff"}', r"line 2: not UTF-8 text"),
    (b"9" * 400, r"not valid JSON \(a number of 400 digits\)"),
    (b"[" * 200 + b"]" * 200, r"not valid JSON \(nested too deep\)"),
    (b"[" * 200_000, r"not valid JSON \(nested too deep\)"),
])
@pytest.mark.parametrize("reader", [read_json, read_jsonl])
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, reader, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    if reader is read_jsonl:  # a line of its own each
        path.write_bytes(b"[]\n" + content.replace(b"\n", b" "))
        message = message.replace("line 2", "line 1").replace("line 1", "line 2")
    if content or reader is read_json:
        with pytest.raises(UserError, match=message) as refusal:
            reader(path)
        assert len(str(refusal.value)) - len(str(tmp_path)) < 150


def test_a_json_file_of_another_type_is_refused(tmp_path):
    write_json(tmp_path / "x.json", [1])
    assert read_json_list(tmp_path / "x.json") == [1]
    with pytest.raises(UserError, match=r"x\.json must hold a JSON object, not a list"):
        read_json_object(tmp_path / "x.json")
    write_json(tmp_path / "x.json", None)
    with pytest.raises(UserError, match=r"x\.json must hold a JSON list, not null"):
        read_json_list(tmp_path / "x.json")


@pytest.mark.parametrize("reader", [read_json, read_jsonl])
def test_a_byte_order_mark_and_gzip_are_read(tmp_path, reader):
    path = tmp_path / "x.json"
    path.write_bytes(b'["\xc3\xa9"]')
    plain = reader(path)
    for content in (b'\xef\xbb\xbf["\xc3\xa9"]', gzip.compress(b'["\xc3\xa9"]')):
        path.write_bytes(content)
        assert reader(path) == plain
    path.write_bytes(gzip.compress(b'["\xc3\xa9"]')[:-3])
    with pytest.raises(UserError, match=r"x\.json is damaged gzip .*; copy it again"):
        reader(path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(UserError, match=r"x\.json\.gz holds more than 0 MiB"):
        read_json(tmp_path / "x.json.gz")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("reader", [read_json, read_jsonl])
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path, reader):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"x\.json is no regular file"):
        reader(tmp_path / "x.json")


def test_a_command_may_be_read_through_a_pipe_of_the_shell(tmp_path):
    code = "import sys; from blip_art.files import read_json; print(read_json(sys.argv[1]))"
    script = f"{sys.executable} -c '{code}' <(sleep 0.2; echo [1]); echo [2] | " \
             f"{sys.executable} -c '{code}' /dev/stdin"
    done = subprocess.run(["bash", "-c", script], cwd=Path(__file__).parent.parent, text=True,
                          capture_output=True, check=True, timeout=60)
    assert done.stdout == "[1]\n[2]\n"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "half\ud83d", "x/" * 3000])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / name)


def test_a_folder_that_may_not_be_searched_is_one_line(tmp_path):
    """In a process without root's rights."""
    code = """
import os, sys
from blip_art.errors import exit_cleanly
from blip_art.files import RunDir, read_jsonl
run = RunDir(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
exit_cleanly(lambda: print(run.state.stat(), read_jsonl(run.train_log)))
"""
    (tmp_path / "run").mkdir(mode=0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], text=True,
                          cwd=Path(__file__).parent.parent, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot use {tmp_path}/run/state.json: Permission denied\n"


def test_epochs_are_ordered_by_number(tmp_path):
    run = RunDir(tmp_path)
    for epoch in (2, 10, 100):
        run.weights(epoch).parent.mkdir(exist_ok=True)
        run.weights(epoch).touch()
        write_json(run.predictions("val", epoch), [])
    assert run.saved_epochs() == [2, 10, 100]
    assert [result.epoch for result in run.predicted()] == [2, 10, 100]


def test_a_small_file_takes_little_memory(tmp_path):
    """Login nodes limit it: read(1 GiB) would ask for all of that first."""
    code = ("import resource, sys; from blip_art.files import read_json; "
            "resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20)); "
            "print(read_json(sys.argv[1]))")
    for content in (b"[1]", gzip.compress(b"[1]")):
        (tmp_path / "a.json").write_bytes(content)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], text=True,
                              capture_output=True, check=False)
        assert (done.stdout, done.stderr) == ("[1]\n", "")


def test_a_key_that_is_there_twice_is_found_at_once_among_many(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text("{" + ", ".join(f'"picture_{min(number, 29_999):07d}": ""'
                                    for number in range(30_001)) + "}")
    began = time.monotonic()
    with pytest.raises(UserError, match="'picture_0029999' is there twice"):
        read_json(path)
    assert time.monotonic() - began < 5
