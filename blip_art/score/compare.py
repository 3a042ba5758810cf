"""Two sets of captions of the same pictures: which is better, and is that more than chance?

    python -m blip_art.score compare runs/a/scores/val_03.json runs/b/scores/val_07.json
"""

from __future__ import annotations

import json
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from blip_art.errors import UserError
from blip_art.files import PathLike, read_json
from blip_art.score import bootstrap
from blip_art.score.bootstrap import POOLED, Pooled, Sample
from blip_art.score.coco import read_captions, read_references
from blip_art.score.engine import Engine
from blip_art.score.record import record
from blip_art.score.references import same_references
from blip_art.score.shown import LEAST_PICTURES, is_shown_as_zero

Record = Mapping[str, Any]
# A metric's value and what its pictures give may differ by the order of additions.
TOLERANCE = 1e-6
# No score and no count is as large; sums of such numbers are finite still.
LARGEST = 1e15
AGAIN = "remove the file and score its captions again"


def compare(first: Record, second: Record, metrics: Sequence[str] = (),
            resamples: int = bootstrap.RESAMPLES) -> Dict[str, Any]:
    """Intervals and p-values of the differences between two contents of score files.

    Args:
        metrics: which of bleu, meteor, …; none are all that both have.
        resamples: draws of pictures for intervals, and as many times captions are swapped for p.

    Raises:
        UserError: other pictures or references, no metric that both have, too few resamples.
    """
    bootstrap.check_resamples(resamples)
    _refuse_other_pictures(list(first["per_image"]), list(second["per_image"]))
    if not same_references(first["references"], second["references"]):
        raise UserError("A and B were scored against different references of the same pictures; "
                        "their scores do not compare")
    names = [name for name in first["metrics"] if name in second["metrics"]
             and (not metrics or name.lower().startswith(tuple(metrics)))]
    if not names:
        raise UserError(f"no metric to compare: A has {_listed(first['metrics'])}, "
                        f"B {_listed(second['metrics'])}; score them with the same --metrics")
    order = list(first["per_image"])
    found = bootstrap.differences(Sample.of(first, names, order), Sample.of(second, names, order),
                                  resamples)
    rows = {name: {
        "a": first["metrics"][name], "b": second["metrics"][name],
        "difference": second["metrics"][name] - first["metrics"][name],
        "interval": [found[name].low, found[name].high], "p_value": found[name].p_value}
        for name in names}
    for row in rows.values():
        row["better"] = _better(row, len(order))
    return {"pictures": len(order), "metrics": rows, "bootstrap": bootstrap.settings(resamples),
            "randomization": {"trials": resamples, "seed": bootstrap.SEED, "unit": "picture"}}


def _better(row: Mapping[str, Any], pictures: int) -> Optional[str]:
    """'A' or 'B' where the difference is more than chance, None where that cannot be said."""
    if (pictures < LEAST_PICTURES or row["p_value"] >= 1 - bootstrap.LEVEL
            or is_shown_as_zero(row["difference"])):
        return None
    return "B" if row["difference"] > 0 else "A"


def read_record(path: PathLike) -> Dict[str, Any]:
    """A score file.

    Raises:
        UserError: not a whole one of this version, or a value in it is no number.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("per_image"), dict):
        raise UserError(f"{path} is no score file; give files that --json wrote or that are in "
                        "RUN/scores/, or add --refs REFS.json to compare two results files")
    references = found.get("references")
    if not isinstance(references, dict) or not isinstance(references.get("sha256"), str):
        raise UserError(f"{path} does not say what its references were: an older version wrote "
                        "it; score it again")
    for key in ("metrics", "failed"):
        if not isinstance(found.get(key), dict):
            raise UserError(f"{path}: '{key}' is not an object of metrics; {AGAIN}")
    _check_per_image(path, found["metrics"], found["per_image"])
    for kind in POOLED:
        if set(kind.names) & set(found["metrics"]):
            _check_counts(path, kind, found.get(kind.counts), found["per_image"])
    _check_sums(path, found)
    return found


def _check_per_image(path: PathLike, metrics: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Every metric has a value for every picture and for all of them."""
    if not rows:
        raise UserError(f"{path} has no pictures; {AGAIN}")
    for key, row in rows.items():
        for name in metrics:
            if not isinstance(row, dict) or name not in row:
                raise UserError(f"{path}: picture {key} has no {name}; {AGAIN}")
            if not _is_number(row[name]):
                raise UserError(f"{path}: {name} of picture {key} is {_as_json(row[name])}, "
                                f"not a number; {AGAIN}")
    for name, value in metrics.items():
        if not _is_number(value):
            raise UserError(f"{path}: {name} is {_as_json(value)}, not a number; {AGAIN}")


def _check_counts(path: PathLike, kind: Pooled, counts: Any, rows: Mapping[str, Any]) -> None:
    """Every picture has the counts that a pooled metric is made of."""
    if not isinstance(counts, dict) or set(counts) != set(rows):
        raise UserError(f"{path} has {kind.names[0]} but not the counts it is made of "
                        f"('{kind.counts}') for every picture; {AGAIN}")
    for key, row in counts.items():
        if not (isinstance(row, list) and len(row) == kind.size
                and all(_is_number(count) and count >= 0 for count in row)):
            raise UserError(f"{path}: '{kind.counts}' of picture {key} must be {kind.size} numbers "
                            f"from 0, not {_as_json(row)}; {AGAIN}")


def _check_sums(path: PathLike, found: Record) -> None:
    """The pictures give the values of the whole, as they do in a file that nobody has cut."""
    once = np.ones((1, len(found["per_image"])))
    for name, values in Sample.of(found).drawn(once).items():
        value, given = found["metrics"][name], float(values[0])
        if not math.isclose(value, given, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise UserError(f"{path}: {name} is {value:.6g}, but its pictures give {given:.6g}; "
                            f"{AGAIN}")


def _is_number(value: Any) -> bool:
    # A whole number may have more digits than a float can hold.
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) <= LARGEST)


def _as_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def score_both(references: PathLike, results: Sequence[PathLike], engine: Engine,
               metrics: Sequence[str], subset: bool = False) -> Tuple[Record, Record]:
    """Score two results files against the same references, which are parsed once."""
    texts = read_references(references)
    # Both are read before the first is scored.
    first, second = (read_captions(path) for path in results)
    _refuse_other_pictures(list(first), list(second))
    return (record(engine, texts, first, metrics, subset=subset, resamples=0),
            record(engine, texts, second, metrics, subset=subset, resamples=0))


def _refuse_other_pictures(first: List[str], second: List[str]) -> None:
    keys = {"A": set(first), "B": set(second)}
    alone = ([(key, "A") for key in first if key not in keys["B"]]
             or [(key, "B") for key in second if key not in keys["A"]])
    if alone:
        raise UserError(f"A has {len(first):,} pictures and B {len(second):,}, not the same: "
                        f"picture {alone[0][0]} is in {alone[0][1]} only; a paired comparison "
                        "needs the same pictures")


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
