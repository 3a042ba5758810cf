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
from blip_art.model.linear import FastLinear, Forwards, fast_linears, replaced

# Heads at a time. The scores of a whole batch are memory that the system maps anew every time:
# twice as slow (measured; 2 to 6 heads are alike).
HEADS = 3


class FastEncoder:
    """A captioner's `encode`, without gradients; the model's own is as it was.

    On the CPU linear maps go through oneDNN, and attention in bf16 through its products, which took
    half the time of torch's fused kernel. The patches are embedded in fp32: rounding the pixels was
    two thirds of what an encoder in bf16 changed in scores.
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
        if dtype is not torch.float32:
            forwards[encoder.patch_embed] = functools.partial(_in_fp32, encoder.patch_embed)
        if dtype is torch.bfloat16 and linears:
            forwards.update({block.attn: functools.partial(_attend, block.attn)
                             for block in encoder.blocks})
        self._forwards = forwards

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalized pictures → (B, 1 + patches, width)."""
        with replaced(self._forwards):
            return self.model.encode(images)


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
