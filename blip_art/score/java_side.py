"""Starts the JVM inside a worker process and reaches the tokenizer in it.

    java = start(options); list(Tokenizer(java).run(["A cat."])) == [(0, "a cat")]
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import jpype

# pycocoevalcap's list: what it drops after tokenizing.
PUNCTUATION = frozenset(
    "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())


JavaError = jpype.JException


class ItemError(NamedTuple):
    """What an item gets instead of a value when it failed and others need not."""

    why: str


Results = Iterator[Tuple[int, Any]]


class Java:
    """A running JVM with the parts' jars behind class loaders of their own."""

    def __init__(self, class_paths: Dict[str, List[str]]) -> None:
        self.class_paths = class_paths
        self._loaders = {part: _class_loader(class_paths[part]) for part in ("ptb", "spice")}

    def find(self, part: str, name: str) -> Any:
        """A class of "meteor" (the system's class path), "ptb" or "spice"."""
        return jpype.JClass(name, loader=self._loaders.get(part))


def start(libjvm: str, options: Sequence[str], class_paths: Dict[str, List[str]]) -> Java:
    """Start the JVM; possible once in the life of a process."""
    jpype.startJVM(libjvm, *options, classpath=class_paths["meteor"], convertStrings=False)
    return Java(class_paths)


def _class_loader(paths: Sequence[str]) -> Any:
    urls = [jpype.JClass("java.io.File")(path).toURI().toURL() for path in paths]
    loader = jpype.JClass("java.net.URLClassLoader")
    platform = jpype.JClass("java.lang.ClassLoader").getSystemClassLoader().getParent()
    return loader(jpype.JArray(jpype.JClass("java.net.URL"))(urls), platform)


def field_of(thing: Any, name: str) -> Any:
    """The value of a field that is not public."""
    return opened(thing.getClass().getDeclaredField(name)).get(thing)


def set_field(thing: Any, name: str, value: Any) -> None:
    """Set a field that is not public."""
    opened(thing.getClass().getDeclaredField(name)).set(thing, value)


def method_of(java_class: Any, name: str, *types: Any) -> Any:
    """A method that is not public, to be called as `method.invoke(thing, ...)`."""
    return opened(java_class.class_.getDeclaredMethod(name, *(kind.class_ for kind in types)))


def opened(member: Any) -> Any:
    """A field or method, whatever its access says."""
    member.setAccessible(True)
    return member


def java_error(error: Any) -> str:
    """A Java exception in one line; of a method called by reflection, what it threw."""
    reflected = jpype.JClass("java.lang.reflect.InvocationTargetException")
    thrown = error.getCause() if isinstance(error, reflected) else error
    return str(thrown.toString()).split("\n")[0]


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], threads: int,
               at_once: int = 1) -> Results:
    """(index, work(item)) as they are done, started in order; a Java error becomes an ItemError.

    One thread does one item after the other: what it dies at is the first that was not told.

    Args:
        at_once: items that a thread takes at a time; more where each is short.
    """
    def attempt(item: Any) -> Any:
        try:
            return work(item)
        except jpype.JException as error:
            return ItemError(java_error(error))

    def some(first: int) -> List[Tuple[int, Any]]:
        return [(first + n, attempt(item)) for n, item in enumerate(items[first:first + at_once])]

    if threads == 1:
        for index, item in enumerate(items):
            yield index, attempt(item)
        return
    # Only a few are in flight, so that a long list does not become a long list of futures.
    with ThreadPoolExecutor(threads) as pool:
        running = set()
        for first in range(0, len(items), at_once):
            running.add(pool.submit(some, first))
            if len(running) > 2 * threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        for future in running:
            yield from future.result()


class Tokenizer:
    """Penn Treebank tokens, lower case, without punctuation: what every metric reads.

    Text by text: pycocoevalcap sends a whole file, where a stray line break shifts all later
    captions, and where the dot of a last word such as "Lane S." stays or goes by how the next
    caption begins (5 of 211,307 COCO and Iconclass captions have other tokens for that reason).
    """

    def __init__(self, java: Java, threads: int = 1) -> None:
        self._tokenizer = java.find("ptb", "edu.stanford.nlp.process.PTBTokenizer")
        self._tokens = java.find("ptb", "edu.stanford.nlp.process.WordTokenFactory")()
        self._sentence = java.find("ptb", "edu.stanford.nlp.ling.Sentence")
        self._reader = jpype.JClass("java.io.StringReader")
        self._english = jpype.JClass("java.util.Locale").ENGLISH

    def run(self, texts: Sequence[str]) -> Results:
        return ((index, self._tokenize(text)) for index, text in enumerate(texts))

    def _tokenize(self, text: str) -> str:
        # Without a line break a last "he'll" is split otherwise than everywhere else.
        words = self._tokenizer(self._reader(text + "\n"), self._tokens, "").tokenize()
        line = str(self._sentence.listToString(words).toLowerCase(self._english))
        return " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION)


def service(java: Java, threads: int, charts_mb: int) -> Callable[[str], Any]:
    """Operations by name; each part of Java is loaded when it is first asked for, in any thread."""
    from blip_art.score.java_meteor import Meteor
    from blip_art.score.java_spice import SpiceScorer

    def parser(java: Java, threads: int) -> Any:
        # numba takes a moment to import, which not all ask for.
        from blip_art.score.java_parser import SpiceParser

        return SpiceParser(java, threads, charts_mb)

    kinds: Dict[str, Any] = {
        "tokenize": Tokenizer, "meteor": Meteor, "spice": SpiceScorer,
        "parse": parser}
    parts = {name: _Once(partial(kind, java, threads)) for name, kind in kinds.items()}
    return lambda name: parts[name]().run


class _Once:
    """Made for whoever asks first."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._lock, self._made = make, threading.Lock(), None

    def __call__(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made
