"""Captions to look at: a seeded choice of pictures, and the best and worst of each run.

    galleries, missing = choose_galleries(read_runs(["runs/demo"]), seed=0)

Pictures are shown when the run's configuration leads to them and Pillow is installed.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from blip_art.config import load_config
from blip_art.data.datasets import load_pairs
from blip_art.errors import UserError
from blip_art.files import PathLike, read_json
from blip_art.report.choice import is_many, ranked
from blip_art.report.tables import Run, comparable_groups, numbers
from blip_art.report.words import metric_title

SAMPLES = 12
# A sweep would fill the page: captions of its best runs are enough to read.
MAX_RUNS = 6
EXTREMES = 4
# The same of very many runs, whose page must stay small enough to be mailed.
FEWER = (6, 2, 2)
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
    groups, many = comparable_groups(runs), is_many(runs)
    samples, extremes, max_runs = FEWER if many else (SAMPLES, EXTREMES, MAX_RUNS)
    for group in groups[:1] if many else groups:
        best = ranked(group)[:max_runs]
        shown = [c for c in (_captioned(run, missing) for run in group if run in best) if c]
        references = _references(group[0])
        if not shown:
            continue
        pictures = _Thumbnails(group, missing)
        names = ", ".join(c.run.name for c in shown)
        left_out = f"; of the {max_runs} best of {len(group)} runs" * (len(group) > max_runs)
        ids = sorted(set(references) or {i for c in shown for i in c.captions})
        chosen = sorted(random.Random(seed).sample(ids, min(samples, len(ids))), key=ids.index)
        which = f"all {len(ids)} val pictures; " if len(ids) == len(chosen) else (
            f"{len(chosen)} of {len(ids)} val pictures, chosen at random (seed {seed}); ")
        galleries.append(Gallery(
            "Captions" if len(groups) == 1 else f"Captions: {names}",
            which + "; ".join(f"{c.run.name}: epoch {c.epoch:02d}" for c in shown)
            + left_out,
            tuple(_example(i, shown, references, pictures) for i in chosen)))
        # Of many runs, the best one's are enough.
        for one in shown if len(shown) <= 2 else [c for c in shown if c.run is best[0]]:
            galleries += _extremes(one, references, pictures, extremes)
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
    per_image = (read_json(scores).get("per_image") or {}) if scores.exists() else {}
    return _Captioned(run, epoch, captions, {
        str(i): numbers(values, f"'per_image' of {scores}") for i, values in per_image.items()})


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
            metric: one.per_image[image_id][metric] for metric in HEADLINE_METRICS
            if metric in one.per_image.get(image_id, {})})
        for one in shown))


def _extremes(one: _Captioned, references: Dict[str, Tuple[str, ...]],
              pictures: _Thumbnails, most: int) -> List[Gallery]:
    """The pictures that scored highest and lowest, by SPICE or else by CIDEr."""
    for metric in HEADLINE_METRICS:
        values = {i: s[metric] for i, s in one.per_image.items()
                  if metric in s and i in one.captions}
        ids = sorted(values, key=lambda i: (-values[i], i))
        count = min(most, len(ids) // 2)
        if count:
            return [Gallery(
                f"{word} captions of {one.run.name}",
                f"by {metric_title(metric)} of the picture, epoch {one.epoch:02d}",
                tuple(_example(i, [one], references, pictures) for i in chosen))
                for word, chosen in (("Best", ids[:count]), ("Worst", ids[:-count - 1:-1]))]
    return []


class _Thumbnails:
    """Small JPEGs by image id; none where the pictures are not, and the reason is named."""

    def __init__(self, runs: Sequence[Run], missing: List[str]) -> None:
        self._missing, self._name = missing, runs[0].name
        self._made: Dict[str, Optional[bytes]] = {}
        self._images: Dict[str, str] = {}
        config = runs[0].folder.config
        try:
            from blip_art.data import pictures  # noqa: F401
        except ImportError:
            self._name_hole("Pillow and NumPy are not installed here; run it inside the image")
            return
        if not config.exists():
            self._name_hole("there is no config.yaml that says where they are")
            return
        try:
            data = load_config(config).data
            pairs = load_pairs(Path(data.annotations, data.val), "val")
        except UserError as error:
            self._name_hole(str(error))
            return
        self._root = data.images
        self._images = {str(pair.image_id): pair.image for pair in pairs}

    def _name_hole(self, why: str) -> None:
        self._missing.append(f"{self._name}: pictures are not shown: {why}")

    def of(self, image_id: str) -> Optional[bytes]:
        """The thumbnail, made once; a picture that is not there or not whole is named once."""
        if image_id not in self._made and self._images:
            try:
                self._made[image_id] = thumbnail(self._root, self._images[image_id])
            except KeyError:
                self._missing.append(f"{self._name}: picture of {image_id}: not in the val list")
                self._made[image_id] = None
            except UserError as error:
                self._missing.append(f"{self._name}: picture of {image_id}: {error}")
                self._made[image_id] = None
        return self._made.get(image_id)


def thumbnail(images_root: PathLike, entry: str) -> bytes:
    """A JPEG of a picture, upright and at most THUMBNAIL_PIXELS a side.

    Raises:
        UserError: the picture is missing or damaged.
    """
    from blip_art.data.pictures import find_picture, read_picture

    picture = read_picture(find_picture(images_root, entry), THUMBNAIL_PIXELS, draft=False)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=82, optimize=True)
    return out.getvalue()
