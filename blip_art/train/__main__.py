"""Fine-tune BLIP: one epoch after the other, each followed by captions of the validation set.

    python -m blip_art.train configs/caption_art.yaml --run runs/art [--resume] [key=value …]
    torchrun --nproc_per_node=4 -m blip_art.train configs/caption_art.yaml --run-dir runs/art
"""

from __future__ import annotations

import argparse
import copy
import functools
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import timm.utils
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from blip_art.config import Config, load_config
from blip_art.data.datasets import Pair
from blip_art.data.loading import TrainDataset
from blip_art.data.transforms import to_input
from blip_art.data.workers import load_batches, worker_options
from blip_art.distributed import (
    STOP_SIGNALS,
    Interrupted,
    Stop,
    World,
    process_group,
)
from blip_art.errors import EXIT_INTERRUPTED, UserError, exit_cleanly
from blip_art.failure import note_run, write_failure
from blip_art.files import RunDir
from blip_art.memory import explain_out_of_memory, sent
from blip_art.model.captioner import BlipCaptioner, build_captioner
from blip_art.model.linear import Forwards, replaced
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.weights import load_weights, save_weights
from blip_art.predict import caption_split, check_lengths
from blip_art.rank_plan import RankPlan
from blip_art.readable import freeze_references, readable_pairs
from blip_art.retention import prune_weights
from blip_art.train.batches import EpochBatches, steps_per_epoch
from blip_art.train.checkpoint import Identity, Progress, load_checkpoint, save_checkpoint
from blip_art.train.faster import COMPILED_LENGTH, faster_steps
from blip_art.train.heartbeat import Heartbeat, Waits, peak_memory_gb
from blip_art.train.optim import Stepper, autocast, learning_rate
from blip_art.train.setup import (
    alone_in,
    open_run,
    run_identity,
    share_batches,
    write_epoch,
    write_state,
)

# What a rank wants after a step; all do what the most urgent one wants.
GO_ON, SAVE, LEAVE = range(3)
# GradScaler needs a few refused steps to find its scale; this many mean that training is lost.
# How many there were is on the device, which is only asked once in a while.
REFUSED_LIMIT, ASK_EVERY = 50, 10
LESS_MEMORY = ("set train.grad_checkpointing=true, or lower train.batch_size and raise "
               "train.accumulate by the same factor")
# Showing the loss waits for the GPU.
SHOW_S = 2.0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    config = load_config(args.config, args.overrides)
    run = RunDir(args.run or f"runs/{config.name}")
    with process_group() as world, alone_in(run, world):
        open_run(run, config, args.resume, world)
        world.peers.record = functools.partial(write_failure, run, "train")
        note_run(run, "train")
        try:
            tokenizer = CaptionTokenizer(config.model.tokenizer)
            pairs = readable_pairs(config, run, "train", world)
            for split in config.generate.splits:  # fail now, not after the first epoch
                readable_pairs(config, run, split, world)
                freeze_references(config, run, split, world)
            with Stop() as stop, explain_out_of_memory(LESS_MEMORY):
                train(config, run, pairs, tokenizer, world, stop)
        except Interrupted:
            write_state(run, world, "stopped", "by a signal; --resume goes on")
            # A scheduler's signal is part of the plan; Ctrl-C is not a success.
            return EXIT_INTERRUPTED if world.most(stop.signal or 0) == signal.SIGINT else 0
    return 0


def settle_buckets(ddp: DistributedDataParallel, config: Config, world: World) -> None:
    """Let DDP arrange its gradient buckets before the first step counts.

    It does so after the first backward pass. With more than two ranks the arrangement decides the
    order of sums, so a resumed run would otherwise add up its first step in another order.
    """
    side = config.model.image_size
    # Two pictures: the gradients of a batch of one lie otherwise in memory, which DDP warns of.
    pictures = torch.zeros(2, 3, side, side, device=world.device)
    ids = torch.full((2, config.model.max_tokens), ddp.module.end_id, device=world.device)
    for _ in range(2):
        (ddp(pictures, ids) * 0).backward()
    ddp.zero_grad(set_to_none=True)


