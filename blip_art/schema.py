"""Settings from a file into a frozen dataclass: types, limits, and the nearest key for a typo.

    @dataclass(frozen=True)
    class Train:
        epochs: int = limited(10, min=1, max=1000)
        '''Passes over the data.'''
    train = build(Train, read_yaml("train.yaml", "configuration", "…"), "train.yaml")
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import re
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from blip_art.errors import UserError, quoted

Settings = TypeVar("Settings")
# File systems allow 255 bytes a name; what is written beside it adds some.
LONGEST_NAME = 200
LONGEST_PATH = 4000
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
# As YAML 1.1 spells them: all small, all capitals, or the first letter.
SWITCHES = {spelled: value for word, value in (
    ("on", True), ("yes", True), ("off", False), ("no", False))
    for spelled in (word, word.upper(), word.title())}
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def limited(default: Any, *, min: Any = None, max: Any = None, above: Any = None,
            below: Any = None, multiple_of: int = 0, choices: Sequence[str] = (),
            name: bool = False, path: bool = False) -> Any:
    """A field of a dataclass, and what its values are held to.

    Args:
        min, max: limits that are allowed themselves; above, below: limits that are not.
        choices: what a text, or each item of a list, must be one of.
        name: it names a folder; path: it may name a file or folder.
    """
    return dataclasses.field(default=default, metadata={
        "min": min, "max": max, "above": above, "below": below, "multiple_of": multiple_of,
        "choices": tuple(choices), "name": name, "path": path})


def build(kind: Type[Settings], values: Any, where: str,
          renamed: Mapping[str, str] = {}, limits: bool = True) -> Settings:
    """A dataclass from nested dictionaries; what they do not name has its default.

    Args:
        where: what is named when a value is wrong: the file.
        renamed: other names that people know for keys, and the keys.
        limits: hold numbers to the limits beside their fields; texts always are.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of its limits.
    """
    built = _build(kind, values, "", where, _Keys(kind, renamed))
    check_limits(built, where, limits=limits)
    return built


def check_limits(settings: Any, where: str, prefix: str = "", limits: bool = True) -> None:
    """Hold every value to what stands beside its field, numbers only if `limits`.

    Raises:
        UserError: names the key, the rule and the value.
    """
    for one in dataclasses.fields(settings):
        value, key = getattr(settings, one.name), prefix + one.name
        if dataclasses.is_dataclass(value):
            check_limits(value, where, f"{key}.", limits)
        else:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            rule = "" if is_number and not limits else broken_rule(value, one.metadata)
            if rule:
                refuse(where, key, rule, value)


def broken_rule(value: Any, limits: Mapping[str, Any]) -> str:
    """What `value` must be and is not; '' if it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if any(_UNWRITABLE.search(text) for text in _texts(value)):
        return "text without NUL and halves of characters"
    if not limits:
        return ""
    if limits["choices"]:
        return _broken_choice(value, limits["choices"])
    if limits["name"] and not is_folder_below(value):
        return f"one folder's name, or some as a/b: no dot in front, 1 to {LONGEST_NAME} bytes"
    if limits["path"] and not is_possible_path(value):
        return f"a path of at most {LONGEST_PATH} bytes, each name in it 255 at most"
    rule = _broken_limits(value, limits)
    if rule:
        return rule
    if limits["multiple_of"] and value % limits["multiple_of"]:
        return f"a multiple of {limits['multiple_of']}"
    return ""


