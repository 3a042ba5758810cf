"""Captions from the decoder: beam search, diverse beams and nucleus sampling.

    ids, scores = beam_search(model, model.encode(images), BeamOptions(num_beams=3))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertLMHeadModel

from blip_art.model.captioner import BlipCaptioner

NEVER = -1e9  # a score no real beam has; finite, so that adding to it stays ordered
# transformers samples from the 50 likeliest tokens unless told otherwise; so did the original.
TOP_K = 50


@dataclass(frozen=True)
class BeamOptions:
    """Settings of `beam_search`; the lengths count the prompt, as the original's do."""

    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    num_return: int = 1
    groups: int = 1
    diversity: float = 0.0


@dataclass(frozen=True)
class NucleusOptions:
    """Settings of `nucleus_sample`."""

    top_p: float = 0.9
    max_length: int = 20
    min_length: int = 5
    repetition_penalty: float = 1.1
    num_return: int = 1


class StepDecoder:
    """The text decoder one token at a time, with K rows a picture.

    Cross-attention keys and values are computed once a picture. The K rows of a picture share
    them by standing in the query's length dimension, so they are neither copied nor reordered.
    """

    def __init__(self, decoder: BertLMHeadModel, image_states: Tensor, rows: int,
                 max_length: int) -> None:
        self.embeddings = decoder.bert.embeddings
        self.layers = decoder.bert.encoder.layer
        self.head = decoder.cls
        self.heads = decoder.config.num_attention_heads
        self.rows = rows
        self.length = 0
        batch = image_states.shape[0]
        self.cross = [(self._split(layer.crossattention.self.key(image_states)),
                       self._split(layer.crossattention.self.value(image_states)))
                      for layer in self.layers]  # (B, heads, patches, d) each
        shape = (batch * rows, self.heads, max_length,
                 decoder.config.hidden_size // self.heads)
        self.past = [(image_states.new_empty(shape), image_states.new_empty(shape))
                     for _ in self.layers]

    def _split(self, x: Tensor) -> Tensor:
        """(N, L, heads·d) → (N, heads, L, d)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def __call__(self, ids: Tensor) -> Tensor:
        """Feed (B·K, T) new tokens; return the last position's logits (B·K, vocabulary)."""
        x = self.embeddings(ids, past_key_values_length=self.length)
        start, self.length = self.length, self.length + ids.shape[1]
        for layer, past, cross in zip(self.layers, self.past, self.cross, strict=True):
            x = self._self_attention(layer.attention, x, past, start)
            x = self._cross_attention(layer.crossattention, x, cross)
            x = layer.output(layer.intermediate(x), x)
        return self.head(x[:, -1]).float()

    def _self_attention(self, block, x: Tensor, past: tuple[Tensor, Tensor], start: int) -> Tensor:
        keys, values = past  # (B·K, heads, max_length, d)
        keys[:, :, start:self.length] = self._split(block.self.key(x))
        values[:, :, start:self.length] = self._split(block.self.value(x))
        out = F.scaled_dot_product_attention(
            self._split(block.self.query(x)), keys[:, :, :self.length],
            values[:, :, :self.length], is_causal=start == 0 and x.shape[1] > 1)
        return block.output(out.transpose(1, 2).flatten(2), x)

    def _cross_attention(self, block, x: Tensor, cross: tuple[Tensor, Tensor]) -> Tensor:
        keys, values = cross  # (B, heads, patches, d): the rows of one picture share them
        query = self._split(block.self.query(x).reshape(keys.shape[0], -1, x.shape[-1]))
        out = F.scaled_dot_product_attention(query, keys, values)  # (B, heads, K·T, d)
        return block.output(out.transpose(1, 2).flatten(2).view_as(x), x)

    def reorder(self, parents: Tensor) -> None:
        """Row i goes on from row parents[i]; parents are (B·K,), each inside its picture."""
        for keys, values in self.past:
            keys[:, :, :self.length] = keys[parents, :, :self.length]
            values[:, :, :self.length] = values[parents, :, :self.length]


class _Beams:
    """One group of K beams a picture: the running ones and the K best finished ones."""

    def __init__(self, batch: int, beams: int, prompt_length: int, options: BeamOptions,
                 end_id: int, device: torch.device) -> None:
        self.options, self.end_id, self.prompt_length = options, end_id, prompt_length
        self.beams = beams
        words = options.max_length - prompt_length
        self.tokens = torch.full((batch, beams, words), end_id, device=device)  # running
        self.scores = torch.full((batch, beams), NEVER, device=device)
        self.scores[:, 0] = 0  # all beams start equal: only the first may branch
        self.done_tokens = self.tokens.clone()
        self.done_scores = torch.full((batch, beams), NEVER, device=device)
        self.done = torch.zeros((batch, beams), dtype=torch.bool, device=device)
        self.open = torch.ones((batch, 1), dtype=torch.bool, device=device)

    def advance(self, log_probs: Tensor, word: int) -> tuple[Tensor, Tensor]:
        """Choose word number `word` from (B, K, V) log-probabilities.

        Returns:
            The new tokens and the beam each continues, both (B, K).
        """
        vocabulary = log_probs.shape[-1]
        totals = (log_probs + self.scores[..., None]).flatten(1)
        # Twice as many as beams: at most K of them can be ends, so K can go on.
        best, index = totals.topk(2 * self.beams)  # (B, 2K)
        parent, token = index // vocabulary, index % vocabulary
        tokens = self.tokens.gather(1, parent[..., None].expand(-1, -1, self.tokens.shape[2]))
        tokens[:, :, word] = token
        ended = (token == self.end_id) | (word == self.tokens.shape[2] - 1)
        self._finish(tokens, best, ended, word + 1)
        self.scores, kept = (best + ended * NEVER).topk(self.beams)
        self.tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        self._close(word + 1)
        return token.gather(1, kept), parent.gather(1, kept)

    def _finish(self, tokens: Tensor, best: Tensor, ended: Tensor, length: int) -> None:
        """Let the ends among the K best candidates compete with the finished captions."""
        ended = ended & (torch.arange(ended.shape[1], device=ended.device) < self.beams)
        scores = best / length ** self.options.length_penalty
        scores = torch.where(ended & self.open, scores, torch.full_like(scores, NEVER))
        merged = torch.cat([self.done_tokens, tokens], dim=1)
        self.done_scores, kept = torch.cat([self.done_scores, scores], dim=1).topk(self.beams)
        self.done_tokens = merged.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        self.done = torch.cat([self.done, ended & self.open], dim=1).gather(1, kept)

    def _close(self, length: int) -> None:
        """Close a picture once its K captions are finished and no running beam looks better.

        The rule of transformers' early_stopping=False, the original's default: the best running
        beam is judged by its score at the present length.
        """
        reachable = self.scores[:, :1] / length ** self.options.length_penalty
        worst = torch.where(self.done.all(1, keepdim=True),
                            self.done_scores.amin(1, keepdim=True), NEVER)
        self.open = self.open & (reachable > worst)


def _penalize_repeats(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens in `seen` (N, L) less likely in `scores` (N, V); CTRL (Keskar et al. 2019)."""
    if penalty == 1.0:
        return scores
    old = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


@torch.inference_mode()
def beam_search(model: BlipCaptioner, image_states: Tensor,
                options: BeamOptions) -> tuple[list[list[list[int]]], Tensor]:
    """Beam search; with groups > 1, diverse beam search (Vijayakumar et al. 2016).

    Args:
        image_states: (B, patches, width) of `model.encode`.

    Returns:
        Token ids after the prompt, end token left out: [picture][num_return], best first; with
        groups, the best caption of each group in order. And their scores (B, num_return).
    """
    batch, device = image_states.shape[0], image_states.device
    per_group = max(1, options.num_beams // options.groups)
    rows = per_group * options.groups
    prompt = torch.tensor([model.prompt_ids], device=device)
    prompt_length = prompt.shape[1]
    words = options.max_length - prompt_length
    if words < 1:
        return [[[]] * options.num_return for _ in range(batch)], torch.zeros(
            batch, options.num_return)
    groups = [_Beams(batch, per_group, prompt_length, options, model.end_id, device)
              for _ in range(options.groups)]
    decoder = StepDecoder(model.text_decoder, image_states, rows, options.max_length)
    logits = decoder(prompt.expand(batch * rows, -1))
    first_row = torch.arange(batch, device=device)[:, None] * rows
    for word in range(words):
        log_probs = logits.log_softmax(-1)
        seen = torch.cat([prompt.expand(batch * rows, -1),
                          torch.cat([g.tokens[:, :, :word] for g in groups], 1).flatten(0, 1)], 1)
        log_probs = _penalize_repeats(log_probs, seen, options.repetition_penalty)
        if prompt_length + word < options.min_length:
            log_probs[:, model.end_id] = -torch.inf
        by_group = log_probs.view(batch, options.groups, per_group, -1)
        tokens: list[Tensor] = []
        parents: list[Tensor] = []
        for i, group in enumerate(groups):
            scores = by_group[:, i]
            if i and options.diversity:
                taken = torch.cat(tokens, 1)
                scores = scores.scatter_add(2, taken[:, None].expand(-1, per_group, -1), torch.full(
                    (batch, per_group, taken.shape[1]), -options.diversity, device=device))
            token, parent = group.advance(scores, word)
            tokens.append(token)
            parents.append(first_row + i * per_group + parent)
        if word == words - 1 or not any(bool(group.open.any()) for group in groups):
            break
        decoder.reorder(torch.cat(parents, 1).flatten())
        logits = decoder(torch.cat(tokens, 1).view(-1, 1))
    return _best(groups, options, model.end_id)


def _best(groups: list[_Beams], options: BeamOptions,
          end_id: int) -> tuple[list[list[list[int]]], Tensor]:
    if len(groups) > 1:
        tokens = torch.stack([g.done_tokens[:, 0] for g in groups], 1)
        scores = torch.stack([g.done_scores[:, 0] for g in groups], 1)
    else:
        tokens = groups[0].done_tokens[:, :options.num_return]
        scores = groups[0].done_scores[:, :options.num_return]
    return [[_until(ids, end_id) for ids in picture] for picture in tokens.tolist()], scores


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[:ids.index(end_id)] if end_id in ids else ids


@torch.inference_mode()
def nucleus_sample(model: BlipCaptioner, image_states: Tensor, options: NucleusOptions,
                   seeds: list[int]) -> list[list[list[int]]]:
    """Nucleus sampling (Holtzman et al. 2020): [picture][num_return] token ids after the prompt.

    Args:
        seeds: one a picture. A caption depends on its picture's seed only, never on the batch.
    """
    batch, device, rows = image_states.shape[0], image_states.device, options.num_return
    prompt = torch.tensor([model.prompt_ids], device=device)
    words = options.max_length - prompt.shape[1]
    if words < 1:
        return [[[]] * rows for _ in range(batch)]
    draws = torch.stack([torch.rand(rows, words, generator=torch.Generator().manual_seed(seed))
                         for seed in seeds]).flatten(0, 1).to(device)  # (B·rows, words)
    ids = prompt.expand(batch * rows, -1)
    decoder = StepDecoder(model.text_decoder, image_states, rows, options.max_length)
    logits = decoder(ids)
    ended = torch.zeros(batch * rows, dtype=torch.bool, device=device)
    for word in range(words):
        logits = _penalize_repeats(logits, ids, options.repetition_penalty)
        if ids.shape[1] < options.min_length:
            logits[:, model.end_id] = -torch.inf
        token = _draw(logits, options.top_p, draws[:, word])
        token = token.masked_fill(ended, model.end_id)
        ids = torch.cat([ids, token[:, None]], 1)
        ended = ended | (token == model.end_id)
        if word == words - 1 or bool(ended.all()):
            break
        logits = decoder(token[:, None])
    texts = [_until(row, model.end_id) for row in ids[:, prompt.shape[1]:].tolist()]
    return [texts[i:i + rows] for i in range(0, len(texts), rows)]


def _draw(logits: Tensor, top_p: float, draw: Tensor) -> Tensor:
    """Token (N,) of the nucleus that the uniform number `draw` (N,) falls on."""
    likeliest, tokens = logits.topk(min(TOP_K, logits.shape[-1]))
    probs = likeliest.softmax(-1)
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= top_p, 0)  # the first token always stays
    reached = probs.cumsum(-1)
    pick = (reached < draw[:, None] * reached[:, -1:]).sum(-1).clamp(max=tokens.shape[1] - 1)
    return tokens.gather(1, pick[:, None])[:, 0]
