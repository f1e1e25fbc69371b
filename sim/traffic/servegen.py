"""Traffic of a pool of clients: each is a renewal process whose rate and law change with its windows.

Nothing is rescaled to force a count. A rate below that of the pool leaves requests out by chance; one above it adds
whole populations of the same clients, each drawn anew, of which the last may be thinned.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import ceil, exp, isfinite, lgamma
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from engine.settings import above, at_least, require
from sim.streams import stream
from sim.traffic.arrivals import Floats, finite_at_least
from sim.traffic.pool import FAMILIES, Client, Histogram, Ids, Pool, read
from sim.traffic.trace import BadTrace, Trace
from sim.traffic.workload import (
    MAX_REQUESTS,
    YEAR_S,
    check_kind,
    check_popularity,
    check_vocab,
    whole,
    workloads,
)

MAX_SCALE = 1000.0
DURATION_S = 1800.0

Others = dict[tuple[str, str], Histogram]
"""The lengths of all clients of a model together, of prompts and of answers."""


@workloads("servegen")
@dataclass(slots=True, kw_only=True)
class ServeGenWorkload:
    """Clients of a pool from `from_s` of its time on, for `duration_s`; windows without a rate bring nothing.

    `path` is the file of their rates, or a folder of chunks; `lengths` the file of their lengths (null: the one that
    is beside it by name). `rates`: requests a second to be expected of each model (null: all of them as they are),
    and `rate_scale` times that. By `keep_bursts`, clients go slower or faster instead, so the gaps of each vary as
    they did; what is left of many by chance is nearly Poisson. Clients whose lengths were not published draw from
    those of all others of their model, or are left out by `only_known_lengths`. `models`: those of the pool in the
    order of the fleet's; without, as they appear.
    """

    kind: str = "servegen"
    path: str
    lengths: str | None = None
    from_s: float = 0.0
    duration_s: float = DURATION_S
    rates: dict[str, float] | None = None
    rate_scale: float = 1.0
    time_scale: float = 1.0
    requests: int | None = None
    keep_bursts: bool = False
    only_known_lengths: bool = False
    models: list[str] = field(default_factory=list)
    model_zipf: float | None = None
    vocab: int = 4096

    def __post_init__(self) -> None:
        check_kind(self.kind, "servegen")
        require("workload.path", self.path, self.path != "", "the path of a file of rates, or of a folder")
        at_least("workload.from_s", self.from_s, 0)
        above("workload.duration_s", self.duration_s, 0)
        few = self.duration_s <= YEAR_S
        require("workload.duration_s", self.duration_s, few, f"at most {YEAR_S:,}: a run ends in a year")
        for name, rate in (self.rates or {}).items():
            finite_at_least(f"workload.rates.{name}", rate, 0)
        usual = 0 < self.rate_scale <= MAX_SCALE
        require("workload.rate_scale", self.rate_scale, usual, f"above 0, at most {MAX_SCALE:g}")
        above("workload.time_scale", self.time_scale, 0)
        require("workload.time_scale", self.time_scale, isfinite(self.time_scale), "a finite number")
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        check_popularity(self.model_zipf)
        check_vocab(self.vocab)

    def draw(self, seed: int, model: str) -> Trace:
        return trace(self, self.pool(), seed, model)

    def pool(self) -> Pool:
        """The clients that are wanted. Raises BadTrace."""
        pool = read(Path(self.path), None if self.lengths is None else Path(self.lengths))
        if self.only_known_lengths:
            pool.clients = [client for client in pool.clients if client.lengths]
            known = len(pool.clients) > 0
            require(
                "workload.only_known_lengths", True, known, "false, since no lengths are known of any client"
            )
        return pool

    def as_it_is(self, seed: int) -> Trace:
        """The trace whose requests ask for the models of the pool, under their own names."""
        return replace(self, model_zipf=0.0).draw(seed, "model")


class Part(NamedTuple):
    """What one client brings: rows in order of arrival."""

    arrival_s: Floats
    model: int
    tenant: int
    prompt_tokens: Ids
    output_tokens: Ids


def trace(settings: ServeGenWorkload, pool: Pool, seed: int, model: str) -> Trace:
    """All requests of a pool's clients in the time that was chosen. Raises BadSettings where there are none.

    Each client has streams of its own, so that one more, or another share of one, changes no other.
    """
    models = _models(settings, pool)
    parts = list(_parts(settings, pool, models, seed))
    arrival_s = np.concatenate([np.empty(0), *(part.arrival_s for part in parts)])
    if len(arrival_s) == 0:
        raise BadSettings(
            f"workload.from_s is {settings.from_s:g}, but must be such that {settings.path} has a request in the "
            f"{settings.duration_s:g} s after it"
        )
    counts = [len(part.arrival_s) for part in parts]
    prompt = np.concatenate([part.prompt_tokens for part in parts])
    output = np.concatenate([part.output_tokens for part in parts])
    model_of = np.repeat(np.array([part.model for part in parts], np.int32), counts)
    tenant_of = np.repeat(np.array([part.tenant for part in parts], np.int32), counts)
    served = np.flatnonzero((prompt > 0) & (output > 0))
    if len(served) == 0:
        raise BadTrace(f"{settings.path} must have requests with both prompt and output tokens, but has none")
    rows = served[np.argsort(arrival_s[served], kind="stable")][: settings.requests]
    span_s = settings.duration_s * settings.time_scale
    allowed = "small enough that a run ends in a year"
    require("workload.time_scale", settings.time_scale, span_s <= YEAR_S, allowed)
    return Trace(
        arrival_ns=np.rint(arrival_s[rows] * (settings.time_scale * NS_PER_S)).astype(np.int64),
        prompt_tokens=prompt[rows].astype(np.int32),
        output_tokens=output[rows].astype(np.int32),
        prefix=np.full(len(rows), -1, np.int32),
        prefixes=[],
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source=f"servegen:{pool.source}",
        dropped_rows=len(arrival_s) - len(served),
        models=() if settings.model_zipf is None else tuple(models),
        model_of=None if settings.model_zipf is None else model_of[rows],
        tenants=tuple(client.tenant for client in pool.clients),
        tenant_of=tenant_of[rows],
    )


def _models(settings: ServeGenWorkload, pool: Pool) -> list[str]:
    """The models whose clients ask, in the fleet's order: those with a rate, where there are rates."""
    for key, names in (("models", settings.models), ("rates", settings.rates or ())):
        for name in names:
            allowed = f"one of the pool's: {', '.join(pool.models)}"
            require(f"workload.{key}", name, name in pool.models, allowed)
    require(
        "workload.models", settings.models, len(set(settings.models)) == len(settings.models), "each once"
    )
    return settings.models or list(settings.rates or ()) or list(pool.models)


