"""Soft limits and degradation: in order, once each, with hysteresis, paced, and back."""

from collections import Counter
from itertools import pairwise

import pytest

from engine.clock import NS_PER_S, to_ns
from engine.errors import BadRequest, OverQuota
from engine.quotas import Crossing, ModeChange
from engine.settings import ModeSettings

HOUR_S = 3600
LADDER = {
    "warning": ModeSettings(at=0.5),
    "throttled": ModeSettings(at=0.6),
    "limited": ModeSettings(at=0.7),
    "emergency": ModeSettings(at=0.9, min_priority=1),
}


def crossings(told):
    return [each.share for each in told if isinstance(each, Crossing)]


def moves(told):
    return [(each.before, each.after) for each in told if isinstance(each, ModeChange)]


def use(quotas, ask, tokens, **options):
    grant = ask(quotas, tokens, **options)
    assert not isinstance(grant, OverQuota), grant
    grant.settle(tokens)
    return grant


def test_each_soft_limit_is_told_once_in_order_with_what_was_used(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 1000})
    for number in range(100):
        use(quotas, ask, 10, number=number)
    assert crossings(told) == [0.8, 0.85, 0.9, 0.95]
    first = next(each for each in told if isinstance(each, Crossing))
    assert (first.model, first.tenant, first.kind, first.used, first.limit) == (
        "m",
        None,
        "hourly_tokens",
        800,
        1000,
    )
    assert isinstance(ask(quotas, 1), OverQuota)


def test_one_big_request_passes_them_all_at_once(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 1000})
    use(quotas, ask, 1000)
    assert crossings(told) == [0.8, 0.85, 0.9, 0.95]


def test_they_are_told_again_only_after_use_has_fallen_well_below(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 1000}, hysteresis=0.05)
    use(quotas, ask, 740)
    for _ in range(3):
        ask(quotas, 70).release()  # 0.81 and back to 0.74: below 0.75
    assert crossings(told) == [0.8] * 3
    told.clear()
    use(quotas, ask, 20)
    for _ in range(3):
        ask(quotas, 50).release()  # back to 0.76 only
    assert crossings(told) == [0.8]


def test_a_new_hour_begins_with_all_of_them(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 100})
    for hour in range(3):
        use(quotas, ask, 96, at_s=hour * HOUR_S)
    assert crossings(told) == [0.8, 0.85, 0.9, 0.95] * 3


def test_modes_come_in_order_and_go_when_the_hour_is_over(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 1000}, modes=LADDER, max_wait_s=0.0, quiet_s=0.0)
    number, at_s = 0, 0.0
    while quotas.mode("m@1.0.0", "t") != "emergency" and number < 2000:
        number, at_s = number + 1, at_s + 1.7
        grant = ask(quotas, 10, at_s=at_s, number=number)
        if not isinstance(grant, OverQuota):
            grant.settle(10)
    assert moves(told) == [
        ("normal", "warning"),
        ("warning", "throttled"),
        ("throttled", "limited"),
        ("limited", "emergency"),
    ]
    assert isinstance(ask(quotas, 10, at_s=at_s), OverQuota)
    assert not isinstance(ask(quotas, 10, at_s=at_s, priority=1), OverQuota)
    use(quotas, ask, 10, at_s=HOUR_S + 1)
    assert moves(told)[4:] == [
        ("emergency", "limited"),
        ("limited", "throttled"),
        ("throttled", "warning"),
        ("warning", "normal"),
    ]


def test_a_mode_is_left_only_when_use_has_fallen_below_its_hysteresis(make, ask, told):
    quotas = make(
        {"model": "m", "hourly_tokens": 1000}, modes={"warning": ModeSettings(at=0.5)}, hysteresis=0.1
    )
    use(quotas, ask, 450)
    for _ in range(5):
        ask(quotas, 60).release()
    assert moves(told) == [("normal", "warning")]  # 0.45 is not below 0.4
    told.clear()
    other = make(
        {"model": "m", "hourly_tokens": 1000}, modes={"warning": ModeSettings(at=0.5)}, hysteresis=0.1
    )
    use(other, ask, 390)
    ask(other, 200).release()
    assert moves(told) == [("normal", "warning"), ("warning", "normal")]


def test_throttled_is_half_of_the_rate_before_and_paced(make, live, clock):
    """Ten a second until six tenths of the limit are used; then five, evenly."""
    modes = {"throttled": ModeSettings(at=0.6)}
    quotas, log = (
        make({"model": "m", "hourly_requests": 1000}, modes=modes, max_wait_s=1e6, queue_capacity=10**6),
        [],
    )
    for number in range(900):
        live(quotas, at_s=number / 10, log=log, number=number)
    clock.env.run(until=to_ns(600))
    admitted = sorted(entry[2] for entry in log)
    gaps = [(later - earlier) / NS_PER_S for earlier, later in pairwise(admitted)]
    assert gaps[100:590] == pytest.approx([0.1] * 490)
    assert gaps[605:890] == pytest.approx([0.2] * 285, rel=0.02)
    assert [entry[3] for entry in log] == ["served"] * 900


