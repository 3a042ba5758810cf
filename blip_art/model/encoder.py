"""The vision encoder as inference wants it: faster on the CPU, more exact in half precision.

    encode = FastEncoder(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16): states = encode(images)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from blip_art.model.captioner import BlipCaptioner
from blip_art.model.kernels import load_kernels, serves
from blip_art.model.linear import FastLinear, Forwards, as_linear, fast_linears, replaced

# Heads at a time: the scores of more leave the cache, products of fewer are small (measured; 2 to 6
# are alike).
HEADS = 3


class FastEncoder:
    """A captioner's `encode`, without gradients; the model's own is as it was.

    On the CPU linear maps go through oneDNN, and attention in bf16 through its products, which took
    half the time of torch's fused kernel. On a GPU a sum and a norm are one kernel, which takes a
    sixth off.
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
        exact = torch.float32 if on_cpu or dtype is torch.float32 else torch.float16
        forwards[encoder.patch_embed] = Patches(encoder.patch_embed, exact)
        if dtype is torch.bfloat16 and linears and on_cpu:
            forwards.update({block.attn: functools.partial(attend, block.attn)
                             for block in encoder.blocks})
        self._forwards, self._dtype = forwards, dtype
        self._kernels = load_kernels(encoder.pos_embed.device, dtype) if serves(
            encoder.norm) else None

    @torch.no_grad()
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

    Its `dtype` is fp32 or, on a GPU, fp16 also where the rest is bf16: rounding the pixels was two
    thirds of what an encoder in bf16 changed in scores.
    """

    def __init__(self, embed: Any, dtype: torch.dtype) -> None:
        self._size: int = embed.patch_size[0]
        self._dtype, self._models = dtype, embed.proj.weight.dtype
        self._linear = FastLinear(dtype, as_linear(embed.proj.weight.flatten(1), embed.proj.bias),
                                  few_rows=False)

    def __call__(self, images: Tensor) -> Tensor:
        patches = images.to(self._dtype).unfold(2, self._size, self._size).unfold(
            3, self._size, self._size)  # (B, 3, rows, columns, p, p)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        with torch.autocast(images.device.type, enabled=False):
            return self._linear(patches).to(self._models)


def _mlp(first: FastLinear, second: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = second(first(x))
    return out


def attend(attention: Any, x: Tensor, **no_mask: Any) -> Tensor:
    """timm's attention of all to all, some heads of a picture at a time."""
    # Autocast would take the softmax to fp32 and back.
    with torch.autocast("cpu", enabled=False):
        return _attend(attention, x)


def _attend(attention: Any, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    heads, width = attention.num_heads, attention.head_dim
    # (B, heads, L, d) each
    query, keys, values = attention.qkv(x).view(
        batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    out = query.new_empty(batch, length, heads, width)
    nothing = query.new_empty(1)
    for n in range(batch):
        for first in range(0, heads, HEADS):
            some = slice(first, first + HEADS)
            weights = torch.baddbmm(nothing, query[n, some], keys[n, some].transpose(-1, -2),
                                    beta=0, alpha=attention.scale).softmax(-1)
            torch.bmm(weights, values[n, some], out=out[n, :, some].transpose(0, 1))
    projected: Tensor = attention.proj(out.flatten(2))
    return projected
