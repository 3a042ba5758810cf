"""Remembers on disk what Java said to whole questions: the same captions again start no Java.

    answers = Answers(Path("parses.sqlite")); answers.add("meteor", pairs, lines)

Beside the parses, which are worth sharing, in a file that may be removed at any time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, List, Optional, Sequence

from blip_art.score.parse_cache import ParseCache

# What we do to texts before and after Java: where these change, old answers count no more.
RULES = ("java_side.py", "java_meteor.py", "java_spice.py", "paraphrases.py")
LARGEST_BYTES = 256_000_000


class Answers:
    """A file of questions and answers; without it, or with a broken one, Java is asked."""

    def __init__(self, parses_file: Path, java_version: str = "") -> None:
        self._java_version = java_version
        self._path = parses_file.with_name(f"{parses_file.stem}_answers.sqlite")
        self._file: Optional[ParseCache] = None

    def find(self, name: str, items: Sequence[Any]) -> Optional[List[Any]]:
        """The values of the items, if exactly these were asked for before."""
        question = _question(name, items)
        found: Any = self._opened().find([question]).get(question)
        return found if isinstance(found, list) and len(found) == len(items) else None

    def add(self, name: str, items: Sequence[Any], values: List[Any]) -> None:
        """Remember these, unless the file is large: then it is for people to remove."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size < LARGEST_BYTES:
                self._opened().add({_question(name, items): values})

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _opened(self) -> ParseCache:
        if self._file is None:
            self._file = ParseCache(
                self._path, f"pycocoevalcap {version('pycocoevalcap')}, Java {self._java_version}, "
                f"rules {rules(Path(__file__).parent)}", optional=True)
        return self._file


@functools.lru_cache(maxsize=1)
def rules(folder: Path) -> str:
    """A hash of the files that decide about answers."""
    return hashlib.blake2b(b"".join((folder / name).read_bytes() for name in RULES),
                           digest_size=16).hexdigest()


def _question(name: str, items: Sequence[Any]) -> str:
    return json.dumps([name, items])
