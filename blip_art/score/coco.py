"""Reads references and results in COCO's formats and pairs them, or says what does not fit.

    pairs = paired(read_references("val.json"), read_captions("val_03.json"))
"""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from numbers import Integral
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from blip_art.errors import UserError, printable
from blip_art.files import PathLike, read_json

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class Pairs(NamedTuple):
    """Captions beside their references, by picture."""

    ids: List[str]
    captions: List[str]
    references: List[List[str]]


def read_references(path: PathLike) -> Dict[str, List[str]]:
    """Captions by picture from a file in one of the formats of `references_by_id`.

    Raises:
        UserError: not JSON, another shape, or a picture without captions.
    """
    references = references_by_id(read_json(path), str(path))
    _refuse([key for key, texts in references.items() if not texts],
            f"{path}: no reference caption for {{}}; add one or remove the picture")
    return references


def read_captions(path: PathLike) -> Dict[str, str]:
    """One caption a picture from a file in one of the formats of `captions_by_id`.

    Raises:
        UserError: not JSON, another shape, or a picture with two captions.
    """
    return captions_by_id(read_json(path), str(path))


def references_by_id(data: Any, where: str = "references") -> Dict[str, List[str]]:
    """Texts by picture, of files and of Python calls; ids become text.

    Args:
        data: COCO ground truth, a list of {image_id, caption}, or {id: [texts]}, where a text may
            be {"caption": text}, as pycocoevalcap has it.

    Raises:
        UserError: another shape; the entry is named.
    """
    if isinstance(data, Mapping) and not {"annotations", "images"} & set(data):
        return {key: _texts(value, key, where) for key, value in _by_text(data, where)}
    references: Dict[str, List[str]] = {}
    if isinstance(data, Mapping):
        for number, picture in enumerate(_list_in(data, "images", where)):
            references[_id(picture, "id", f"{where}: images[{number}]")] = []
        data = _list_in(data, "annotations", where)
    for key, caption in _rows(data, where):
        references.setdefault(key, []).append(caption)
    if not references:
        raise UserError(f"{where} holds no captions")
    return references


def captions_by_id(data: Any, where: str = "captions") -> Dict[str, str]:
    """One caption a picture, of files and of Python calls; ids become text.

    Args:
        data: a list of {image_id, caption}, {id: text}, or pycocoevalcap's {id: [text]}.

    Raises:
        UserError: another shape, or not one caption for a picture; it is named.
    """
    if isinstance(data, Mapping) and isinstance(data.get("annotations"), (list, tuple)):
        raise UserError(f"{where} is ground truth (it has 'annotations'), not one caption a "
                        "picture; references come first, then results")
    if isinstance(data, Mapping):
        rows = [(key, text) for key, value in _by_text(data, where)
                for text in ([value] if isinstance(value, str) else
                             _texts(value, key, where, "one text"))]
        found = {key for key, _ in rows}
        _refuse([str(key) for key in data if str(key) not in found],
                f"{where}: no caption for {{}}; give one")
    else:
        rows = list(_rows(data, where))
    times = Counter(key for key, _ in rows)
    _refuse([key for key, count in times.items() if count > 1],
            f"{where}: more than one caption for {{}}; keep one")
    return dict(rows)


def paired(references: Any, captions: Any, subset: bool = False) -> Pairs:
    """Put captions beside their references, in the references' order; ids match as text.

    Args:
        references: what `references_by_id` takes.
        captions: what `captions_by_id` takes.
        subset: score only the pictures that have a caption, as if the others did not exist.

    Raises:
        UserError: another shape, a picture has no caption, a caption no picture, a picture no
            reference.
    """
    texts, given = references_by_id(references), captions_by_id(captions)
    _refuse([key for key in given if key not in texts],
            "captions of pictures that the references do not have: {}; "
            "do the two files belong to the same split?")
    if not subset:
        _refuse([key for key in texts if key not in given],
                "no caption for {}; caption every picture, or score only those that have one "
                "with --subset")
    ids = [key for key in texts if key in given]
    _refuse([key for key in ids if not texts[key]], "no reference caption for {}")
    if not ids:
        raise UserError("there is no picture to score")
    return Pairs(ids, [given[key] for key in ids], [texts[key] for key in ids])


