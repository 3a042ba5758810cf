"""Seconds from an error in one rank to the end of all processes, in training and captioning.

    python bench/errors_end.py [--quick]      writes bench/results/errors_end.md and .json

Real ranks under torchrun (or alone, as srun starts them) on drawn pictures, each with four loader
processes; one of them meets a fault in the middle. tests/test_errors_end.py runs some of the cases.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blip_art.files import write_json, write_text  # noqa: E402

RESULTS = ROOT / "bench" / "results"
MARK, ERROR_AT = "ERRORS_END_CASE", "ERRORS_END_AT"
BATCH = 6
LIMIT_S, START_LIMIT_S = 60.0, 600.0
LOADERS = 4


@dataclass(frozen=True)
class Case:
    """One fault: `rank` of `ranks` meets it."""

    command: str
    """train or predict."""
    ranks: int
    fault: str
    """memory, loader (killed), picture (removed), killed (the rank) or stuck: memory runs out in
    one rank while the others wait for something that never comes."""
    rank: int = 0
    launcher: str = "torchrun"
    """torchrun, or alone: ranks that nobody ends when one of them has failed."""

    def __str__(self) -> str:
        alone = "-alone" if self.launcher == "alone" else ""
        return f"{self.command}-{self.ranks}-{self.fault}{alone}"


class Outcome(NamedTuple):
    """How a case ended."""

    codes: tuple[int, ...]
    """Exit code of torchrun, or of each rank."""
    seconds: float | None
    """From the fault to the end of the last process; None if some were still there at the limit."""
    left: tuple[str, ...]
    """Command lines of processes that were still there at the limit."""
    state: dict[str, Any]
    log: str


CASES = (
    *(Case(command, ranks, fault, ranks - 1)
      for fault in ("memory", "killed") for ranks in (1, 2, 4) for command in ("train", "predict")),
    *(Case(command, 2, fault, 1)
      for command in ("train", "predict") for fault in ("loader", "picture", "stuck")),
    Case("train", 2, "killed", 0, "alone"), Case("predict", 4, "memory", 3, "alone"),
)


def main() -> int:
    """Measure, print and write the table; 1 if something did not end in 30 s."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    machine = f"{platform.node()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        inputs = write_inputs(Path(name, "inputs"))
        for number, case in enumerate(case for case in CASES if options.only in str(case)):
            outcome = run_case(case, inputs, Path(name, str(number)))
            rows.append({**asdict(case), **outcome._asdict(),
                         "load": round(os.getloadavg()[0], 1)})
            print(as_text(rows[-1:], "").splitlines()[-1], flush=True)
            write_json(options.out / "errors_end.json", {"machine": machine, "rows": [
                {key: row[key] for key in row if key != "log"} for row in rows]}, indent=1)
            write_text(options.out / "errors_end.md", as_text(rows, machine))
    return int(any(row["seconds"] is None or row["seconds"] > 30 for row in rows))


def write_inputs(folder: Path) -> Path:
    """A data set, a configuration and weights; returns the configuration."""
    from blip_art.config import load_config
    from blip_art.model.captioner import build_captioner
    from blip_art.model.tokenizer import CaptionTokenizer
    from blip_art.model.weights import save_weights
    from tests.mini import write_mini

    config = write_mini(folder, train=96, val=64)
    loaded = load_config(config)
    save_weights(build_captioner(loaded.model, CaptionTokenizer(loaded.model.tokenizer)),
                 folder / "weights.safetensors")
    return config


def run_case(case: Case, inputs: Path, folder: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Start the ranks, wait until none of their processes is left, and tell how they ended."""
    folder.mkdir()
    pictures = folder / "pictures"
    pictures.mkdir()
    for picture in (inputs.parent / "pictures").iterdir():
        (pictures / picture.name).hardlink_to(picture)
    mark, error_at = uuid.uuid4().hex, folder / "error_at"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), MARK: mark,
           ERROR_AT: str(error_at)}
    with open(folder / "log", "wb") as log:
        processes = [subprocess.Popen(argv, env={**env, **more}, cwd=folder, stdout=log,
                                      stderr=log, stdin=subprocess.DEVNULL)
                     for argv, more in _commands(case, inputs, folder)]
        left = _wait_for_end(processes, mark, error_at, limit_s)
        seconds = None if left else time.time() - float(error_at.read_text())
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        codes = tuple(process.wait() for process in processes)
    state = folder / "run" / "state.json"
    return Outcome(codes, seconds, tuple(left.values()),
                   json.loads(state.read_text()) if state.exists() else {},
                   (folder / "log").read_text(errors="replace"))


def _commands(case: Case, inputs: Path, folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    """(arguments, environment) of each process that is started here."""
    faulty = [__file__, case.fault, str(case.rank), f"blip_art.{case.command}"]
    settings = [f"data.images={folder}/pictures", f"data.num_workers={LOADERS}"]
    if case.command == "train":
        program = [*faulty, str(inputs), "--run", "run", *settings, "train.batch_size=1"]
    else:
        program = [*faulty, "--run", "run", "--config", str(inputs), "--weights",
                   str(inputs.parent / "weights.safetensors"), *settings, "generate.batch_size=1"]
    if case.launcher == "torchrun":
        return [([sys.executable, "-m", "blip_art.torchrun", "--standalone",
                  f"--nproc_per_node={case.ranks}", *program], {})]
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    return [([sys.executable, *program],
             {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks),
              "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
            for rank in range(case.ranks)]


def _wait_for_end(processes: list[subprocess.Popen[bytes]], mark: str, error_at: Path,
                  limit_s: float) -> dict[int, str]:
    """Processes that are still there `limit_s` after the fault; {} as soon as there are none."""
    deadline = time.time() + START_LIMIT_S
    while True:
        for process in processes:
            process.poll()  # buries it
        left = marked(mark)
        if not left:
            assert error_at.exists(), (error_at.parent / "log").read_text()
            return left
        if error_at.exists() and (said := error_at.read_text()):
            deadline = min(deadline, float(said) + limit_s)
        if time.time() > deadline:
            assert error_at.exists(), f"no fault in {START_LIMIT_S} s; left: {left}"
            return left
        time.sleep(0.05)


def marked(mark: str) -> dict[int, str]:
    """Living processes with this mark in their environment, and their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def as_text(rows: list[dict[str, Any]], machine: str) -> str:
    """The table, as Markdown."""
    lines = [f"Seconds from an error in one rank to the end of all processes ({machine}); "
             "goal: 30 s.",
             "The code before (7f49fa7) ended in none of those that were tried: 6 to 29 processes",
             "were left after 60 s, and state.json said 'running' or nothing in most of them.", "",
             "| command | ranks | fault | started by | seconds | load | exit code | state.json | "
             "log's last line |", "|---|---:|---|---|---:|---:|---|---|---|"]
    for row in rows:
        seconds = (f"{row['seconds']:.1f}" if row["seconds"] is not None else
                   f"never: {len(row['left'])} processes after {LIMIT_S:.0f} s")
        last = (row["log"].strip().splitlines() or [""])[-1][:150]
        state = f"{row['state'].get('state')}: {row['state'].get('why')}"[:100]
        codes = "-" if row["left"] else ", ".join(str(code) for code in row["codes"])
        lines.append(f"| {row['command']} | {row['ranks']} | {row['fault']} in rank {row['rank']} "
                     f"| {row['launcher']} | {seconds} | {row['load']} | {codes} | {state} "
                     f"| {last} |")
    return "\n".join(lines) + "\n"


def run_faulty(fault: str, rank: int, module: str, argv: list[str]) -> None:
    """A rank: the command itself, which meets the fault at its sixth batch."""
    from blip_art.data import transforms

    whole, calls = transforms.to_input, itertools.count(1)

    def to_input(*args: Any) -> Any:
        if next(calls) == BATCH:
            if int(os.environ["RANK"]) == rank:
                _meet(fault)
            elif fault == "stuck":
                time.sleep(10**6)
        return whole(*args)
    transforms.to_input = to_input  # type: ignore[assignment]
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _meet(fault: str) -> None:
    import torch

    Path(os.environ[ERROR_AT]).write_text(str(time.time()))
    if fault in ("memory", "stuck"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
                                     "total capacity of 31.74 GiB of which 1.00 GiB is free.")
    if fault == "loader":
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    elif fault == "picture":
        Path("pictures", "train_96.png").unlink()
        Path("pictures", "val_64.png").unlink()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if "RANK" in os.environ:
        run_faulty(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    else:
        sys.exit(main())
