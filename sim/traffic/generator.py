"""Generated traffic: arrivals, lengths, popularity, shared prefixes, sessions and classes, each set by itself.

Each concern draws from a stream of its own, so that changing one moves no column that does not follow from it.
"""

from dataclasses import dataclass, field
from math import exp, inf, isfinite

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from engine.request import Tokens
from engine.settings import above, at_least, require
from sim.streams import stream
from sim.traffic.arrivals import ArrivalSettings, Floats, Pace, finite_at_least, renewals
from sim.traffic.lengths import LengthSettings
from sim.traffic.mixes import LARGEST_CV, MAX_MODELS, TENANT_SHARES
from sim.traffic.popularity import Rotation, Shift, check_weights, chosen, rotated, zipf_weights
from sim.traffic.sessions import Ids, SessionSettings, before, waits
from sim.traffic.synthetic import MAX_SIGMA, MAX_TEMPLATES, check_templates
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

MAX_PREFIXES = 10_000
ROUNDING = 1e-4  # of shares that should make 1
SPLIT = {f"t{index}": float(share) for index, share in enumerate(TENANT_SHARES)}


@dataclass(slots=True, kw_only=True)
class TenantSettings:
    """Whose requests they are. Each tenant is a process of its own, with its share of the rate.

    `split`: one with 30 %, nine with 60 % together, forty with a tenth; or `shares` by name. With `cv_median`, the
    gaps of each are Gamma with a CV drawn log-normally, but for those whose CV is in `cvs`; otherwise all are of the
    family of the arrivals.
    """

    split: bool = False
    shares: dict[str, float] | None = None
    cv_median: float | None = None
    cv_sigma: float = 1.11  # with a median of 1.2, the 90th percentile is 5
    cvs: dict[str, float] | None = None

    def check(self, key: str) -> None:
        """Raise BadSettings unless there are such tenants."""
        require(f"{key}.shares", self.shares, not (self.split and self.shares), "null, since split is on")
        for name, share in (self.shares or {}).items():
            finite_at_least(f"{key}.shares.{name}", share, 0)
        total = sum((self.shares or {}).values())
        require(f"{key}.shares", self.shares, not self.shares or total > 0, "above zero together")
        if self.cv_median is not None:
            require(
                f"{key}.cv_median", self.cv_median, 0 < self.cv_median <= LARGEST_CV, "above 0, at most 30"
            )
        require(f"{key}.cv_sigma", self.cv_sigma, 0 <= self.cv_sigma <= MAX_SIGMA, f"from 0 to {MAX_SIGMA:g}")
        for name, cv in (self.cvs or {}).items():
            require(f"{key}.cvs", name, name in self.table(), "the name of a tenant that has a share")
            require(f"{key}.cvs.{name}", cv, 0 < cv <= LARGEST_CV, "above 0, at most 30")

    def table(self) -> dict[str, float]:
        """The share of each tenant, all together 1; empty for a single one."""
        shares = SPLIT if self.split else self.shares or {}
        total = sum(shares.values())
        return {name: share / total for name, share in shares.items()}


@dataclass(slots=True, kw_only=True)
class TopTemplate:
    """A template that is known: how many of the sessions with one have it, as a share, and its length."""

    share: float
    tokens: int


@dataclass(slots=True, kw_only=True)
class PrefixSettings:
    """Templates that sessions share: `count` for each model, chosen by Zipf's law, by a `share` of the sessions.

    `top`: the most popular ones of each model, by the share of the sessions with a template, and their lengths; the
    `count` others have the rest.
    """

    count: int = 0
    zipf: float = 1.0
    share: float = 1.0
    top: list[TopTemplate] = field(default_factory=list)
    tokens: LengthSettings = field(
        default_factory=lambda: LengthSettings(median=256.0, sigma=0.6, max=131_072)
    )

    def check(self, key: str) -> None:
        """Raise BadSettings unless there are such templates."""
        whole(f"{key}.count", self.count, 0, MAX_PREFIXES)
        at_least(f"{key}.zipf", self.zipf, 0)
        require(f"{key}.share", self.share, 0 <= self.share <= 1, "from 0 to 1")
        self._check_top(key)
        self.tokens.check(f"{key}.tokens")

    def _check_top(self, key: str) -> None:
        whole(f"{key}.top", len(self.top), 0, MAX_PREFIXES)
        for index, one in enumerate(self.top):
            require(f"{key}.top[{index}].share", one.share, 0 < one.share <= 1, "above 0, at most 1")
            whole(f"{key}.top[{index}].tokens", one.tokens, 1, MAX_TOKENS)
        total, all_of_them = sum(one.share for one in self.top), self.count == 0
        fits = not self.top or (abs(total - 1) < ROUNDING if all_of_them else total < 1)
        allowed = (
            "1 together, since count is 0"
            if all_of_them
            else "less than 1 together: the others have the rest"
        )
        require(f"{key}.top", [one.share for one in self.top], fits, allowed)

    @property
    def of_a_model(self) -> int:
        """How many templates each model has."""
        return len(self.top) + self.count

    def weights(self) -> Floats:
        """How likely each is, the known ones first."""
        known = [one.share for one in self.top]
        others = zipf_weights(self.count, self.zipf)
        rest = max(1 - sum(known), 0.0) / others.sum() if self.count else 0.0
        return np.concatenate((known, others * rest)) if known else others


