"""Mixes: four named kinds of traffic over several models, in sessions whose every prompt is the whole history."""

from dataclasses import dataclass
from math import ceil, isfinite, log

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.settings import above, require
from sim.streams import stream
from sim.traffic.chains import Chains, Ids
from sim.traffic.popularity import zipf
from sim.traffic.sessions import before, waits
from sim.traffic.synthetic import MAX_PREFIX_TOKENS, check_templates, log_normal_tokens
from sim.traffic.trace import MAX_TOKENS, Lengths, Times, Trace
from sim.traffic.workload import (
    MAX_REQUESTS,
    YEAR_S,
    check_kind,
    check_popularity,
    check_vocab,
    whole,
    workloads,
)

Floats = npt.NDArray[np.float64]

USER_TOKENS = (4, 8_192)  # what is drawn for a turn is clipped to these
OUTPUT_TOKENS = (1, 2_048)
GAP_SHAPE = 0.87  # of the Gamma gaps between session starts, as in chat
SHIFT = 2  # by so many ranks popularity moves at half time, if it does
MAX_MODELS = 10_000

TENANT_SHARES = np.array([0.3] + [0.6 / 9] * 9 + [0.1 / 40] * 40)
"""One tenant has much of the traffic, nine most of the rest, and forty share a tenth."""

TENANT_CV = (
    1.2,
    log(5.0 / 1.2) / 1.2816,
)  # of their gaps: median, and the sigma that puts the 90th percentile at 5
LARGEST_CV = 30.0


@dataclass(slots=True, frozen=True)
class Mix:
    """What a mix is made of. Lengths and think times are log-normal: the median, then the sigma of the logarithm."""

    templates: int  # for each model
    template_zipf: float
    template_tokens: tuple[float, float]
    mean_turns: float
    user_tokens: tuple[float, float]
    output_tokens: tuple[float, float]
    think_s: tuple[float, float]


MIXES = {
    "A": Mix(
        200, 0.3, (400, 0.6), 1.63, (2500, 1.2), (250, 0.9), (123, 1.06)
    ),  # like a real conversation trace
    "B": Mix(20, 1.0, (1024, 0.6), 3.5, (96, 1.0), (150, 0.9), (40, 1.0)),  # chat
    "C": Mix(8, 1.0, (3000, 0.4), 6.0, (120, 1.0), (60, 0.9), (8, 0.8)),  # agents
    "D": Mix(10, 1.0, (2048, 0.6), 3.5, (96, 1.0), (120, 0.9), (40, 1.0)),  # long shared prefixes
}


@workloads("mix")
@dataclass(slots=True, kw_only=True)
class MixWorkload:
    """One of the named mixes: sessions over models by Zipf's law, templates that the sessions of a model share.

    `rate` is that of requests in the long run: sessions begin with nobody there, and are cut after `duration_s`, so
    there are a few less. `rotate`: sessions that start after half of it are of the model two ranks further on.
    `tenants`: fifty of very different size and burstiness, each with sessions of its own, instead of one.
    `wait`: the time to think begins when the answer before has ended, not when that turn arrived.
    """

    kind: str = "mix"
    mix: str = "B"
    rate: float = 8.0  # requests a second
    duration_s: float = 1800.0
    requests: int | None = None  # the first so many; None is all
    models: int = 5  # how many the sessions are spread over
    model_zipf: float | None = 1.0  # None: all sessions are of the first model
    rotate: bool = False
    tenants: bool = False
    wait: bool = True
    vocab: int = 4096

    def __post_init__(self) -> None:
        check_kind(self.kind, "mix")
        require("workload.mix", self.mix, self.mix in MIXES, f"one of {', '.join(MIXES)}")
        above("workload.rate", self.rate, 0)
        above("workload.duration_s", self.duration_s, 0)
        allowed = f"at most {YEAR_S:,}: a run ends in a year"
        require("workload.duration_s", self.duration_s, self.duration_s <= YEAR_S, allowed)
        expected = self.rate * self.duration_s
        allowed = f"small enough to make at most {MAX_REQUESTS:,} requests"
        require("workload.rate", self.rate, isfinite(expected) and expected <= MAX_REQUESTS, allowed)
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        whole("workload.models", self.models, 1, MAX_MODELS)
        check_popularity(self.model_zipf)
        check_vocab(self.vocab)

    def draw(self, seed: int, model: str) -> Trace:
        return trace(self, seed, model)


