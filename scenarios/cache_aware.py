"""Any of five models may answer, and each remembers another part of what is asked: requests go where theirs lies.

One has answered alone for a while and has much memory; then the others come, with less, and one with hardly any.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from engine.clock import processor_ns
from engine.engine import Engine
from engine.figures import Distribution
from engine.request import Request
from engine.routing import Seat
from engine.settings import above, require
from engine.settings import at_least as least
from sim.checks import Check, all_completed, at_least, at_most, equal_share, gains
from sim.faults import check_replica
from sim.metrics import token_hit_ratio
from sim.runs import Run, Window
from sim.stage import Stage

DECISION_TIMES = "modelyard:router_decision_duration_seconds"
ROUNDS, ROUTED_AGAIN, IN_FLIGHT = 50, 200, 1  # in flight are about as many as in the run
STOP = 3  # times the goal: beyond that, no machine is to blame
YARDSTICK_US = 0.45
"""What the least of five sums of four terms takes where the goal for a decision was set."""


@dataclass
class Settings:
    """Who answers alone and for how long, and what must come of it."""

    name: str
    first: str
    alone_requests: int
    min_share_of_best: float
    max_share_of_worst: float
    max_unfairness: float
    min_gain: float
    max_routing_us: float

    def __post_init__(self) -> None:
        least("scenario.alone_requests", self.alone_requests, 0)
        for name in ("min_share_of_best", "max_share_of_worst"):
            share = getattr(self, name)
            require(f"scenario.{name}", share, 0 <= share <= 1, "from 0 to 1")
        for name in ("max_unfairness", "max_routing_us"):
            above(f"scenario.{name}", getattr(self, name), 0)


def script(stage: Stage, s: Settings) -> None:
    check_replica("scenario.first", s.first, stage.engine)
    preload = stage.engine.settings.models.preload
    require("models.preload", preload, preload, "true: who answers first is in memory, and the others wait")
    enough = s.alone_requests < len(stage.trace)
    require("scenario.alone_requests", s.alone_requests, enough, f"fewer than {len(stage.trace)} requests")
    opens_s = stage.trace.arrival_s(s.alone_requests / len(stage.trace))
    for replica in stage.engine.replicas:
        if replica != s.first:
            stage.act(0.0, partial(turn, stage, replica, drained=True))
            stage.act(opens_s, partial(turn, stage, replica, drained=False))


def turn(stage: Stage, replica: str, engine: Engine, *, drained: bool) -> None:
    """An operator keeps a replica back, or lets it serve, which leaves a mark."""
    now_ns = engine.clock.now_ns()
    engine.router.drain(replica, now_ns, drained=drained)
    if not drained:
        stage.recorder.sample(now_ns, replica, "opened", 1.0)


def measure(stage: Stage, _: Settings) -> dict[str, float]:
    """What a decision takes: in the run, and when it is over, of the last requests once more, one after the other."""
    engine = stage.engine
    last = range(max(0, len(stage.trace) - ROUTED_AGAIN), len(stage.trace))
    requests = [stage.trace.request(number) for number in last]
    for request in requests:
        engine.explain(request)  # which also names the blocks of its prompt
    taken = {
        "routing_us": min(routing_us(engine, requests) for _ in range(ROUNDS)),
        "yardstick_us": min(yardstick_us() for _ in range(ROUNDS)),
    }
    timed = [
        each for each in engine.figures() if isinstance(each, Distribution) and each.name == DECISION_TIMES
    ]
    for each in timed:
        (counted,) = each.values.values()
        taken["routing_in_run_us"] = 1e6 * counted.total / max(1, sum(counted.counts))
    return taken


def routing_us(engine: Engine, requests: Sequence[Request]) -> float:
    """What it takes to route a request and release it, in the mean."""
    router, held = engine.router, deque[tuple[Seat, Request]]()
    route, release = router.route, router.release
    begun_ns = processor_ns()
    for request in requests:
        held.append((route(request.model, request, request.max_tokens, 0), request))
        if len(held) > IN_FLIGHT:
            seat, ended = held.popleft()
            release(ended.model, seat, ended, ended.max_tokens, 0)
    taken_ns = processor_ns() - begun_ns
    for seat, ended in held:
        release(ended.model, seat, ended, ended.max_tokens, 0)
    return taken_ns / len(requests) / 1e3


def yardstick_us(calls: int = 2_000) -> float:
    """What the same bit of work takes on this machine, now: it may be slower, or busy."""
    rows = [(number, 2.0, 3.0, 4.0) for number in range(5)]
    begun_ns = processor_ns()
    for _ in range(calls):
        best = inf
        for one, two, three, four in rows:
            score = one + 0.5 * two + 0.25 * three - four
            if score < best:  # noqa: PLR1730  as a router would have it
                best = score
    return (processor_ns() - begun_ns) / calls / 1e3


def checks(run: Run, s: Settings) -> Iterator[Check]:
    window = opened(run, s)
    shares, hits = by_model(run, window)
    told = " ".join(f"{name} {shares[name]:.2f}/{hits[name]:.2f}" for name in shares)
    note = f"n={window.count}; share/hit ratio: {told}"
    ranked = sorted(hits, key=lambda name: hits[name])

    yield all_completed(run.whole)
    best, worst = (shares[ranked[-1]], shares[ranked[0]]) if ranked else (None, None)
    name = "share of the model with the highest hit ratio"
    yield at_least(name, best, s.min_share_of_best, note, published="67 %")
    most, fewest = (max(shares.values()), min(shares.values())) if ranked else (None, None)
    yield no_more("and the largest share that another one has beyond it", most, best, dealt(window))
    name = "share of the model with the lowest hit ratio"
    yield at_most(name, worst, s.max_share_of_worst, published="8 %")
    yield no_more("and what it has beyond the smallest share of another one", worst, fewest, dealt(window))
    yield fairness(run, s)
    note = "relative, over round_robin on the same requests"
    yield gains("gain in the hit ratio", gained(run, s), s.min_gain, note, published="15 %")
    yield quickness(run, s)


def opened(run: Run, s: Settings) -> Window:
    """The requests that came when all were there."""
    marks = [run.mark_s("opened", replica) for replica in run.replicas if replica != s.first]
    known = [mark for mark in marks if mark is not None]
    return run.after(max(known) if len(known) == len(marks) else None)


def by_model(run: Run, window: Window) -> tuple[dict[str, float], dict[str, float]]:
    """The share and the hit ratio of each replica's model; nothing where nobody was served."""
    served = window.completed
    shares, hits = {}, {}
    for replica in run.replicas if len(served) else []:
        its = served[served["replica"] == replica]
        shares[replica] = len(its) / len(served)
        hits[replica] = token_hit_ratio(its) or 0.0
    return shares, hits


