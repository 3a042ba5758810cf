"""The pairs of a split whose pictures can be read: each picture is opened once a run, early.

    pairs = readable_pairs(config, run, "train", world)
"""

from __future__ import annotations

from pathlib import Path

from blip_art.config import Config
from blip_art.data.check import BadPicture, check_pictures, refuse_bad
from blip_art.data.datasets import Pair, ground_truth, load_pairs, unique_pictures
from blip_art.data.pictures import find_picture
from blip_art.distributed import World
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, write_json
from blip_art.manifest import sha256_of_file


def pairs_file(config: Config, split: str) -> Path:
    """The list of pictures and captions of 'train', 'val' or 'test'."""
    return Path(config.data.annotations) / str(getattr(config.data, split))


def readable_pairs(config: Config, run: RunDir, split: str, world: World) -> list[Pair]:
    """The pairs of a split without those whose picture is missing or cannot be decoded.

    The verdict is kept in the run folder, with what it was about, so that a requeued job starts
    at once and another list or folder is looked at anew.

    Raises:
        UserError: there are such pictures and data.bad_pictures is 'fail', or no pair is left.
    """
    file = pairs_file(config, split)
    pairs = load_pairs(file, split)
    names = list(dict.fromkeys(pair.image for pair in pairs))
    verdict = run.bad_pictures(split)

    def check() -> None:
        question = {"list": sha256_of_file(file), "images": str(Path(config.data.images).resolve())}
        known = read_json(verdict) if verdict.exists() else {}
        if known.get("question") != question:
            paths = {str(find_picture(config.data.images, name)): name for name in names}
            bad = {paths[b.path]: b.reason for b in check_pictures(list(paths))}
        else:
            bad = known["bad"]
        if len(bad) == len(names):
            raise UserError(f"{file} has no pair with a readable picture; is data.images="
                            f"{config.data.images} the right folder?")
        if config.data.bad_pictures == "fail":
            refuse_bad([BadPicture(*item) for item in bad.items()], len(names),
                       "data.bad_pictures=skip")
        write_json(verdict, {"question": question, "bad": bad}, indent=1)
    world.on_main(check)
    bad = read_json(verdict)["bad"]
    return [pair for pair in pairs if pair.image not in bad]


def freeze_references(config: Config, run: RunDir, split: str, world: World) -> None:
    """Write the split's ground truth into the run folder; scoring reads it there.

    Pictures that were skipped have no caption, so their references are left out too.

    Raises:
        UserError: the ground truth is missing, or does not have every picture of the list.
    """
    def write() -> None:
        bad = read_json(run.bad_pictures(split))["bad"]
        pairs = load_pairs(pairs_file(config, split), split)
        gt_name = getattr(config.data, f"{split}_gt")
        gt_file = Path(config.data.annotations) / gt_name
        gt = read_json(gt_file) if gt_name else ground_truth(pairs)
        there = {str(entry["image_id"]) for entry in gt["annotations"]}
        pictures = unique_pictures(pairs)
        lost = [str(picture.image_id) for picture in pictures if str(picture.image_id) not in there]
        if lost:
            raise UserError(f"{gt_file if gt_name else pairs_file(config, split)} has no reference "
                            f"for {len(lost)} pictures (image_id {', '.join(lost[:3])}); set "
                            f"data.{split}_gt='' to make references from the list itself")
        skipped = {str(p.image_id) for p in pictures if p.image in bad}
        write_json(run.references(split), {**gt, **{
            key: [entry for entry in gt[key] if str(entry[id_name]) not in skipped]
            for key, id_name in (("images", "id"), ("annotations", "image_id"))}})
    world.on_main(write)
