"""The choices of beam search, for a whole batch at once; decode.py asks the decoder and this.

    beams = Beams(batch, prompt, options, end_id); beams.begin()
    beams.advance(logits, word)       # beams.tokens, beams.parents say how each row goes on
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 512  # of a vocabulary
NEVER = -1e9  # a score no real beam has; finite, so that adding to it stays ordered


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

    @property
    def per_group(self) -> int:
        """Beams of a group."""
        return max(1, self.num_beams // self.groups)

    @property
    def rows(self) -> int:
        """Beams of a picture."""
        return self.per_group * self.groups


class Group:
    """One group of K beams a picture: the running ones and the K best finished ones.

    All tensors stay in place, so that a step can be recorded.
    """

    def __init__(self, batch: int, beams: int, prompt_length: int, options: BeamOptions,
                 end_id: int, device: torch.device) -> None:
        self.options, self.end_id = options, end_id
        self.beams = beams
        words = options.max_length - prompt_length
        self.said = torch.empty(batch, beams, words, dtype=torch.long, device=device)  # running
        self.scores = torch.empty(batch, beams, device=device)
        self.done_said = torch.empty_like(self.said)
        self.done_scores = torch.empty_like(self.scores)
        self.done = torch.empty(batch, beams, dtype=torch.bool, device=device)
        self.open = torch.empty(batch, 1, dtype=torch.bool, device=device)

    def begin(self) -> None:
        """Nothing has been said yet."""
        for said in (self.said, self.done_said):
            said.fill_(self.end_id)
        for scores in (self.scores, self.done_scores):
            scores.fill_(NEVER)
        self.scores[:, 0] = 0  # all beams start equal: only the first may branch
        self.done.fill_(False)
        self.open.fill_(True)

    def advance(self, log_probs: Tensor, word: int) -> tuple[Tensor, Tensor]:
        """Choose word number `word` from (B, K, V) log-probabilities.

        Returns:
            The new tokens and the beam each continues, both (B, K).
        """
        # Twice as many as beams: at most K of them can be ends, so K can go on.
        likely, tokens = likeliest(log_probs, 2 * self.beams)  # (B, K, 2K)
        best, index = (likely + self.scores[..., None]).flatten(1).topk(2 * self.beams)  # (B, 2K)
        parent, token = index // likely.shape[2], tokens.flatten(1).gather(1, index)
        said = _chosen(self.said, parent)
        said[:, :, word] = token
        ended = (token == self.end_id) | (word == said.shape[2] - 1)
        self._finish(said, best, ended, word + 1)
        scores, kept = (best + ended * NEVER).topk(self.beams)
        self.scores.copy_(scores)
        self.said.copy_(_chosen(said, kept))
        self._close(word + 1)
        return token.gather(1, kept), parent.gather(1, kept)

    def take(self, other: Group, pictures: Tensor) -> None:
        """Hold some pictures of another group."""
        for name in ("said", "scores", "done_said", "done_scores", "done", "open"):
            torch.index_select(getattr(other, name), 0, pictures, out=getattr(self, name))

    def _finish(self, said: Tensor, best: Tensor, ended: Tensor, length: int) -> None:
        """Let the ends among the K best candidates compete with the finished captions."""
        ended = ended & (torch.arange(ended.shape[1], device=ended.device) < self.beams)
        scores = best / length ** self.options.length_penalty
        scores = torch.where(ended & self.open, scores, torch.full_like(scores, NEVER))
        scores, kept = torch.cat([self.done_scores, scores], dim=1).topk(self.beams)
        self.done_said.copy_(_chosen(torch.cat([self.done_said, said], dim=1), kept))
        self.done.copy_(torch.cat([self.done, ended & self.open], dim=1).gather(1, kept))
        self.done_scores.copy_(scores)

    def _close(self, length: int) -> None:
        """Close a picture once its K captions are finished and no running beam looks better.

        The rule of transformers' early_stopping=False, the original's default: the best running
        beam is judged by its score at the present length.
        """
        reachable = self.scores[:, :1] / length ** self.options.length_penalty
        worst = torch.where(self.done.all(1, keepdim=True),
                            self.done_scores.amin(1, keepdim=True), NEVER)
        self.open &= reachable > worst


class Beams:
    """The groups of beams of a batch."""

    def __init__(self, batch: int, prompt: Tensor, options: BeamOptions, end_id: int) -> None:
        self.options, self.end_id, self.prompt = options, end_id, prompt  # (1, T)
        self.groups = [Group(batch, options.per_group, prompt.shape[1], options, end_id,
                             prompt.device) for _ in range(options.groups)]
        self.tokens = torch.empty(batch, options.rows, dtype=torch.long, device=prompt.device)
        """(B, rows): what was chosen last."""
        self.parents = torch.empty_like(self.tokens)
        """(B, rows): which row of the picture each goes on from."""

    def begin(self) -> None:
        """Nothing has been said yet."""
        for group in self.groups:
            group.begin()

    def advance(self, logits: Tensor, word: int) -> None:
        """Choose word number `word` by logits (B·rows, vocabulary)."""
        log_probs = logits.log_softmax(-1, dtype=torch.float32)
        if self.options.repetition_penalty != 1.0:
            said = torch.cat([g.said[:, :, :word] for g in self.groups], 1).flatten(0, 1)
            seen = torch.cat([self.prompt.expand(len(said), -1), said], 1)
            log_probs = penalize_repeats(log_probs, seen, self.options.repetition_penalty)
        if self.prompt.shape[1] + word < self.options.min_length:
            log_probs[:, self.end_id] = -torch.inf
        by_group = log_probs.view(len(self.tokens), self.options.groups, self.options.per_group, -1)
        for i, group in enumerate(self.groups):
            first = i * self.options.per_group
            rows = slice(first, first + self.options.per_group)
            token, parent = group.advance(
                self._unlike(self.tokens[:, :first], by_group[:, i]), word)
            self.tokens[:, rows] = token
            self.parents[:, rows] = parent + first

    def _unlike(self, taken: Tensor, scores: Tensor) -> Tensor:
        """Make tokens (B, K) of earlier groups less likely in the scores (B, K, V) of this one."""
        if not taken.shape[1] or not self.options.diversity:
            return scores
        tokens = taken[:, None].expand(-1, scores.shape[1], -1)
        return scores.scatter_add(2, tokens, torch.full_like(
            tokens, -self.options.diversity, dtype=scores.dtype))

    def open(self) -> Tensor:
        """Which pictures (B,) are not finished."""
        return torch.stack([g.open[:, 0] for g in self.groups]).any(0)

    def take(self, other: Beams, pictures: Tensor) -> None:
        """Hold some pictures of another batch."""
        for mine, theirs in zip(self.groups, other.groups, strict=True):
            mine.take(theirs, pictures)
        torch.index_select(other.tokens, 0, pictures, out=self.tokens)

    def results(self) -> tuple[Tensor, Tensor]:
        """The best captions (B, num_return, words) so far and their scores."""
        if len(self.groups) > 1:
            return (torch.stack([g.done_said[:, 0] for g in self.groups], 1),
                    torch.stack([g.done_scores[:, 0] for g in self.groups], 1))
        group, count = self.groups[0], self.options.num_return
        return group.done_said[:, :count], group.done_scores[:, :count]


def penalize_repeats(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens in `seen` (N, L) less likely in `scores` (N, V); CTRL (Keskar et al. 2019)."""
    if penalty == 1.0:
        return scores
    old = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


def likeliest(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """`topk` of (…, V): the largest are among the chunks with the largest maxima.

    torch's own goes over all numbers four times on a GPU. Where V is not made of chunks, as on the
    CPU, it is torch's.
    """
    if scores.shape[-1] % CHUNK or number > scores.shape[-1] // CHUNK:
        return scores.topk(number)
    chunks = scores.unflatten(-1, (-1, CHUNK))
    chunk = chunks.amax(-1).topk(number).indices  # (…, number)
    some = chunks.gather(-2, chunk[..., None].expand(*chunk.shape, CHUNK))
    best, place = some.flatten(-2).topk(number)
    return best, chunk.gather(-1, place // CHUNK) * CHUNK + place % CHUNK


def _chosen(said: Tensor, rows: Tensor) -> Tensor:
    """(B, N, L) → (B, K, L): of each picture the rows (B, K)."""
    return said.gather(1, rows[..., None].expand(-1, -1, said.shape[2]))
