"""Sampling: from the scores of every token to the one that comes next.

A grammar rules tokens out first; then the order is that of vLLM: bias, penalties for what was repeated,
temperature, top-k, top-p, min-p. Chance is a counter: the token at a position is a function of the sequence's
seed, that position and the scores. It does not matter who else is in the batch, how often anybody drew before, or
whether the sequence was computed anew, here or on another replica.

One draw is one number from 0 to 1 and the token at which the cumulative probability, in float64, passes it (inverse
transform sampling). Tokens stand in the order of their ids or, where top-k or top-p cut, the most likely first; equal
scores everywhere in the order of their ids.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from math import isnan

import numpy as np
import torch
from torch import Tensor

from engine.errors import BadRequest, EngineError, GenerationFailed
from engine.execution.executor import Sequence
from engine.request import Logprobs, Sampling

FIRST_LOOK = 256
"""Tokens that are ranked at first for top-p, and four times as many whenever their mass is too small. To rank all of
49,152 takes 40 times as long as the first 256."""

NEAR_SCORES = 1 << 16
"""Scores that are worked on together on a CPU: 1 MiB stays in its cache. 16 x 49,152 in one go take up to 3 times as
long. A GPU takes all rows at once."""

COLDEST = 1e-5
"""A temperature below is greedy: the second of two scores that differ by 0.001 has a chance of e^-100."""

GREEDY = Sampling()

_MINUS_INFINITY = -(1 << 23)  # the bits of a float32: sign and exponent


@dataclass(slots=True)
class Choice:
    """The next token of a sequence. `error` says why there is none; the token then means nothing."""

    token: int
    logprobs: Logprobs | None = None
    error: EngineError | None = None


class Wish:
    """How one sequence wants its tokens chosen. Made once, kept while it runs."""

    __slots__ = ("_num_seen", "_seen", "adjusts", "is_greedy", "is_plain", "sampling", "seed", "sequence")

    def __init__(self, sampling: Sampling | None, seed: int, sequence: Sequence) -> None:
        self.sampling = chosen = sampling or GREEDY
        self.seed = seed
        self.sequence = sequence
        self.is_greedy = chosen.temperature < COLDEST
        self.adjusts = bool(
            chosen.repetition_penalty != 1.0
            or chosen.presence_penalty
            or chosen.frequency_penalty
            or chosen.logit_bias
        )
        self.is_plain = (
            self.is_greedy and not self.adjusts and chosen.logprobs is None and sequence.follower is None
        )
        self._seen: Tensor | None = None
        self._num_seen = 0

    def adjusted(self, scores: Tensor) -> Tensor:
        """Scores (vocab) after bias and penalties."""
        sampling = self.sampling
        if sampling.logit_bias:
            tokens = torch.tensor([token for token, _ in sampling.logit_bias], device=scores.device)
            biases = torch.tensor([bias for _, bias in sampling.logit_bias], device=scores.device)
            scores = scores.index_add(0, tokens, biases.to(scores.dtype))
        scores = self.penalised(scores)
        answer = (
            self.sequence.stream.tokens if sampling.presence_penalty or sampling.frequency_penalty else []
        )
        if answer:  # all that the caller has, whichever replica it came from
            tokens, counts = torch.unique(torch.tensor(answer, device=scores.device), return_counts=True)
            taken = sampling.presence_penalty + sampling.frequency_penalty * counts.to(scores.dtype)
            scores = scores.index_add(0, tokens, -taken)
        return scores

    def penalised(self, scores: Tensor) -> Tensor:
        """Scores (vocab) after the repetition penalty: of all tokens so far, prompt and output (Keskar et al. 2019,
        arXiv 1909.05858, section 4.1; negative scores are multiplied, as everybody does). What is finite stays so.
        """
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0:
            return scores
        tokens = self.sequence.new_tokens[self._num_seen :]
        if self._seen is None:
            tokens = [*self.sequence.tokens.tolist(), *self.sequence.new_tokens]
            self._seen = torch.tensor([], dtype=torch.long, device=scores.device)
        if tokens:
            new = torch.tensor(tokens, dtype=torch.long, device=scores.device)
            self._seen = torch.unique(torch.cat([self._seen, new]))
        self._num_seen = len(self.sequence.new_tokens)
        largest, old = torch.finfo(scores.dtype).max, scores[self._seen]
        exact = old.double()
        changed = torch.where(exact > 0, exact / penalty, exact * penalty).clamp(-largest, largest)
        return scores.index_put((self._seen,), torch.where(old.isfinite(), changed.to(scores.dtype), old))


class Sampler:
    """Chooses the next token of each sequence of a batch."""

    def choose(self, logits: Tensor, wishes: Listing[Wish]) -> list[Choice]:
        """One choice for each row of `logits` (B, vocab), float32. A batch that is all greedy costs one maximum.

        A row with a NaN, or with nothing above minus infinity, is an error of its own; in a row with plus infinity
        only such tokens are possible. A row without a grammar costs nothing for those that have one.
        """
        best, tokens = logits.max(dim=-1)
        masks = _masks(wishes)  # a GPU is still at work on the scores
        choices = [
            Choice(token) if _is_valid(score) else Choice(0, error=_unusable(score))
            for token, score in zip(tokens.tolist(), best.tolist(), strict=True)
        ]
        for row, refused in masks.items():
            if isinstance(refused, BadRequest):
                choices[row].error = refused
        rows = [row for row, wish in enumerate(wishes) if not wish.is_plain and choices[row].error is None]
        at_a_time = max(1, NEAR_SCORES // logits.shape[-1]) if logits.device.type == "cpu" else len(wishes)
        for begin in range(0, len(rows), at_a_time):
            part = rows[begin : begin + at_a_time]
            chosen = _chosen(
                _finite(_rows(logits, part), best[part]),
                [wishes[row] for row in part],
                {place: mask for place, row in enumerate(part) if isinstance(mask := masks.get(row), bytes)},
            )
            for row, choice in zip(part, chosen, strict=True):
                choices[row] = choice
        return choices


def uniform(seed: int, position: int) -> float:
    """A number from 0 to below 1, a function of both: Philox 4x64-10 (Salmon et al., SC 2011), keyed and counted."""
    return float(np.random.Philox(key=seed, counter=position).random_raw() >> 11) * 2.0**-53


def ranked(scores: Tensor, count: int) -> Tensor:
    """The ids (R, count) of the highest of scores (R, vocab), best first; of equal ones the lowest first.

    `topk` promises no order of equal ones, and scores that a model in bfloat16 gives are often equal.
    """
    vocab = scores.shape[-1]
    if 4 * count >= vocab:
        return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :count]
    values, ids = torch.topk(scores, count + 1)
    values, ids, next_best = values[:, :-1], ids[:, :-1], values[:, -1:]
    last = values[:, -1:]
    if bool((last == next_best).any()):  # more are equal than there is room for
        rank, above = torch.arange(count, device=scores.device), (values > last).sum(dim=-1, keepdim=True)
        falling = torch.arange(vocab, 0, -1, dtype=torch.int32, device=scores.device)
        lowest = torch.topk(torch.where(scores == last, falling, 0), count).indices
        ids = torch.where(rank < above, ids, lowest.gather(-1, (rank - above).clamp(min=0)))
    ids = ids.sort(dim=-1).values
    return ids.gather(-1, scores.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices)


def drawn(scores: Tensor, samplings: Listing[Sampling], chances: Listing[float]) -> Tensor:
    """The token (R) of each row of scores (R, vocab), finite or minus infinity, at that chance.

    The repetition penalty is not applied here. Rows that do not cut need no ranking.
    """
    cutting = [row for row, each in enumerate(samplings) if each.top_k or each.top_p < 1]
    others = [row for row, each in enumerate(samplings) if not each.top_k and each.top_p == 1]
    tokens = torch.empty(len(scores), dtype=torch.long, device=scores.device)
    for rows in cutting, others:
        if rows:
            own, chance = [samplings[row] for row in rows], [chances[row] for row in rows]
            tokens[rows] = _drawn(_rows(scores, rows), own, chance)
    return tokens


def told(logits: Tensor, tokens: Listing[int], counts: Listing[int]) -> list[Logprobs]:
    """Natural logarithms of the model's own probabilities: of each row's token, and of its most likely ones."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
    ids = ranked(logits, min(max(counts), logits.shape[-1]))
    values = logprobs.gather(-1, ids)
    return [
        Logprobs(own, list(zip(row_ids[:count], row_values[:count], strict=True)))
        for [own], row_ids, row_values, count in zip(
            chosen.tolist(), ids.tolist(), values.tolist(), counts, strict=True
        )
    ]


