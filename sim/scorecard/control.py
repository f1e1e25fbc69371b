"""What decisions cost: routing among one, three and five models, and a quota check in each mode."""

import gc
import tracemalloc
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.clock import NS_PER_S
from engine.errors import OverQuota
from engine.quotas import Quotas
from engine.request import Request
from engine.routing import Router
from engine.settings import AllowanceSettings, QuotaSettings, RoutingSettings
from sim.scorecard.table import Table
from sim.scorecard.timing import Operation, Took, timed, us
from sim.world import SimClock

if TYPE_CHECKING:
    from collections.abc import Callable

POOL = "auto"
STRATEGIES = ("round_robin", "least_loaded", "cache_aware")
PUBLISHED_ROUTING = {
    1: ("0.5 us", "1.2 us", "15k", "0.5 MB"),
    3: ("0.7 us", "2.1 us", "12k", "1.2 MB"),
    5: ("0.8 us", "3.2 us", "10k", "2.1 MB"),
}
"""Models: mean, p99, requests a second, memory."""
PUBLISHED_QUOTA = {"normal": 2.1, "soft limit": 2.3, "hard limit": 2.8, "concurrent": 1.9, "emergency": 3.2}
"""Microseconds of a check."""
HELD, ASKING, BLOCKS = 4, 64, 32
SESSIONS = 1_000
APART_NS = 3_600  # all checks happen in one hour, so that nothing is forgotten
HARD = "hard limit"
TENANT, TOKENS = "t", 10
FAR = 10**15
MODEL = "m@1.0.0"


def routing(rounds: int) -> Table:
    """One decision and its release, among so many models with a replica each, of which any may answer."""
    rows = []
    for models, published in PUBLISHED_ROUTING.items():
        for strategy in STRATEGIES:
            took = timed(_decisions(*_router(models, strategy)), rounds=rounds)
            ours = (us(took.mean_ns), us(took.p99_ns), f"{NS_PER_S / took.mean_ns / 1e3:,.0f}k")
            theirs = published if strategy == STRATEGIES[0] else ("", "", "", "")
            rows.append(
                (str(models), strategy, *_by_turns(ours, theirs), _memory(models, strategy), theirs[3])
            )
    heads = ("models", "strategy", "mean", "published", "p99", "published", "decisions/s", "published")
    note = (
        f"A decision with its release, one core, {HELD} requests in flight a replica, {ASKING} requests by turns; "
        f"`cache_aware` on the names of {BLOCKS} blocks. Memory: the router and {SESSIONS:,} sessions. Published are "
        "requests a second of the whole system, ours are decisions."
    )
    return Table("Routing by number of models", (*heads, "memory", "published"), rows, note)


def quota(rounds: int) -> Table:
    """What eight limits cost, by what a request meets: the check alone, and all of a reservation."""
    rows = []
    for name, published in PUBLISHED_QUOTA.items():
        check = _check_took(_BOOKS[name](), rounds, is_refused=name == HARD)
        whole = _reservation_took(_BOOKS[name](), rounds, is_refused=name == HARD)
        rows.append((name, us(check.mean_ns), f"{published} us", us(check.p99_ns), us(whole.mean_ns)))
    note = (
        "Check: eight limits (hourly, daily, burst and concurrent, of a model and of a tenant), and the place given "
        "back. Reservation: with the mode's say, the grant, its settlement and refund, or a refusal in words with "
        "the time to come back. One core. Normal: far from every limit; soft limit: 87 % of the hour's tokens are "
        "used; hard limit: all are; concurrent: there is one place, and it is free; emergency: an operator has "
        "set that mode."
    )
    return Table("Quota check by mode", ("limit met", "check", "published", "p99", "reservation"), rows, note)


