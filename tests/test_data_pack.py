"""Copies of folders in which pictures are smaller: nothing of the user's is touched or lost."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from blip_art.cluster import pack as packing
from blip_art.cluster.site import Site
from blip_art.data import shrink
from blip_art.data.shrink import RECORD, shrink_folder
from blip_art.errors import UserError


def pack(*args):
    done = subprocess.run([sys.executable, "-m", "blip_art.data", "pack", *map(str, args)],
                          capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def contents(folder):
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def scans(tmp_path):
    """Large and small pictures of several formats in folders, one behind a link, and a text."""
    folder = tmp_path / "scans"
    (folder / "box 1").mkdir(parents=True)
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(folder / "box 1" / "turned.jpg", exif=exif)
    large.save(folder / "lzw.TIF", format="TIFF", compression="tiff_lzw")
    large.convert("P").save(folder / "palette.gif")
    Image.fromarray(rng.integers(0, 65_536, (200, 300), np.uint16)).save(folder / "grey.png")
    large.resize((90, 60)).save(folder / "small.png")
    (tmp_path / "elsewhere").mkdir()
    large.save(tmp_path / "elsewhere" / "linked.webp")
    (folder / "box 2").symlink_to(tmp_path / "elsewhere")
    (folder / "box 1" / "again").symlink_to(folder)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_large_pictures_become_smaller_under_their_names(scans, tmp_path):
    before = contents(scans)
    code, output, _ = pack(scans, "--max-side", "100")
    assert code == 0
    copy = tmp_path / "scans_100"
    assert "5 pictures made smaller, 1 copied as they are" in output
    assert "1 files are no pictures and left out" in output
    sizes = {}
    for path in copy.rglob("*"):
        if path.is_file() and path.name != RECORD:
            with Image.open(path) as picture:
                sizes[str(path.relative_to(copy))] = picture.size
    assert sizes == {"box 1/turned.jpg": (67, 100), "lzw.TIF": (100, 67), "palette.gif": (100, 67),
                     "grey.png": (100, 67), "small.png": (90, 60), "box 2/linked.webp": (100, 67)}
    assert (copy / "small.png").read_bytes() == (scans / "small.png").read_bytes()
    assert contents(scans) == before


def test_it_goes_on_where_it_was_stopped_and_names_what_cannot_be_read(scans, tmp_path):
    (scans / "cut.jpg").write_bytes((scans / "box 1" / "turned.jpg").read_bytes()[:2_000])
    (scans / "text.png").write_text("not a picture")
    os.mkfifo(scans / "pipe.jpg")
    code, output, _ = pack(scans, "--max-side", "100", "-o", tmp_path / "copy")
    assert code == 1
    for line in ("cut.jpg: image file is truncated", "text.png: not a picture",
                 "pipe.jpg: a named pipe and not a file", "3 could not be read, see above"):
        assert line in output
    before = contents(tmp_path / "copy")
    (tmp_path / "copy" / "grey.png").unlink()
    (scans / "cut.jpg").unlink()
    done = shrink_folder(scans, tmp_path / "copy", 100)
    assert (done.counts[shrink.SMALLER], done.counts[shrink.THERE]) == (1, 5)
    after = contents(tmp_path / "copy")
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()}
    assert after["lzw.TIF"] == before["lzw.TIF"]


def test_a_picture_too_large_for_training_is_made_smaller(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(shrink, "LIMIT", 1)  # all are
    done = shrink_folder(scans, tmp_path / "copy", 100, workers=1)
    assert done.counts[shrink.SMALLER] == 5
    assert not done.unreadable


def test_a_folder_of_the_users_own_is_not_written_to(scans, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "lzw.TIF").write_text("mine")
    with pytest.raises(UserError, match="own is there and was not made by this command"):
        shrink_folder(scans, own, 100)
    shrink_folder(scans, tmp_path / "copy", 100)
    with pytest.raises(UserError, match="is a copy of something else .*'max_side': 100"):
        shrink_folder(scans, tmp_path / "copy", 50)
    for place in (scans, scans / "copy", tmp_path, own / "lzw.TIF"):
        with pytest.raises(UserError, match="choose another place with -o"):
            shrink_folder(scans, place, 100)
    assert [path.name for path in own.iterdir()] == ["lzw.TIF"]
    assert json.loads((tmp_path / "copy" / RECORD).read_text())["max_side"] == 100


@pytest.mark.parametrize(("folder", "side", "message"), [
    ("none", "100", "no folder"), ("scans", "0", "must be at least 1")])
def test_a_users_mistake_is_one_line(folder, side, message, scans, tmp_path):
    code, _, error = pack(tmp_path / folder, "--max-side", side)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_a_python_without_pillow_is_sent_to_the_image(scans):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['PIL'] = None; sys.argv[1:] = "
         f"['pack', {str(scans)!r}, '--max-side', '9']; import blip_art.data.__main__ as command; "
         "from blip_art.errors import exit_cleanly; exit_cleanly(command.main)"],
        capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "./launch.py data pack" in done.stderr


def test_launch_makes_the_copy_too(scans, tmp_path, repo):
    done = subprocess.run([sys.executable, repo / "launch.py", "data", "pack", scans, "--max-side",
                           "100", "-o", tmp_path / "copy"], capture_output=True, text=True,
                          check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "box 2" / "linked.webp").is_file()


def test_a_login_node_without_pillow_makes_the_copy_in_the_image(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "a.sif").write_bytes(b"hsqs" + bytes(100))
    site = Site(image=str(tmp_path / "a.sif"), overlay="a.img", binds=("/scratch",))
    ran = []
    code = packing.shrink(scans, tmp_path / "new" / "copy", 100, site,
                          run=lambda argv, env: ran.append((argv, env)) or 1)  # type: ignore
    [(argv, env)] = ran
    assert code == 1
    assert argv[0].endswith("singularity/run.sh")
    assert argv[1:] == [site.python, "-m", "blip_art.data", "pack", str(scans), "--max-side", "100",
                        "-o", str(tmp_path / "new" / "copy")]
    assert (env["SIF"], env["OVERLAY"]) == (site.image, "a.img")
    assert env["BINDS"].split(",")[0] == "/scratch"
    assert env["BINDS"].split(",")[-2:] == [str(scans), str(tmp_path / "new")]
    with pytest.raises(UserError, match="has no Pillow, and the site profile no container"):
        packing.shrink(scans, tmp_path / "copy", 100, Site(container=""))
