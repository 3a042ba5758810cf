"""What Java computes for the metrics, with time limits, and remembered while a command runs.

    with Engine() as engine: engine.tokenize(["A cat."]) == ["a cat"]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from tqdm import tqdm

from blip_art.errors import UserError
from blip_art.score import corenlp, java
from blip_art.score.coco import cleaned
from blip_art.score.parses import Parser, Propositions, by_cost, word_count
from blip_art.score.workers import Workers

# Silence that is never normal: many times what was measured on one slow core.
SHORT_LIMIT_S = 120.0
SECONDS_A_WORD = 0.1
PARSE_SECONDS_AT_100_WORDS = 600.0


class Engine:
    """A worker with Java, and what it has already said."""

    def __init__(self, *, java_home: str = "", cache: Optional[Path] = None, heap_mb: int = 0,
                 threads: int = 0, parser: Optional[Parser] = None, progress: bool = True,
                 environ: Mapping[str, str] = os.environ) -> None:
        self._cache = cache or corenlp.cache_folder(environ)
        self._setup = java.java_setup(java_home, heap_mb, threads, environ)
        self._progress = progress
        self._parser: Parser = parser or self._parse_in_java
        self._tokens: Dict[str, str] = {}
        self._parses: Dict[str, Propositions] = {}
        # The other metrics work without CoreNLP.
        jars = corenlp.jars_if_whole(self._cache)
        self._has_corenlp = bool(jars)
        self._workers = Workers(self._setup, java.class_paths(jars), environ)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self._workers.stop()

    @property
    def worker_pid(self) -> Optional[int]:
        return self._workers.pid

    @property
    def java_version(self) -> str:
        return self._setup.version

    def tokenize(self, texts: Sequence[str]) -> List[str]:
        """Penn Treebank tokens joined by spaces, as every metric reads them."""
        lines = {text: cleaned(text) for text in texts}
        new = [line for line in dict.fromkeys(lines.values()) if line not in self._tokens]
        self._tokens.update(zip(new, self._workers.map("tokenize", new, _linear_limit_s)))
        return [self._tokens[lines[text]] for text in texts]

    def meteor(self, captions: Sequence[str],
               references: Sequence[Sequence[str]]) -> Tuple[float, List[float]]:
        """METEOR of the whole and of each tokenized caption."""
        pairs = [[caption, list(texts)] for caption, texts in zip(captions, references)]
        statistics = self._map_shown("meteor", "METEOR", pairs)
        [(total, scores)] = self._workers.map(
            "meteor_evaluate", [statistics], lambda item: SHORT_LIMIT_S + 0.01 * len(item))
        return total, scores

    def propositions(self, texts: Sequence[str]) -> Dict[str, Propositions]:
        """What each tokenized text says; each distinct text is parsed once."""
        new = by_cost([text for text in dict.fromkeys(texts) if text not in self._parses])
        if new:
            self._parses.update(self._parser(new))
        return {text: self._parses[text] for text in texts}

    def spice(self, captions: Sequence[Propositions],
              references: Sequence[Sequence[Propositions]]) -> List[Dict[str, List[int]]]:
        """Counts of matching propositions by category, for each caption."""
        self.require_corenlp()
        return self._map_shown("spice", "SPICE", [
            [caption, list(texts)] for caption, texts in zip(captions, references)])

    def _parse_in_java(self, texts: Sequence[str]) -> Dict[str, Propositions]:
        """The parser SPICE was published with."""
        self.require_corenlp()
        # A bar that counts captions would stand still at the long ones, which come first.
        with self._bar(sum(map(_parse_cost, texts)), "parsing", bar_format=(
                "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}")) as bar:
            parses = self._workers.map("parse", texts, _parse_limit_s,
                                       lambda text: bar.update(_parse_cost(text)))
        return dict(zip(texts, parses))

    def require_corenlp(self) -> None:
        """Refuse to go on without SPICE's parser.

        Raises:
            UserError: its jars were not in the cache when this engine was made.
        """
        if not self._has_corenlp:
            corenlp.find_jars(self._cache)
            raise UserError("CoreNLP was fetched meanwhile; run the command again")

    def _map_shown(self, name: str, label: str, items: Sequence[Any]) -> List[Any]:
        with self._bar(len(items), label, unit="pictures") as bar:
            return self._workers.map(name, items, _linear_limit_s, lambda item: bar.update())

    def _bar(self, total: float, label: str, **options: Any) -> Any:
        return tqdm(total=total, desc=label, leave=False,
                    disable=None if self._progress else True, **options)


def _parse_cost(text: str) -> float:
    """Seconds on one core, roughly: the chart parser's time is the cube of the length."""
    return 0.02 + 30.0 * (word_count(text) / 100) ** 3


def _parse_limit_s(text: str) -> float:
    return SHORT_LIMIT_S + PARSE_SECONDS_AT_100_WORDS * (word_count(text) / 100) ** 3


def _linear_limit_s(item: Any) -> float:
    return SHORT_LIMIT_S + SECONDS_A_WORD * _words(item)


def _words(item: Any) -> int:
    return word_count(item) if isinstance(item, str) else sum(map(_words, item))
