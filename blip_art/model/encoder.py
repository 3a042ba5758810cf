"""The vision encoder as inference wants it: faster on the CPU, more exact in half precision.

    encode = FastEncoder(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16): states = encode(images)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_art.model.captioner import BlipCaptioner
from blip_art.model.kernels import load_kernels, serves
from blip_art.model.linear import FastLinear, Forwards, fast_linears, replaced

# Heads at a time. The scores of a whole batch are memory that the system maps anew every time:
# twice as slow (measured; 2 to 6 heads are alike).
HEADS = 3


class FastEncoder:
    """A captioner's `encode`, without gradients; the model's own is as it was.

    On the CPU linear maps go through oneDNN, and attention in bf16 through its products, which took
    half the time of torch's fused kernel. The patches are embedded in fp32: rounding the pixels was
    two thirds of what an encoder in bf16 changed in scores. On a GPU a sum and a norm are one
    kernel, which takes a sixth off.
    """

    def __init__(self, model: BlipCaptioner, dtype: torch.dtype) -> None:
        """Make ready for pictures that are encoded under autocast of `dtype`."""
        self.model, encoder = model, model.visual_encoder
        linears = fast_linears(encoder, dtype)
        forwards: Forwards = dict(linears)
        if linears:
            for block in encoder.blocks:
                del forwards[block.mlp.fc1]
                first = FastLinear(dtype, block.mlp.fc1, few_rows=False, gelu=True)
                forwards[block.mlp] = functools.partial(_mlp, first, block.mlp.fc2)
        on_cpu = encoder.pos_embed.device.type == "cpu"
        if not on_cpu:
            forwards[encoder.patch_embed] = Patches(encoder.patch_embed, dtype)
        elif dtype is not torch.float32:
            forwards[encoder.patch_embed] = functools.partial(_in_fp32, encoder.patch_embed)
        if dtype is torch.bfloat16 and linears and on_cpu:
            forwards.update({block.attn: functools.partial(_attend, block.attn)
                             for block in encoder.blocks})
        self._forwards, self._dtype = forwards, dtype
        self._kernels = load_kernels(encoder.pos_embed.device, dtype) if serves(
            encoder.norm) else None

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalized pictures → (B, 1 + patches, width)."""
        with replaced(self._forwards):
            return self._by_kernels(images) if self._kernels else self.model.encode(images)

    def _by_kernels(self, images: Tensor) -> Tensor:
        """timm's VisionTransformer with sums and norms in one; the states in half precision."""
        assert self._kernels
        encoder: Any = self.model.visual_encoder
        x = encoder._pos_embed(encoder.patch_embed(images))  # (B, L, width), in fp32
        y = encoder.blocks[0].norm1(x).to(self._dtype)
        following = [*(block.norm1 for block in encoder.blocks[1:]), encoder.norm]
        for block, norm in zip(encoder.blocks, following, strict=True):
            x, y = self._kernels.add_norm(x, block.attn(y), block.norm2, keep_sum=True)
            x, y = self._kernels.add_norm(x, block.mlp(y), norm, keep_sum=True)
        return y


class Patches:
    """timm's embedding of patches as one product: a GPU's convolution took five times as long.

    In half precision it is fp16 always, which holds pixels and patches to three digits.
    """

    def __init__(self, embed: Any, dtype: torch.dtype) -> None:
        self._size: int = embed.patch_size[0]
        self._dtype = dtype if dtype is torch.float32 else torch.float16
        self._weight = embed.proj.weight.detach().flatten(1).to(self._dtype)  # (width, 3·p·p)
        self._bias = embed.proj.bias.detach().to(self._dtype)

    def __call__(self, images: Tensor) -> Tensor:
        patches = images.to(self._dtype).unfold(2, self._size, self._size).unfold(
            3, self._size, self._size)  # (B, 3, rows, columns, p, p)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        with torch.autocast(images.device.type, enabled=False):
            return F.linear(patches, self._weight, self._bias)


def _in_fp32(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = type(module).forward(module, x)
        return out


def _mlp(first: FastLinear, second: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = second(first(x))
    return out


def _attend(attention: Any, x: Tensor, **no_mask: Any) -> Tensor:
    """timm's attention of all to all, some heads of a picture at a time."""
    batch, length, _ = x.shape
    heads, width = attention.num_heads, attention.head_dim
    # (B, heads, L, d) each
    query, keys, values = attention.qkv(x).view(
        batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    query = query * attention.scale
    out = x.new_empty(batch, length, heads, width, dtype=query.dtype)
    for n in range(batch):
        for first in range(0, heads, HEADS):
            some = slice(first, first + HEADS)
            weights = (query[n, some] @ keys[n, some].transpose(-1, -2)).softmax(-1)
            out[n, :, some] = (weights.to(query.dtype) @ values[n, some]).transpose(0, 1)
    out = attention.proj(out.flatten(2))
    return out
