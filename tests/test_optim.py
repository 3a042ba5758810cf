"""Learning rates, layer decay, and steps that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from blip_art.config import ModelConfig, TrainConfig
from blip_art.model.captioner import build_captioner
from blip_art.model.tokenizer import CaptionTokenizer, train_vocabulary
from blip_art.train.optim import Stepper, amp_dtype, autocast, caption_dtype, learning_rate

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path):
    train_vocabulary(["a picture of sun"], tmp_path, 60)
    return build_captioner(ModelConfig(vit="tiny", image_size=32, text_width=32, text_layers=1,
                                       text_heads=2), CaptionTokenizer(str(tmp_path)))


def test_the_cosine_by_epoch_is_the_originals():
    config = TrainConfig(lr=1e-4, epochs=10)
    rates = [learning_rate(config, epoch, step, 100) for epoch in (0, 5, 9) for step in (0, 99)]
    expected = [1e-4 * 0.5 * (1 + math.cos(math.pi * epoch / 10)) for epoch in (0, 0, 5, 5, 9, 9)]
    assert rates == pytest.approx(expected)


def test_the_cosine_by_step_warms_up_and_ends_low():
    config = TrainConfig(lr=1.0, min_lr=0.1, epochs=2, schedule="step", warmup_steps=4)
    rates = [learning_rate(config, step // 10, step % 10, 10) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 < rates[-1] < 0.12


def test_layer_decay_slows_the_lower_blocks(model):
    stepper = Stepper(model, TrainConfig(layer_decay=0.5), CPU)
    stepper.set_lr(1.0)
    rate = {id(p): group["lr"] for group in stepper.optimizer.param_groups
            for p in group["params"]}
    blocks = [rate[id(block.mlp.fc1.weight)] for block in model.visual_encoder.blocks]
    assert blocks == pytest.approx([0.5 ** (2 - i) for i in range(3)])
    assert rate[id(model.text_decoder.cls.predictions.bias)] == 1.0
    assert len(rate) == len([p for p in model.parameters() if p.requires_grad])


def test_a_step_that_is_not_finite_moves_nothing(model):
    stepper = Stepper(model, TrainConfig(lr=1.0), CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight = next(model.parameters())
    stepper.backward(weight.sum() * float("inf"))
    assert stepper.step() == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    stepper.backward(weight.sum())
    assert stepper.step() == 0
    assert not torch.equal(weight, before["visual_encoder.cls_token"])


def test_clipping_bounds_the_gradient(model):
    stepper = Stepper(model, TrainConfig(clip_norm=1.0), CPU)
    weight = next(model.parameters())
    seen = []
    stepper.optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad.norm().item()))
    stepper.backward(weight.sum() * 1000)
    stepper.step()
    assert seen == pytest.approx([1.0], rel=1e-3)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_moves_the_weights(model, amp):
    stepper = Stepper(model, TrainConfig(amp=amp), CPU)
    weight = model.visual_encoder.patch_embed.proj.weight
    before = weight.detach().clone()
    with autocast(stepper.dtype, CPU):
        states = model.encode(torch.randn(2, 3, 32, 32))
    assert states.dtype is stepper.dtype or states.dtype is torch.float32
    stepper.backward(states.float().square().mean())
    assert stepper.step() == 0
    assert not torch.equal(weight, before)
    assert weight.dtype is torch.float32


@pytest.mark.parametrize(("capability", "dtype"), [
    ((7, 0), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_a_v100_gets_fp16_and_newer_gpus_bf16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert amp_dtype("auto", torch.device("cuda")) is dtype
    assert amp_dtype("auto", CPU) is caption_dtype("auto", CPU) is None
    assert caption_dtype("auto", torch.device("cuda")) is torch.float16
