"""Parses references ahead of time, so that scoring finds them; in one job or in an array of them.

    python -m blip_art.score prepare REFS.json --shard 3/16
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, List, Sequence, Tuple

from blip_art.errors import EXIT_FAILED, UserError
from blip_art.outputs import check_output
from blip_art.score import parse_cache
from blip_art.score.coco import read_references
from blip_art.score.parses import shard

if TYPE_CHECKING:
    from blip_art.score.engine import Engine

EPILOG = """examples:
  python -m blip_art.score prepare val.json                    all references, on all cores
  python -m blip_art.score prepare train.json val.json --parses data/parses.sqlite
  python -m blip_art.score prepare train.json --shard 3/16     a part of it, on this machine
  sbatch --array=0-15 slurm/prepare.sbatch train.json          all of it, in 16 jobs
  python -m blip_art.score merge data/parses.sqlite            after jobs without file locks

What is parsed is kept at once: a job that was ended goes on where it stopped. The jobs of an array
may write to the same file; where the file system has no locks each writes a part beside it, and
'merge' adds the parts. Give scoring the same file, in BLIP_ART_PARSES."""

MERGE_EPILOG = """examples:
  python -m blip_art.score merge data/parses.sqlite                    the parts beside it
  python -m blip_art.score merge data/parses.sqlite from_a_friend.sqlite"""


def prepare(arguments: Sequence[str]) -> int:
    """The command `prepare`; returns its exit code."""
    options = _parser().parse_args(arguments)
    # Only here: help must work where Java's side is not installed.
    from blip_art.score.engine import Engine
    from blip_art.score.workers import MetricFailed

    index, count = _shard(options.shard)
    if options.parses:
        check_output(options.parses, options.references, "--parses")
    if options.threads < 0:
        raise UserError(f"--threads {options.threads}: it must be a whole number above 0")
    began = time.monotonic()
    with Engine(java_home=options.java, threads=options.threads, parses=options.parses) as engine:
        texts = _tokenized(engine, options.references)
        mine = shard(texts, index, count)
        unknown = engine.unparsed(mine)
        share = f", {len(mine):,} of them this job's" if count > 1 else ""
        _say(f"{len(texts):,} distinct references{share}; {len(unknown):,} not parsed before")
        try:
            engine.propositions(unknown)
        except MetricFailed as error:
            _say(f"not all could be parsed: {error}")
            return EXIT_FAILED
        return report(engine, time.monotonic() - began)


def report(engine: Engine, seconds: float) -> int:
    """Say what was parsed and where it is; the exit code."""
    file, unkept = engine.parses_file, engine.unkept()
    done = f"{engine.parsed:,} parsed in {seconds:.0f} s; "
    if unkept:
        _say(f"{done}{unkept:,} of them could not be kept in {file}, and so are lost; "
             "mend that and run the command again")
        return EXIT_FAILED
    parts = len(parse_cache.parts_of(file))
    _say(f"{done}all are in {file}" + (
        f" and {parts} parts beside it; when all jobs are done, run: "
        f"python -m blip_art.score merge {file}" if parts else ""))
    return 0


def merge(arguments: Sequence[str]) -> int:
    """The command `merge`; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.score merge", epilog=MERGE_EPILOG,
        description="Add the parses of other files to one.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="PARSES", help="the file to add to")
    parser.add_argument("sources", nargs="*", metavar="FILE",
                        help="files to add; default: the parts that jobs left beside PARSES, "
                             "which are then removed")
    options = parser.parse_args(arguments)
    _say(f"{parse_cache.merge(options.target, options.sources):,} new parses in {options.target}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.score prepare", epilog=EPILOG,
        description="Parse references for SPICE ahead of time.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", nargs="+", metavar="REFS.json", type=Path,
                        help="references, in the formats that scoring takes")
    parser.add_argument("--shard", metavar="I/N", default="1/1",
                        help="do the I-th of N parts of about the same cost (I from 1)")
    parser.add_argument("--parses", metavar="FILE", default=None,
                        help="where parses are kept; default: $BLIP_ART_PARSES, else in the cache")
    parser.add_argument("--java", metavar="HOME", default="", help="the Java runtime to use")
    parser.add_argument("--threads", type=int, metavar="N", default=0,
                        help="texts parsed at once; default: the cores of the job")
    return parser


def _shard(text: str) -> Tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: it must be I/N with I from 1 to N, such as 3/16")
    return int(match[1]) - 1, int(match[2])


def _tokenized(engine: Engine, files: Sequence[Path]) -> List[str]:
    captions = [text for file in files for texts in read_references(file).values()
                for text in texts]
    engine.require_corenlp()
    return list(dict.fromkeys(engine.tokenize(captions)))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
