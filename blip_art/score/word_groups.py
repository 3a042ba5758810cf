"""Groups of 1 to 4 words of captions and references as arrays: what BLEU and CIDEr are made of.

    counted = WordGroups(["a cat"], [["a cat", "the cat"]]); corpus_bleu(counted.bleu_counts())
"""

from __future__ import annotations

import itertools
from typing import Any, Dict, Iterator, NamedTuple, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

LARGEST = 4
BLEU_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
# pycocoevalcap's, against division by nought.
TINY, SMALL = 1e-15, 1e-9
# CIDEr-D's: how many words a caption may differ from a reference in length.
SIGMA = 6.0

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class Groups(NamedTuple):
    """The different groups of one size in each text, in order of text and group."""

    texts: Ints
    """Position of the text."""
    groups: Ints
    """Number of the group."""
    counts: Ints
    """How often the text has it."""

    def some(self, chosen: Any) -> Groups:
        return Groups(*(values[chosen] for values in self))


class WordGroups:
    """Word groups of each picture's caption and of its references."""

    def __init__(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self._pictures = len(captions)
        self._per_picture = np.array(list(map(len, references)))
        self._owners = np.repeat(np.arange(self._pictures), self._per_picture)
        lengths, numbers = _numbered([*captions, *itertools.chain.from_iterable(references)])
        self._words, self._reference_words = np.split(lengths, [self._pictures])
        self._sizes = [self._split(groups) for groups in _groups_by_size(lengths, numbers)]

    def bleu_counts(self) -> Ints:
        """(pictures, 10): words, words of the reference closest in length, groups of 1 to 4 words,
        those that a reference has as often."""
        possible = [np.maximum(0, self._words - size) for size in range(LARGEST)]
        matched = [self._matched(*groups) for groups in self._sizes]
        return np.stack([self._words, self._closest(), *possible, *matched], axis=1)

    def cider(self) -> Array:
        """CIDEr-D of each picture."""
        similarity = sum(self._similarity(*groups) for groups in self._sizes) / LARGEST
        # As published, the length that counts is that in groups of two.
        apart = (np.maximum(0, self._words - 1)[self._owners]
                 - np.maximum(0, self._reference_words - 1))
        similarity *= np.exp(-apart.astype(float) ** 2 / (2 * SIGMA ** 2))
        return 10.0 * np.bincount(self._owners, similarity, self._pictures) / self._per_picture

    def _split(self, groups: Groups) -> Tuple[Groups, Groups]:
        """Captions' and references', both counted from nought."""
        border = np.searchsorted(groups.texts, self._pictures)
        references = groups.some(slice(border, None))
        return (groups.some(slice(border)),
                references._replace(texts=references.texts - self._pictures))

    def _closest(self) -> Ints:
        starts = np.cumsum(self._per_picture) - self._per_picture
        # Of two that are as close the shorter.
        longest = int(self._reference_words.max()) + 1
        apart = np.abs(self._reference_words - self._words[self._owners])
        return np.minimum.reduceat(apart * longest + self._reference_words, starts) % longest

    def _matched(self, captions: Groups, references: Groups) -> Ints:
        kinds = _kinds(captions, references)
        keys = self._owners[references.texts] * kinds + references.groups
        order = np.lexsort((references.counts, keys))
        # A group counts as often as the one reference has it that has it most often.
        last = np.diff(keys[order], append=-1) != 0
        keys, most = keys[order][last], references.counts[order][last]
        allowed = _looked_up(captions.texts * kinds + captions.groups, keys, most)
        matches = np.minimum(captions.counts, allowed)
        return np.bincount(captions.texts, matches, self._pictures).astype(np.int64)

    def _similarity(self, captions: Groups, references: Groups) -> Array:
        """Cosine of each reference's weighted groups and its caption's, counts clipped."""
        kinds = _kinds(captions, references)
        owners = self._owners[references.texts]
        pictures_with = np.bincount(np.unique(owners * kinds + references.groups) % kinds,
                                    minlength=kinds)
        rarity = np.log(float(self._pictures)) - np.log(np.maximum(1.0, pictures_with))
        said = captions.counts * rarity[captions.groups]
        expected = references.counts * rarity[references.groups]
        both = np.minimum(expected, _looked_up(owners * kinds + references.groups,
                                               captions.texts * kinds + captions.groups, said))
        count = len(self._owners)
        norms = (_norms(captions.texts, said, self._pictures)[self._owners]
                 * _norms(references.texts, expected, count))
        products = np.bincount(references.texts, both * expected, count)
        return np.divide(products, norms, out=np.zeros(count), where=norms > 0)


def corpus_bleu(sums: Any) -> Array:
    """BLEU-1 to 4, (sets, 4), of added up `bleu_counts`, (sets, 10)."""
    with np.errstate(divide="ignore"):
        logs = np.log((sums[:, 6:] + TINY) / (sums[:, 2:6] + SMALL))
    precision = np.exp(np.cumsum(logs, axis=1) / np.arange(1, LARGEST + 1))
    return precision * brevity_penalty(sums)[:, None]


def brevity_penalty(sums: Any) -> Array:
    """What BLEU is multiplied by where the captions are shorter than the references."""
    return np.exp(np.minimum(0.0, 1.0 - 1.0 / length_ratio(sums)))


def length_ratio(sums: Any) -> Array:
    """Words of captions to words of the closest references."""
    return (sums[:, 0] + TINY) / (sums[:, 1] + SMALL)


def _numbered(texts: Sequence[str]) -> Tuple[Ints, Ints]:
    """Words of each text, and the number of every word, texts one after the other."""
    words = [text.split() for text in texts]
    known: Dict[str, int] = {}
    numbers = [known.setdefault(word, len(known)) for of_one in words for word in of_one]
    return np.array(list(map(len, words)), np.int64), np.array(numbers, np.int64)


def _groups_by_size(lengths: Ints, words: Ints) -> Iterator[Groups]:
    texts = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))
    starts, groups = np.arange(len(words)), words
    for size in range(1, LARGEST + 1):
        if size > 1:
            longer = left[starts] >= size
            starts = starts[longer]
            # A group is the one before it and a word more.
            pairs = groups[longer] * (words.max(initial=0) + 1) + words[starts + size - 1]
            groups = np.unique(pairs, return_inverse=True)[1]
        kinds = groups.max(initial=0) + 1
        keys, counts = np.unique(texts[starts] * kinds + groups, return_counts=True)
        yield Groups(keys // kinds, keys % kinds, counts)


def _kinds(captions: Groups, references: Groups) -> int:
    return int(max(captions.groups.max(initial=0), references.groups.max(initial=0))) + 1


def _looked_up(keys: Ints, known: Ints, values: Any) -> Any:
    """The values of keys among sorted known ones, 0 for others."""
    if not len(known):
        return np.zeros(len(keys))
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, values[at], 0)


def _norms(texts: Ints, weights: Array, count: int) -> Array:
    return np.sqrt(np.bincount(texts, weights ** 2, count))
