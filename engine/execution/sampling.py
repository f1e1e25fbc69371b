"""Sampling: from the scores of every token to the one that comes next.

The order is that of `transformers`: repetition penalty, temperature, top-k, top-p, min-p. Chance is a counter: the
token at a position is a function of the sequence's seed, that position and the scores. It does not matter who else is in
the batch, how often anybody drew before, or whether the sequence was computed anew, here or on another replica.
"""

from collections.abc import Sequence as Listing
from dataclasses import dataclass
from math import isnan

import numpy as np
import torch
from torch import Tensor

from engine.execution.executor import Sequence
from engine.request import Logprobs, Sampling

LIKELIEST = 1024
"""Tokens that are sorted at first for top-p. Nearly always enough; sorting 49,152 takes ten times as long."""

GREEDY = Sampling()


@dataclass(slots=True)
class Choice:
    """The next token of a sequence. `error` says why there is none; the token then means nothing."""

    token: int
    logprobs: Logprobs | None = None
    error: str | None = None


class Wish:
    """How one sequence wants its tokens chosen. Made once, kept while it runs."""

    __slots__ = ("_num_seen", "_seen", "is_plain", "sampling", "seed", "sequence")

    def __init__(self, sampling: Sampling | None, seed: int, sequence: Sequence) -> None:
        self.sampling = sampling or GREEDY
        self.seed = seed
        self.sequence = sequence
        chosen = self.sampling
        self.is_plain = (
            chosen.temperature == 0 and chosen.repetition_penalty == 1.0 and chosen.logprobs is None
        )
        self._seen: Tensor | None = None
        self._num_seen = 0

    def penalised(self, scores: Tensor) -> Tensor:
        """Scores (vocab) after the repetition penalty: of all tokens so far, prompt and output (Keskar et al. 2019,
        arXiv 1909.05858, section 4.1; negative scores are multiplied, as everybody does)."""
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0:
            return scores
        if self._seen is None:
            self._seen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
            self._mark(self.sequence.tokens.tolist())
        self._mark(self.sequence.new_tokens[self._num_seen :])
        self._num_seen = len(self.sequence.new_tokens)
        return torch.where(self._seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)

    def _mark(self, tokens: list[int]) -> None:
        if self._seen is not None and tokens:
            self._seen[torch.tensor(tokens, device=self._seen.device)] = True


class Sampler:
    """Chooses the next token of each sequence of a batch."""

    def choose(self, logits: Tensor, wishes: Listing[Wish]) -> list[Choice]:
        """One choice for each row of `logits` (B, vocab), float32. Greedy rows are one argmax for all of them."""
        best, tokens = logits.max(dim=-1)
        choices = [
            Choice(token) if _is_valid(score) else Choice(0, error=f"the model's scores are no numbers ({score})")
            for token, score in zip(tokens.tolist(), best.tolist(), strict=True)
        ]
        for row, wish in enumerate(wishes):
            if not wish.is_plain and choices[row].error is None:
                choices[row] = self._chosen(logits[row], wish)
        return choices

    def _chosen(self, logits: Tensor, wish: Wish) -> Choice:
        sampling = wish.sampling
        scores = wish.penalised(logits)
        if sampling.temperature == 0:
            token = int(scores.argmax())
        else:
            token = drawn(scores / sampling.temperature, sampling, uniform(wish.seed, wish.sequence.num_tokens))
        if sampling.logprobs is None:
            return Choice(token)
        return Choice(token, told(logits, token, sampling.logprobs))


def uniform(seed: int, position: int) -> float:
    """A number from 0 to below 1, a function of both: Philox 4x64-10 (Salmon et al., SC 2011), keyed and counted."""
    return float(np.random.Philox(key=seed, counter=position).random_raw() >> 11) * 2.0**-53


def drawn(scores: Tensor, sampling: Sampling, chance: float) -> int:
    """The token at which the cumulative probability passes `chance`: inverse transform sampling.

    Tokens stand in the order of their ids, or where top-k or top-p cut, in that of their probability.
    """
    probabilities = torch.softmax(scores, dim=-1)
    ids: Tensor | None = None
    if sampling.top_k or sampling.top_p < 1:
        probabilities, ids = _likeliest(probabilities, sampling)
    if sampling.min_p > 0:
        is_kept = probabilities >= sampling.min_p * probabilities.max()
        places = is_kept.nonzero().squeeze(-1)
        probabilities, ids = probabilities[places], places if ids is None else ids[places]
    upto = probabilities.double().cumsum(0)
    place = int(torch.searchsorted(upto, chance * upto[-1], right=True))
    place = min(place, int((probabilities > 0).nonzero()[-1]))  # rounding may lead past the last possible one
    return place if ids is None else int(ids[place])


def _likeliest(probabilities: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What top-k and then top-p leave, the most likely first, and their ids. At least one token."""
    vocab = len(probabilities)
    count = min(sampling.top_k or LIKELIEST, vocab)
    kept, ids = torch.topk(probabilities, count)
    if not sampling.top_k and count < vocab and float(kept.double().sum()) < sampling.top_p:
        kept, ids = torch.sort(probabilities, descending=True, stable=True)
    if sampling.top_p < 1:
        shares = kept.double() / kept.double().sum() if sampling.top_k else kept.double()
        before = shares.cumsum(0) - shares
        enough = max(1, int((before < sampling.top_p).sum()))
        kept, ids = kept[:enough], ids[:enough]
    return kept, ids


def told(logits: Tensor, token: int, count: int) -> Logprobs:
    """Natural logarithms of the model's own probabilities: of the token, and of the `count` most likely ones."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = torch.topk(logprobs, min(count, len(logprobs)))
    return Logprobs(float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))


def _is_valid(score: float) -> bool:
    return not isnan(score) and score != -float("inf")
