"""Limits and modes that change under load: nothing is lost, nobody is forgotten, the books add up."""

from collections import Counter
from contextlib import suppress
from random import Random

import pytest
import simpy

from engine.clock import to_ns
from engine.errors import BadRequest, DeadlinePassed, OverQuota
from engine.quotas import Quotas
from engine.request import Request
from engine.settings import MODES, AllowanceSettings, ModeSettings, QuotaSettings

LADDER = {
    "warning": ModeSettings(at=0.5),
    "throttled": ModeSettings(at=0.6),
    "limited": ModeSettings(at=0.7),
    "emergency": ModeSettings(at=0.9, min_priority=1),
}
VISITS = 400


def rule(random, **whose):
    """Some limits, or none."""
    limits = {
        "hourly_tokens": random.choice([None, 200, 900]),
        "hourly_requests": random.choice([None, 30]),
        "daily_requests": random.choice([None, 60, 400]),
        "concurrent_requests": random.choice([None, 1, 3]),
        "concurrent_tokens": random.choice([None, 80]),
        "sliding": random.random() < 0.5,
    }
    if random.random() < 0.5:
        limits |= {"requests_per_s": random.choice([0.02, 1.0]), "burst_requests": random.choice([1, 5])}
    if random.random() < 0.4:
        limits |= {"tokens_per_s": random.choice([1.0, 20.0]), "burst_tokens": random.choice([60, 200])}
    return AllowanceSettings(**whose, **limits)


def some(random):
    """Settings at random."""
    whose = [{"model": "m"}, {"tenant": "*"}, {"model": "*", "tenant": "t1"}]
    return QuotaSettings(
        limits=[rule(random, **each) for each in whose if random.random() < 0.6],
        modes=dict(LADDER) if random.random() < 0.5 else {},
        max_concurrent_requests=random.choice([2, 10]),
        queue_capacity=random.choice([0, 5, 40]),
        max_wait_s=random.choice([0.0, 30.0, 600.0]),
        tenant_weights={"t0": random.choice([1.0, 3.0])},
    )


class World:
    """Clients that come, wait, fail and go; and an operator who changes everything."""

    def __init__(self, clock, seed):
        self.random = Random(seed)  # noqa: S311  seeded
        self.clock = clock
        self.quotas = Quotas(some(self.random), clock, lambda told: None)
        self.ends = Counter()

    async def visit(self, number, prompt):
        random, clock = self.random, self.clock
        try:
            await clock.sleep(to_ns(random.randrange(8000)))
            model, tenant, tokens = random.choice("mn"), f"t{random.randrange(4)}", random.randrange(1, 60)
            deadline_ns = clock.now_ns() + to_ns(random.randrange(1, 400)) if random.random() < 0.3 else None
            priority = random.randrange(3)
            request = Request(number, model, prompt, 1, clock.now_ns(), tenant, None, priority, deadline_ns)
            with await self.quotas.admit(request, f"{model}@1.0.0", tokens) as grant:
                await clock.sleep(to_ns(random.randrange(60)))
                if random.random() < 0.8:
                    grant.settle(random.randrange(tokens + 1))
            self.ends["served"] += 1
        except (OverQuota, DeadlinePassed, BadRequest, simpy.Interrupt) as error:
            self.ends[type(error).__name__] += 1

    async def operate(self, visits):
        random, quotas = self.random, self.quotas
        for _ in range(45):
            await self.clock.sleep(to_ns(random.randrange(1, 400)))
            what = random.random()
            visit = random.choice(visits)
            if what < 0.4 and visit.is_alive:
                visit.interrupt()
            elif what < 0.6:
                quotas.update(some(random))
            elif what < 0.8:
                whose = {"model": random.choice([None, "m"]), "tenant": random.choice([None, "t1"])}
                quotas.set_mode(random.choice([None, None, *MODES]), **whose)
            elif what < 0.9:
                with suppress(BadRequest):  # a tenant without limits
                    quotas.reset(model=random.choice([None, "m"]), tenant=random.choice([None, "t1"]))
            quotas.check_integrity()
        for model in (None, "m"):
            for tenant in (None, "t1"):
                quotas.set_mode(None, model=model, tenant=tenant)


@pytest.mark.parametrize("seed", range(5))
def test_everybody_gets_an_answer_and_the_books_add_up_whatever_changes(clock, prompt, seed):
    world = World(clock, seed)
    visits = [clock.spawn(world.visit(number, prompt)) for number in range(VISITS)]
    clock.spawn(world.operate(visits))
    for _ in range(60_000):
        if clock.env.peek() > to_ns(50_000):
            break
        clock.env.step()
    else:
        pytest.fail("a line that looks at itself for ever")
    world.quotas.check_integrity()
    assert sum(world.ends.values()) == VISITS
    assert world.ends["served"] > 30
    assert world.quotas.in_service == world.quotas.num_waiting == 0


