"""Seconds, memory and size of a report of 1,000 runs of 10 epochs, whose score files are full-size.

    python bench/report.py                         1,000 runs, 8,653 pictures
    python bench/report.py --code ../before …      the same with another checkout's code

Draws the run folders (--where, about 200 MB, removed afterwards): 20 score files as the scorer
writes them, linked into the runs, for 12,000 of their own would fill 70 GB. Each measurement is a
process of its own, before which what the runs hold is dropped from the page cache. The table goes
to bench/results/report.md and .json, of another checkout to report_before.md: older code reads all
files whole, which --pictures 20 makes bearable.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blip_art.config import config_from_dict, dump_config  # noqa: E402
from blip_art.files import RunDir, write_json, write_text  # noqa: E402
from blip_art.score.references import references_hashes  # noqa: E402
from blip_art.score.summary import Summaries, summary_first  # noqa: E402

GOAL_S, GOAL_MB = 3.0, 1.0
FILES = 20
METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
SPICE_PARTS = ("All", "Object", "Attribute", "Relation", "Cardinality", "Color", "Size")
RESULTS = ROOT / "bench" / "results"
# What `time` is to a shell: the command's seconds and the most memory it had.
MEASURE = """
import resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, code)
"""


def main() -> int:
    """Draw, measure, print and write the table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=8653)
    parser.add_argument("--code", default=str(ROOT), help="the checkout that is measured")
    parser.add_argument("--where", default=None, help="folder for the runs (default: a new one)")
    parser.add_argument("--no-summaries", action="store_true",
                        help="as if the scores were an older version's: all files are read")
    parser.add_argument("--times", type=int, default=3, help="processes a row")
    options = parser.parse_args()
    if options.where:
        Path(options.where).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        folder = Path(name)
        runs = draw_runs(folder, options)
        if options.no_summaries:
            for run in runs:
                run.score_summaries.unlink()
        out = folder / "out"
        folders = [str(run.path) for run in runs]
        rows = [measured(what, [sys.executable, *words], folder, options) for what, words in (
            ("python -m blip_art.report", ["-m", "blip_art.report", *folders, "-o", str(out)]),
            ("launch.py status", [f"{options.code}/launch.py", "status", str(folder)]))]
        page_mb = (out / "index.html").stat().st_size / 1e6
    machine = f"{platform.node()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    text = as_text(rows, page_mb, options, machine)
    print(text)
    name = "report" if Path(options.code).resolve() == ROOT else "report_before"
    write_json(RESULTS / f"{name}.json", {
        "machine": machine, "goal_s": GOAL_S, "goal_mb": GOAL_MB, "page_mb": page_mb, "rows": rows,
        **{key: vars(options)[key] for key in ("runs", "epochs", "pictures")}}, indent=1)
    write_text(RESULTS / f"{name}.md", text)
    return int(rows[0]["median_s"] > GOAL_S or page_mb > GOAL_MB)


def draw_runs(folder: Path, options: argparse.Namespace) -> list[RunDir]:
    """Run folders of one sweep, as trainings and the scorer leave them."""
    rng = random.Random(0)
    shared = draw_shared(folder / "shared", options.pictures, rng)
    runs = [RunDir(folder / "runs" / f"lr={number}") for number in range(options.runs)]
    config = dump_config(config_from_dict({"train": {"epochs": options.epochs}}))
    for number, run in enumerate(runs):
        write_text(run.config, config, durable=False)
        write_json(run.manifest, {"stage": "train", "commit": "0" * 40, "ranks": 4,
                                  "packages": {f"package_{n}": "1.0" for n in range(30)}},
                   durable=False)
        write_json(run.state, {"state": "finished", "why": "", "epochs": options.epochs},
                   durable=False)
        write_text(run.train_log, "".join(json.dumps({
            "epoch": e, "loss": 3 - e / 9 + rng.random() / 5, "lr": 1e-5, "images_per_s": 80.5,
            "seconds": 600.5, "gpu_memory_gb": 20.25, "steps": 400, "skipped_steps": 0}) + "\n"
            for e in range(options.epochs)), durable=False)
        link(shared / "references.json", run.references("val"))
        levels = [number % 10 + e for e in range(options.epochs)]
        for epoch, level in enumerate(levels):
            link(shared / "captions.json", run.predictions("val", epoch))
            link(shared / f"scores_{level % FILES}.json", run.scores("val", epoch))
        link(shared / "scores_0.json", run.floor_scores("val"))
        link(shared / f"scores_{FILES - 1}.json", run.oracle_scores("val"))
        write_json(run.best, {"epoch": options.epochs - 1, "rule": "cider+bleu_4",
                              "value": value_of(levels[-1]) + value_of(levels[-1], 3)},
                   durable=False)
        if number < 10:
            keep_summaries(run)
        else:  # its score files are those of an earlier run
            shutil.copyfile(runs[number % 10].score_summaries, run.score_summaries)
    return runs


