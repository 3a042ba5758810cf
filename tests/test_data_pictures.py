"""Reading pictures of every mode, finding bad ones, and augmenting them repeatably."""

import os
import socket

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from blip_art.data.check import find_bad_pictures
from blip_art.data.datasets import Pair
from blip_art.data.loading import PictureDataset, TrainDataset
from blip_art.data.pictures import find_picture, read_picture
from blip_art.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    OPERATIONS,
    EvalTransform,
    RandAugment,
    TrainTransform,
    to_input,
)
from blip_art.data.workers import worker_options
from blip_art.errors import UserError

torch.set_num_threads(1)


def corner(path):
    return read_picture(path).getpixel((0, 0))


def test_exif_rotation_is_honoured(tmp_path):
    picture = Image.new("RGB", (20, 10), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").size == (10, 20)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_grey_tiff_is_turned_too(compression, tmp_path):
    """Pillow leaves those that it maps into memory as they are."""
    picture = Image.new("L", (20, 10), 255)
    picture.paste(0, (0, 0, 1, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.tif", exif=exif, compression=compression)
    turned = np.asarray(read_picture(tmp_path / "a.tif"))
    assert turned.shape == (20, 10, 3)
    assert turned[0].max() == 0
    assert turned[1:].min() == 255


@pytest.mark.parametrize(("picture", "colour"), [
    (Image.new("1", (4, 4), 1), (255, 255, 255)),
    (Image.new("L", (4, 4), 100), (100, 100, 100)),
    (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
    (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
    (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), (255, 0, 0)),
    (Image.fromarray(np.full((4, 4), 32_768, np.uint16)), (128, 128, 128)),
    (Image.fromarray(np.full((4, 4), 300, np.uint16)), (1, 1, 1)),
], ids=lambda value: getattr(value, "mode", ""))
def test_png_of_every_mode_becomes_rgb(picture, colour, tmp_path):
    picture.save(tmp_path / "a.png")
    assert corner(tmp_path / "a.png") == colour


def test_a_transparent_palette_becomes_white(tmp_path):
    picture = Image.new("P", (4, 4), 3)
    picture.putpalette([9] * 768)
    picture.save(tmp_path / "a.png", transparency=3)
    assert corner(tmp_path / "a.png") == (255, 255, 255)


def test_floating_point_wide_integers_and_cmyk_become_rgb(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((4, 4), 32_768, np.int32)).save(tmp_path / "c.tif")
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "b.jpg")
    assert corner(tmp_path / "a.tif") == corner(tmp_path / "c.tif") == (128, 128, 128)
    assert max(corner(tmp_path / "b.jpg")) < 5


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures of noise in a flat folder."""
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(
            tmp_path / f"{number}.png")
    return tmp_path


def test_an_entry_is_found_by_its_path_or_its_name(pictures):
    (pictures / "data").mkdir()
    (pictures / "1.png").rename(pictures / "data" / "1.png")
    assert find_picture(pictures, "data/1.png") == pictures / "data" / "1.png"
    assert find_picture(pictures, "data/2.png") == pictures / "2.png"
    assert find_picture(pictures, "data/none.png") == pictures / "data" / "none.png"


@pytest.mark.parametrize("entry", ["../1.png", "data/../../1.png", "a/../1.png", "/etc/passwd"])
def test_an_entry_that_leads_out_of_the_folder_is_refused(entry, pictures):
    with pytest.raises(UserError, match=f"'{entry}' leads out of the folder of pictures"):
        find_picture(pictures, entry)


def test_pictures_may_be_links_to_elsewhere(pictures, tmp_path_factory):
    root = tmp_path_factory.mktemp("links")
    (root / "here.png").symlink_to(pictures / "1.png")
    (root / "folder").symlink_to(pictures)
    for entry in ("here.png", "data/here.png", "folder/1.png"):
        assert read_picture(find_picture(root, entry)).size == (48, 40)


def test_names_that_no_file_can_have_are_bad_pictures(pictures):
    (pictures / "data").mkdir()
    entries = ["data/" + "n" * 300 + ".png", "ä" * 200 + ".png", "1.png/2.png", "data/1\0.png"]
    bad = find_bad_pictures(pictures, entries)
    assert list(bad.values()) == ["File name too long", "File name too long",
                                  "Not a directory", "embedded null byte"]


def test_a_folder_without_permission_is_a_reason(pictures):
    pictures.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65_534)  # root may search any folder
        bad = find_bad_pictures(pictures, ["data/1.png"])
    finally:
        os.seteuid(user)
        pictures.chmod(0o755)
    assert bad == {"data/1.png": "Permission denied"}


@pytest.mark.timeout(60)  # it hung for ever
def test_what_is_no_file_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "2.png").mkdir()
    (tmp_path / "3.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "4.png"))
        bad = find_bad_pictures(tmp_path, sorted(os.listdir(tmp_path)))
    assert list(bad.values()) == [
        "a named pipe and not a file", "a folder and not a file", "a device and not a file",
        "No such device or address"]


def test_what_is_no_number_in_a_scientific_tiff_is_black(tmp_path):
    levels = np.array([[np.nan, 0.0, 1.0, np.inf]], np.float32)
    Image.fromarray(levels).save(tmp_path / "1.tif")
    grey = np.asarray(read_picture(tmp_path / "1.tif"))[0, :, 0]
    assert grey.tolist() == [0, 0, 255, 255]


def test_the_first_of_several_pictures_in_a_file_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.tif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, _, blue = corner(tmp_path / name)
        assert red > 200 > 50 > blue


def test_a_picture_that_went_bad_later_is_a_users_error(pictures):
    (pictures / "0.png").write_text("this is text")
    with pytest.raises(UserError, match="0.png \\(not a picture\\)"):
        PictureDataset(["0.png"], pictures, 32)[0]


@pytest.fixture
def dataset(pictures):
    pairs = [Pair(f"data/{n}.png", (f"Caption {n}.",), str(n)) for n in range(10)]
    return TrainDataset(pairs, pictures, 32, "a picture of ", 30, seed=7)


def test_a_sample_is_bytes_and_a_prompted_caption(dataset):
    picture, caption = dataset[0, 3]
    assert (picture.shape, picture.dtype) == ((3, 32, 32), torch.uint8)
    assert caption == "a picture of caption 3"


def test_a_picture_that_went_bad_in_training_ends_it_or_the_next_pair_takes_its_place(
        dataset, pictures, capsys):
    (pictures / "3.png").unlink()
    (pictures / "4.png").write_text("this is text")
    with pytest.raises(UserError, match="3.png \\(missing\\)"):
        dataset[0, 3]
    others = dataset[0, 2][0], dataset[0, 6][0]
    dataset.skip_bad = True
    (taken_by, caption), again = dataset[0, 3], dataset[0, 3][0]
    assert caption == "a picture of caption 5"
    assert torch.equal(taken_by, again)
    assert torch.equal(dataset[0, 2][0], others[0])
    assert torch.equal(dataset[0, 6][0], others[1])
    assert capsys.readouterr().err.count("3.png (missing)") == 1
    for path in pictures.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="missing"):
        dataset[0, 3]


def test_a_picture_that_went_bad_may_have_any_number_of_captions(pictures):
    pairs = [Pair(f"{n}.png", (f"Caption {n}.",), str(n)) for n in [0] * 40 + [1]]
    dataset = TrainDataset(pairs, pictures, 32, skip_bad=True)
    (pictures / "0.png").unlink()
    assert dataset[0, 5][1] == "caption 1"


def test_every_caption_of_a_picture_is_trained_on(pictures):
    assert len(TrainDataset([Pair("0.png", ("one", "two"), 1)], pictures, 32)) == 2


@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5), st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3),
       st.integers(0, 2**32))
def test_augmentation_depends_on_seed_epoch_and_index_alone(dataset, epoch, index, before, noise):
    expected, _ = dataset[epoch, index]
    torch.manual_seed(noise)
    for other in before:
        dataset[epoch, other]
    state = torch.random.get_rng_state()
    again, _ = dataset[epoch, index]
    assert torch.equal(expected, again)
    assert torch.equal(state, torch.random.get_rng_state())


def test_workers_draw_what_the_process_itself_draws(dataset):
    keys = [[(1, 0), (1, 1)], [(1, 2), (1, 3)]]
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=keys, num_workers=2,
                                         **worker_options(2))
    for batch, batch_keys in zip(loader, keys, strict=True):
        for picture, key in zip(batch[0], batch_keys, strict=True):
            assert torch.equal(picture, dataset[key][0])


@pytest.mark.parametrize("size", [(500, 400), (300, 500), (900, 610), (64, 48)])
def test_crops_are_resized_as_pillow_would_to_two_grey_levels(size, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(noise)
    transform = TrainTransform(96)
    monkeypatch.setattr(transform.augment, "draw", lambda: [])
    flipped = set()
    for seed in range(6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            ours = transform(picture)
            torch.manual_seed(seed)
            top, left, height, width = RandomResizedCrop.get_params(
                picture, [0.5, 1.0], [3 / 4, 4 / 3])
            flip = bool(torch.rand(1) < 0.5)
        crop = picture.crop((left, top, left + width, top + height))
        theirs = crop.resize((96, 96), Image.Resampling.BICUBIC)
        if flip:
            theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        flipped.add(flip)
        expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
        assert (ours.int() - expected.int()).abs().max() <= 2
    assert flipped == {True, False}


def test_epochs_and_seeds_augment_differently(dataset):
    first = dataset[0, 0][0]
    assert not torch.equal(first, dataset[1, 0][0])
    dataset.seed = 8
    assert not torch.equal(first, dataset[0, 0][0])


def test_evaluation_squeezes_the_whole_picture_and_normalizes_as_clip():
    grey = Image.new("RGB", (90, 30), (51, 102, 153))
    [tensor] = to_input(EvalTransform(32)(grey)[None])
    expected = (torch.tensor([0.2, 0.4, 0.6]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert tensor.shape == (3, 32, 32)
    assert torch.allclose(tensor[:, 5, 20], expected)


@pytest.fixture
def bar():
    """A white picture with a black upright bar in the middle."""
    picture = Image.new("RGB", (101, 101), "white")
    picture.paste((0, 0, 0), (48, 0, 53, 101))
    return picture


def centre(picture, row):
    """Where the bar is in a row."""
    levels = 255 - np.asarray(picture.convert("L"))[row].astype(float)
    levels[levels < 200] = 0
    return (levels * np.arange(len(levels))).sum() / levels.sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_shear_is_a_seventh_of_the_height_from_the_upper_edge(bar, sign):
    sheared = OPERATIONS["ShearX"](bar, 0.5, sign)
    assert centre(sheared, 0) == pytest.approx(50, abs=0.6)
    assert abs(centre(sheared, 100) - 50) == pytest.approx(15, abs=0.6)


@pytest.mark.parametrize("sign", [1, -1])
def test_translation_is_five_pixels_and_fills_with_grey(bar, sign):
    moved = OPERATIONS["TranslateX"](bar, 0.5, sign)
    assert centre(moved, 50) == pytest.approx(50 + 5 * sign)
    assert moved.getpixel((0 if sign > 0 else 100, 50)) == (128, 128, 128)


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_is_fifteen_degrees_about_the_centre(bar, sign):
    turned = OPERATIONS["Rotate"](bar, 0.5, sign)
    shift = centre(turned, 80) - centre(turned, 20)
    assert abs(shift) == pytest.approx(60 * np.tan(np.radians(15)), abs=0.8)
    assert centre(turned, 50) == pytest.approx(50, abs=0.6)


def test_level_five_leaves_brightness_and_sharpness_alone_as_the_original_does(pictures):
    picture = read_picture(pictures / "0.png")
    for name in ("Identity", "Brightness", "Sharpness"):
        assert OPERATIONS[name](picture, 0.5, 1).tobytes() == picture.tobytes()
    assert OPERATIONS["Brightness"](picture, 0.2, 1).tobytes() != picture.tobytes()


def test_randaugment_changes_about_as_many_pictures_as_its_odds_say():
    # An operation of the two is applied with odds .5, and 7 of 10 change this picture.
    picture = Image.fromarray(
        np.random.default_rng(0).integers(60, 90, (24, 24, 3), np.uint8))
    augment = RandAugment(2, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        changed = sum(augment(picture).tobytes() != picture.tobytes() for _ in range(600)) / 600
    assert changed == pytest.approx(1 - 0.65**2, abs=0.06)
