"""Maximum likelihood: the parameters of the generator's laws under which what was seen is the least surprising."""

from collections.abc import Callable
from dataclasses import dataclass
from math import erf, exp, inf, lgamma, log, pi, sqrt

import numpy as np
import numpy.typing as npt

from sim.traffic.arrivals import SHAPES, WEIBULL_SHAPES

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

LARGEST_ZIPF = 20.0
LOOKS = 100  # at a function, at most; ten are usual
EXACT = 1e-10  # a root is known to so much of itself
ROUNDS = 200  # of the search for a clipped law, or one of which the end is not seen; 20 are usual
PARTS = 100
TINY_SIGMA = 1e-6
MOST_FOLLOWED = 0.999  # of turns: sessions have a thousand at most
CLIPPED = 0.001  # at a bound, more than this share of the values has been moved there
_ASYMPTOTIC = 12.0  # from here on, the series below are exact to 1e-12
_FEWEST = 3


@dataclass(slots=True, kw_only=True)
class Gaps:
    """A law of gaps with mean 1: its shape, the standard error of that, and how likely it makes what was seen."""

    family: str
    shape: float
    error: float
    log_likelihood: float


@dataclass(slots=True, kw_only=True)
class LogNormal:
    """A log-normal law, of which values beyond `low` and `high` are moved there."""

    mu: float
    sigma: float
    low: int
    high: int

    def below(self, value: float) -> float:
        """The share of values at or below a whole one, after rounding."""
        if value < self.low:
            return 0.0
        return 1.0 if value >= self.high else normal_cdf((log(value + 0.5) - self.mu) / self.sigma)


def gamma_gaps(gaps: Floats, unseen: int = 0) -> Gaps:
    """The Gamma law of positive gaps with mean 1: log k - psi(k) is minus the mean logarithm.

    So many of the gaps are `unseen`: all that is known of them is that they are shorter than what is given for them.
    Near zero the law is a power of k, so the logarithm of such a gap is 1 / k less in the mean.
    """
    count, mean_log = len(gaps), float(np.log(gaps).mean())
    shape = _root(lambda k: log(k) - digamma(k) + mean_log - unseen / count / k, *SHAPES)
    each = shape * log(shape) - lgamma(shape) + (shape - 1) * mean_log - shape
    error = (count * (trigamma(shape) - 1 / shape)) ** -0.5
    likely = count * each - unseen * log(shape)
    return Gaps(family="gamma", shape=shape, error=error, log_likelihood=likely)


def weibull_gaps(gaps: Floats, unseen: int = 0) -> Gaps:
    """The Weibull law of positive gaps: 1 / k is the mean logarithm weighted by x^k, less the plain one.

    `unseen` as for the Gamma law.
    """
    logs = np.log(gaps)
    count, mean_log, highest = len(gaps), float(logs.mean()), float(logs.max())

    def surplus(shape: float) -> float:
        weights = np.exp(shape * (logs - highest))
        weighted = float((weights * logs).sum()) / float(weights.sum())  # np.dot would wake threads
        return (1 - unseen / count) / shape - weighted + mean_log

    shape = _root(surplus, *WEIBULL_SHAPES)
    log_scale_k = shape * highest + log(float(np.exp(shape * (logs - highest)).mean()))
    each = log(shape) - log_scale_k + (shape - 1) * mean_log - 1
    error = shape * sqrt(6 / (pi**2 * count))
    likely = count * each - unseen * log(shape)
    return Gaps(family="weibull", shape=shape, error=error, log_likelihood=likely)


def likeliest_gaps(gaps: Floats, unseen: int = 0) -> list[Gaps]:
    """The laws of positive gaps with mean 1, the likelier first; none for too few gaps."""
    if len(gaps) - unseen < _FEWEST:
        return []
    return sorted((gamma_gaps(gaps, unseen), weibull_gaps(gaps, unseen)), key=lambda law: -law.log_likelihood)