def _parts(settings: ServeGenWorkload, pool: Pool, models: list[str], seed: int) -> Iterator[Part]:
    end_s = settings.from_s + settings.duration_s
    expected = dict.fromkeys(models, 0.0)
    for client in pool.clients:
        if client.model in expected:
            expected[client.model] += _expected(client, pool.window_s, settings.from_s, end_s)
    scales = {name: _scale(settings, name, expected[name] / settings.duration_s) for name in models}
    total = sum(expected[name] * scales[name] for name in models)
    require(
        "workload.duration_s",
        settings.duration_s,
        total <= MAX_REQUESTS,
        f"short enough, or workload.rates low enough, for {MAX_REQUESTS:,} requests; these would be {total:,.0f}",
    )
    others: Others = {}
    for number, client in enumerate(pool.clients):
        if client.model in expected:
            yield from _of_client(settings, pool, number, scales[client.model], seed, models, others)


def _scale(settings: ServeGenWorkload, model: str, found: float) -> float:
    """How many times as many requests as the pool has are wanted of a model."""
    if not settings.rates:
        return settings.rate_scale
    wanted = settings.rates.get(model, 0.0) * settings.rate_scale
    if wanted == 0:
        return 0.0
    allowed = f"such that {model} has clients with a rate in the {settings.duration_s:g} s after it"
    require("workload.from_s", settings.from_s, found > 0, allowed)
    allowed = f"at most {MAX_SCALE * found:g}: {MAX_SCALE:g} times what the pool has then"
    require(f"workload.rates.{model}", settings.rates[model], wanted <= MAX_SCALE * found, allowed)
    return wanted / found


def _expected(client: Client, window_s: float, from_s: float, end_s: float) -> float:
    """The requests to be expected of a client in that time."""
    start = np.frombuffer(client.start_s)
    length = np.minimum(start + window_s, end_s) - np.maximum(start, from_s)
    return float(np.dot(np.maximum(length, 0.0), np.frombuffer(client.rate)))


def _of_client(
    settings: ServeGenWorkload,
    pool: Pool,
    number: int,
    scale: float,
    seed: int,
    models: list[str],
    others: Others,
) -> Iterator[Part]:
    client = pool.clients[number]
    pace, copies = (scale, ceil(scale > 0)) if settings.keep_bursts else (1.0, ceil(scale))
    for copy in range(copies):
        name = f"servegen.{client.tenant}.{copy}"
        random = stream(seed, name)
        arrival_s = renewals(client, pool.window_s, settings.from_s, settings.duration_s, random, pace)
        share = 1.0 if settings.keep_bursts else min(1.0, scale - copy)
        kept = stream(seed, f"{name}.thin").random(len(arrival_s)) < share
        prompt, output = (
            _lengths(pool, client, which, arrival_s, settings.from_s, stream(seed, f"{name}.{which}"), others)
            for which in ("input", "output")
        )
        yield Part(arrival_s[kept], models.index(client.model), number, prompt[kept], output[kept])


