"""Several captions of one picture become one: the split model writes a phrase at a time.

    merge_captions(["sitting figure", "sitting figure, adult man"]) == "sitting figure, adult man"
"""

from __future__ import annotations

import re


def merge_captions(candidates: list[str]) -> str:
    """Join the phrases of all candidates with ', ', each once, in order of appearance.

    A phrase is what stands between commas. It is dropped when its words (lower case, without
    punctuation) equal an earlier phrase's, or stand in a row inside a longer phrase's.
    """
    phrases = [phrase.strip() for text in candidates for phrase in text.split(",")]
    words = [_words(phrase) for phrase in phrases]
    kept = [phrase for i, phrase in enumerate(phrases) if words[i] and not any(
        _inside(words[i], other) and (len(other) > len(words[i]) or j < i)
        for j, other in enumerate(words) if j != i)]
    return ", ".join(kept)


def _words(phrase: str) -> list[str]:
    return re.findall(r"\w+", phrase.lower())


def _inside(short: list[str], long: list[str]) -> bool:
    return any(long[i:i + len(short)] == short for i in range(len(long) - len(short) + 1))