def _router(models: int, strategy: str) -> tuple[Router, list[Request]]:
    router = Router(RoutingSettings(strategy=strategy))
    keys = [number.to_bytes(16, "big") for number in range(BLOCKS)] if strategy == "cache_aware" else ()
    requests = [
        Request(number, POOL, np.zeros(100 + 37 * number % 900, dtype=np.int32), 64, 0, prefix_keys=keys)
        for number in range(ASKING)
    ]
    for number in range(models):
        seat = router.add(f"r{number}", POOL)
        seat.prefill_ns = 1_000.0
        router.observe(seat, 1_000 + number, 10.0, 0)
    for number in range(HELD * models):
        router.route(POOL, requests[number], 164, 0)
    return router, requests


def _decisions(router: Router, requests: list[Request]) -> Operation:
    route, release, turns = router.route, router.release, count()

    def decide() -> None:
        number = next(turns)
        request = requests[number % ASKING]
        release(POOL, route(POOL, request, 128, number), request, 128, number)

    return decide


def _memory(models: int, strategy: str) -> str:
    """What a router holds on to, with sessions that it remembers."""
    gc.collect()
    tracemalloc.start()
    try:
        router, requests = _router(models, strategy)
        for number in range(SESSIONS):
            asked = requests[number % ASKING]
            request = Request(number, POOL, asked.prompt_tokens, 64, 0, session=f"session {number}")
            router.release(POOL, router.route(POOL, request, 128, number), request, 128, number)
        return f"{tracemalloc.get_traced_memory()[0] / 1e6:.2f} MB"
    finally:
        tracemalloc.stop()


def _by_turns(ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[str]:
    return [each for pair in zip(ours, theirs, strict=False) for each in pair]


def _check_took(quotas: Quotas, rounds: int, *, is_refused: bool) -> Took:
    ledger = quotas.ledger(MODEL, TENANT)
    reserve, release, times = ledger.reserve, ledger.release, count(0, APART_NS)
    refused = 0

    def check() -> None:
        nonlocal refused
        if reserve(TOKENS, next(times)):
            release()
        else:
            refused += 1

    took = timed(check, rounds=rounds)
    assert bool(refused) == is_refused, "the check met what it is called after"
    return took


def _reservation_took(quotas: Quotas, rounds: int, *, is_refused: bool) -> Took:
    reserve, times = quotas.reserve, count(0, APART_NS)
    request = Request(0, MODEL, np.zeros(1, dtype=np.int32), TOKENS, 0, tenant=TENANT, priority=1)
    refused = 0

    def ask() -> None:
        nonlocal refused
        try:
            grant = reserve(request, MODEL, TOKENS, next(times))
        except OverQuota:
            refused += 1
            return
        assert grant is not None, "nobody is before it in the line"
        with grant:
            grant.settle(TOKENS)

    took = timed(ask, rounds=rounds)
    assert bool(refused) == is_refused, "the reservation met what it is called after"
    return took


def _in_emergency() -> Quotas:
    quotas = _quotas()
    quotas.set_mode("emergency")
    return quotas


def _used(tokens: int, quotas: Quotas) -> Quotas:
    """The same once so much of the hour is used."""
    ledger = quotas.ledger(MODEL, TENANT)
    taken = ledger.reserve(tokens, 0)
    assert taken, "there is room for what was used"
    ledger.release()
    return quotas


def _quotas(hourly: int = FAR, concurrent: int = 50) -> Quotas:
    rule: dict[str, Any] = {
        "hourly_tokens": hourly,
        "daily_tokens": 30 * hourly,
        "requests_per_s": 1e6,
        "burst_requests": 1_000,
        "concurrent_requests": concurrent,
    }
    limits = [AllowanceSettings(model="m", **rule), AllowanceSettings(tenant="*", **rule)]
    return Quotas(QuotaSettings(limits=limits), SimClock())


_BOOKS: "dict[str, Callable[[], Quotas]]" = {
    "normal": _quotas,
    "soft limit": lambda: _used(870_000_000, _quotas(hourly=10**9)),
    HARD: lambda: _used(10**9, _quotas(hourly=10**9)),
    "concurrent": lambda: _quotas(concurrent=1),
    "emergency": _in_emergency,
}
