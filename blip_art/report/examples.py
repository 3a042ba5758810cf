"""Captions to look at: a seeded choice of pictures, and the best and worst of each run.

    galleries, missing = choose_galleries(read_runs(["runs/demo"]), seed=0)

Pictures are shown when the run's configuration leads to them and Pillow is installed.
"""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from blip_art.config import DataConfig, load_config
from blip_art.errors import UserError
from blip_art.files import read_json, read_jsonl
from blip_art.report.tables import Run, comparable_groups
from blip_art.report.words import metric_title

SAMPLES = 12
EXTREMES = 4
THUMBNAIL_PIXELS = 320
HEADLINE_METRICS = ("SPICE", "CIDEr")


class Caption(NamedTuple):
    """What one run wrote for a picture; None when it wrote nothing."""

    run: str
    text: Optional[str]
    scores: Dict[str, float]


class Example(NamedTuple):
    """One picture: its thumbnail (JPEG bytes), what experts wrote, what the runs wrote."""

    image_id: str
    thumbnail: Optional[bytes]
    references: Tuple[str, ...]
    captions: Tuple[Caption, ...]


class Gallery(NamedTuple):
    """Examples under one heading."""

    title: str
    note: str
    examples: Tuple[Example, ...]


class _Captioned(NamedTuple):
    """The captions of the epoch of a run that is shown."""

    run: Run
    epoch: int
    captions: Dict[str, str]
    per_image: Dict[str, Dict[str, float]]


def choose_galleries(runs: Sequence[Run], seed: int = 0) -> Tuple[List[Gallery], List[str]]:
    """Validation captions of every run, and what kept any from being shown."""
    galleries: List[Gallery] = []
    missing: List[str] = []
    groups = comparable_groups(runs)
    for group in groups:
        shown = [c for c in (_captioned(run, missing) for run in group) if c]
        references = _references(group[0])
        if not shown:
            continue
        pictures = _Thumbnails(group, missing)
        names = ", ".join(c.run.name for c in shown)
        ids = sorted(set(references) or {i for c in shown for i in c.captions})
        chosen = sorted(random.Random(seed).sample(ids, min(SAMPLES, len(ids))), key=ids.index)
        galleries.append(Gallery(
            "Captions" if len(groups) == 1 else f"Captions: {names}",
            f"{len(chosen)} of {len(ids)} val pictures, chosen at random (seed {seed}); "
            + "; ".join(f"{c.run.name}: epoch {c.epoch:02d}" for c in shown),
            tuple(_example(i, shown, references, pictures) for i in chosen)))
        for one in shown:
            galleries += _extremes(one, references, pictures)
    return galleries, missing


def _captioned(run: Run, missing: List[str]) -> Optional[_Captioned]:
    """Captions of the best epoch, or of the latest when no epoch is known to be best."""
    epochs = [r.epoch for r in run.folder.predicted() if r.split == "val"]
    if not epochs:
        missing.append(f"{run.name}: no captions to show, no val prediction is there")
        return None
    best = run.best.epoch if run.best else None
    epoch = best if best in epochs and best is not None else epochs[-1]
    if best is not None and epoch != best:
        missing.append(f"{run.name}: the captions of its best epoch {best:02d} are not there; "
                       f"those shown are of epoch {epoch:02d}")
    path = run.folder.predictions("val", epoch)
    try:
        captions = {str(row["image_id"]): str(row["caption"]) for row in read_json(path)}
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} must be a list of {{image_id, caption}}; "
                        "caption the epoch again") from error
    scores = run.folder.scores("val", epoch)
    per_image = read_json(scores).get("per_image") if scores.exists() else None
    return _Captioned(run, epoch, captions, per_image if isinstance(per_image, dict) else {})


def _references(run: Run) -> Dict[str, Tuple[str, ...]]:
    path = run.folder.references("val")
    texts: Dict[str, List[str]] = {}
    for row in read_json(path)["annotations"] if path.exists() else []:
        texts.setdefault(str(row.get("image_id")), []).append(str(row.get("caption", "")))
    return {image_id: tuple(captions) for image_id, captions in texts.items()}


