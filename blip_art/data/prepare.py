"""An archive's notations to the annotation files of a run, with a manifest of what was done.

    prepare(open_archive("archive/"), "annotation", Options(split="seed", style=Style("seed")))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

from blip_art.data.archive import Archive
from blip_art.data.captions import Captioner, Captions, Style
from blip_art.data.datasets import Pair, ground_truth
from blip_art.data.iconclass import Iconclass
from blip_art.data.progress import progress
from blip_art.data.splits import SEED_COUNTS, Split, has_seed_names, split_pictures
from blip_art.errors import UserError
from blip_art.files import PathLike, write_json

PARTS = ("Train", "Val", "Test")


@dataclass(frozen=True)
class Options:
    """What `prepare` can be asked for."""

    split: str = ""
    """seed, random or grouped; '' is seed where all its names are there, else random."""
    style: Style = field(default_factory=Style)
    """How texts become captions."""
    language: str = "en"
    """Language of the texts."""
    seed: int = 42
    """Seed of the random and grouped splits."""
    check: bool = True
    """Decode every picture that the annotations name."""
    bad_pictures: str = "fail"
    """Pictures that cannot be decoded: 'fail', or 'skip' them."""


class Prepared(NamedTuple):
    """What the annotation files hold, and the manifest beside them."""

    split: Split
    captions: Dict[str, Captions]
    texts: Dict[str, List[str]]
    manifest: Dict[str, Any]


def prepare(archive: Archive, output: PathLike, options: Options) -> Dict[str, Any]:
    """Write annotations, ground truth and manifest.json to `output`; return the manifest.

    Raises:
        UserError: bad pictures, no captions at all, or an output folder that refuses writing.
    """
    output = Path(output)
    # The first write tells whether the folder can be written to, before the long work.
    write_json(output / "manifest.json", {"state": "unfinished; run prepare again"})
    prepared = annotate(archive, options)
    truth_paths = dict(zip(PARTS[1:], truth_files(output)))
    for name, part in zip(PARTS, prepared.split):
        captions = [(prepared.captions[image], image, number) for image, number in part]
        joined = [_record(of_one.joined, image, number) for of_one, image, number in captions]
        write_json(output / f"iconclass{name}.json", joined)
        write_json(output / f"iconclass{name}_split.json", [
            _record(caption, image, number)
            for of_one, image, number in captions for caption in of_one.split])
        if name in truth_paths:
            truth = ground_truth(Pair(r["image"], (r["caption"],), r["image_id"]) for r in joined)
            write_json(truth_paths[name], truth)
    # Notation to text as it was now: a later version of the vocabulary may say it otherwise.
    write_json(output / "texts.json", {
        "iconclass": prepared.manifest["iconclass"], "language": options.language,
        "texts": prepared.texts})
    write_json(output / "manifest.json", prepared.manifest, indent=1)
    return prepared.manifest


def truth_files(output: PathLike) -> List[Path]:
    """Ground truth for scoring: of validation and test pictures."""
    return [Path(output, "art_gt", f"art_{name.lower()}_gt.json") for name in PARTS[1:]]


def output_files(output: PathLike) -> List[Path]:
    """All that `prepare` writes."""
    return [*truth_files(output), Path(output, "texts.json"), Path(output, "manifest.json"),
            *(Path(output, f"iconclass{name}{kind}.json")
              for name in PARTS for kind in ("", "_split"))]


def reference_files(output: PathLike) -> List[Path]:
    """All that runs are scored against: ground truth, and phrases where captions are phrases."""
    return [*truth_files(output), *(Path(output, f"iconclass{name}_split.json")
                                    for name in PARTS[1:])]


def annotate(archive: Archive, options: Options) -> Prepared:
    """Everything but the writing.

    Raises:
        UserError: bad pictures, no captions at all, or a name that no file can have.
    """
    captioner = Captioner(Iconclass(options.language), options.style)
    records = archive.notations
    _refuse_half_characters(records)
    captions = {name: captioner.of(notations) for name, notations
                in progress(records.items(), "notations to captions", "pictures", len(records))}
    usable = {name: of_one for name, of_one in captions.items() if of_one.joined}
    kind = options.split or ("seed" if has_seed_names(records) else "random")
    bad = _bad_pictures(archive, kind, usable, options)
    usable = {name: of_one for name, of_one in usable.items() if name not in bad}
    split = split_pictures(kind, {n: c.joined for n, c in usable.items()}, options.seed)
    chosen = {name: usable[name] for part in split for name, _ in part}
    manifest = {
        "split": kind, "split_by_default": not options.split, "seed": options.seed,
        "language": options.language, "style": asdict(options.style),
        "iconclass": captioner.iconclass.version,
        "data_sha256": archive.data_sha256, "records": len(records),
        "pictures": {name.lower(): len(part) for name, part in zip(PARTS, split)},
        "captions_split": {name.lower(): sum(len(chosen[image].split) for image, _ in part)
                           for name, part in zip(PARTS, split)},
        "notations": sum(captioner.rules.values()), "rules": captioner.rules,
        "notes": captioner.notes, "texts": "texts.json",
        "unknown_notations": captioner.unknown(),
        "pictures_without_text": sorted(captions.keys() - usable.keys() - bad.keys()),
        "pictures_outside_split": sorted(usable.keys() - chosen.keys()),
        "bad_pictures": bad}
    return Prepared(split, chosen, captioner.phrases, manifest)


def _refuse_half_characters(names: Iterable[str]) -> None:
    """JSON can hold half a surrogate pair; file names and our files cannot."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the picture name {name!a} has half a character in it; "
                            "correct it in data.json") from error


