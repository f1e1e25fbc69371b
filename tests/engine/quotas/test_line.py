"""The line before a model: by priority that ages, fair between tenants, bounded, and nobody starves."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from engine.clock import NS_PER_S, to_ns
from engine.errors import OverQuota
from engine.quotas.line import Line, Waiter
from engine.request import Request
from engine.settings import AllowanceSettings, QuotaSettings

LONG = 10**6
PROMPT = np.zeros(1, dtype=np.int32)


def test_a_higher_priority_goes_first_and_an_earlier_deadline_among_equals(make, live, clock):
    quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=100, max_wait_s=60.0), []
    live(quotas, hold_s=1.0, number=0)
    live(quotas, at_s=0.1, number=1, log=log)
    live(quotas, at_s=0.2, number=2, log=log, deadline_s=9.0)
    live(quotas, at_s=0.3, number=3, log=log, priority=1)
    live(quotas, at_s=0.4, number=4, log=log, deadline_s=5.0)
    clock.env.run(until=to_ns(10))
    assert [entry[0].id for entry in log] == [3, 4, 2, 1]


def test_age_makes_up_for_priority(make, live, clock):
    quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=1000, aging_s=5.0), []
    live(quotas, number=0, hold_s=1.0)
    live(quotas, number=1, at_s=0.1, log=log)
    for number in range(60):
        live(quotas, number=100 + number, at_s=0.2 + number * 0.5, hold_s=1.0, priority=2, log=log)
    clock.env.run(until=to_ns(100))
    waited_s = next((entry[2] - entry[1]) / NS_PER_S for entry in log if entry[0].id == 1)
    assert 5 < waited_s < 21  # two steps of priority are worth ten seconds; the line itself had grown


def test_without_aging_the_lowest_would_starve(make, live, clock):
    quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=1000, aging_s=1e9), []
    live(quotas, number=0, hold_s=1.0)
    live(quotas, number=1, at_s=0.1, log=log)
    for number in range(60):
        live(quotas, number=100 + number, at_s=0.2 + number * 0.5, hold_s=1.0, priority=2, log=log)
    clock.env.run(until=to_ns(50))
    assert 1 not in [entry[0].id for entry in log]


def test_a_flood_of_one_tenant_costs_the_others_nothing(make, live, clock):
    """The quiet tenant's waits beside a flood: never more than one service longer than alone."""
    waits = {}
    for flood in (0, 2000):
        quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=50), []
        start_s = clock.now_ns() / NS_PER_S
        for number in range(flood):
            live(quotas, at_s=start_s + 0.001 * number, hold_s=0.1, tenant="flood", log=log, number=number)
        for number in range(40):
            live(
                quotas,
                at_s=start_s + 0.5 * number,
                hold_s=0.1,
                tenant="quiet",
                log=log,
                number=10_000 + number,
            )
        clock.env.run(until=clock.now_ns() + to_ns(400))
        mine = [entry for entry in log if entry[0].tenant == "quiet"]
        assert [entry[3] for entry in mine] == ["served"] * 40
        waits[flood] = [(entry[2] - entry[1]) / NS_PER_S for entry in mine]
    assert max(waits[0]) == 0
    assert max(waits[2000]) <= 0.2 + 1e-9


def test_the_one_who_is_shed_is_of_the_tenant_with_the_most_and_told_when_to_come_back(make, live, clock):
    quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=4), []
    live(quotas, number=0, hold_s=10.0)
    for number in range(1, 5):
        live(quotas, number=number, at_s=number * 0.1, tenant="flood", log=log, hold_s=1.0)
    live(quotas, number=9, at_s=1.0, tenant="quiet", log=log, hold_s=1.0)
    live(quotas, number=10, at_s=1.1, tenant="flood", log=log, hold_s=1.0)
    clock.env.run(until=to_ns(5))
    refused = {entry[0].id: entry[3] for entry in log}
    assert set(refused) == {4, 10}
    assert all(isinstance(error, OverQuota) and error.retry_after_s > 0 for error in refused.values())
    clock.env.run(until=to_ns(100))
    assert Counter(str(entry[3])[:6] for entry in log)["served"] == 4