def renewals(
    client: Client,
    window_s: float,
    from_s: float,
    duration_s: float,
    random: np.random.Generator,
    pace: float = 1.0,
) -> Floats:
    """A client's arrivals from `from_s` on, counted from there, at `pace` times its rate.

    The process runs on a clock that goes as fast as the client's rate, so a gap that begins in one window may end in
    the next; its law is that of the window in which it began. The first one has been under way for as long as it
    takes on average: otherwise each bursty client would begin with a burst.
    """
    start = np.frombuffer(client.start_s)
    first = int(np.searchsorted(start + window_s, from_s, side="right"))
    last = int(np.searchsorted(start, from_s + duration_s))
    parts, next_one = [], -1.0  # below 0: where the process begins
    reached = 0.0
    for window in range(first, last):
        rate, begins_s = client.rate[window] * pace, max(float(start[window]), from_s)
        ends = reached + (start[window] + window_s - begins_s) * rate
        family, shape = FAMILIES[client.family[window]], client.shape[window]
        if next_one < 0:
            next_one = _under_way(random, family, shape)
        marks = [np.empty(0)]
        while next_one < ends:
            count = (
                int((ends - next_one) * 1.1) + 64
            )  # a function of the process so far: the same for longer traffic
            sums = next_one + np.concatenate(([0.0], np.cumsum(_gaps(random, family, shape, count))))
            inside = int(np.searchsorted(sums, ends))
            marks.append(sums[:inside])
            next_one = float(sums[inside]) if inside < len(sums) else _after(random, sums, family, shape)
        parts.append(begins_s + (np.concatenate(marks) - reached) / rate)
        reached = ends
    arrival_s = np.concatenate(parts) - from_s if parts else np.empty(0)
    return arrival_s[: np.searchsorted(arrival_s, duration_s)]


def _after(random: np.random.Generator, sums: Floats, family: str, shape: float) -> float:
    return float(sums[-1] + _gaps(random, family, shape, 1)[0])


def _gaps(random: np.random.Generator, family: str, shape: float, count: int) -> Floats:
    """Gaps with a mean of 1."""
    if family == "Gamma":
        return random.standard_gamma(shape, count) / shape
    return random.weibull(shape, count) / exp(lgamma(1 + 1 / shape))


def _under_way(random: np.random.Generator, family: str, shape: float) -> float:
    """What is left of a gap that somebody meets who looks at any time: longer ones are met more often."""
    if family == "Gamma":
        met = float(random.standard_gamma(shape + 1)) / shape
    else:  # density x^shape exp(-x^shape): a power of a Gamma variable
        met = float(random.standard_gamma(1 + 1 / shape)) ** (1 / shape) / float(exp(lgamma(1 + 1 / shape)))
    return met * float(random.random())


def _lengths(
    pool: Pool,
    client: Client,
    which: str,
    arrival_s: Floats,
    from_s: float,
    random: np.random.Generator,
    others: Others,
) -> Ids:
    """Lengths for each arrival, from the histogram of its time."""
    drawn = random.random(len(arrival_s))
    if not client.lengths:
        if (client.model, which) not in others:
            others[client.model, which] = _of_others(pool, client.model, which, from_s)
        return _inverse(others[client.model, which], drawn)
    made = np.empty(len(drawn), np.int64)
    borders = np.searchsorted(arrival_s, [one.start_s - from_s for one in client.lengths[1:]])
    edges = [0, *borders.tolist(), len(drawn)]
    for one, begin, end in zip(client.lengths, edges[:-1], edges[1:], strict=True):
        made[begin:end] = _inverse(one.input if which == "input" else one.output, drawn[begin:end])
    return made


def _inverse(histogram: Histogram, drawn: Floats) -> Ids:
    return histogram.tokens[np.searchsorted(histogram.upto[:-1], drawn, side="right")]


def _of_others(pool: Pool, model: str, which: str, time_s: float) -> Histogram:
    """The lengths of all clients of a model that have some, each with the weight of its requests."""
    weights: dict[int, float] = {}
    for client in pool.clients:
        found = client.lengths_at(time_s) if client.model == model else None
        if found is None:
            continue
        histogram = found.input if which == "input" else found.output
        weight = float(np.frombuffer(client.rate).sum())
        shares = np.diff(histogram.upto, prepend=0.0)
        for tokens, share in zip(histogram.tokens.tolist(), shares.tolist(), strict=True):
            weights[tokens] = weights.get(tokens, 0.0) + weight * share
    if not weights:
        raise BadSettings(
            f"workload.lengths must be a file with lengths of clients of {model}: none were found beside the rates"
        )
    tokens = np.array(sorted(weights), np.int64)
    upto = np.cumsum([weights[value] for value in tokens.tolist()])
    return Histogram(tokens=tokens, upto=upto / upto[-1])
