"""What a score file says without its single pictures, kept small beside it: scores/.summaries.

    summaries = Summaries(run); summaries.of(run.scores("val", 3))["metrics"]; summaries.keep()

A score file of 8,653 pictures has megabytes, and 1,000 runs have 10,000 of them. A summary counts
only while its score file has the size and the time of change that it was made from.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from blip_art.errors import UserError
from blip_art.files import RunDir, open_regular, read_json, write_json
from blip_art.outputs import is_stream
from blip_art.score.coco import read_references
from blip_art.score.references import references_hashes

# The parts of a score file that grow with its pictures.
PER_PICTURE = ("per_image", "bleu_counts", "meteor_counts", "spice_counts")
HEAD_BYTES = 1 << 15
# How write_json ends a file, and nothing that was cut short does.
END = b"}\n"


def summary_first(record: Mapping[str, Any]) -> Dict[str, Any]:
    """The content of a score file with what is said of single pictures at its end."""
    return {**_without_pictures(record),
            **{key: record[key] for key in PER_PICTURE if key in record}}


def is_whole(scores: Any) -> bool:
    """Whether this is the content, or the summary, of a score file that need not be made again."""
    return isinstance(scores, dict) and all(
        isinstance(scores.get(key), dict) for key in ("metrics", "failed"))


class Summaries:
    """The summaries of a run's score files; what is not kept there is read from them."""

    def __init__(self, run: RunDir) -> None:
        self._file = run.score_summaries
        self._kept = _read_kept(self._file)
        self._changed = False

    def of(self, path: Path) -> Dict[str, Any]:
        """All that a score file says, without its single pictures.

        Raises:
            UserError: the file cannot be read, or holds no JSON object.
        """
        return self._kept_or_made(path, path.name, _read_summary)

    def references(self, path: Path) -> Dict[str, Any]:
        """A references file's `pictures`, and its hashes (see references.py).

        Raises:
            UserError: it cannot be read, or is no COCO ground truth.
        """
        return self._kept_or_made(path, f"references/{path.name}", _describe_references)

    def glance(self, path: Path) -> Dict[str, Any]:
        """At least the 'metrics' and 'failed' of a score file; an older one is not read whole.

        Raises:
            UserError: the file cannot be read, or holds no JSON object.
        """
        known = self._known(path.name, _stat(path))
        if known is not None:
            return known
        head, _ = read_head(path)
        return head if is_whole(head) else self.of(path)

    def keep(self) -> None:
        """Write what was read anew, unless this user cannot write there."""
        if self._changed and not is_stream(self._file):  # a pipe would wait for its reader
            # ValueError: a damaged score file may hold what no other reader would take, as NaN.
            with contextlib.suppress(UserError, ValueError):
                write_json(self._file, self._kept, durable=False)
            self._changed = False

    def _kept_or_made(self, path: Path, name: str, make: Callable[[Path], Dict[str, Any]]
                      ) -> Dict[str, Any]:
        stat = _stat(path)
        known = self._known(name, stat)
        if known is not None:
            return known
        found = make(path)
        self._kept[name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "says": found}
        self._changed = True
        return found

    def _known(self, name: str, stat: os.stat_result) -> Optional[Dict[str, Any]]:
        kept = self._kept.get(name)
        if not isinstance(kept, dict) or not isinstance(kept.get("says"), dict):
            return None
        current = (kept.get("size"), kept.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
        says: Dict[str, Any] = kept["says"]
        return says if current else None


def read_head(path: Path) -> Tuple[Dict[str, Any], bool]:
    """What stands whole in a score file's first bytes, and whether that is its summary: an older
    version wrote what it says of the references behind the single pictures.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
            file.seek(-min(len(END), path.stat().st_size), os.SEEK_END)
            if file.read() != END:
                return {}, False
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    found: Dict[str, Any] = {}
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # may end inside a character
    except UnicodeDecodeError:
        return {}, False
    decode = json.JSONDecoder().raw_decode
    place = 1 if text.startswith("{") else len(text)
    with contextlib.suppress(ValueError, RecursionError):  # here the bytes end
        while True:
            key, place = decode(text, place)
            if key in PER_PICTURE:
                return found, "references" in found
            if not isinstance(key, str) or not text.startswith(": ", place):
                break
            value, place = decode(text, place + 2)
            if not text.startswith(", ", place):
                break  # a number may go on behind the last byte
            found[key] = value
            place += 2
    return found, False


def _read_summary(path: Path) -> Dict[str, Any]:
    head, complete = read_head(path)
    return head if complete else _without_pictures(_read_object(path))


def _describe_references(path: Path) -> Dict[str, Any]:
    try:
        references = read_references(path)
    except UserError as error:
        raise UserError(f"{error}; copy the split's COCO ground truth there again") from error
    return {"pictures": len(references), **references_hashes(references)}


def _without_pictures(record: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in record.items() if key not in PER_PICTURE}


def _read_object(path: Path) -> Dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(value).__name__}; "
                        "write it again")
    return value


def _read_kept(path: Path) -> Dict[str, Any]:
    """What is kept; nothing where it is absent or damaged: it is made again."""
    # read_json would also look for keys that are there twice, a tenth of a report of 1,000 runs.
    with contextlib.suppress(UserError, OSError, ValueError, RecursionError), \
            open_regular(path) as file:
        kept = json.loads(file.read())
        if isinstance(kept, dict):
            return kept
    return {}


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
