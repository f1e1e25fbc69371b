"""Health is judged with hysteresis in both directions, and told only when it changes."""

from itertools import pairwise
from sys import getsizeof

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import NS_PER_S, to_ns
from engine.registry import Health, HealthMonitor
from engine.settings import HealthSettings


def watch(**settings):
    changes = []
    monitor = HealthMonitor(HealthSettings(**settings), changes.append)
    monitor.add("a")
    monitor.add("b")
    return monitor, changes


def probe(monitor, answers, replica="a"):
    for number, answered in enumerate(answers):
        monitor.probed(replica, answered, number)


def test_a_new_replica_is_healthy():
    monitor, changes = watch()
    assert monitor.health("a") is Health.HEALTHY
    assert changes == []


@pytest.mark.parametrize("fall", [1, 2, 5])
def test_it_falls_after_so_many_failed_probes_in_a_row(fall):
    monitor, changes = watch(fall=fall)
    probe(monitor, [False] * (fall - 1))
    assert monitor.health("a") is Health.HEALTHY
    probe(monitor, [False])
    assert monitor.health("a") is Health.UNHEALTHY
    assert [change.cause for change in changes] == ["probes failed"]


@pytest.mark.parametrize("rise", [1, 2, 5])
def test_it_rises_after_so_many_answers_in_a_row(rise):
    monitor, changes = watch(rise=rise)
    monitor.lost("a", 0)
    probe(monitor, [True] * (rise - 1))
    assert monitor.health("a") is Health.UNHEALTHY
    probe(monitor, [True])
    assert monitor.health("a") is Health.HEALTHY
    assert [change.cause for change in changes] == ["replica lost", "probes answered"]


def test_a_flapping_probe_moves_nothing():
    monitor, changes = watch(fall=2, rise=2)
    probe(monitor, [False, True] * 20)
    assert changes == []
    monitor.lost("a", 0)
    probe(monitor, [True, False] * 20)
    assert monitor.health("a") is Health.UNHEALTHY
    assert len(changes) == 1


def test_a_lost_replica_falls_at_once_however_well_it_answered_before():
    monitor, changes = watch(rise=2)
    probe(monitor, [True] * 100)
    monitor.lost("a", 7)
    probe(monitor, [True])
    assert monitor.health("a") is Health.UNHEALTHY
    change = changes[0]
    assert (change.at_ns, change.replica, change.before, change.after) == (7, "a", "healthy", "unhealthy")


def test_what_does_not_change_is_not_told():
    monitor, changes = watch(fall=1, rise=1)
    probe(monitor, [True, True, True])
    monitor.lost("a", 0)
    monitor.lost("a", 1)
    probe(monitor, [False, False])
    assert len(changes) == 1


def test_replicas_are_judged_each_for_itself():
    monitor, _ = watch(fall=2)
    probe(monitor, [False], "a")
    probe(monitor, [False], "b")
    assert monitor.health("a") is monitor.health("b") is Health.HEALTHY
    monitor.lost("b", 0)
    assert monitor.health("a") is Health.HEALTHY


def test_a_monitor_that_is_switched_off_marks_nobody():
    monitor, changes = watch(enabled=False)
    monitor.lost("a", 0)
    probe(monitor, [False] * 10)
    assert monitor.health("a") is Health.HEALTHY
    assert changes == []


# requests that fail


def requests(monitor, outcomes, start_s=0.0, step_s=0.1, replica="a"):
    """Requests that enter one after another and end well or not; how many were let in."""
    entered = 0
    for number, ended_well in enumerate(outcomes):
        now_ns = to_ns(start_s + number * step_s)
        if monitor.enter(replica):
            entered += 1
            (monitor.served if ended_well else monitor.failed)(replica, now_ns)
            monitor.leave(replica)
    return entered


@pytest.mark.parametrize("in_a_row", [1, 3, 5])
def test_it_falls_after_so_many_errors_in_a_row(in_a_row):
    monitor, changes = watch(errors_in_a_row=in_a_row)
    requests(monitor, [False] * (in_a_row - 1) + [True] + [False] * (in_a_row - 1))
    assert changes == []
    requests(monitor, [False])
    assert monitor.health("a") is Health.UNHEALTHY
    assert [change.cause for change in changes] == [f"{in_a_row} requests in a row failed"]


