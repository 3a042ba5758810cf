"""Lists of pictures and captions in every format we read, as one kind of record.

    pairs = load_pairs("annotation/iconclassTrain.json"); pairs[0].image, pairs[0].caption
"""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Tuple, Union

from blip_art.errors import UserError, quoted
from blip_art.files import PathLike, read_json, read_jsonl, read_text
from blip_art.schema import is_possible_path

ImageId = Union[int, str]
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_COCO_NAME = re.compile(r"COCO_\w+?_0*(\d+)\.\w+$")


class Pair(NamedTuple):
    """A picture and its captions (one, but for COCO's validation and test lists)."""

    image: str
    captions: Tuple[str, ...]
    image_id: ImageId

    @property
    def caption(self) -> str:
        return self.captions[0]


class Picture(NamedTuple):
    """A picture once, with the captions of all its pairs."""

    image: str
    captions: Tuple[str, ...]
    image_id: ImageId


def load_pairs(path: PathLike, split: str = "") -> List[Pair]:
    """Read a list of image and caption: JSON, Karpathy's dataset_coco.json, JSONL or CSV.

    Records that carry a `split` are kept if it is the one asked for ('' keeps all; 'train'
    includes Karpathy's 'restval'). A folder stands for the one list in it.

    Raises:
        UserError: no such file, another format, or a record without picture or caption; names
            the file and the record.
    """
    file = _existing(Path(path))
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file}: a list of pictures is {', '.join(READERS)}, "
                        f"not '{file.suffix}'")
    wanted = {"train": {"train", "restval"}}.get(split, {split})
    pairs: List[Pair] = []
    ids: Dict[str, ImageId] = {}
    for number, record in enumerate(reader(file), 1):
        where = f"{file}, record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where}: must be an object with image and caption, "
                            f"not {quoted(record)}")
        if not split or str(record.get("split", split)) in wanted:
            pairs.append(_pair(record, where, ids))
    if not pairs:
        raise UserError(f"{file} holds no picture" + (f" of split '{split}'" if split else ""))
    _check_ids(pairs, file)
    return pairs


def unique_pictures(pairs: Iterable[Pair]) -> List[Picture]:
    """Each picture once, in order, with all its captions: split lists name one about 4 times."""
    captions: Dict[ImageId, List[str]] = {}
    images: Dict[ImageId, str] = {}
    for pair in pairs:
        images.setdefault(pair.image_id, pair.image)
        captions.setdefault(pair.image_id, []).extend(pair.captions)
    return [Picture(image, tuple(captions[key]), key) for key, image in images.items()]


def ground_truth(pairs: Iterable[Pair]) -> Dict[str, List[Dict[str, Any]]]:
    """COCO ground truth, with int ids where they are numbers, as the original's files."""
    pictures = unique_pictures(pairs)
    single = all(len(pair.captions) == 1 for pair in pictures)
    annotations: List[Dict[str, Any]] = []
    for pair in pictures:
        image_id = _as_int(pair.image_id)
        for caption in pair.captions:
            number = image_id if single else len(annotations) + 1
            annotations.append({"image_id": image_id, "caption": caption, "id": number})
    return {"annotations": annotations,
            "images": [{"id": _as_int(pair.image_id)} for pair in pictures]}


def _existing(path: Path) -> Path:
    # The original's README and some copies of its files misspell the test lists.
    misspelt = path.with_name(path.name.replace("iconclassTest", "ionclassTest", 1))
    if path.is_dir():
        lists = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS)
        if len(lists) != 1:
            names = ", ".join(p.name for p in lists) or "none"
            raise UserError(f"{path} must hold one list ({', '.join(READERS)}), found {names}; "
                            "name the file")
        return lists[0]
    if not path.exists() and misspelt.exists():
        return misspelt
    if not path.is_file():
        raise UserError(f"no list of pictures at {path}; "
                        "write one with: python -m blip_art.data prepare ARCHIVE -o DIR")
    return path


