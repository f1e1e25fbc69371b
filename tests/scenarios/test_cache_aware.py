"""Requests go where their prompts are remembered; twins that look elsewhere, or too long, are seen."""

import pytest

from engine.engine import Engine
from engine.errors import BadSettings
from engine.routing.strategies import CacheAware, LeastLoaded
from tests.scenarios.verdicts import failed, verdicts

FEW = ("workload.parts.chat.requests=500", "beside.seeds=0")
BEST, MORE = (
    "share of the model with the highest hit ratio",
    "and the largest share that another one has beyond it",
)
WORST, LESS = (
    "share of the model with the lowest hit ratio",
    "and what it has beyond the smallest share of another one",
)
FAIR = "distance from an equal share where all hit ratios are equal"
GAIN = "gain in the hit ratio"
QUICK = "mean routing time, us"
"""Of the real clock: what it says on a busy machine is no test's affair."""


def told(run):
    return [name for name in failed(run) if name != QUICK]


def test_most_goes_to_who_remembers_most(play):
    run = play("beside.seeds=0")
    assert told(run) == []
    assert {name for name, verdict in verdicts(run).items() if verdict != "pass"} <= {QUICK, FAIR, GAIN}
    assert run.measured["routing_us"] > 0
    assert run.measured["routing_in_run_us"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("lines", [("seed=5", "workload.parts.chat.prefixes.zipf=0.8")])
def test_the_same_holds_for_other_seeds_and_prefixes(play, lines):
    run = play(*lines)
    assert told(run) == []
    assert verdicts(run)[GAIN] == verdicts(run)[FAIR] == "pass"


@pytest.mark.slow
@pytest.mark.torch
def test_the_same_holds_with_real_passes(play):
    assert told(play("size=small", "executor=torch", "beside.seeds=0")) == []


def test_twin_that_goes_to_the_least_loaded_is_seen(play, monkeypatch):
    monkeypatch.setattr(CacheAware, "pick", lambda self, *asked: self._others.pick(*asked))
    assert {BEST, WORST} <= set(failed(play(*FEW)))


@pytest.mark.slow
def test_twin_that_avoids_who_remembers_is_seen(play, monkeypatch):
    pick = CacheAware.pick

    def avoiding(self, request, seats, now_ns):
        others = [seat for seat in seats if seat.name != "a"] or seats
        return pick(self, request, others, now_ns)

    monkeypatch.setattr(CacheAware, "pick", avoiding)
    assert {BEST, MORE} <= set(failed(play(*FEW)))


@pytest.mark.slow
def test_twin_that_likes_who_forgets_is_seen(play, monkeypatch):
    pick = CacheAware.pick

    def liking(self, request, seats, now_ns):
        forgetful = [seat for seat in seats if seat.name == "e" and request.id % 3 == 0]
        return forgetful[0] if forgetful else pick(self, request, seats, now_ns)

    monkeypatch.setattr(CacheAware, "pick", liking)
    assert {WORST, LESS} <= set(failed(play(*FEW)))


@pytest.mark.slow
def test_twin_that_always_takes_the_first_of_equals_is_unfair(play, monkeypatch):
    monkeypatch.setattr(LeastLoaded, "pick", lambda self, request, seats, now_ns: seats[0])
    assert FAIR in failed(play(*FEW, "beside.seeds=1"))


@pytest.mark.slow
def test_twin_that_is_round_robin_itself_gains_nothing(play):
    assert GAIN in failed(play(*FEW, "strategy=round_robin", "beside.seeds=1"))


@pytest.mark.slow
def test_twin_that_thinks_too_long_is_seen(play, monkeypatch):
    price = Engine._price

    def slow(self, *asked):
        sum(range(6_000))  # a tenth of a millisecond of the processor's time
        return price(self, *asked)

    monkeypatch.setattr(Engine, "_price", slow)
    assert QUICK in failed(play("workload.parts.chat.requests=150", "beside.seeds=0"))


@pytest.mark.slow
def test_twin_that_loses_requests_is_seen(play):
    run = play(*FEW, 'quotas.limits=[{tenant: "*", hourly_requests: 300}]')
    assert "requests that did not complete" in failed(run)


def test_prices_are_those_of_a_look_at_the_blocks_themselves(play, monkeypatch):
    price, seen = Engine._price, []

    def checked(self, seat, request, num_blocks):
        home = self.fleet.homes[seat.model]
        space = self._space(request, home)
        with self.cache.peek(space, self._chain(request, home, space).keys[:num_blocks]) as prefix:
            seen.append((price(self, seat, request, num_blocks), float(prefix.num_blocks)))
        return seen[-1][0]

    monkeypatch.setattr(Engine, "_price", checked)
    play("workload.parts.chat.requests=300", "beside.seeds=0")
    assert len(seen) > 300
    assert all(ours == theirs for ours, theirs in seen)
    assert {ours == 0 for ours, _ in seen} == {True, False}


def test_who_answers_alone_is_one_of_the_fleet(play):
    with pytest.raises(BadSettings, match=r"scenario\.first is 'z'"):
        play("scenario.first=z", "beside.seeds=0")


def test_who_answers_alone_is_in_memory_from_the_start(play):
    with pytest.raises(BadSettings, match=r"models\.preload is False, but must be true"):
        play("models.preload=false", "beside.seeds=0")