def test_a_share_of_errors_degrades_it_and_a_large_one_closes_it():
    monitor, changes = watch(window_requests=20, degraded_error_rate=0.1, unhealthy_error_rate=0.5)
    requests(monitor, [True] * 18 + [False])
    assert changes == []  # 1 of 19 is too few to say anything
    requests(monitor, [False], 2.0)
    assert [change.cause for change in changes] == ["10% of the latest requests failed"]
    assert monitor.health("a") is Health.DEGRADED
    requests(monitor, [True, False, False] * 20, 3.0)
    assert monitor.health("a") is Health.UNHEALTHY
    assert changes[-1].cause == "50% of the latest requests failed"


def test_few_errors_of_few_requests_say_nothing():
    monitor, changes = watch(window_requests=20, window_s=1.0)
    requests(monitor, [True, False] * 50, step_s=0.2)  # half of them, but only five a second
    assert changes == []


@pytest.mark.parametrize(("at_s", "falls"), [(8.0, True), (10.0, False), (100.0, False)])
def test_errors_are_forgotten_when_they_have_left_the_window(at_s, falls):
    monitor, changes = watch(window_requests=10, window_s=10.0)
    requests(monitor, [True, False] * 4 + [True], step_s=0.05)  # 4 of 9 in the first half second
    requests(monitor, [False], at_s)  # the tenth, or a first one: the tenths of the window go one by one
    assert bool(changes) is falls


def test_a_degraded_replica_heals_at_half_of_the_rate_that_degraded_it():
    monitor, changes = watch(window_requests=20, window_s=1000.0, degraded_error_rate=0.1)
    requests(monitor, [True] * 18 + [False, False], step_s=0.01)
    assert monitor.health("a") is Health.DEGRADED
    requests(monitor, [True] * 20, 1.0, 0.01)  # 2 of 40: exactly half
    assert monitor.health("a") is Health.DEGRADED
    requests(monitor, [True], 2.0)
    assert [change.after for change in changes] == [Health.DEGRADED, Health.HEALTHY]


def test_a_degraded_replica_that_gets_few_requests_heals_all_the_same():
    monitor, _ = watch(window_requests=20, window_s=10.0, degraded_error_rate=0.1)
    requests(monitor, [True] * 18 + [False, False])
    assert monitor.health("a") is Health.DEGRADED
    requests(monitor, [True], 8.0)
    assert monitor.health("a") is Health.DEGRADED
    requests(monitor, [True], 13.0)
    assert monitor.health("a") is Health.HEALTHY


def test_errors_of_before_a_loss_are_not_held_against_who_comes_back():
    monitor, _ = watch(window_requests=20, degraded_error_rate=0.1, rise=1)
    requests(monitor, [True] * 18 + [False])
    monitor.lost("a", to_ns(2.0))
    monitor.probed("a", answered=True, now_ns=to_ns(3.0))
    requests(monitor, [False], 4.0)
    assert monitor.health("a") is Health.HEALTHY


# closed, and open again


def closed(**settings):
    """A monitor whose replica a was closed by errors at 0 s."""
    monitor, changes = watch(errors_in_a_row=1, retry_after_s=5.0, **settings)
    requests(monitor, [False])
    assert monitor.health("a") is Health.UNHEALTHY
    return monitor, changes


def test_who_was_closed_for_errors_does_not_open_before_its_time_however_well_it_answers_probes():
    monitor, changes = closed(rise=2)
    for tenth in range(50):
        monitor.probed("a", answered=True, now_ns=to_ns(tenth / 10))
    assert len(changes) == 1
    monitor.probed("a", answered=True, now_ns=to_ns(5.0))
    assert monitor.health("a") is Health.HEALTHY


