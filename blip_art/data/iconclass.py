"""Iconclass notations to texts, offline, with a ladder for those the vocabulary does not have.

    Iconclass().find("31A24(+1)")  ->  Found("postures of the head", ("front view",), "exact")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from blip_art.errors import UserError

LANGUAGES = ("en", "de", "fr", "it", "pt", "jp")

# How a notation was found, from best to worst. Every notation counts under exactly one of them.
RULES = {
    "exact": "the vocabulary has it",
    "stripped": "after removing spaces around it and between its parts",
    "key_dropped": "after dropping its last keys: 25F23(LION)(+999) -> 25F23(LION)",
    "name_dropped": "after dropping its name and what follows: 31A235(ANNA) -> 31A235",
    "undoubled": "after undoing a doubled letter: 31AA71 -> 31A71",
    "parent": "the nearest broader notation stands in",
    "unknown": "no text at all",
}

# What else happened on the way; a notation may count under several.
NOTES = {
    "two_keys": "more than one key, each looked up: 43C1111(+5)(+6)",
    "named": "the name was put into the text: 61D(GERMANY)",
    "wikidata": "the name is a Wikidata number, whose label would need the network: left out",
    "colon": "a chain of notations: 61B:31D14",
    "english": "no text in the language asked for: the English one stands in",
}

PLACEHOLDER = re.compile(r" ?\(with [A-Z]{2}[^()]*\)")
# A key ends at its bracket, at the next key, or, like the package reads it, at the end: 31A24(+1
_KEY = re.compile(r"\(\+([^()]*)(?:\)|(?=\(\+)|$)")
# The brackets that the package puts a name into, all of them.
_BRACKETS = re.compile(r"\([\w ]+?\)")
_NAME_OR_SPACES = re.compile(r"\([^()]*\)|\s+")
_SHORTEST_PARENT = 2
# No notation of the vocabulary is longer: a text of a megabyte has no million broader notations.
_LONGEST_PARENT = 200


class Found(NamedTuple):
    """The text of one notation (of one link, if it is a chain)."""

    text: str
    keys: Tuple[str, ...]
    rule: str
    notes: Tuple[str, ...] = ()
    package_text: str = ""
    """The text as the package words it where a name is put in, which captions of the original
    have; '' where it is `text`."""


class Iconclass:
    """The vocabulary of the installed `iconclass` package, in one language."""

    def __init__(self, language: str = "en") -> None:
        try:
            import iconclass
        except ImportError as error:
            raise UserError("the Iconclass vocabulary is not installed; "
                            "run: pip install iconclass") from error
        if language not in LANGUAGES:
            raise UserError(f"no Iconclass texts in language '{language}'; "
                            f"choose one of {', '.join(LANGUAGES)}")
        if not Path(iconclass.__file__).with_name("data.zip").is_file():
            # Its own answer would be to fetch the vocabulary over the network.
            raise UserError("the installed iconclass package lacks its data.zip; "
                            "run: pip install --force-reinstall iconclass")
        self.version: str = iconclass.__version__
        self._source = iconclass.init().source
        # IndexError and KeyError are how obj() answers keys of notations that take none.
        self._misses = (iconclass.NotationNotFound, KeyError, IndexError)
        for name in {"en", language}:
            self._source.load(name)
        self._texts: Dict[str, str] = self._source.texts[language]
        self._english: Dict[str, str] = self._source.texts["en"]
        self._found: Dict[str, Found] = {}
        self._objects: Dict[str, Optional[Dict[str, Any]]] = {}

    def find(self, notation: str) -> Found:
        """The text of a single notation, by the first rung of the ladder that has one."""
        if notation not in self._found:
            self._found[notation] = self._climb(notation)
        return self._found[notation]

    def _climb(self, notation: str) -> Found:
        for rule, candidate in _ladder(notation):
            found = self._exact(candidate)
            if found:
                return found._replace(rule=rule)
        return Found("", (), "unknown")

    def find_chain(self, notation: str) -> List[Found]:
        """The texts of the links of `A:B`; a single notation is a chain of one link."""
        return [self.find(part) for part in split_chain(notation)]

    def parents(self, notation: str, count: int) -> List[str]:
        """Texts of up to `count` broader notations, the nearest first."""
        base = split_keys(notation.strip())[0]
        obj = self._lookup(base) or {}
        # '25F23(...)', between 25F23 and 25F23(LION), is a template and no broader notation.
        path = [p for p in obj.get("p", []) if p != obj.get("b") and "(...)" not in p]
        texts = [self._text(p) for p in reversed(path)]
        return [text for text in texts if text][:count]

    def _exact(self, notation: str) -> Optional[Found]:
        base, keys = split_keys(notation)
        obj = self._lookup(base)
        # The package's own text_() is not used: it asks Wikidata over the network for `wd:`
        # names, loses both of two keys, and puts a name into every bracket of the text.
        text = self._text(obj["b"]) if obj else ""
        # An empty key, '46A12(+)', is answered with an object that names no key.
        key_names = [(self._lookup(f"{base}(+{key})") or {}).get("k", "") for key in keys]
        if obj is None or not text or "" in key_names:
            return None
        key_texts = [self._text(name) for name in key_names]
        notes = ["two_keys"] if len(keys) > 1 else []
        if obj["b"] not in self._texts and obj["b"] in self._english:
            notes.append("english")
        package_text = ""
        if "bracketed_text" in obj:
            bracketed = obj["bracketed_text"]
            name = _inside(bracketed)
            is_number = name.startswith("wd:")
            notes.append("wikidata" if is_number else "named")
            package_text = _BRACKETS.sub(lambda _: bracketed, text)
            text = _put_name(text, "" if is_number else name)
        return Found(text, tuple(t for t in key_texts if t), "exact", tuple(notes), package_text)

    def _lookup(self, notation: str) -> Optional[Dict[str, Any]]:
        # obj() copies and lists all keys of a notation: most of the time goes there.
        if notation not in self._objects:
            try:
                obj = self._source.obj(notation)
            except self._misses:
                obj = {}
            self._objects[notation] = obj if "b" in obj else None
        return self._objects[notation]

    def _text(self, notation: str) -> str:
        return self._texts.get(notation) or self._english.get(notation, "")


def split_keys(notation: str) -> Tuple[str, List[str]]:
    """'43C1111(+5)(+6)' -> ('43C1111', ['5', '6'])."""
    return _KEY.sub("", notation), _KEY.findall(notation)


def split_chain(notation: str) -> List[str]:
    """'61B:31D14' -> ['61B', '31D14']; a colon inside brackets (a verse, a `wd:`) stays."""
    if ":" not in notation:
        return [notation] if notation.strip() else []
    parts, depth, start = [], 0, 0
    for position, character in enumerate(notation):
        depth += (character == "(") - (character == ")")
        if character == ":" and depth <= 0:
            parts.append(notation[start:position])
            start = position + 1
    parts.append(notation[start:])
    return [part for part in parts if part.strip()]


def _ladder(notation: str) -> Iterator[Tuple[str, str]]:
    """What to look for, one rung after the other: (rule, candidate)."""
    yield "exact", notation
    # Spaces inside a name belong to it: '98B(JULIUS CAESAR)'.
    stripped = _NAME_OR_SPACES.sub(lambda part: part[0] if part[0][0] == "(" else "", notation)
    if stripped != notation:
        yield "stripped", stripped
    base, keys = split_keys(stripped)
    for count in range(len(keys) - 1, -1, -1):
        yield "key_dropped", base + "".join(f"(+{key})" for key in keys[:count])
    nameless = base.partition("(")[0]
    if nameless != base:
        yield "name_dropped", nameless
    undoubled = re.sub(r"^(\d\d)([A-Z])\2", r"\1\2", base)
    if undoubled != base:
        yield "undoubled", undoubled
    for length in range(min(len(nameless) - 1, _LONGEST_PARENT), _SHORTEST_PARENT - 1, -1):
        yield "parent", nameless[:length]


def _inside(bracketed: str) -> str:
    """'(CLUB (WEAPON))' -> 'CLUB (WEAPON)'; brackets without their other half are dropped."""
    name = bracketed[1:-1].strip()
    return name if name.count("(") == name.count(")") else re.sub(r"[()]", "", name).strip()


def _put_name(text: str, name: str) -> str:
    """Replace the '(with NAME)' of a text by the name, or add the name where there is none."""
    filled = f" ({name})" if name else ""
    if PLACEHOLDER.search(text):
        return PLACEHOLDER.sub(lambda _: filled, text, count=1)
    return text + filled
