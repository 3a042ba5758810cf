"""A sweep: many runs of one configuration, from a file that says what varies.

    sweep = load_sweep("configs/sweeps/lr.yaml"); sweep.members("runs")
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from blip_art.config import load_config
from blip_art.errors import UserError, quoted
from blip_art.files import RunDir, read_json_object, write_json
from blip_art.schema import build, is_folder_below, limited, refuse
from blip_art.strict_yaml import parse_yaml, read_yaml

# File systems allow 255 bytes a name; temporary files beside it add some.
_LONGEST = 120
# Slurm's arrays have 1,001 elements unless its administrators allow more.
_MOST_RUNS = 10_000


@dataclass(frozen=True)
class _File:
    """The keys of a sweep's file."""

    config: str = limited("", path=True)
    """The configuration that all runs start from."""
    name: str = ""
    """Folder of the runs in runs/; '' is the file's name."""
    parallel: int = limited(0, min=0, max=_MOST_RUNS)
    """How many run at once; 0 sets no limit."""
    grid: Mapping[str, Any] = field(default_factory=dict)
    """Values of each key; all combinations are runs."""
    list: Tuple[Any, ...] = ()
    """Keys and values of one run each."""
    seeds: Tuple[int, ...] = ()
    """Each run once a seed."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values of all runs."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    run: RunDir
    overrides: Tuple[str, ...]
    config: str = ""
    """The configuration that the overrides change."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says, checked."""

    path: str
    name: str
    config: str
    parallel: int
    settings: Tuple[Tuple[str, ...], ...]
    """The overrides of each run."""
    submitted: Tuple[Member, ...] = ()
    """Of a sweep's folder: its runs, each with the configuration it was submitted with."""

    def members(self, root: str = "runs") -> List[Member]:
        """The runs, in the file's order, each in a folder named after what varies in it."""
        if self.submitted:
            return list(self.submitted)
        names = _names(self.settings)
        return [Member(RunDir(Path(root, self.name, name)), settings, self.config)
                for name, settings in zip(names, self.settings)]


