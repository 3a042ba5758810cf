"""From an archive to annotation files, on the command line as a user would; bad input too."""

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blip_art.data.archive import open_archive
from blip_art.data.captions import Style
from blip_art.data.datasets import load_pairs
from blip_art.data.demo import draw_demo
from blip_art.data.prepare import Options, prepare
from blip_art.errors import UserError

RECORDS = {f"IIHIM_{n}.jpg": [notation, "31A24(+1)"] for n, notation in enumerate(
    ["31A235", "25H", "46C24", "25F23(LION)", "24A", "24B", "25G3", "49M32", "11D12", "41A3281"])}
RECORDS["IIHIM_unknown.jpg"] = ["no notation"]


@pytest.fixture
def folder(tmp_path):
    """The archive, unpacked."""
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps(RECORDS))
    for number, name in enumerate(RECORDS):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def archive_zip(folder, tmp_path):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"testset/{file.name}")
    return path


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def run(*args, **environ):
    """The command; returns exit code, output and error output."""
    done = subprocess.run([sys.executable, "-m", "blip_art.data", *map(str, args)],
                          capture_output=True, text=True, check=False,
                          env={**os.environ, **environ})
    return done.returncode, done.stdout, done.stderr


def test_prepare_writes_the_original_file_names_and_says_which_split(folder, tmp_path):
    code, output, _ = run("prepare", folder, "-o", tmp_path / "annotation", "--style", "seed")
    assert code == 0
    assert "split random (not all of the original's pictures are here): 8 train" in output
    assert {str(p.relative_to(tmp_path / "annotation"))
            for p in (tmp_path / "annotation").rglob("*.json")} == {
        "iconclassTrain.json", "iconclassVal.json", "iconclassTest.json",
        "iconclassTrain_split.json", "iconclassVal_split.json", "iconclassTest_split.json",
        "art_gt/art_val_gt.json", "art_gt/art_test_gt.json", "manifest.json", "texts.json"}


def test_prepare_ends_with_the_command_that_parses_what_it_wrote(folder, tmp_path):
    out = tmp_path / "my annotations"
    _, output, _ = run("prepare", folder, "-o", out)
    line = next(line for line in output.splitlines() if line.startswith("  python -m blip_art"))
    _, *arguments = shlex.split(line)
    command = subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                             env={**os.environ, "BLIP_ART_PARSES": str(tmp_path / "p.sqlite")},
                             check=True)
    assert "5 distinct references; 5 not parsed before" in command.stderr
    code, output, errors = run("prepare", folder, "-o", out, "--parse",
                               BLIP_ART_PARSES=str(tmp_path / "p.sqlite"))
    assert code == 0
    assert "0 not parsed before" in errors
    assert "next, for SPICE" not in output


def test_pairs_and_ground_truth_have_the_original_format(folder, tmp_path):
    prepare(open_archive(folder), tmp_path / "a", Options(style=Style("seed")))
    pairs = json.loads((tmp_path / "a/iconclassVal.json").read_text())
    truth = json.loads((tmp_path / "a/art_gt/art_val_gt.json").read_text())
    assert pairs[0]["image"].startswith("data/IIHIM_")
    assert (pairs[0]["image_id"], len(pairs)) == ("9", 1)
    assert truth == {"annotations": [{"image_id": 9, "caption": pairs[0]["caption"], "id": 9}],
                     "images": [{"id": 9}]}


def test_the_split_variant_names_a_picture_once_a_notation(folder, tmp_path):
    prepare(open_archive(folder), tmp_path / "a", Options(style=Style("seed")))
    pairs = load_pairs(tmp_path / "a/iconclassTrain_split.json")
    assert len(pairs) == 16
    assert pairs[0].image_id == pairs[1].image_id
    assert pairs[1].caption == "postures of the head ."