def _bad_pictures(archive: Archive, kind: str, captions: Dict[str, Captions],
                  options: Options) -> Dict[str, str]:
    if not options.check:
        return {}
    if archive.images is None:
        raise UserError("no pictures beside data.json; unpack them there, or build annotations "
                        "without looking at them: --pictures none")
    # Loaded here because a login node may have no Pillow and prepares with --pictures none.
    from blip_art.data.check import find_bad_pictures, refuse_bad
    wanted = split_pictures(kind, {n: c.joined for n, c in captions.items()}, options.seed)
    names = [name for part in wanted for name, _ in part]
    bad = find_bad_pictures(archive.images, names)
    if options.bad_pictures == "fail":
        refuse_bad(bad, len(names), archive.images, "--bad-pictures skip")
    return bad


def _record(caption: str, image: str, number: int) -> Dict[str, str]:
    """A pair as the original's files have it; ids are texts there and numbers in the truth."""
    return {"caption": caption, "image": f"data/{image}", "image_id": str(number)}


def summary(manifest: Dict[str, Any]) -> str:
    """What a person wants to know, in a few lines."""
    pictures: Tuple[int, ...] = tuple(manifest["pictures"].values())
    found = {rule: count for rule, count in manifest["rules"].items() if count}
    partial = manifest["split_by_default"] and manifest["split"] == "random"
    why = " (not all of the original's pictures are here)" if partial else ""
    lines = [f"split {manifest['split']}{why}: {pictures[0]:,} train, {pictures[1]:,} val, "
             f"{pictures[2]:,} test pictures (of {manifest['records']:,} records)"]
    if manifest["split"] == "seed" and pictures != SEED_COUNTS:
        lines.append("this is not the whole original split (69,224, 8,653 and 8,653 pictures); "
                     "see manifest.json")
    lines.append("notations: " + ", ".join(f"{n:,} {rule}" for rule, n in found.items()))
    for key, what in (("pictures_without_text", "without text"),
                      ("pictures_outside_split", "outside the original split"),
                      ("bad_pictures", "that cannot be decoded")):
        if manifest[key]:
            lines.append(f"left out: {len(manifest[key]):,} pictures {what}")
    return "\n".join(lines)