def draw_shared(folder: Path, pictures: int, rng: random.Random) -> Path:
    """The files that the runs share: references, captions, score files of many levels."""
    ids = [f"IIHIM_{rng.randrange(10 ** 9):09d}.jpg" for _ in range(pictures)]
    words = [f"word{n}" for n in range(500)]
    texts = {key: [" ".join(rng.sample(words, 9))] for key in ids}
    write_json(folder / "references.json", {
        "images": [{"id": key} for key in ids],
        "annotations": [{"id": n, "image_id": key, "caption": text}
                        for n, (key, (text,)) in enumerate(texts.items())]})
    write_json(folder / "captions.json", [
        {"image_id": key, "caption": " ".join(rng.sample(words, 8))} for key in ids])
    counts = {"bleu_counts": {key: [8, 9, 4, 8, 2, 7, 1, 6, 0, 5] for key in ids},
              "meteor_counts": {key: [rng.randrange(20) for _ in range(23)] for key in ids},
              "spice_counts": {key: {part: [1, 2, 3] for part in SPICE_PARTS} for key in ids}}
    for level in range(FILES):
        write_json(folder / f"scores_{level}.json",
                   score_file(level, ids, counts, references_hashes(texts), rng))
    return folder


def score_file(level: int, ids: Sequence[str], counts: dict[str, Any], hashes: dict[str, str],
               rng: random.Random) -> dict[str, Any]:
    """The layout of score/record.py; every metric grows with `level`."""
    metrics = {name: value_of(level, place) for place, name in enumerate(METRICS)}
    return summary_first({
        "split": "val", "epoch": 0, "predictions": "0" * 64, "pictures": len(ids),
        "metrics": metrics, "failed": {}, "cleaned": {}, "parsed": {},
        "seconds": dict.fromkeys(("bleu", "meteor", "rouge_l", "cider", "spice"), 1.5),
        "versions": {"blip_art": "1"}, "spice_categories": dict.fromkeys(SPICE_PARTS, 0.25),
        "per_image": {key: {name: value * rng.random() for name, value in metrics.items()}
                      for key in ids},
        **counts,
        "references": {**hashes, "count": len(ids), "max_words": 16,
                       "longer_share": 0.25},
        "captions": {"empty_share": 0.0, "most_frequent": "a ship at sea",
                     "most_frequent_share": 0.01, "unique_ratio": 0.5, "mean_words": 8.5},
        "bleu": {"brevity_penalty": 0.9, "length_ratio": 0.9},
        "intervals": {name: [value - 0.01, value + 0.01] for name, value in metrics.items()},
        "bootstrap": {"resamples": 1000, "seed": 1, "level": 0.95}})


def value_of(level: int, place: int = 6) -> float:
    return (0.2 + level / 30) * (place + 1) / 10


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def keep_summaries(run: RunDir) -> None:
    """As the scorer does after each file."""
    summaries = Summaries(run)
    for path in run.score_files():
        summaries.of(path)
    summaries.references(run.references("val"))
    summaries.keep()


def measured(what: str, argv: Sequence[str], folder: Path, options: argparse.Namespace
             ) -> dict[str, Any]:
    """One row: the same process some times, each with cold files."""
    environment = {**os.environ, "PYTHONPATH": options.code}
    found = []
    for _ in range(options.times):
        drop_from_cache(folder)
        done = subprocess.run([sys.executable, "-c", MEASURE, *argv], cwd=options.code,
                              env=environment, capture_output=True, text=True, check=True)
        seconds, cpu_s, peak_mb, code = done.stdout.split()
        assert code == "0", done.stderr
        found.append((float(seconds), float(cpu_s), float(peak_mb)))
    found.sort()
    seconds, cpu_s, peak_mb = found[len(found) // 2]
    return {"what": what, "median_s": round(seconds, 2), "least_s": round(found[0][0], 2),
            "cpu_s": round(cpu_s, 2), "peak_mb": round(peak_mb)}


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*.json*"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def as_text(rows: Sequence[dict[str, Any]], page_mb: float, options: argparse.Namespace,
            machine: str) -> str:
    """The table, as Markdown."""
    lines = [f"{options.runs:,} runs of {options.epochs} epochs, score files of "
             f"{options.pictures:,} pictures, none in the page cache ({machine}); goals: "
             f"{GOAL_S:g} s, {GOAL_MB:g} MB", "",
             "| command | median s | least s | CPU s | peak MB |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {row['what']} | {row['median_s']:.2f} | {row['least_s']:.2f} | "
              f"{row['cpu_s']:.2f} | {row['peak_mb']} |" for row in rows]
    return "\n".join([*lines, "", f"The page: {page_mb:.2f} MB"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
