"""What a cache found of a trace: the hit blocks of every request, and the ratios that follow from them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from sim.traffic import Chains
from sim.traffic.trace import Lengths

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True, kw_only=True, eq=False)
class Outcome:
    """`hits[i, t]`: the blocks that request i found in tier t. All ratios are of the requests that `chosen` marks.

    `held` is what part of the cache each model had, as a mean over looks in between; empty where nobody looked.
    """

    chains: Chains
    hits: Lengths
    evictions: int
    held: npt.NDArray[np.float64]

    def token_hit_ratio(self, chosen: Mask | None = None) -> float:
        """Cached prompt tokens / prompt tokens: the headline."""
        tokens = self._found(chosen).sum() * self.chains.block_tokens
        return _ratio(tokens, _of(self.chains.prompt_tokens, chosen).sum())

    def block_hit_ratio(self, chosen: Mask | None = None) -> float:
        """Leading resident blocks / full blocks of the prompts."""
        return _ratio(self._found(chosen).sum(), _of(self.chains.prompt_blocks, chosen).sum())

    def request_hit_ratio(self, chosen: Mask | None = None) -> float:
        """Requests that found a block / requests."""
        found = self._found(chosen)
        return _ratio((found > 0).sum(), len(found))

    def tier_hit_ratios(self, chosen: Mask | None = None) -> list[float]:
        """The token hit ratio's parts, the hottest tier first."""
        tokens = _of(self.chains.prompt_tokens, chosen).sum()
        parts = _of(self.hits, chosen).sum(axis=0) * self.chains.block_tokens
        return [_ratio(part, tokens) for part in parts]

    def model_hit_ratios(self, chosen: Mask | None = None) -> list[float]:
        """The token hit ratio of each model that was asked for."""
        everyone = np.ones(len(self.chains), bool) if chosen is None else chosen
        masks = [everyone & (self.chains.model == model) for model in range(len(self.chains.models))]
        return [self.token_hit_ratio(mask) for mask in masks if mask.any()]

    def worst_model(self, chosen: Mask | None = None) -> float:
        """The token hit ratio of the model that has the least."""
        return min(self.model_hit_ratios(chosen))

    def fairness(self, chosen: Mask | None = None) -> float:
        """Jain's index of the models' token hit ratios."""
        return jain(self.model_hit_ratios(chosen))

    def held_fairness(self) -> float:
        """Jain's index of the shares of the cache that models held: 1 is the same for all."""
        return jain(self.held.tolist())

    def evictions_per_minute(self) -> float:
        return _ratio(self.evictions * 60 * NS_PER_S, self.chains.span_ns)

    def _found(self, chosen: Mask | None) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = _of(self.hits, chosen).sum(axis=1, dtype=np.int64)
        return found


def jain(values: list[float]) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has everything, 1 when nobody has anything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _of(column: Lengths, chosen: Mask | None) -> Lengths:
    return column if chosen is None else column[chosen]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
