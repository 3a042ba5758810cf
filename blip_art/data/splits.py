"""Which picture is for training, validation or test: the original's way, by chance, or by book.

    split_pictures("seed", {"IIHIM_1956438510.jpg": "sitting figure."})  ->  Split(train, val, test)
"""

from __future__ import annotations

import collections
import hashlib
import random
import re
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Tuple

from blip_art.errors import UserError

SPLITS = ("seed", "random", "grouped")
SEED_COUNTS = (69_224, 8_653, 8_653)
HASH_BYTES = 5
SEED_ORDER = Path(__file__).with_name("seed_split.bin")

# A book is a collection's volume with its plate or folio behind: uiuc_832w91o_pic012,
# bsbink_B_965_fac019, bsb00029770_23, mmw_10b23_332v_min. A volume has a digit; folger_ill_fac1
# has none and, like IIHIM_1 or dpd_1, is a flat number of its collection.
_BOOKS = (re.compile(r"(.*\d.*?)_(?:pic|fac)\d"),
          re.compile(r"((?:v2_)?bsb\d+)_\d+"),
          re.compile(r"(.*\d.*?)_\d+[rv](?:_min)?$"))


class Split(NamedTuple):
    """Pictures of each part with their image_id: the position, from 1, over all three."""

    train: List[Tuple[str, int]]
    val: List[Tuple[str, int]]
    test: List[Tuple[str, int]]


def name_hash(name: str) -> bytes:
    """What stands for a file name in the shipped list."""
    return hashlib.blake2b(name.encode(), digest_size=HASH_BYTES).digest()


def seed_positions() -> Dict[bytes, int]:
    """Hash of each of the original's 86,530 names to its position, from 1."""
    data = SEED_ORDER.read_bytes()
    return {data[start:start + HASH_BYTES]: start // HASH_BYTES + 1
            for start in range(0, len(data), HASH_BYTES)}


def has_seed_names(names: Iterable[str]) -> bool:
    """Whether every picture of the original split is among `names`."""
    return len(seed_positions().keys() - {name_hash(name) for name in names}) == 0


def split_pictures(kind: str, captions: Mapping[str, str], seed: int = 42) -> Split:
    """Divide pictures (name to joined caption); pictures without a caption must be left out.

    Raises:
        UserError: an unknown kind, or `seed` for pictures that are not the original's.
    """
    if kind not in SPLITTERS:
        raise UserError(f"no split '{kind}'; choose one of {', '.join(SPLITS)}")
    if not captions:
        raise UserError("no picture has a caption: nothing to split")
    return SPLITTERS[kind](captions, seed)


def _by_seed(captions: Mapping[str, str], seed: int) -> Split:
    """The original's order; a picture that lost its caption leaves a hole, ids do not move."""
    positions = seed_positions()
    placed = sorted((positions[key], name) for name in captions
                    for key in [name_hash(name)] if key in positions)
    if not placed:
        raise UserError("none of these pictures is in the original split; use --split random")
    ends = (SEED_COUNTS[0], sum(SEED_COUNTS[:2]))
    parts: Tuple[List[Tuple[str, int]], ...] = ([], [], [])
    for position, name in placed:
        parts[sum(position > end for end in ends)].append((name, position))
    return Split(*parts)


def _by_chance(captions: Mapping[str, str], seed: int) -> Split:
    # Each name has its own place, so that one picture more or less moves hardly any other.
    names = sorted(captions, key=lambda name: hashlib.blake2b(f"{seed} {name}".encode()).digest())
    tenth = len(names) // 10
    return _numbered(names[:len(names) - 2 * tenth],
                     names[len(names) - 2 * tenth:len(names) - tenth],
                     names[len(names) - tenth:])


def _by_group(captions: Mapping[str, str], seed: int) -> Split:
    """Whole groups go where most room is left, large groups first."""
    groups = groups_of(captions)
    random.Random(seed).shuffle(groups)
    groups.sort(key=len, reverse=True)
    tenth = len(captions) / 10
    room = [8 * tenth, tenth, tenth]
    parts: Tuple[List[str], ...] = ([], [], [])
    for group in groups:
        roomiest = room.index(max(room))
        parts[roomiest].extend(group)
        room[roomiest] -= len(group)
    # Large groups came first; without this the first batches of a part would be one book.
    for part in parts:
        random.Random(seed).shuffle(part)
    return _numbered(*parts)


def _numbered(train: List[str], val: List[str], test: List[str]) -> Split:
    numbers = iter(range(1, len(train) + len(val) + len(test) + 1))
    parts = [[(name, next(numbers)) for name in part] for part in (train, val, test)]
    return Split(*parts)


def book_of(name: str) -> str:
    """The volume a picture is from, or '' where its name does not tell."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    matches = (book.match(stem) for book in _BOOKS)
    return next((match[1] for match in matches if match), "")


def groups_of(captions: Mapping[str, str]) -> List[List[str]]:
    """Pictures tied by a book or a caption, also through others (A-B by book, B-C by caption)."""
    leader: Dict[str, str] = {}

    def root(node: str) -> str:
        leader.setdefault(node, node)
        while leader[node] != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for name, caption in captions.items():
        book = book_of(name)
        leader[root(f"caption {caption.lower()}")] = root(f"picture {name}")
        if book:
            leader[root(f"book {book}")] = root(f"picture {name}")
    groups: Dict[str, List[str]] = collections.defaultdict(list)
    for name in sorted(captions):
        groups[root(f"picture {name}")].append(name)
    return list(groups.values())


SPLITTERS: Dict[str, Callable[[Mapping[str, str], int], Split]] = {
    "seed": _by_seed, "random": _by_chance, "grouped": _by_group}