def _masks(wishes: Listing[Wish]) -> dict[int, bytes | BadRequest]:
    """What the grammars allow, by row; the error where one has become too much to follow."""
    masks: dict[int, bytes | BadRequest] = {}
    for row, wish in enumerate(wishes):
        follower = wish.sequence.follower
        if follower is not None:
            try:
                masks[row] = follower.allowed(wish.sequence.new_tokens)
            except BadRequest as error:
                masks[row] = error
    return masks


def _masked(logits: Tensor, masks: Mapping[int, bytes]) -> Tensor:
    """Logits (R, vocab) with minus infinity for what the masks of some rows rule out: a bit a token."""
    packed = np.frombuffer(b"".join(masks.values()), dtype=np.uint8).reshape(len(masks), -1)
    allowed = np.unpackbits(packed, axis=1, count=logits.shape[-1], bitorder="little")
    # 0 or -1, and of its bits those of minus infinity: added in a third of the time that masked_fill takes
    barred = ((torch.from_numpy(allowed).to(logits.device).int() - 1) & _MINUS_INFINITY).view(torch.float32)
    if len(masks) == len(logits):
        return logits + barred
    return logits.index_add(0, torch.tensor(list(masks), device=logits.device), barred)


def _left(logits: Tensor, masks: Mapping[int, bytes]) -> tuple[Tensor, list[int]]:
    """What the masks leave of logits (R, vocab), and the rows in which that is nothing: any token of them will do."""
    scores = _masked(logits, masks)
    nothing = [row for row, best in enumerate(scores.amax(dim=-1).tolist()) if best == -torch.inf]
    if nothing:
        scores[nothing] = 0.0
    return scores, nothing


