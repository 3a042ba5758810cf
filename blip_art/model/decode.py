"""Captions from the decoder: beam search, diverse beams and nucleus sampling.

    decoder = StepDecoder(model)
    ids, scores = beam_search(decoder, decoder.encode(images), BeamOptions(num_beams=3))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip_art.model.step import State, StepDecoder

NEVER = -1e9  # a score no real beam has; finite, so that adding to it stays ordered
# transformers samples from the 50 likeliest tokens unless told otherwise; so did the original.
TOP_K = 50
# Finished pictures leave when at most this share goes on: leaving copies what the others have.
LEAVE_AT = 0.75


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

    def keep(self, pictures: Tensor) -> None:
        """Forget all pictures but some."""
        for name in ("tokens", "scores", "done_tokens", "done_scores", "done", "open"):
            setattr(self, name, getattr(self, name)[pictures])

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
def beam_search(decoder: StepDecoder, image_states: Tensor, options: BeamOptions,
                late: bool | None = None) -> tuple[list[list[list[int]]], Tensor]:
    """Beam search; with groups > 1, diverse beam search (Vijayakumar et al. 2016).

    Args:
        image_states: (B, patches, width) of `model.encode`.
        late: whether a finished picture may take part in one more step, which spares the host
            from waiting for the device; default: on a GPU.

    Returns:
        Token ids after the prompt, end token left out: [picture][num_return], best first; with
        groups, the best caption of each group in order. And their scores (B, num_return).
    """
    model, batch = decoder.model, image_states.shape[0]
    late = image_states.is_cuda if late is None else late
    prompt = sent([model.prompt_ids], image_states.device)
    words = options.max_length - prompt.shape[1]
    if words < 1:
        return [[[]] * options.num_return for _ in range(batch)], torch.zeros(
            batch, options.num_return)
    with torch.autocast(image_states.device.type, enabled=False):  # the decoder has its own types
        state = decoder.look_at(image_states, options.max_length)
        search = _Search(batch, prompt, options, model.end_id)
        logits = decoder(state, prompt.expand(batch, -1)).repeat_interleave(search.rows, 0)
        state.widen(search.rows)
        watch = Watch(late)
        for word in range(words):
            tokens, parents = search.advance(logits, word)
            open_pictures = None if word == words - 1 else watch(search.flags())
            if not open_pictures:
                break
            if len(open_pictures) <= LEAVE_AT * len(tokens):
                watch = Watch(late)
                pictures = sent(open_pictures, tokens.device)
                tokens, parents = tokens[pictures], parents[pictures]
                search.keep(pictures)
                state.select(parents.flatten(), pictures)
                # From here on the pictures that stayed are numbered anew.
            else:
                state.select(parents.flatten())
            logits = decoder(state, tokens.view(-1, 1))
    captions, scores = search.best()
    return [[_until(ids, model.end_id) for ids in picture] for picture in captions.tolist()], scores


def sent(numbers: list[Any], device: torch.device) -> Tensor:
    """A tensor on the device; a GPU is not waited for, as it would be for unpinned memory."""
    tensor = torch.tensor(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Watch:
    """Tells which pictures go on: the one thing that the host asks the device for.

    Late, it tells what was so one step ago. A picture that is finished stays so, and what its rows
    do then is not looked at.
    """

    def __init__(self, late: bool) -> None:
        self._late = late
        self._asked: tuple[Tensor, torch.cuda.Event | None] | None = None

    def __call__(self, flags: Tensor) -> list[int]:
        """Positions of the open ones, as far as it is known."""
        if not self._late:
            return flags.nonzero()[:, 0].tolist()
        asked, self._asked = self._asked, (flags.to("cpu", non_blocking=True), _event(flags))
        if asked is None:
            return list(range(len(flags)))
        known, event = asked
        if event is not None:
            event.synchronize()
        return known.nonzero()[:, 0].tolist()


def _event(tensor: Tensor) -> torch.cuda.Event | None:
    """The moment when everything that was asked of a GPU so far is done."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record()
    return event


