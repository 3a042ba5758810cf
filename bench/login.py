"""Seconds until the login side answers: `launch.py --help`, 200 runs' table, a sweep of 200.

    python bench/login.py                            this interpreter
    python bench/login.py --python python3.9 …       others too; they need submitit and pyyaml only

Each measurement is a process of its own; the first, which may compile, is not counted. The sweep is
handed to commands that answer at once in Slurm's place: what is measured is ours. The table goes to
bench/results/login.md and .json.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blip_art.files import RunDir, write_json, write_jsonl, write_text  # noqa: E402

HELP_GOAL_S = 0.15
RUNS, EPOCHS = 200, 10
RESULTS = ROOT / "bench" / "results"


def main() -> int:
    """Measure, print and write the table; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters")
    parser.add_argument("--times", type=int, default=15, help="processes a row")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_runs(Path(name))
        write_sweep(Path(name))
        for python in options.python:
            for what, words in (("nothing (the interpreter)", ["-c", ""]),
                                ("launch.py --help", [str(ROOT / "launch.py"), "--help"]),
                                (f"launch.py status, {RUNS} runs",
                                 [str(ROOT / "launch.py"), "status"]),
                                (f"launch.py sweep, {RUNS} runs",
                                 [str(ROOT / "launch.py"), "sweep", "many.yaml", "--cluster",
                                  "slurm", "--site", "site.yaml"])):
                rows.append(measured(python, what, words, Path(name), options.times))
    machine = f"{platform.node()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    write_json(RESULTS / "login.json", {"machine": machine, "goal_help_s": HELP_GOAL_S,
                                        "rows": rows}, indent=1)
    text = as_text(rows, machine)
    write_text(RESULTS / "login.md", text)
    print(text)
    return int(any(row["median_s"] > HELP_GOAL_S for row in rows if "--help" in row["what"]))


def write_runs(folder: Path) -> None:
    """Run folders as trainings leave them, score files of realistic size."""
    pictures = {str(number): {"CIDEr": .5, "SPICE": .2} for number in range(3000)}
    for number in range(RUNS):
        run = RunDir(folder / "runs" / "sweep" / f"lr_{number}")
        write_text(run.config, f"train:\n  epochs: {EPOCHS}\n")
        write_json(run.state, {"state": "finished", "why": "", "epochs": EPOCHS})
        write_json(run.best, {"epoch": 7, "rule": "cider+bleu_4", "value": 1.0})
        write_jsonl(run.train_log, [{"epoch": e, "loss": 2.0, "seconds": 600.0}
                                    for e in range(EPOCHS)])
        write_json(run.scores("val", 0), {"pictures": 3000, "metrics": {"SPICE": .2},
                                          "per_image": pictures})
        for epoch in range(EPOCHS):
            write_json(run.predictions("val", epoch), [])
            if epoch:
                shutil.copyfile(run.scores("val", 0), run.scores("val", epoch))


def write_sweep(folder: Path) -> None:
    """A sweep of 200 runs, what they read, a site without a container, and Slurm's commands."""
    for name in ("bin", "pictures", "words"):
        (folder / name).mkdir()
    for name, said in (("sbatch", "echo Submitted batch job 7"), ("squeue", ":"), ("srun", ":")):
        write_text(folder / "bin" / name, f"#!/bin/sh\n{said}\n")
        (folder / "bin" / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    for name in ("train.json", "val.json"):
        write_json(folder / name, [])
    write_text(folder / "config.yaml", "data: {images: pictures, annotations: ., train: train.json,"
                                       " val: val.json}\nmodel: {tokenizer: words}\n")
    write_text(folder / "many.yaml", f"config: config.yaml\nseeds: {list(range(RUNS))}\n")
    write_text(folder / "site.yaml", f"container: ''\npython: {sys.executable}\n")


def measured(python: str, what: str, words: Sequence[str], folder: Path,
             times: int) -> dict[str, Any]:
    """One row: the same process `times` times after a first that is not counted."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        done = subprocess.run([python, *words], cwd=folder, capture_output=True, check=False)
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr.decode()
    version = subprocess.run([python, "-c", "import platform as p; print(p.python_version())"],
                             capture_output=True, text=True, check=True).stdout.strip()
    return {"python": version, "what": what, "median_s": round(statistics.median(seconds[1:]), 4),
            "min_s": round(min(seconds[1:]), 4), "max_s": round(max(seconds[1:]), 4)}


def as_text(rows: Sequence[dict[str, Any]], machine: str) -> str:
    """The table, as Markdown."""
    lines = [f"Seconds until the login side answers ({machine}); goal for --help: "
             f"{HELP_GOAL_S} s", "", "| Python | command | median | least | most |",
             "|---|---|---:|---:|---:|"]
    lines += [f"| {row['python']} | {row['what']} | {row['median_s']:.3f} | {row['min_s']:.3f} | "
              f"{row['max_s']:.3f} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