def test_requests_that_end_after_a_closure_had_begun_before_it_and_say_nothing():
    monitor, changes = watch(errors_in_a_row=3, retry_after_s=5.0, max_retry_after_s=100.0)
    for _ in range(32):
        assert monitor.enter("a")
    for _ in range(32):  # all at once: one closure, not ten that double its length each time
        monitor.failed("a", 0)
        monitor.leave("a")
    assert len(changes) == 1
    assert monitor.retry_in_ns("a", 0) == to_ns(5.0)


def test_each_closure_is_twice_as_long_up_to_a_limit_and_a_long_good_time_begins_anew():
    monitor, _ = watch(errors_in_a_row=1, rise=1, retry_after_s=5.0, max_retry_after_s=30.0)
    now_s, seen = 0.0, []
    for wait_s in (0, 1, 1, 1, 1, 31, 1):
        now_s += wait_s
        requests(monitor, [False], now_s)
        seen.append(monitor.retry_in_ns("a", to_ns(now_s)) / NS_PER_S)
        now_s += seen[-1]
        monitor.probed("a", answered=True, now_ns=to_ns(now_s))
        assert monitor.health("a") is Health.HEALTHY
    assert seen == [5, 10, 20, 30, 30, 5, 10]


def test_a_lost_replica_comes_back_by_probes_at_once_or_after_a_while_where_nobody_probes():
    probed, _ = watch(probes=True, rise=1)
    probed.lost("a", 0)
    assert probed.retry_in_ns("a", 0) == 0
    alone, changes = watch(probes=False, retry_after_s=5.0)
    for _ in range(10):  # all of its requests find it dead, and it is closed once
        alone.lost("a", 0)
    assert alone.retry_in_ns("a", 0) == to_ns(5.0)
    alone.try_again("a", to_ns(4.9))
    assert [change.after for change in changes] == [Health.UNHEALTHY]
    alone.try_again("a", to_ns(5.0))
    alone.lost("a", to_ns(6.0))
    assert alone.retry_in_ns("a", to_ns(6.0)) == to_ns(10.0)


# on trial


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_on_trial_at_most_so_many_requests_are_let_in_at_a_time(limit):
    monitor, _ = closed(probes=False, trial_requests=limit, rise=100)
    monitor.try_again("a", to_ns(5.0))
    assert [monitor.enter("a") for _ in range(limit + 2)] == [True] * limit + [False] * 2
    monitor.leave("a")
    assert [monitor.enter("a") for _ in range(2)] == [True, False]
    assert monitor.enter("b")


def test_on_trial_good_requests_open_it_and_a_bad_one_closes_it_for_longer():
    monitor, changes = closed(probes=False, rise=2)
    monitor.try_again("a", to_ns(5.0))
    requests(monitor, [True, False], 5.0)
    assert monitor.retry_in_ns("a", to_ns(5.1)) == to_ns(10.0)
    monitor.try_again("a", to_ns(16.0))
    requests(monitor, [True, True], 16.0)
    causes = ["1 requests in a row failed", "on trial", "a trial failed", "on trial", "trials ended well"]
    assert [change.cause for change in changes] == causes
    assert [monitor.enter("a") for _ in range(5)] == [True] * 5


def test_who_entered_before_a_trial_is_none_of_it():
    monitor, _ = watch(errors_in_a_row=1, probes=False, trial_requests=1, retry_after_s=5.0, rise=1)
    for _ in range(3):
        monitor.enter("a")
    monitor.failed("a", 0)
    monitor.leave("a")  # two are left
    monitor.try_again("a", to_ns(5.0))
    monitor.served("a", to_ns(5.0))  # one of them ends well, without saying anything of now
    assert monitor.health("a") is Health.DEGRADED
    assert monitor.enter("a")
    monitor.leave("a")  # it was an old one, or the trial: nobody knows
    monitor.leave("a")
    assert not monitor.enter("a")
    monitor.leave("a")
    assert monitor.enter("a")


def test_failed_probes_end_a_trial():
    monitor, _ = closed(fall=1, trial_requests=1)
    monitor.try_again("a", to_ns(5.0))
    monitor.probed("a", answered=False, now_ns=to_ns(5.0))
    assert monitor.health("a") is Health.UNHEALTHY
    assert [monitor.enter("a") for _ in range(2)] == [
        True,
        True,
    ]  # on its way already; the router sends no more


