"""Every path of a run folder, spelled once, and writes that leave a whole file or none.

    run = RunDir("runs/caption_art"); run.predictions("val", 3); write_json(path, value)
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import os
import re
import stat
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from blip_art.errors import UserError, quoted
from blip_art.outputs import PathLike, final_target, is_stream, passed_into

GZIP_MAGIC = b"\x1f\x8b"
DAY_S = 24 * 3600.0
# The largest list we know of, COCO's, is 150 MB; a packed file could unpack to anything.
MAX_BYTES = 1 << 30
BLOCK_BYTES = 1 << 20
# Ours are nested 5 deep. Python's own limit counts from wherever the caller stands.
MAX_DEPTH = 100
_AGAIN = "put a whole file there, or make it again"


@contextlib.contextmanager
def written_aside(path: PathLike, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block succeeds.

    The name carries host and process, because several jobs share a run folder. `durable` waits
    until the disk has it; hundreds of small records that can be made again need not. A link stays
    and the file that it leads to is replaced; a device or a pipe stays and is written into.

    Raises:
        UserError: the folder cannot be written to, the disk is full, or nobody reads the pipe.
    """
    if is_stream(path):
        with passed_into(path) as content:
            yield content
        return
    target = final_target(path)
    aside = target.with_name(f".{target.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)
        aside.touch(exist_ok=False)  # what another user put there, or a link, is not written into
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)  # safetensors makes files that a colleague could not read
        if durable:
            sync(aside)  # on disk before the old file is gone
        os.replace(aside, target)
    except OSError as error:
        if error.filename in (None, str(aside), str(target), *map(str, target.parents)):
            raise UserError(f"cannot write {target}: {error.strerror}; "
                            "free space or choose another folder") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def sync(path: PathLike) -> None:
    """Wait until the disk has the file's content."""
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def remove_leftovers(folder: Path, name: str = "", alone: bool = False) -> None:
    """Remove the temporary files in `folder`, of one target or of all, whose writers were killed.

    A writer is dead when it ran on this machine and is gone, or has not written for a day. `alone`:
    the caller is the only one who writes there, so none of them is alive.
    """
    for left in folder.glob(f".{glob.escape(name) or '*'}.*.tmp"):
        with contextlib.suppress(OSError):  # another one was faster
            if is_left_behind(left, alone):
                left.unlink()


def is_left_behind(path: Path, alone: bool = False) -> bool:
    """Whether the writer of a temporary file, '.NAME.HOST.PROCESS.tmp', is dead: see
    `remove_leftovers`.

    Raises:
        OSError: the file is gone.
    """
    pid = path.stem.rpartition(".")[2]
    here = path.stem.endswith(f".{os.uname().nodename}.{pid}")
    dead = here and not Path("/proc", pid).exists()
    return pid.isdigit() and (alone or dead or time.time() - path.lstat().st_mtime > DAY_S)


def write_text(path: PathLike, text: str, durable: bool = True) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with written_aside(path, durable) as aside, \
            open(aside, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: PathLike, value: Any, indent: Optional[int] = None,
               durable: bool = True) -> None:
    """Write `value` as JSON; NaN is refused, because other readers refuse it too."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n",
               durable)


def read_text(path: PathLike, what: str = "", fix: str = "", absent: Optional[str] = None) -> str:
    """Text of a regular file in UTF-8, with or without a byte order mark, plain or gzipped.

    A pipe that waits for its writer would hang the reader, so only those are read that this
    process was started with: /dev/stdin and the shell's `<(command)`.

    Args:
        what: what the file is, for the message: 'configuration'.
        fix: what to do about a file that cannot be read.
        absent: what is returned where there is no file; None refuses that.

    Raises:
        UserError: the file is absent, cannot be read, is no regular file, no UTF-8 or too large.
    """
    try:
        data = _content(path)
    except FileNotFoundError as error:
        if absent is not None:
            return absent
        raise _unreadable(error, path, what, fix) from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _unreadable(error, path, what, fix) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save it as UTF-8") from error


def open_regular(path: PathLike) -> IO[bytes]:
    """Open a regular file for reading; a pipe, whose writer may never come, is refused.

    Raises:
        UserError: it is something else.
        OSError: it cannot be opened.
    """
    file = open(path, "rb",  # noqa: SIM115 (the caller closes it)
                opener=lambda name, mode: os.open(name, mode | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UserError(f"{path} is no regular file; put the file itself there")


def read_as_shown(path: PathLike) -> str:
    """Text of a regular file that people look at: what is no UTF-8 is shown as U+FFFD.

    Raises:
        UserError: it is no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8", errors="replace")