def _read_json_list(file: Path) -> Iterator[Any]:
    value = read_json(file)
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        # Karpathy's own dataset_coco.json.
        return (_karpathy(record) for record in value["images"])
    if not isinstance(value, list):
        raise UserError(f"{file} must hold a JSON list of objects with image and caption")
    return iter(value)


def _karpathy(record: Any) -> Any:
    if not isinstance(record, dict) or not isinstance(record.get("filename"), str):
        return record
    folder, sentences = record.get("filepath", ""), record.get("sentences")
    return {"image": os.path.join(folder if isinstance(folder, str) else "", record["filename"]),
            "caption": [sentence.get("raw", "") if isinstance(sentence, dict) else sentence
                        for sentence in (sentences if isinstance(sentences, list) else ())],
            "image_id": record.get("cocoid", record.get("imgid")),
            "split": record.get("split", "")}


def _read_csv(file: Path) -> Iterator[Any]:
    rows = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        names = rows.fieldnames or ()
        if len(set(names)) < len(names):
            raise UserError(f"{file}, line 1: a column is there twice; give each its own name")
        for row in rows:
            if None in row:  # a caption with a comma would lose what follows it
                raise UserError(f"{file}, line {rows.line_num}: more cells than columns; put "
                                "texts with commas between double quotes")
            yield row
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num + 1}: not valid CSV ({error}); "
                        "save it again") from error


READERS: Dict[str, Callable[[Path], Iterator[Any]]] = {
    ".json": _read_json_list, ".jsonl": lambda file: iter(read_jsonl(file)), ".csv": _read_csv}


def _pair(record: Dict[str, Any], where: str, ids: Dict[str, ImageId]) -> Pair:
    for key in ("image", "caption"):
        if record.get(key) in (None, "", []):
            raise UserError(f"{where}: no '{key}'; write one or take the record out")
    image, captions = record["image"], record["caption"]
    captions = captions if isinstance(captions, list) else [captions]
    if not isinstance(image, str) or not all(isinstance(c, str) for c in captions):
        raise UserError(f"{where}: image and caption must be text, not "
                        f"{quoted((image, captions))}")
    if "\0" in image or _LONE_SURROGATE.search(image) or not is_possible_path(image):
        raise UserError(f"{where}: no file can be named {quoted(image)}; rename it or take the "
                        "record out")
    if not all(caption.strip() for caption in captions):
        raise UserError(f"{where}: the caption of {quoted(image)} is empty; "
                        "write one or take the record out")
    image_id = record.get("image_id")
    if image_id in (None, ""):
        coco = _COCO_NAME.search(image)
        image_id = ids.setdefault(image, int(coco[1]) if coco else len(ids) + 1)
    if (isinstance(image_id, bool) or not isinstance(image_id, (int, str))
            or _LONE_SURROGATE.search(str(image_id))):
        raise UserError(f"{where}: image_id must be text or a whole number, not "
                        f"{quoted(image_id)}")
    # Half an emoji, of a text cut by bytes, can be neither tokenized nor written; scoring says the
    # same of it.
    return Pair(image, tuple(_LONE_SURROGATE.sub("\ufffd", text) for text in captions), image_id)


def _check_ids(pairs: List[Pair], file: Path) -> None:
    images: Dict[str, str] = {}
    for pair in pairs:
        image = images.setdefault(str(pair.image_id), pair.image)
        if image != pair.image:
            raise UserError(f"{file}: image_id {quoted(pair.image_id)} is both {quoted(image)} "
                            f"and {quoted(pair.image)}; give each picture its own")


def _as_int(image_id: ImageId) -> ImageId:
    # '007' stays text: as 7 it would not be found again, or be taken for another picture's.
    text = str(image_id)
    is_plain = text.isdecimal() and len(text) < 19 and str(int(text)) == text
    return int(text) if is_plain else image_id
