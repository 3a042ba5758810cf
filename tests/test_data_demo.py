"""The drawn data set: real notations, the archive's layout, the same pictures every time."""

import json

import pytest
from PIL import Image

from blip_art.data.archive import open_archive
from blip_art.data.captions import Style
from blip_art.data.datasets import load_pairs
from blip_art.data.demo import draw, draw_demo, plan_demo
from blip_art.data.iconclass import Iconclass
from blip_art.data.motifs import MOTIFS
from blip_art.data.prepare import Options, prepare
from blip_art.data.splits import book_of
from blip_art.errors import UserError


def test_every_motif_has_the_text_that_is_drawn():
    iconclass = Iconclass()
    assert {n: iconclass.find(n).text for n in MOTIFS} == {n: m.name for n, m in MOTIFS.items()}


def test_the_pipeline_reads_it_as_an_archive(tmp_path):
    draw_demo(tmp_path / "archive", pictures=40, size=48)
    prepare(open_archive(tmp_path / "archive"), tmp_path / "a", Options(style=Style("seed")))
    pairs = load_pairs(tmp_path / "a/iconclassTrain_split.json")
    assert {pair.caption.split(",")[0].rstrip(" .") for pair in pairs} <= {
        motif.name.partition(" (")[0].split(",")[0] for motif in MOTIFS.values()}
    assert Image.open(tmp_path / "archive" / pairs[0].image.rpartition("/")[2]).size == (48, 48)


def test_equal_seeds_draw_equal_pictures():
    first, again = plan_demo(30, 1), plan_demo(30, 1)
    assert first == again
    assert draw(first[3], 48).tobytes() == draw(again[3], 48).tobytes()
    assert plan_demo(30, 2) != first


def test_pictures_have_one_to_three_motifs_and_some_are_of_books():
    plan = plan_demo(2000, 42)
    assert {len(p.notations) for p in plan} == {1, 2, 3}
    assert 0.08 < sum(bool(book_of(p.name)) for p in plan) / len(plan) < 0.16


def test_a_second_drawing_is_skipped_and_a_broken_one_goes_on(tmp_path):
    assert draw_demo(tmp_path, pictures=12, size=32)
    assert not draw_demo(tmp_path, pictures=12, size=32)
    kept, lost = sorted(tmp_path.glob("*.jpg"))[:2]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert draw_demo(tmp_path, pictures=12, size=32)
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before


def test_other_parameters_draw_anew(tmp_path):
    draw_demo(tmp_path, pictures=12, size=32)
    assert draw_demo(tmp_path, pictures=12, size=40)
    names = json.loads((tmp_path / "data.json").read_text())
    assert {Image.open(tmp_path / name).size for name in names} == {(40, 40)}


def test_a_data_set_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 10 pictures"):
        draw_demo(tmp_path, pictures=-1)
