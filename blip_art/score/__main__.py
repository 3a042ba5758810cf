"""The command line of scoring: two files, or all of a run; and the fetch of CoreNLP.

    python -m blip_art.score REFS.json RESULTS.json --metrics bleu,cider
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from blip_art.config import METRIC_NAMES
from blip_art.errors import EXIT_FAILED, UserError, exit_cleanly
from blip_art.files import RunDir, read_json, write_json
from blip_art.score import corenlp

EPILOG = """examples:
  python -m blip_art.score fetch                              once, with network: for SPICE
  python -m blip_art.score refs.json results.json             any COCO-format pair of files
  python -m blip_art.score refs.json results.json --metrics bleu,cider --json scores.json
  python -m blip_art.score --run runs/caption_art             all unscored epochs of a run

REFS.json is COCO ground truth ({"images": [...], "annotations": [{"image_id", "caption"}]}) or a
list of {"image_id", "caption"}; RESULTS.json is a list with one caption a picture. Ids match as
text: 7 and "7" are the same picture.

environment:
  BLIP_ART_CACHE     where CoreNLP is kept; may be read-only once it is there
  BLIP_ART_CORENLP   folders, file:// addresses or mirrors to fetch it from, separated by spaces
  BLIP_ART_JAVA      the Java to use instead of the packaged one
  BLIP_ART_HEAP_MB   Java's largest heap; by default what the job's memory limit allows

exit code: 0, 1 when a metric failed (the others are written), 2 when the input is wrong"""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["fetch"]:
        return _fetch(arguments[1:])
    options = _parser().parse_args(arguments)
    metrics = _metrics(options.metrics)
    if options.run:
        if options.files or options.json:
            raise UserError("--run scores a run folder; leave out the files and --json")
        return _score_run(RunDir(options.run), options, metrics)
    if len(options.files) != 2:
        raise UserError("give REFS.json and RESULTS.json, or --run RUN; --help shows examples")
    return _score_files(options, metrics)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.score", epilog=EPILOG,
        description="Score captions with BLEU, METEOR, ROUGE-L, CIDEr and SPICE.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="REFS.json RESULTS.json",
                        help="references and captions")
    parser.add_argument("--run", metavar="RUN", help="score the predictions of this run folder")
    parser.add_argument("--metrics", metavar="LIST", default="",
                        help=f"some of {','.join(METRIC_NAMES)}; default: all, "
                             "or what the run's configuration says")
    parser.add_argument("--json", metavar="FILE", help="write everything, by picture, to FILE")
    parser.add_argument("--subset", action="store_true",
                        help="score only the pictures that have a caption")
    parser.add_argument("--java", metavar="HOME", default="", help="the Java runtime to use")
    parser.add_argument("--threads", type=int, metavar="N", default=0,
                        help="captions parsed at once; default: the cores of the job")
    return parser


def _metrics(names: str) -> List[str]:
    metrics = [name.strip().lower() for name in names.split(",") if name.strip()]
    for name in metrics:
        if name not in METRIC_NAMES:
            raise UserError(f"--metrics: unknown '{name}'; there are {', '.join(METRIC_NAMES)}")
    return metrics


def _fetch(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.score fetch",
        description=f"Fetch and check CoreNLP {corenlp.VERSION} (385 MB), which SPICE needs.")
    parser.add_argument("sources", nargs="*", metavar="SOURCE",
                        help="folder, file:// address or mirror; default: $BLIP_ART_CORENLP, "
                             "else Maven Central")
    options = parser.parse_args(arguments)
    cache = corenlp.cache_folder()
    jars = corenlp.fetch(cache, options.sources or corenlp.sources_from())
    print(f"CoreNLP {corenlp.VERSION} is in {jars[0].parent}")
    return 0


def _score_files(options: argparse.Namespace, metrics: List[str]) -> int:
    # Only here: fetching must work where no metric is installed.
    from blip_art.score.coco import read_captions, read_references
    from blip_art.score.scoring import score

    references, captions = (read_references(options.files[0]), read_captions(options.files[1]))
    scores = score(references, captions, metrics or METRIC_NAMES, subset=options.subset,
                   java_home=options.java, threads=options.threads)
    if options.json:
        write_json(options.json, scores.to_json())
    print(table({Path(options.files[1]).name: scores.metrics}))
    for name, why in scores.failed.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return EXIT_FAILED if scores.failed else 0


def _score_run(run: RunDir, options: argparse.Namespace, metrics: List[str]) -> int:
    from blip_art.score.engine import Engine
    from blip_art.score.run import score_run

    with Engine(java_home=options.java, threads=options.threads) as engine:
        written = score_run(run, engine, metrics)
    files = [*sorted(run.path.glob("scores/floor_*.json")), *(row.path for row in run.scored())]
    if files:
        print(table({path.stem: read_json(path)["metrics"] for path in files}))
    if run.best.exists():
        best = read_json(run.best)
        print(f"best epoch {best['epoch']:02d} by {best['rule']} = {best['value']:.3f}")
    return EXIT_FAILED if any(read_json(path)["failed"] for path in written) else 0


def table(rows: Dict[str, Dict[str, float]]) -> str:
    """Rows of values under the metrics' names."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    width = max(map(len, rows))
    lines = ["  ".join([" " * width, *(f"{name:>7}" for name in names)])]
    for label, values in rows.items():
        cells = (f"{values[name]:7.3f}" if name in values else "      -" for name in names)
        lines.append("  ".join([f"{label:<{width}}", *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    exit_cleanly(main)
