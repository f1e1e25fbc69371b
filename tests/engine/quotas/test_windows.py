"""Windows and bursts against lists of everything that was ever granted."""

from bisect import bisect_left
from math import exp, lgamma, log
from random import Random

import numpy as np
import pytest

from engine.clock import NS_PER_S, to_ns
from engine.quotas.windows import PARTS, Burst, Window

HOUR_NS = 3600 * NS_PER_S


def within(granted, start_ns, end_ns):
    return sum(amount for at_ns, amount in granted if start_ns <= at_ns < end_ns)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_no_window_ever_holds_more_than_its_limit_and_a_fixed_one_all_of_it(sliding, seed):
    random, limit = Random(seed), 100  # noqa: S311  seeded
    window, total, now_ns, granted, refused = (
        Window("hourly", limit, HOUR_NS, 0, sliding=sliding),
        0,
        0,
        [],
        0,
    )
    held = []
    for _ in range(2000):
        now_ns += random.choice(
            [0, 1, HOUR_NS // 200, HOUR_NS // 50, HOUR_NS // 3 if random.random() < 0.02 else 0]
        )
        window.roll(now_ns, total)
        amount = random.randrange(1, 30)
        if window.used(total) + amount <= limit:
            total += amount
            granted.append([now_ns, amount])
            held.append(len(granted) - 1)
        else:
            refused += 1
            if not sliding:
                start_ns = now_ns // HOUR_NS * HOUR_NS
                assert within(granted, start_ns, start_ns + HOUR_NS) + amount > limit
        if held and random.random() < 0.3:  # some of it was not used after all
            place = held.pop(random.randrange(len(held)))
            back = random.randrange(granted[place][1] + 1)
            granted[place][1] -= back
            total -= back
            window.refund(granted[place][0], back)
        start_ns = now_ns - HOUR_NS if sliding else now_ns // HOUR_NS * HOUR_NS
        truth = within(granted, start_ns + sliding, now_ns + 1)
        assert window.used(total) >= truth
        if not sliding:
            assert window.used(total) == truth
        assert truth <= limit
    assert refused > 100
    if sliding:  # every interval of an hour, not only those that end when something happens
        times = [at_ns for at_ns, _ in granted]
        for place, at_ns in enumerate(times):
            end = bisect_left(times, at_ns + HOUR_NS)
            assert sum(amount for _, amount in granted[place:end]) <= limit


def test_twin_that_counts_the_window_before_in_part_lets_too_many_in():
    """Peers' sliding counter, use before x (1 - elapsed) + use now, passes nearly twice the limit in an hour."""
    window, limit = Window("hourly", 100, HOUR_NS, 0, sliding=True), 100
    theirs, ours = 100, 100  # all of it in minute 59
    window.roll(59 * HOUR_NS // 60, 0)
    current = 0
    for minute in range(60, 119):
        while 100 * (1 - (minute - 60) / 60) + current + 1 <= limit:
            current, theirs = current + 1, theirs + 1
        window.roll(minute * HOUR_NS // 60, ours)
        while window.used(ours) + 1 <= limit:
            ours += 1
    assert theirs > 190
    assert ours == 100


@pytest.mark.parametrize("sliding", [False, True])
def test_when_it_says_that_there_is_room_there_is_and_not_before(sliding):
    random = Random(3)  # noqa: S311  seeded
    window, total, now_ns = Window("hourly", 100, HOUR_NS, 0, sliding=sliding), 0, 0
    for _ in range(300):
        now_ns += random.randrange(HOUR_NS // 40)
        window.roll(now_ns, total)
        amount = random.randrange(1, 101)
        if window.used(total) + amount <= 100:
            total += amount
            continue
        free_ns = window.free_ns(amount, total)
        assert free_ns > now_ns
        before = window.used(total)
        window.roll(free_ns - 1, total)
        assert window.used(total) + amount > 100 or window.used(total) == before
        window.roll(free_ns, total)
        assert window.used(total) + amount <= 100
        now_ns = free_ns


def test_a_clock_that_goes_back_gives_nothing_twice():
    window = Window("hourly", 100, HOUR_NS, 0, sliding=False)
    window.roll(5 * HOUR_NS, 0)
    assert window.used(100) == 100
    for back_ns in (4 * HOUR_NS, 0, 5 * HOUR_NS - 1):
        assert not window.roll(back_ns, 100)
        assert window.used(100) == 100
    assert window.end_ns == 6 * HOUR_NS


def test_days_begin_when_they_are_said_to():
    day_ns = 24 * HOUR_NS
    window = Window("daily", 10, day_ns, 3 * HOUR_NS, sliding=False)
    window.roll(20 * HOUR_NS, 0)
    assert window.end_ns == 21 * HOUR_NS
    window.roll(21 * HOUR_NS, 7)
    assert (window.used(7), window.end_ns) == (0, 45 * HOUR_NS)


def test_a_sliding_window_remembers_no_more_than_its_parts():
    window = Window("hourly", 10**6, HOUR_NS, 0, sliding=True)
    for number in range(10_000):
        window.roll(number * HOUR_NS // 97, number)
    assert len(window.marks) <= PARTS + 2


def test_those_who_are_told_to_come_back_fit_when_they_do():
    window, total = Window("hourly", 100, HOUR_NS, 0, sliding=False), 100
    window.roll(1, 0)
    told = [window.promise_ns(30, total, 1) for _ in range(7)]
    assert told == [HOUR_NS] * 3 + [2 * HOUR_NS] * 3 + [3 * HOUR_NS]


@pytest.mark.parametrize(
    ("mean", "limit", "admitted"), [(80, 100, 79.9482), (95, 100, 93.0843), (120, 100, 99.8768)]
)
def test_a_fixed_window_admits_the_smaller_of_a_poisson_count_and_the_limit(mean, limit, admitted):
    """E[min(X, L)], from the Poisson distribution; the simulated mean within four standard errors."""
    chances = [exp(k * log(mean) - mean - lgamma(k + 1)) for k in range(600)]
    assert sum(chance * min(k, limit) for k, chance in enumerate(chances)) == pytest.approx(
        admitted, abs=1e-4
    )
    window, total, counts, random = (
        Window("hourly", limit, HOUR_NS, 0, sliding=False),
        0,
        [],
        np.random.default_rng(1),
    )
    for hour in range(2000):
        arrivals = np.sort(random.random(random.poisson(mean)))
        before = total
        for part in arrivals:
            window.roll(hour * HOUR_NS + int(part * HOUR_NS), total)
            total += window.used(total) + 1 <= limit
        counts.append(total - before)
    error = np.std(counts) / len(counts) ** 0.5
    assert abs(np.mean(counts) - admitted) < 4 * error


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("per_s", "depth"), [(1.0, 5), (10.0, 1), (1000.0, 50), (3.7, 12)])
def test_in_every_interval_a_burst_limit_lets_at_most_its_depth_and_its_rate_pass(seed, per_s, depth):
    random = Random(seed)  # noqa: S311  seeded
    burst, now_ns, granted = Burst(per_s, depth), 0, []
    for _ in range(1500):
        now_ns += (
            int(random.expovariate(1.5 * per_s) * NS_PER_S)
            if random.random() < 0.95
            else to_ns(depth / per_s)
        )
        cost = random.randrange(1, depth + 1) if random.random() < 0.3 else 1
        if burst.fits(cost, now_ns):
            place = burst.take(cost, now_ns)
            used = random.randrange(cost + 1) if random.random() < 0.2 else cost
            granted.append((now_ns, used))
            now_ns += random.choice([0, to_ns(1 / per_s), to_ns(3 / per_s)])
            burst.refund(place, cost, used, now_ns)
    # one pass: the most that the bound is passed by, over all intervals that begin with a grant
    slack = worst = 0.0
    before_ns = granted[0][0]
    for at_ns, used in granted:
        slack = max(0.0, slack - (at_ns - before_ns) * per_s / NS_PER_S) + used
        worst, before_ns = max(worst, slack), at_ns
    assert worst <= depth + 1e-6


@pytest.mark.parametrize(
    ("rate", "depth", "share"), [(0.8, 5, 0.96471), (1.0, 50, 0.98997), (1.2, 10, 0.82909), (2.0, 10, 0.5)]
)
def test_a_burst_limit_admits_the_share_that_theory_says(rate, depth, share):
    """An arrival is refused exactly when an M/D/1 queue with `depth` places is full."""
    burst, now_ns, admitted, count = Burst(1.0, depth), 0, 0, 60_000
    for gap_s in np.random.default_rng(2).exponential(1 / rate, count):
        now_ns += int(gap_s * NS_PER_S)
        if burst.fits(1, now_ns):
            burst.take(1, now_ns)
            admitted += 1
    assert admitted / count == pytest.approx(share, abs=0.006)


def test_a_burst_says_exactly_when_there_is_room():
    burst = Burst(3.0, 4)
    for _ in range(4):
        burst.take(1, 0)
    free_ns = burst.free_ns(2)
    assert not burst.fits(2, free_ns - 1)
    assert burst.fits(2, free_ns)
    assert free_ns == pytest.approx(2 / 3 * NS_PER_S, abs=2)


def test_what_has_drained_does_not_come_back():
    burst = Burst(1.0, 10)
    place = burst.take(10, 0)
    burst.refund(place, 10, 0, to_ns(9))  # nine of them have drained by now
    assert not burst.fits(10, to_ns(9) - 1)
    assert burst.fits(10, to_ns(9))
    burst.take(10, to_ns(9))
    assert not burst.fits(1, to_ns(9))
