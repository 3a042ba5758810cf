"""The chart parser against a plain one; CoreNLP's trees stand behind the golden SPICE values."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blip_art.score import chart

STATES, TAGS, GOAL = 12, 4, 11
Rule = tuple[int, ...]


def grammar_of(binary: list[Rule], unary: list[Rule], scores: list[float]) -> chart.Grammar:
    """(left, right, parent) and (child, parent) rules."""
    rng = np.random.default_rng(0)
    numbers: dict[Rule, np.float32] = {
        rule: np.float32(scores[n % len(scores)] - rng.random())
        for n, rule in enumerate([*binary, *unary])}

    def table(rules: list[Rule], key: int, *columns: int) -> list[Any]:
        rules = sorted(rules, key=lambda rule: rule[key])
        counts = np.bincount([rule[key] for rule in rules], minlength=STATES)
        return [np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
                *(np.array([rule[column] for rule in rules], np.uint16) for column in columns),
                np.array([numbers[rule] for rule in rules], np.float32)]

    is_right = np.zeros(STATES, np.bool_)
    is_right[[rule[1] for rule in binary]] = True
    parts = (*table(binary, 0, 1, 2), *table(unary, 0, 1), *table(binary, 2, 0, 1),
             *table(unary, 1, 0), is_right, np.arange(STATES) < TAGS, GOAL)
    return chart.Grammar(*parts)


def plainly(grammar: chart.Grammar, first: np.ndarray) -> dict[tuple[int, int, int], np.float32]:
    """Scores of (start, end, state), by loops over everything."""
    found: dict[tuple[int, int, int], np.float32] = defaultdict(lambda: np.float32(-np.inf))
    length = len(first)
    for end in range(1, length + 1):
        for start in range(end - 1, -1, -1):
            if start == end - 1:
                found.update({(start, end, s): first[start, s] for s in range(STATES)})
            elif end == length and start:
                continue
            else:
                for left in range(STATES):
                    for n in range(grammar.binary_at[left], grammar.binary_at[left + 1]):
                        for middle in range(start + 1, end):
                            _raise(found, (start, end, int(grammar.binary_parent[n])),
                                   (grammar.binary_score[n] + found[start, middle, left])
                                   + found[middle, end, int(grammar.binary_right[n])])
                for child in range(STATES):
                    for n in range(grammar.closed_at[child], grammar.closed_at[child + 1]):
                        _raise(found, (start, end, int(grammar.closed_parent[n])),
                               found[start, end, child] + grammar.closed_score[n])
    return found


def _raise(found: dict[Any, np.float32], key: tuple[int, int, int], score: np.float32) -> None:
    found[key] = max(found[key], score)


def derived(grammar: chart.Grammar, first: np.ndarray, nodes: list[tuple[int, int, int]]) -> float:
    """The score of a tree, added up along it; every step is a rule."""
    def take() -> tuple[int, int, float]:
        state, start, children = todo.pop()
        if not children:
            return state, start + 1, float(first[start, state])
        left, middle, score = take()
        if children == 1:
            return state, middle, score + rule(grammar.unary_at, grammar.unary_score, state,
                                               grammar.unary_child, [left])
        right, end, more = take()
        return state, end, score + more + rule(
            grammar.split_at, grammar.split_score, state,
            np.stack([grammar.split_left, grammar.split_right], 1), [left, right])

    def rule(at: Any, scores: Any, parent: int, children: Any, wanted: list[int]) -> float:
        some = slice(at[parent], at[parent + 1])
        same = (np.asarray(children[some]).reshape(-1, len(wanted)) == wanted).all(1)
        return float(scores[some][same].max())

    todo = nodes[::-1]
    state, end, score = take()
    assert (state, end, todo) == (GOAL, len(first), [])
    return score


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, STATES - 1)] * 2, st.integers(TAGS, STATES - 1)),
                min_size=5, max_size=60, unique=True),
       st.lists(st.tuples(st.integers(0, STATES - 2), st.integers(TAGS, STATES - 1)),
                max_size=8, unique=True),
       st.lists(st.floats(-9, -0.5, width=32), min_size=1), st.integers(2, 20), st.data())
def test_the_best_tree_is_the_best_of_all(binary: list[Rule], unary: list[Rule],
                                          scores: list[float], length: int, data: Any) -> None:
    # Children before parents, as in a closed grammar.
    grammar = grammar_of(binary, [rule for rule in unary if rule[0] < rule[1]], scores)
    first = np.full((length, STATES), -np.inf, np.float32)
    for word in range(length):
        for tag in data.draw(st.sets(st.integers(0, TAGS - 1), min_size=1)):
            first[word, tag] = -1 - word / 7 - tag / 3
    best = plainly(grammar, first)[0, length, GOAL]
    nodes = chart.best_tree(grammar, first)
    if nodes is None:
        assert best == -np.inf
    else:
        assert np.isclose(derived(grammar, first, nodes), best, rtol=1e-5)


def test_a_damaged_file_of_what_was_compiled_is_replaced(tmp_path: Path) -> None:
    environment = {**os.environ, "BLIP_ART_COMPILED": str(tmp_path / "compiled")}
    command = [sys.executable, "-c", "from blip_art.score import chart; chart.compile_all()"]
    subprocess.run(command, env=environment, check=True)
    indexes = sorted(tmp_path.rglob("*.nbi"))
    assert indexes
    for path in indexes:
        path.write_bytes(path.read_bytes()[:-20])
    subprocess.run(command, env=environment, check=True)
    assert len([*tmp_path.rglob("*.nbi")]) == len(indexes)
    assert all(path.stat().st_size > 1000 for path in tmp_path.rglob("*.nbi"))


FULL_DISK = """
from numba.core.caching import IndexDataCacheFile
def save(*_): raise OSError(28, "No space left on device")
IndexDataCacheFile.save = save
from blip_art.score import chart
chart.compile_all()
"""


def test_a_full_disk_only_means_that_nothing_is_kept(tmp_path: Path) -> None:
    environment = {**os.environ, "BLIP_ART_COMPILED": str(tmp_path / "compiled")}
    subprocess.run([sys.executable, "-c", FULL_DISK], env=environment, check=True)
    assert not [*tmp_path.rglob("*.nbi")]
