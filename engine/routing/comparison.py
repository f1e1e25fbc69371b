"""Comparisons of two arms: how far apart they are, how sure that is, and a test that may be looked at any time."""

from dataclasses import dataclass
from math import erfc, exp, inf, log, pi, sqrt
from statistics import NormalDist

LEAST = 30  # observations of each arm, before their means say anything
EXPECTED = 400  # observations for which the sequential interval is made tightest


class Running:
    """A mean and its spread, as values come: Welford's recurrence. O(1) memory.

    (Welford, "Note on a method for calculating corrected sums of squares and products", 1962.)
    """

    __slots__ = ("_squares", "count", "mean")

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        off = value - self.mean
        self.mean += off / self.count
        self._squares += off * (value - self.mean)

    @property
    def variance(self) -> float:
        """Of the values, unbiased; 0 before there are two."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass(slots=True)
class Comparison:
    """Arm b against arm a: the difference of their means, b - a.

    `low` to `high` is Welch's interval: it holds with the confidence asked for if one looks once, at the end.
    `any_time_low` to `any_time_high` holds at every look together; what it excludes may be acted on at once.
    """

    count_a: int
    count_b: int
    mean_a: float
    mean_b: float
    low: float
    high: float
    any_time_low: float
    any_time_high: float
    verdict: str

    @property
    def difference(self) -> float:
        return self.mean_b - self.mean_a


def compare(a: Running, b: Running, alpha: float = 0.05, *, more_is_better: bool = False) -> Comparison:
    """Compare two arms at level `alpha`. The verdict is that of the test that may be looked at any time."""
    difference = b.mean - a.mean
    half = welch_half_width(a, b, alpha)
    wide = any_time_half_width(a, b, alpha)
    verdict = "no decision yet"
    if abs(difference) > wide:
        verdict = "b is better" if (difference > 0) == more_is_better else "a is better"
    return Comparison(
        a.count,
        b.count,
        a.mean,
        b.mean,
        difference - half,
        difference + half,
        difference - wide,
        difference + wide,
        verdict,
    )


def welch_half_width(a: Running, b: Running, alpha: float) -> float:
    """Half of the confidence interval of a difference of means with unequal variances (Welch, 1947)."""
    if min(a.count, b.count) < 2:  # noqa: PLR2004  no spread is known of one value
        return inf
    of_a, of_b = a.variance / a.count, b.variance / b.count
    if of_a + of_b == 0:
        return 0.0
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (a.count - 1) + of_b**2 / (b.count - 1))
    return t_quantile(1 - alpha / 2, freedom) * sqrt(of_a + of_b)


def any_time_half_width(a: Running, b: Running, alpha: float) -> float:
    """Half of an interval that holds at all times together, from `LEAST` observations of each arm on.

    An asymptotic confidence sequence for each mean, with the normal mixture boundary, at half of `alpha` each: both
    hold at all times with chance 1 - alpha, and so does their difference (Waudby-Smith, Arbour, Sinha, Kennedy and
    Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", arXiv 2103.06476, Theorem 2.2).
    """
    if min(a.count, b.count) < LEAST:
        return inf
    return _sequence(a, alpha / 2) + _sequence(b, alpha / 2)


def _sequence(one: Running, alpha: float) -> float:
    count = one.count
    rho2 = (
        -2 * log(alpha) + log(-2 * log(alpha) + 1)
    ) / EXPECTED  # tightest at `EXPECTED` observations, ibid. B.2
    inner = count * rho2 + 1
    return sqrt(one.variance * 2 * inner / (count * count * rho2) * log(sqrt(inner) / alpha))


def t_quantile(chance: float, freedom: float) -> float:
    """The quantile of Student's t distribution, by Newton's method on its distribution function.

    Starts from the expansion of Cornish and Fisher (Abramowitz and Stegun 26.7.5); six digits from one degree on.
    """
    z = NormalDist().inv_cdf(chance)
    g1, g2 = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    t = z + g1 / freedom + g2 / freedom**2
    if freedom > 1e6:  # noqa: PLR2004  the normal distribution, to more digits than anybody asks for
        return t
    for _ in range(50):
        step = (_t_chance(t, freedom) - chance) / _t_density(t, freedom)
        t -= max(-1.0, min(1.0, step)) if freedom > 2 else max(-5.0, min(5.0, step))  # noqa: PLR2004
        if abs(step) < 1e-10:  # noqa: PLR2004
            break
    return t


def _t_density(t: float, freedom: float) -> float:
    from math import lgamma  # noqa: PLC0415

    scale = lgamma((freedom + 1) / 2) - lgamma(freedom / 2) - log(freedom * pi) / 2
    return exp(scale - (freedom + 1) / 2 * log(1 + t * t / freedom))


def _t_chance(t: float, freedom: float) -> float:
    """The distribution function, by the regularised incomplete beta function."""
    tail = _beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


def _beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), by Lentz's continued fraction (DLMF 8.17.22)."""
    from math import lgamma  # noqa: PLC0415

    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1 - x)) / a
    tiny, c, d = 1e-300, 1.0, 0.0
    d = 1 / (1 - (a + b) * x / (a + 1) or tiny)
    result = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            result *= c * d
        if abs(c * d - 1) < 1e-14:  # noqa: PLR2004
            break
    return front * result


def mismatch_p_value(counts: list[int], weights: list[float]) -> float:
    """The chance of shares at least so far from the weights, if units were assigned by them (chi-squared test).

    For one look. A tiny value (below 0.001, say) means that assignment or logging is broken, not that an arm is good.
    """
    total = sum(counts)
    wanted = [(count, weight * total) for count, weight in zip(counts, weights, strict=True) if weight > 0]
    if not total or len(wanted) < 2:  # noqa: PLR2004  with one arm there is nothing to mismatch
        return 1.0
    chi2 = sum((count - expected) ** 2 / expected for count, expected in wanted)
    return _chi2_tail(chi2, len(wanted) - 1)


def _chi2_tail(chi2: float, freedom: int) -> float:
    """The survival function for whole degrees of freedom (Abramowitz and Stegun 26.4.4 and 26.4.5)."""
    half = chi2 / 2
    if freedom % 2:
        term, total = sqrt(2 * chi2 / pi) * exp(-half), erfc(sqrt(half))
        for odd in range(1, freedom - 1, 2):
            total += term
            term *= chi2 / (odd + 2)
        return min(1.0, total)
    term = total = exp(-half)
    for even in range(1, freedom // 2):
        term *= half / even
        total += term
    return min(1.0, total)