def test_the_manifest_counts_rules_and_lists_what_has_no_text(folder, tmp_path):
    manifest = prepare(open_archive(folder), tmp_path / "a", Options())
    assert manifest["rules"]["exact"] == 20
    assert manifest["unknown_notations"] == ["no notation"]
    assert manifest["pictures_without_text"] == ["IIHIM_unknown.jpg"]
    assert manifest["data_sha256"] == hashlib.sha256(
        (folder / "data.json").read_bytes()).hexdigest()
    texts = json.loads((tmp_path / "a/texts.json").read_text())
    assert texts["texts"]["24A"] == ["sun as celestial body"]
    assert texts["iconclass"] == manifest["iconclass"]


def test_data_json_alone_is_enough_without_pictures(folder, tmp_path):
    alone = tmp_path / "data.json"
    (folder / "data.json").rename(alone)
    assert run("prepare", alone, "-o", tmp_path / "a", "--pictures", "none")[0] == 0
    code, _, error = run("prepare", alone, "-o", tmp_path / "b")
    assert (code, error.count("\n")) == (2, 1)
    assert "--pictures none" in error


def test_a_zip_is_unpacked_beside_the_output_and_goes_on_where_it_stopped(archive_zip, tmp_path):
    first = open_archive(archive_zip, tmp_path / "Dataset", md5(archive_zip))
    kept, lost, cut = sorted((tmp_path / "Dataset/data").iterdir())[:3]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:50])
    open_archive(archive_zip, tmp_path / "Dataset", md5(archive_zip))
    assert first.notations == RECORDS
    assert kept.stat().st_mtime_ns == before
    assert lost.exists()
    assert Image.open(cut).load()


def test_a_zip_with_another_md5_is_refused_unless_asked_for(archive_zip, tmp_path):
    code, _, error = run("prepare", archive_zip, "-o", tmp_path / "a")
    assert code == 2
    assert md5(archive_zip) in error
    assert "--md5 none" in error
    assert not (tmp_path / "Dataset").exists()
    assert run("prepare", archive_zip, "-o", tmp_path / "a", "--md5", "none")[0] == 0


def test_half_a_zip_is_refused(archive_zip, tmp_path):
    half = tmp_path / "half.zip"
    half.write_bytes(archive_zip.read_bytes()[:1000])
    code, _, error = run("prepare", half, "-o", tmp_path / "a")
    assert (code, error.count("\n")) == (2, 1)
    assert "no whole zip file" in error


def test_a_zip_damaged_in_the_middle_is_refused(archive_zip, tmp_path):
    content = bytearray(archive_zip.read_bytes())
    with zipfile.ZipFile(archive_zip) as archive:
        start = archive.getinfo("testset/IIHIM_5.jpg").header_offset
    content[start + 60:start + 90] = b"x" * 30
    archive_zip.write_bytes(content)
    with pytest.raises(UserError, match=r"archive.zip is damaged \(.*IIHIM_5.jpg.*fetch it again"):
        open_archive(archive_zip, tmp_path / "Dataset", "none")


