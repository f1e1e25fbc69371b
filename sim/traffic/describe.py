"""What a trace is like: the figures by which traffic is compared, computed from its columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.registry.discovery import printable
from sim.traffic.kinship import kinship
from sim.traffic.trace import Lengths, Times, Trace

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

PEAKS_S = (1, 10, 60)
DISPERSIONS_S = (10, 60)
LOCAL_S = 300  # within so long, the rate is taken to be steady
LOCAL_GAPS = 10  # a window with fewer says nothing of their variation
STICKY_S = 300  # how long sessions are usually kept where they were
BLOCK_TOKENS = 64
LISTED = 5  # shares that are shown


@dataclass(slots=True, kw_only=True)
class Arrivals:
    """When requests come. A variation is a standard deviation over a mean; None where there is too little for it.

    `peaks` are the fullest window over the mean one, `dispersions` the variance of the windows' counts over their
    mean, both by the length of the window in seconds; only whole windows count.
    """

    span_s: float
    rate: float
    gap_cv: float | None
    local_cv: float | None
    peaks: dict[int, float] = field(default_factory=dict)
    dispersions: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Spread:
    """Where the values of a column lie."""

    mean: float
    p50: float
    p90: float
    p99: float
    most: float


@dataclass(slots=True, kw_only=True)
class Shares:
    """Who asks, or is asked for: names and their shares of the requests, the largest first.

    `zipf` is the exponent of the law that fits best, as a straight line through the logarithms of shares and ranks.
    """

    names: list[str]
    shares: list[float]
    zipf: float | None


@dataclass(slots=True, kw_only=True)
class Sessions:
    """How requests follow each other: told by the trace, or by its names of blocks.

    `late` is the share of the gaps between turns above five minutes.
    """

    count: int
    turns: Spread
    gaps_s: Spread | None
    late: float | None


@dataclass(slots=True, kw_only=True)
class Description:
    """All figures of a trace; None for what it does not have."""

    requests: int
    dropped_rows: int
    failed_rows: int
    arrivals: Arrivals
    input: Spread
    output: Spread
    correlation: float | None
    rank_correlation: float | None
    models: Shares | None
    tenants: Shares | None
    sessions: Sessions | None
    ideal_token_hit_ratio: float | None
    block_tokens: int

    def rows(self) -> list[tuple[str, str]]:
        """What each figure is called, and the figure, in the order in which they are shown."""
        return [
            ("requests", f"{self.requests:,}"),
            ("dropped rows", f"{self.dropped_rows:,}"),
            *([("of these failed", f"{self.failed_rows:,}")] if self.failed_rows else []),
            *_arrival_rows(self.arrivals),
            *_spread_rows("input, tokens", self.input),
            *_spread_rows("output, tokens", self.output),
            (
                "correlation of input and output / of ranks",
                f"{_shown(self.correlation)} / {_shown(self.rank_correlation)}",
            ),
            *_share_rows("models", self.models),
            *_share_rows("tenants", self.tenants),
            *_session_rows(self.sessions),
            (f"ideal token hit ratio, blocks of {self.block_tokens}", _shown(self.ideal_token_hit_ratio)),
        ]


def describe(trace: Trace, block_tokens: int = BLOCK_TOKENS) -> Description:
    """The figures of a trace. Takes time and memory in proportion to its requests, whatever its tokens are."""
    shared = _shares_content(trace)
    session = trace.session
    if session is None and trace.block_ids is not None:
        session = kinship(trace).session
    return Description(
        requests=len(trace),
        dropped_rows=trace.dropped_rows,
        failed_rows=trace.failed_rows,
        arrivals=arrivals(trace.arrival_ns),
        input=spread(trace.prompt_tokens),
        output=spread(trace.output_tokens),
        correlation=correlation(trace.prompt_tokens, trace.output_tokens),
        rank_correlation=correlation(ranks(trace.prompt_tokens), ranks(trace.output_tokens)),
        models=None if trace.model_of is None else shares(trace.model_of, trace.models),
        tenants=None if trace.tenant_of is None else shares(trace.tenant_of, trace.tenants),
        sessions=None if session is None else sessions(trace.arrival_ns, session),
        ideal_token_hit_ratio=ideal_token_hit_ratio(trace, block_tokens) if shared else None,
        block_tokens=block_size(trace, block_tokens),
    )


def arrivals(arrival_ns: Times) -> Arrivals:
    """The figures of arrivals in order."""
    span_s = float(arrival_ns[-1] - arrival_ns[0]) / NS_PER_S
    gaps_s = np.diff(arrival_ns) / NS_PER_S
    found = Arrivals(
        span_s=span_s,
        rate=len(gaps_s) / span_s if span_s else 0.0,
        gap_cv=variation(gaps_s),
        local_cv=_local_variation(arrival_ns, gaps_s),
    )
    for window_s in PEAKS_S:
        if windows := int(span_s // window_s):
            counts = _counts(arrival_ns, window_s, windows)
            found.peaks[window_s] = float(counts.max() * windows / counts.sum())
            if window_s in DISPERSIONS_S and windows > 1:
                found.dispersions[window_s] = dispersion(counts, windows)
    return found


def variation(values: Floats) -> float | None:
    """The coefficient of variation; None for no values, or without a mean."""
    mean = float(values.mean()) if len(values) else 0.0
    return float(values.std()) / mean if mean else None


def dispersion(counts: Ids, windows: int) -> float:
    """The variance of counts over their mean, of which those that are not given are zero."""
    mean = float(counts.sum()) / windows
    square = float((counts.astype(np.float64) ** 2).sum()) / windows
    return (square - mean**2) / mean


def spread(values: npt.NDArray[np.integer] | Floats) -> Spread:
    """Where values lie, by linear percentiles."""
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Spread(
        mean=float(values.mean()), p50=float(p50), p90=float(p90), p99=float(p99), most=float(values.max())
    )


def ranks(values: npt.NDArray[np.integer]) -> Floats:
    """The place of each value among all, in the middle of its equals."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[place])


