"""What runs say of a candidate: the share of requests within each limit, on each seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sim import metrics
from sim.advise.settings import TPOT, TTFT, Goal
from sim.copies import are_copies, without_copies
from sim.intervals import Interval, interval
from sim.workers import Played

ROUNDING = 1e-12
"""Of sums of shares."""

COLUMNS = ["outcome", "arrival_ns", "first_token_ns", "finished_ns", "output_tokens"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: by goal the share of all requests that met it, and the latency that the goal's share stays below."""

    count: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    latencies_s: dict[str, float] = field(default_factory=dict)
    """By ttft and tpot; infinite where so many requests were not served."""
    error: str | None = None
    digest: str = ""


def outcome_of(played: Played, goals: Sequence[Goal]) -> Outcome:
    """What a run says."""
    if played.error is not None:
        return Outcome(error=played.error)
    requests = pd.read_parquet(played.folder / "requests.parquet", columns=COLUMNS)
    return replace(judged(requests, goals), digest=played.digest)


def judged(requests: pd.DataFrame, goals: Sequence[Goal]) -> Outcome:
    """All requests offered count, refused and failed ones too: they meet no goal."""
    count = len(requests)
    done = requests[requests["outcome"] == "completed"]
    ttft_s = metrics.ttft_s(done)
    gaps = np.maximum(done["output_tokens"].to_numpy(dtype=np.float64) - 1, 1)  # a single token has none: 0 s
    tpot_s = (metrics.e2e_s(done) - ttft_s) / gaps
    shares, latencies_s = {}, {}
    for goal in goals:
        good = np.ones(len(done), dtype=bool)
        for name, limit_s, values_s in ((TTFT, goal.ttft_s, ttft_s), (TPOT, goal.tpot_s, tpot_s)):
            if limit_s is not None:
                good &= values_s <= limit_s
                latencies_s[name] = _below(values_s, count, goal.share)
        shares[goal.name] = float(good.sum()) / count if count else 1.0
    return Outcome(count, shares, latencies_s)


def _below(values_s: metrics.Floats, count: int, share: float) -> float:
    """The least latency within which that share of all requests lies."""
    rank = int(np.ceil(share * count - 1e-9))
    if rank < 1:
        return 0.0
    return float(np.partition(values_s, rank - 1)[rank - 1]) if rank <= len(values_s) else float("inf")


@dataclass(slots=True)
class Candidate:
    """One choice, what it costs, and what its runs have said so far, by seed."""

    number: int
    cost: float
    goals: Sequence[Goal]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    wanted: int = 1
    """Seeds that the search plays of one that may meet its goals."""

    def on(self, seeds: Sequence[int]) -> list[Outcome]:
        """The outcomes on those of the seeds that were played."""
        return [self.outcomes[seed] for seed in seeds if seed in self.outcomes]

    def share(self, goal: Goal, seeds: Sequence[int]) -> Interval:
        return interval([each.shares[goal.name] for each in self._apart(seeds)])

    def latency_s(self, name: str, seeds: Sequence[int]) -> Interval:
        values = [each.latencies_s[name] for each in self._apart(seeds)]
        return interval(values) if np.isfinite(values).all() else Interval(float("inf"), None)

    def _apart(self, seeds: Sequence[int]) -> Sequence[Outcome]:
        known = self.on(seeds)
        return without_copies(known, [each.digest for each in known])

    @property
    def is_same_on_all(self) -> bool:
        """Whether no seed changed anything: then no other traffic was seen either."""
        return are_copies([each.digest for each in self.outcomes.values()])

    def margin(self, seeds: Sequence[int]) -> float:
        """By how much the worst goal's mean share is above what is asked for; negative where it is missed."""
        if not self.on(seeds) or self.error:
            return -1.0
        return min(self.share(goal, seeds).mean - goal.share for goal in self.goals)

    def excess(self, seeds: Sequence[int]) -> float:
        """By which factor the worst latency is above its limit: tells two apart that no request is good of."""
        factors = [
            self.latency_s(name, seeds).mean / limit_s
            for goal in self.goals
            for name, limit_s in ((TTFT, goal.ttft_s), (TPOT, goal.tpot_s))
            if limit_s is not None
        ]
        return max(factors)

    @property
    def error(self) -> str | None:
        """Why a run of it said nothing."""
        return next((each.error for each in self.outcomes.values() if each.error), None)

    def meets(self, seeds: Sequence[int]) -> bool:
        """Whether it met all goals on average over these seeds, and was played on all of them."""
        return len(self.on(seeds)) == len(seeds) and not self.error and self.margin(seeds) >= -ROUNDING
