"""METEOR's paraphrases are cut to what texts can match, from an index that is whole or made again.

    python -m pytest tests/test_score_paraphrases.py
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from blip_art.score.paraphrases import FILE_NAME, FORMAT, Paraphrases, indexed

ROWS = [("a lot of", "many"), ("big", "large"), ("give up", "stop"), ("of a lot", "plenty"),
        ("caf\u00e9", "coffee house"), ("big", "huge house")]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "paraphrase-en.gz"
    path.write_bytes(gzip.compress("".join(f"0.5\n{a}\n{b}\n" for a, b in ROWS).encode()))
    return path


def selected(index: Path | None, *texts: str) -> set[tuple[str, str]]:
    assert index
    lines = Paraphrases(index).select(texts).decode().split("\n")
    return set(zip(lines[1::3], lines[2::3], strict=True))


def test_rows_are_those_of_which_texts_have_every_two_words_in_a_row(
        table: Path, tmp_path: Path) -> None:
    index = indexed(table, tmp_path)
    assert selected(index, "a lot of big ships", "many large ones") == set(ROWS[:2])
    assert selected(index, "give", "up stop", "a big coffee house", "caf\u00e9") == {ROWS[4]}
    assert selected(index, "", "other words") == set()


def test_the_layout_of_the_index_has_a_number(table: Path, tmp_path: Path) -> None:
    """Whoever changes the layout raises FORMAT: else indexes made before would be misread."""
    index = indexed(table, tmp_path)
    assert index
    assert (FORMAT, hashlib.sha256(index.read_bytes()).hexdigest()[:8]) == (2, "d0eebca8")
    assert FILE_NAME.endswith(f"-{FORMAT}.npy")


def test_an_index_that_was_cut_short_or_damaged_is_made_again(
        table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = indexed(table, tmp_path)
    assert index
    whole = index.read_bytes()
    middle = len(whole) // 2
    zeros = whole[:middle] + bytes(100) + whole[middle + 100:]
    for damage in (whole[:-3], b"something else", zeros):
        index.write_bytes(damage)
        assert indexed(table, tmp_path) == index
        assert index.read_bytes() == whole
    assert capsys.readouterr().err.count("once, into") == 4


def test_without_a_folder_to_write_to_there_is_none(
        table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert indexed(table, tmp_path / "file") is None
    assert "METEOR reads all of its paraphrases each time: cannot write" in capsys.readouterr().err
