"""Pictures too large to decode as a whole: the same pixels, in little memory that is given back."""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from bench.large_pictures import write_tiled
from blip_art.data import large
from blip_art.data.bands import bands
from blip_art.data.check import find_bad_pictures
from blip_art.data.large import LARGE, Wanted, decode_large, reduce_bands
from blip_art.data.loading import PictureDataset
from blip_art.data.pictures import UNREADABLE, decode, open_picture, read_picture
from blip_art.data.rgb import WIDE_MODES, to_rgb
from blip_art.data.transforms import EvalTransform
from blip_art.errors import UserError


def noise(mode, width=2_003, height=1_501):
    """Of more pixels than one band has, and of sides that no strip divides."""
    rng = np.random.default_rng(0)
    if mode in ("I;16", "F"):
        levels = rng.integers(0, 65_536, (height, width), np.uint16)
        return Image.fromarray(levels if mode == "I;16" else levels.astype(np.float32) / 7)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8))
    if mode == "P":
        picture = picture.convert("RGB").quantize(64, Image.Quantize.FASTOCTREE)
        picture.info["transparency"] = 5
        return picture
    return picture.convert("L").convert(mode) if mode == "1" else picture.convert(mode)


@pytest.mark.parametrize(("mode", "name", "options"), [
    *((mode, "a.png", {"compress_level": 1}) for mode in ("L", "LA", "P", "RGB", "RGBA", "I;16")),
    *((mode, "a.tif", {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F")),
    ("RGB", "a.tif", {"tiffinfo": {278: 1_501}}),  # one strip
    *(("RGB", "a.tif", {"compression": name})
      for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
    ("RGB", "a.tif", {"big_tiff": True}),
])
def test_bands_are_the_whole_picture(mode, name, options, tmp_path):
    noise(mode).save(tmp_path / name, **options)
    check_bands(tmp_path / name)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_rows_of_tiles_are_the_whole_picture(mode, compression, tmp_path):
    check_bands(write_tiled(tmp_path / "a.tif", noise(mode, 500, 301), compression, side=64))


def check_bands(path):
    with open_picture(path) as (file, picture):
        parts = bands(file, picture)
        assert parts is not None
        ours = list(parts)
    with Image.open(path) as whole:
        whole.load()
        expected = whole if whole.mode in WIDE_MODES else to_rgb(whole)
    assert len(ours) > 1
    top = 0
    for band in ours:
        part = expected.crop((0, top, expected.width, top + band.height))
        assert band.tobytes() == part.tobytes()
        top += band.height
    assert top == expected.height


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 17))
def test_bands_are_averaged_as_the_whole_would_be(heights, factor):
    whole = noise("RGB", 67, sum(heights))
    tops = np.cumsum([0, *heights])
    parts = [whole.crop((0, top, 67, top + height))
             for top, height in zip(tops[:-1], heights, strict=True)]
    assert reduce_bands(parts, factor).tobytes() == whole.reduce(factor).tobytes()


@pytest.fixture(scope="module")
def scan():
    """A large picture: half black above, half white below, on the left side red."""
    picture = Image.new("RGB", (5_000, 3_500), "white")
    picture.paste("black", (0, 0, 5_000, 1_750))
    picture.paste("red", (0, 0, 2_500, 3_500))
    assert picture.width * picture.height > LARGE
    return picture


@pytest.mark.parametrize(("name", "options"), [
    ("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.png", {"compress_level": 1}),
    ("a.tif", {"compression": "tiff_lzw"}), ("a.webp", {"method": 0}), ("a.bmp", {})])
def test_a_large_picture_keeps_twice_the_side_and_is_turned(scan, name, options, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen turned to the right
    scan.save(tmp_path / name, **options, **({} if name == "a.bmp" else {"exif": exif}))
    picture = read_picture(tmp_path / name, 300, draft=False)
    upright = name == "a.bmp"
    assert min(picture.size) in range(600, 1_201)
    assert (picture.width > picture.height) is upright
    left, right = picture.width // 4, picture.width * 3 // 4
    pixels = np.asarray(picture)
    colours = [pixels[y, x] for y in (picture.height // 4, picture.height * 3 // 4)
               for x in (left, right)]
    expected = ["red", "black", "red", "white"] if upright else ["red", "red", "white", "black"]
    for colour, wanted in zip(colours, expected, strict=True):
        assert np.allclose(colour, ImageColor.getrgb(wanted), atol=4)


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_a_model_sees_the_same_as_from_all_pixels(name, tmp_path):
    """To a grey level on average: the box filter comes before the same bicubic one."""
    painting = noise("RGB", 50, 50).resize((4_500, 4_000), Image.Resampling.BICUBIC)
    painting.save(tmp_path / name)
    position, ours = PictureDataset([name], tmp_path, 384)[0]
    whole = EvalTransform(384)(read_picture(tmp_path / name))
    assert position == 0
    assert (ours.int() - whole.int()).abs().float().mean() < 1


def test_with_all_pixels_wanted_a_large_picture_is_whole(scan, tmp_path):
    scan.save(tmp_path / "a.png", compress_level=1)
    assert read_picture(tmp_path / "a.png").tobytes() == scan.tobytes()


MEMORY = """
import ctypes, sys
from blip_art.data.pictures import read_picture
for option, value in ((-3, 2**31 - 1), (-1, -1)):  # as memory.keep_freed_memory has it in ranks
    ctypes.CDLL(None).mallopt(option, value)
def memory(what):
    return int(open("/proc/self/status").read().split(what + ":")[1].split()[0]) // 1000
own = memory("VmRSS")
read_picture(sys.argv[1], 600)
print(memory("VmHWM") - own)
"""


@pytest.mark.parametrize("name", ["tiles.tif", "grey.png", "whole.bmp"])
def test_a_rank_needs_and_keeps_little_memory(name, tmp_path, repo):
    """50 megapixels, which are 200 MB as RGB."""
    picture = noise("RGB", 500, 500)
    whole = Image.new("RGB", (10_000, 5_000))
    for left in range(0, 10_000, 500):
        for top in range(0, 5_000, 500):
            whole.paste(picture, (left, top))
    if name == "tiles.tif":
        write_tiled(tmp_path / name, whole)
    elif name == "grey.png":
        Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) << 8).save(
            tmp_path / name, compress_level=1)
    else:
        whole.save(tmp_path / name)
    megabytes = subprocess.check_output([sys.executable, "-c", MEMORY, tmp_path / name], cwd=repo)
    assert int(megabytes) < 100


def png_header(size, interlaced):
    """The first chunk of a grey PNG, and no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(("size", "interlaced"), [((20_000, 15_000), 1), ((90_000, 90_000), 0)])
def test_too_many_pixels_are_counted_and_the_command_named(size, interlaced, tmp_path):
    data = b"IDAT" + zlib.compress(bytes(100))
    (tmp_path / "a.png").write_bytes(
        png_header(size, interlaced) + struct.pack(">I", len(data) - 4) + data + bytes(4))
    with pytest.raises(UserError) as error:
        read_picture(tmp_path / "a.png", 600)
    message = str(error.value)
    assert f"{size[0]:,} x {size[1]:,}" in message
    assert "megapixels, at most" in message
    assert "data pack DIR --max-side" in message
    [reason] = find_bad_pictures(tmp_path, ["a.png"]).values()
    assert reason.startswith("far too many pixels")


def test_pillows_warning_of_many_pixels_reaches_nobody(tmp_path):
    Image.new("L", (10_000, 9_500)).save(tmp_path / "a.png", compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "a.png", 300).size == (667, 634)


@pytest.mark.parametrize(("child", "message"), [
    ("import os; os.kill(os.getpid(), 9)", "killed, as when memory runs out"),
    ("import os; os.abort()", "ended with code -6"),
    ("import sys; sys.exit('no picture')", "ended with code 1: no picture")])
def test_a_decoder_that_dies_is_a_picture_that_cannot_be_read(child, message, scan, tmp_path,
                                                              monkeypatch):
    scan.save(tmp_path / "a.bmp")
    monkeypatch.setattr(large, "_CHILD", child)
    with pytest.raises(UserError, match=message):
        read_picture(tmp_path / "a.bmp", 300)


def test_a_large_picture_cut_short_is_told_as_any_other(scan, tmp_path):
    for name, options in (("a.png", {"compress_level": 1}), ("a.tif", {}), ("a.webp", {}),
                          ("b.tif", {"compression": "tiff_lzw"}), ("a.jpg", {})):
        path = tmp_path / name
        scan.save(path, **options)
        path.write_bytes(path.read_bytes()[:-path.stat().st_size // 3])
    bad = find_bad_pictures(tmp_path, sorted(os.listdir(tmp_path)))
    assert len(bad) == 5, bad


def small_files():
    """A small file of every format and most modes."""
    files = []
    kinds: list[tuple[str, str, dict[str, Any]]] = [
            ("RGB", "PNG", {}), ("P", "PNG", {}), ("I;16", "PNG", {}), ("RGBA", "PNG", {}),
            ("RGB", "TIFF", {}), ("L", "TIFF", {"compression": "tiff_lzw"}),
            ("RGB", "TIFF", {"compression": "jpeg"}), ("F", "TIFF", {}), ("1", "TIFF", {}),
            ("RGB", "JPEG", {}), ("CMYK", "JPEG", {"progressive": True}), ("P", "GIF", {}),
            ("RGB", "WEBP", {}), ("RGB", "BMP", {}), ("L", "TIFF", {"compression": "group4"})]
    for mode, kind, options in kinds:
        out = io.BytesIO()
        picture = noise("1" if options.get("compression") == "group4" else mode, 23, 19)
        picture.save(out, kind, **options)
        files.append(out.getvalue())
    return files


FILES = small_files()


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.sampled_from(FILES), st.data())
def test_a_hostile_file_is_a_picture_or_unreadable(tmp_path_factory, content, data):
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1) | st.integers(0, min(99, len(changed) - 1)))
        changed[at] = data.draw(st.sampled_from([0, 1, 255]) | st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(1, len(changed)))
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(changed[:cut])
    for read in (lambda: decode(path, 8, limit=10**7), lambda: as_large(path)):
        try:
            picture = read()
        except UNREADABLE:
            continue
        assert picture.mode == "RGB"
        assert min(picture.size) > 0


def as_large(path):
    with open_picture(path) as (file, picture):
        return decode_large(path, file, picture, Wanted(4, limit=10**7, here=True))
