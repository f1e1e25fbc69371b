"""Health is judged with hysteresis in both directions, and told only when it changes."""

import pytest

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
