"""Reads references and results in COCO's formats and pairs them, or says what does not fit.

    pairs = paired(read_references("val.json"), read_captions("val_03.json"))
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence

from blip_art.errors import UserError
from blip_art.files import PathLike, read_json

LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class Pairs(NamedTuple):
    """Captions beside their references, by picture."""

    ids: List[str]
    captions: List[str]
    references: List[List[str]]


def read_references(path: PathLike) -> Dict[str, List[str]]:
    """Captions by picture from COCO ground truth or a plain list of {image_id, caption}.

    Raises:
        UserError: not JSON, another shape, or a picture without captions.
    """
    data = read_json(path)
    references: Dict[str, List[str]] = {}
    if isinstance(data, dict):
        if not isinstance(data.get("annotations"), list):
            raise UserError(f"{path} has no list 'annotations'; it must be COCO ground truth "
                            "or a list of {image_id, caption}")
        for number, picture in enumerate(data.get("images") or ()):
            references[_id(picture, "id", f"{path}: images[{number}]")] = []
        data = data["annotations"]
    for key, caption in _captions(data, path):
        references.setdefault(key, []).append(caption)
    _refuse([key for key, texts in references.items() if not texts],
            f"{path}: no reference caption for {{}}; add one or remove the picture")
    if not references:
        raise UserError(f"{path} holds no captions")
    return references


def read_captions(path: PathLike) -> Dict[str, str]:
    """One caption a picture from a COCO results file.

    Raises:
        UserError: not JSON, another shape, or a picture with two captions.
    """
    rows = list(_captions(read_json(path), path))
    times = Counter(key for key, _ in rows)
    _refuse([key for key, count in times.items() if count > 1],
            f"{path}: more than one caption for {{}}; keep one")
    return dict(rows)


def paired(references: Mapping[Any, Sequence[str]], captions: Mapping[Any, str],
           subset: bool = False) -> Pairs:
    """Put captions beside their references, in the references' order; ids match as text.

    Args:
        subset: score only the pictures that have a caption, as if the others did not exist.

    Raises:
        UserError: a picture has no caption, a caption no picture, a picture no reference.
    """
    texts = {str(key): list(value) for key, value in references.items()}
    given = {str(key): value for key, value in captions.items()}
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


def _captions(rows: Any, path: PathLike) -> Iterable[tuple[str, str]]:
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of {{image_id, caption}}, "
                        f"not {type(rows).__name__}")
    for number, row in enumerate(rows):
        where = f"{path}: entry {number}"
        key = _id(row, "image_id", where)
        if not isinstance(row.get("caption"), str):
            raise UserError(f"{where} (image_id {key}): 'caption' must be text, "
                            f"not {row.get('caption')!r}")
        yield key, row["caption"]


def _id(row: Any, name: str, where: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UserError(f"{where}: '{name}' must be text or a whole number, not {value!r}")
    if LONE_SURROGATES.search(str(value)):
        raise UserError(f"{where}: '{name}' holds half a character: {value!r}; write it again")
    return str(value)


def _refuse(keys: Sequence[str], message: str) -> None:
    if keys:
        named = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        raise UserError(message.format(f"{'picture' if len(keys) == 1 else 'pictures'} {named}"))