def _example(image_id: str, shown: Iterable[_Captioned], references: Dict[str, Tuple[str, ...]],
             pictures: _Thumbnails) -> Example:
    return Example(image_id, pictures.of(image_id), references.get(image_id, ()), tuple(
        Caption(one.run.name, one.captions.get(image_id), {
            m: one.per_image[image_id][m] for m in HEADLINE_METRICS
            if isinstance(one.per_image.get(image_id, {}).get(m), (int, float))})
        for one in shown))


def _extremes(one: _Captioned, references: Dict[str, Tuple[str, ...]],
              pictures: _Thumbnails) -> List[Gallery]:
    """The pictures that scored highest and lowest, by SPICE or else by CIDEr."""
    for metric in HEADLINE_METRICS:
        values = {i: s[metric] for i, s in one.per_image.items()
                  if isinstance(s.get(metric), (int, float)) and i in one.captions}
        ranked = sorted(values, key=lambda i: (-values[i], i))
        count = min(EXTREMES, len(ranked) // 2)
        if count:
            return [Gallery(
                f"{word} captions of {one.run.name}",
                f"by {metric_title(metric)} of the picture, epoch {one.epoch:02d}",
                tuple(_example(i, [one], references, pictures) for i in ids))
                for word, ids in (("Best", ranked[:count]), ("Worst", ranked[:-count - 1:-1]))]
    return []


class _Thumbnails:
    """Small JPEGs by image id; quietly none where the pictures are not."""

    def __init__(self, runs: Sequence[Run], missing: List[str]) -> None:
        self._missing, self._name = missing, runs[0].name
        self._made: Dict[str, Optional[bytes]] = {}
        self._paths: Dict[str, List[Path]] = {}
        try:
            from PIL import Image  # noqa: F401
        except ImportError:
            missing.append(f"{self._name}: pictures are not shown, Pillow is not installed; "
                           "run the report inside the image")
            return
        try:
            self._paths = picture_paths(load_config(runs[0].folder.config).data)
        except UserError as error:
            missing.append(f"{self._name}: pictures are not shown: {error}")

    def of(self, image_id: str) -> Optional[bytes]:
        """The thumbnail, made once; a picture that is not there or not whole is named once."""
        if image_id not in self._made and self._paths:
            path = next((p for p in self._paths.get(image_id, ()) if p.is_file()), None)
            self._made[image_id] = thumbnail(path) if path else None
            if self._made[image_id] is None:
                self._missing.append(f"{self._name}: picture of {image_id}: "
                                     + (f"{path} cannot be read" if path else "not found"))
        return self._made.get(image_id)


def picture_paths(data: DataConfig) -> Dict[str, List[Path]]:
    """Where the picture of each val image_id may be: as the pairs say, or by its bare name.

    Raises:
        UserError: the pair file is absent or no list of {image, image_id}.
    """
    pairs = Path(data.annotations) / data.val
    paths: Dict[str, List[Path]] = {}
    for row in _read_pairs(pairs):
        if not isinstance(row, dict) or not row.get("image"):
            raise UserError(f"{pairs} must hold pairs with an 'image'")
        image = Path(str(row["image"]))
        paths[str(row.get("image_id", image))] = [Path(data.images) / image,
                                                  Path(data.images) / image.name]
    return paths


def _read_pairs(path: Path) -> List[Any]:
    if not path.exists():
        raise UserError(f"no pairs at {path}; run the report where the training ran")
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    value = read_json(path)
    if not isinstance(value, list):
        raise UserError(f"{path} must hold a list, not {json.dumps(value)[:40]}")
    return value


def thumbnail(path: Path) -> Optional[bytes]:
    """A JPEG of at most THUMBNAIL_PIXELS a side, upright; None if the picture is damaged."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    out = io.BytesIO()
    small.save(out, format="JPEG", quality=82, optimize=True)
    return out.getvalue()
