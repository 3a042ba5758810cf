"""Notations to captions in two styles, and captions to what the model is trained on.

    Captioner(Iconclass(), Style("clean")).of(["31A235", "61B:31D14"])  ->  Captions(joined, split)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, NamedTuple, Set

from blip_art.data.iconclass import NOTES, PLACEHOLDER, RULES, Found, Iconclass, split_chain
from blip_art.errors import UserError

STYLES = ("seed", "clean")

# 'sitting figure - AA - female human figure': what a doubled letter adds to a text.
_DOUBLED = re.compile(r" - ([A-Z])\1 - ")
_BRACKET = re.compile(r"\([^()]*\)\s?")
# The original's cut takes the whole caption from its first full stop, but only if a comma comes
# later: 'lute, e.g.: theorbo' is whole at the end of a caption and 'lute, e.' before others.
_CUT = re.compile(r"\..*,.*")


@dataclass(frozen=True)
class Style:
    """How texts become captions."""

    name: str = "clean"
    """'clean', or 'seed': as the original project's annotations, faults included."""
    keys: bool = True
    """Add the texts of keys: 'postures of the head (front view)' (clean only)."""
    parents: int = 0
    """Add the texts of this many broader notations after each text (clean only)."""

    def __post_init__(self) -> None:
        if self.name not in STYLES:
            raise UserError(f"no caption style '{self.name}'; choose one of {', '.join(STYLES)}")
        if self.parents < 0:
            raise UserError(f"parents must be 0 or more, not {self.parents}")


class Captions(NamedTuple):
    """One picture's captions: all notations in one, and one a notation."""

    joined: str
    split: List[str]


class _Seen(NamedTuple):
    """A notation that was looked up: the same few come again in every other picture."""

    phrases: List[str]
    caption: str
    rule: str
    notes: Set[str]


class Captioner:
    """Turns the notations of a picture into captions and counts what each rule did."""

    def __init__(self, iconclass: Iconclass, style: Style) -> None:
        self.iconclass, self.style = iconclass, style
        self.rules: Dict[str, int] = dict.fromkeys(RULES, 0)
        self.notes: Dict[str, int] = dict.fromkeys(NOTES, 0)
        self.phrases: Dict[str, List[str]] = {}
        self._seen: Dict[str, _Seen] = {}

    def of(self, notations: Iterable[str]) -> Captions:
        """The captions of a picture; both are empty where no notation has a text."""
        seen = [self._counted(notation) for notation in notations]
        joined = self._join(phrase for notation in seen for phrase in notation.phrases)
        return Captions(joined, unique(notation.caption for notation in seen if notation.caption))

    def rule_of(self, notation: str) -> str:
        """The rule that found a notation; of a chain, that of its worst link."""
        return self._look_up(notation).rule

    def unknown(self) -> List[str]:
        """The notations without any text."""
        return sorted(notation for notation, found in self.phrases.items() if not found)

    def _join(self, phrases: Iterable[str]) -> str:
        return join_seed(phrases) if self.style.name == "seed" else join_clean(phrases)

    def _counted(self, notation: str) -> _Seen:
        seen = self._look_up(notation)
        self.rules[seen.rule] += 1
        for note in seen.notes:
            self.notes[note] += 1
        return seen

    def _look_up(self, notation: str) -> _Seen:
        if notation not in self._seen:
            # Half a surrogate pair, which JSON can hold and no file can.
            text = notation.encode("utf-8", "replace").decode()
            links = self.iconclass.find_chain(text)
            worst = max((link.rule for link in links), key=list(RULES).index, default="unknown")
            notes = {note for link in links for note in link.notes}
            phrases = self.phrases[text] = self._phrases(text, links)
            self._seen[notation] = _Seen(phrases, self._join(phrases), worst,
                                         notes | ({"colon"} if len(links) > 1 else set()))
        return self._seen[notation]

    def _phrases(self, notation: str, links: List[Found]) -> List[str]:
        """A phrase a link of the chain, then those of broader notations."""
        if self.style.name == "seed":
            # Chains (61B:31D14) left only their first link in the original's captions, and two
            # keys (43C1111(+5)(+6)) neither.
            several = any(part.count("(+") > 1 for part in split_chain(notation)[:1])
            first = [link._replace(keys=()) if several else link for link in links[:1]]
            return [text for text in map(seed_text, first) if text]
        phrases = [clean_text(link, self.style.keys) for link in links if link.text]
        wider = [clean_text(Found(text, (), ""), False)
                 for part in split_chain(notation)[:1] if phrases and self.style.parents
                 for text in self.iconclass.parents(part, self.style.parents)]
        return unique([*phrases, *wider])


def seed_text(found: Found) -> str:
    """The original's text: brackets with the space behind them, keys and 'etc.' are gone."""
    text = (found.package_text or found.text) + "".join(f" (+ {key})" for key in found.keys)
    before = None
    while text != before:
        before, text = text, _BRACKET.sub("", text)
    return _DOUBLED.sub(", ", text).replace("etc.", "")


def join_seed(texts: Iterable[str]) -> str:
    """Pieces between commas, each once, cut at the first full stop, ended with one."""
    pieces = [piece for text in texts for piece in text.split(", ") if piece.strip()]
    joined = ", ".join(dict.fromkeys(pieces))
    return _CUT.sub("", joined) + "." if joined else ""


def clean_text(found: Found, keys: bool) -> str:
    """The whole text with single spaces; no '(with NAME)' without a name."""
    text = PLACEHOLDER.sub("", found.text)
    if keys:
        text += "".join(f" ({key})" for key in found.keys)
    return " ".join(_DOUBLED.sub(", ", text).split())


def join_clean(texts: Iterable[str]) -> str:
    """Texts joined with ', ', each once a picture."""
    return ", ".join(unique(text for text in texts if text))


def unique(texts: Iterable[str]) -> List[str]:
    """Each text once, whatever its case, in order."""
    first: Dict[str, str] = {}
    for text in texts:
        first.setdefault(text.lower(), text)
    return list(first.values())


def pre_caption(caption: str, max_words: int) -> str:
    """A caption as BLIP was trained on: lower case, some punctuation gone, cut to `max_words`."""
    text = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    # Only runs of white space become a space: a lone tab or line break stays, as it did then.
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
