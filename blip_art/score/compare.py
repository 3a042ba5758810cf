"""Two sets of captions of the same pictures: which is better, and is that more than chance?

    python -m blip_art.score compare runs/a/scores/val_03.json runs/b/scores/val_07.json
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

from blip_art.errors import UserError
from blip_art.files import PathLike, read_json
from blip_art.score import bootstrap
from blip_art.score.bootstrap import POOLED, Sample
from blip_art.score.coco import read_captions, read_references
from blip_art.score.engine import Engine
from blip_art.score.record import record
from blip_art.score.references import same_references

Record = Mapping[str, Any]


def compare(first: Record, second: Record, metrics: Sequence[str] = (),
            resamples: int = bootstrap.RESAMPLES) -> Dict[str, Any]:
    """Paired bootstrap over pictures of two contents of score files (see bootstrap).

    Args:
        metrics: which of bleu, meteor, …; none are all that both have.

    Raises:
        UserError: other pictures or references, or no metric that both have.
    """
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
    return {"pictures": len(first["per_image"]), "metrics": rows,
            "bootstrap": bootstrap.settings(resamples)}


def read_record(path: PathLike) -> Dict[str, Any]:
    """A score file.

    Raises:
        UserError: not a whole one of this version.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("per_image"), dict):
        raise UserError(f"{path} is no score file; give files that --json wrote or that are in "
                        "RUN/scores/, or add --refs REFS.json to compare two results files")
    if not isinstance(found.get("references"), dict) or "sha256" not in found["references"]:
        raise UserError(f"{path} does not say what its references were: an older version wrote "
                        "it; score it again")
    metrics, rows = found.get("metrics"), found["per_image"]
    if not isinstance(metrics, dict) or not rows or not all(
            isinstance(row, dict) and set(metrics) <= set(row) for row in rows.values()):
        raise UserError(f"{path} does not have every metric for every picture; score it again")
    for kind in POOLED:
        if kind.names[0] in metrics and set(found.get(kind.counts, ())) != set(rows):
            raise UserError(f"{path} has {kind.names[0]} but not the counts it is made of; "
                            "remove it and score it again")
    return found


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
