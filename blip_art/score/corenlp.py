"""Stanford CoreNLP 3.6.0, which SPICE parses with: fetched once, checked, kept in one folder.

    python -m blip_art.score fetch
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Iterator, List, Mapping, Optional, Sequence

from blip_art.errors import UserError

VERSION = "3.6.0"
GROUP, ARTIFACT = "edu.stanford.nlp", "stanford-corenlp"
TIMEOUT_S = 60
FETCH = "python -m blip_art.score fetch"


@dataclass(frozen=True)
class Jar:
    """One file of a release, pinned: whoever serves it, these are the bytes."""

    classifier: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        suffix = f"-{self.classifier}" if self.classifier else ""
        return f"{ARTIFACT}-{VERSION}{suffix}.jar"

    @property
    def maven_path(self) -> str:
        return f"{GROUP.replace('.', '/')}/{ARTIFACT}/{VERSION}/{self.name}"


JARS = (
    Jar("", 7_270_741, "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742"),
    Jar("models", 378_116_526,
        "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd"),
)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where everything that is fetched or parsed once is kept.

    $BLIP_ART_CACHE; else `.cache/blip_art` in the checkout this package lies in, so that removing
    the checkout removes all of it; else the user's cache folder.
    """
    if environ.get("BLIP_ART_CACHE"):
        return Path(environ["BLIP_ART_CACHE"]).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "launch.py").exists() or (checkout / ".git").exists():
        return checkout / ".cache" / "blip_art"
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blip_art"


def jar_folder(cache: Path) -> Path:
    return cache / f"corenlp-{VERSION}"


def find_jars(cache: Path, jars: Sequence[Jar] = JARS) -> List[Path]:
    """The jars, present and of the right size; the hash was checked when they were fetched.

    Raises:
        UserError: a jar is absent or cut short.
    """
    found = []
    for jar in jars:
        path = jar_folder(cache) / jar.name
        if not path.is_file():
            raise UserError(f"SPICE needs {jar.name}, which is not in {path.parent}; "
                            f"run '{FETCH}' on a machine with network")
        if path.stat().st_size != jar.size:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, not {jar.size:,}; "
                            f"remove it and run '{FETCH}'")
        found.append(path)
    return found


def jars_if_whole(cache: Path, jars: Sequence[Jar] = JARS) -> List[Path]:
    """The jars, or none when one is absent or cut short."""
    try:
        return find_jars(cache, jars)
    except UserError:
        return []


def fetch(cache: Path, sources: Sequence[str] = (), jars: Sequence[Jar] = JARS) -> List[Path]:
    """Bring the jars into `cache` unless they are there; safe when several processes ask.

    Args:
        sources: folders, file:// or http(s):// addresses to try in turn, each laid out as a Maven
            repository or holding the two files; none is Maven Central.

    Raises:
        UserError: no source has the file, it is not the pinned one, or the folder is read-only.
    """
    folder = jar_folder(cache)
    if all(_whole(folder / jar.name, jar) for jar in jars):
        return [folder / jar.name for jar in jars]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock") as alone:
            for jar in jars:
                if not _whole(folder / jar.name, jar):
                    _fetch_jar(jar, _part(folder, jar, alone), list(sources) or _maven_central())
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; free space or set "
                        "BLIP_ART_CACHE to another folder") from error
    return [folder / jar.name for jar in jars]


def fill(cache: Path, sources: Sequence[str] = ()) -> List[Path]:
    """All that scoring reads in `cache`: the jars, and METEOR's index where METEOR is installed.

    Both while it can be written to; see `fetch` for sources and errors.
    """
    jars = fetch(cache, sources)
    if find_spec("numpy") and find_spec("pycocoevalcap"):
        from blip_art.score import java, paraphrases

        paraphrases.indexed(paraphrases.table_of(java.class_paths([])["meteor"]), cache)
    return jars


def sources_from(environ: Mapping[str, str] = os.environ) -> List[str]:
    """$BLIP_ART_CORENLP: places to fetch from instead of Maven Central, separated by spaces."""
    return environ.get("BLIP_ART_CORENLP", "").split()