def load_sweep(path: str, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep's file: `grid` (all combinations) or `list`, times `seeds`.

    Args:
        path: the file, or the folder of a sweep that was submitted.
        overrides: key=value for all runs, as if `set` had them.

    Raises:
        UserError: not such a file; an unknown key; a run whose configuration is wrong, or two
            runs that are the same.
    """
    if Path(path).is_dir():
        return _load_folder(Path(path), tuple(overrides))
    file = build(_File, read_yaml(path, "sweep", "see configs/sweeps/ for examples"), path)
    if not file.config:
        raise UserError(f"{path} must name a configuration: 'config: configs/caption_art.yaml'")
    name = file.name or Path(path).stem
    if not is_folder_below(name):
        refuse(path, "name", "one folder's name, or some as a/b, in runs/", name)
    settings = _settings(file, path)
    for word in overrides:
        settings = tuple(_changed(one, word) for one in settings)
    for number, one in enumerate(settings, 1):
        try:
            load_config(file.config, one)
        except UserError as error:
            raise UserError(f"{path}, run {number}: {error}") from error
    if len(set(settings)) < len(settings):
        raise UserError(f"{path} has the same run twice; each needs settings of its own")
    return Sweep(path, name, file.config, file.parallel, settings)


def record_sweep(folder: Path, plan: Sweep) -> None:
    """Note in the sweep's folder what its runs are."""
    write_json(record_of(folder), {
        "file": os.path.abspath(plan.path), "parallel": plan.parallel,
        "runs": [{"run": str(one.run.path), "overrides": list(one.overrides),
                  "config": os.path.abspath(one.config)} for one in plan.members()]}, indent=1)


def record_of(folder: Path) -> Path:
    """Where `record_sweep` writes."""
    return folder / "sweep.json"


def is_member(run: RunDir) -> bool:
    """Whether a run lies in the folder of a sweep that knows it.

    Raises:
        UserError: the sweep's record is damaged.
    """
    folder = run.path.resolve().parent
    return record_of(folder).exists() and run.name in (
        Path(row["run"]).name for row in _read_record(folder)["runs"])


def _load_folder(folder: Path, overrides: Tuple[str, ...] = ()) -> Sweep:
    """The sweep of a folder, which may have been moved or copied since it was submitted."""
    said = _read_record(folder)
    members = (_recorded_member(folder, row, overrides) for row in said["runs"])
    submitted = tuple(one for one in members if one.config)
    if not submitted:
        raise UserError(f"{folder}: none of its runs has a configuration; name the sweep's file")
    return Sweep(said["file"], folder.resolve().name, "", said["parallel"], (), submitted)


def _read_record(folder: Path) -> Dict[str, Any]:
    path = record_of(folder)
    if not path.exists():
        raise UserError(f"{folder} is no folder of a sweep: it has no {path.name}; name the "
                        "sweep's file")
    said = {"parallel": 0, **read_json_object(path)}
    if not (isinstance(said.get("file"), str) and isinstance(said["parallel"], int)
            and isinstance(said.get("runs"), list) and all(map(_is_recorded, said["runs"]))):
        raise UserError(f"{path} is not as 'launch.py sweep' wrote it; name the sweep's file")
    return said


def _is_recorded(row: Any) -> bool:
    return (isinstance(row, dict) and isinstance(row.get("run"), str)
            and isinstance(row.get("config", ""), str) and isinstance(row.get("overrides"), list)
            and all(isinstance(word, str) for word in row["overrides"]))


def _recorded_member(folder: Path, row: Dict[str, Any], overrides: Tuple[str, ...]) -> Member:
    """With the configuration it was submitted with; one that never was, with the sweep's."""
    run = RunDir(folder / Path(row["run"]).name)
    frozen = run.submitted_config()
    if frozen:
        return Member(run, overrides, str(frozen))
    return Member(run, (*row["overrides"], *overrides), row.get("config", ""))


def is_asked(member: Member, only: Optional[Sequence[str]]) -> bool:
    """Whether it is among the run folders that were named; all are if none was."""
    return not only or member.run.path.resolve() in {Path(path).resolve() for path in only}


def _settings(file: _File, path: str) -> Tuple[Tuple[str, ...], ...]:
    if not all(isinstance(options, list) and options for options in file.grid.values()):
        raise UserError(f"{path}: grid must hold lists, for example train.lr: [1e-5, 5e-5]")
    rows = file.list or ({},)
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: list must hold one {{key: value, …}} a run")
    axes = [*file.grid.items(), *([("seed", file.seeds)] if file.seeds else [])]
    runs = math.prod([len(rows), *(len(options) for _, options in axes)])
    if runs > _MOST_RUNS:
        raise UserError(f"{path} means {runs} runs, more than {_MOST_RUNS}; name fewer values")
    combined = itertools.product(rows, *([(key, option) for option in options]
                                         for key, options in axes))
    return tuple(_overrides({**file.set, **row, **dict(chosen)}) for row, *chosen in combined)


def _changed(settings: Tuple[str, ...], word: str) -> Tuple[str, ...]:
    """A run's settings with one of the command line, which wins over the file's."""
    key = _split(word)[0]
    if "=" not in word:
        raise UserError(f"{quoted(word)} is no key=value; one sweep is named at a time")
    return (*(one for one in settings if _split(one)[0] != key), word)


def _overrides(values: Mapping[str, Any]) -> Tuple[str, ...]:
    return tuple(f"{key}={_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    """What `load_config` reads as the value again."""
    if value in (None, ""):
        return ""
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, str):
        return value if _is_read_alone(value) else json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_read_alone(text: str) -> bool:
    """Whether YAML reads the text as itself, without quotation marks."""
    try:
        return bool(parse_yaml(text, "") == text)
    except UserError:
        return False


def _names(settings: Sequence[Tuple[str, ...]]) -> List[str]:
    """Folder names: `name` where a run has one, else from what differs: 'lr=1e-05_seed=1'."""
    parsed: List[Dict[str, str]] = [dict(_split(word) for word in one) for one in settings]
    keys = list(dict.fromkeys(key for one in parsed for key in one))
    varying = [key for key in keys if len({one.get(key) for one in parsed}) > 1] or keys[:1]
    leaves = [key.rpartition(".")[2] for key in varying]
    short = {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(varying, leaves)}
    said = ("_".join(f"{short[key]}={one[key]}" for key in varying if key in one)
            for one in parsed)
    names = [_safe(one.get("name") or other) or "run" for one, other in zip(parsed, said)]
    return [name if names.count(name) == 1 else f"{name}_{_digest(one)}"
            for name, one in zip(names, settings)]


def _split(override: str) -> Tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _safe(name: str) -> str:
    clean = re.sub(r"[^\w.=+-]+", "-", name).strip("-.")
    if len(clean.encode()) <= _LONGEST:
        return clean
    return f"{clean.encode()[:_LONGEST - 9].decode(errors='ignore')}_{_digest((name,))}"


def _digest(words: Tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]
