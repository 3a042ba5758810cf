"""Seconds from the start of a training to its first step, on a drawn archive of full size.

    python bench/start.py --folder /scratch/start                 this code
    python bench/start.py --folder /scratch/start --code CHECKOUT --name before

The archive is 87,749 JPEG files of 500 x 400 pixels in one folder, of 24 different drawings, under
the original's names (from --names, else made up), with the notations of --notations, else the
vocabulary's. The model is that of configs/demo.yaml, so that building it and its step cost next to
nothing; everything else is as in configs/caption_art.yaml: 69,224 training pairs, validation and
test pictures looked at too. A step is done when its checkpoint is there. 'Not in the page cache'
asks the system to forget the pictures, lists and checkpoints first; the code itself stays cached.
The table goes to bench/results/start.md and .json, a row a measurement and code.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.prepare import synthetic
from bench.side_by_side import RESULTS, ROOT, Row, command_line, write_table
from blip_art.files import read_json, write_json

PICTURES, WITH_TEXT, DRAWINGS, MEMBERS = 87_749, 86_530, 24, 4
CHECKED = ".blip_art_checked.jsonl"  # older code has no name for it
SHARED = ROOT.parent / "shared" / "data" / "iconclass"
DEADLINE_S = 3_600.0
SPLIT = ["data.val_gt=", "data.test_gt=",
         *(f"data.{part}=iconclass{part.title()}_split.json" for part in ("train", "val", "test"))]
# What is started, in which run folder, with which settings, without the page cache.
STARTS: list[tuple[str, str, list[str], bool]] = [
    ("first run", "a", [], False),
    ("restart", "a", ["--resume"], False),
    ("first run, not in the page cache", "b", [], True),
    ("restart, not in the page cache", "a", ["--resume"], True),
    ("first run, a pair a phrase", "c", SPLIT, False),
    ("restart, a pair a phrase", "c", [*SPLIT, "--resume"], False)]


def main() -> None:
    """Draw, prepare, measure, write the table."""
    options = _options()
    archive, annotations = options.folder / "archive", options.folder / f"annotation_{options.name}"
    draw_archive(archive, options.names, options.notations)
    shutil.rmtree(annotations, ignore_errors=True)
    runs = options.folder / f"runs_{options.name}"
    shutil.rmtree(runs, ignore_errors=True)
    code = options.code.resolve()
    (archive / "data" / CHECKED).unlink(missing_ok=True)
    rows: list[Row] = []

    def add(what: str, seconds: float, cpu: float) -> None:
        rows.append({"what": what, f"{options.name}, s": round(seconds, 1),
                     f"{options.name}, CPU s": round(cpu, 1)})
        print(f"{what}: {seconds:.1f} s, {cpu:.1f} s of CPU", flush=True)

    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command(code, ["blip_art.data", "prepare", str(archive), "-o", str(annotations), "--style",
                   "seed", "--split", "seed" if options.names.exists() else "random"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    add("data prepare, which decodes every picture", time.perf_counter() - began,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    command(code, ["blip_art.model.tokenizer", str(annotations / "iconclassTrain.json"), "-o",
                   str(annotations)])
    config = write_config(options.folder / f"{options.name}.yaml", archive, annotations)
    known = [*archive.glob("data/*"), *annotations.glob("*.json")]
    for what, name, settings, cold in STARTS[:2] if options.few else STARTS:
        if cold:
            forget([*known, *(runs / name).rglob("*.*")])
        add(what, *time_first_steps(code, config, [runs / name], settings))
    if not options.few:
        members = [runs / f"member_{n}" for n in range(MEMBERS)]
        add(f"{MEMBERS} runs started together",
            *time_first_steps(code, config, members, ["data.num_workers=1"]))
    rows.append({"what": "load average of the machine at the end",
                 f"{options.name}, s": round(os.getloadavg()[1], 1)})
    write_results(rows)


def time_first_steps(code: Path, config: Path, runs: list[Path],
                     settings: list[str]) -> tuple[float, float]:
    """Seconds, and those of CPU, until each of `runs`, started together, has done a new step."""
    before = {run: modified(run) for run in runs}
    began = time.perf_counter()
    started = {run: start(code, config, run, settings) for run in runs}
    try:
        while any(modified(run) == before[run] for run in runs):
            for run, process in started.items():
                assert process.poll() is None or modified(run) != before[run], \
                    f"{run}: the training ended before a step; its output is above"
            assert time.perf_counter() - began < DEADLINE_S
            time.sleep(0.02)
        return time.perf_counter() - began, sum(cpu_seconds(p.pid) for p in started.values())
    finally:
        for process in started.values():
            process.send_signal(signal.SIGTERM)
        for process in started.values():
            process.wait()


def start(code: Path, config: Path, run: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    """A training that saves after each step."""
    return subprocess.Popen(
        [sys.executable, "-m", "blip_art.train", str(config), "--run", str(run),
         "train.save_every_min=1e-9", *settings], cwd=code, env=environment(code),
        stdout=subprocess.DEVNULL)


def cpu_seconds(pid: int) -> float:
    """Of a process and all its descendants, those that have ended too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # own and of ended children, user and system
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]
    return ticks / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children))