def correlation(
    one: npt.NDArray[np.integer] | Floats, other: npt.NDArray[np.integer] | Floats
) -> float | None:
    """Pearson's; None where one of the two is always the same."""
    deviations = float(one.std()) * float(other.std())
    if deviations == 0:
        return None
    product = float(((one - one.mean()) * (other - other.mean())).mean())  # np.dot would wake threads
    return product / deviations


def shares(of: Lengths, names: Sequence[str]) -> Shares:
    """The shares of those that have any, the largest first; among equals, the first named."""
    counts = np.bincount(of, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    found = counts[order] / len(of)
    called = [names[index] if index < len(names) else str(index) for index in order]
    return Shares(names=called, shares=found.tolist(), zipf=_slope(found))


def sessions(arrival_ns: Times, session: Lengths) -> Sessions:
    """The figures of the sessions that begin within the trace."""
    order = np.argsort(session, kind="stable")
    same = np.diff(session[order]) == 0
    borders = np.flatnonzero(np.concatenate(([True], ~same, [True])))
    gaps_s = np.diff(arrival_ns[order])[same] / NS_PER_S
    return Sessions(
        count=len(borders) - 1,
        turns=spread(np.diff(borders)),
        gaps_s=spread(gaps_s) if len(gaps_s) else None,
        late=float((gaps_s > STICKY_S).mean()) if len(gaps_s) else None,
    )


def ideal_token_hit_ratio(trace: Trace, block_tokens: int) -> float:
    """The share of prompt tokens that an endless cache would have, if it forgot nothing and met no failure.

    A request finds the leading full blocks that requests before it, for the same model, brought or were answered
    with; its last token is always computed. Tenants share what they have in common.
    """
    blocks = _found_blocks(trace, block_tokens) if _ids(trace) is None else _known_blocks(trace)
    found = np.minimum(blocks * block_size(trace, block_tokens), trace.prompt_tokens - 1)
    return float(found.sum()) / float(trace.prompt_tokens.sum(dtype=np.int64))


def block_size(trace: Trace, block_tokens: int) -> int:
    """The tokens of a block: those that the trace's own names stand for, where it has names."""
    return block_tokens if _ids(trace) is None else trace.id_tokens


def _ids(trace: Trace) -> Ids | None:
    ids: Ids | None = None if trace.block_ids is None else trace.block_ids.astype(np.int64)
    return ids


def _known_blocks(trace: Trace) -> Ids:
    """Leading blocks of each prompt whose names were there before, for the same model: full ones, as caches keep."""
    ids, end = _ids(trace), np.asarray(() if trace.block_end is None else trace.block_end)
    assert ids is not None
    if trace.model_of is not None:
        _, name = np.unique(ids, return_inverse=True)
        ids = name * len(trace.models) + np.repeat(trace.model_of, np.diff(end, prepend=0))
    start = np.concatenate(([0], end[:-1]))
    full = np.minimum(trace.prompt_tokens // block_size(trace, 1), end - start)
    is_full = np.arange(len(ids)) < np.repeat(start + full, end - start)
    return known_blocks(ids[is_full], np.cumsum(full), full)


def _found_blocks(trace: Trace, block_tokens: int) -> Ids:
    """Leading blocks of each prompt that were there before: those of its template, then those of its session."""
    template_tokens = np.array([len(template) for template in trace.prefixes] + [0], np.int64)[trace.prefix]
    head = np.minimum(template_tokens, trace.prompt_tokens) // block_tokens
    model = np.zeros(len(trace), np.int64) if trace.model_of is None else trace.model_of.astype(np.int64)
    found: Ids = np.minimum(_most_before(model * (len(trace.prefixes) + 1) + trace.prefix + 1, head), head)
    if trace.session is None:
        return found
    left = (trace.prompt_tokens.astype(np.int64) + trace.output_tokens) // block_tokens
    most = _most_before(model * (int(trace.session.max()) + 1) + trace.session, left)
    return np.asarray(np.maximum(found, np.minimum(most, trace.prompt_tokens // block_tokens)))


def known_blocks(ids: Ids, end: Ids, full: Ids | Lengths) -> Ids:
    """For each chain of block names, how many of its leading ones were in chains before it, `full` at most.

    All chains stand one behind the other, each before its `end`.
    """
    start = np.concatenate(([0], end[:-1]))
    _, first, name = np.unique(ids, return_index=True, return_inverse=True)
    new = np.flatnonzero(first[name] >= np.repeat(start, end - start))
    stop = np.append(new, len(ids))[np.searchsorted(new, start)]
    return np.asarray(np.minimum(np.minimum(stop, end), start + full) - start)


def _most_before(group: Ids, values: Ids) -> Ids:
    """For each row, the largest value (>= 0) of the rows of its group before it; 0 for the first."""
    order = np.argsort(group, kind="stable")
    new = np.concatenate(([True], np.diff(group[order]) != 0))
    step = int(values.max()) + 1
    floor = np.cumsum(new) * step  # above all values of the groups before
    most = np.maximum.accumulate(values[order] + floor)
    before = np.empty_like(values)
    before[order] = np.where(new, 0, np.concatenate(([0], most[:-1])) - floor)
    return before


def _shares_content(trace: Trace) -> bool:
    return trace.session is not None or len(trace.prefixes) > 0 or _ids(trace) is not None


def _counts(arrival_ns: Times, window_s: int, windows: int) -> Ids:
    """The arrivals of each window that has any, of so many from the first arrival on."""
    window = (arrival_ns - arrival_ns[0]) // (window_s * NS_PER_S)
    window = window[: np.searchsorted(window, windows)]
    borders = np.flatnonzero(np.diff(window)) + 1
    return np.diff(np.concatenate(([0], borders, [len(window)])))


def _local_variation(arrival_ns: Times, gaps_s: Floats) -> float | None:
    """The median over windows of five minutes of the variation of the gaps within them."""
    window = (arrival_ns - arrival_ns[0]) // (LOCAL_S * NS_PER_S)
    within = window[1:] == window[:-1]
    of, gaps = window[1:][within], gaps_s[within]
    borders = np.flatnonzero(np.diff(of, prepend=-1))
    each = [variation(part) for part in np.split(gaps, borders[1:]) if len(part) >= LOCAL_GAPS]
    found = [value for value in each if value is not None]
    return float(np.median(found)) if found else None


def _slope(shares: Floats) -> float | None:
    """The exponent of Zipf's law through shares in falling order; None for fewer than two."""
    if len(shares) < 2:  # noqa: PLR2004
        return None
    rank, share = np.log(np.arange(1, len(shares) + 1)), np.log(shares)
    rank -= rank.mean()
    return 0.0 - round(float(np.dot(rank, share) / np.dot(rank, rank)), 12)  # of equal shares 0, not -1e-16


def _arrival_rows(found: Arrivals) -> list[tuple[str, str]]:
    peaks = [_shown(found.peaks.get(window_s)) for window_s in PEAKS_S]
    dispersions = [_shown(found.dispersions.get(window_s)) for window_s in DISPERSIONS_S]
    return [
        ("span, s", _shown(found.span_s)),
        ("requests a second", _shown(found.rate)),
        ("CV of gaps", _shown(found.gap_cv)),
        ("CV of gaps, median over 5 min", _shown(found.local_cv)),
        (f"peak over mean, {' / '.join(map(str, PEAKS_S))} s", " / ".join(peaks)),
        (f"index of dispersion, {' / '.join(map(str, DISPERSIONS_S))} s", " / ".join(dispersions)),
    ]


def _spread_rows(name: str, found: Spread | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    upper = " / ".join(map(_shown, (found.p50, found.p90, found.p99, found.most)))
    return [(f"{name}: mean", _shown(found.mean)), (f"{name}: p50 / p90 / p99 / max", upper)]


def _share_rows(name: str, found: Shares | None) -> list[tuple[str, str]]:
    if found is None:
        return [(name, "1")]
    listed = ", ".join(
        f"{printable(one)} {share:.3f}"
        for one, share in zip(found.names[:LISTED], found.shares[:LISTED], strict=True)
    )
    more = ", ..." if len(found.names) > LISTED else ""
    return [
        (name, f"{len(found.names):,}"),
        (f"{name}: largest shares", listed + more),
        (f"{name}: Zipf exponent", _shown(found.zipf)),
    ]


def _session_rows(found: Sessions | None) -> list[tuple[str, str]]:
    if found is None:
        return [("sessions", "none")]
    return [
        ("sessions", f"{found.count:,}"),
        *_spread_rows("turns", found.turns),
        *_spread_rows("gaps between turns, s", found.gaps_s),
        (f"gaps above {STICKY_S} s, share", _shown(found.late)),
    ]


def _shown(value: float | None) -> str:
    """A figure with three digits that count, whole from 1,000 on."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004
