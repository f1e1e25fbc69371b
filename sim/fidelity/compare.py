"""The comparison: simulated runs held against real ones, decision by decision and figure by figure.

Errors are signed: positive where the simulation says more than the real system. The noise floor of a figure is how
far two real runs of the same load lie apart, in the mean over all pairs, as a share of the figure itself. An error
passes up to its mark, or up to two noise floors where that is more; a floor of many marks lets nothing
pass: what is not further off than two such floors is not decided. Unless rounds agree where runs do not: a simulation
that is told how fast the machine was follows it, and the errors of single rounds lie closer together than the runs.
Then these decide, by the mark or twice their spread.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from sim import metrics
from sim.fidelity.cases import Marks
from sim.metrics import TIERS, Floats
from sim.streams import stream

LATENCIES: dict[str, Callable[[pd.DataFrame], Floats]] = {
    "TTFT": metrics.ttft_s,
    "TPOT": metrics.tpot_s,
    "E2E": metrics.e2e_s,
}
STATISTICS: dict[str, float | None] = {"mean": None, "p50": 50.0, "p90": 90.0, "p99": 99.0}
JUDGED = ("mean", "p99")
ENOUGH = 5_000  # requests: with fewer, the interval of the error of p99 is shown
RESAMPLES = 400
COVERAGE = (2.5, 97.5)
FLOORS = 2.0  # an error up to so many noise floors is within the mark
LOW_LOAD = 0.5  # up to here decisions are held against a mark
LEAST_EQUAL = 0.99  # share of decisions
MOST_POINTS = 0.005  # of the hit ratio
MOST_REFUSALS = 0.01  # of all requests

DECISIONS, ALL_DECISIONS = ("replica", "hit tokens", "outcome"), "all decisions"
PASS, FAIL, INCONCLUSIVE, SHOWN = "pass", "fail", "inconclusive", "shown"


@dataclass(slots=True, kw_only=True)
class Cell:
    """One figure, real and simulated, in s or requests a second. Error, floor and mark are shares of the real one."""

    metric: str
    statistic: str
    real: float | None
    simulated: float | None
    error: float | None
    floor: float | None
    mark: float | None
    verdict: str
    n: int
    interval: tuple[float, float] | None = None
    spread: float | None = None  # how far the errors of two rounds lie apart, in the mean over pairs

    @property
    def name(self) -> str:
        return f"{self.metric} {self.statistic}".strip()

    @property
    def limit(self) -> float | None:
        """What the error may be."""
        return None if self.mark is None else max(self.mark, FLOORS * (self.floor or 0.0))

    @property
    def floors(self) -> float | None:
        """The error in noise floors."""
        if self.error is None or not self.floor:
            return None
        return abs(self.error) / self.floor


@dataclass(slots=True, kw_only=True)
class Share:
    """A share that should be as it is in reality: of equal decisions, of cached tokens, of refusals.

    `floor` is the same between two real runs.
    """

    name: str
    value: float
    floor: float
    op: str
    limit: float | None
    verdict: str


@dataclass(slots=True, kw_only=True)
class Distance:
    """How far apart two distributions of a latency are, and the two times of one request."""

    metric: str
    wasserstein: float  # over the real mean
    floor: float
    median_error: float  # of |simulated - real| / real, request by request
    median_floor: float


def pairs_of(
    real: Sequence[pd.DataFrame], simulated: Sequence[pd.DataFrame]
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Each simulated run behind the real one that it stands for: as many for each of these, in their order."""
    draws = len(simulated) // len(real)
    return list(zip([run for run in real for _ in range(draws)], simulated, strict=True))