@pytest.mark.parametrize(("weights", "share"), [({}, 0.5), ({"a": 3.0}, 0.75)])
def test_tenants_that_wait_get_tokens_by_their_weights(make, live, clock, weights, share):
    """Two backlogged tenants, one with long requests: their service never differs by more than two requests."""
    quotas = make({"model": "m", "concurrent_requests": 1}, queue_capacity=LONG, tenant_weights=weights)
    log, worst = [], 0.0
    for number in range(400):
        live(quotas, 100, hold_s=1.0, tenant="a", log=log, number=number)
        live(quotas, 25, hold_s=0.25, tenant="b", log=log, number=1000 + number)
    served = Counter()
    clock.env.run(until=to_ns(200))
    for request, _, admitted_ns, _ in sorted(log, key=lambda entry: entry[2]):
        served[request.tenant] += 100 if request.tenant == "a" else 25
        if admitted_ns > to_ns(10):
            difference = abs(served["a"] / (weights.get("a", 1.0)) - served["b"])
            worst = max(worst, difference)
    assert served["a"] / sum(served.values()) == pytest.approx(share, abs=0.03)
    assert worst <= 2 * 100


def test_a_tenant_that_was_silent_saves_nothing_up(make, live, clock):
    quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=LONG), []
    for number in range(200):
        live(quotas, 10, hold_s=1.0, tenant="a", log=log, number=number)
    for number in range(50):
        live(quotas, 10, at_s=100.5, hold_s=1.0, tenant="late", log=log, number=1000 + number)
    clock.env.run(until=to_ns(121))
    latest = [entry[0].tenant for entry in sorted(log, key=lambda entry: entry[2])][101:]
    assert abs(latest.count("a") - latest.count("late")) <= 2


def test_what_was_not_used_is_taken_off_the_bill(make, live, clock):
    quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=LONG), []
    for number in range(300):
        live(quotas, 100, used=10, hold_s=1.0, tenant="modest", log=log, number=number)
        live(quotas, 100, used=100, hold_s=1.0, tenant="greedy", log=log, number=1000 + number)
    clock.env.run(until=to_ns(110))
    served = Counter(entry[0].tenant for entry in log)
    assert served["modest"] > 8 * served["greedy"]


def test_a_tenant_at_its_own_limit_holds_nobody_up(make, live, clock):
    quotas = make(
        {"model": "m", "concurrent_requests": 10},
        {"tenant": "busy", "concurrent_requests": 1},
        queue_capacity=100,
    )
    log = []
    for number in range(5):
        live(quotas, number=number, hold_s=10.0, tenant="busy", log=log)
    for number in range(5):
        live(quotas, number=100 + number, at_s=0.1, hold_s=1.0, tenant="other", log=log)
    clock.env.run(until=to_ns(2))
    assert sorted(entry[0].id for entry in log) == [100, 101, 102, 103, 104]
    clock.env.run(until=to_ns(60))
    assert len(log) == 10


def test_whoever_is_small_does_not_overtake_whoever_waits_for_the_model(make, live, clock):
    quotas = make({"model": "m", "concurrent_tokens": 100}, queue_capacity=100)
    log = []
    live(quotas, 80, number=0, hold_s=5.0, log=log)
    live(quotas, 90, number=1, at_s=1.0, hold_s=5.0, log=log)
    live(quotas, 10, number=2, at_s=2.0, hold_s=1.0, log=log)
    clock.env.run(until=to_ns(20))
    admitted_s = {entry[0].id: entry[2] / NS_PER_S for entry in log}
    assert admitted_s == {0: 0.0, 1: 5.0, 2: 5.0}


def test_a_limit_that_time_lifts_lets_in_at_its_moment(make, live, clock):
    quotas, log = (
        make({"model": "m", "requests_per_s": 2.0, "burst_requests": 1}, max_wait_s=100.0, queue_capacity=50),
        [],
    )
    for number in range(10):
        live(quotas, number=number, log=log)
    clock.env.run(until=to_ns(30))
    admitted = sorted(entry[2] / NS_PER_S for entry in log)
    assert admitted == pytest.approx([number * 0.5 for number in range(10)], abs=1e-6)


