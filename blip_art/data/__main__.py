"""Data on the command line: prepare annotations, draw the demo data set, check pictures, and more.

    python -m blip_art.data prepare ARCHIVE -o DIR
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import List

from blip_art.data.archive import ARCHIVE_MD5, open_archive
from blip_art.data.captions import STYLES, Captioner, Style
from blip_art.data.datasets import load_pairs, unique_pictures
from blip_art.data.iconclass import LANGUAGES, Iconclass
from blip_art.data.prepare import Options, output_files, prepare, reference_files, summary
from blip_art.data.splits import SPLITS
from blip_art.errors import EXIT_FAILED, UserError, exit_cleanly
from blip_art.outputs import refuse_input

EXAMPLES = """
examples:
  # the original project's annotations (joined, _split and art_gt/), pictures in Dataset/data
  python -m blip_art.data prepare 779ba2ca9e977c58d818e3823a676973.zip -o annotation --style seed
  # on a login node that has only data.json
  python -m blip_art.data prepare data.json -o annotation --pictures none
  # no book and no caption in both training and test
  python -m blip_art.data prepare archive/ -o annotation_grouped --split grouped
  # 2,000 drawn pictures in the archive's format
  python -m blip_art.data demo -o runs/demo-data/archive
  # a copy of scans in which no picture is larger than needed, with the same names
  python -m blip_art.data pack scans --max-side 2000 -o scans_2000
  # pictures that cannot be decoded
  python -m blip_art.data check annotation/iconclassTrain.json --images Dataset
  # how many notations of an archive, or of a CSV of notation and count, have a text
  python -m blip_art.data coverage data.json