def modified(run: Path) -> int:
    """When the checkpoint was written, in ns; 0 where there is none."""
    path = run / "checkpoints" / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def command(code: Path, words: list[str]) -> None:
    """Run a module of the code to be measured."""
    subprocess.run([sys.executable, "-m", *words], cwd=code, env=environment(code), check=True,
                   stdout=subprocess.DEVNULL)


def environment(code: Path) -> dict[str, str]:
    """Modules are those of `code`."""
    return {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fdatasync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def write_config(path: Path, archive: Path, annotations: Path) -> Path:
    """configs/demo.yaml's model, configs/caption_art.yaml's data."""
    write_json(path, {  # JSON is YAML
        "data": {"images": str(archive), "annotations": str(annotations),
                 "val_gt": "art_gt/art_val_gt.json", "test_gt": "art_gt/art_test_gt.json"},
        "model": {"vit": "tiny", "image_size": 64, "tokenizer": str(annotations),
                  "text_width": 192, "text_layers": 2, "text_heads": 3},
        "train": {"batch_size": 8}, "generate": {"splits": ["val", "test"]}})
    return path


def draw_archive(folder: Path, names: Path, notations: Path) -> None:
    """Pictures and data.json; what is there already is kept."""
    if (folder / "data.json").exists():
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    known = (read_json(names) if names.exists()
             else [f"IIHIM_{number}.jpg" for number in range(WITH_TEXT)])
    records = dict(zip(known, notations_of_pictures(notations, len(known)), strict=True))
    records.update({f"no_text_{n}.jpg": ["no notation"] for n in range(PICTURES - len(known))})
    drawings = []
    for number, content in enumerate(drawn_jpegs()):
        drawings.append(folder.parent / f"drawing_{number}.jpg")
        drawings[-1].write_bytes(content)
    for number, name in enumerate(records):
        if not (folder / "data" / name).exists():
            os.link(drawings[number % DRAWINGS], folder / "data" / name)
    (folder / "data.json").write_text(json.dumps(records))


def notations_of_pictures(file: Path, pictures: int) -> Iterator[list[str]]:
    """Lists of notations as often as they are used in the real archive, about four a picture."""
    if not file.exists():
        yield from synthetic(pictures).values()
        return
    with open(file, encoding="utf-8", newline="") as lines:
        # Older code cannot read keys that are empty.
        rows = [row for row in csv.DictReader(lines) if not {"(+)", "(+("} & {
            row["notation"][at:at + 3] for at in range(len(row["notation"]))}]
    rng = random.Random(0)
    drawn = rng.choices([row["notation"] for row in rows], [int(row["count"]) for row in rows],
                        k=4 * pictures)
    for first in range(0, len(drawn), 4):
        yield ["31A235", *drawn[first:first + rng.choice((1, 2, 3, 4, 4))]]


def drawn_jpegs() -> Iterator[bytes]:
    """Smooth noise, which JPEG packs about as a painting."""
    rng = np.random.default_rng(0)
    for _ in range(DRAWINGS):
        small = Image.fromarray(rng.integers(0, 256, (50, 62, 3), np.uint8))
        grain = rng.normal(0, 6, (400, 500, 3))
        pixels = np.asarray(small.resize((500, 400), Image.Resampling.BICUBIC)) + grain
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        yield buffer.getvalue()


def write_results(rows: list[Row]) -> None:
    """Beside what was measured of other code before: a column a code."""
    path = RESULTS / "start.json"
    kept = read_json(path)["rows"] if path.exists() else []
    merged: dict[str, Row] = {row["what"]: row for row in kept}
    for row in rows:
        merged.setdefault(row["what"], {}).update(row)
    write_table("start", command_line(), "cpu", list(merged.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where to draw")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--name", default="seconds", help="of the column")
    parser.add_argument("--few", action="store_true", help="a first run and a restart only")
    parser.add_argument("--names", type=Path, default=SHARED / "pairs_in_order.json")
    parser.add_argument("--notations", type=Path, default=SHARED / "notations_half.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