def clipped_log_normal(values: Ids, counts: Ids) -> LogNormal:
    """The log-normal law of whole values that differ and their counts.

    Where so many stand at the least or the largest value that they have been moved there, all that is known of these
    is that they would lie beyond: expectation and maximisation in turn, as for a censored normal law.
    """
    logs, total = np.log(values), int(counts.sum())
    mu = float(np.dot(counts, logs)) / total
    sigma = sqrt(float(np.dot(counts, (logs - mu) ** 2)) / total)
    inside = np.ones(len(values), bool)
    inside[0], inside[-1] = (counts[end] <= max(1, CLIPPED * total) for end in (0, -1))
    if inside.any():
        square = float(np.dot(counts[inside], logs[inside] ** 2))
        plain = float(np.dot(counts[inside], logs[inside]))
        bounds = [
            (sign, log(values[end] - sign / 2), int(counts[end]))
            for sign, end in ((-1, 0), (1, -1))
            if not inside[end]
        ]
        for _ in range(ROUNDS if bounds else 0):
            mu, sigma, moved = _maximised(mu, sigma, plain, square, bounds, total)
            if moved < 1e-9:  # noqa: PLR2004
                break
    return LogNormal(mu=mu, sigma=sigma, low=int(values[0]), high=int(values[-1]))


def _maximised(
    mu: float, sigma: float, plain: float, square: float, bounds: list[tuple[int, float, int]], total: int
) -> tuple[float, float, float]:
    """The mean and deviation after one round, and by how much they have moved."""
    for sign, bound, count in bounds:
        standard = sign * (bound - mu) / sigma
        hazard = _hazard(standard)
        mean = mu + sign * sigma * hazard
        plain += count * mean
        square += count * (mean**2 + sigma**2 * max(1 + standard * hazard - hazard**2, 0.0))
    new_mu = plain / total
    new_sigma = sqrt(max(square / total - new_mu**2, 1e-12))
    return new_mu, new_sigma, abs(new_mu - mu) + abs(new_sigma - sigma)


def followed(gaps: Floats, left: Floats) -> tuple[float, float, float]:
    """The share of turns that another follows, and the log-normal law of the gaps between: mu and sigma.

    `left`: for each turn that none was seen to follow, how long that could have been seen. Some were the last, others
    would be followed later: expectation and maximisation in turn, as for patients of whom some are cured (Boag,
    "Maximum likelihood estimates of the proportion of patients cured by cancer therapy", 1949). Gaps of zero count as
    followed only.
    """
    logs = np.log(gaps[gaps > 0])
    share = min(len(gaps) / (len(gaps) + len(left)), MOST_FOLLOWED)
    if len(logs) == 0:
        return share, -inf, 0.0
    mu, sigma, surely = float(logs.mean()), max(float(logs.std()), TINY_SIGMA), float((logs**2).sum())
    parts = np.array_split(
        np.sort(np.log(left)), min(PARTS, max(len(left), 1))
    )  # those of a part count alike
    bounds = [(float(part.mean()), len(part)) for part in parts if len(part)]
    for _ in range(ROUNDS):
        later, plain, square = 0.0, float(logs.sum()), surely
        for bound, count in bounds:
            standard = (bound - mu) / sigma
            above, hazard = 1 - normal_cdf(standard), _hazard(standard)
            expected = count * share * above / (1 - share + share * above)
            mean = mu + sigma * hazard
            later += expected
            plain += expected * mean
            square += expected * (mean**2 + sigma**2 * max(1 + standard * hazard - hazard**2, 0.0))
        new_mu = plain / (len(logs) + later)
        new_sigma = sqrt(max(square / (len(logs) + later) - new_mu**2, TINY_SIGMA**2))
        moved = abs(new_mu - mu) + abs(new_sigma - sigma)
        mu, sigma = new_mu, new_sigma
        share = min((len(gaps) + later) / (len(gaps) + len(left)), MOST_FOLLOWED)
        if moved < 1e-5 or later > len(gaps):  # noqa: PLR2004  so few were seen that any law would do
            break
    return share, mu, sigma