def cells(
    real: Sequence[pd.DataFrame],
    simulated: Sequence[pd.DataFrame],
    marks: Marks | None,
    max_floor: float = 2.0,
) -> list[Cell]:
    """Every figure of latency and throughput. Figures are means over the runs of a side, with as many simulated ones
    for each real one.

    A floor above `max_floor` marks is too large.
    """
    made = []
    for metric, latency in LATENCIES.items():
        ours, theirs = [latency(done(run)) for run in real], [latency(done(run)) for run in simulated]
        for statistic, q in STATISTICS.items():
            mark = marked(marks, statistic) if statistic in JUDGED else None
            cell = figure(
                metric, statistic, [stat(each, q) for each in ours], [stat(each, q) for each in theirs]
            )
            cell.n = min((len(each) for each in (*ours, *theirs)), default=0)
            if statistic == "p99" and cell.n < ENOUGH and cell.error is not None:
                cell.interval = error_interval(matched(real, simulated, latency), 99.0)
            made.append(judged(cell, mark, max_floor))
    rates = [[throughput(run) for run in runs] for runs in (real, simulated)]
    cell = figure("throughput", "", *rates)
    cell.n = len(real[0])
    return [*made, judged(cell, marked(marks, "mean"), max_floor)]


def figure(
    metric: str, statistic: str, real: Sequence[float | None], simulated: Sequence[float | None]
) -> Cell:
    """A cell without a verdict; empty when a run has too few samples for its figure."""
    ours = [value for value in real if value is not None]
    theirs = [value for value in simulated if value is not None]
    cell = Cell(
        metric=metric,
        statistic=statistic,
        real=None,
        simulated=None,
        error=None,
        floor=None,
        mark=None,
        verdict=SHOWN,
        n=0,
    )
    if len(ours) < len(real) or len(theirs) < len(simulated) or not ours or not theirs:
        return cell
    cell.real, cell.simulated = float(np.mean(ours)), float(np.mean(theirs))
    if cell.real:
        cell.error = cell.simulated / cell.real - 1
        cell.floor = noise_floor(ours)
        cell.spread = spread_of(ours, theirs)
    return cell


def judged(cell: Cell, mark: float | None, max_floor: float = 2.0) -> Cell:
    """The cell with its verdict: against the mark, or twice the noise floor where that is larger."""
    cell.mark = mark
    if mark is None:
        cell.verdict = SHOWN
    elif cell.error is None or cell.floor is None:
        cell.verdict = INCONCLUSIVE
    elif abs(cell.error) > max(mark, FLOORS * cell.floor):
        cell.verdict = FAIL
    elif cell.floor <= max_floor * mark or is_followed(cell, mark, max_floor):
        cell.verdict = PASS
    else:
        cell.verdict = INCONCLUSIVE
    return cell


def is_followed(cell: Cell, mark: float, max_floor: float) -> bool:
    """Whether rounds agree on an error that is within the mark, or within twice what they differ."""
    if cell.error is None or cell.spread is None or cell.spread > max_floor * mark:
        return False
    return abs(cell.error) <= max(mark, FLOORS * cell.spread)


def marked(marks: Marks | None, statistic: str) -> float | None:
    """The mark of a statistic."""
    if marks is None:
        return None
    return marks.p99 if statistic == "p99" else marks.mean


def noise_floor(values: Sequence[float]) -> float | None:
    """How far two of these lie apart, in the mean over all pairs, over their mean; None for one alone."""
    if len(values) < 2:  # noqa: PLR2004  a pair
        return None
    mean = float(np.mean(values))
    return _apart(values) / mean if mean else 0.0


def spread_of(real: Sequence[float], simulated: Sequence[float]) -> float | None:
    """How far the errors of two rounds lie apart, in the mean over all pairs; None for one alone, or without errors.

    Each real value has as many simulated ones in a row, of which the mean counts.
    """
    if len(real) < 2 or not all(real):  # noqa: PLR2004  a pair
        return None
    means = np.asarray(simulated).reshape(len(real), -1).mean(axis=1)
    return _apart((means / np.asarray(real)).tolist())


def _apart(values: Sequence[float]) -> float:
    """How far two of these lie apart, in the mean over all pairs."""
    return float(np.mean([abs(a - b) for a, b in combinations(values, 2)]))


