"""The command line of scoring: two files, a run, a run that is still training, or a comparison.

    python -m blip_art.score REFS.json RESULTS.json --metrics bleu,cider
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from blip_art.config import METRIC_NAMES
from blip_art.errors import EXIT_FAILED, UserError, exit_cleanly, printable
from blip_art.files import RunDir, write_json
from blip_art.outputs import check_output
from blip_art.run_state import read_best
from blip_art.score import corenlp, prepare
from blip_art.score.cpu_time import counted
from blip_art.score.shown import (
    comparison_table,
    few_pictures,
    sentence,
    table,
    verdict,
    with_intervals,
)

# Modules with metrics are imported where they are used: fetching must work without them.

EPILOG = """examples:
  python -m blip_art.score fetch                              once, with network: for SPICE
  python -m blip_art.score prepare refs.json                  parse references ahead of time
  python -m blip_art.score merge parses.sqlite                after an array without file locks
  python -m blip_art.score refs.json results.json             any COCO-format pair of files
  python -m blip_art.score refs.json results.json --metrics bleu,cider --json scores.json
  python -m blip_art.score refs.json results.json --floor train.json --oracle 10
  python -m blip_art.score --run runs/caption_art             all unscored epochs of a run
  python -m blip_art.score --follow runs/caption_art          the same while it is training
  python -m blip_art.score compare a.json b.json              is B better, or is it chance?

REFS.json is COCO ground truth ({"images": [...], "annotations": [{"image_id", "caption"}]}), a
list of {"image_id", "caption"}, or {id: [captions]}; RESULTS.json is such a list with one caption a
picture, {id: caption} or {id: [caption]}. Both may be gzipped. Ids match as text: 7 and "7" are the
same picture. A picture without a caption is an error unless --subset. --json FILE may be a pipe or
a device, but not a file that is read.

metrics:
  bleu      matching groups of 1 to 4 words, of all pictures at once (Papineni et al. 2002)
  meteor    aligned words, stems, synonyms, paraphrases (Denkowski & Lavie 2014)
  rouge_l   longest common subsequence (Lin 2004)
  cider     word groups weighted by rarity in these references: CIDEr-D (Vedantam et al. 2015)
  spice     objects, attributes and relations in scene graphs (Anderson et al. 2016)
Values equal pycocoevalcap's. Under them: the 95 % interval over pictures (bootstrap, 1,000 draws).

environment:
  BLIP_ART_CACHE     where CoreNLP is kept; may be read-only once it is there
  BLIP_ART_CORENLP   folders, file:// addresses or mirrors to fetch it from, separated by spaces
  BLIP_ART_PARSES    the file where parses are kept, so that no text is parsed twice
  BLIP_ART_JAVA      the Java to use instead of the packaged one
  BLIP_ART_HEAP_MB   memory for Java and the parser's charts; by default by the job's limit

exit code: 0, 1 when a metric failed (the others are written), 2 when the input is wrong,
130 when interrupted"""

COMPARE_EPILOG = """examples:
  python -m blip_art.score compare runs/a/scores/val_03.json runs/b/scores/val_07.json
  python -m blip_art.score compare a_results.json b_results.json --refs refs.json --metrics cider

p is how often the difference is as large when each picture's two captions are swapped or not at
random (paired approximate randomization); the verdict follows from it, below 0.05. The interval is
that of the difference on the same draws of pictures for both (paired bootstrap; Koehn 2004 for
BLEU); it is too narrow below 50 pictures. There is no verdict on fewer than 10 pictures, nor on a
difference that is printed as zero. Files scored against other references or other pictures are
refused. Of many comparisons some find p below 0.05 by chance: decide beforehand what to compare,
and on which metric."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    options = _parser().parse_args(arguments)
    metrics = _metrics(options.metrics)
    _refuse_mixture(options)
    _check_json(options.json, options.files, options.floor)
    if options.follow:
        return _follow(RunDir(options.follow), options, metrics)
    if options.run:
        _refuse_run_file(options.json, RunDir(options.run))
        return _score_run(RunDir(options.run), options, metrics)
    return _score_files(options, metrics or METRIC_NAMES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.score", epilog=EPILOG,
        description="Score captions with BLEU, METEOR, ROUGE-L, CIDEr and SPICE.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="REFS.json RESULTS.json",
                        help="references and captions")
    parser.add_argument("--run", metavar="RUN", help="score the predictions of this run folder")
    parser.add_argument("--follow", metavar="RUN",
                        help="score this run's epochs as they appear; end when training has")
    parser.add_argument("--json", metavar="FILE",
                        help="write everything, by picture, to FILE; - prints it")
    pairs = parser.add_argument_group("two files")
    pairs.add_argument("--subset", action="store_true",
                       help="score only the pictures that have a caption")
    pairs.add_argument("--max-words", type=_count, metavar="N", default=0,
                       help="tell how many references have more than N words")
    pairs.add_argument("--floor", metavar="TRAIN",
                       help="also score the most frequent caption of this training list, given to "
                            "every picture")
    pairs.add_argument("--oracle", type=_count, metavar="N", default=0,
                       help="also score each picture's first reference, cut to N words (that of a "
                            "run is cut to the tokens that generate.max_length leaves)")
    follower = parser.add_argument_group("--follow")
    follower.add_argument("--patience", type=_minutes, metavar="MIN", default=60.0,
                          help="end too when a stopped or silent training has written nothing for "
                               "so long (default: %(default)g)")
    follower.add_argument("--until-eof", action="store_true",
                          help="training ends when standard input does, whatever state.json says: "
                               "for programs that start training and follower together")
    follower.add_argument("--not-while-queued", action="store_true",
                          help="end too when training has stopped, and leave a note for "
                               "slurm/job.sh, which starts the follower again with it")
    _engine_options(parser)
    return parser


