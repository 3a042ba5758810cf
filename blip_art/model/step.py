"""The text decoder one token at a time: what stays the same is computed once and shared by beams.

    decoder = StepDecoder(model)
    state = decoder.state(batch, rows=3, max_length=20, patches=577)
    decoder.look_at(state, decoder.encode(images))
    logits = decoder(state, prompt, 0)      # (B, 1, T) → (B, vocabulary)
    logits = decoder(state, ids, T)         # (B, 3, 1) → (B·3, vocabulary)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertLMHeadModel

from blip_art.model.beams import CHUNK
from blip_art.model.captioner import BlipCaptioner
from blip_art.model.encoder import FastEncoder
from blip_art.model.kernels import HEAD_WIDTH, MOST_WORDS, fits_picture, load_kernels, serves
from blip_art.model.linear import FastLinear, as_linear

# Numbers of 16 bits that a GPU's attention takes at once: it wants masks in multiples of them.
ALIGNED = 8

# Of a layer's new words (B, rows·T, 3·width) to those of its past: (B, rows·T, width).
LookBack = Callable[[Tensor, Tensor], Tensor]


@dataclass
class State:
    """What the captions of B pictures look back on, R rows a picture, in tensors that stay in
    place.

    The rows of a picture share keys and values, also of the words: when a beam goes on from
    another, not they are copied but the path that leads through them.
    """

    cross: Tensor
    """(layers, 2, B, heads, patches, d): keys and values of the pictures."""
    past: Tensor
    """(layers, 2, B, heads, max_length·R, d): of the word at position p in row r, at p·R + r."""
    paths: Tensor
    """(B, R, max_length): the row that said the word at each position of a row's caption."""

    @property
    def rows(self) -> int:
        """R"""
        return self.paths.shape[1]

    def follow(self, parents: Tensor, length: int) -> None:
        """Row r of a picture goes on from row parents[:, r]; so far it has `length` tokens."""
        old = self.paths[:, :, :length]
        old.copy_(old.gather(1, parents[..., None].expand(-1, -1, length)))

    def take(self, other: State, pictures: Tensor) -> None:
        """Hold some pictures of another state."""
        for mine, theirs in ((self.cross, other.cross), (self.past, other.past)):
            for layer, layers in zip(mine, theirs, strict=True):
                torch.index_select(layers, 1, pictures, out=layer)
        torch.index_select(other.paths, 0, pictures, out=self.paths)


