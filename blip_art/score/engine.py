"""What Java computes for the metrics, with time limits, and remembered while a command runs.

    with Engine() as engine: engine.tokenize(["A cat."]) == ["a cat"]
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from tqdm import tqdm

from blip_art.errors import UserError
from blip_art.files import PathLike
from blip_art.own_folder import own_folder
from blip_art.score import corenlp, java, paraphrases
from blip_art.score.answers import Answers
from blip_art.score.claims import Claims
from blip_art.score.coco import cleaned
from blip_art.score.parse_cache import FILE_NAME, ParseCache
from blip_art.score.parses import (
    OnParsed,
    Parser,
    Propositions,
    by_cost,
    parse_cost,
    word_count,
)
from blip_art.score.workers import MetricFailed, Workers, shorten

# The longest that work may take: many times what was measured on one slow core.
SECONDS_A_WORD = 0.1
PARSE_LIMIT_A_COST = 100.0
# METEOR's aligner slows with the square of the pairs of equal words: 400 times "the cat" against
# itself takes 20 s, and what has ten times the pairs would take an hour.
SECONDS_A_MATCH_SQUARED = 2e-9
MOST_MATCHES, FEW_MATCHES = 2_000_000, 10_000
# Calls in which a text may fail, each time in two workers, and texts that may fail in one call.
TRIES = 2
LimitOf = Callable[[Any], float]
# Our own code decides parses too (chart, java_trees, java_parser). Raise this when a text's parse
# can come out otherwise: what is on users' disks is then parsed again. 1 is not part of the name.
PARSER_RULES = 1
JAVA_PARSER = f"corenlp-{corenlp.VERSION} englishPCFG, spice-1.0" + (
    f", rules {PARSER_RULES}" if PARSER_RULES > 1 else "")


class Engine:
    """A worker with Java, and what it has already said."""

    def __init__(self, *, java_home: str = "", cache: Optional[Path] = None, heap_mb: int = 0,
                 threads: int = 0, parser: Optional[Parser] = None,
                 parses: Optional[PathLike] = None, progress: bool = True,
                 environ: Mapping[str, str] = os.environ) -> None:
        """Start nothing yet.

        Args:
            java_home: the Java runtime to use; default: see `java.java_setup`, as for the next.
            cache: the folder with CoreNLP; default: see `corenlp.cache_folder`.
            parser: what turns texts into propositions; default: CoreNLP's, as SPICE was published.
            parses: the file that remembers them; default: $BLIP_ART_PARSES, else one in the cache.
            progress: whether to draw bars when stderr is a terminal.
        """
        self._cache = cache or corenlp.cache_folder(environ)
        self._progress = progress
        self._parser: Parser = parser or JavaParser(self)
        self.parses_file = Path(
            parses or environ.get("BLIP_ART_PARSES") or self._cache / FILE_NAME).expanduser()
        """Where parses are remembered."""
        # A job's cache is read-only; it remembers parses where it can write.
        home = Path(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        compiled = (_take_own(self._cache / "compiled")
                    or _take_own(self.parses_file.parent / "compiled")
                    or _take_own(home / "blip_art_compiled"))
        self._setup = replace(java.java_setup(java_home, heap_mb, threads, environ),
                              compiled=compiled)
        self._stored: Optional[ParseCache] = None
        self._answers = Answers(self.parses_file, self._setup.version)
        self._tokens: Dict[str, str] = {}
        self._parses: Dict[str, Propositions] = {}
        # A follower would try a hopeless text again in every epoch.
        self._failures: Counter[str] = Counter()
        self._spice_follows = False
        self.parsed = 0
        """Texts that no cache knew and the parser did."""
        # The other metrics work without CoreNLP.
        jars = corenlp.jars_if_whole(self._cache)
        self._has_corenlp = bool(jars)
        self._class_paths = java.class_paths(jars, self._cache / paraphrases.FILE_NAME)
        self._workers = Workers(self._setup, self._class_paths, environ)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and close the files; who asks again starts and opens them again."""
        self._workers.stop()
        self._answers.close()
        if self._stored:
            self._stored.close()
        self._stored = None

    @property
    def worker_pid(self) -> Optional[int]:
        return self._workers.pid

    @property
    def java_version(self) -> str:
        return self._setup.version

    def tokenize(self, texts: Sequence[str], soon: Sequence[str] = ()) -> List[str]:
        """Penn Treebank tokens joined by spaces, as every metric reads them.

        Args:
            soon: metrics that will follow: what Java needs for them is loaded meanwhile.
        """
        lines = {text: cleaned(text) for text in texts}
        new = [line for line in dict.fromkeys(lines.values()) if line not in self._tokens]
        soon = [name for name in soon if name in ("meteor", "spice")]
        self._spice_follows = "spice" in soon
        self._tokens.update(zip(new, self._ask("tokenize", new, soon=soon)))
        return [self._tokens[lines[text]] for text in texts]

    def meteor(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> List[str]:
        """METEOR's statistics of each tokenized caption, as it writes them down."""
        for caption, texts in zip(captions, references):
            if max(_matches(caption, text) for text in texts) > MOST_MATCHES:
                raise MetricFailed("its aligner does not end where two texts repeat the same "
                                   f"words so often, at {shorten(caption)}")
        paraphrases.indexed(paraphrases.table_of(self._class_paths["meteor"]), self._cache)
        new = self._spice_follows and self.unparsed([*captions, *itertools.chain(*references)])
        return self._ask_shown("meteor", "METEOR", [
            [caption, list(texts)] for caption, texts in zip(captions, references)],
            _meteor_limit_s, soon=["parse"] if new else [])

    def propositions(self, texts: Sequence[str]) -> Dict[str, Propositions]:
        """What each tokenized text says; each distinct text is parsed once, ever.

        Raises:
            MetricFailed: a text could not be parsed; all others are remembered.
        """
        new = self.unparsed(texts)
        problems = self._parse([text for text in new if self._failures[text] < TRIES])
        if problems:
            raise problems[0]
        hopeless = [text for text in new if text not in self._parses]
        if hopeless:
            raise MetricFailed(f"it failed {TRIES} times before, at {shorten(hopeless[0])}",
                               hopeless)
        return {text: self._parses[text] for text in texts}

    def _parse(self, texts: Sequence[str]) -> List[MetricFailed]:
        """Parse block by block, beside other scorers that may be at the same texts.

        Returns:
            Why some could not be parsed.
        """
        todo = list(texts)
        problems: List[MetricFailed] = []
        total = sum(map(parse_cost, todo))
        path = self._stored_parses().shared_path if todo else None
        # A bar that counts captions would stand still at the long ones, which come first.
        with Claims(path, self._parser.version, self._setup.threads) as claims, self._bar(
                total, "parsing", bar_format=(
                    "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}")) as bar:
            def done(parses: Dict[str, Propositions]) -> None:
                bar.update(sum(map(parse_cost, parses)))
                self._remember(parses)

            while todo and len(problems) < TRIES:
                block = claims.take(todo)
                if not block:
                    claims.wait_for_others(len(todo))
                # Others may have parsed it before they gave it back.
                new = self.unparsed(block)
                try:
                    if new:
                        self._parser(new, done)
                except MetricFailed as error:
                    problems.append(error)
                    self._failures.update(error.items)
                    todo = [text for text in todo if text not in error.items]
                    if not set(new) & set(error.items):
                        break
                claims.release()
                todo = self.unparsed(todo)
                bar.update(total - sum(map(parse_cost, todo)) - bar.n)
        return problems

    def unparsed(self, texts: Sequence[str]) -> List[str]:
        """Those nobody has parsed, each once, the dearest first."""
        new = [text for text in dict.fromkeys(texts) if text not in self._parses]
        if new:
            self._parses.update(self._stored_parses().find(new))
        return by_cost(text for text in new if text not in self._parses)

    def unkept(self) -> int:
        """How many parses are in no file, after one more try."""
        return self._stored_parses().flush()

    def _remember(self, parses: Dict[str, Propositions]) -> None:
        self.parsed += len(parses)
        self._parses.update(parses)
        self._stored_parses().add(parses)

    def _stored_parses(self) -> ParseCache:
        if self._stored is None:
            self._stored = ParseCache(self.parses_file, self._parser.version)
        return self._stored

    def spice(self, captions: Sequence[Propositions],
              references: Sequence[Sequence[Propositions]]) -> List[Dict[str, List[int]]]:
        """Counts of matching propositions by category, for each caption."""
        self.require_corenlp()
        return self._ask_shown("spice", "SPICE", [
            [caption, list(texts)] for caption, texts in zip(captions, references)])

    def parse_in_java(self, texts: Sequence[str], on_parsed: OnParsed) -> None:
        """The parser SPICE was published with."""
        self.require_corenlp()
        self._workers.map("parse", texts, _parse_limit_s, lambda values: on_parsed(dict(values)))

    def require_corenlp(self) -> None:
        """Refuse to go on without SPICE's parser.

        Raises:
            UserError: its jars were not in the cache when this engine was made.
        """
        if not self._has_corenlp:
            corenlp.find_jars(self._cache)
            raise UserError("CoreNLP was fetched meanwhile; run the command again")

    def _ask_shown(self, name: str, label: str, items: Sequence[Any],
                   limit_s: Optional[LimitOf] = None, soon: Sequence[str] = ()) -> List[Any]:
        with self._bar(len(items), label, unit="pictures") as bar:
            return self._ask(name, items, limit_s, soon=soon,
                             on_values=lambda values: bar.update(len(values)))

    def _ask(self, name: str, items: Sequence[Any], limit_s: Optional[LimitOf] = None,
             **options: Any) -> List[Any]:
        """A worker's values; what exactly these items gave once is known without one."""
        values = self._answers.find(name, items) if items else []
        if values is None:
            values = self._workers.map(name, items, limit_s or _linear_limit_s, **options)
            self._answers.add(name, items, values)
        return values

    def _bar(self, total: float, label: str, **options: Any) -> Any:
        return tqdm(total=total, desc=label, leave=False,
                    disable=None if self._progress else True, **options)


class JavaParser:
    """The parser behind the seam that stands in this engine's worker."""

    version = JAVA_PARSER

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, texts: Sequence[str], on_parsed: OnParsed) -> None:
        self._engine.parse_in_java(texts, on_parsed)


def _take_own(folder: Path) -> str:
    """The folder, made if it was not there; '' where that is not possible.

    What lies there is run, so it must be this user's: caches may be shared with others.
    """
    return str(folder) if own_folder(folder) and os.access(folder, os.W_OK) else ""


def _parse_limit_s(text: str) -> float:
    return PARSE_LIMIT_A_COST * parse_cost(text)


def _linear_limit_s(item: Any) -> float:
    return SECONDS_A_WORD * _words(item)


def _meteor_limit_s(item: Any) -> float:
    caption, references = item
    return _linear_limit_s(item) + SECONDS_A_MATCH_SQUARED * sum(
        _matches(caption, text) ** 2 for text in references)


def _matches(first: str, second: str) -> int:
    """Pairs of equal words; 0 where there cannot be many."""
    if word_count(first) * word_count(second) < FEW_MATCHES:
        return 0
    times = Counter(second.split())
    return sum(times[word] for word in first.split())


def _words(item: Any) -> int:
    return word_count(item) if isinstance(item, str) else sum(map(_words, item))
