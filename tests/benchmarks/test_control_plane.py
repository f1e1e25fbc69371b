"""What stands between a request and its replica, all together: route, session, eight limits, account, release."""

from statistics import median
from time import perf_counter_ns

import numpy as np
import pytest

from engine.quotas import Quotas
from engine.request import Request
from engine.routing import Router
from engine.settings import AllowanceSettings, QuotaSettings, RoutingSettings
from sim.world import SimClock

GOAL_US, GOAL_P99_US = 0.8, 1.6
MODEL = "m@1.0.0"
EIGHT = {
    "hourly_tokens": 10**12,
    "daily_tokens": 10**13,
    "requests_per_s": 10.0**7,
    "burst_requests": 10**6,
    "concurrent_requests": 10**4,
}

pytestmark = pytest.mark.benchmark(group="frequent")


def singles_ns(operation, count=4000):
    """Median and 99th percentile of single calls, what it costs to look at the clock taken off."""
    looks, took = [], []
    for number in range(count):
        begun_ns = perf_counter_ns()
        looks.append(perf_counter_ns() - begun_ns)
        begun_ns = perf_counter_ns()
        operation(number)
        took.append(perf_counter_ns() - begun_ns)
    return median(took) - median(looks), float(np.percentile(took, 99)) - median(looks)


def ask(number):
    prompt = np.zeros(64, dtype=np.int32)
    return Request(number, "m", prompt, 64, 0, tenant="t", session=f"session {number % 500}")


def test_route_quota_session_account_and_release_together_are_within_their_goal(within):
    """Goals in microseconds, median and p99."""
    router = Router(RoutingSettings(strategy="least_loaded"))
    for number in range(5):
        router.add(f"r{number}", MODEL)
    limits = [AllowanceSettings(model="m", **EIGHT), AllowanceSettings(tenant="*", **EIGHT)]
    ledger = Quotas(QuotaSettings(limits=limits), SimClock()).ledger(MODEL, "t")
    requests = [ask(number) for number in range(1000)]

    def decide(number):
        request = requests[number % 1000]
        seat = router.route(MODEL, request, 128, number)
        if ledger.reserve(128, number):
            ledger.release()
        router.release(MODEL, seat, request, 128, number)

    within(lambda: zip(*[singles_ns(decide) for _ in range(15)], strict=True), (GOAL_US, GOAL_P99_US))
    assert router.sessions.num_hits > 10_000