def _engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", metavar="LIST", default="",
                        help=f"some of {','.join(METRIC_NAMES)}; default: all, "
                             "or what the run's configuration says")
    parser.add_argument("--java", metavar="HOME", default="", help="the Java runtime to use")
    parser.add_argument("--threads", type=_count, metavar="N", default=0,
                        help="captions parsed at once; default: the cores of the job")


def _refuse_mixture(options: argparse.Namespace) -> None:
    ways = [options.run is not None, options.follow is not None, bool(options.files)]
    if sum(ways) > 1:
        raise UserError("--run and --follow score a run folder: give one of them, or two files")
    if not any(ways) or len(options.files) not in (0, 2):
        raise UserError("give REFS.json and RESULTS.json, or --run RUN; --help shows examples")
    if not options.files and (options.floor or options.oracle or options.subset
                              or options.max_words):
        raise UserError("--subset, --max-words, --floor and --oracle are for two files; a run "
                        "folder has floor, oracle and length limit of its own")
    if options.follow and options.json:
        raise UserError("--follow writes RUN/scores/; leave out --json")


def _metrics(names: str) -> List[str]:
    metrics = [name.strip().lower() for name in names.split(",") if name.strip()]
    for name in metrics:
        if name not in METRIC_NAMES:
            raise UserError(f"--metrics: unknown '{name}'; there are {', '.join(METRIC_NAMES)}")
    return metrics


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not '{text}'")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"must be minutes, 0 or more, not '{text}'")
    return minutes


def _engine(options: argparse.Namespace) -> Any:
    from blip_art.score.engine import Engine

    engine = Engine(java_home=options.java, threads=options.threads)
    _check_json(options.json, [str(engine.parses_file)], None)
    return engine


def _score_files(options: argparse.Namespace, metrics: Sequence[str]) -> int:
    from blip_art.score import baselines
    from blip_art.score.coco import read_captions, read_references
    from blip_art.score.limits import WordLimit
    from blip_art.score.record import record

    references, captions = (read_references(options.files[0]), read_captions(options.files[1]))
    caption = baselines.most_frequent_caption(options.floor) if options.floor else ""
    most = options.max_words or options.oracle
    name = Path(options.files[1]).name
    with _engine(options) as engine:
        found = record(engine, references, captions, metrics, subset=options.subset,
                       limit=WordLimit(most) if most else None)
        scored = {key: references[key] for key in found["per_image"]}
        extras: Dict[str, Dict[str, Any]] = {}
        if options.floor:
            extras["floor"] = {"caption": caption, **record(
                engine, scored, baselines.floor_captions(scored, caption), metrics)}
        if options.oracle:
            extras["oracle"] = {"max_words": options.oracle, **record(
                engine, scored, baselines.oracle_captions(scored, WordLimit(options.oracle)),
                metrics)}
    rows = {**with_intervals(name, found),
            **{label: row["metrics"] for label, row in extras.items()}}
    lines = [table(rows), "", sentence(found)]
    lines += [f"floor: {caption!r} for every picture"] if caption else []
    lines += [f"oracle: first references, cut to {options.oracle} words"] if options.oracle else []
    _tell(options.json, {**found, **extras}, "\n".join(lines))
    return _failures({name: found, **extras})


def _score_run(run: RunDir, options: argparse.Namespace, metrics: Sequence[str]) -> int:
    from blip_art.score.follow import score_when_free
    from blip_art.score.run import read_scores

    with counted(run), _engine(options) as engine:
        written = score_when_free(run, engine, metrics)
    rows = {path.stem: row for path in run.score_files() for row in [read_scores(path)] if row
            # An older version cut the oracle by words, which is more than captions can have.
            and "max_words" not in row}
    best = read_best(run)
    lines = [table({name: row["metrics"] for name, row in rows.items()})] if rows else []
    if best:
        lines += [f"best {best.describe()}"]
    _tell(options.json, {"rows": rows, "best": best and best._asdict()}, "\n".join(lines))
    return EXIT_FAILED if any(rows[path.stem]["failed"] for path in written) else 0