def stat(values: Floats, q: float | None) -> float | None:
    """The mean (`q` None) or a percentile; None where there are too few values."""
    if q is None:
        return float(values.mean()) if len(values) else None
    return metrics.percentile(values, q)


def throughput(requests: pd.DataFrame) -> float | None:
    """Completed requests a second."""
    duration_s = metrics.duration_s(requests)
    return len(done(requests)) / duration_s if duration_s else None


def error_interval(pairs: Sequence[tuple[Floats, Floats]], q: float) -> tuple[float, float]:
    """Where the error of a percentile lies in 95 of 100 resamples of the requests; each stays with its own twin.

    `pairs`: for each run, the real and the simulated latency of the same requests. Requests are drawn one by one, so
    neighbours that were slow together count as independent: the truth is wider.
    """
    random = stream(0, "fidelity.bootstrap")
    ours, theirs = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for real, simulated in pairs:
        chosen = random.integers(len(real), size=(RESAMPLES, len(real)))
        ours += np.percentile(real[chosen], q, axis=1)
        theirs += np.percentile(simulated[chosen], q, axis=1)
    errors = np.divide(theirs, ours, out=np.ones(RESAMPLES), where=ours > 0) - 1
    low, high = np.percentile(errors, COVERAGE)
    return float(low), float(high)


