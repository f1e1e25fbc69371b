"""The decision log: what was seen, what it would have cost, and the same decision again."""

import json
from dataclasses import asdict
from random import Random

import pytest

from engine.errors import UnknownName
from engine.routing import replay, strategy

BLEND = "0.6 cache_aware + 0.3 least_loaded + 0.1 latency_based"


def busy_router(make, ask, chain, name, count=6, decisions=300, **options):
    """A router that has decided for a while, with loads, latencies, sessions and prefixes."""
    router, seats = make(count=count, strategy=name, decision_log=1.0, **options)
    random, held = Random(11), []  # noqa: S311  seeded
    for number in range(decisions):
        session = random.choice([None, None, f"s{random.randrange(20)}"])
        keys = chain(f"p{random.randrange(10)}", 1 + random.randrange(8))
        request = ask(number, session=session, keys=keys, prompt=16 * len(keys) + 5)
        seat = router.route("llama", request, 50 + number % 90, 1000 * number)
        held.append((seat, request, 50 + number % 90))
        router.observe(seat, 100 + 10 * random.randrange(50), 3.0, 1000 * number)
        if random.random() < 0.8:
            router.release("llama", *held.pop(random.randrange(len(held))), 1000 * number)
        if number % 50 == 49:
            name = random.choice([seat.name for seat in seats])
            router.set_available(name, not router.seat(name).is_healthy, 1000 * number)
    return router


@pytest.mark.parametrize("count", [3, 6, 40])
@pytest.mark.parametrize("name", [*strategy.names(), BLEND])
def test_a_recorded_decision_is_made_again(make, ask, chain, name, count):
    log = busy_router(make, ask, chain, name, count).log
    assert len(log) == 300
    assert [replay(choice) for choice in log] == [choice.chosen for choice in log]


def test_twin_without_the_drawn_numbers_decides_otherwise(make, ask, chain):
    log = busy_router(make, ask, chain, "random").log
    for choice in log:
        choice.drawn = []
    assert [replay(choice) for choice in log] != [choice.chosen for choice in log]


def test_a_recorded_decision_can_be_made_by_another_strategy(make, ask, chain):
    log = busy_router(make, ask, chain, "round_robin").log
    for choice in log:
        loads = {each.name: each.tokens_in_flight for each in choice.candidates}
        assert loads[replay(choice, "least_loaded")] == min(loads.values())
        assert replay(choice, "random") == replay(choice, "random")
    with pytest.raises(UnknownName):
        replay(log[0], "fastest")


def test_a_record_survives_json(make, ask, chain):
    log = busy_router(make, ask, chain, BLEND).log
    told = json.loads(json.dumps([asdict(choice) for choice in log]))
    assert [each["chosen"] for each in told] == [choice.chosen for choice in log]


def test_the_record_says_why(make, ask):
    router, _ = make(decision_log=1.0)
    router.set_available("b", False)
    router.route("llama", ask(0, session="s"), 10, 0)
    router.route("llama", ask(1, session="s"), 10, 0)
    with router.attempts("llama", ask(2), 10, 0) as attempts:
        attempts.next(0)
        attempts.next(0)
    router.set_available("c", False)
    router.route("llama", ask(3), 10, 0)
    reasons = [choice.reason for choice in router.log]
    assert reasons == ["strategy", "session", "strategy", "another try", "the only one"]
    assert router.log[0].guards == [("b", "not healthy")]
    assert ("a" if router.log[3].chosen == "c" else "c", "tried before") in router.log[3].guards


def test_explain_gives_candidates_terms_guards_and_the_reason_and_changes_nothing(make, ask, chain):
    router = busy_router(make, ask, chain, BLEND)
    router.set_available("a", False)
    request = ask(7, keys=chain("p3", 8), prompt=133)
    told = router.explain("llama", request, 10**6)
    assert set(told.terms()) == {"cache_aware", "least_loaded", "latency_based"}
    assert all(len(costs) == len(told.candidates) for costs in told.terms().values())
    assert ("a", "not healthy") in told.guards
    assert router.explain("llama", request, 10**6) == told
    text = "\n".join(told.lines())
    assert f"* {told.chosen}: " in text
    assert "a: not asked, not healthy" in text
    assert router.route("llama", request, 1, 10**6).name == told.chosen
    assert router.log[-1].chosen == told.chosen


@pytest.mark.parametrize("name", [*strategy.names(), BLEND])
def test_explaining_uses_up_nobodys_turn(make, ask, chain, name):
    if name in ("random", "weighted_random", "power_of_two", "latency_based", BLEND):
        pytest.skip("what is drawn for an explanation is not drawn again")
    chosen = []
    for explains in (False, True):
        router = busy_router(make, ask, chain, name, decisions=60)
        names = []
        for number in range(30):
            if explains:
                router.explain("llama", ask(number), 0)
            names.append(router.route("llama", ask(number), 1, 0).name)
        chosen.append(names)
    assert chosen[0] == chosen[1]


def test_a_session_is_the_explanation_where_there_is_one(make, ask):
    router, _ = make()
    seat = router.route("llama", ask(session="s"), 1, 0)
    told = router.explain("llama", ask(session="s"), 1)
    assert (told.chosen, told.reason) == (seat.name, "session")
    assert router.explain("llama", ask(session="other"), 1).reason == "strategy"


def test_nothing_is_on_record_unless_it_is_wanted(make, ask):
    router, _ = make()
    router.route("llama", ask(), 1, 0)
    assert len(router.log) == 0
    assert not router._pools["llama"].is_watched


def test_the_log_is_bounded(make, ask):
    router, _ = make(decision_log=1.0)
    for number in range(11_000):
        router.route("llama", ask(number), 1, 0)
    assert len(router.log) == 10_000
    assert router.log[-1].request_id == 10_999
