"""Captions of COCO, from the copy inside pycocoevalcap's wheel: nothing to download.

    coco_pairs(range(10))["42"] == (caption, [reference, ...])
"""

from __future__ import annotations

import functools
import json
import random
import zipfile
from pathlib import Path
from string import ascii_lowercase
from typing import Dict, Iterable, List, Tuple

from blip_art.files import write_text
from blip_art.score.java import package_folder

# The pictures whose tuple counts golden/make_spice.py stores, by position.
SPICE_PICTURES = range(1000, 13000, 1000)
# Those of golden/spice_many.json.gz.
MANY_PICTURES = range(0, 40504, 20)
MANY_ART_PAIRS, LONGEST_ART_PAIRS, CANDIDATE_WORDS = 1000, 3, 16
INSIDE = "coco/annotations/captions_val2014.json"


@functools.lru_cache(maxsize=1)
def coco_captions() -> Dict[int, List[str]]:
    """The captions of each val2014 picture in order of their ids; pictures in order of theirs."""
    with zipfile.ZipFile(package_folder() / "spice" / "spice-1.0.jar") as jar:
        annotations = json.loads(jar.read(INSIDE))["annotations"]
    captions: Dict[int, List[str]] = {}
    for row in sorted(annotations, key=lambda row: (row["image_id"], row["id"])):
        captions.setdefault(row["image_id"], []).append(row["caption"])
    return captions


def coco_pairs(positions: Iterable[int]) -> Dict[str, Tuple[str, List[str]]]:
    """A caption (the one with the lowest id) and references of the pictures at these positions."""
    captions = coco_captions()
    keys = list(captions)
    return {str(keys[n]): (captions[keys[n]][0], captions[keys[n]][1:]) for n in positions}


def write_vocabulary(folder: Path, words: str = "a lion tree and crown ship at sea sun") -> None:
    """A tokenizer folder that knows these words, the prompt's and letters, as BERT's does."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", "picture", "of",
              *words.split(), *ascii_lowercase[1:], *(f"##{letter}" for letter in ascii_lowercase)]
    write_text(folder / "vocab.txt", "".join(f"{token}\n" for token in tokens))


def art_pairs(path: Path, count: int = MANY_ART_PAIRS) -> Dict[str, Tuple[str, List[str]]]:
    """References of a random choice of pictures and the longest ones, each with a wrong caption.

    The caption is another picture's reference, cut to what a model may say; the same every time.

    Args:
        path: a list of {"image_id", "caption"}, such as the Iconclass references.
    """
    rows = {str(row["image_id"]): row["caption"] for row in json.loads(path.read_text())}
    choice = random.Random(0)
    keys = sorted(rows)
    longest = sorted(keys, key=lambda key: -len(rows[key].split()))[:LONGEST_ART_PAIRS]
    others = [key for key in choice.sample(keys, count) if key not in longest]
    chosen = [*longest, *others][:count]
    return {key: (" ".join(rows[choice.choice(keys)].split()[:CANDIDATE_WORDS]), [rows[key]])
            for key in chosen}
