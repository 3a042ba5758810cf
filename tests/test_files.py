"""Writes that leave a whole file or none."""

from __future__ import annotations

import gzip
import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, read_jsonl, write_json, write_jsonl, written_aside


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


def test_lines_come_back_and_an_absent_file_is_empty(tmp_path):
    rows = [{"epoch": 0, "loss": 2.5}, {"caption": "a\u2028b"}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert read_jsonl(tmp_path / "train.jsonl") == rows
    assert read_jsonl(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize("reader", [read_json, read_jsonl])
def test_a_damaged_file_is_named(tmp_path, reader):
    (tmp_path / "x.json").write_text('{"half": ')
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        reader(tmp_path / "x.json")


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


def test_epochs_are_ordered_by_number(tmp_path):
    run = RunDir(tmp_path)
    for epoch in (2, 10, 100):
        run.weights(epoch).parent.mkdir(exist_ok=True)
        run.weights(epoch).touch()
        write_json(run.predictions("val", epoch), [])
    assert run.saved_epochs() == [2, 10, 100]
    assert [result.epoch for result in run.predicted()] == [2, 10, 100]