class _Search:
    """The groups of beams of a batch; pictures that are finished may leave it."""

    def __init__(self, batch: int, prompt: Tensor, options: BeamOptions, end_id: int) -> None:
        self.options, self.end_id, self.prompt = options, end_id, prompt
        self.per_group = max(1, options.num_beams // options.groups)
        self.rows = self.per_group * options.groups
        self.groups = [_Beams(batch, self.per_group, prompt.shape[1], options, end_id,
                              prompt.device) for _ in range(options.groups)]
        self.pictures = torch.arange(batch, device=prompt.device)  # those in the batch
        self.results = self._results()

    def advance(self, logits: Tensor, word: int) -> tuple[Tensor, Tensor]:
        """Choose word number `word` by logits (B·rows, vocabulary).

        Returns:
            The new tokens (B, rows), and the row of the batch that each continues.
        """
        batch = len(self.pictures)
        log_probs = logits.log_softmax(-1)
        if self.options.repetition_penalty != 1.0:
            said = torch.cat([g.tokens[:, :, :word] for g in self.groups], 1).flatten(0, 1)
            seen = torch.cat([self.prompt.expand(batch * self.rows, -1), said], 1)
            log_probs = _penalize_repeats(log_probs, seen, self.options.repetition_penalty)
        if self.prompt.shape[1] + word < self.options.min_length:
            log_probs[:, self.end_id] = -torch.inf
        by_group = log_probs.view(batch, self.options.groups, self.per_group, -1)
        first_row = torch.arange(batch, device=logits.device)[:, None] * self.rows
        tokens: list[Tensor] = []
        parents: list[Tensor] = []
        for i, group in enumerate(self.groups):
            token, parent = group.advance(self._unlike(tokens, by_group[:, i]), word)
            tokens.append(token)
            parents.append(first_row + i * self.per_group + parent)
        return torch.cat(tokens, 1), torch.cat(parents, 1)

    def _unlike(self, taken: list[Tensor], scores: Tensor) -> Tensor:
        """Make tokens (B, K) of earlier groups less likely in the scores (B, K, V) of this one."""
        if not taken or not self.options.diversity:
            return scores
        tokens = torch.cat(taken, 1)[:, None].expand(-1, scores.shape[1], -1)
        return scores.scatter_add(2, tokens, torch.full_like(
            tokens, -self.options.diversity, dtype=scores.dtype))

    def flags(self) -> Tensor:
        """Which pictures of the batch (B,) are not finished."""
        return torch.stack([g.open[:, 0] for g in self.groups]).any(0)

    def keep(self, pictures: Tensor) -> None:
        """Let all other pictures leave."""
        self._put()
        self.pictures = self.pictures[pictures]
        for group in self.groups:
            group.keep(pictures)

    def best(self) -> tuple[Tensor, Tensor]:
        """The captions (B, num_return, words) of all pictures, and their scores."""
        self._put()
        return self.results

    def _put(self) -> None:
        for kept, now in zip(self.results, self._results(), strict=True):
            kept[self.pictures] = now

    def _results(self) -> tuple[Tensor, Tensor]:
        if len(self.groups) > 1:
            return (torch.stack([g.done_tokens[:, 0] for g in self.groups], 1),
                    torch.stack([g.done_scores[:, 0] for g in self.groups], 1))
        group, count = self.groups[0], self.options.num_return
        return group.done_tokens[:, :count].clone(), group.done_scores[:, :count].clone()


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[:ids.index(end_id)] if end_id in ids else ids


@torch.inference_mode()
def nucleus_sample(decoder: StepDecoder, image_states: Tensor, options: NucleusOptions,
                   seeds: list[int]) -> list[list[list[int]]]:
    """Nucleus sampling (Holtzman et al. 2020): [picture][num_return] token ids after the prompt.

    Args:
        seeds: one a picture. A caption depends on its picture's seed only, never on the batch.
    """
    model, rows = decoder.model, options.num_return
    batch, device = image_states.shape[0], image_states.device
    prompt = sent([model.prompt_ids], device)
    words = options.max_length - prompt.shape[1]
    if words < 1:
        return [[[]] * rows for _ in range(batch)]
    draws = torch.stack([torch.rand(rows, words, generator=torch.Generator().manual_seed(seed))
                         for seed in seeds]).flatten(0, 1).to(device)  # (B·rows, words)
    with torch.autocast(device.type, enabled=False):
        state = decoder.look_at(image_states, options.max_length)
        logits = decoder(state, prompt.expand(batch, -1)).repeat_interleave(rows, 0)
        state.widen(rows)
        ids = _sample(decoder, state, logits, prompt, draws, options)
    texts = [_until(row, model.end_id) for row in ids.tolist()]
    return [texts[i:i + rows] for i in range(0, len(texts), rows)]


def _sample(decoder: StepDecoder, state: State, logits: Tensor, prompt: Tensor, draws: Tensor,
            options: NucleusOptions) -> Tensor:
    """Token ids (B·rows, words) after the prompt, drawn by the uniform numbers `draws`."""
    end_id, rows, words = decoder.model.end_id, options.num_return, draws.shape[1]
    said = torch.full(draws.shape, end_id, device=draws.device)
    here = torch.arange(len(draws), device=draws.device)  # rows whose pictures are in the batch
    ended = torch.zeros(len(draws), dtype=torch.bool, device=draws.device)
    watch = Watch(late=draws.is_cuda)
    for word in range(words):
        seen = torch.cat([prompt.expand(len(here), -1), said[here, :word]], 1)
        logits = _penalize_repeats(logits, seen, options.repetition_penalty)
        if seen.shape[1] < options.min_length:
            logits[:, end_id] = -torch.inf
        token = _draw(logits, options.top_p, draws[here, word]).masked_fill(ended, end_id)
        said[here, word] = token
        ended = ended | (token == end_id)
        open_pictures = None if word == words - 1 else watch(~ended.view(-1, rows).all(1))
        if not open_pictures:
            break
        if len(open_pictures) * rows <= LEAVE_AT * len(here):
            watch = Watch(late=draws.is_cuda)
            pictures = sent(open_pictures, draws.device)
            kept = (pictures[:, None] * rows + torch.arange(rows, device=draws.device)).flatten()
            here, ended, token = here[kept], ended[kept], token[kept]
            state.select(kept, pictures)
        logits = decoder(state, token[:, None])
    return said


def _draw(logits: Tensor, top_p: float, draw: Tensor) -> Tensor:
    """Token (N,) of the nucleus that the uniform number `draw` (N,) falls on."""
    likeliest, tokens = logits.topk(min(TOP_K, logits.shape[-1]))
    probs = likeliest.softmax(-1)
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= top_p, 0)  # the first token always stays
    reached = probs.cumsum(-1)
    pick = (reached < draw[:, None] * reached[:, -1:]).sum(-1).clamp(max=tokens.shape[1] - 1)
    return tokens.gather(1, pick[:, None])[:, 0]