class StepDecoder:
    """A captioner's decoder, made ready once for all pictures that follow.

    Matrix products run in `dtype`; sums between layers and normalization in the model's own type.
    The model's weights are copied where that makes one product of several: after training on, make
    another one. One thread at a time may use it.
    """

    def __init__(self, model: BlipCaptioner, dtype: torch.dtype | None = None) -> None:
        decoder: BertLMHeadModel = model.text_decoder
        self.model = model
        self.dtype = dtype or decoder.dtype
        self.device = decoder.device
        self.heads: int = decoder.config.num_attention_heads
        self.encode = FastEncoder(model, self.dtype)
        self.embeddings = decoder.bert.embeddings
        self.layers = [_Layer(layer, self.dtype) for layer in decoder.bert.encoder.layer]
        head = decoder.cls.predictions
        # A score in bf16 has three digits: rounding it was two thirds of what bf16 changed.
        head_dtype = torch.float32 if self.dtype is torch.bfloat16 else self.dtype
        plain = decoder.dtype is torch.float32 and serves(head.transform.LayerNorm)
        self.kernels = load_kernels(self.device, self.dtype) if plain else None
        self.transform = FastLinear(head_dtype, head.transform.dense, gelu=True)
        self.head_norm = head.transform.LayerNorm
        words = head.decoder if self.device.type == "cpu" else padded(head.decoder)
        self.words = FastLinear(head_dtype, words)
        self.lays_down = self.device.type == "cuda"
        """Whether keys and values of pictures stay where the product of all heads lays them."""
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        """Whether all scores of words were numbers, for decode.py."""
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self.kept: dict[Any, Any] = {}
        """Batches whose tensors and recorded steps serve again, see decode.py and `close`."""

    def close(self) -> None:
        """Give the memory of kept batches back, which this object and they keep alive."""
        self.kept.clear()

    def state(self, batch: int, rows: int, max_length: int, patches: int) -> State:
        """Room for so many pictures, rows a picture and tokens a row."""
        layers, heads = len(self.layers), self.heads
        width = self.layers[0].cross_states.out_features // (2 * heads)

        def room(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        if self.lays_down:
            cross = room(layers, batch, patches, 2, heads, width).permute(0, 3, 1, 4, 2, 5)
        else:
            cross = room(layers, 2, batch, heads, patches, width)
        # Zeros: what is masked is multiplied all the same.
        past = room(layers, 2, batch, heads, max_length * rows, width).zero_()
        paths = torch.zeros(batch, rows, max_length, dtype=torch.long, device=self.device)
        return State(cross, past, paths)

    def look_at(self, state: State, image_states: Tensor) -> None:
        """Compute what the decoder reads of pictures (B, patches, width)."""
        for layer, out in zip(self.layers, state.cross, strict=True):
            if self.lays_down:
                laid_down = out.permute(1, 3, 0, 2, 4)  # (B, patches, 2, heads, d)
                layer.cross_states.write(image_states, laid_down.flatten(2))
            else:
                out.copy_(self._split(layer.cross_states(image_states), 2))

    def __call__(self, state: State, ids: Tensor, start: int) -> Tensor:
        """Say more tokens, from position `start` on.

        Args:
            ids: (B, 1, T), which all rows of a picture will share, or (B, R, 1).

        Returns:
            Logits (B, vocabulary) or (B·R, vocabulary) of what follows; on a GPU with some more
            tokens that no one says.
        """
        rows, count = ids.shape[1:]
        state.paths[:, :, start:start + count] = torch.arange(rows, device=ids.device)[:, None]
        look_back = self._by_kernel(state, ids, start) or self._by_mask(state, ids, start)
        x = y = self._embed(ids, start)  # y: the same in half precision, if kernels made it
        for layer, past, cross in zip(self.layers, state.past, state.cross, strict=True):
            out = look_back(layer.self_qkv(y), past)
            x, y = self._add_norm(x, layer.self_out(out), layer.self_norm)
            out = self._look_at_picture(layer.cross_query(y), cross)
            x, y = self._add_norm(x, layer.cross_out(out), layer.cross_norm)
            x, y = self._add_norm(x, layer.down(layer.up(y)), layer.norm)
        last = x.unflatten(1, (rows, count))[:, :, -1].flatten(0, 1)
        return self.words(self.head_norm(self.transform(last).to(x.dtype)))

    def _add_norm(self, x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        if self.kernels:
            return self.kernels.add_norm(x, added, norm, keep_sum=False)
        x = norm(added + x)
        return x, x

    def _look_at_picture(self, query: Tensor, cross: Tensor) -> Tensor:
        """(B, rows·T, width) → (B, rows·T, width)"""
        if self.kernels and fits_picture(query.shape[1], cross):
            return self.kernels.attend_picture(query, cross)
        return _merge(_attention(self._split(query, 1)[0], *cross))

    def _by_kernel(self, state: State, ids: Tensor, start: int) -> LookBack | None:
        """Self-attention along the rows' paths, if there is a kernel for it."""
        kernels = self.kernels
        if (kernels is None or ids.shape[1:] != (state.rows, 1) or start >= MOST_WORDS
                or state.past.shape[-1] != HEAD_WIDTH):
            return None
        return lambda qkv, past: kernels.attend_path(qkv, past, state.paths, start)

    def _by_mask(self, state: State, ids: Tensor, start: int) -> LookBack:
        """Self-attention to all that was said; a mask hides what is not on a row's path."""
        rows, count = ids.shape[1:]
        end, step = (start + count) * state.rows, 1 if rows > 1 else state.rows
        new, seen = slice(start * state.rows, end, step), slice(0, end, step)
        mask = self._mask(state.paths[:, :, :start + 1]) if rows > 1 else None

        def look_back(qkv: Tensor, past: Tensor) -> Tensor:
            said = self._split(qkv, 3)  # (3, B, heads, rows·T, d)
            past[:, :, :, new] = said[1:]
            return _merge(_attention(said[0], past[0, :, :, seen], past[1, :, :, seen], mask,
                                     causal=count > 1))
        return look_back

    def _embed(self, ids: Tensor, start: int) -> Tensor:
        """(B, rows, T) → (B, rows·T, width)"""
        words, positions = self.embeddings.word_embeddings, self.embeddings.position_embeddings
        places = positions.weight[start:start + ids.shape[2]]
        out: Tensor = self.embeddings.LayerNorm((words(ids) + places).flatten(1, 2))
        return out

    def _mask(self, paths: Tensor) -> Tensor:
        """(B, R, L) → (B, 1, R, L·R): 0 for words on a row's path, else minus infinity."""
        batch, rows, length = paths.shape
        on_path = paths[..., None] == torch.arange(rows, device=paths.device)
        room = -(-length * rows // ALIGNED) * ALIGNED
        mask = torch.full((batch, 1, rows, room), -torch.inf, dtype=self.dtype,
                          device=paths.device)[..., :length * rows]
        return mask.masked_fill_(on_path.flatten(2)[:, None], 0)

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """(B, L, parts·heads·d) → (parts, B, heads, L, d)"""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


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


def padded(linear: nn.Linear) -> nn.Linear:
    """With whole chunks of outputs, the added ones minus infinity: for `likeliest`, and because a
    GPU multiplies odd sizes at half its speed."""
    added = -linear.out_features % CHUNK
    return as_linear(F.pad(linear.weight, (0, 0, 0, added)),
                     F.pad(linear.bias, (0, added), value=-torch.inf))


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None,
               causal: bool = False) -> Tensor:
    """Of few queries to many keys, for which the CPU's fused kernel is the slower way.

    On a GPU not by cuDNN: of one query in half precision it made something else each time.
    """
    if query.device.type != "cpu" or causal:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                          SDPBackend.MATH]):
            return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=causal)
    weights = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if mask is not None:
        weights = weights + mask
    return weights.softmax(-1) @ values


def _merge(x: Tensor) -> Tensor:
    """(B, heads, L, d) → (B, L, heads·d)"""
    return x.transpose(1, 2).flatten(2)
