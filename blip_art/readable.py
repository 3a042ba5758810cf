"""The pairs of a split whose pictures can be read: each picture is opened once a run, early.

    pairs = readable_pairs(config, run, "train", world)
"""

from __future__ import annotations

from pathlib import Path

from blip_art.config import Config
from blip_art.data.check import check_pictures, refuse_bad
from blip_art.data.datasets import Pair, ground_truth, load_pairs, unique_pictures
from blip_art.data.pictures import find_picture
from blip_art.distributed import World
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, write_json


def pairs_file(config: Config, split: str) -> Path:
    """The list of pictures and captions of 'train', 'val' or 'test'."""
    return Path(config.data.annotations) / str(getattr(config.data, split))


def readable_pairs(config: Config, run: RunDir, split: str, world: World) -> list[Pair]:
    """The pairs of a split without those whose picture is missing or cannot be decoded.

    The verdict is kept in the run folder, so that a requeued job starts at once.

    Raises:
        UserError: there are such pictures and data.bad_pictures is 'fail', or no pair is left.
    """
    pairs = load_pairs(pairs_file(config, split), split)
    verdict = run.bad_pictures(split)

    def check() -> None:
        if verdict.exists():
            return
        names = {str(find_picture(config.data.images, p.image)): p.image for p in pairs}
        bad = check_pictures(list(names), workers=max(1, config.data.num_workers))
        if config.data.bad_pictures == "fail":
            refuse_bad(bad, len(names), "data.bad_pictures=skip")
        write_json(verdict, {names[b.path]: b.reason for b in bad}, indent=1)
    world.on_main(check)
    bad = read_json(verdict)
    kept = [pair for pair in pairs if pair.image not in bad]
    if not kept:
        raise UserError(f"{pairs_file(config, split)} has no pair with a readable picture; "
                        "is data.images the right folder?")
    return kept


def freeze_references(config: Config, run: RunDir, split: str) -> None:
    """Write the split's ground truth into the run folder, once; scoring reads it there.

    Pictures that were skipped have no caption, so their references are left out too.
    """
    if run.references(split).exists():
        return
    bad = read_json(run.bad_pictures(split))
    pairs = load_pairs(pairs_file(config, split), split)
    gt_name = getattr(config.data, f"{split}_gt")
    gt = read_json(Path(config.data.annotations) / gt_name) if gt_name else ground_truth(pairs)
    skipped = {str(p.image_id) for p in unique_pictures(pairs) if p.image in bad}
    write_json(run.references(split), {**gt, **{
        key: [entry for entry in gt[key] if str(entry[id_name]) not in skipped]
        for key, id_name in (("images", "id"), ("annotations", "image_id"))}})