def _follow(run: RunDir, options: argparse.Namespace, metrics: Sequence[str]) -> int:
    from blip_art.score.follow import Follower, until_state_ends, until_stdin_ends

    if not run.path.is_dir():
        raise UserError(f"no run folder at {run.path}; start training first, or mend the name")
    if options.not_while_queued and "SLURM_JOB_ID" not in os.environ:
        raise UserError("--not-while-queued is for jobs of Slurm; leave it out")
    ending = until_stdin_ends() if options.until_eof else until_state_ends(
        run, options.patience, while_queued=not options.not_while_queued)
    with counted(run) as count, _engine(options) as engine:
        return Follower(run, engine, count.while_asking(ending), metrics).follow()


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.score compare", epilog=COMPARE_EPILOG,
        description="Compare two sets of captions of the same pictures.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A.json", help="a score file, or results with --refs")
    parser.add_argument("b", metavar="B.json", help="the same; positive differences favour it")
    parser.add_argument("--refs", metavar="REFS.json", help="score A and B against these first")
    parser.add_argument("--subset", action="store_true",
                        help="with --refs: only the pictures that have a caption")
    parser.add_argument("--resamples", type=_count, metavar="N", default=1000,
                        help="draws of pictures, and of swaps, 200 to 100000 (default: "
                             "%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the comparison; - prints it")
    _engine_options(parser)
    return parser


def _compare(arguments: Sequence[str]) -> int:
    from blip_art.score.bootstrap import check_resamples
    from blip_art.score.compare import compare, read_record, score_both

    options = _compare_parser().parse_args(arguments)
    check_resamples(options.resamples)
    metrics = _metrics(options.metrics)
    _check_json(options.json, [options.a, options.b], options.refs)
    if options.subset and not options.refs:
        raise UserError("--subset is for two results files with --refs; score files hold what "
                        "was scored")
    if options.refs:
        with _engine(options) as engine:
            first, second = score_both(options.refs, (options.a, options.b), engine,
                                       metrics or METRIC_NAMES, options.subset)
    else:
        first, second = read_record(options.a), read_record(options.b)
    found = {"a": options.a, "b": options.b, **compare(first, second, metrics, options.resamples)}
    _tell(options.json, found, "\n".join([
        f"A = {options.a}", f"B = {options.b}",
        f"{found['pictures']:,} pictures, {options.resamples:,} draws", "",
        comparison_table(found["metrics"]), "",
        verdict(found["metrics"], found["pictures"], found["bootstrap"]["level"]),
        *few_pictures(found["pictures"])]))
    return _failures({options.a: first, options.b: second})


def _fetch(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.score fetch",
        description=f"Fetch and check CoreNLP {corenlp.VERSION} (385 MB), which SPICE needs.")
    parser.add_argument("sources", nargs="*", metavar="SOURCE",
                        help="folder, file:// address or mirror; default: $BLIP_ART_CORENLP, "
                             "else Maven Central")
    options = parser.parse_args(arguments)
    cache = corenlp.cache_folder()
    jars = corenlp.fill(cache, options.sources or corenlp.sources_from())
    print(f"CoreNLP {corenlp.VERSION} is in {jars[0].parent}")
    return 0


COMMANDS: Dict[str, Callable[[Sequence[str]], int]] = {
    "fetch": _fetch, "compare": _compare, "prepare": prepare.prepare, "merge": prepare.merge}


def _tell(json_file: Optional[str], found: Any, text: str) -> None:
    """Print the text, or the JSON in its place; a JSON file is written first: printing may fail."""
    if json_file == "-":
        print(json.dumps(found, allow_nan=False))
        return
    try:
        if json_file:
            write_json(json_file, found)
    finally:  # hours of scoring, whose results are not lost with the file
        if text:
            # Captions are whatever a model or a file says.
            print("\n".join(map(printable, text.split("\n"))), flush=True)


def _check_json(json_file: Optional[str], files: Sequence[str], more: Optional[str]) -> None:
    """Before hours of scoring, not after them."""
    if json_file == "":
        raise UserError("--json '' names no file; name one, or - to print")
    if json_file and json_file != "-":
        check_output(json_file, [*files, *([more] if more else [])])


def _refuse_run_file(json_file: Optional[str], run: RunDir) -> None:
    _check_json(json_file, [str(row.path) for row in (*run.predicted(), *run.scored())], None)
    if json_file and json_file != "-" and run.owns(json_file):
        raise UserError(f"--json {json_file} is among the run's own files; name one outside "
                        f"{run.path}, or directly in it")


def _failures(rows: Mapping[str, Mapping[str, Any]]) -> int:
    """Say which metrics failed; the exit code."""
    for label, row in rows.items():
        for name, why in row["failed"].items():
            print(f"{label}: {name} failed: {why}", file=sys.stderr)
    return EXIT_FAILED if any(row["failed"] for row in rows.values()) else 0


if __name__ == "__main__":
    exit_cleanly(main)