@dataclass(slots=True, kw_only=True)
class ClassSettings:
    """A class of sessions: its share of them, and the priority of its requests, of which a larger one goes first."""

    name: str
    share: float
    priority: int = 0

    def check(self, key: str) -> None:
        """Raise BadSettings unless there is such a class."""
        finite_at_least(f"{key}.share", self.share, 0)
        whole(f"{key}.priority", self.priority, -1_000_000, 1_000_000)


@workloads("generated")
@dataclass(slots=True, kw_only=True)
class GeneratedWorkload:
    """Traffic of which every concern is a setting.

    `rate` is that of requests in the long run, where the curve of the arrivals is 1: sessions start at `rate` over
    their mean number of turns. There are `requests` of them, or as many as come in `duration_s`, or whichever ends
    first. `prompt` is what a turn adds; the template and the history of its session come on top.
    """

    kind: str = "generated"
    rate: float = 8.0  # requests a second
    requests: int | None = 2000
    duration_s: float | None = None
    arrivals: ArrivalSettings = field(default_factory=ArrivalSettings)
    tenants: TenantSettings = field(default_factory=TenantSettings)
    prompt: LengthSettings = field(
        default_factory=lambda: LengthSettings(median=96.0, sigma=1.0, min=4, max=8192)
    )
    output: LengthSettings = field(default_factory=lambda: LengthSettings(median=150.0, sigma=0.9, max=2048))
    follow_up: LengthSettings | None = None  # what later turns add, where that is another law
    correlation: float = 0.0  # of what a turn adds and its answer, as of normal variables behind both
    prefixes: PrefixSettings = field(default_factory=PrefixSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    classes: list[ClassSettings] = field(default_factory=list)
    models: int = 5
    model_zipf: float | None = None
    model_weights: list[float] = field(default_factory=list)  # times those of Zipf's law
    rotate: list[Rotation] = field(default_factory=list)
    model_shifts: list[Shift] = field(
        default_factory=list
    )  # popularity from a time on, of sessions that start
    vocab: int = 4096

    def __post_init__(self) -> None:
        check_kind(self.kind, "generated")
        self._check_extent()
        self.arrivals.check("workload.arrivals")
        self.tenants.check("workload.tenants")
        self.prompt.check("workload.prompt")
        if self.follow_up is not None:
            self.follow_up.check("workload.follow_up")
        self.output.check("workload.output")
        require("workload.correlation", self.correlation, -1 <= self.correlation <= 1, "from -1 to 1")
        self.prefixes.check("workload.prefixes")
        self.sessions.check("workload.sessions")
        for index, one in enumerate(self.classes):
            one.check(f"workload.classes[{index}]")
        total = sum(one.share for one in self.classes)
        require("workload.classes", self.classes, not self.classes or total > 0, "with a share above zero")
        self._check_models()
        check_vocab(self.vocab)

    def draw(self, seed: int, model: str) -> Trace:
        return trace(self, seed, model)

    @property
    def num_models(self) -> int:
        return 1 if self.model_zipf is None else self.models

    def _check_extent(self) -> None:
        above("workload.rate", self.rate, 0)
        require("workload.rate", self.rate, isfinite(self.rate), "a finite number")
        both = self.requests is None and self.duration_s is None
        require("workload.requests", self.requests, not both, "given, or else duration_s")
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
            least = self.requests / YEAR_S
            require(
                "workload.rate", self.rate, self.rate >= least, f"at least {least:g}: a run ends in a year"
            )
        if self.duration_s is not None:
            above("workload.duration_s", self.duration_s, 0)
            allowed = f"at most {YEAR_S:,}: a run ends in a year"
            require("workload.duration_s", self.duration_s, self.duration_s <= YEAR_S, allowed)
            if self.requests is None:
                few = self.rate * self.duration_s <= MAX_REQUESTS
                require(
                    "workload.rate", self.rate, few, f"small enough to make at most {MAX_REQUESTS:,} requests"
                )

    def _check_models(self) -> None:
        whole("workload.models", self.models, 1, MAX_MODELS)
        check_popularity(self.model_zipf)
        for index, rotation in enumerate(self.rotate):
            rotation.check(f"workload.rotate[{index}]")
        for key, given in (("model_weights", self.model_weights), ("model_shifts", self.model_shifts)):
            allowed = "empty, since model_zipf is null; 0 leaves them alone"
            require(f"workload.{key}", given, self.model_zipf is not None or not given, allowed)
        if self.model_weights:
            check_weights("workload.model_weights", self.model_weights, self.models)
        for index, shift in enumerate(self.model_shifts):
            shift.check(f"workload.model_shifts[{index}]", self.models)


def trace(settings: GeneratedWorkload, seed: int, model: str) -> Trace:
    """All requests of generated traffic. Each concern has a stream of its own; longer traffic begins with shorter."""
    start_s, tenant = session_starts(settings, seed)
    model_of = _models(settings, start_s, seed)
    template_tokens = _template_tokens(settings, seed)
    template = _templates(settings, model_of, seed)
    count = stream(seed, "turns").geometric(1 / settings.sessions.mean_turns, len(start_s))
    session = np.repeat(np.arange(len(start_s), dtype=np.int32), count)
    first = np.cumsum(count) - count
    added, output = _said(settings, np.arange(len(session)) > first[session], seed)
    think_s = settings.sessions.think_s(stream(seed, "think"), len(session))
    arrival_s = start_s[session] + before(think_s, first, session)
    history = before((added + output).astype(np.int64), first, session)
    shared = np.append(template_tokens, 0)[template].astype(np.int64)  # the last one is read by -1: none
    prompt = np.minimum(shared[session] + history + added, MAX_TOKENS)
    rows = _kept(settings, arrival_s)
    of = session[rows]
    after, think_ns = _waiting(settings, rows, (rows - first[of]).astype(np.int32), think_s)
    shares = settings.tenants.table()
    return Trace(
        arrival_ns=np.rint(arrival_s[rows] * NS_PER_S).astype(np.int64),
        prompt_tokens=prompt[rows].astype(np.int32),
        output_tokens=output[rows],
        prefix=template[of],
        prefixes=_tokens_of(template_tokens, settings, seed),
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source="generated",
        model_of=None if settings.model_zipf is None else model_of[of],
        tenants=tuple(shares),
        tenant_of=tenant[of] if shares else None,
        session=of if settings.sessions.mean_turns > 1 else None,
        after=after,
        think_ns=think_ns,
        priority_of=_priorities(settings, len(start_s), seed)[of] if settings.classes else None,
    )


def session_starts(settings: GeneratedWorkload, seed: int) -> tuple[Floats, Lengths]:
    """When sessions start, in order, and whose they are. Raises BadSettings when none does."""
    rate = settings.rate / settings.sessions.mean_turns
    pace = Pace(settings.arrivals, "workload.arrivals")
    end_s = inf if settings.duration_s is None else pace.at(settings.duration_s)
    plain_s = end_s
    if settings.requests is None:
        allowed = (
            f"small enough, with the arrivals' curve and flashes, to make at most {MAX_REQUESTS:,} requests"
        )
        require("workload.rate", settings.rate, settings.rate * end_s <= MAX_REQUESTS, allowed)
    else:
        plain_s = min(settings.requests / rate, end_s)
    starts, tenant = _merged(settings, rate, plain_s, seed)
    while settings.requests is not None and len(starts) < settings.requests and plain_s < end_s:
        plain_s = min(plain_s * 1.5, end_s)
        starts, tenant = _merged(settings, rate, plain_s, seed)
    if len(starts) == 0:
        raise BadSettings(
            f"workload.duration_s is {settings.duration_s!r}, but must be long enough for a session to start"
        )
    most = settings.requests or len(starts)  # each session has a turn at least: more cannot be needed
    return pace.when(starts[:most]), tenant[:most]


def _merged(settings: GeneratedWorkload, rate: float, until_s: float, seed: int) -> tuple[Floats, Lengths]:
    """The sessions of all tenants before `until_s` of the plain rate."""
    shares = settings.tenants.table()
    if not shares:
        starts = renewals(settings.arrivals, rate, until_s, seed, "arrivals")
        return starts, np.zeros(len(starts), np.int32)
    each = [
        renewals(_law(settings, name, seed), rate * share, until_s, seed, f"arrivals.{name}")
        if share
        else np.empty(0)
        for name, share in shares.items()
    ]
    starts = np.concatenate(each)
    order = np.argsort(starts, kind="stable")
    tenant = np.repeat(np.arange(len(each), dtype=np.int32), list(map(len, each)))
    return starts[order], tenant[order]


def _law(settings: GeneratedWorkload, tenant: str, seed: int) -> ArrivalSettings:
    """The process of a tenant."""
    median, sigma = settings.tenants.cv_median, settings.tenants.cv_sigma
    cv = (settings.tenants.cvs or {}).get(tenant)
    if cv is None:
        if median is None:
            return settings.arrivals
        cv = median * exp(sigma * float(stream(seed, f"tenant_cv.{tenant}").standard_normal()))
    return ArrivalSettings(family="gamma", cv=min(max(cv, 1 / LARGEST_CV), LARGEST_CV))


def _said(settings: GeneratedWorkload, follows: npt.NDArray[np.bool_], seed: int) -> tuple[Lengths, Lengths]:
    """What each turn adds, and its answer; where both go together, each is where a normal variable puts it."""
    count, together = len(follows), settings.correlation
    of_prompts, of_answers = stream(seed, "prompt_tokens"), stream(seed, "output_tokens")
    if together == 0:
        added, output = settings.prompt.draw(of_prompts, count), settings.output.draw(of_answers, count)
        if settings.follow_up is not None:
            later = settings.follow_up.draw(stream(seed, "follow_up_tokens"), count)
            added = np.where(follows, later, added)
        return added, output
    one, other = of_prompts.standard_normal(count), of_answers.standard_normal(count)
    added = settings.prompt.at(one)
    if settings.follow_up is not None:
        added = np.where(follows, settings.follow_up.at(one), added)
    return added, settings.output.at(together * one + (1 - together**2) ** 0.5 * other)


def _models(settings: GeneratedWorkload, start_s: Floats, seed: int) -> Lengths:
    weights = zipf_weights(settings.num_models, settings.model_zipf or 0.0)
    if settings.model_weights:
        weights *= np.array(settings.model_weights)
    rank = chosen(stream(seed, "models"), len(start_s), weights)
    for shift in sorted(settings.model_shifts, key=lambda shift: shift.at_s):
        later = chosen(stream(seed, "models"), len(start_s), np.array(shift.weights))
        rank = np.where(start_s < shift.at_s, rank, later)
    return rotated(rank, start_s, settings.rotate, settings.num_models)


def _template_tokens(settings: GeneratedWorkload, seed: int) -> Lengths:
    """The lengths of all models' templates, the first model's first. One more model changes no other's."""
    asked = settings.prefixes
    few = asked.of_a_model * settings.num_models <= MAX_TEMPLATES
    allowed = f"so few that all models together have at most {MAX_TEMPLATES:,}"
    require("workload.prefixes.count", asked.count, few, allowed)
    known = np.array([one.tokens for one in asked.top], np.int32)
    each = [
        np.concatenate((known, asked.tokens.draw(stream(seed, f"templates.{model}"), asked.count)))
        for model in range(settings.num_models)
    ]
    return np.concatenate(each)


def _templates(settings: GeneratedWorkload, model_of: Lengths, seed: int) -> Lengths:
    """Each session's template, -1 for none."""
    asked = settings.prefixes
    if asked.of_a_model == 0:
        return np.full(len(model_of), -1, np.int32)
    choice = chosen(stream(seed, "prefix"), len(model_of), asked.weights())
    shares = stream(seed, "prefix_share").random(len(model_of)) < asked.share
    return np.where(shares, model_of * asked.of_a_model + choice, -1).astype(np.int32)


def _tokens_of(template_tokens: Lengths, settings: GeneratedWorkload, seed: int) -> list[Tokens]:
    count = settings.prefixes.of_a_model
    check_templates("workload.prefixes.count", settings.prefixes.count, template_tokens)
    return [
        stream(seed, f"template_tokens.{index // count}.{index % count}").integers(
            settings.vocab, size=length, dtype=np.int32
        )
        for index, length in enumerate(template_tokens)
    ]


def _kept(settings: GeneratedWorkload, arrival_s: Floats) -> Ids:
    """The rows of a table of turns that become requests, in order of arrival."""
    end_s = YEAR_S if settings.duration_s is None else settings.duration_s
    rows = np.flatnonzero(arrival_s < end_s)
    allowed = "large enough, with the arrivals' curve and flashes, for a request within a year"
    require("workload.rate", settings.rate, len(rows) > 0, allowed)
    return rows[np.argsort(arrival_s[rows], kind="stable")][: settings.requests]


def _waiting(
    settings: GeneratedWorkload, rows: Ids, turn: Lengths, think_s: Floats
) -> tuple[Lengths | None, Times | None]:
    if not settings.sessions.wait or settings.sessions.mean_turns == 1:
        return None, None
    return waits(rows, turn, think_s)


def _priorities(settings: GeneratedWorkload, count: int, seed: int) -> Lengths:
    """The priority of each session."""
    shares = np.array([one.share for one in settings.classes], np.float64)
    of = chosen(stream(seed, "classes"), count, shares)
    return np.array([one.priority for one in settings.classes], np.int32)[of]
