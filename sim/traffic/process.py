"""The process by which requests come: renewals of the likeliest family, run faster and slower by a curve."""

from dataclasses import dataclass, field
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from sim.traffic.arrivals import SHAPES, SHORTEST_S, WEIBULL_SHAPES, ArrivalSettings
from sim.traffic.likelihood import Gaps, gamma_gaps, likeliest_gaps, rounded
from sim.traffic.trace import Lengths

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

WINDOWS_S = (5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
SURE = 10.0  # by so much a curve, or a law for each tenant, must be better: chance is so once in a thousand times
MAX_CURVE = 2_000  # windows that a fit may choose for a curve; who names their length may have more
FEW_GAPS = 30  # a tenant with fewer says nothing of their law
FEW_TENANTS = 5
ERRORS = 2.576  # standard errors, within which 99 of 100 estimates are
TINY_S = 1e-12
LARGEST = {"gamma": SHAPES[1], "weibull": WEIBULL_SHAPES[1]}


@dataclass(slots=True, kw_only=True)
class Seen:
    """The gaps between starts, each tenant's own, one tenant after the other; `of` is the index of the tenant.

    Clocks have ticks: a gap may be too short for them. Its length is then half of the shortest that was seen.
    `tenant` are those who have gaps, `count` how many.
    """

    arrival_s: Floats  # of all starts
    end_s: Floats
    length_s: Floats
    unseen: npt.NDArray[np.bool_]
    of: Ids
    tenant: Lengths
    count: Ids


@dataclass(slots=True, kw_only=True)
class Process:
    """A renewal process: the law of its gaps, and a curve. `aic` is Akaike's criterion: the less, the better.

    `cvs`: how the gaps of single tenants vary, where a law of their own is better.
    """

    laws: list[Gaps]
    curve: Floats
    curve_s: float
    aic: float
    cvs: dict[int, float] = field(default_factory=dict)


def likeliest(arrival_s: Floats, tenant: Lengths, span_s: float, window_s: float | None) -> Process:
    """The process that fits best, over the lengths of windows that are possible; with none, the rate is steady."""
    seen = _seen(arrival_s, tenant)
    if window_s is not None:
        return _with_windows(seen, span_s, window_s)
    steady = _with_windows(seen, span_s, inf)
    possible = [length_s for length_s in WINDOWS_S if 2 * length_s <= span_s <= MAX_CURVE * length_s]
    curved = (_with_windows(seen, span_s, length_s) for length_s in possible)
    best = min(curved, key=lambda process: process.aic, default=steady)
    return best if best.aic + SURE < steady.aic else steady


def _seen(start_s: Floats, tenant: Lengths) -> Seen:
    order = np.argsort(tenant, kind="stable")
    arrival_s, tenant = start_s[order], tenant[order]
    same = np.diff(tenant) == 0
    those, of, count = np.unique(tenant[1:][same], return_inverse=True, return_counts=True)
    end_s, length_s = arrival_s[1:][same], np.diff(arrival_s)[same]
    unseen = length_s <= 0
    ticks_s = length_s[~unseen]
    length_s[unseen] = ticks_s.min() / 2 if len(ticks_s) else SHORTEST_S
    return Seen(
        arrival_s=start_s, end_s=end_s, length_s=length_s, unseen=unseen, of=of, tenant=those, count=count
    )


def _with_windows(seen: Seen, span_s: float, window_s: float) -> Process:
    """The process with a rate for each window, on the clock by which its arrivals are steady."""
    curve = _curve(seen.arrival_s, span_s, window_s)
    length_s = min(window_s, span_s)
    edges = np.minimum(np.arange(len(curve) + 1) * length_s, span_s)
    clock = np.concatenate(([0.0], np.cumsum(np.diff(edges) * curve)))
    faster = curve[np.minimum((seen.end_s // length_s).astype(np.int64), len(curve) - 1)]
    gaps = np.interp(seen.end_s, edges, clock) - np.interp(seen.end_s - seen.length_s, edges, clock)
    gaps[seen.unseen] = (seen.length_s * faster)[seen.unseen]
    gaps = np.maximum(gaps, TINY_S)  # of differences between large times
    means = np.bincount(seen.of, gaps) / seen.count
    gaps /= means[seen.of]
    laws = likeliest_gaps(gaps, int(seen.unseen.sum()))
    likely = laws[0].log_likelihood if laws else 0.0
    free = len(curve)  # a rate each, of which one is the mean; and a shape
    cvs, likelier = _each_tenant(seen, gaps, laws)
    if 2 * (likelier - likely) > 2 * (len(cvs) - 1) + SURE:
        likely, free = likelier, free + len(cvs) - 1
    else:
        cvs = {}
    likely += float(np.log(faster).sum()) - float(np.dot(seen.count, np.log(means)))
    return Process(laws=laws, curve=curve, curve_s=length_s, aic=2 * free - 2 * likely, cvs=cvs)


def _each_tenant(seen: Seen, gaps: Floats, laws: list[Gaps]) -> tuple[dict[int, float], float]:
    """The variation of the gaps of each tenant that has enough, and how likely Gamma laws of their own make all."""
    enough = np.flatnonzero(seen.count >= FEW_GAPS)
    if len(enough) < FEW_TENANTS or not laws:
        return {}, -inf
    ends = np.cumsum(seen.count)
    parts = [slice(ends[index] - seen.count[index], ends[index]) for index in enough.tolist()]
    each = [gamma_gaps(gaps[part], int(seen.unseen[part].sum())) for part in parts]
    listed = np.isin(seen.of, enough)
    common = gamma_gaps(gaps[listed], int(seen.unseen[listed].sum()))
    likelier = sum(law.log_likelihood for law in each) - common.log_likelihood
    of_all = next(law.log_likelihood for law in laws if law.family == "gamma")
    cvs = (law.shape**-0.5 for law in each)
    return dict(zip(seen.tenant[enough].tolist(), cvs, strict=True)), of_all + likelier


def _curve(arrival_s: Floats, span_s: float, window_s: float) -> Floats:
    """How much faster than in the mean arrivals come in each window; the last may be shorter."""
    if window_s >= span_s:
        return np.ones(1)
    windows = ceil(span_s / window_s)
    place = np.minimum((arrival_s // window_s).astype(np.int64), windows - 1)
    counts = np.bincount(place, minlength=windows)
    lengths_s = np.diff(np.minimum(np.arange(windows + 1) * window_s, span_s))
    curve: Floats = counts / lengths_s * (span_s / len(arrival_s))
    return curve


def as_settings(process: Process, span_s: float, findings: dict[str, str]) -> ArrivalSettings:
    """The settings of a process, and how sure they are."""
    settings = ArrivalSettings()
    findings["arrivals"] = "too few gaps for a law"
    if process.laws:
        settings, findings["arrivals"] = _law(*process.laws)
    if len(process.curve) > 1:
        settings.curve_s = rounded(process.curve_s)
        settings.curve = [rounded(times, 4) for times in process.curve.tolist()]
        least, most = min(settings.curve), max(settings.curve)
        findings["curve"] = (
            f"{len(process.curve)} windows of {process.curve_s:g} s, {least:.3g} to {most:.3g}"
        )
    else:
        findings["curve"] = f"steady: no windows explain more of {span_s:.4g} s than they cost"
    return settings


def _law(law: Gaps, other: Gaps) -> tuple[ArrivalSettings, str]:
    """The family of the likelier law, unless a simpler one is as good."""
    if min(law.shape / LARGEST[law.family], other.shape / LARGEST[other.family]) > 0.99:  # noqa: PLR2004
        return ArrivalSettings(family="constant"), "constant gaps"
    if abs(law.shape - 1) <= ERRORS * law.error:
        return ArrivalSettings(), f"exponential gaps: the shape of {law.family} ones would be {_surely(law)}"
    less = law.log_likelihood - other.log_likelihood
    said = (
        f"{law.family} gaps of shape {_surely(law)}; {other.family} ones are e^{less:.3g} times less likely"
    )
    return ArrivalSettings(family=law.family, shape=rounded(law.shape)), said


def _surely(law: Gaps) -> str:
    return f"{law.shape:.3g} ± {ERRORS * law.error:.2g}"