def zipf_exponent(counts: Ids) -> float:
    """The exponent of Zipf's law over ranks in their order, of which there are `counts`.

    The mean logarithm of the rank is as seen. 0 where even that is too steep.
    """
    logs = np.log(np.arange(1, len(counts) + 1))
    seen = float(np.dot(counts, logs)) / int(counts.sum())

    def surplus(exponent: float) -> float:
        weights = np.exp(-exponent * logs)
        return float(np.dot(weights, logs) / weights.sum()) - seen

    return _root(surplus, 0.0, LARGEST_ZIPF, ratio=False)


def distance(values: Ids, counts: Ids, below: Callable[[float], float]) -> float:
    """Kolmogorov and Smirnov's: the largest difference between the shares at or below any whole value."""
    seen = np.cumsum(counts) / counts.sum()
    expected = np.array([below(value) for value in values.tolist()])
    before = np.array([below(value - 1) for value in values.tolist()])
    beneath = np.concatenate(([0.0], seen[:-1]))
    return float(max(np.abs(seen - expected).max(), np.abs(beneath - before).max()))


def between(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> float:
    """Kolmogorov and Smirnov's distance between two samples."""
    values = np.unique(np.concatenate((one, other)))
    shares = (np.searchsorted(np.sort(each), values, side="right") / len(each) for each in (one, other))
    return float(np.abs(np.subtract(*shares)).max())


def rounded(value: float, digits: int = 6) -> float:
    """A figure without the digits that nobody needs."""
    return float(f"{value:.{digits}g}")


def digamma(x: float) -> float:
    """The derivative of log Gamma, by recurrence and Stirling's series (Abramowitz and Stegun 6.3.5, 6.3.18)."""
    less = 0.0
    while x < _ASYMPTOTIC:
        less += 1 / x
        x += 1
    y = x**-2
    return log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132)))) - less


def trigamma(x: float) -> float:
    """The derivative of `digamma` (Abramowitz and Stegun 6.4.6, 6.4.12)."""
    more = 0.0
    while x < _ASYMPTOTIC:
        more += x**-2
        x += 1
    y = x**-2
    return 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y / 30))) + more


def normal_cdf(z: float) -> float:
    return 0.5 * (1 + erf(z / sqrt(2)))


def _hazard(z: float) -> float:
    """The density of the normal law at z over its share above z."""
    above = 1 - normal_cdf(z)
    if above < 1e-12:  # noqa: PLR2004
        return z + 1 / z
    return exp(-z * z / 2) / sqrt(2 * pi) / above


def _root(surplus: Callable[[float], float], low: float, high: float, *, ratio: bool = True) -> float:
    """Where a falling function is zero; the nearer bound where it is not. `ratio`: looks among logarithms.

    Regula falsi as of Illinois: some ten looks, where halving takes forty (Dowell and Jarratt, BIT, 1971).
    """
    ends = (log(low), log(high)) if ratio else (low, high)
    shown: Callable[[float], float] = exp if ratio else float
    (left, right), kept = ends, 0
    above, below = surplus(low), surplus(high)
    if above <= 0 or below >= 0:
        return low if above <= 0 else high
    for _ in range(LOOKS):
        if right - left <= EXACT * max(1.0, abs(right)):
            break
        middle = (left * below - right * above) / (below - above)
        found = surplus(shown(middle))
        if found > 0:
            left, above = middle, found
            below, kept = (below / 2, 1) if kept == 1 else (below, 1)
        elif found < 0:
            right, below = middle, found
            above, kept = (above / 2, -1) if kept == -1 else (above, -1)
        else:
            return shown(middle)
        if abs(found) < EXACT * EXACT:
            break
    return shown(middle)
