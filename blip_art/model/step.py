"""The text decoder one token at a time: what stays the same is computed once and shared by beams.

    decoder = StepDecoder(model)
    state = decoder.look_at(decoder.encode(images), max_length=20)
    logits = decoder(state, ids)                  # (B, T) → (B, vocabulary)
    state.widen(3); logits = decoder(state, ids)  # now three rows a picture: (3·B, 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertLMHeadModel

from blip_art.model.captioner import BlipCaptioner
from blip_art.model.encoder import FastEncoder
from blip_art.model.linear import FastLinear


class StepDecoder:
    """A captioner's decoder, made ready once for all pictures that follow.

    Matrix products run in `dtype`; sums between layers and normalization in the model's own type.
    The model's weights are copied where that makes one product of several: after training on, make
    another one.
    """

    def __init__(self, model: BlipCaptioner, dtype: torch.dtype | None = None) -> None:
        decoder: BertLMHeadModel = model.text_decoder
        self.model = model
        self.dtype = dtype or decoder.dtype
        self.heads: int = decoder.config.num_attention_heads
        self.encode = FastEncoder(model, self.dtype)
        self.embeddings = decoder.bert.embeddings
        self.layers = [_Layer(layer, self.dtype) for layer in decoder.bert.encoder.layer]
        head = decoder.cls.predictions
        # A score in bf16 has three digits: rounding it was two thirds of what bf16 changed.
        head_dtype = torch.float32 if self.dtype is torch.bfloat16 else self.dtype
        self.transform = FastLinear(head_dtype, head.transform.dense, gelu=True)
        self.head_norm = head.transform.LayerNorm
        self.words = FastLinear(head_dtype, head.decoder)

    def look_at(self, image_states: Tensor, max_length: int) -> State:
        """What the decoder reads of pictures (B, patches, width), for at most max_length tokens."""
        batch, patches, _ = image_states.shape
        image_states = image_states.to(self.dtype)
        width = self.layers[0].cross_states.out_features // (2 * self.heads)
        cross = image_states.new_empty(
            len(self.layers), 2, batch, self.heads, patches, width)
        for layer, out in zip(self.layers, cross, strict=True):
            out.copy_(self._split(layer.cross_states(image_states), 2))
        past = image_states.new_empty(
            len(self.layers), 2, batch, self.heads, max_length, width)
        return State(cross, past)

    def __call__(self, state: State, ids: Tensor) -> Tensor:
        """Say (N, T) more tokens; returns the logits (N, vocabulary) of what follows, in fp32."""
        start, end = state.length, state.length + ids.shape[1]
        state.length = end
        x = self._embed(ids, start)
        for layer, past, cross in zip(self.layers, state.past, state.cross, strict=True):
            query, *new = self._split(layer.self_qkv(x), 3)  # (N, heads, T, d) each
            past[:, :, :, start:end] = torch.stack(new)
            out = F.scaled_dot_product_attention(query, past[0, :, :, :end], past[1, :, :, :end],
                                                 is_causal=start == 0 and end > 1)
            x = layer.self_norm(layer.self_out(out.transpose(1, 2).flatten(2)) + x)
            # The rows of a picture stand in the length of its query: they share keys and values.
            query, = self._split(layer.cross_query(x).view(cross.shape[1], -1, x.shape[-1]), 1)
            out = _attention(query, *cross)  # (B, heads, rows·T, d)
            out = out.transpose(1, 2).reshape(x.shape)
            x = layer.cross_norm(layer.cross_out(out) + x)
            x = layer.norm(layer.down(layer.up(x)) + x)
        last = self.transform(x[:, -1]).to(x.dtype)
        return self.words(self.head_norm(last)).float()

    def _embed(self, ids: Tensor, start: int) -> Tensor:
        words, positions = self.embeddings.word_embeddings, self.embeddings.position_embeddings
        places = positions.weight[start:start + ids.shape[1]]
        return self.embeddings.LayerNorm(words(ids) + places)

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """(N, L, parts·heads·d) → (parts, N, heads, L, d)"""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


@dataclass
class State:
    """Where the captions of some pictures stand."""

    cross: Tensor
    """(layers, 2, B, heads, patches, d): keys and values of the pictures."""
    past: Tensor
    """(layers, 2, N, heads, max_length, d): of the tokens said; N is B times the rows a picture."""
    length: int = 0

    def widen(self, rows: int) -> None:
        """Go on with several rows a picture, all alike so far."""
        self.past = self.past.repeat_interleave(rows, 2)

    def select(self, rows: Tensor, pictures: Tensor | None = None) -> None:
        """Row i goes on from rows[i]; of the pictures only some stay, if they are given."""
        if pictures is None:
            # Only what has been said: the rest of the cache holds nothing yet.
            self.past[..., :self.length, :] = self.past[..., :self.length, :].index_select(2, rows)
        else:
            self.past = self.past.index_select(2, rows)
            self.cross = self.cross.index_select(2, pictures)


class _Layer:
    """BERT's layer (Devlin et al. 2018) with cross-attention, in BLIP's order."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own, cross = layer.attention.self, layer.crossattention.self
        self.self_qkv = FastLinear(dtype, own.query, own.key, own.value)
        self.self_out = FastLinear(dtype, layer.attention.output.dense)
        self.self_norm = layer.attention.output.LayerNorm
        self.cross_query = FastLinear(dtype, cross.query)
        self.cross_states = FastLinear(dtype, cross.key, cross.value, few_rows=False)
        self.cross_out = FastLinear(dtype, layer.crossattention.output.dense)
        self.cross_norm = layer.crossattention.output.LayerNorm
        self.up = FastLinear(dtype, layer.intermediate.dense, gelu=True)
        self.down = FastLinear(dtype, layer.output.dense)
        self.norm = layer.output.LayerNorm


def _attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Of few queries to many keys, for which the CPU's fused kernel is the slower way."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values)
    weights = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return weights.float().softmax(-1).to(query.dtype) @ values