def _whole(path: Path, jar: Jar) -> bool:
    """Whether `path` is the pinned file; a hash of 378 MB takes half a second."""
    return path.is_file() and path.stat().st_size == jar.size and _sha256(path) == jar.sha256


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Wait until this process alone holds the lock; False where the file system has none."""
    with open(path, "a") as lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is fetching into {path.parent}; waiting for it",
                      file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


def _part(folder: Path, jar: Jar, alone: bool) -> Path:
    """Where a jar is put together; without locks each process has a place of its own."""
    own = "" if alone else f".{os.uname().nodename}-{os.getpid()}"
    return folder / f".{jar.name}{own}.part"


def _maven_central() -> List[str]:
    try:
        from jgo.maven import MavenContext
    except ImportError as error:
        raise UserError("fetching from Maven Central needs 'pip install jgo'; or name a folder or "
                        "mirror in BLIP_ART_CORENLP") from error
    return list(MavenContext().remote_repos.values())


def _fetch_jar(jar: Jar, part: Path, sources: Sequence[str]) -> None:
    problems = []
    for source in sources:
        for place in (f"{source}/{jar.maven_path}", f"{source}/{jar.name}"):
            begun = part.exists()
            problem = _copy(place, part, jar)
            if problem and begun and not part.exists():
                # Another place may have begun it, with something else.
                problem = _copy(place, part, jar)
            if problem is None:
                os.replace(part, part.with_name(jar.name))
                return
            problems.append(f"{place}: {problem}")
    raise UserError(f"cannot fetch {jar.name} ({'; '.join(problems)}); check the network, or name "
                    "a folder or mirror that has it in BLIP_ART_CORENLP")


def _copy(place: str, part: Path, jar: Jar) -> Optional[str]:
    """Copy one file, going on where an earlier try stopped; returns what went wrong."""
    have = part.stat().st_size if part.exists() else 0
    if have >= jar.size:
        have = 0
    try:
        with _open(place, have) as (stream, start), open(part, "ab" if start else "wb") as file:
            _pump(stream, file, jar, start)
    except _SourceError as error:
        return str(error)
    if part.stat().st_size < jar.size:
        return "connection lost, run it again to go on"
    if _sha256(part) != jar.sha256:
        part.unlink()
        return f"not the pinned file (SHA-256 is not {jar.sha256[:12]}...)"
    return None


class _SourceError(Exception):
    """What is wrong with a place that was fetched from; the next one may have the file."""


@contextlib.contextmanager
def _source_named() -> Iterator[None]:
    """Errors of the source, told from those of the folder that is written to."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _SourceError(f"HTTP {error.code}") from error
    except urllib.error.URLError as error:
        raise _SourceError(str(error.reason)) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _SourceError("no such file") from error
    except (ConnectionError, TimeoutError, http.client.IncompleteRead) as error:
        raise _SourceError(f"connection lost ({error}), run it again to go on") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _SourceError(getattr(error, "strerror", None) or str(error)) from error


class _Source:
    """A stream whose errors say that they are the source's."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        with _source_named():
            return self._stream.read(size)


@contextlib.contextmanager
def _open(place: str, start: int) -> Iterator[tuple[_Source, int]]:
    """The bytes at `place` from `start`, or from 0 where the server cannot skip."""
    if "://" not in place:
        with _source_named():
            file = open(Path(place).expanduser(), "rb")  # noqa: SIM115 (closed below)
        with file:
            file.seek(start)
            yield _Source(file), start
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    with _source_named():
        request = urllib.request.Request(place, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    with response:
        yield _Source(response), start if response.status == 206 else 0


def _pump(stream: _Source, file: IO[bytes], jar: Jar, start: int) -> None:
    # A login node may have no tqdm; there the copy is silent but for this line.
    print(f"fetching {jar.name}, {jar.size / 1e6:.0f} MB", file=sys.stderr)
    try:
        from tqdm import tqdm
    except ImportError:
        shutil.copyfileobj(stream, file)
        return
    with tqdm(total=jar.size, initial=start, unit="B", unit_scale=True, disable=None) as bar:
        while block := stream.read(1 << 18):
            file.write(block)
            bar.update(len(block))
