"""Trainings killed (SIGKILL) at random points and resumed: equal to one never killed, bit for bit?

    python -m bench.kill_soak --trials 100 --write

A trial is a run of the tiny model that saves after every step, is killed once to three times, half
of the times while a file is being written, and then goes on to its end.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from blip_art.files import RunDir, read_jsonl, write_json, write_text
from blip_art.train.__main__ import main as train
from tests.mini import write_mini

RESULTS = Path(__file__).parent / "results" / "kill_soak"
LATE_S = 600.0


def begin(config: Path, run: RunDir) -> int:
    """A training in a process of its own; forked, since starting Python takes longer than it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, \
                contextlib.redirect_stdout(nowhere):
            torch.set_num_threads(1)
            code = train([str(config), "--run", str(run.path), "--resume", "data.num_workers=0",
                          "train.save_every_min=1e-9", "generate.num_beams=1"])
    finally:
        os._exit(code)


def finish(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"a training ended with status {status}")


def kill(pid: int, due: Callable[[], bool]) -> bool:
    """Kill the process once it is due; False if it has ended before."""
    started = time.monotonic()
    while not due():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        assert time.monotonic() - started < LATE_S
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def when(rng: random.Random, run: RunDir, whole_s: float) -> Callable[[], bool]:
    """After some time, or some time after a file has begun to be written."""
    end = time.monotonic() + rng.uniform(0, whole_s)
    if rng.random() < 0.5:
        return lambda: time.monotonic() > end
    return lambda: time.monotonic() > end and any(
        name.endswith(".tmp") for folder in (run.checkpoints, run.path / "predictions")
        if folder.exists() for name in os.listdir(folder)) or time.monotonic() > end + whole_s


def content(run: RunDir) -> dict[str, object]:
    """What a run has made: weights, captions, losses, and all that it would resume with."""
    state = torch.load(run.last_checkpoint, weights_only=True)
    tensors = {**state["model"], **{f"{i} {name}": tensor for i, averages
                                    in state["optimizer"]["state"].items()
                                    for name, tensor in averages.items()}}
    files = [*run.checkpoints.glob("*.safetensors"), *(run.path / "predictions").glob("*")]
    return {**{name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
            **{path.name: path.read_bytes() for path in files},
            "losses": [row["loss"] for row in read_jsonl(run.train_log)]}


def trial(config: Path, run: RunDir, rng: random.Random, whole_s: float) -> list[str]:
    """Kill and resume; returns what the kills hit, nothing if the run was faster than any."""
    hits: list[str] = []
    for _ in range(rng.randint(1, 3)):
        if not kill(begin(config, run), when(rng, run, whole_s)):
            return hits
        left = [path.name.split(".")[1] for path in run.path.rglob("*.tmp")]
        hits.append(f"writing {left[0]}" if left else "between writes")
    finish(begin(config, run))
    return hits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}.json and .md")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    different, litter, hits = [], [], collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        config = write_mini(Path(folder) / "mini", train=24, val=3)
        undisturbed = RunDir(Path(folder) / "undisturbed")
        started = time.monotonic()
        finish(begin(config, undisturbed))
        whole_s, wanted = time.monotonic() - started, content(undisturbed)
        for number in range(args.trials):
            hit: list[str] = []
            while not hit:  # a run that was not killed is no trial
                run = RunDir(tempfile.mkdtemp(dir=folder))
                hit = trial(config, run, rng, whole_s)
                whole_s *= 1 if hit else 0.8  # the machine has become faster
            hits.update(hit)
            if content(run) != wanted:
                different.append(number)
            if any(run.path.rglob("*.tmp")):
                litter.append(number)
            print(f"{number + 1} trials, {hits.total()} kills, {len(different)} different, "
                  f"{len(litter)} with litter", flush=True)
    figures = {"trials": args.trials, "seed": args.seed, "kills": hits.total(),
               "different": different, "litter": litter, "hit": dict(hits.most_common())}
    if args.write:
        write_json(RESULTS.with_suffix(".json"), figures, indent=1)
        write_text(RESULTS.with_suffix(".md"), f"""# Killed and resumed

`python -m bench.kill_soak --trials {args.trials} --write`: {hits.total()} SIGKILLs in {args.trials}
runs; {args.trials - len(different)} of {args.trials} were bit-equal to a run never killed (weights,
optimizer, captions, losses), {len(litter)} had temporary files left.

| a kill hit | times |
|---|---|
""" + "".join(f"| {what} | {times} |\n" for what, times in hits.most_common()))
    return 1 if different or litter else 0


if __name__ == "__main__":
    sys.exit(main())
