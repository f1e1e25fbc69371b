"""The law executor: service times drawn from a distribution. No tokens that mean anything, for queueing theory."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np
from xxhash import xxh3_64_intdigest

from engine.clock import NS_PER_S
from engine.execution.executor import Batch, Machine, Sequence, executors
from engine.execution.modelled import Durations, Modelled
from engine.request import Tokens
from engine.settings import ModelSettings, above, require

VOCAB = 2**31 - 1
CONTEXT_TOKENS = 1 << 20
LEAST_MEAN_S, MOST_MEAN_S = 1e-6, 86_400 * 365  # below, rounding to ns is seen; beyond, a run takes forever
CHANCES = 1 << 52  # as many as leave the largest below 1 when it is a float
HALVINGS = 60
NORMAL = NormalDist()

Law = Callable[[float, float], float]
"""The quantile of a service time with mean 1: of a chance in (0, 1), and the squared coefficient of variation."""


def _erlang2(chance: float, _scv: float) -> float:
    """Erlang-2 with mean 1, by bisection: 1 - (1 + 2x) e^(-2x) = chance."""
    low, high = 0.0, 50.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if 1 - (1 + 2 * middle) * exp(-2 * middle) < chance:
            low = middle
        else:
            high = middle
    return low


def _lognormal(chance: float, scv: float) -> float:
    variance = log(1 + scv)
    return exp(sqrt(variance) * NORMAL.inv_cdf(chance) - variance / 2)


LAWS: dict[str, Law] = {
    "exponential": lambda chance, _scv: -log(1 - chance),
    "deterministic": lambda _chance, _scv: 1.0,
    "uniform": lambda chance, _scv: 2 * chance,
    "erlang2": _erlang2,
    "lognormal": _lognormal,
}


def chance_of(word: int) -> float:
    """A chance in (0, 1), neither end included, from 64 random bits."""
    return ((word >> 12) + 0.5) / CHANCES


@dataclass(slots=True, kw_only=True)
class LawOptions:
    """Which distribution, its mean, and for the log-normal its squared coefficient of variation (SCV)."""

    law: str = "exponential"
    mean_s: float = 1.0
    scv: float = 1.0

    def __post_init__(self) -> None:
        require("executor.law", self.law, self.law in LAWS, f"one of {', '.join(LAWS)}")
        require(
            "executor.mean_s",
            self.mean_s,
            LEAST_MEAN_S <= self.mean_s <= MOST_MEAN_S,
            f"from {LEAST_MEAN_S:g} to {MOST_MEAN_S:,} (a year)",
        )
        above("executor.scv", self.scv, 0)
        require(
            "executor.scv", self.scv, self.scv == 1 or self.law == "lognormal", "1: only lognormal has one"
        )


@executors("law")
class LawExecutor(Modelled):
    """Service times: a replica has as many servers as its batch has places, and one line before them (`serving.py`).

    A service time is a function of the seed and the prompt, not of the replica, the order or the strategy: every
    strategy meets the same ones (common random numbers). In a loop that goes by steps, the whole service takes place
    in the step that ends the prefill, and requests that share it are served one after the other.
    """

    Options = LawOptions
    keeps_blocks = False
    vocab = VOCAB
    context_tokens = CONTEXT_TOKENS
    kv_capacity_tokens = 1 << 40
    kv_bytes_per_token = 1
    kv_value_bytes = 1.0

    def __init__(self, machine: Machine, options: LawOptions) -> None:
        super().__init__(machine.clock)
        self._seed = machine.seed
        self._mean_ns = options.mean_s * NS_PER_S
        self._law = LAWS[options.law]
        self._scv = options.scv

    def duration_ns(self, batch: Batch) -> int:
        return sum([self.service_ns(chunk.sequence) for chunk in batch.chunks if chunk.is_last])

    def decode_ns(self, batch: Batch, steps: int) -> Durations:
        return np.zeros(steps, dtype=np.int64)

    def answer(self, tokens: Tokens, length: int, first: int, count: int) -> list[int]:
        return [1] * count

    def service_ns(self, sequence: Sequence) -> int:
        """The service time of a request, by its prompt."""
        drawn = xxh3_64_intdigest(sequence.tokens.tobytes(), self._seed)
        return round(self._mean_ns * self._law(chance_of(drawn), self._scv))

    def prefill_ns(self, start: int, end: int) -> int:
        return round(self._mean_ns)

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: LawOptions) -> int:
        return 0

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int:
        return VOCAB