@dataclass(slots=True, kw_only=True, eq=False)
class Turns:
    """All requests of a mix in order of arrival, as columns; `template` counts through those of all models."""

    arrival_ns: Times
    model: Lengths
    tenant: Lengths
    session: Lengths
    turn: Lengths
    template: Lengths
    prompt_tokens: Lengths
    output_tokens: Lengths
    template_tokens: Lengths
    after: Lengths | None = None
    think_ns: Times | None = None


def turns(settings: MixWorkload, seed: int) -> Turns:
    """Every request of the mix. Each concern has a stream of its own; longer traffic begins with the shorter.

    About 0.4 us a request. A time to think counts from the request before it: answers take none.
    """
    mix = MIXES[settings.mix]
    start_s, tenant = _session_starts(settings, mix, seed)
    require(
        "workload.duration_s", settings.duration_s, len(start_s) > 0, "long enough for a session to start"
    )
    model = _models(settings, start_s, seed)
    template_tokens = _template_tokens(settings, mix, seed)
    choice = zipf(stream(seed, "templates"), len(start_s), mix.templates, mix.template_zipf)
    template = (model * mix.templates + choice).astype(np.int32)
    count = stream(seed, "turns").geometric(1 / mix.mean_turns, len(start_s))
    session = np.repeat(np.arange(len(start_s), dtype=np.int32), count)
    first = np.cumsum(count) - count  # the row of each session's first turn
    user = log_normal_tokens(stream(seed, "user_tokens"), len(session), *mix.user_tokens, *USER_TOKENS)
    output = log_normal_tokens(
        stream(seed, "output_tokens"), len(session), *mix.output_tokens, *OUTPUT_TOKENS
    )
    median_s, sigma = mix.think_s
    think_s = median_s * np.exp(sigma * stream(seed, "think").standard_normal(len(session)))
    arrival_s = start_s[session] + before(think_s, first, session)
    history = before((user + output).astype(np.int64), first, session)
    prompt = np.minimum(template_tokens[template][session] + history + user, MAX_TOKENS)
    rows = np.flatnonzero(arrival_s < settings.duration_s)
    rows = rows[np.argsort(arrival_s[rows], kind="stable")][: settings.requests]
    session = session[rows]
    turn = (rows - first[session]).astype(np.int32)
    after, think_ns = waits(rows, turn, think_s) if settings.wait else (None, None)
    return Turns(
        arrival_ns=np.rint(arrival_s[rows] * NS_PER_S).astype(np.int64),
        model=model[session],
        tenant=tenant[session],
        session=session,
        turn=turn,
        template=template[session],
        prompt_tokens=prompt[rows].astype(np.int32),
        output_tokens=output[rows],
        template_tokens=template_tokens,
        after=after,
        think_ns=think_ns,
    )


def chains(settings: MixWorkload, seed: int, block_tokens: int = 64) -> Chains:
    """The mix as a cache sees it: the full blocks of a template belong to all of its sessions, the rest to one."""
    whole("workload.block_tokens", block_tokens, 1, MAX_TOKENS)
    whole("seed", seed, 0, 2**63)
    made = turns(settings, seed)
    shared = made.template_tokens // block_tokens
    filled = (made.prompt_tokens + made.output_tokens) // block_tokens
    head = np.minimum(shared[made.template], filled)
    own = _most_by(made.session, filled - head)  # of a session, in the end
    template_first = np.cumsum(shared, dtype=np.int64) - shared
    own_first = int(shared.sum()) + np.cumsum(own) - own
    return Chains(
        arrival_ns=made.arrival_ns,
        model=made.model,
        tenant=made.tenant,
        session=made.session,
        turn=made.turn,
        prompt_tokens=made.prompt_tokens,
        output_tokens=made.output_tokens,
        run_end=np.arange(2, 2 * len(head) + 1, 2),
        run_first=np.column_stack((template_first[made.template], own_first[made.session])).reshape(-1),
        run_blocks=np.column_stack((head, filled - head)).reshape(-1),
        block_tokens=block_tokens,
        models=[f"m{index}" for index in range(_num_models(settings))],
        source=f"mix:{settings.mix}",
    )


