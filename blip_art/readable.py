"""The pairs of a split whose pictures can be decoded, and the references of those pictures.

    pairs = readable_pairs(config, run, "train", world)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip_art.config import Config
from blip_art.data.check import find_bad_pictures, name_bad, refuse_bad
from blip_art.data.datasets import Pair, ground_truth, load_pairs, unique_pictures
from blip_art.distributed import World
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, read_json_object, write_json
from blip_art.manifest import sha256_of_file
from blip_art.resume_checks import pairs_file
from blip_art.score.coco import LONE_SURROGATES, references_by_id


def readable_pairs(config: Config, run: RunDir, split: str, world: World) -> list[Pair]:
    """The pairs of a split without those whose picture is missing or cannot be decoded.

    Which these are is kept in the run folder and stays as it is once there is a checkpoint, or
    captions of the split: the order of the data and the references depend on it.

    Raises:
        UserError: there are such pictures and data.bad_pictures is 'fail', no pair is left, or a
            picture has become unreadable that captions were already written for.
    """
    pairs = load_pairs(pairs_file(config, split), split)
    world.on_main(lambda: _check(config, run, split, pairs))
    bad = _read_verdict(run, split)["bad"]
    return [pair for pair in pairs if pair.image not in bad]


def _check(config: Config, run: RunDir, split: str, pairs: list[Pair]) -> None:
    file, images = pairs_file(config, split), config.data.images
    names = list(dict.fromkeys(pair.image for pair in pairs))
    bad = find_bad_pictures(images, names)
    if len(bad) == len(names):
        raise UserError(f"{file} has no pair with a readable picture; is data.images="
                        f"{images} the right folder?")
    if config.data.bad_pictures == "fail":
        refuse_bad(bad, len(names), images, "data.bad_pictures=skip")
    about = {"list": sha256_of_file(file), "images": str(Path(images).resolve())}
    kept = _kept_verdict(run, split, about)
    if kept is not None:
        later = {name: why for name, why in bad.items() if name not in kept}
        if later and split != "train":
            raise UserError(f"{len(later)} pictures of {file} could be decoded when {run.path} "
                            f"captioned them, and cannot now ({name_bad(later)}); put them back, "
                            "or choose another --run")
        if later:
            print(f"{len(later)} pictures cannot be decoded any more ({name_bad(later)}): the next "
                  "pair takes the place of each, so that the others keep theirs", flush=True)
        bad = kept
    write_json(run.bad_pictures(split), {"question": about, "bad": bad}, indent=1)


def _kept_verdict(run: RunDir, split: str, about: dict[str, str]) -> dict[str, Any] | None:
    """The bad pictures that the run was made without, if something was made of the split."""
    made = (bool(run.saved_checkpoints()) if split == "train"
            else any(result.split == split for result in run.predicted()))
    if not made or not run.bad_pictures(split).exists():
        return None
    verdict = _read_verdict(run, split)
    bad: dict[str, Any] = verdict["bad"]
    return bad if verdict["question"] == about else None


def _read_verdict(run: RunDir, split: str) -> dict[str, Any]:
    """What `_check` wrote: bad pictures by their `image` entry, and what was asked.

    Raises:
        UserError: the file is damaged.
    """
    path = run.bad_pictures(split)
    verdict = read_json_object(path)
    if not isinstance(verdict.get("bad"), dict) or "question" not in verdict:
        raise UserError(f"{path} is not as training wrote it, and the order of the data depends "
                        "on it; put the whole file there, or choose another --run")
    return verdict


def freeze_references(config: Config, run: RunDir, split: str, world: World) -> None:
    """Write the split's ground truth into the run folder; scoring reads it there.

    Pictures that were skipped have no caption, so their references are left out too.

    Raises:
        UserError: the ground truth is missing, or does not have every picture of the list.
    """
    def write() -> None:
        bad = _read_verdict(run, split)["bad"]
        pairs = load_pairs(pairs_file(config, split), split)
        gt_name = getattr(config.data, f"{split}_gt")
        gt_file = Path(config.data.annotations) / gt_name
        gt = _read_truth(gt_file, f"data.{split}_gt") if gt_name else ground_truth(pairs)
        there = {str(entry["image_id"]) for entry in gt["annotations"]}
        pictures = unique_pictures(pairs)
        lost = [str(picture.image_id) for picture in pictures if str(picture.image_id) not in there]
        if lost:
            raise UserError(f"{gt_file if gt_name else pairs_file(config, split)} has no reference "
                            f"for {len(lost)} pictures (image_id {', '.join(lost[:3])}); set "
                            f"data.{split}_gt='' to make references from the list itself")
        skipped = {str(p.image_id) for p in pictures if p.image in bad}
        write_json(run.references(split), {**gt, **{
            key: [entry for entry in gt.get(key) or () if str(entry[id_name]) not in skipped]
            for key, id_name in (("images", "id"), ("annotations", "image_id"))}})
    world.on_main(write)


def _read_truth(path: Path, setting: str) -> dict[str, Any]:
    """A user's COCO ground truth, with whole characters only: halves cannot be written again."""
    text = json.dumps(read_json(path), ensure_ascii=False)
    gt = json.loads(LONE_SURROGATES.sub("\ufffd", text))
    references_by_id(gt, str(path))  # names the entry that is wrong
    if not isinstance(gt, dict) or "annotations" not in gt:
        raise UserError(f"{path} must be COCO ground truth, an object with annotations and images; "
                        f"or set {setting}='' to make references from the list itself")
    return gt