@dataclass
class Training:
    """What the steps of a run work on."""

    config: Config
    run: RunDir
    world: World
    stop: Stop
    tokenizer: CaptionTokenizer
    plan: RankPlan
    steps: int  # of an epoch, as the run counts them
    batches: EpochBatches
    loader: DataLoader[Any]
    model: BlipCaptioner
    ddp: Any  # the model, wrapped where there is more than one rank
    stepper: Stepper
    ema: Any  # timm's ModelEmaV3, or None
    faster: Forwards
    identity: Identity
    heartbeat: Heartbeat

    def __post_init__(self) -> None:
        self.waits = Waits(self.world.device)
        # Moves refused in this epoch, and how many in a row up to now.
        self.refused = torch.zeros(2, device=self.world.device)

    def refuse(self, refused: torch.Tensor) -> None:
        """Count a move, 1.0 if it was refused."""
        self.refused = torch.stack([self.refused[0] + refused, (self.refused[1] + 1) * refused])

    def check_refused(self, epoch: int, step: int) -> None:
        """Give up a training that is lost; waits for the GPU.

        Raises:
            UserError: too many moves in a row were refused.
        """
        if self.refused[1] >= REFUSED_LIMIT:
            raise UserError(f"gradients were not finite {REFUSED_LIMIT} steps in a row (epoch "
                            f"{epoch}, step {step}); lower train.lr, or set train.amp=off")

    def save(self, progress: Progress) -> None:
        """Write last.pt; all ranks return when it is whole, since one that left early would
        take the writer along."""
        self.world.on_main(lambda: save_checkpoint(
            self.run, self.identity, progress, self.model, self.stepper, self.ema))


def train(config: Config, run: RunDir, pairs: list[Pair], tokenizer: CaptionTokenizer,
          world: World, stop: Stop) -> None:
    """All epochs from the newest checkpoint on.

    Raises:
        Interrupted: stopped by a signal, on all ranks together, after saving.
    """
    torch.manual_seed(config.seed)  # the same first weights on every rank
    model = build_captioner(config.model, tokenizer)
    if config.model.pretrained and not run.saved_checkpoints():
        load_weights(model, config.model.pretrained)
    if config.train.grad_checkpointing:
        model.set_grad_checkpointing()
    model.to(world.device)
    stepper = Stepper(model, config.train, world.device)
    decay = config.train.ema_decay
    ema = timm.utils.ModelEmaV3(model, decay=decay) if decay else None
    check_lengths(config, model)
    identity = run_identity(config, run, world)
    plan = share_batches(config, run, world)
    steps = steps_per_epoch(len(pairs), config.train.batch_size, plan.begun)
    progress = load_checkpoint(run, identity, config.train.epochs, steps, model, stepper, ema,
                               world)
    ddp: Any = model
    if world.size > 1:
        ddp = DistributedDataParallel(
            model, device_ids=[world.device.index] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True, broadcast_buffers=False)  # BERT's are constants
        settle_buckets(ddp, config, world)
    dataset = TrainDataset(pairs, config.data.images, config.model.image_size,
                           config.model.prompt, config.data.max_words, config.seed,
                           skip_bad=config.data.bad_pictures == "skip")
    batches = EpochBatches(len(dataset), config.train.batch_size, world.rank, world.size,
                           config.seed, plan.begun)
    workers = config.data.num_workers
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers,
                        persistent_workers=workers > 0, **worker_options(workers, STOP_SIGNALS),
                        pin_memory=world.device.type == "cuda")
    faster = faster_steps(model, config.train.compile, stepper.dtype,
                          graphs=world.size == plan.accumulate == 1)
    heartbeat = Heartbeat(run, config.train.epochs, steps, config.train.batch_size * plan.begun,
                          world.is_main)
    training = Training(config, run, world, stop, tokenizer, plan, steps, batches, loader, model,
                        ddp, stepper, ema, faster, identity, heartbeat)

    while progress.epoch < config.train.epochs:
        write_state(run, world, "running", epoch=progress.epoch, epochs=config.train.epochs)
        if progress.step < steps:
            train_epoch(training, progress)
        evaluated = ema.module if ema else model
        [host_memory_gb] = world.sum([peak_memory_gb()])
        if world.is_main:
            save_weights(evaluated, run.weights(progress.epoch), identity)
            print(write_epoch(run, config, progress, stepper, steps, host_memory_gb, world.size),
                  flush=True)
            prune_weights(run, config.train.keep)
        heartbeat.begin_captions(progress.epoch)
        for split in config.generate.splits:
            if not run.predictions(split, progress.epoch).exists():
                caption_split(evaluated, tokenizer, config, run, split, progress.epoch, world, stop)
        progress = progress.next_epoch()
    write_state(run, world, "finished", epoch=config.train.epochs - 1, epochs=config.train.epochs)
    heartbeat.end()


