"""AdamW, learning rates, mixed precision and the step that refuses non-finite gradients.

    stepper = Stepper(model, config.train, device)
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import timm.optim
import torch
from torch import nn

from blip_art.config import TrainConfig
from blip_art.model.captioner import BlipCaptioner


def amp_dtype(choice: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for `train.amp`; None computes in fp32.

    'auto' is bf16 on Ampere and later, fp16 on older GPUs (V100 has no bf16 units although
    torch.cuda.is_bf16_supported() says yes: it emulates), and off on the CPU.
    """
    if choice == "auto":
        if device.type != "cuda":
            return None
        return (torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8
                else torch.float16)
    return {"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}[choice]


def caption_dtype(choice: str, device: torch.device) -> torch.dtype | None:
    """The type captions are computed in: that of training, but 'auto' is fp16 on every GPU, where
    scores were a third as far from fp32's as in bf16 (bench/results/agreement_cuda.md)."""
    return torch.float16 if choice == "auto" and device.type == "cuda" else amp_dtype(
        choice, device)


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """The block in which matrix products run in `dtype`; no change for None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def parameter_groups(model: BlipCaptioner, config: TrainConfig) -> list[dict[str, Any]]:
    """All parameters alike, as the original; with layer decay each ViT block has its own rate.

    timm then exempts the ViT's biases and norms from weight decay.
    Layer decay: Clark et al. 2020 (https://arxiv.org/abs/2003.10555), through timm.
    """
    if config.layer_decay == 1.0:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]
    groups = timm.optim.param_groups_layer_decay(
        model.visual_encoder, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    text = [p for p in model.text_decoder.parameters() if p.requires_grad]
    return [*groups, {"params": text}]


def learning_rate(config: TrainConfig, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The rate before layer decay, at batch `step` of `epoch` (warm-up counts batches too).

    'epoch': cosine by epoch, constant inside it, as the original. 'step': linear warm-up, then
    cosine by step.
    """
    if config.schedule == "epoch":
        progress = epoch / config.epochs
    else:
        done, total = epoch * steps_per_epoch + step, config.epochs * steps_per_epoch
        if done < config.warmup_steps:
            return config.lr * (done + 1) / config.warmup_steps
        progress = (done - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class Stepper:
    """Optimizer, gradient scaler and clipping behind one call."""

    def __init__(self, model: BlipCaptioner, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.dtype = amp_dtype(config.amp, device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config), lr=config.lr, weight_decay=config.weight_decay,
            fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def set_lr(self, lr: float) -> None:
        """Set the rate of every group, times its layer decay."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def backward(self, loss: torch.Tensor, accumulated: float = 1) -> None:
        """Add this loss's gradients, as one of `accumulated` batches that make up a move."""
        self.scaler.scale(loss / accumulated).backward()

    def step(self) -> torch.Tensor:
        """Move the weights and clear the gradients; where they were not finite nothing moves.

        Gradients are the same on every rank, so all ranks skip together.

        Returns:
            1.0 if nothing moved, else 0.0, on the device: reading it waits for the GPU.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None)
        if self.config.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        refused = (~norm.isfinite()).float()
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # What the scaler tells a fused optimizer: the device itself decides whether to move.
            self.optimizer.found_inf = refused  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return refused

    def peak_memory_gb(self) -> float:
        """Most GPU memory held so far, in 10^9 bytes; 0 on the CPU."""
        return (torch.cuda.max_memory_reserved(self.device) / 1e9
                if self.device.type == "cuda" else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def find_problems(self, state: dict[str, Any]) -> list[str]:
        """What in a saved state is not of this optimizer: torch would take any shape, and its
        kernels would read behind the end of a short one."""
        ours = [p for group in self.optimizer.param_groups for p in group["params"]]
        try:
            moments = state["optimizer"]["state"]
            problems = [f"optimizer: {name} of parameter {index} is {tuple(tensor.shape)}"
                        for index, averages in moments.items() for name, tensor in averages.items()
                        if tensor.shape != (() if name == "step" else ours[index].shape)
                        or not tensor.is_floating_point()]
            if any(averages.keys() != {"step", "exp_avg", "exp_avg_sq"}
                   for averages in moments.values()):
                problems.append("optimizer: not of AdamW")
            if self.scaler.is_enabled() and not all(
                    isinstance(state["scaler"][name], (int, float))
                    for name in self.scaler.state_dict()):
                problems.append("scaler: not numbers")
        except (AttributeError, LookupError, TypeError) as error:
            problems = [f"optimizer or scaler: {type(error).__name__} {error}"]
        return problems

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the moments; rates and decays are the configuration's."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(
            {"state": state["optimizer"]["state"], "param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
