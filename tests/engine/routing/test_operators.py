"""What operators may change of a router that is at work: its strategy, and who gets no more requests."""

import pytest

from engine.errors import BadSettings, NoReplica, NotFound, UnknownName
from engine.request import Request
from engine.routing import Router
from engine.routing.strategies import strategy
from engine.settings import RoutingSettings

NAMES = [f"r{number}" for number in range(20)]  # more than are scanned: strategies keep heaps of them


def request(number, session=None):
    return Request(number, "m", [1] * 8, 8, 0, session=session)


@pytest.fixture
def router():
    made = Router(RoutingSettings(slow_start_s=0.0, weights={"r0": 3.0}))
    for name in NAMES:
        made.add(name, "m", ["auto"])
    return made


@pytest.mark.parametrize("before", strategy.names())
def test_any_strategy_can_follow_another_with_requests_in_flight(router, before):
    for after in strategy.names():
        router.set_strategy(before, {}, 0)
        held = [(router.route("m", request(number), 16, 0), request(number)) for number in range(30)]
        router.set_strategy(after, {}, 1)
        assert router.strategy_name == after
        held += [(router.route("m", request(number), 16, 2), request(number)) for number in range(30, 60)]
        for seat, each in held:
            router.release("m", seat, each, 16, 3)
        assert all(seat.tokens_in_flight == seat.requests_in_flight == 0 for seat in router.seats())


def test_a_strategy_that_is_switched_to_chooses(router):
    router.set_strategy("least_loaded", {}, 0)
    chosen = {router.route("m", request(number), 16, 0).name for number in range(20)}
    assert chosen == set(NAMES)


def test_sessions_stay_where_they_are(router):
    first = router.route("m", request(1, "s"), 16, 0)
    router.set_strategy("random", {}, 1)
    assert router.route("m", request(2, "s"), 16, 2) is first


@pytest.mark.parametrize(
    ("strategy", "options", "kind"), [("nope", {}, UnknownName), ("random", {"no": 1}, BadSettings)]
)
def test_a_strategy_that_cannot_be_changes_nothing(router, strategy, options, kind):
    before = router.settings
    with pytest.raises(kind):
        router.set_strategy(strategy, options, 0)
    assert router.settings is before
    assert router.strategy_name == before.strategy


def test_who_is_drained_gets_nothing_and_comes_back(router):
    for name in NAMES[1:]:
        router.drain(name, 0)
    assert {router.route("m", request(number), 16, 0).name for number in range(9)} == {"r0"}
    router.set_available("r1", available=False)
    router.set_available("r1", available=True)  # health has no say in it
    assert {router.route("m", request(number), 16, 0).name for number in range(9)} == {"r0"}
    router.drain("r0", 0)
    with pytest.raises(NoReplica):
        router.route("m", request(1), 16, 0)
    router.drain("r1", 0, drained=False)
    assert router.route("m", request(1), 16, 0).name == "r1"


def test_nobody_of_that_name_is_drained(router):
    with pytest.raises(NotFound, match="no replica is called 'x'; there are r0, r1"):
        router.drain("x", 0)
