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


# With these rules every sentence has a tree, if a plain one.
TAG_PAIRS: list[Rule] = [(left, right, 5) for left in (*range(TAGS), 5) for right in range(TAGS)]
WHOLE: list[Rule] = [(left, right, GOAL) for left in range(STATES) for right in range(TAGS)]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 400), st.integers(0, 12), st.integers(2, 20))
def test_the_best_tree_is_the_best_of_all(seed: int, binary: int, unary: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    rules: set[Rule] = {(*rng.integers(0, STATES, 2).tolist(), int(rng.integers(TAGS, STATES)))
             for _ in range(binary)}
    # Children before parents, as in a closed grammar.
    chains: set[Rule] = {(int(parent - rng.integers(1, parent)), int(parent))
              for parent in rng.integers(TAGS, STATES, unary)}
    grammar = grammar_of(sorted(rules | {*TAG_PAIRS, *WHOLE}), sorted(chains),
                         rng.uniform(-9, -0.5, 50).tolist())
    first = np.full((length, STATES), -np.inf, np.float32)
    first[:, :TAGS] = np.where(rng.random((length, TAGS)) < 0.5, -np.inf,
                               -rng.random((length, TAGS)))
    first[np.arange(length), rng.integers(0, TAGS, length)] = -0.5
    best = plainly(grammar, first)[0, length, GOAL]
    nodes = chart.best_tree(grammar, first)
    assert nodes
    assert np.isclose(derived(grammar, first, nodes), best, rtol=1e-5)


def test_a_sentence_without_a_tree_has_none() -> None:
    grammar = grammar_of(TAG_PAIRS, [], [-1.0])
    assert chart.best_tree(grammar, np.zeros((4, STATES), np.float32) - np.inf) is None
    first = np.full((4, STATES), -np.inf, np.float32)
    first[:, 0] = -1
    assert chart.best_tree(grammar, first) is None
    assert chart.best_tree(grammar_of([*TAG_PAIRS, *WHOLE], [], [-1.0]), first)


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