def _content(path: PathLike) -> bytes:
    inherited = (os.path.dirname(path) in ("/dev/fd", "/proc/self/fd")
                 or os.fspath(path) == "/dev/stdin")
    with open(path, "rb") if inherited else open_regular(path) as file:
        data = _read_bounded(file)
    if data.startswith(GZIP_MAGIC):  # whatever its name is
        try:
            data = _read_bounded(gzip.GzipFile(fileobj=io.BytesIO(data)))
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path} is damaged gzip ({error}); copy it again") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} holds more than {MAX_BYTES >> 20} MiB, too much for such a file")
    return data


def _read_bounded(file: Union[IO[bytes], gzip.GzipFile]) -> bytes:
    """All there is, or a block more than MAX_BYTES; read(n) would take n bytes of memory first."""
    blocks: List[bytes] = []
    while len(blocks) * BLOCK_BYTES <= MAX_BYTES:
        block = file.read(BLOCK_BYTES)
        if not block:
            break
        blocks.append(block)
    return b"".join(blocks)


def _unreadable(error: Exception, path: PathLike, what: str, fix: str) -> UserError:
    why = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot read {what + ' ' if what else ''}{_shown(path)}: {why}"
                     + (f"; {fix}" if fix else ""))


def _shown(path: PathLike) -> str:
    text = ascii(os.fspath(path))[1:-1] if not str(path).isprintable() else str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-99:]}"


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is absent, cannot be read, or is no JSON.
    """
    return _parse_json(read_text(path), path, 1)


def read_json_object(path: PathLike) -> Dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {json_type(value)}; {_AGAIN}")
    return value


def read_json_list(path: PathLike) -> List[Any]:
    """Read a JSON file that holds a list.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise UserError(f"{path} must hold a JSON list, not {json_type(value)}; {_AGAIN}")
    return value


