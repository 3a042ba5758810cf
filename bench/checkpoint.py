"""What it costs to save and to read a checkpoint of BLIP base, with and without its digest.

    python -m bench.checkpoint --write

Random weights and AdamW's moments: 224 million parameters, 2.7 GB. Files are in the page cache when
they are read, so that the check is not hidden behind a disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.weights import MODEL, copy_vocabulary
from blip_art.config import TrainConfig
from blip_art.files import RunDir, write_json, write_text
from blip_art.model.captioner import build_captioner
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.unpickle import load_pth
from blip_art.model.weights import read_state, save_weights
from blip_art.train.checkpoint import Progress, read_checkpoint, save_checkpoint
from blip_art.train.optim import Stepper

RESULTS = Path(__file__).parent / "results" / "checkpoint"
CPU = torch.device("cpu")


def seconds(action: Callable[[], object], times: int) -> float:
    """Median over `times` calls."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
        print(f"{taken[-1]:.2f} s", file=sys.stderr, flush=True)
    return statistics.median(taken)


def copy_tensors(tensors: dict[str, torch.Tensor]) -> None:
    """What a model does with them; safetensors reads a file only then."""
    for tensor in tensors.values():
        tensor.clone()


def measure(folder: Path, times: int) -> dict[str, float]:
    """Seconds by what is done."""
    copy_vocabulary(folder / "vocabulary")
    model = build_captioner(MODEL, CaptionTokenizer(str(folder / "vocabulary")))
    stepper = Stepper(model, TrainConfig(), CPU)
    for parameter in stepper.parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    stepper.step()
    run, plain = RunDir(folder / "run"), folder / "plain.pt"
    run.checkpoints.mkdir(parents=True)

    def save_plain() -> None:
        with open(plain, "wb") as file:
            torch.save({"model": model.state_dict(), **stepper.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
    weights, bare = folder / "w.safetensors", folder / "bare.safetensors"
    state = {name: tensor for name, tensor in model.state_dict().items()
             if "token_type" not in name and "cls.predictions.decoder." not in name}
    found = {
        "last.pt: save without a digest": seconds(save_plain, times),
        "last.pt: save": seconds(lambda: save_checkpoint(
            run, {"run": "r"}, Progress(), model, stepper, None), times)}
    plain.unlink()
    last = run.last_checkpoint
    found |= {
        "last.pt: read, unchecked": seconds(lambda: load_pth(last, verified=True), times),
        "last.pt: read": seconds(lambda: read_checkpoint(last, CPU), times),
        "last.pt: read by the zip's checksums": seconds(lambda: load_pth(last), times),
        "epoch weights: save without a digest": seconds(lambda: save_file(state, bare), times),
        "epoch weights: save": seconds(lambda: save_weights(model, weights), times),
        "epoch weights: read, unchecked": seconds(lambda: copy_tensors(load_file(bare)), times),
        "epoch weights: read": seconds(lambda: copy_tensors(read_state(str(weights))), times),
        "last.pt: GB": last.stat().st_size / 1e9, "epoch weights: GB": weights.stat().st_size / 1e9}
    return {what: round(value, 3) for what, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--folder", help="where to write 10 GB for a while")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}.json and .md")
    args = parser.parse_args()
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(Path(folder), args.times)
    table = "| what | seconds |\n|---|---|\n" + "".join(
        f"| {what} | {value:.2f} |\n" for what, value in found.items())
    sys.stdout.write(table)
    if args.write:
        write_json(RESULTS.with_suffix(".json"), found, indent=1)
        write_text(RESULTS.with_suffix(".md"), "# Checkpoints of BLIP base\n\n`python -m bench."
                   f"checkpoint`, {os.cpu_count()} cores, the median of {args.times}.\n\n{table}")


if __name__ == "__main__":
    main()
