"""A sweep: many runs of one configuration, from a file that says what varies.

    sweep = load_sweep("configs/sweeps/lr.yaml"); sweep.members("runs")
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from blip_art.config import load_config, parse_yaml
from blip_art.errors import UserError
from blip_art.files import RunDir

_KEYS = ("config", "name", "parallel", "grid", "list", "seeds", "set")
# File systems allow 255 bytes a name; temporary files beside it add some.
_LONGEST = 120


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    run: RunDir
    overrides: Tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says, checked."""

    path: str
    name: str
    config: str
    parallel: int
    settings: Tuple[Tuple[str, ...], ...]
    """The overrides of each run."""

    def members(self, root: str = "runs") -> List[Member]:
        """The runs, in the file's order, each in a folder named after what varies in it."""
        names = _names(self.settings)
        return [Member(RunDir(Path(root, self.name, name)), settings)
                for name, settings in zip(names, self.settings)]


def load_sweep(path: str, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep's file: `grid` (all combinations) or `list`, times `seeds`.

    Args:
        overrides: key=value for all runs, as if `set` had them.

    Raises:
        UserError: not such a file; an unknown key; a run whose configuration is wrong, or two
            runs that are the same.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read sweep {path}: {getattr(error, 'strerror', error)}; "
                        "see configs/sweeps/ for examples") from error
    if not isinstance(values, dict) or "config" not in values:
        raise UserError(f"{path} must name a configuration: 'config: configs/caption_art.yaml'")
    for key in values:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key '{key}'; valid keys: {', '.join(_KEYS)}")
    parallel = values.get("parallel", 0)
    if not isinstance(parallel, int) or parallel < 0:
        raise UserError(f"{path}: parallel must be a whole number, 0 for no limit, "
                        f"not {parallel!r}")
    settings = _settings(values, path)
    for word in overrides:
        settings = tuple(_changed(one, word, path) for one in settings)
    for one in settings:
        load_config(values["config"], one)
    if len(set(settings)) < len(settings):
        raise UserError(f"{path} has the same run twice; each needs settings of its own")
    return Sweep(path, str(values.get("name") or Path(path).stem), str(values["config"]),
                 parallel, settings)


def is_asked(member: Member, only: Optional[Sequence[str]]) -> bool:
    """Whether it is among the run folders that were named; all are if none was."""
    return not only or member.run.path.resolve() in {Path(path).resolve() for path in only}


def _settings(values: Mapping[str, Any], path: str) -> Tuple[Tuple[str, ...], ...]:
    grid, rows = values.get("grid") or {}, values.get("list") or [{}]
    if not isinstance(grid, dict) or not all(isinstance(options, list) and options
                                             for options in grid.values()):
        raise UserError(f"{path}: grid must hold lists, for example train.lr: [1e-5, 5e-5]")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: list must hold one {{key: value, …}} a run")
    seeds = values.get("seeds") or []
    if not isinstance(seeds, list):
        raise UserError(f"{path}: seeds must be a list of whole numbers")
    common = values.get("set") or {}
    if not isinstance(common, dict):
        raise UserError(f"{path}: set must be {{key: value, …}}, for all runs")
    axes = [*grid.items(), *([("seed", seeds)] if seeds else [])]
    combined = itertools.product(rows, *([(key, option) for option in options]
                                         for key, options in axes))
    return tuple(_overrides({**common, **row, **dict(chosen)}) for row, *chosen in combined)


def _changed(settings: Tuple[str, ...], word: str, path: str) -> Tuple[str, ...]:
    """A run's settings with one of the command line, which wins over the file's."""
    key, value = _split(word)
    if not value:
        raise UserError(f"'{word}' is no key=value; one sweep is named at a time")
    return (*(one for one in settings if _split(one)[0] != key), word)


def _overrides(values: Mapping[str, Any]) -> Tuple[str, ...]:
    return tuple(f"{key}={_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    return clean if len(clean) <= _LONGEST else f"{clean[:_LONGEST - 9]}_{_digest((name,))}"


def _digest(words: Tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]