def test_waiting_for_time_ends_when_patience_does(make, live, clock):
    quotas = make(
        {"model": "m", "requests_per_s": 1.0, "burst_requests": 1}, max_wait_s=3.5, queue_capacity=50
    )
    log = []
    for number in range(10):
        live(quotas, number=number, log=log)
    clock.env.run(until=to_ns(30))
    served = [entry for entry in log if entry[3] == "served"]
    refused = [entry[3] for entry in log if entry[3] != "served"]
    assert len(served) == 4
    assert all(isinstance(error, OverQuota) and error.retry_after_s > 0 for error in refused)
    assert quotas.num_waiting == 0


@pytest.mark.parametrize("whose", [{"model": "m"}, {"tenant": "*"}, {"model": "m", "tenant": "*"}])
def test_whoever_waits_for_a_place_is_refused_when_the_day_is_used_up_meanwhile(make, live, clock, whose):
    rules = {("m", None): {"concurrent_requests": 1}}
    key = whose.get("model"), whose.get("tenant")
    rules[key] = {**rules.get(key, {}), "daily_requests": 2}
    limits = [{"model": model, "tenant": tenant, **rule} for (model, tenant), rule in rules.items()]
    quotas = make(*limits, queue_capacity=10, max_wait_s=30.0)
    log = []
    for number in range(5):
        live(quotas, number=number, at_s=0.1 * number, hold_s=60.0, log=log)
    clock.env.run(until=to_ns(200))
    refused = [entry[3] for entry in log if entry[3] != "served"]
    assert [error.limit for error in refused] == ["daily_requests"] * 3
    assert all(86_000 < error.retry_after_s <= 2 * 86_400 for error in refused)
    assert quotas.num_waiting == quotas.in_service == 0


def test_a_place_in_another_models_line_opens_with_the_tenants_own(make, live, clock):
    quotas = make({"tenant": "*", "concurrent_requests": 1}, queue_capacity=10)
    log = []
    live(quotas, number=0, hold_s=1.0, model="m", log=log)
    live(quotas, number=1, at_s=0.1, hold_s=1.0, model="n", log=log)
    clock.env.run(until=to_ns(5))
    assert [(entry[0].id, entry[2]) for entry in log] == [(0, 0), (1, to_ns(1))]


class PlainLine:
    """The rule of the line, by looking at everybody each time."""

    def __init__(self, aging_s, weights):
        self.aging_ns, self.weights = to_ns(aging_s), weights
        self.waiters, self.aside, self.served = {}, set(), {}

    def tenants(self):
        return [waiter.request.tenant for waiter in self.waiters]

    def add(self, waiter, number):
        tenant = waiter.request.tenant
        if tenant not in self.tenants():
            least = min((self.served[name] for name in self.tenants()), default=0.0)
            self.served[tenant] = max(self.served.get(tenant, 0.0), least)
        self.waiters[waiter] = number
        self.aside.discard(tenant)

    def leave(self, waiter):
        del self.waiters[waiter]
        self.aside.discard(waiter.request.tenant)
        if not self.waiters:
            self.served.clear()

    def candidates(self):
        """Everybody who may be next: the tenants with the least service, in the band that goes first."""
        here = [waiter for waiter in self.waiters if waiter.request.tenant not in self.aside]
        oldest = {waiter.priority: waiter.arrival_ns for waiter in reversed(self.waiters)}
        if not here:
            return []
        band = min((oldest[each.priority] - each.priority * self.aging_ns, -each.priority) for each in here)[
            1
        ]
        here = [waiter for waiter in here if waiter.priority == -band]
        least = min(self.served[waiter.request.tenant] for waiter in here)
        tenants = [tenant for tenant in self.tenants() if self.served[tenant] == least]
        first = {}
        for waiter in sorted(here, key=lambda each: (each.due_ns, self.waiters[each])):
            if waiter.request.tenant in tenants:
                first.setdefault(waiter.request.tenant, waiter)
        return list(first.values())


