"""Captions from the decoder: beam search, diverse beams and nucleus sampling.

    decoder = StepDecoder(model)
    ids, scores = beam_search(decoder, decoder.encode(images), BeamOptions(num_beams=3))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip_art.memory import sent
from blip_art.model.beams import BeamOptions, Beams, penalize_repeats
from blip_art.model.record import Recorded
from blip_art.model.step import StepDecoder

# transformers samples from the 50 likeliest tokens unless told otherwise; so did the original.
TOP_K = 50
# Finished pictures leave when at most this share goes on: leaving copies what the others have.
LEAVE_AT = 0.75
# Where batches have fixed sizes half of one leaves, down to this size.
SMALLEST = 8
# Batches kept for those that follow, each with the keys and values of its pictures (24 MB of one in
# fp16); more than there are sizes of halves.
KEPT = 12


class NotFinite(ArithmeticError):
    """Scores of words are no numbers: the weights are damaged, or too large for the type."""


@dataclass(frozen=True)
class NucleusOptions:
    """Settings of `nucleus_sample`."""

    top_p: float = 0.9
    max_length: int = 20
    min_length: int = 5
    repetition_penalty: float = 1.1
    num_return: int = 1


class _Batch:
    """Pictures whose captions grow together, a word a step, in tensors that stay in place."""

    def __init__(self, decoder: StepDecoder, size: int, rows: int, patches: int,
                 options: BeamOptions | NucleusOptions) -> None:
        self.decoder, self.size, self.rows = decoder, size, rows
        width = decoder.model.vision_width
        self.image_states = torch.empty(size, patches, width, dtype=decoder.dtype,
                                        device=decoder.device)
        self.inputs: tuple[Tensor, ...] = (self.image_states,)
        self.prompt = sent(torch.tensor([decoder.model.prompt_ids]), decoder.device)  # (1, T)
        self.words = options.max_length - self.prompt.shape[1]
        self.state = decoder.state(size, rows, options.max_length, patches)
        self._steps = [Recorded(decoder.device, decoder.pool) for _ in range(self.words)]

    def step(self, word: int) -> None:
        """Choose word number `word`, the first being 0."""
        self._steps[word]((lambda: self._step(word)) if word else self._begin)

    def _prompt_logits(self) -> Tensor:
        """(B·rows, vocabulary), of what follows the prompt, which is said once a picture."""
        self.decoder.look_at(self.state, self.image_states)
        prompt = self.prompt.expand(self.size, -1)[:, None]
        return self._seen(self.decoder(self.state, prompt, 0)).repeat_interleave(self.rows, 0)

    def _word_logits(self, tokens: Tensor, word: int) -> Tensor:
        """(B·rows, vocabulary), of word number `word` after tokens (B, rows)."""
        start = self.prompt.shape[1] + word - 1
        return self._seen(self.decoder(self.state, tokens[..., None], start))

    def _seen(self, logits: Tensor) -> Tensor:
        """The same, after a look at whether they are numbers."""
        self.decoder.finite &= logits.amax(-1).isfinite().all()
        return logits

    def _begin(self) -> None:
        raise NotImplementedError

    def _step(self, word: int) -> None:
        raise NotImplementedError

    def open(self) -> Tensor:
        """Which pictures (B,) are not finished."""
        raise NotImplementedError

    def take(self, other: Any, pictures: Tensor) -> None:
        """Go on with some pictures of another batch."""
        raise NotImplementedError

    def results(self) -> tuple[Tensor, ...]:
        """What has been found so far, a picture a row."""
        raise NotImplementedError


class _BeamBatch(_Batch):

    def __init__(self, decoder: StepDecoder, size: int, patches: int,
                 options: BeamOptions) -> None:
        super().__init__(decoder, size, options.rows, patches, options)
        self.beams = Beams(size, self.prompt, options, decoder.model.end_id)

    def _begin(self) -> None:
        self.beams.begin()
        self.beams.advance(self._prompt_logits(), 0)

    def _step(self, word: int) -> None:
        logits = self._word_logits(self.beams.tokens, word)
        self.beams.advance(logits, word)
        self.state.follow(self.beams.parents, self.prompt.shape[1] + word)

    def open(self) -> Tensor:
        return self.beams.open()

    def take(self, other: _BeamBatch, pictures: Tensor) -> None:
        self.state.take(other.state, pictures)
        self.beams.take(other.beams, pictures)

    def results(self) -> tuple[Tensor, ...]:
        return self.beams.results()


class _SampleBatch(_Batch):

    def __init__(self, decoder: StepDecoder, size: int, patches: int,
                 options: NucleusOptions) -> None:
        super().__init__(decoder, size, options.num_return, patches, options)
        self.options, shape = options, (size, self.rows, self.words)
        self.draws = torch.empty(shape, device=decoder.device)
        self.inputs = (self.image_states, self.draws)
        self.said = torch.empty(shape, dtype=torch.long, device=decoder.device)
        self.ended = torch.empty(shape[:2], dtype=torch.bool, device=decoder.device)

    def _begin(self) -> None:
        self.said.fill_(self.decoder.model.end_id)
        self.ended.fill_(False)
        self._draw(self._prompt_logits(), 0)

    def _step(self, word: int) -> None:
        self._draw(self._word_logits(self.said[:, :, word - 1], word), word)

    def _draw(self, logits: Tensor, word: int) -> None:
        end_id, logits = self.decoder.model.end_id, logits.float()
        seen = torch.cat([self.prompt.expand(len(logits), -1),
                          self.said[:, :, :word].flatten(0, 1)], 1)
        logits = penalize_repeats(logits, seen, self.options.repetition_penalty)
        if seen.shape[1] < self.options.min_length:
            logits[:, end_id] = -torch.inf
        token = _drawn(logits, self.options.top_p, self.draws[:, :, word].flatten())
        token = token.view_as(self.ended).masked_fill(self.ended, end_id)
        self.said[:, :, word] = token
        self.ended |= token == end_id

    def open(self) -> Tensor:
        return ~self.ended.all(1)

    def take(self, other: _SampleBatch, pictures: Tensor) -> None:
        self.state.take(other.state, pictures)
        for name in ("draws", "said", "ended"):
            torch.index_select(getattr(other, name), 0, pictures, out=getattr(self, name))

    def results(self) -> tuple[Tensor, ...]:
        return (self.said,)


@torch.inference_mode()
def beam_search(decoder: StepDecoder, image_states: Tensor, options: BeamOptions,
                fixed: bool | None = None) -> tuple[list[list[list[int]]], Tensor]:
    """Beam search; with groups > 1, diverse beam search (Vijayakumar et al. 2016).

    Args:
        image_states: (B, patches, width) of `decoder.encode`.
        fixed: see `_finished`; default: on a GPU.

    Returns:
        Token ids after the prompt, end token left out: [picture][num_return], best first; with
        groups, the best caption of each group in order. And their scores (B, num_return).

    Raises:
        NotFinite: the weights do not fit the decoder's type.
    """
    model, batch = decoder.model, image_states.shape[0]
    if options.max_length <= len(model.prompt_ids):
        return [[[]] * options.num_return for _ in range(batch)], torch.zeros(
            batch, options.num_return)
    captions, scores = _finished(_BeamBatch, decoder, (image_states,), options, fixed)
    return [[_until(ids, model.end_id) for ids in picture] for picture in captions.tolist()], scores


@torch.inference_mode()
def nucleus_sample(decoder: StepDecoder, image_states: Tensor, options: NucleusOptions,
                   seeds: list[int], fixed: bool | None = None) -> list[list[list[int]]]:
    """Nucleus sampling (Holtzman et al. 2020): [picture][num_return] token ids after the prompt.

    Args:
        seeds: one a picture. A caption depends on its picture's seed only, never on the batch.

    Raises:
        NotFinite: the weights do not fit the decoder's type.
    """
    model, rows = decoder.model, options.num_return
    words = options.max_length - len(model.prompt_ids)
    if words < 1:
        return [[[]] * rows for _ in seeds]
    draws = torch.stack([torch.rand(rows, words, generator=torch.Generator().manual_seed(seed))
                         for seed in seeds])
    inputs = image_states, sent(draws, decoder.device)
    said, = _finished(_SampleBatch, decoder, inputs, options, fixed)
    return [[_until(ids, model.end_id) for ids in picture] for picture in said.tolist()]


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[:ids.index(end_id)] if end_id in ids else ids


def _finished(kind: Callable[..., _Batch], decoder: StepDecoder, inputs: tuple[Tensor, ...],
              options: Any, fixed: bool | None) -> tuple[Tensor, ...]:
    """What all pictures' captions are; who is finished leaves the batch.

    Args:
        inputs: image states and whatever else the kind of batch wants of each picture.
        fixed: batches have few sizes and are kept, so that their steps can be recorded; and which
            pictures are finished is known a step late, which spares the host from waiting for the
            device. Default: on a GPU.
    """
    fixed = decoder.device.type == "cuda" if fixed is None else fixed
    size, patches = inputs[0].shape[:2]
    batch = _batch(kind, decoder, size, patches, options, fixed)
    for mine, given in zip(batch.inputs, inputs, strict=True):
        mine.copy_(given)
    here = list(range(size))  # the pictures in the batch
    found: tuple[Tensor, ...] = ()
    watch = Watch(late=fixed)
    with torch.autocast(decoder.device.type, enabled=False):  # the decoder has its own types
        batch.step(0)
        for word in range(1, batch.words):
            opened = watch(batch.open())
            if not opened:
                break
            stay = _staying(opened, batch.size, fixed)
            if stay is not None:
                found = _put(found, here, batch.results())
                smaller = _batch(kind, decoder, len(stay), patches, options, fixed)
                smaller.take(batch, sent(torch.tensor(stay), decoder.device))
                batch, here, watch = smaller, [here[n] for n in stay], Watch(late=fixed)
            batch.step(word)
    if not decoder.finite:
        decoder.finite.fill_(True)
        raise NotFinite
    return _put(found, here, batch.results())


def _batch(kind: Callable[..., _Batch], decoder: StepDecoder, size: int, patches: int, options: Any,
           fixed: bool) -> _Batch:
    if not fixed:
        return kind(decoder, size, patches, options)
    kept, key = decoder.kept, (kind, size, patches, options)
    batch: _Batch = kept.pop(key, None) or kind(decoder, size, patches, options)
    kept[key] = batch  # the newest last
    if len(kept) > KEPT:
        del kept[next(iter(kept))]
    return batch


def _staying(opened: list[int], size: int, fixed: bool) -> list[int] | None:
    """Which pictures go on in a smaller batch, at least those in `opened`; None: all stay."""
    if not fixed:
        return opened if len(opened) <= LEAVE_AT * size else None
    smaller = size
    while smaller // 2 >= max(SMALLEST, len(opened)):
        smaller //= 2
    if smaller == size:
        return None
    closed = sorted(set(range(size)) - set(opened))
    return opened + closed[:smaller - len(opened)]


def _put(found: tuple[Tensor, ...], here: list[int],
         now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results of all pictures, with those of the ones in the batch as they are now."""
    if not found:
        return tuple(tensor.clone() for tensor in now)
    for tensor, new in zip(found, now, strict=True):
        tensor[sent(torch.tensor(here), tensor.device)] = new
    return found


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


def _drawn(logits: Tensor, top_p: float, draw: Tensor) -> Tensor:
    """Token (N,) of the nucleus that the uniform number `draw` (N,) falls on."""
    likeliest, tokens = logits.topk(min(TOP_K, logits.shape[-1]))
    probs = likeliest.softmax(-1)
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= top_p, 0)  # the first token always stays
    reached = probs.cumsum(-1)
    pick = (reached < draw[:, None] * reached[:, -1:]).sum(-1).clamp(max=tokens.shape[1] - 1)
    return tokens.gather(1, pick[:, None])[:, 0]