def test_the_rate_that_is_halved_is_that_of_late(make, live, clock):
    """One a second for five minutes, then ten: throttled, it is five."""
    modes = {"throttled": ModeSettings(at=0.6)}
    quotas = make({"model": "m", "hourly_requests": 1000}, modes=modes, max_wait_s=1e6, queue_capacity=10**6)
    log = []
    for number in range(300):
        live(quotas, at_s=number, log=log, number=number)
    for number in range(500):
        live(quotas, at_s=300 + number / 10, log=log, number=1000 + number)
    clock.env.run(until=to_ns(600))
    admitted = sorted(entry[2] for entry in log)
    gaps = [(later - earlier) / NS_PER_S for earlier, later in pairwise(admitted)]
    assert gaps[605:790] == pytest.approx([0.2] * 185, rel=0.05)


def test_limited_spreads_what_is_left_over_the_time_that_is_left(make, live, clock):
    modes = {"limited": ModeSettings(at=0.5)}
    quotas, log = (
        make({"model": "m", "hourly_requests": 100}, modes=modes, max_wait_s=1e6, queue_capacity=10**6),
        [],
    )
    for number in range(100):
        live(quotas, at_s=number, log=log, number=number)
    clock.env.run(until=to_ns(3 * HOUR_S))
    admitted = sorted(entry[2] / NS_PER_S for entry in log)
    assert admitted[49] == pytest.approx(49)
    gaps = [later - earlier for earlier, later in pairwise(admitted[50:])]
    assert min(gaps) > 60
    assert admitted[-2] < HOUR_S + 80
    assert len(log) == 100


def test_limited_refuses_what_would_wait_too_long_with_the_time_of_its_turn(make, ask):
    modes = {"limited": ModeSettings(at=0.5)}
    quotas = make({"model": "m", "hourly_requests": 100}, modes=modes, max_wait_s=10.0)
    for number in range(50):
        use(quotas, ask, 1, at_s=number * 0.1, number=number)
    refused = ask(quotas, 1, at_s=6.0)
    assert isinstance(refused, OverQuota)
    assert refused.limit == "limited"
    assert 60 < refused.retry_after_s < 75


def test_emergency_lasts_a_quiet_time_longer_than_its_cause(make, ask, told):
    quotas = make(
        {"model": "m", "hourly_tokens": 100}, modes={"emergency": LADDER["emergency"]}, quiet_s=60.0
    )
    use(quotas, ask, 95)
    assert quotas.mode("m@1.0.0", "t") == "emergency"
    refused = ask(quotas, 1, at_s=3000)
    assert refused.limit == "emergency"
    assert refused.retry_after_s == pytest.approx(660)
    assert isinstance(ask(quotas, 1, at_s=HOUR_S + 1), OverQuota)
    assert not isinstance(ask(quotas, 1, at_s=HOUR_S + 62), OverQuota)
    assert moves(told) == [("normal", "emergency"), ("emergency", "normal")]


@pytest.mark.parametrize("scope", [{}, {"model": "m"}, {"tenant": "t"}, {"model": "m", "tenant": "t"}])
def test_an_operator_enters_and_leaves_a_mode_for_a_model_a_tenant_both_or_all(make, ask, told, scope):
    quotas = make({"model": "m", "hourly_tokens": 100})
    ask(quotas)
    quotas.set_mode("emergency", **scope)
    assert isinstance(ask(quotas), OverQuota)
    assert ask(quotas, priority=1)
    others = [ask(quotas, tenant="u"), ask(quotas, model="n")]
    hit = [isinstance(answer, OverQuota) for answer in others]
    assert hit == [scope in ({}, {"model": "m"}), scope in ({}, {"tenant": "t"})]
    quotas.set_mode(None, **scope)
    assert not isinstance(ask(quotas), OverQuota)
    changes = [each for each in told if isinstance(each, ModeChange)]
    assert {each.cause for each in changes} == {"operator"}
    with pytest.raises(BadRequest, match="mode is 'panic', but must be one of normal, warning"):
        quotas.set_mode("panic")


def test_an_operators_normal_holds_against_thresholds(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 100})
    ask(quotas, 1)
    quotas.set_mode("normal", model="m")
    use(quotas, ask, 95)
    assert moves(told) == []
    assert crossings(told) == [0.8, 0.85, 0.9, 0.95]