@pytest.mark.parametrize("seed", range(6))
def test_the_line_is_the_plain_rule(seed):
    random, weights = Random(seed), {"a": 2.0}  # noqa: S311  seeded
    line, plain, now_ns = Line(5.0, weights), PlainLine(5.0, weights), 0
    for number in range(1500):
        now_ns += random.randrange(NS_PER_S)
        tenant = random.choice("abcde")
        what = random.random()
        if what < 0.35 and len(plain.waiters) < 25:
            deadline_ns = now_ns + random.randrange(10**10) if random.random() < 0.5 else None
            priority = random.randrange(4)
            request = Request(number, "m", PROMPT, 1, now_ns, tenant, None, priority, deadline_ns)
            waiter = Waiter(request, None, 1, None, now_ns, to_ns(30))
            line.add(waiter)
            plain.add(waiter, number)
        elif what < 0.6 and plain.waiters:
            gone = random.choice(list(plain.waiters))
            line.leave(gone)
            plain.leave(gone)
        elif what < 0.7 and tenant in plain.tenants():
            line.set_aside(tenant, None)
            plain.aside.add(tenant)
        elif what < 0.8 and tenant in plain.tenants():
            line.call_back(tenant)
            plain.aside.discard(tenant)
        elif tenant in plain.served:
            tokens = random.randrange(-3, 9) * 4
            line.charge(tenant, tokens)
            plain.served[tenant] += tokens / weights.get(tenant, 1.0)
        candidates = plain.candidates()
        assert (line.next() in candidates) if candidates else (line.next() is None)
        assert line.num_waiting == len(plain.waiters)
        if plain.waiters:
            most = max(plain.tenants().count(name) for name in plain.tenants())
            assert line.places_of(line.fullest()) == most


def test_a_line_that_is_never_empty_takes_no_more_room():
    line, waiting = Line(5.0, {}), []
    for number in range(20_000):
        request = Request(number, "m", PROMPT, 1, number, tenant=f"t{number % 5_000}")
        waiting.append(Waiter(request, None, 1, None, number, to_ns(30)))
        line.add(waiting[-1])
        line.charge(request.tenant, 5)
        if len(waiting) > 50:
            line.leave(waiting.pop(0))
    assert len(line._served) < 3_000
    assert len(line._by_served._heap) < 200
    assert len(line._bands[0].by_age._heap) < 200
    assert len(line._bands[0].tenants._heap) < 200


def test_time_brings_back_whoever_it_was_that_had_to_wait(make, live, clock):
    """Fifty tenants at their own pace: each is looked at when its moment has come, and admitted then."""
    quotas, log = (
        make(
            {"tenant": "*", "requests_per_s": 0.1, "burst_requests": 1}, max_wait_s=60.0, queue_capacity=500
        ),
        [],
    )
    for number in range(150):
        tenant = f"t{number % 50}"
        live(quotas, number=number, at_s=0.1 * (number % 50), tenant=tenant, log=log)
    clock.env.run(until=to_ns(60))
    assert [entry[3] for entry in log] == ["served"] * 150
    for number in range(50):
        admitted_s = sorted(entry[2] / NS_PER_S for entry in log if entry[0].tenant == f"t{number}")
        assert admitted_s == pytest.approx([0.1 * number + 10 * turn for turn in range(3)], abs=1e-6)


def test_weights_and_aging_change_for_those_who_wait_already(make, live, clock):
    quotas = make({"model": "m", "concurrent_requests": 1}, queue_capacity=LONG)
    log = []
    for number in range(200):
        live(quotas, 10, hold_s=1.0, tenant="a", log=log, number=number)
        live(quotas, 10, hold_s=1.0, tenant="b", log=log, number=1000 + number)
    clock.env.run(until=to_ns(40.5))
    before = len(log)
    limits = [AllowanceSettings(model="m", concurrent_requests=1)]
    quotas.update(QuotaSettings(limits=limits, queue_capacity=LONG, tenant_weights={"a": 4.0}))
    clock.env.run(until=to_ns(90.5))
    served = Counter(entry[0].tenant for entry in log[before:])
    assert served["a"] == pytest.approx(4 * served["b"], abs=4)