def cleaned(text: str) -> str:
    """One line that can be encoded: line breaks become spaces, halves of characters U+FFFD."""
    return LINE_BREAKS.sub(" ", LONE_SURROGATES.sub("\ufffd", text))


def _rows(rows: Any, where: str) -> Iterable[Tuple[str, str]]:
    if not isinstance(rows, (list, tuple)):
        raise UserError(f"{where} must hold a list of {{image_id, caption}} or {{id: caption}}, "
                        f"not {_shown(rows)}")
    for number, row in enumerate(rows):
        entry = f"{where}: entry {number}"
        if not isinstance(row, dict):
            raise UserError(f"{entry} must be {{image_id, caption}}, not {_shown(row)}")
        key = _id(row, "image_id", entry)
        if not isinstance(row.get("caption"), str):
            raise UserError(f"{entry} (image_id {printable(key)}): 'caption' must be text, "
                            f"not {_shown(row.get('caption'))}")
        yield key, row["caption"]


def _by_text(data: Mapping[Any, Any], where: str) -> Iterable[Tuple[str, Any]]:
    """Values by id as text; 1 and "1" in one mapping would become one picture."""
    spelled: Dict[str, Any] = {}
    for key, value in data.items():
        text = _id_text(key, "id", where)
        if text in spelled:
            raise UserError(f"{where}: the ids {_shown(spelled[text])} and {_shown(key)} are the "
                            "same picture; keep one")
        spelled[text] = key
        yield text, value


def _texts(value: Any, key: str, where: str, expected: str = "a list of texts") -> List[str]:
    # A text is a sequence too: its letters would be read as captions.
    if not isinstance(value, (list, tuple)) and (
            isinstance(value, (str, bytes)) or not isinstance(value, Sequence)):
        fix = f"; write [{_shown(value)}]" if isinstance(value, str) else ""
        raise UserError(f"{where}: picture {printable(key)} must have {expected}, "
                        f"not {_shown(value)}{fix}")
    texts = []
    for number, entry in enumerate(value):
        text = entry.get("caption") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise UserError(f"{where}: picture {printable(key)}: caption {number} must be text, "
                            f"not {_shown(entry)}")
        texts.append(text)
    return texts


def _list_in(data: Mapping[Any, Any], name: str, where: str) -> Sequence[Any]:
    rows = data.get(name) or ([] if name == "images" else data.get(name))
    if not isinstance(rows, (list, tuple)):
        raise UserError(f"{where} has no list '{name}'; it must be COCO ground truth, a list of "
                        "{image_id, caption}, or {id: [captions]}")
    return rows


def _id(row: Any, name: str, where: str) -> str:
    return _id_text(row.get(name) if isinstance(row, dict) else None, name, where)


def _id_text(value: Any, name: str, where: str) -> str:
    # Integral: numpy's are whole numbers too.
    if isinstance(value, bool) or not isinstance(value, (str, Integral)):
        raise UserError(f"{where}: '{name}' must be text or a whole number, not {_shown(value)}")
    text = str(value)
    if LONE_SURROGATES.search(text):
        raise UserError(f"{where}: '{name}' holds half a character: {_shown(value)}; write it "
                        "again")
    return text


def _shown(value: Any) -> str:
    """On one line, short and printable, however long or deep it is."""
    return _SHORT.repr(value)


def _refuse(keys: Sequence[str], message: str) -> None:
    if keys:
        named = ", ".join(printable(key) for key in keys[:3]) + (
            f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        raise UserError(message.format(f"{'picture' if len(keys) == 1 else 'pictures'} {named}"))