def matched(
    real: Sequence[pd.DataFrame],
    simulated: Sequence[pd.DataFrame],
    latency: Callable[[pd.DataFrame], Floats],
) -> list[tuple[Floats, Floats]]:
    """For each real run and the first simulated one behind it, a latency of the requests that both completed.

    Only the first: requests drawn anew for each of several would be as many real ones as there are not.
    """
    found = []
    for one, other in pairs_of(real, simulated)[:: len(simulated) // len(real)]:
        left, right = by_request(one, latency), by_request(other, latency)
        both = left.index.intersection(right.index)
        if len(both):
            found.append((np.asarray(left[both], np.float64), np.asarray(right[both], np.float64)))
    return found


def shares(
    real: Sequence[pd.DataFrame], simulated: Sequence[pd.DataFrame], *, is_calm: bool, is_judged: bool = True
) -> list[Share]:
    """Decisions one by one, held against a mark where the load `is_calm`; then counts.

    Nothing is held against a mark where nothing `is_judged`.
    """
    made = []
    for name in (*DECISIONS, ALL_DECISIONS):
        value = _mean(equal_share(a, b, name) for a, b in pairs_of(real, simulated))
        floor = _mean(equal_share(a, b, name) for a, b in combinations(real, 2))
        least = LEAST_EQUAL if is_calm and is_judged else None
        made.append(equal_enough(name, value, floor, least, len(real[0])))
    for name, count, most in (
        ("hit ratio", hit_ratio, MOST_POINTS),
        ("refused", refused_share, MOST_REFUSALS),
    ):
        ours = [count(run) for run in real]
        value = _mean(map(count, simulated)) - _mean(ours)
        floor = _mean(abs(a - b) for a, b in combinations(ours, 2))
        made.append(near_enough(name, value, floor, most if is_judged else None))
    return made


def equal_enough(name: str, value: float, floor: float, least: float | None, count: int) -> Share:
    """A share of `count` equal decisions with its verdict. A low one decides nothing where reality's is as low.

    It fails when simulation and reality differ more than twice as often as reality and itself, and by more than two
    standard errors of such a share.
    """
    if least is None:
        verdict = SHOWN
    elif value >= least:
        verdict = PASS
    else:
        most = max(1 - least, FLOORS * (1 - floor))
        beyond = most + 2 * np.sqrt(most * max(0.0, 1 - most) / max(1, count))
        verdict = FAIL if 1 - value > beyond else INCONCLUSIVE
    return Share(name=name, value=value, floor=floor, op=">=", limit=least, verdict=verdict)


def near_enough(name: str, value: float, floor: float, most: float | None) -> Share:
    """A difference of two shares with its verdict; a noise floor above the mark decides nothing."""
    if most is None:
        verdict = SHOWN
    elif abs(value) > max(most, FLOORS * floor):
        verdict = FAIL
    else:
        verdict = PASS if floor <= most else INCONCLUSIVE
    return Share(name=name, value=value, floor=floor, op="+-", limit=most, verdict=verdict)


def equal_share(one: pd.DataFrame, other: pd.DataFrame, what: str) -> float:
    """The share of requests about which two runs decided the same. One that is missing in a run is not the same."""
    left, right = decisions(one), decisions(other)
    both = left.index.intersection(right.index)
    names = list(map(str, left.columns))
    columns = names if what == ALL_DECISIONS else [name for name in names if name.startswith(what)]
    same = (left.loc[both, columns] == right.loc[both, columns]).all(axis=1)
    total = max(len(left), len(right))
    return float(same.sum()) / total if total else 1.0


def decisions(requests: pd.DataFrame) -> pd.DataFrame:
    """What was decided about each request, by its id: replica, tokens found in each tier, outcome."""
    rows = requests.set_index("request_id").sort_index()
    made = pd.DataFrame(index=rows.index)
    made["replica"] = rows["replica"].astype(object).fillna("")
    for tier in TIERS:
        made[f"hit tokens {tier}"] = rows[f"cached_tokens_{tier}"].fillna(0).astype("int64")
    made["outcome"] = rows["outcome"].astype(object).fillna("")
    return made


def hit_ratio(requests: pd.DataFrame) -> float:
    return metrics.token_hit_ratio(done(requests)) or 0.0


def refused_share(requests: pd.DataFrame) -> float:
    """The share of requests that were turned away."""
    return float((requests["outcome"] == "rejected").mean()) if len(requests) else 0.0


def distances(real: Sequence[pd.DataFrame], simulated: Sequence[pd.DataFrame]) -> list[Distance]:
    """Distributions and single requests: what no mean shows."""
    made = []
    for metric, latency in LATENCIES.items():
        both, pairs = pairs_of(real, simulated), list(combinations(real, 2))
        made.append(
            Distance(
                metric=metric,
                wasserstein=_mean(wasserstein(latency(done(a)), latency(done(b))) for a, b in both),
                floor=_mean(wasserstein(latency(done(a)), latency(done(b))) for a, b in pairs),
                median_error=_mean(median_error(a, b, latency) for a, b in both),
                median_floor=_mean(median_error(a, b, latency) for a, b in pairs),
            )
        )
    return made


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def wasserstein(real: Floats, simulated: Floats) -> float:
    """The area between two distribution functions (W1), over the mean of the first; 0 where one is empty."""
    if not len(real) or not len(simulated) or not real.mean():
        return 0.0
    ranks = np.linspace(0, 100, 2 * max(len(real), len(simulated)) + 1)[1::2]
    apart = np.abs(np.percentile(real, ranks) - np.percentile(simulated, ranks)).mean()
    return float(apart / real.mean())


def median_error(one: pd.DataFrame, other: pd.DataFrame, latency: Callable[[pd.DataFrame], Floats]) -> float:
    """The median over requests of |other - one| / one; over those that both completed, with a token to divide by."""
    left, right = by_request(one, latency), by_request(other, latency)
    both = left.index.intersection(right.index)
    ours, theirs = left[both].to_numpy(), right[both].to_numpy()
    ours, theirs = ours[ours > 0], theirs[ours > 0]
    return float(np.median(np.abs(theirs - ours) / ours)) if len(ours) else 0.0


def by_request(requests: pd.DataFrame, latency: Callable[[pd.DataFrame], Floats]) -> "pd.Series[float]":
    """A latency of the completed requests, by their ids."""
    rows = done(requests)
    if latency is metrics.tpot_s:
        rows = rows[rows["output_tokens"] > 1]
    return pd.Series(latency(rows), index=rows["request_id"].astype("int64"))


def done(requests: pd.DataFrame) -> pd.DataFrame:
    return requests[requests["outcome"] == "completed"]