def trace(settings: MixWorkload, seed: int, model: str) -> Trace:
    """The mix with tokens: a prompt begins with all of the prompt before it and what stands for its answer."""
    made = turns(settings, seed)
    check_templates("workload.models", settings.models, made.template_tokens)
    prefixes = [
        stream(seed, f"template_tokens.{index}").integers(settings.vocab, size=length, dtype=np.int32)
        for index, length in enumerate(made.template_tokens)
    ]
    return Trace(
        arrival_ns=made.arrival_ns,
        prompt_tokens=made.prompt_tokens,
        output_tokens=made.output_tokens,
        prefix=made.template,
        prefixes=prefixes,
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source=f"mix:{settings.mix}",
        model_of=None if settings.model_zipf is None else made.model,
        session=made.session,
        tenants=tuple(f"t{index}" for index in range(len(TENANT_SHARES))) if settings.tenants else (),
        tenant_of=made.tenant if settings.tenants else None,
        after=made.after,
        think_ns=made.think_ns,
    )


def _session_starts(settings: MixWorkload, mix: Mix, seed: int) -> tuple[Floats, Lengths]:
    """When sessions start, in order, and whose they are."""
    rate = settings.rate / mix.mean_turns
    if not settings.tenants:
        starts = _renewals(stream(seed, "arrivals"), rate, GAP_SHAPE, settings.duration_s)
        return starts, np.zeros(len(starts), np.int32)
    median, sigma = TENANT_CV
    spread = stream(seed, "tenant_cv").standard_normal(len(TENANT_SHARES))
    shapes = np.minimum(median * np.exp(sigma * spread), LARGEST_CV) ** -2.0
    each = [
        _renewals(stream(seed, f"arrivals.{index}"), rate * share, shape, settings.duration_s)
        for index, (share, shape) in enumerate(zip(TENANT_SHARES, shapes, strict=True))
    ]
    starts = np.concatenate(each)
    order = np.argsort(starts, kind="stable")
    tenant = np.repeat(np.arange(len(each), dtype=np.int32), list(map(len, each)))
    return starts[order], tenant[order]


def _renewals(random: np.random.Generator, rate: float, shape: float, duration_s: float) -> Floats:
    """The arrivals before `duration_s` of a process with Gamma gaps; the first follows a gap, too."""
    parts, last = [np.empty(0)], 0.0
    while last < duration_s:
        expected = rate * (duration_s - last)
        gaps = random.standard_gamma(shape, ceil(expected + 4 * (expected / shape) ** 0.5) + 1) / (
            shape * rate
        )
        parts.append(last + np.cumsum(gaps))
        last = float(parts[-1][-1])
    starts = np.concatenate(parts)
    return starts[starts < duration_s]


def _models(settings: MixWorkload, start_s: Floats, seed: int) -> Lengths:
    """The model of each session: its rank is drawn, and who has that rank may change at half time."""
    count = _num_models(settings)
    rank = zipf(stream(seed, "models"), len(start_s), count, settings.model_zipf or 0.0)
    if not settings.rotate:
        return rank
    return np.where(start_s < settings.duration_s / 2, rank, (rank + SHIFT) % count).astype(np.int32)


def _num_models(settings: MixWorkload) -> int:
    return 1 if settings.model_zipf is None else settings.models


def _template_tokens(settings: MixWorkload, mix: Mix, seed: int) -> Lengths:
    """The lengths of all models' templates, the first model's first. One more model changes no other's."""
    return np.concatenate(
        [
            log_normal_tokens(
                stream(seed, f"templates.{model}"), mix.templates, *mix.template_tokens, 1, MAX_PREFIX_TOKENS
            )
            for model in range(_num_models(settings))
        ]
    )


def _most_by(session: Lengths, values: Lengths) -> Ids:
    """The largest value of each session, 0 for one without any."""
    most = np.zeros(int(session.max()) + 1, np.int64)
    np.maximum.at(most, session, values)
    return most