def _texts(value: Any) -> List[str]:
    """The texts of a value, or of one that holds others."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    items = value if isinstance(value, (list, tuple)) else (value,)
    return [item for item in items if isinstance(item, str)]


_LIMITS: Dict[str, Tuple[str, Callable[[Any, Any], bool]]] = {
    "above": ("above", operator.gt), "min": ("at least", operator.ge),
    "below": ("below", operator.lt), "max": ("at most", operator.le)}


def _broken_limits(value: Any, limits: Mapping[str, Any]) -> str:
    given = {key: limits[key] for key in _LIMITS if limits[key] is not None}
    if all(_LIMITS[key][1](value, limit) for key, limit in given.items()):
        return ""
    if set(given) == {"min", "max"}:
        return f"from {given['min']} to {given['max']}"
    return " and ".join(f"{_LIMITS[key][0]} {limit}" for key, limit in given.items())


def _broken_choice(value: Any, choices: Tuple[str, ...]) -> str:
    if isinstance(value, str):
        return "" if value in choices else f"one of {', '.join(choices)}"
    return "" if value and set(value) <= set(choices) else f"some of {', '.join(choices)}"


def is_folder_below(name: str) -> bool:
    """Whether `runs/NAME` is a folder below runs/, with room for what is written beside it."""
    return all(map(_is_plain_name, name.split("/")))


def _is_plain_name(name: str) -> bool:
    return (0 < len(name.encode(errors="replace")) <= LONGEST_NAME and name[0] != "."
            and name.isprintable() and name == name.strip())


def is_possible_path(path: str) -> bool:
    """Whether a file system would look for it, rather than refuse."""
    encoded = path.encode(errors="replace")
    return len(encoded) <= LONGEST_PATH and all(len(one) <= 255 for one in encoded.split(b"/"))


def refuse(where: str, key: str, rule: str, value: Any) -> None:
    """Raise the UserError of a value that breaks a rule."""
    raise UserError(f"{where}: {key} must be {rule}, not {quoted(value)}")


# The annotations are texts; a sweep would evaluate them once a run.
_hints = functools.lru_cache(maxsize=None)(get_type_hints)


class _Keys:
    """The keys of a dataclass and its sections, to find the one that was meant."""

    def __init__(self, kind: Any, renamed: Mapping[str, str]) -> None:
        self._kind, self._renamed = kind, renamed

    def nearest(self, prefix: str, key: str) -> str:
        if key in self._renamed:
            return f"here it is called '{self._renamed[key]}'"
        valid = _flat_keys(self._kind, "")
        leaves = {name: name.rpartition(".")[2] for name in valid}
        # A right leaf in the wrong section is the likeliest slip.
        same_leaf = [name for name in valid if leaves[name] == key]
        close = difflib.get_close_matches(prefix + key, valid, 1, 0.6)
        by_leaf = difflib.get_close_matches(key, leaves.values(), 1, 0.6)
        close = same_leaf or close or [name for name in valid if leaves[name] in by_leaf]
        return f"did you mean '{close[0]}'?" if close else _listed(valid)


def _listed(keys: Sequence[str]) -> str:
    named = ", ".join(keys)
    return f"valid keys: {named if len(named) <= 150 else named[:150].rpartition(',')[0] + ', …'}"


def _flat_keys(kind: Any, prefix: str) -> List[str]:
    keys: List[str] = []
    for key, hint in _hints(kind).items():
        keys += (_flat_keys(hint, f"{prefix}{key}.") if dataclasses.is_dataclass(hint)
                 else [prefix + key])
    return keys


def _build(kind: Any, values: Any, prefix: str, where: str, keys: _Keys) -> Any:
    if values is None:  # a section whose keys are all commented out
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: '{prefix.rstrip('.')}' must be a section of keys, "
                        f"not {quoted(values)}")
    hints = _hints(kind)
    choices = {one.name: one.metadata.get("choices") for one in dataclasses.fields(kind)}
    found: Dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{where}: unknown key {quoted(f'{prefix}{key}')}; "
                            f"{keys.nearest(prefix, str(key)[:100])}")
        hint = hints[key]
        if get_origin(hint) is tuple and choices[key] and isinstance(value, str):
            value = [item.strip() for item in value.split(",")]  # generate.splits=val,test
        found[key] = (_build(hint, value, f"{prefix}{key}.", where, keys)
                      if dataclasses.is_dataclass(hint)
                      else typed(hint, value, f"{where}: {prefix}{key}"))
    return kind(**found)


def typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of a field.

    Raises:
        UserError: it is of another; names both.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        return tuple(typed(get_args(hint)[0], item, where) for item in items if item is not None)
    if origin is not None:  # a mapping
        return _typed_mapping(get_args(hint)[1], {} if value is None else value, where)
    if hint is str and value is None:
        return ""
    if hint is bool and isinstance(value, str) and value in SWITCHES:
        return SWITCHES[value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str and is_number:
        return str(value)
    if hint is float and is_number:
        return _as_float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        empty = "; '' is none" if hint is str and value is False else ""
        raise UserError(f"{where} must be {_TYPE_NAMES[hint]}, not {quoted(value)}{empty}")
    return value


def _typed_mapping(hint: Any, value: Any, where: str) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a section of keys, not {quoted(value)}")
    return {str(key): typed(hint, item, f"{where}.{key}") for key, item in value.items()}


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # which is refused as such