def new_limits(**limits):
    return QuotaSettings(limits=[AllowanceSettings(model="m", **limits)], max_wait_s=0.0, queue_capacity=0)


def test_a_limit_that_is_new_counts_from_then_on_and_is_not_refunded_what_came_before(make, ask):
    quotas = make()
    before = [ask(quotas, 40, number=number) for number in range(3)]
    quotas.update(new_limits(concurrent_tokens=50, hourly_tokens=100, tokens_per_s=1.0, burst_tokens=60))
    assert ask(quotas, 50).tokens == 50
    for grant in before:
        grant.settle(1)
        grant.release()
        quotas.check_integrity()
    assert isinstance(ask(quotas, 5), OverQuota)
    assert isinstance(ask(quotas, 11), OverQuota)


@pytest.mark.parametrize("sliding", [False, True])
def test_what_is_spent_stays_spent_when_a_window_begins_to_slide_or_ceases_to(make, ask, sliding):
    quotas = make({"model": "m", "hourly_tokens": 100, "sliding": sliding})
    ask(quotas, 70, at_s=100).settle(70)
    quotas.update(new_limits(hourly_tokens=100, sliding=not sliding))
    assert isinstance(ask(quotas, 31, at_s=200), OverQuota)
    assert ask(quotas, 30, at_s=200).tokens == 30
    assert ask(quotas, 100, at_s=3600 + 261).tokens == 100


def test_a_burst_whose_rate_has_changed_takes_back_only_what_it_gave(make, ask):
    quotas = make({"model": "m", "tokens_per_s": 1000.0, "burst_tokens": 1000})
    grant = ask(quotas, 900)
    quotas.update(new_limits(tokens_per_s=1.0, burst_tokens=1000))
    assert ask(quotas, 990).tokens == 990
    grant.release()
    assert isinstance(ask(quotas, 50), OverQuota)
    quotas.check_integrity()


@pytest.mark.parametrize("what", ["requests", "tokens"])
def test_a_faster_rate_lets_nobody_wait_for_the_slower_one(make, ask, what):
    quotas = make({"model": "m", f"{what}_per_s": 0.001, f"burst_{what}": 10})
    for number in range(10):
        ask(quotas, 1, number=number).settle(1)
    for _ in range(5):
        assert isinstance(ask(quotas, 1), OverQuota)
    quotas.update(new_limits(**{f"{what}_per_s": 1.0, f"burst_{what}": 10}))
    refusal = ask(quotas, 1)
    assert isinstance(refusal, OverQuota)  # what was used is used
    assert refusal.retry_after_s <= 6  # behind the five that were told before
    assert ask(quotas, 1, at_s=1).tokens == 1


BOTH = {"requests_per_s": 1.0, "burst_requests": 10, "tokens_per_s": 0.01, "burst_tokens": 50}
REQUESTS, TOKENS = (
    {name: value for name, value in BOTH.items() if what in name} for what in ("requests", "tokens")
)


def test_tokens_of_a_burst_stay_used_when_requests_get_one_too_and_when_they_lose_it(make, ask):
    quotas = make({"model": "m", **TOKENS})
    ask(quotas, 40).settle(40)
    for limits in (BOTH, TOKENS, BOTH):
        quotas.update(new_limits(**limits))
        refusal = ask(quotas, 11)
        assert isinstance(refusal, OverQuota)
        assert refusal.limit == "tokens_per_s"
        grant = ask(quotas, 10)
        assert grant.tokens == 10
        grant.release()


def test_requests_of_a_burst_say_nothing_of_tokens(make, ask):
    quotas = make({"model": "m", **REQUESTS, "requests_per_s": 0.001})
    ask(quotas, 40).settle(40)
    quotas.update(new_limits(**TOKENS))
    assert ask(quotas, 50).tokens == 50


def test_who_is_refused_after_a_limit_has_changed_waits_for_nobody_who_was_told_of_the_old_one(make, ask):
    quotas = make({"model": "m", "hourly_requests": 1})
    ask(quotas).settle(10)
    for hours in range(1, 9):
        assert ask(quotas).retry_after_s == 3600 * hours
    quotas.update(new_limits(hourly_requests=2))
    ask(quotas).settle(10)
    assert ask(quotas).retry_after_s == 3600
