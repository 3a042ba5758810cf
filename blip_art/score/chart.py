"""The chart parser under SPICE: the best tree of a sentence by a probabilistic grammar, exactly.

    nodes = best_tree(grammar, first)      first: (words, states) scores of each word's categories

The same exhaustive search as CoreNLP's ExhaustivePCFGParser, in the same single-precision sums, so
that every score and thereby every tree is the same to the bit; compiled for this processor by numba
and laid out for it: all splits of a span that a rule may use stand side by side in memory and are
added eight at a time. Of the CKY algorithm: Jurafsky and Martin, Speech and Language Processing,
3rd ed., chapter 18; of the trees: Huang and Chiang 2005, Better k-best Parsing, with k = 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
DEAD = np.float32(-np.inf)
NOWHERE = np.int16(np.iinfo(np.int16).max)
LONGEST = int(NOWHERE) - LANES
# Of a chart in which every state has a score everywhere; a text of 60 words used .6 of it.
BYTES_A_WORD_SQUARED, BYTES_A_WORD = 26_000, 300_000
# What numba raises for a damaged file of its own, or a full disk, once a function.
MOST_TRIES = 8
DAMAGED = (OSError, EOFError, ValueError, KeyError, AttributeError, ImportError, IndexError,
           pickle.UnpicklingError)
# A node has at most two children; chains of single ones are short, but a grammar might loop.
NODES_A_WORD = 60


class Grammar(NamedTuple):
    """Numbered categories ("states") and the rules among them, each list in CoreNLP's order.

    `x_at[s]:x_at[s + 1]` is where the rules of state s stand in the arrays x_...; scores are
    logarithms.
    """

    binary_at: np.ndarray
    """By left child."""
    binary_right: np.ndarray
    binary_parent: np.ndarray
    binary_score: np.ndarray
    closed_at: np.ndarray
    """Chains of unary rules, as one each, by child."""
    closed_parent: np.ndarray
    closed_score: np.ndarray
    split_at: np.ndarray
    """The binary rules again, by parent."""
    split_left: np.ndarray
    split_right: np.ndarray
    split_score: np.ndarray
    unary_at: np.ndarray
    """Single unary rules, by parent."""
    unary_child: np.ndarray
    unary_score: np.ndarray
    is_right: np.ndarray
    """Whether a state is ever a right child."""
    is_tag: np.ndarray
    """Whether it is a word's category."""
    goal: int
    """The state of a whole sentence."""


class Chart(NamedTuple):
    """Scores of states by start and end: a row of ends for each start and state that has any."""

    scores: np.ndarray
    """All rows, one after the other; what is read beyond the last is not used."""
    at: np.ndarray
    """(words, states): where the row's end 0 would stand; 0 for no row."""
    first: np.ndarray
    """(words, states): the least end that has a score; NOWHERE for none."""
    last: np.ndarray
    """(words, states): the greatest."""


def chart_mb(words: int) -> int:
    """Memory that parsing a sentence takes, rather more than less."""
    return 5 + ((words * BYTES_A_WORD + words ** 2 * BYTES_A_WORD_SQUARED) >> 20)


