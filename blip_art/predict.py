"""Checkpoint → predictions: every picture of a split captioned once, by all ranks.

    python -m blip_art.predict --run runs/caption_art --epoch 3 --split test
    torchrun --nproc_per_node=4 -m blip_art.predict --run-dir runs/coco \\
        --config configs/caption_coco.yaml --weights model_base_caption_capfilt_large.pth
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from tqdm import tqdm

from blip_art.config import (
    Config,
    GenerateConfig,
    config_to_dict,
    dump_config,
)
from blip_art.data.datasets import Picture, unique_pictures
from blip_art.data.loading import PictureDataset
from blip_art.data.transforms import to_input
from blip_art.data.workers import load_batches, worker_options
from blip_art.distributed import STOP_SIGNALS, Interrupted, Stop, World, process_group
from blip_art.errors import EXIT_INTERRUPTED, UserError, exit_cleanly
from blip_art.failure import forget_failure, note_run, write_failure
from blip_art.files import RunDir, write_json, write_text
from blip_art.manifest import update_manifest
from blip_art.memory import explain_out_of_memory
from blip_art.merge import merge_captions
from blip_art.model.beams import BeamOptions
from blip_art.model.captioner import BlipCaptioner, build_captioner
from blip_art.model.decode import NotFinite, NucleusOptions, beam_search, nucleus_sample
from blip_art.model.step import StepDecoder
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.weights import load_weights
from blip_art.predict_plan import plan_predictions
from blip_art.readable import freeze_references, readable_pairs
from blip_art.train.optim import autocast, caption_dtype

Batch = tuple[Tensor, Tensor]
# What a rank wants after a batch; all do what the most urgent one wants.
GO_ON, OTHER_TYPE, STOP = range(3)
LESS_MEMORY = "lower generate.batch_size or generate.num_beams"


def encoded_ahead(decoder: StepDecoder, batches: Iterator[Batch],
                  device: torch.device) -> Iterator[Batch]:
    """(positions, image states) of batches (positions, bytes), the next one begun before.

    On a GPU the encoder has a stream of its own, to fill what the decoder's small steps leave idle.
    """
    side = _side_stream(device) if device.type == "cuda" else None
    if side:
        side.wait_stream(torch.cuda.current_stream(device))  # for the weights

    def encode(batch: Batch | None) -> Batch | None:
        if batch is None:
            return None
        positions, pixels = batch
        with torch.cuda.stream(side) if side else nullcontext():
            return positions, decoder.encode(to_input(pixels.to(device, non_blocking=True)))

    ahead = encode(next(batches, None))
    while ahead is not None:
        if side:
            here = torch.cuda.current_stream(device)
            here.wait_stream(side)
            ahead[1].record_stream(here)
        now, ahead = ahead, encode(next(batches, None))
        yield now


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: torch has 32, and lends them anew after that, also the one that recorded steps
    have the workspace of."""
    return torch.cuda.Stream(device)


def caption_states(decoder: StepDecoder, tokenizer: CaptionTokenizer, states: Tensor,
                   options: GenerateConfig, seeds: list[int]) -> list[list[str]]:
    """Candidates [picture][options.captions] for (B, patches, width) of the encoder."""
    lengths = {"max_length": options.max_length, "min_length": options.min_length}
    if options.method == "nucleus":
        ids = nucleus_sample(decoder, states, NucleusOptions(
            top_p=options.top_p, num_return=options.captions,
            repetition_penalty=options.repetition_penalty, **lengths), seeds)
    else:
        diverse = options.method == "diverse"
        ids, _ = beam_search(decoder, states, BeamOptions(
            num_beams=max(options.num_beams, options.captions), num_return=options.captions,
            groups=options.captions if diverse else 1, diversity=options.diversity,
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty, **lengths))
    return [[tokenizer.decode(caption) for caption in picture] for picture in ids]


