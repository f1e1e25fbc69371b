"""A closed loop: so many users, each of whom asks, waits for the answer, thinks, and asks again."""

from dataclasses import dataclass, field

import numpy as np

from engine.clock import NS_PER_S
from engine.settings import require
from sim.streams import stream
from sim.traffic.arrivals import Floats, finite_at_least
from sim.traffic.lengths import LengthSettings
from sim.traffic.sessions import LONGEST_THINK_S, before, waits
from sim.traffic.synthetic import MAX_SIGMA
from sim.traffic.trace import Trace
from sim.traffic.workload import MAX_REQUESTS, check_kind, check_popularity, check_vocab, whole, workloads

THINKING = ("exponential", "lognormal", "fixed")


@workloads("closed")
@dataclass(slots=True, kw_only=True)
class ClosedWorkload:
    """Users in a closed loop. Each thinks before his first request, and then after each answer.

    The time to think has the mean `think_s`; `think_sigma` is that of the logarithm where it is log-normal. Each
    user makes `requests / users` requests, the first users one more where that leaves a rest.
    """

    kind: str = "closed"
    users: int = 10
    requests: int = 20_000
    think: str = "exponential"
    think_s: float = 10.0
    think_sigma: float | None = None
    prompt: LengthSettings = field(default_factory=lambda: LengthSettings(law="fixed", tokens=4))
    output: LengthSettings = field(default_factory=lambda: LengthSettings(law="fixed", tokens=1))
    vocab: int = 4096
    model_zipf: float | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind, "closed")
        whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        whole("workload.users", self.users, 1, self.requests)
        require("workload.think", self.think, self.think in THINKING, f"one of {', '.join(THINKING)}")
        finite_at_least("workload.think_s", self.think_s, 0)
        longest = LONGEST_THINK_S / (self.requests // self.users + 1)
        allowed = f"at most {longest:g}: a run ends in a year"
        require("workload.think_s", self.think_s, self.think_s <= longest, allowed)
        self._check_sigma()
        self.prompt.check("workload.prompt")
        self.output.check("workload.output")
        check_vocab(self.vocab)
        check_popularity(self.model_zipf)

    def _check_sigma(self) -> None:
        sigma = self.think_sigma
        if self.think == "lognormal":
            fits = sigma is not None and 0 <= sigma <= MAX_SIGMA
            require("workload.think_sigma", sigma, fits, f"from 0 to {MAX_SIGMA:g}")
        else:
            require("workload.think_sigma", sigma, sigma is None, f"null, since think is {self.think}")

    def draw(self, seed: int, model: str) -> Trace:
        return trace(self, seed, model)


def trace(settings: ClosedWorkload, seed: int, model: str) -> Trace:
    """The requests of all users: the k-th of each comes a time to think after the end of the one before."""
    count = np.full(settings.users, settings.requests // settings.users)
    count[: settings.requests % settings.users] += 1
    user = np.repeat(np.arange(settings.users, dtype=np.int32), count)
    first = np.cumsum(count) - count
    turn = (np.arange(settings.requests) - first[user]).astype(np.int32)
    think_s = _think_s(settings, seed)[np.argsort(np.argsort(turn, kind="stable"))]
    arrival_s = before(think_s, first, user) + think_s
    rows = np.argsort(arrival_s, kind="stable")
    after, think_ns = waits(rows, turn[rows], np.append(think_s[1:], 0.0))
    return Trace(
        arrival_ns=np.rint(arrival_s[rows] * NS_PER_S).astype(np.int64),
        prompt_tokens=settings.prompt.draw(stream(seed, "prompt_tokens"), settings.requests),
        output_tokens=settings.output.draw(stream(seed, "output_tokens"), settings.requests),
        prefix=np.full(settings.requests, -1, np.int32),
        prefixes=[],
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source="closed",
        after=after,
        think_ns=think_ns,
    )


def _think_s(settings: ClosedWorkload, seed: int) -> Floats:
    """Times to think: all users' first ones, then all second ones."""
    random = stream(seed, "think")
    if settings.think == "fixed":
        return np.full(settings.requests, settings.think_s)
    if settings.think == "exponential":
        return random.standard_exponential(settings.requests) * settings.think_s
    sigma = settings.think_sigma or 0.0
    drawn = np.exp(sigma * random.standard_normal(settings.requests) - sigma**2 / 2)
    return drawn * settings.think_s