def test_a_mode_of_one_tenant_is_nobody_elses(make, ask):
    quotas = make({"tenant": "*", "hourly_tokens": 100}, modes=LADDER)
    for number in range(60):
        ask(quotas, 5, tenant="loud", at_s=number, number=number)
    assert quotas.mode("m@1.0.0", "loud") != "normal"
    assert quotas.mode("m@1.0.0", "quiet") == "normal"
    assert use(quotas, ask, 40, tenant="quiet")


def test_every_mode_may_refuse_low_priorities(make, ask):
    quotas = make(
        {"model": "m", "hourly_tokens": 100}, modes={"warning": ModeSettings(at=0.5, min_priority=2)}
    )
    use(quotas, ask, 50)
    answers = {priority: ask(quotas, 1, priority=priority) for priority in (0, 1, 2, 3)}
    assert [priority for priority, answer in answers.items() if isinstance(answer, OverQuota)] == [0, 1]


def test_sweeping_loads_up_and_down_a_thousand_times_leaves_no_mode_behind(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 100}, modes=LADDER, quiet_s=0.0)
    for hour in range(300):
        for number in range(8):
            ask(quotas, 12, at_s=hour * HOUR_S + number, priority=1, number=number)
    ask(quotas, 1, at_s=301 * HOUR_S, priority=1)
    assert quotas.mode("m@1.0.0", "t") == "normal"
    steps = moves(told)
    assert all(after == before for (_, after), (before, _) in pairwise(steps))
    ups = Counter(step for step in steps if step[0] == "normal")
    assert set(ups) == {("normal", "warning")}


def test_a_mode_is_over_when_its_hour_is_whether_or_not_somebody_asks(make, ask, clock):
    quotas = make({"model": "m", "hourly_tokens": 100}, modes=LADDER, quiet_s=60.0)
    use(quotas, ask, 95)
    assert quotas.mode("m@1.0.0", "t") == "emergency"
    clock.env.run(until=to_ns(HOUR_S + 59))
    assert quotas.mode("m@1.0.0", "t") == "emergency"
    clock.env.run(until=to_ns(HOUR_S + 60))
    assert quotas.mode("m@1.0.0", "t") == "normal"


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("kind", ["hourly_tokens", "daily_tokens"])
def test_who_is_refused_by_a_mode_and_comes_when_told_finds_it_over(make, ask, kind, sliding):
    modes = {"warning": ModeSettings(at=0.6, min_priority=1), "emergency": LADDER["emergency"]}
    limits = {"hourly_tokens": 1000, "daily_tokens": 1000} | {kind: 100}
    quotas = make({"model": "m", "sliding": sliding, **limits}, modes=modes, quiet_s=60.0)
    for number in range(9):
        use(quotas, ask, 10, at_s=number * 90, number=number, priority=1)
    use(quotas, ask, 5, at_s=1000, priority=1)
    assert quotas.mode("m@1.0.0", "t") == "emergency"
    refused = ask(quotas, 1, at_s=1000.5)
    assert refused.limit == "emergency"
    use(quotas, ask, 1, at_s=1000.5 + refused.retry_after_s + 1e-6)


def test_an_operators_mode_never_says_come_back_at_once(make, ask):
    quotas = make(modes={"warning": ModeSettings(min_priority=1)}, quiet_s=20.0)
    quotas.set_mode("warning")
    assert ask(quotas, 1).retry_after_s == 20.0


@pytest.mark.parametrize("scope", [{}, {"model": "m"}, {"tenant": "t"}, {"model": "m", "tenant": "t"}])
def test_whoever_waits_when_an_emergency_begins_is_refused_unless_it_may_stay(make, live, clock, scope):
    quotas, log = make({"model": "m", "concurrent_requests": 1}, queue_capacity=10), []
    for number, priority in enumerate((0, 0, 1, 0)):
        live(quotas, at_s=0.1 * number, hold_s=1.0, number=number, priority=priority, tenant="t", log=log)
    clock.env.run(until=to_ns(0.5))
    quotas.set_mode("emergency", **scope)
    clock.env.run(until=to_ns(10))
    served = {entry[0].id for entry in log if entry[3] == "served"}
    refused = {entry[0].id: entry[3].limit for entry in log if entry[3] != "served"}
    assert served == {0, 2}
    assert refused == {1: "emergency", 3: "emergency"}
    assert quotas.num_waiting == quotas.in_service == 0


def test_a_threshold_smaller_than_the_hysteresis_is_left_when_nothing_is_used(make, ask, told):
    modes = {"warning": ModeSettings(at=0.01)}
    quotas = make({"model": "m", "hourly_tokens": 100}, modes=modes, soft_limits=[0.01], hysteresis=0.05)
    for _ in range(2):
        ask(quotas, 2).release()
    assert moves(told) == [("normal", "warning"), ("warning", "normal")] * 2
    assert crossings(told) == [0.01] * 2