def set_in_zip(path, name, at, value, kind="<H"):
    """Change a field of a member, here and in the directory; `at` as in the local header."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        struct.pack_into(kind, content, archive.getinfo(name).header_offset + at, value)
    entry = content.index(name.encode(), content.index(b"PK\x01\x02")) - 46
    struct.pack_into(kind, content, entry + at + 2, value)
    path.write_bytes(content)


PICTURE, DATA = "testset/IIHIM_5.jpg", "testset/data.json"
FLAGS, METHOD, SIZE = 6, 8, 22


@pytest.mark.parametrize(("name", "field", "message"), [
    (PICTURE, (FLAGS, 1), "is encrypted; unpack it with its password"),
    (DATA, (FLAGS, 1), "is encrypted; unpack it with its password"),
    (PICTURE, (METHOD, 99), "in a way that Python cannot read .*; unpack it with another program"),
    (PICTURE, (METHOD, zipfile.ZIP_BZIP2), r"is damaged \(.*IIHIM_5.jpg: .*fetch it again"),
    (PICTURE, (METHOD, zipfile.ZIP_LZMA), r"is damaged \(.*fetch it again"),
    (PICTURE, (SIZE, 2_000_000_000, "<I"), "has .* bytes instead of 2,000,000,000.*fetch it again"),
    (DATA, (SIZE, 4_000_000_000, "<I"), "claims 4,000,000,000 bytes; fetch it again"),
    (DATA, (14, 0, "<I"), "Bad CRC-32.*fetch it again"),
], ids=str)
def test_a_hostile_zip_is_one_line(name, field, message, archive_zip, tmp_path):
    set_in_zip(archive_zip, name, *field)
    with pytest.raises(UserError, match=f"archive.zip.*{message}"):
        open_archive(archive_zip, tmp_path / "Dataset", "none")
    assert not list((tmp_path / "Dataset").rglob("*.tmp"))


def test_a_zip_that_the_disk_cannot_hold_is_refused_before_the_first_picture(
        archive_zip, tmp_path, monkeypatch):
    set_in_zip(archive_zip, PICTURE, SIZE, 4_294_967_000, "<I")
    usage = shutil.disk_usage(tmp_path)._replace(free=4_200_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="the pictures need .* GB and .* free; choose another"):
        open_archive(archive_zip, tmp_path / "Dataset", "none")
    assert not (tmp_path / "Dataset").exists()


def test_names_in_a_zip_lead_nowhere_else_and_none_is_lost(archive_zip, tmp_path):
    with zipfile.ZipFile(archive_zip, "a") as archive:
        archive.writestr("../../outside.jpg", "a")
        archive.writestr("/absolute.jpg", "a")
    open_archive(archive_zip, tmp_path / "x" / "Dataset", "none")
    assert {"outside.jpg", "absolute.jpg"} < {
        path.name for path in (tmp_path / "x" / "Dataset" / "data").iterdir()}
    assert not list(tmp_path.glob("*/outside.jpg"))
    with zipfile.ZipFile(archive_zip, "a") as archive:
        archive.writestr("other/outside.jpg", "b")
    with pytest.raises(UserError, match="holds both ../../outside.jpg and other/outside.jpg"):
        open_archive(archive_zip, tmp_path / "x" / "Dataset", "none")


@pytest.fixture(scope="module")
def small_zip():
    """A zip's bytes: one picture and data.json."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(99))
        archive.writestr("data.json", '{"a.jpg": ["25H"]}')
    return content.getvalue()


@settings(deadline=None, max_examples=150, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_zip_is_read_or_refused(data, small_zip, tmp_path):
    changed = bytearray(small_zip)
    headers = [match.start() for match in re.finditer(b"PK[\x01\x03\x05]", changed)]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(headers)) + data.draw(st.integers(4, 50))
        changed[min(at, len(changed) - 1)] = data.draw(st.sampled_from([0, 1, 8, 12, 14, 99, 255]))
    cut = data.draw(st.integers(0, 3)) == 0 and data.draw(st.integers(1, len(changed)))
    path = tmp_path / "changed.zip"
    path.write_bytes(changed[:cut or None])
    shutil.rmtree(tmp_path / "changed", ignore_errors=True)
    with contextlib.suppress(UserError):  # and nothing else
        assert open_archive(path, tmp_path / "changed", "none").notations


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: path.symlink_to(path)])
def test_an_archive_that_is_no_file_is_named(make, tmp_path):
    make(tmp_path / "a.zip")
    with pytest.raises(UserError, match="no archive at"):
        open_archive(tmp_path / "a.zip")


def test_a_missing_archive_is_named(tmp_path):
    code, _, error = run("prepare", tmp_path / "none.zip", "-o", tmp_path / "a")
    assert (code, error.count("\n")) == (2, 1)
    assert "no archive at" in error


@pytest.mark.parametrize(("content", "message"), [
    ('{"a.jpg": ["25H"', "not whole JSON"),
    ("[]", "must map file names"),
    ('{"a.jpg": "25H"}', "'a.jpg' must have a list of notations"),
    ('{"a.jpg": ["no notation"]}', "no picture has a caption"),
    ('{"a\\ud83d.jpg": ["25H"]}', "picture name .* half a character"),
])
def test_a_wrong_data_json_is_refused(content, message, tmp_path):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(open_archive(tmp_path / "data.json"), tmp_path / "a", Options(check=False))