def dealt(window: Window) -> int:
    """What chance deals out: sessions, whose turns stay together, and each request that has none."""
    sessions = window.requests["session"]
    return int(sessions.nunique() + sessions.isna().sum())


def no_more(name: str, one: float | None, other: float | None, count: int) -> Check:
    """One share of what was dealt is no larger than another; undecided where it may be by chance alone."""
    if one is None or other is None:
        return at_most(name, None, 0)
    by_chance = 3 * ((one + other) / count) ** 0.5
    check = at_most(name, one - other, 0)
    if check.verdict == "fail" and one - other <= by_chance:
        return replace(check, verdict="inconclusive", note=f"chance alone gives up to {by_chance:.3f}")
    return check


def fairness(run: Run, s: Settings) -> Check:
    """With prompts that have nothing in common, no model can remember more of them than another."""
    name, note = (
        "distance from an equal share where all hit ratios are equal",
        "prompts have nothing in common",
    )
    alike, parts = run.beside.get("nothing_shared", []), len(run.replicas)
    limit = s.max_unfairness / parts
    if not alike:
        return at_most(name, None, limit, note)
    window = opened(alike[0], s)
    shares, hits = by_model(alike[0], window)
    error = max((abs(share - 1 / parts) for share in shares.values()), default=None)
    note = f"n={window.count}; {note}; hit ratios up to {max(hits.values(), default=0):.2g}"
    published = "10 %, of 20 % each"
    return equal_share(name, error, limit, window.count, parts, note, published=published)


def gained(run: Run, s: Settings) -> list[float]:
    """What the strategy adds to the hit ratio, seed by seed, as a share of what round robin has."""
    pairs = zip(run.beside.get("itself", []), run.beside.get("round_robin", []), strict=False)
    ratios = [[token_hit_ratio(opened(each, s).completed) for each in pair] for pair in pairs]
    return [ours / theirs - 1 for ours, theirs in ratios if ours is not None and theirs]


def quickness(run: Run, s: Settings) -> Check:
    """The time of a decision, as it would be on the machine that the goal was set on if this one is slower."""
    name, measured = "mean routing time, us", run.measured
    if "routing_us" not in measured:
        return at_most(name, None, s.max_routing_us)
    slowness = max(1.0, measured["yardstick_us"] / YARDSTICK_US)
    note = f"{measured['routing_us']:.3g} on a machine that takes {slowness:.2g} times as long"
    if "routing_in_run_us" in measured:
        note += f"; in the run, between all else, {measured['routing_in_run_us']:.3g}"
    taken_us = measured["routing_us"] / slowness
    check = at_most(name, taken_us, s.max_routing_us, note, published="0.8 us, goal 5 us")
    if check.verdict == "fail" and taken_us <= STOP * s.max_routing_us:
        return replace(check, verdict="inconclusive", note=f"{note}: a busy machine may take that long")
    return check
