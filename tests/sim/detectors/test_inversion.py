"""Who is worth more should not wait for who is worth less; who runs is not interrupted for that."""

import pytest

from engine.execution import scheduler
from engine.execution.lines import PriorityLine
from sim.detectors.inversion import detect
from sim.history import History

S = 1_000_000_000
MIXED = [
    "workload=generated", "workload.rate=120", "fleet.max_batch=8", "quotas=off", "workload.output.median=40",
    "workload.classes=[{name: chat, share: 0.3, priority: 2}, {name: batch, share: 0.7}]",
]  # fmt: skip


def row(queued, started, priority, replica="a"):
    times = {"arrival_ns": queued * S, "queued_ns": queued * S, "started_ns": started * S}
    ends = {"first_token_ns": started * S, "finished_ns": (started + 1) * S}
    return (
        {"outcome": "completed", "replica": replica, "priority": priority, "output_tokens": 1} | times | ends
    )


def test_by_hand_it_is_the_time_from_the_first_lower_start_on(make_run):
    rows = [row(n, 20 + n, 1) for n in range(6)]  # came at 0 to 5, started at 20 to 25
    rows += [row(0, 10, 0), row(0, 15, 0)]
    (finding,) = detect(History(make_run(rows)))
    assert finding.subject == "replica a"
    assert finding.count == 6
    assert finding.requests == (
        5,
        4,
        3,
        2,
        1,
        0,
    )  # who waited longest behind the first of lower priority, first
    assert finding.severity == pytest.approx(sum(10 + n for n in range(6)) / (6 * 20))


def test_who_started_before_the_other_one_came_inverts_nothing(make_run):
    earlier = [row(0, 1, 0) for _ in range(20)]
    later = [row(2, 9, 1) for _ in range(20)]
    elsewhere = [row(0, 5, 0, "b") for _ in range(20)]
    assert detect(History(make_run([*earlier, *later, *elsewhere]))) == []
    assert detect(History(make_run([row(n, 50 - n, 3) for n in range(20)]))) == []  # all alike


def inversions(run):
    return [finding for finding in run.findings if finding.detector == "priority inversion"]


def test_a_line_that_does_not_look_at_priorities_inverts_them_and_one_that_does_not(steady):
    lines = [*MIXED, "workload.requests=150"]
    assert inversions(steady(*lines, "fleet.discipline=priority")) == []
    run = steady(*lines, "fleet.discipline=fifo")
    found = inversions(run)
    assert [finding.subject for finding in found]
    assert all(finding.severity > 0.3 for finding in found)
    shown = run.requests.set_index("request_id").loc[list(found[0].requests)]
    assert (shown["priority"] == 2).all()
    assert (shown["replica"] == found[0].subject.removeprefix("replica ")).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_line_that_turns_priorities_round_is_told(steady, monkeypatch, seed):
    class Inverted(PriorityLine):
        """Bad on purpose: the smallest priority first."""

        def _equals(self, priority):
            line = super()._equals(priority)
            self._order.sort(reverse=True)
            return line

    lines = [*MIXED, "workload.requests=400", "fleet.discipline=priority", f"seed={seed}"]
    assert inversions(steady(*lines)) == []
    monkeypatch.setattr(scheduler, "PriorityLine", Inverted)
    found = inversions(steady(*lines))
    assert found
    assert found[0].severity > 0.5