def test_real_malformed_notations_do_not_stop_prepare(tmp_path):
    records = {f"{n}.jpg": [notation, "25H"] for n, notation in enumerate(
        ["46A12(+)", "11C13(+)", "31A2515(+(+933)", "61B2(wd:Q5598)", "61B2(\ud83d)"])}
    (tmp_path / "data.json").write_text(json.dumps(records))
    for style in ("seed", "clean"):
        code, _, error = run("prepare", tmp_path / "data.json", "-o", tmp_path / style,
                             "--style", style, "--pictures", "none")
        assert code == 0, error


def test_coverage_says_which_rule_found_how_many(tmp_path):
    (tmp_path / "list.csv").write_text("notation,count\n25H,90\n46A12(+),9\nzzz,1\n")
    code, output, _ = run("coverage", tmp_path / "list.csv")
    assert code == 0
    assert "key_dropped           1   33.33%         9    9.00%  '46A12(+)'" in output
    assert "2 of 3 notations have a text (66.67%; 99.00% of 100 uses)" in output
    (tmp_path / "data.json").write_text(json.dumps(RECORDS))
    assert "11 of 12 notations have a text" in run("coverage", tmp_path / "data.json")[1]
    (tmp_path / "list.csv").write_text("code\n25H\n")
    code, _, error = run("coverage", tmp_path / "list.csv")
    assert (code, error.count("\n")) == (2, 1)
    assert "list.csv, line 2: needs the columns 'notation'" in error


def test_bad_pictures_fail_or_are_left_out(folder, tmp_path):
    (folder / "IIHIM_1.jpg").write_text("this is text")
    (folder / "IIHIM_2.jpg").unlink()
    code, _, error = run("prepare", folder, "-o", tmp_path / "a")
    assert (code, error.count("\n")) == (2, 1)
    assert "2 of 10 pictures" in error
    assert "IIHIM_1.jpg: not a picture" in error
    assert "--bad-pictures skip" in error
    assert run("prepare", folder, "-o", tmp_path / "a", "--bad-pictures", "skip")[0] == 0
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["bad_pictures"] == {"IIHIM_1.jpg": "not a picture", "IIHIM_2.jpg": "missing"}
    assert sum(manifest["pictures"].values()) == 8


def test_prepare_keeps_its_check_of_the_pictures_for_all_that_follow(folder, tmp_path):
    assert run("prepare", folder, "-o", tmp_path / "a", XDG_CACHE_HOME=str(tmp_path))[0] == 0
    for picture in folder.glob("*.jpg"):  # other content of the same size and time
        status = picture.stat()
        picture.write_bytes(b"x" * status.st_size)
        os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    arguments = ("check", tmp_path / "a/iconclassTrain.json", "--images", folder)
    code, output, _ = run(*arguments, XDG_CACHE_HOME=str(tmp_path))
    assert (code, "all 8 pictures" in output) == (0, True)
    for picture in folder.glob("*.jpg"):
        os.utime(picture)
    assert run(*arguments, XDG_CACHE_HOME=str(tmp_path))[0] == 2


def test_an_output_that_cannot_be_written_to_is_one_line(folder, tmp_path):
    # A file in the way stops root as well, whom a folder's permissions would not.
    (tmp_path / "file").write_text("")
    code, _, error = run("prepare", folder, "-o", tmp_path / "file" / "annotation")
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot write" in error


def test_the_original_split_is_refused_for_other_pictures(folder, tmp_path):
    with pytest.raises(UserError, match="--split random"):
        prepare(open_archive(folder), tmp_path / "a", Options(split="seed"))


def test_data_json_is_not_written_over(folder, tmp_path):
    for name in ("manifest.json", "texts.json"):
        archive = folder / name
        (folder / "data.json").rename(archive)
        code, _, error = run("prepare", archive, "-o", folder)
        assert (code, error.count("\n")) == (2, 1)
        assert "is the input" in error
        archive.rename(folder / "data.json")
    with pytest.raises(UserError, match=r"a data\.json that was not drawn here"):
        draw_demo(folder, pictures=12, size=32)
    assert json.loads((folder / "data.json").read_text()) == RECORDS