def train_epoch(t: Training, progress: Progress) -> None:
    """The steps of one epoch that are not done yet; `progress` is brought forward in place.

    Raises:
        Interrupted: stopped by a signal, on all ranks together, after saving.
    """
    config, settings, world, epoch = t.config, t.config.train, t.world, progress.epoch
    plan, batches = t.plan, t.batches
    # Steps are this rank's own: those of the run, where as many ranks began it.
    steps, first = batches.steps, plan.own_steps(progress.step)
    batches.begin(epoch, first)
    before = copy.copy(progress)
    # Sum and number of the finite losses. Reading them waits for the GPU: only to show or save.
    losses = torch.zeros(2, dtype=torch.float64, device=world.device)
    t.refused[0] = 0
    started = saved = time.monotonic()
    t.heartbeat.begin_epoch(epoch)
    t.ddp.train()
    with replaced(t.faster), tqdm(
            total=steps, initial=first, desc=f"epoch {epoch}", unit="step",
            leave=False, mininterval=SHOW_S, disable=None if world.is_main else True) as bar:
        for step, (images, captions) in enumerate(t.waits.batches(load_batches(t.loader)), first):
            # Dropout depends on the part alone: a resumed run draws what an undisturbed one does.
            torch.manual_seed(dropout_seed(
                config.seed, epoch, *divmod(batches.part(step), plan.begun)))
            group = batches.group(step, plan.accumulate)
            moves = step + 1 == group[1]
            done = plan.run_steps(step + 1, t.steps)
            t.stepper.set_lr(learning_rate(settings, epoch, max(0, done - 1), t.steps))
            ids = t.tokenizer.encode(captions, config.model.max_tokens,
                                     COMPILED_LENGTH if settings.compile else None)
            ids, counted = (sent(x, world.device) for x in (ids, t.model.counted(ids)))
            images = to_input(images.to(world.device, non_blocking=True))
            if settings.compile:
                torch.compiler.cudagraph_mark_step_begin()
            with nullcontext() if moves or world.size == 1 else t.ddp.no_sync():
                with autocast(t.stepper.dtype, world.device):
                    loss = t.ddp(images, ids, counted)
                # The mean over the group's parts; at an epoch's end a rank may be without one.
                counts = batches.has_part(step)
                t.stepper.backward(loss if counts else loss * 0,
                                   batches.parts_between(*group) / world.size)
            if counts:
                finite = loss.detach().isfinite()
                losses += torch.stack([torch.where(finite, loss.detach(), 0.0), finite]).double()
            if moves:
                t.refuse(t.stepper.step())
            _show(bar, losses, step + 1 - first, started, settings.batch_size * world.size)
            t.heartbeat.beat(done, t.waits)
            if not moves:
                continue
            if (step + 1) % (ASK_EVERY * plan.accumulate) == 0 or step + 1 == steps:
                t.check_refused(epoch, step)
                t.waits.settle()
                if bar.disable:
                    t.heartbeat.say(losses, t.waits)
            if t.ema is not None:
                t.ema.update(t.model)
            due = time.monotonic() - saved > 60 * settings.save_every_min
            decision = world.most(LEAVE if t.stop else SAVE if due else GO_ON)
            if decision != GO_ON:
                bring_forward(progress, before, done, losses, started, t)
                t.save(progress)
                saved = time.monotonic()
            if decision == LEAVE:
                raise Interrupted
    bring_forward(progress, before, t.steps, losses, started, t)
    t.save(progress)


def dropout_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """One number a step and rank, of those the run was begun with."""
    return (((seed * 10_007 + epoch) * 1_000_003 + step) * 1_009 + rank) % 2**63


def bring_forward(progress: Progress, before: Progress, step: int, losses: torch.Tensor,
                  started: float, t: Training) -> None:
    """Fold what all ranks did since this process started the epoch into the epoch's totals."""
    world, done = t.world, step - before.step
    own = losses.tolist()
    t.waits.settle()
    loss_sum, counted, waited_s = world.sum([*own, t.waits.seconds])
    progress.step, progress.losses = step, before.losses + int(counted)
    progress.loss_sum = before.loss_sum + loss_sum
    progress.skipped = before.skipped + int(t.refused[0])  # the same on all ranks
    progress.pictures = before.pictures + done * t.config.train.batch_size * t.plan.begun
    progress.seconds = before.seconds + time.monotonic() - started
    progress.waited_s = before.waited_s + waited_s / world.size


def _show(bar: tqdm[Any], losses: torch.Tensor, steps: int, started: float,
          pictures_a_step: int) -> None:
    """Bring the bar forward; the loss is only read (the GPU only waited for) when it is drawn."""
    if bar.update() and not bar.disable:
        rate = steps * pictures_a_step / (time.monotonic() - started)
        memory = f", {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if losses.is_cuda else ""
        mean = (losses[0] / losses[1]).item()
        bar.set_postfix_str(f"loss {mean:.3f}, {rate:.1f} pictures/s{memory}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration, for example configs/caption_art.yaml")
    # torchrun under Python 3.11 takes --run for its own --run-path; --run-dir passes by it.
    parser.add_argument("--run", "--run-dir", dest="run",
                        help="run folder (default: runs/<name of the configuration>)")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the newest checkpoint of the run folder, if there is one")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value",
                        help="change a setting, for example train.batch_size=16")
    return parser.parse_intermixed_args(argv)  # key=value may stand anywhere


if __name__ == "__main__":
    exit_cleanly(main)