def _chosen(logits: Tensor, wishes: Listing[Wish], masks: Mapping[int, bytes]) -> list[Choice]:
    """The choice of each row of valid logits (R, vocab), by all that the wishes ask for and the masks leave."""
    scores, nothing = _left(logits, masks) if masks else (logits, [])
    if any(wish.adjusts for wish in wishes):
        scores = torch.stack([wish.adjusted(row) for wish, row in zip(wishes, scores, strict=True)])
    greedy = [row for row, wish in enumerate(wishes) if wish.is_greedy]
    others = [row for row, wish in enumerate(wishes) if not wish.is_greedy]
    tokens = [0] * len(wishes)
    if greedy:
        for row, token in zip(greedy, _rows(scores, greedy).argmax(dim=-1).tolist(), strict=True):
            tokens[row] = token
    if others:
        chances = [uniform(wishes[row].seed, wishes[row].sequence.num_tokens) for row in others]
        own = drawn(_rows(scores, others), [wishes[row].sampling for row in others], chances)
        for row, token in zip(others, own.tolist(), strict=True):
            tokens[row] = token
    choices = [Choice(token) for token in tokens]
    for row in nothing:
        choices[row].error = GenerationFailed("the scores of all tokens that its grammar allows are -inf")
    counts = {row: count for row, wish in enumerate(wishes) if (count := wish.sampling.logprobs) is not None}
    if counts:
        asked = told(_rows(logits, list(counts)), [tokens[row] for row in counts], list(counts.values()))
        for row, logprobs in zip(counts, asked, strict=True):
            choices[row].logprobs = logprobs
    return choices


