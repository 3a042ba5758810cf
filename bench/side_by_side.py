"""Peers side by side: one process each, the same weights and inputs, in turn A B A B.

    with peers(commands(), spec) as asked:
        answers = in_turn(asked, {"ours": ("blip_art", {"do": "caption", "batch": 4})}, rounds=3)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blip_art.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
Row = dict[str, Any]
# Dense products in half precision, in 10^12 a second.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "V100": 125.0}
LOAD = f"{os.getloadavg()[0]:.1f}"  # of others: nothing has been measured yet


class Peer:
    """A process that answers one JSON line with one."""

    def __init__(self, command: Sequence[str], spec: Row) -> None:
        self._process = subprocess.Popen(
            [*command, json.dumps(spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                 "PYTHONPATH": os.pathsep.join(
                     filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))})

    def ask(self, request: Row) -> Row:
        """Its answer: {"seconds", …} of one piece of work."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {' '.join(self._process.args[:2])} ended; "  # type: ignore
                             "its last words are above")
        answer: Row = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def options(about: str, batch: list[int], rounds: int,
            compiled: bool = False) -> argparse.Namespace:
    """What benchmarks of a model are asked."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--batch", type=int, nargs="+", default=batch)
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--original", type=Path, help="a clone of the original")
    parser.add_argument("--python", default=sys.executable, help="the interpreter it runs in")
    if compiled:
        parser.add_argument("--compile", nargs="+", default=[], help="backends of train.compile")
    return parser.parse_args()


def commands(original_python: str = "") -> dict[str, Sequence[str]]:
    """How the peers are started; the original, if its interpreter is named."""
    folder = ROOT / "bench" / "peers"
    found: dict[str, Sequence[str]] = {
        "blip_art": [sys.executable, str(folder / "ours.py")],
        "transformers": [sys.executable, str(folder / "hf.py")]}
    if original_python:
        found["original"] = [original_python, str(folder / "original.py")]
    return found


@contextlib.contextmanager
def peers(started: dict[str, Sequence[str]], spec: Row) -> Iterator[dict[str, Peer]]:
    """The started processes, by name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(contextlib.closing(Peer(command, spec)))
               for name, command in started.items()}


def in_turn(asked: dict[str, Peer], requests: dict[str, tuple[str, Row]],
            rounds: int) -> dict[str, Row]:
    """Every request `rounds` times, in turn.

    Before a peer is timed it does the same work untimed: while it waited for the others, the system
    may have dropped its code from memory (seen: half as slow again, for the peers that are fast).

    Args:
        requests: by the name of the row: the peer's name and what it is asked.

    Returns:
        For each the last answer, with the median of its "seconds".
    """
    answers: dict[str, list[Row]] = {row: [] for row in requests}
    for _ in range(rounds):
        for row, (name, request) in requests.items():
            asked[name].ask(request)
            answers[row].append(asked[name].ask(request))
    return {row: {**found[-1], "seconds": statistics.median(a["seconds"] for a in found)}
            for row, found in answers.items()}


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    import torch

    models = [line.partition(":")[2].strip() for line in
              Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("model name")]
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    packages = {name: version(name) for name in ("torch", "transformers", "timm")}
    return {**gpu, "cores": str(len(os.sched_getaffinity(0))),
            "processor": models[0] if models else "unknown",
            "load before": LOAD, "python": platform.python_version(),
            **packages}


def mfu(tflops: float, dtype: str) -> float | str:
    """Share of what this GPU's tensor cores can do, or why there is none."""
    import torch

    peak = next((value for name, value in PEAK_TFLOPS.items()
                 if name in torch.cuda.get_device_name()), None)
    return tflops / peak if peak and dtype != "fp32" else "unknown"


def command_line() -> str:
    """This process's, without the paths of this machine."""
    words = ["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    for option, name in (("--original", "CLONE"), ("--python", "PYTHON"), ("--pictures", ""),
                         ("--folder", ""), ("--before", "CHECKOUT"), ("--code", "CHECKOUT")):
        if option in words and "/" in words[words.index(option) + 1]:
            words[words.index(option) + 1] = name or "DIR"
    return " ".join(words)


def write_table(name: str, command: str, device: str, rows: list[Row], dtype: str = "") -> None:
    """bench/results/<name>.md and .json; the table is printed too."""
    kind = {"device": device, **({"dtype": dtype} if dtype else {})}
    found = {"command": command, "machine": {**kind, **machine(device)}, "rows": rows}
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |"
              for row in rows]
    about = ", ".join(f"{key} {value}" for key, value in found["machine"].items())  # type: ignore
    text = "\n".join([*lines, "", f"`{command}`; {about}", ""])
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", found, indent=1)
    write_text(RESULTS / f"{name}.md", text)
    print(text)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
