"""What the guard costs: a slot taken and given back, and a refusal with its message."""

import pytest

from engine.errors import OverQuota
from engine.quotas import ConcurrencyQuota
from engine.settings import QuotaSettings
from sim.world import SimClock

pytestmark = pytest.mark.benchmark(group="frequent")


def test_reserve_and_release(measure):
    quota = ConcurrencyQuota(QuotaSettings(max_concurrent_requests=50), SimClock())

    def reserve_and_release():
        with quota.reserve("model", 0):
            pass

    measure(reserve_and_release, with_p99=True)
    assert quota.in_service == 0


def test_refused(measure):
    quota = ConcurrencyQuota(QuotaSettings(max_concurrent_requests=1, queue_capacity=0), SimClock())
    quota.reserve("model", 0)

    def refused():
        try:
            quota.reserve("model", 0)
        except OverQuota as refusal:
            return refusal.retry_after_s

    assert measure(refused, with_p99=True) > 0