def _drawn(scores: Tensor, samplings: Listing[Sampling], chances: Listing[float]) -> Tensor:
    """The token (R) of each row, where all rows cut by rank or none does."""
    heat = _column([each.temperature for each in samplings], scores)
    ids = None
    if samplings[0].top_k or samplings[0].top_p < 1:
        weights, ids = _likeliest(scores, heat, samplings)
    else:
        weights = _weights(scores, scores.amax(dim=-1, keepdim=True), heat.to(scores.dtype))
    if any(each.min_p > 0 for each in samplings):
        least = _column([each.min_p for each in samplings], scores)  # the weight of the most likely one is 1
        weights = weights.masked_fill(weights < least.to(weights.dtype), 0)
    places = _places(weights, _column(chances, scores))
    return (places if ids is None else ids.gather(-1, places)).squeeze(-1)


def _likeliest(scores: Tensor, heat: Tensor, samplings: Listing[Sampling]) -> tuple[Tensor, Tensor]:
    """What top-k and then top-p leave of each row: weights in float64, the largest first and zero behind, and ids.

    Top-p is the smallest set with at least that share of what top-k left. At least one token stays.
    """
    vocab, best = scores.shape[-1], scores.amax(dim=-1, keepdim=True)
    limits = [min(each.top_k or vocab, vocab) for each in samplings]
    limit = torch.tensor(limits, device=scores.device)[:, None]
    top_p = _column([each.top_p for each in samplings], scores)
    count = min(vocab, max(each.top_k or FIRST_LOOK for each in samplings))
    whole = None
    if any(not each.top_k for each in samplings):
        whole = _weights(scores, best, heat.to(scores.dtype)).sum(dim=-1, keepdim=True, dtype=torch.float64)
    while True:
        ids = ranked(scores, count)
        weights = _weights(scores.gather(-1, ids).double(), best.double(), heat)
        weights = weights.masked_fill(torch.arange(count, device=scores.device) >= limit, 0)
        upto = weights.cumsum(dim=-1)
        mass = upto[:, -1:] if whole is None else torch.where(limit < vocab, upto[:, -1:], whole)
        if count == vocab or bool((upto[:, -1:] >= top_p * mass).all()):
            break
        count = min(vocab, 4 * count)
    is_over = torch.zeros_like(weights, dtype=torch.bool)
    is_over[:, 1:] = (upto[:, :-1] >= top_p * mass) & (top_p < 1)
    return weights.masked_fill(is_over, 0), ids


def _weights(scores: Tensor, best: Tensor, heat: Tensor) -> Tensor:
    """Probabilities but for a factor: 1 for the best."""
    return ((scores - best) / heat).exp()


def _column(values: Listing[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _places(weights: Tensor, chances: Tensor) -> Tensor:
    """The first place (R, 1) in each row of weights (R, n) where the sum so far passes the row's chance of the whole.

    Never one of weight 0: the sum does not grow there.
    """
    upto = weights.double().cumsum(dim=-1)
    return torch.searchsorted(
        upto, chances * upto[:, -1:], right=True
    )  # a chance below 1 stays below the whole


def _finite(logits: Tensor, best: Tensor) -> Tensor:
    """Logits (R, vocab) that are finite or minus infinity: plus infinity leaves nobody else a chance."""
    if not bool(best.isinf().any()):
        return logits
    alone = torch.where(logits == torch.inf, 0.0, -torch.inf)
    return torch.where(best[:, None] == torch.inf, alone, logits)


def _rows(values: Tensor, rows: list[int]) -> Tensor:
    """Those rows (ascending); not copied where they are neighbours."""
    begin, end = rows[0], rows[-1] + 1
    return values[begin:end] if end - begin == len(rows) else values[rows]


def _is_valid(score: float) -> bool:
    return not isnan(score) and score != -torch.inf


def _unusable(score: float) -> GenerationFailed:
    return GenerationFailed(f"the scores of its tokens are {score}")