def read_jsonl(path: PathLike) -> List[Any]:
    """Read a file of one JSON value a line; an absent file is an empty list.

    Raises:
        UserError: the file cannot be read, or a line is no JSON.
    """
    lines = read_text(path, absent="").split("\n")
    return [_parse_json(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def json_type(value: Any) -> str:
    """What a JSON value is, for a message: 'a list'."""
    return {dict: "an object", list: "a list", str: "text", bool: str(value).lower(),
            type(None): "null"}.get(type(value), "a number")


def _parse_json(text: str, path: PathLike, first_line: int) -> Any:
    """A value from JSON text; `first_line` is the line of the file where the text starts."""
    line, why = first_line, ""
    try:
        value = json.loads(text, parse_int=_whole_number, object_pairs_hook=_unique_keys)
        if not _is_deeper(value, MAX_DEPTH):
            return value
        why = "nested too deep"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        why = error.msg if text.strip() else "it is empty"
    except RecursionError:
        why = "nested too deep"
    except ValueError as error:
        why = str(error)
    raise UserError(f"{path}, line {line}: not valid JSON ({why}); {_AGAIN}")


def _unique_keys(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """Of a key that is there twice json keeps the last value and says nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {quoted(twice)} is there twice")
    return found


def _whole_number(digits: str) -> int:
    """Larger ones do not fit into a float, which whoever reckons with them would meet."""
    if len(digits) > 300:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects hold each other deeper than `levels`."""
    level = [value] if isinstance(value, (dict, list)) else []
    while level and levels:
        levels -= 1
        level = [child for one in level
                 for child in (one.values() if isinstance(one, dict) else one)
                 if isinstance(child, (dict, list))]
    return bool(level)


def write_jsonl(path: PathLike, rows: List[Any]) -> None:
    """Rewrite the whole file: an append can be cut in half or happen twice after a requeue."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(line + "\n" for line in lines))


class Result(NamedTuple):
    """One predictions or scores file: `val_03.json` is split "val" of epoch 3."""

    split: str
    epoch: int
    path: Path


class RunDir:
    """The paths of one run folder (the contract between the stages)."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def train_log(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def progress(self) -> Path:
        """How far a training is, while it runs; a process that was killed leaves it."""
        return self.path / "progress.json"

    @property
    def output(self) -> Path:
        return self.path / "output.txt"

    @property
    def best(self) -> Path:
        return self.path / "best.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the last, for a last one that turns out to be damaged."""
        return self.checkpoints / "previous.pt"

    def saved_checkpoints(self) -> List[Path]:
        """What a training can go on from, newest first."""
        return [path for path in (self.last_checkpoint, self.previous_checkpoint) if path.exists()]

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    @property
    def jobs(self) -> Path:
        """The Slurm jobs that were submitted for the run."""
        return self.slurm / "jobs.json"

    @property
    def pending(self) -> Path:
        """Submissions whose answer is still open, of a run or of a sweep."""
        return self.slurm / "pending.json"

    @property
    def submission_lock(self) -> Path:
        """Held by the launch.py that submits a run or a sweep."""
        return self.slurm / ".submitting"

    def job_ended(self, job_id: str) -> Path:
        """Written by a job's batch script when the job has ended for good: its exit code."""
        return self.slurm / f"ended_{job_id}"

    def job_waits(self, job_id: str) -> Path:
        """There while a job that was stopped waits to start again."""
        return self.slurm / f"again_{job_id}"

    def job_progress(self, job_id: str) -> Path:
        """There once the job has started; what is to be newer than it if the start was worth it."""
        return self.slurm / f"progress_{job_id}"

    def job_follows(self, job_id: str) -> Path:
        """Left by a job that ends until another one has started again: that one's id."""
        return self.slurm / f"follows_{job_id}"

    @property
    def frozen_config(self) -> Path:
        """The configuration as it was submitted: a queued job must not see a later edit."""
        return self.slurm / "config.yaml"

    def submitted_config(self) -> Optional[Path]:
        """What a run goes on with, whatever has become of the file it began with; None without."""
        return next((path for path in (self.frozen_config, self.config) if path.exists()), None)

    @property
    def training_lock(self) -> Path:
        """Held by rank 0 of the training that writes here."""
        return self.path / ".training"

    def owns(self, path: PathLike) -> bool:
        """Whether a path is, or lies among, what the stages write here; links are followed."""
        folder, target = final_target(self.path), final_target(path)
        own = {self.config, self.state, self.manifest, self.code, self.train_log, self.progress,
               self.output, self.best, self.checkpoints, self.slurm, self.training_lock,
               *(maker("val", 0).parent for maker in (self.predictions, self.scores)),
               *(maker("val").parent for maker in (self.bad_pictures, self.references))}
        return folder in target.parents and target.relative_to(folder).parts[0] in {
            each.name for each in own}

    def weights(self, epoch: int) -> Path:
        return self.checkpoints / f"epoch_{epoch:02d}.safetensors"

    def saved_epochs(self) -> List[int]:
        """Epochs whose weights are on disk, in order of number."""
        names = (re.fullmatch(r"epoch_(\d+)\.safetensors", p.name)
                 for p in self.checkpoints.glob("epoch_*.safetensors"))
        return sorted(int(match[1]) for match in names if match)

    def predictions(self, split: str, epoch: int) -> Path:
        return self.path / "predictions" / f"{split}_{epoch:02d}.json"

    def scores(self, split: str, epoch: int) -> Path:
        return self.path / "scores" / f"{split}_{epoch:02d}.json"

    def bad_pictures(self, split: str) -> Path:
        """Pictures of a split that cannot be read, and why."""
        return self.path / "bad_pictures" / f"{split}.json"

    def floor_scores(self, split: str) -> Path:
        """Scores of the most frequent training caption, given to every picture."""
        return self.path / "scores" / f"floor_{split}.json"

    def oracle_scores(self, split: str) -> Path:
        """Scores of each picture's first reference, cut to the length captions may have."""
        return self.path / "scores" / f"oracle_{split}.json"

    @property
    def score_summaries(self) -> Path:
        """What all score files say without their single pictures; see score/summary.py."""
        return self.path / "scores" / ".summaries"

    def score_files(self) -> List[Path]:
        """All score files: floors, epochs, oracles."""
        folder = self.path / "scores"
        return [*sorted(folder.glob("floor_*.json")), *(row.path for row in self.scored()),
                *sorted(folder.glob("oracle_*.json"))]

    @property
    def cpu_time(self) -> Path:
        """The CPU time of each process that scored; see score/cpu_time.py."""
        return self.path / "scores" / ".cpu_time"

    @property
    def scoring_lock(self) -> Path:
        """Held by the process that scores, so that two do no double work."""
        return self.path / "scores" / ".lock"

    def predicted(self) -> List[Result]:
        """Prediction files, by split and epoch."""
        return _results(self.path / "predictions")

    def scored(self) -> List[Result]:
        """Score files, by split and epoch."""
        return _results(self.path / "scores")

    def references(self, split: str) -> Path:
        """COCO ground truth of a split, frozen into the run folder when the run starts."""
        return self.path / "references" / f"{split}.json"


def _results(folder: Path) -> List[Result]:
    try:
        names = os.listdir(folder)  # a report lists thousands of folders: glob takes twice as long
    except OSError:
        return []
    matches = (re.fullmatch(r"(\w+?)_(\d+)\.json", name) for name in names)
    return sorted(Result(m[1], int(m[2]), folder / m[0]) for m in matches if m)
