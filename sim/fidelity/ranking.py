"""Whether the simulation puts configurations in the order that reality has: what a simulator is asked most often.

Every configuration plays the same requests, live and simulated, once a round; rounds have other requests. Reality
*separates* two configurations where the paired difference of their figures over the rounds is beyond chance
(Student's t on logarithms, corrected by Holm for the number of pairs). Of these pairs alone Kendall's tau is taken:
those in the same order less those in the other, over all of them. The *regret* is what one pays in reality for
having taken the simulated winner; of several that are alike, in the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from sim.fidelity.compare import FAIL, INCONCLUSIVE, PASS, SHOWN
from sim.stats import difference, holm

LEAST_TAU, MOST_REGRET = 0.9, 0.02
LEAST_PAIRS = 3  # that reality separates: fewer say nothing of an order
SURE = 0.05
JUDGED = ("TTFT", "E2E")

Figures = Mapping[str, Sequence[float]]
"""By configuration, a mean latency for each round, in s."""


@dataclass(slots=True, kw_only=True)
class Standing:
    """One configuration: its mean over the rounds in both worlds, in s, and its place in each (1 is best)."""

    configuration: str
    real_s: float
    simulated_s: float
    real_rank: int
    simulated_rank: int

    @property
    def error(self) -> float:
        """Signed: positive where the simulation says more."""
        return self.simulated_s / self.real_s - 1


@dataclass(slots=True, kw_only=True)
class Pair:
    """Two configurations that reality separates: what the second takes over what the first takes, less 1."""

    first: str
    second: str
    real: float
    simulated: float
    p_value: float

    @property
    def sign(self) -> int:
        """1 in the same order, -1 in the other one, 0 where the simulation sees no difference."""
        return int(np.sign(self.real * self.simulated))


@dataclass(slots=True, kw_only=True)
class Ranking:
    """The order by one latency, best first in reality, and the verdict on the simulated one."""

    metric: str
    standings: list[Standing]
    pairs: list[Pair]
    num_pairs: int
    tau: float | None
    regret: float
    winners: list[str]  # simulated; several where they are alike to the last digit
    verdict: str

    @property
    def best(self) -> str:
        """The best in reality."""
        return self.standings[0].configuration


def ranking(metric: str, real: Figures, simulated: Figures) -> Ranking:
    """The order of the configurations by `metric`, less is better. Both sides: the same configurations and rounds."""
    ours, theirs = ({name: _mean(values) for name, values in side.items()} for side in (real, simulated))
    standings = [
        Standing(
            configuration=name,
            real_s=ours[name],
            simulated_s=theirs[name],
            real_rank=1 + sum(other < ours[name] for other in ours.values()),
            simulated_rank=1 + sum(other < theirs[name] for other in theirs.values()),
        )
        for name in sorted(real, key=lambda name: (ours[name], name))
    ]
    pairs = separated(real, simulated)
    winners = [each.configuration for each in standings if each.simulated_rank == 1]
    best = standings[0].configuration
    tau = None if len(pairs) < LEAST_PAIRS else sum(each.sign for each in pairs) / len(pairs)
    regret = _mean([ours[name] for name in winners]) / ours[best] - 1
    is_beaten = any(
        best in (each.first, each.second) and {each.first, each.second} & {*winners} - {best}
        for each in pairs
    )
    return Ranking(
        metric=metric,
        standings=standings,
        pairs=pairs,
        num_pairs=len(real) * (len(real) - 1) // 2,
        tau=tau,
        regret=regret,
        winners=winners,
        verdict=verdict(tau, regret, is_beaten=is_beaten) if metric in JUDGED else SHOWN,
    )


def verdict(tau: float | None, regret: float, *, is_beaten: bool) -> str:
    """Pass, if both are within their marks. A regret that reality does not tell from chance decides nothing."""
    if tau is not None and tau < LEAST_TAU:
        return FAIL
    if regret > MOST_REGRET:
        return FAIL if is_beaten else INCONCLUSIVE
    return INCONCLUSIVE if tau is None else PASS


def separated(real: Figures, simulated: Figures) -> list[Pair]:
    """The pairs of configurations whose real figures differ by more than chance."""
    names = list(real)
    both = list(combinations(names, 2))
    tests = [difference(np.log(real[a]).tolist(), np.log(real[b]).tolist()) for a, b in both]
    if any(test.p_value is None for test in tests):
        return []  # of a single round
    corrected = holm([test.p_value or 0.0 for test in tests])
    return [
        Pair(first=a, second=b, real=_over(real, a, b), simulated=_over(simulated, a, b), p_value=p_value)
        for (a, b), p_value in zip(both, corrected, strict=True)
        if p_value < SURE
    ]


def _over(side: Figures, first: str, second: str) -> float:
    return _mean(side[second]) / _mean(side[first]) - 1


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def as_json(made: Ranking) -> dict[str, Any]:
    """A ranking for ranking.json, whole."""
    return {
        "metric": made.metric,
        "verdict": made.verdict,
        "tau": made.tau,
        "least_tau": LEAST_TAU,
        "regret": made.regret,
        "most_regret": MOST_REGRET,
        "best": made.best,
        "simulated_winners": made.winners,
        "num_pairs": made.num_pairs,
        "separated": [
            {
                "first": each.first,
                "second": each.second,
                "real": each.real,
                "simulated": each.simulated,
                "p_value": each.p_value,
                "same_order": each.sign,
            }
            for each in made.pairs
        ],
        "standings": [
            {
                "configuration": each.configuration,
                "real_s": each.real_s,
                "simulated_s": each.simulated_s,
                "error": each.error,
                "real_rank": each.real_rank,
                "simulated_rank": each.simulated_rank,
            }
            for each in made.standings
        ],
    }