"""


# SPICE parses each reference once, ever: hours of one core for a whole split.
PARSE = ("-m", "blip_art.score", "prepare")
PARSE_HINT = """\
next, for SPICE: parse the references once, ahead of scoring, on all cores or in an array of 16 jobs
  python {command} {references}
  sbatch --array=0-15 slurm/prepare.sbatch {references}"""


def main() -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args()
    return int(args.command(args) or 0)


def _prepare(args: argparse.Namespace) -> int:
    images = args.images or Path(args.output).absolute().parent / "Dataset"
    style = Style(args.style, args.keys == "on", args.parents)
    for path in output_files(args.output):
        refuse_input(path, [args.archive], "-o")
    archive = open_archive(args.archive, images, args.md5, pictures=args.pictures == "check")
    options = Options(args.split, style, args.language, args.seed, args.pictures == "check",
                      args.bad_pictures)
    manifest = prepare(archive, args.output, options)
    print(summary(manifest))
    if archive.images:
        print(f"pictures: {archive.images} (data.images in the configuration)")
    print(f"annotations: {args.output}")
    return _parse_ahead([str(path) for path in reference_files(args.output)], args.parse)


def _parse_ahead(references: List[str], now: bool) -> int:
    """Parse references, or say how; scoring does what is left of it."""
    if not now:
        print(PARSE_HINT.format(command=shlex.join(PARSE), references=shlex.join(references)))
        return 0
    done = subprocess.run([sys.executable, *PARSE, *references], check=False)
    return EXIT_FAILED if done.returncode == 1 else done.returncode


def _demo(args: argparse.Namespace) -> None:
    from blip_art.data.demo import draw_demo
    drawn = draw_demo(args.output, args.pictures, args.seed, args.size)
    done = "drawn" if drawn else "already there"
    print(f"{args.output}: {args.pictures:,} pictures {done}; next: "
          f"python -m blip_art.data prepare {args.output} -o DIR")


def _check(args: argparse.Namespace) -> None:
    from blip_art.data.check import find_bad_pictures, refuse_bad
    names = [picture.image for picture in unique_pictures(load_pairs(args.list))]
    bad = find_bad_pictures(args.images, names, args.workers)
    for name, reason in bad.items():
        print(f"{Path(args.images, name)}: {reason}")
    refuse_bad(bad, len(names), args.images, "data.bad_pictures=skip")
    print(f"all {len(names):,} pictures of {args.list} can be decoded")


def _pack(args: argparse.Namespace) -> int:
    try:
        from blip_art.data.shrink import shrink_folder, summary
    except ImportError as error:
        raise UserError(f"this Python has no {error.name}, which reads pictures; with the image: "
                        f"./launch.py data pack {args.folder} --max-side {args.max_side}"
                        ) from error
    source = Path(args.folder)
    target = Path(args.output or f"{source.resolve()}_{args.max_side}")
    done = shrink_folder(source, target, args.max_side, args.workers)
    print(summary(done, target))
    return EXIT_FAILED if done.unreadable else 0


def _coverage(args: argparse.Namespace) -> None:
    from blip_art.data.coverage import count_notations, format_coverage, measure_coverage
    uses = count_notations(args.list)
    captioner = Captioner(Iconclass(args.language), Style(args.style))
    print(format_coverage(measure_coverage(captioner, uses)))


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.data", formatter_class=formatter,
        description=(__doc__ or "").splitlines()[0], epilog=EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(commands.add_parser(
        "prepare", help="data.json and pictures to annotations", epilog=EXAMPLES,
        formatter_class=formatter))
    demo = commands.add_parser("demo", help="draw a small art data set in the archive's format")
    demo.add_argument("-o", "--output", required=True, help="folder to write to")
    demo.add_argument("--pictures", type=int, default=2000, help="how many (default 2000)")
    demo.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    demo.add_argument("--seed", type=int, default=42, help="other pictures (default 42)")
    demo.set_defaults(command=_demo)
    check = commands.add_parser("check", help="find missing and undecodable pictures of a list")
    check.add_argument("list", metavar="LIST", help="JSON, JSONL or CSV of image and caption")
    check.add_argument("--images", required=True, help="folder its image entries are relative to")
    check.add_argument("--workers", type=int, help="processes (default: all cores)")
    check.set_defaults(command=_check)
    pack = commands.add_parser("pack", help="copy a folder of pictures, the large ones made "
                               "smaller; the same command goes on where it was stopped")
    pack.add_argument("folder", metavar="DIR", help="folder of pictures; only read")
    pack.add_argument("--max-side", type=int, required=True, metavar="N",
                      help="pixels of the longer side, at most; 2000 is plenty for 384")
    pack.add_argument("-o", "--output", metavar="DIR", default="", help="default: DIR_N")
    pack.add_argument("--workers", type=int, help="processes (default: all cores)")
    pack.set_defaults(command=_pack)
    coverage = commands.add_parser("coverage", help="which notations have a text, by which rule")
    coverage.add_argument("list", metavar="LIST",
                          help="CSV of notation and count, or an archive or its data.json")
    coverage.add_argument("--style", choices=STYLES, default="clean",
                          help="captions: clean (default), or seed")
    coverage.add_argument("--language", choices=LANGUAGES, default="en",
                          help="language of the texts (default en)")
    coverage.set_defaults(command=_coverage)
    return parser


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", metavar="ARCHIVE",
                        help="the zip, the folder it was unpacked to, or data.json")
    parser.add_argument("-o", "--output", required=True, help="folder for the annotations")
    parser.add_argument("--split", choices=SPLITS, default="",
                        help="default: seed (the original's) if all its names are there, "
                             "else random; grouped keeps books and captions on one side")
    parser.add_argument("--style", choices=STYLES, default="clean",
                        help="captions: clean (default), or seed, as the original's")
    parser.add_argument("--keys", choices=("on", "off"), default="on",
                        help="texts of keys, '(front view)', in clean captions (default on)")
    parser.add_argument("--parents", type=int, default=0, metavar="N",
                        help="texts of N broader notations in clean captions (default 0)")
    parser.add_argument("--language", choices=LANGUAGES, default="en",
                        help="language of the texts (default en)")
    parser.add_argument("--pictures", choices=("check", "none"), default="check",
                        help="none: do not look at the pictures, nor unpack them")
    parser.add_argument("--bad-pictures", choices=("fail", "skip"), default="fail",
                        help="when a picture cannot be decoded (default fail)")
    parser.add_argument("--images", metavar="DIR",
                        help="where a zip is unpacked, as DIR/data "
                             "(default: Dataset beside the output)")
    parser.add_argument("--seed", type=int, default=42,
                        help="of the random and grouped splits (default 42)")
    parser.add_argument("--parse", action="store_true",
                        help="then parse the references for SPICE (hours for a whole split, "
                             "once; stop it and run it again as you like)")
    parser.add_argument("--md5", default=ARCHIVE_MD5,
                        help="what the zip must have; none takes any (default: the test set's)")
    parser.set_defaults(command=_prepare)


if __name__ == "__main__":
    exit_cleanly(main)