def best_tree(grammar: Grammar, first: np.ndarray) -> Optional[List[Tuple[int, int, int]]]:
    """The nodes of the best tree, parents before children and left before right.

    Args:
        first: (words, states) float32; the last word is the sentence's boundary.

    Returns:
        (state, start, number of children) each; a node without children is a word's category.
        None if the grammar has no tree.

    Raises:
        MemoryError: there was not enough, or the numbers of a sentence so long do not fit.
    """
    words, states = first.shape
    if words > LONGEST:
        raise MemoryError
    chart = Chart(np.empty(states * words * (words // 2 + 1) + LANES + words + 1, np.float32),
                  np.zeros((words, states), np.int64),
                  np.full((words, states), NOWHERE, np.int16),
                  np.full((words, states), -1, np.int16))
    _fill(grammar, chart, first)
    nodes = np.empty((NODES_A_WORD * words, 3), np.int64)
    count = _extract(grammar, chart, words, nodes)
    if count < 0:
        raise MemoryError
    return [tuple(node) for node in nodes[:count].tolist()] or None


def compile_all() -> None:
    """Compile: seconds, unless $BLIP_ART_COMPILED names a folder with the result."""
    for _ in range(MOST_TRIES):
        try:
            _try_all()
            return
        except DAMAGED:
            # A file cannot be read: away with ours. Or one cannot be written: then its function
            # is compiled all the same, and the next one's turn comes.
            for path in Path(_fill.stats.cache_path or "/nowhere").glob("chart.*.nb?"):
                path.unlink(missing_ok=True)
    _try_all()


def _try_all() -> None:
    none = np.zeros(3, np.int32)
    ids, score = np.zeros(1, np.uint16), np.zeros(1, np.float32)
    flags = np.zeros(2, np.bool_)
    best_tree(Grammar(none, ids, ids, score, none, ids, score, none, ids, ids, score, none, ids,
                      score, flags, flags, 0), np.full((2, 2), DEAD))


def _kept_in() -> str:
    """Where compiled code may stay: a folder for this processor, this file and this numba.

    numba names its files by the function alone, and those who start together on other processors,
    or before and after a change, might leave one's index beside the other's code.
    """
    if not os.environ.get("BLIP_ART_COMPILED"):
        return ""
    made_of = (numba.__version__, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(),
               Path(__file__).read_text(encoding="utf-8"))
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    return str(Path(os.environ["BLIP_ART_COMPILED"], key))


KEPT_IN = _kept_in()
numba.config.CACHE_DIR = KEPT_IN  # type: ignore[attr-defined]


def _compiled(function: Callable[..., Any]) -> Any:
    # Scores are never NaN: without a word on that, a maximum would be five instructions.
    njit = partial(numba.njit, nogil=True, fastmath={"nnan", "nsz"}, boundscheck=False)
    with contextlib.suppress(RuntimeError):  # no folder there that can be written to
        return njit(cache=bool(KEPT_IN))(function)
    return njit()(function)


@intrinsic
def _best_of_lanes(_: Any, score: Any, xs: Any, x: Any, ys: Any, y: Any, count: Any) -> Any:
    """The maximum over m < min(count, LANES) of (score + xs[x + m]) + ys[y + m], in vectors.

    numba finds none for the loop this is: it unrolls it first.
    """
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, index = ir.FloatType(), ir.IntType(32)
        vector = ir.VectorType(number, LANES)
        undefined = ir.Constant(vector, ir.Undefined)

        def loaded(kind: Any, array: Any, at: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            address = builder.bitcast(builder.gep(data, [at]), vector.as_pointer())
            return builder.load(address, align=4)

        single = builder.insert_element(undefined, args[0], ir.Constant(index, 0))
        everywhere = ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
        total = builder.fadd(builder.shuffle_vector(single, undefined, everywhere),
                             loaded(signature.args[1], args[1], args[2]))
        total = builder.fadd(total, loaded(signature.args[3], args[3], args[4]))
        lanes = ir.VectorType(index, LANES)
        counted = builder.insert_element(ir.Constant(lanes, ir.Undefined), args[5],
                                         ir.Constant(index, 0))
        counted = builder.shuffle_vector(counted, ir.Constant(lanes, ir.Undefined), everywhere)
        inside = builder.icmp_signed("<", ir.Constant(lanes, list(range(LANES))), counted)
        dead = ir.Constant(vector, [float("-inf")] * LANES)
        total = builder.select(inside, total, dead)
        maximum = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(number, [vector]),
            f"llvm.vector.reduce.fmax.v{LANES}f32")
        return builder.call(maximum, [total], fastmath=("nnan", "nsz"))

    return types.float32(types.float32, xs, types.int64, ys, types.int64, types.int32), generate


@_compiled
def _fill(grammar, chart, words):
    """Fill the chart, end by end, for each from the nearest start to the first.

    So all that end at the same place stay in the processor's cache: `ending` holds their scores,
    a row of starts for each right child.
    """
    length, states = words.shape
    cell = np.empty(states, np.float32)
    lefts = np.empty((length, states), np.int32)  # those that can be left children, by start
    n_lefts = np.zeros(length, np.int32)
    ending = np.empty(states * length + LANES, np.float32)
    ending_at = np.empty(states, np.int64)
    nearest = np.empty(states, np.int16)
    farthest = np.empty(states, np.int16)
    most = np.max(grammar.binary_at[1:] - grammar.binary_at[:-1]) + 1
    usable = (np.empty(most, np.int32), np.empty(most, np.int16), np.empty(most, np.int16))
    climbers = np.flatnonzero(grammar.closed_at[1:] > grammar.closed_at[:-1])
    used = length + 1
    for end in range(1, length + 1):
        farthest[:] = NOWHERE
        nearest[:] = -1
        ending_used = 0
        for start in range(end - 1, -1, -1):
            if start == end - 1:
                cell[:] = words[start]
            elif end == length and start > 0:
                continue  # the boundary joins nothing but the whole sentence
            else:
                cell[:] = DEAD
                _join(grammar, chart, start, lefts[start, :n_lefts[start]], ending, ending_at,
                      farthest, nearest, usable, cell)
                _climb(grammar, climbers, cell)
            for state in range(states):
                score = cell[state]
                if score == DEAD:
                    continue
                if chart.at[start, state] == 0:
                    chart.at[start, state] = used - start - 1
                    chart.first[start, state] = end
                    size = length - start
                    chart.scores[used:used + size] = DEAD
                    used += size
                    if grammar.binary_at[state + 1] > grammar.binary_at[state]:
                        lefts[start, n_lefts[start]] = state
                        n_lefts[start] += 1
                chart.last[start, state] = end
                chart.scores[chart.at[start, state] + end] = score
                if grammar.is_right[state]:
                    if nearest[state] < 0:
                        nearest[state] = start
                        ending_at[state] = ending_used
                        ending[ending_used:ending_used + end] = DEAD
                        ending_used += end
                    farthest[state] = start
                    ending[ending_at[state] + start] = score


@_compiled
def _join(grammar, chart, start, lefts, ending, ending_at,
          farthest, nearest, usable, cell):
    """What two neighbours make, the left one beginning at `start`: the best into `cell`."""
    rules, least, more = usable
    for left in lefts:
        first, last = chart.first[start, left], chart.last[start, left]
        count = 0
        for rule in range(grammar.binary_at[left], grammar.binary_at[left + 1]):
            # Without a branch, which the processor would guess wrongly.
            right = grammar.binary_right[rule]
            least[count] = max(first, farthest[right])
            more[count] = min(last, nearest[right]) - least[count]
            rules[count] = rule
            count += more[count] >= 0
        row = chart.at[start, left]
        for n in range(count):
            rule = rules[n]
            score = grammar.binary_score[rule]
            x = row + least[n]
            y = ending_at[grammar.binary_right[rule]] + least[n]
            left_over = np.int32(more[n]) + np.int32(1)
            best = _best_of_lanes(score, chart.scores, x, ending, y, left_over)
            while left_over > LANES:
                x += LANES
                y += LANES
                left_over -= LANES
                best = max(best, _best_of_lanes(score, chart.scores, x, ending, y, left_over))
            parent = grammar.binary_parent[rule]
            cell[parent] = max(cell[parent], best)


@_compiled
def _climb(grammar, climbers, cell):
    """Unary rules, in CoreNLP's order of children (`climbers`): each sees what was made before."""
    for child in climbers:
        score = cell[child]
        if score == DEAD:
            continue
        for rule in range(grammar.closed_at[child], grammar.closed_at[child + 1]):
            parent = grammar.closed_parent[rule]
            cell[parent] = max(cell[parent], score + grammar.closed_score[rule])


@_compiled
def _score(chart, state, start, end):
    if end < chart.first[start, state] or end > chart.last[start, state]:
        return np.float64(DEAD)
    return np.float64(chart.scores[chart.at[start, state] + end])


@_compiled
def _extract(grammar, chart, length, nodes):
    """Write the best tree's nodes; of equal ones the first, in double precision, is the best.

    Returns:
        How many; -1 if they were too many, or something has a score that nothing gives.
    """
    if _score(chart, grammar.goal, 0, length) == DEAD:
        return 0
    todo = np.empty((len(nodes) + 2, 3), np.int64)
    todo[0] = grammar.goal, 0, length
    left, count = 1, 0
    while left:
        if count == len(nodes):
            return -1
        left -= 1
        state, start, end = todo[left]
        children, first, second, split = _best_way(grammar, chart, state, start, end)
        if not children and end > start + 1:
            return -1
        nodes[count] = state, start, children
        count += 1
        if children == 2:
            todo[left] = second, split, end
            left += 1
        if children:
            todo[left] = first, start, split
            left += 1
    return count


@_compiled
def _best_way(grammar, chart, state, start, end):
    """How many children the best tree of this span has, which, and where the first one ends."""
    children, first, second, split = 0, 0, 0, 0
    if grammar.is_tag[state] and end == start + 1:
        return children, first, second, split
    best = np.float64(DEAD)
    for middle in range(start + 1, end):
        for rule in range(grammar.split_at[state], grammar.split_at[state + 1]):
            score = np.float64(grammar.split_score[rule])
            score += _score(chart, grammar.split_left[rule], start, middle)
            score += _score(chart, grammar.split_right[rule], middle, end)
            if score > best:
                best, children, split = score, 2, middle
                first = np.int64(grammar.split_left[rule])
                second = np.int64(grammar.split_right[rule])
    for rule in range(grammar.unary_at[state], grammar.unary_at[state + 1]):
        score = np.float64(grammar.unary_score[rule])
        score += _score(chart, grammar.unary_child[rule], start, end)
        if score > best:
            best, children, split = score, 1, end
            first = np.int64(grammar.unary_child[rule])
    return children, first, second, split
