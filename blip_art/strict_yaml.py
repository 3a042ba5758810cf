"""YAML as people expect it: one meaning for each line, or one line that says what is wrong.

    values = read_yaml("configs/demo.yaml", "configuration", "see configs/ for examples")

Differs from YAML 1.1, which PyYAML reads: a key that is there twice is refused, not dropped;
`off` is a text, `1e-5` a number; 010 (8 there), 0x10, 1_000, 1:30:00 (5400 there), .inf and dates
are texts, which a field of numbers refuses and a field of text keeps as they were written.
"""

from __future__ import annotations

import copy
import functools
import itertools
import re
from typing import Any, Dict, Iterator, Set

import yaml

from blip_art.errors import UserError
from blip_art.files import PathLike, read_text

# PyYAML reads some 100 KB a second; a configuration is 3 KB, a sweep of 1,000 runs 100 KB.
MAX_CHARACTERS = 300_000
# Aliases make ten lines unfold to 10^10 values.
MAX_VALUES = 100_000
MAX_DEPTH = 20
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"^[-+]?(0|[1-9][0-9]{0,99})$"), "-+0123456789"),
    "float": (re.compile(r"^[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
                         r"|^[-+]?[0-9]+[eE][-+]?[0-9]+$"), "-+.0123456789"),
    "null": (re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "merge": (re.compile(r"^<<$"), "<")}


class _Loader(yaml.SafeLoader):
    """PyYAML's, with the plain scalars above."""


_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_PREFIX + _tag, _pattern, list(_first))


def read_yaml(path: PathLike, what: str, fix: str) -> Dict[str, Any]:
    """The keys of a YAML file; none where it is empty.

    Args:
        what: what the file is, for messages: 'configuration'.
        fix: what to do about a file that cannot be read.

    Raises:
        UserError: the file cannot be read, is not YAML, holds something else, or means two things.
    """
    # Every run of a sweep reads the same file.
    values = copy.deepcopy(_parsed(read_text(path, what, fix), str(path)))
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'key: value' lines, not {type(values).__name__}")
    return values


@functools.lru_cache(maxsize=8)
def _parsed(text: str, where: str) -> Any:
    return parse_yaml(text, where)


def parse_yaml(text: str, where: str) -> Any:
    """Plain values from YAML text.

    Args:
        where: what is named when the text is wrong: the file.

    Raises:
        UserError: not YAML, a key twice, too large or too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where} has {len(text)} characters of YAML, more than {MAX_CHARACTERS}; "
                        "is it the right file?")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root, loader, where)
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise UserError(f"{where}{f', line {mark.line + 1}' if mark else ''}: "
                        f"not valid YAML ({_short(problem)})") from error
    except RecursionError as error:
        raise UserError(f"{where}: not valid YAML (nested too deep)") from error


def _check(root: yaml.Node, loader: _Loader, where: str) -> None:
    """Refuse what unfolds too far or means two things.

    Raises:
        UserError: with the line.
    """
    values, level = 1, [root]
    for _ in range(MAX_DEPTH):
        children = (child for node in level for child in _children(node, loader, where))
        level = list(itertools.islice(children, MAX_VALUES))
        values += len(level)
        if values > MAX_VALUES:
            raise _wrong(where, root, f"its aliases unfold to more than {MAX_VALUES} values; "
                                      "write them out")
        if not level:
            return
    raise _wrong(where, level[0], f"nested deeper than {MAX_DEPTH}")


def _children(node: yaml.Node, loader: _Loader, where: str) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        plain = (node.style is None, node.style is not None)
        if node.tag not in (_PREFIX + "str", loader.resolve(yaml.ScalarNode, node.value, plain)):
            raise _wrong(where, node, f"no {_named(node.tag)} is read; write the value alone")
    elif node.tag not in (_PREFIX + "seq", _PREFIX + "map"):
        raise _wrong(where, node, f"no {_named(node.tag)} is read; write the values alone")
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
    else:
        keys: Set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong(where, key, "a key must be a name, not a list or section")
            if key.value in keys:
                raise _wrong(where, key, f"'{_short(key.value)}' is there twice; keep one")
            keys.add(key.value)
            yield key
            yield value


def _named(tag: str) -> str:
    return _short(tag.replace(_PREFIX, "!!", 1))


def _wrong(where: str, node: yaml.Node, problem: str) -> UserError:
    return UserError(f"{where}, line {node.start_mark.line + 1}: {problem}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:119]}…"
