"""Lists of pictures and captions in every format."""

import json
import os

import pytest

from blip_art.data.datasets import Pair, ground_truth, load_pairs, unique_pictures
from blip_art.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Write a list; texts as they are, values as JSON."""
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path
    return write


RECORD = {"caption": "sitting figure.", "image": "data/a.jpg", "image_id": "1"}
PAIR = Pair("data/a.jpg", ("sitting figure.",), "1")


@pytest.mark.parametrize(("name", "content"), [
    ("pairs.json", [RECORD]),
    ("pairs.jsonl", json.dumps(RECORD) + "\n\n"),
    ("pairs.csv", "image,caption,image_id\ndata/a.jpg,sitting figure.,1\n"),
    ("excel.csv", "\ufeffimage,caption,image_id\r\ndata/a.jpg,\"sitting figure.\",1\r\n"),
])
def test_json_jsonl_and_csv_hold_the_same(write, name, content):
    assert load_pairs(write(name, content)) == [PAIR]


def test_a_folder_stands_for_the_one_list_in_it(write):
    path = write("captions.csv", "image,caption\na.jpg,a dog\nb.jpg,a cat\na.jpg,a hound\n")
    assert load_pairs(path.parent) == [
        Pair("a.jpg", ("a dog",), 1), Pair("b.jpg", ("a cat",), 2), Pair("a.jpg", ("a hound",), 1)]
    write("more.json", [RECORD])
    with pytest.raises(UserError, match=r"found captions.csv, more.json; name the file"):
        load_pairs(path.parent)


def test_coco_lists_of_captions_take_their_ids_from_the_file_names(write):
    path = write("coco_karpathy_val.json", [
        {"image": "val2014/COCO_val2014_000000184613.jpg", "caption": ["A child.", "A yak."]}])
    assert load_pairs(path) == [
        Pair("val2014/COCO_val2014_000000184613.jpg", ("A child.", "A yak."), 184_613)]


def test_karpathys_own_file_is_read_by_split(write):
    path = write("dataset_coco.json", {"dataset": "coco", "images": [
        {"filepath": "val2014", "filename": f"{n}.jpg", "cocoid": n, "split": split,
         "sentences": [{"raw": "A cat."}]}
        for n, split in enumerate(["train", "restval", "val", "test"])]})
    assert [pair.image_id for pair in load_pairs(path, "train")] == [0, 1]
    assert load_pairs(path, "val") == [Pair("val2014/2.jpg", ("A cat.",), 2)]
    assert len(load_pairs(path)) == 4


def test_the_originals_misspelt_test_list_is_found(write):
    path = write("ionclassTest_split.json", [RECORD])
    assert load_pairs(path.with_name("iconclassTest_split.json")) == [PAIR]


def test_a_split_list_names_each_picture_once_in_order():
    pairs = [Pair("b.jpg", ("x",), "2"), Pair("b.jpg", ("y",), "2"), Pair("a.jpg", ("x",), "1")]
    assert [(p.image, p.captions) for p in unique_pictures(pairs)] == [
        ("b.jpg", ("x", "y")), ("a.jpg", ("x",))]


def test_ground_truth_numbers_annotations_apart_where_a_picture_has_several():
    truth = ground_truth([Pair("b.jpg", ("x",), "2"), Pair("b.jpg", ("y",), "2"),
                          Pair("a.jpg", ("x",), "coco_1")])
    assert truth["images"] == [{"id": 2}, {"id": "coco_1"}]
    assert [(a["image_id"], a["id"]) for a in truth["annotations"]] == [
        (2, 1), (2, 2), ("coco_1", 3)]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", [RECORD, {**RECORD, "caption": " "}], "record 2: the caption of 'data/a.jpg' is"),
    ("a.json", [{**RECORD, "caption": ""}], "record 1: no 'caption'"),
    ("a.json", [{"caption": "x"}], "record 1: no 'image'"),
    ("a.json", [{**RECORD, "caption": [1]}], "record 1: image and caption must be text"),
    ("a.json", ["x"], "record 1: must be an object"),
    ("a.json", {"caption": "x"}, "must hold a JSON list"),
    ("a.json", [], "holds no picture"),
    ("a.json", "[{", "not valid JSON"),
    ("a.csv", "picture,text\na.jpg,x\n", "record 1: no 'image'"),
    ("a.txt", "a.jpg x", "not '.txt'"),
    ("a.json", [RECORD, {**RECORD, "image": "b.jpg"}], "image_id '1' is both 'data/a.jpg' and "),
    ("a.json", [{**RECORD, "image": "a\0b"}], "record 1: no file can be named 'a"),
    ("a.json", [{**RECORD, "image": "x" * 300}], "record 1: no file can be named 'x"),
    ("a.json", [{**RECORD, "image": "a\ud83d.jpg"}], "record 1: no file can be named 'a"),
    ("a.json", [{**RECORD, "image_id": [1]}], "record 1: image_id must be text or a whole number"),
    ("a.json", [{**RECORD, "image_id": True}], "record 1: image_id must be text or a whole"),
    ("a.json", [{**RECORD, "image_id": "\ud83d"}], "record 1: image_id must be text or a whole"),
    ("a.json", {"images": [{"filename": 1}]}, "record 1: no 'image'"),
    ("a.json", {"images": [{"filename": "a", "sentences": [1]}]}, "record 1: image and caption"),
    ("a.json", {"images": [{"filename": "a", "sentences": 1}]}, "record 1: no 'caption'"),
    ("a.json", "[" * 100_000, "line 1: not valid JSON"),
    ("a.jsonl", "1\n[", "line 2: not valid JSON"),
    ("a.csv", "image,caption\na.jpg,a dog, a cat\n", "line 2: more cells than columns"),
    ("a.csv", "image,image,caption\na,b,c\n", "line 1: a column is there twice"),
    ("a.csv", "image,caption\na.jpg," + "x" * 200_000, "line 2: not valid CSV .field larger than"),
    ("a.csv", "image,caption\n\0,a dog\n", "no file can be named|line contains NUL"),
])
def test_a_bad_list_names_the_file_and_the_record(write, name, content, message):
    path = write(name, content)
    with pytest.raises(UserError, match=message) as refusal:
        load_pairs(path)
    assert name in str(refusal.value)


def test_a_list_that_is_not_utf8_names_the_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"image,caption\na.jpg,a dog\nb.jpg,caf\xe9\n")
    with pytest.raises(UserError, match=r"a\.csv, line 3: not UTF-8 text; save it as UTF-8"):
        load_pairs(tmp_path / "a.csv")


def test_half_a_character_in_a_caption_becomes_the_sign_for_one(write):
    """What scoring makes of it too: it can be neither tokenized nor written."""
    path = write("a.json", [{**RECORD, "caption": ["a \ud83d dog", "a cat"]}])
    assert load_pairs(path)[0].captions == ("a \ufffd dog", "a cat")


def test_ids_of_any_length_are_kept(write):
    number = "9" * 5000
    path = write("a.json", [{**RECORD, "image_id": number}])
    assert ground_truth(load_pairs(path))["images"] == [{"id": number}]


@pytest.mark.timeout(20)
def test_a_pipe_in_a_folder_of_lists_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="no regular file"):
        load_pairs(tmp_path)


def test_a_missing_list_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="python -m blip_art.data prepare"):
        load_pairs(tmp_path / "iconclassTrain.json")