def test_nothing_is_tried_again_that_is_open_or_gone():
    monitor, changes = watch()
    monitor.try_again("a", 10)
    monitor.remove("a")
    for said in (monitor.try_again, monitor.served, monitor.failed):
        said("a", 11)
    monitor.leave("a")
    assert changes == []
    assert not monitor.knows("a")


def test_a_monitor_that_is_switched_off_closes_nobody():
    monitor, changes = watch(enabled=False, errors_in_a_row=1, probes=False)
    assert requests(monitor, [False] * 100) == 100
    monitor.lost("a", 0)
    monitor.try_again("a", to_ns(1000.0))
    assert changes == []


# whatever happens


@pytest.mark.parametrize("probes", [True, False])
def test_a_flapping_replica_is_closed_longer_and_longer_instead_of_with_every_turn(probes):
    monitor, changes = watch(probes=probes)
    for tick in range(6000):  # ten minutes, good and bad for a second each, ten requests a second
        now_ns, is_good = to_ns(tick / 10), tick % 20 < 10
        if monitor.health("a") is not Health.UNHEALTHY:
            if monitor.enter("a"):
                (monitor.served if is_good else monitor.failed)("a", now_ns)
                monitor.leave("a")
        elif not probes:
            monitor.try_again("a", now_ns)
        if probes and tick % 5 == 0:
            monitor.probed("a", is_good, now_ns)
    fallen = [change.at_ns / NS_PER_S for change in changes if change.after is Health.UNHEALTHY]
    assert 2 <= len(fallen) <= 12  # of 300 turns
    assert 600 - fallen[-1] < 240
    apart = [later - earlier for earlier, later in pairwise(fallen)]
    assert all(later >= earlier * 0.9 for earlier, later in pairwise(apart) if later < 100)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "served", "failed", "lost", "probed", "missed", "try_again"]),
        st.integers(0, to_ns(4.0)),
    ),
    max_size=200,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(events=EVENTS, probes=st.booleans(), trials=st.integers(1, 3))
def test_whatever_happens_trials_are_bounded_closures_last_and_changes_are_a_chain(events, probes, trials):
    monitor, changes = watch(probes=probes, trial_requests=trials, errors_in_a_row=2, retry_after_s=3.0)
    now_ns, in_flight, entered_on_trial = 0, [], 0
    for event, delay_ns in events:
        now_ns += delay_ns
        opens_ns = now_ns + monitor.retry_in_ns("a", now_ns)
        is_closed = monitor.health("a") is Health.UNHEALTHY
        known = len(changes)
        if event == "enter":
            if not is_closed and monitor.enter("a"):
                in_flight.append(len(changes))
        elif event in ("served", "failed"):
            if in_flight:
                getattr(monitor, event)("a", now_ns)
                in_flight.pop(0)
                monitor.leave("a")
        elif event in ("probed", "missed"):
            monitor.probed("a", event == "probed", now_ns)
        else:
            getattr(monitor, event)("a", now_ns)
        if is_closed and len(changes) > known:
            assert now_ns >= opens_ns, "nothing opens it before its time"
        if changes and changes[-1].cause == "on trial":
            entered_on_trial = sum(epoch == len(changes) for epoch in in_flight)
            assert entered_on_trial <= trials
    assert all(earlier.after is later.before for earlier, later in pairwise(changes))
    assert all(earlier.at_ns <= later.at_ns for earlier, later in pairwise(changes))
    assert all(change.before is not change.after for change in changes)


def test_the_memory_of_a_replica_is_bounded():
    monitor, _ = watch(errors_in_a_row=10**9, unhealthy_error_rate=1.0)
    record = monitor._records["a"]
    requests(monitor, [True, False], step_s=0.05)
    before = sum(map(getsizeof, (record.errors._good, record.errors._bad)))
    requests(monitor, [True, False] * 5000, 1.0, 0.05)
    assert sum(map(getsizeof, (record.errors._good, record.errors._bad))) == before