def picture_seed(seed: int, epoch: int, position: int) -> int:
    """One number a picture, so that sampling depends on neither batch nor rank."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + position) % 2**63


def caption_pictures(model: BlipCaptioner, tokenizer: CaptionTokenizer, pictures: list[Picture],
                     config: Config, epoch: int, world: World, stop: Stop,
                     title: str) -> list[dict[str, Any]]:
    """Caption all pictures, shared among the ranks; every rank returns the whole list in order.

    In half precision weights may be too large; then it is done once more in fp32.

    Raises:
        Interrupted: a signal came; all ranks raise it together.
        UserError: the weights are damaged.
    """
    model.eval()
    dtype = caption_dtype(config.train.amp, world.device)
    work = (model, tokenizer, pictures, config, epoch, world, stop, title)
    found = _found(*work, dtype)
    if found is None and dtype:
        if world.is_main:
            print(f"{title}: the weights are too large for {str(dtype).removeprefix('torch.')}; "
                  "once more in float32", flush=True)
        found = _found(*work, None)
    if found is None:
        raise UserError("scores of words are no numbers: the weights are damaged")
    return [_row(pictures[position], found[position]) for position in range(len(pictures))]


@torch.inference_mode()
def _found(model: BlipCaptioner, tokenizer: CaptionTokenizer, pictures: list[Picture],
           config: Config, epoch: int, world: World, stop: Stop, title: str,
           dtype: torch.dtype | None) -> dict[int, list[str]] | None:
    """Candidates of all pictures by position; None: the weights do not fit `dtype`."""
    options = config.generate
    mine = list(range(world.rank, len(pictures), world.size))
    dataset = PictureDataset([pictures[i].image for i in mine], config.data.images,
                             config.model.image_size)
    loader = DataLoader(dataset, batch_size=options.batch_size, sampler=SequentialSampler(dataset),
                        num_workers=config.data.num_workers,
                        **worker_options(config.data.num_workers, STOP_SIGNALS),
                        pin_memory=world.device.type == "cuda")
    # Ranks vote after every batch, so all of them count as many batches as the first has.
    rounds = -(-len(range(0, len(pictures), world.size)) // options.batch_size)
    rows: dict[int, list[str]] = {}
    decoder = StepDecoder(model, dtype)
    batches = encoded_ahead(decoder, load_batches(loader), world.device)
    # One block for all batches: inside it weights are cast once.
    with explain_out_of_memory(LESS_MEMORY), closing(decoder), autocast(dtype, world.device), tqdm(
            total=len(pictures), desc=title, unit="picture", leave=False,
            disable=None if world.is_main else True) as bar:
        for _ in range(rounds):
            batch, fits = next(batches, None), True
            if batch is not None:
                positions = [mine[i] for i in batch[0].tolist()]
                seeds = [picture_seed(config.seed, epoch, position) for position in positions]
                try:
                    texts = caption_states(decoder, tokenizer, batch[1], options, seeds)
                    rows.update(zip(positions, texts, strict=True))
                except NotFinite:
                    fits = False
                bar.update(min(len(positions) * world.size, len(pictures) - bar.n))
            wanted = world.most(STOP if stop else GO_ON if fits else OTHER_TYPE)
            if wanted == STOP:
                raise Interrupted
            if wanted == OTHER_TYPE:
                return None
    return {position: texts for part in world.gather(rows) for position, texts in part.items()}


def _row(picture: Picture, candidates: list[str]) -> dict[str, Any]:
    if len(candidates) == 1:
        return {"image_id": picture.image_id, "caption": candidates[0]}
    return {"image_id": picture.image_id, "caption": merge_captions(candidates),
            "candidates": candidates}


def check_lengths(config: Config, model: BlipCaptioner) -> None:
    """Refuse a max_length that the prompt alone fills, and more beams than there are tokens.

    Raises:
        UserError: names the setting.
    """
    if config.generate.max_length <= len(model.prompt_ids):
        raise UserError(f"generate.max_length={config.generate.max_length} leaves no room for a "
                        f"word: the prompt has {len(model.prompt_ids)} tokens")
    # A step of the search looks at twice as many tokens as there are beams.
    vocabulary = model.text_decoder.config.vocab_size
    if 2 * config.generate.num_beams > vocabulary:
        raise UserError(f"generate.num_beams={config.generate.num_beams} is too many for a "
                        f"vocabulary of {vocabulary} tokens; set {vocabulary // 2} or fewer")


def caption_split(model: BlipCaptioner, tokenizer: CaptionTokenizer, config: Config, run: RunDir,
                  split: str, epoch: int, world: World, stop: Stop) -> None:
    """Write predictions/<split>_<epoch>.json."""
    # Split lists name a picture about four times: each is captioned once.
    pictures = unique_pictures(readable_pairs(config, run, split, world))
    rows = caption_pictures(model, tokenizer, pictures, config, epoch, world, stop,
                            f"captions {split} {epoch}")
    if world.is_main:
        write_json(run.predictions(split, epoch), rows)
    world.barrier()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    run = RunDir(args.run)
    plan = plan_predictions(run, args.config or "", args.weights or "", args.epoch,
                            args.split or (), args.overrides)
    config, source, epoch, splits = plan.config, plan.source, plan.epoch, plan.splits
    with process_group() as world, Stop() as stop:
        world.peers.record = functools.partial(write_failure, run, "predict")
        note_run(run, "predict")
        if world.is_main:
            if not run.config.exists():
                write_text(run.config, dump_config(config))
            update_manifest(run, stage="predict", data=[source] if Path(source).is_file() else [],
                            cwd=os.getcwd(), predict={"weights": source, "epoch": epoch,
                                                      "generate": config_to_dict(config.generate)})
        tokenizer = CaptionTokenizer(config.model.tokenizer)
        model = build_captioner(config.model, tokenizer)
        load_weights(model, source)
        model.to(world.device)
        check_lengths(config, model)
        for split in splits:
            readable_pairs(config, run, split, world)
            freeze_references(config, run, split, world)
        try:
            for split in splits:
                caption_split(model, tokenizer, config, run, split, epoch, world, stop)
                if world.is_main:
                    print(run.predictions(split, epoch))
            if world.is_main:
                forget_failure(run)
        except Interrupted:
            return EXIT_INTERRUPTED
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.predict", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    # torchrun under Python 3.11 takes --run for its own --run-path; --run-dir passes by it.
    parser.add_argument("--run", "--run-dir", dest="run", required=True,
                        help="run folder to read from and write to")
    parser.add_argument("--config", help="configuration, for a run folder that has none yet")
    parser.add_argument("--weights", help="captions of these weights instead of the run's own: "
                        ".pth, .safetensors, a folder, or a hub name in the local cache")
    parser.add_argument("--epoch", type=int, help="epoch to caption (default: the best, or the "
                        "last); with --weights the number to file the captions under")
    parser.add_argument("--split", action="append", choices=("val", "test"),
                        help="split to caption, may be repeated (default: generate.splits)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value",
                        help="change a setting, for example generate.num_beams=5")
    return parser.parse_intermixed_args(argv)  # key=value may stand anywhere


if __name__ == "__main__":
    exit_cleanly(main)
