"""The router: the healthy, the untried, and loads that add up whatever happens."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.errors import BadSettings, NoReplica, UnknownName
from engine.request import Request
from engine.routing import Router, strategy
from engine.settings import RoutingSettings

PROMPT = np.zeros(4, dtype=np.int32)


@dataclass(slots=True, eq=False)
class Stub:
    name: str
    model: str = "llama"
    tokens_in_flight: int = 0
    requests_in_flight: int = 0


def request(number=0):
    return Request(number, "llama", PROMPT, 6, 0)


def make(count=3, **options):
    router, replicas = Router(RoutingSettings(**options)), [Stub(name) for name in "abcdefgh"[:count]]
    for replica in replicas:
        router.add(replica)
    return router, replicas


def loads(replicas):
    return [replica.tokens_in_flight for replica in replicas]


def test_a_request_counts_from_the_decision_to_the_end():
    router, replicas = make()
    route = router.route(request(), "llama", 0)
    assert loads(replicas) == [10, 0, 0]
    assert replicas[0].requests_in_flight == 1
    with route:
        assert route.next(0) is replicas[0]
        assert loads(replicas) == [10, 0, 0]
    assert loads(replicas) == [0, 0, 0]
    assert replicas[0].requests_in_flight == 0


def test_a_burst_sees_its_own_decisions():
    router, replicas = make(strategy="least_loaded")
    routes = [router.route(request(number), "llama", 0) for number in range(6)]
    assert loads(replicas) == [20, 20, 20]
    for route in routes:
        route.__exit__()
    assert loads(replicas) == [0, 0, 0]


def test_the_load_moves_on_with_each_attempt():
    router, replicas = make()
    with router.route(request(), "llama", 0) as route:
        seen = []
        while (chosen := route.next(0)) is not None:
            seen.append((chosen.name, loads(replicas)))
    assert seen == [("a", [10, 0, 0]), ("b", [0, 10, 0]), ("c", [0, 0, 10])]
    assert loads(replicas) == [0, 0, 0]


def test_the_load_is_given_back_when_an_error_leaves_the_block_and_only_once():
    router, replicas = make()
    route = router.route(request(), "llama", 0)
    with pytest.raises(ZeroDivisionError), route:
        raise ZeroDivisionError
    route.__exit__()
    assert loads(replicas) == [0, 0, 0]


@pytest.mark.parametrize(("max_attempts", "names"), [(1, "a"), (2, "ab"), (9, "abc")])
def test_no_replica_is_tried_twice_and_no_more_than_allowed(max_attempts, names):
    router, _ = make(max_attempts=max_attempts)
    with router.route(request(), "llama", 0) as route:
        assert [route.next(0).name for _ in names] == list(names)
        assert route.next(0) is None
        assert [replica.name for replica in route.tried] == list(names)


def test_an_unavailable_replica_gets_nothing_until_it_is_back():
    router, replicas = make()
    router.set_available(replicas[1], False)
    for _ in range(6):
        with router.route(request(), "llama", 0) as route:
            assert route.next(0) is not replicas[1]
    router.set_available(replicas[1], True)
    chosen = [router.route(request(), "llama", 0).next(0).name for _ in range(3)]
    assert sorted(chosen) == ["a", "b", "c"]


def test_one_that_falls_ill_after_it_was_chosen_is_not_given_out():
    router, replicas = make()
    with router.route(request(), "llama", 0) as route:
        router.set_available(replicas[0], False)
        assert route.next(0) is replicas[1]
        assert loads(replicas) == [0, 10, 0]


def test_without_a_healthy_replica_there_is_no_route():
    router, replicas = make(count=1)
    with pytest.raises(NoReplica, match="no healthy replica serves 'phi'"):
        router.route(request(), "phi", 0)
    route = router.route(request(), "llama", 0)
    router.set_available(replicas[0], False)
    assert route.next(0) is None
    assert loads(replicas) == [0]
    with pytest.raises(NoReplica, match="no healthy replica serves 'llama'"):
        router.route(request(), "llama", 0)


def test_candidates_stay_in_the_order_in_which_they_became_known():
    seen = []
    router = Router(RoutingSettings(), lambda *decision: seen.append([each.name for each in decision[3]]))
    replicas = [Stub(name) for name in "abc"]
    for replica in replicas:
        router.add(replica)
    router.set_available(replicas[0], False)
    router.set_available(replicas[0], True)
    router.route(request(), "llama", 0)
    assert seen == [["a", "b", "c"]]


def test_the_observer_is_told_before_the_decision_counts():
    seen = []

    def observe(request, attempt, chosen, candidates, now_ns):
        seen.append(
            (request.id, attempt, chosen.name, [each.tokens_in_flight for each in candidates], now_ns)
        )

    router = Router(RoutingSettings(), observe)
    for name in "ab":
        router.add(Stub(name))
    with router.route(request(7), "llama", 100) as route:
        route.next(200)
        route.next(300)
    assert seen == [(7, 1, "a", [0, 0], 100), (7, 2, "b", [0], 300)]


@pytest.mark.parametrize("name", strategy.names())
def test_a_replica_may_join_a_router_that_already_decides(name):
    router, (first,) = make(count=1, strategy=name)
    router.route(request(), "llama", 0)
    second = Stub("z")
    router.add(second)
    chosen = {router.route(request(), "llama", 0).next(0) for _ in range(4)}
    assert chosen == {first, second}


@pytest.mark.parametrize("name", strategy.names())
@pytest.mark.parametrize("late", [None, 0, 1, 2])
@pytest.mark.parametrize("lost", range(3))
def test_while_one_is_always_lost_the_others_share_evenly(name, late, lost):
    router, replicas = make(strategy=name)
    if late is not None:  # it was ill when the first request came, and is back now
        router.set_available(replicas[late], False)
        with router.route(request(), "llama", 0) as route:
            route.next(0)
        router.set_available(replicas[late], True)
    served = Counter()
    for number in range(600):
        with router.route(request(number), "llama", 0) as route:
            while (chosen := route.next(0)) is replicas[lost]:
                pass
            served[chosen.name] += 1
    assert sorted(served.values()) == [300, 300]


def test_models_have_their_own_turns():
    router, _ = make(count=2)
    for name in "xy":
        router.add(Stub(name, "phi"))
    order = [router.route(request(), model, 0).next(0).name for model in ("llama", "phi") * 2]
    assert order == ["a", "x", "b", "y"]


def test_a_strategy_that_does_not_exist_or_does_not_fit_is_refused():
    with pytest.raises(UnknownName, match="no strategy is called 'fastest'"):
        make(strategy="fastest")
    with pytest.raises(BadSettings, match="does not take these options"):
        make(options={"weight": 2})


class RouterMachine(RuleBasedStateMachine):
    """The router against plain dicts and lists."""

    @initialize(name=st.sampled_from(strategy.names()), max_attempts=st.integers(1, 4))
    def begin(self, name, max_attempts):
        self.router = Router(RoutingSettings(strategy=name, max_attempts=max_attempts), self.decided)
        self.max_attempts = max_attempts
        self.replicas, self.available, self.routes = [], set(), []
        self.held, self.promised, self.tried, self.requests = {}, {}, {}, 0

    def decided(self, request, attempt, chosen, candidates, now_ns):
        assert candidates == self.untried(chosen.model, self.tried.get(request.id, []))
        assert chosen in candidates
        assert attempt == len(self.tried.get(request.id, [])) + 1
        self.held[request.id] = chosen

    def untried(self, model, tried):
        return [
            each
            for each in self.replicas
            if each.model == model and each in self.available and each not in tried
        ]

    @precondition(lambda self: len(self.replicas) < 8)
    @rule(model=st.sampled_from(["llama", "phi"]))
    def add(self, model):
        replica = Stub(f"r{len(self.replicas)}", model)
        self.replicas.append(replica)
        self.available.add(replica)
        self.router.add(replica)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), available=st.booleans())
    def set_available(self, data, available):
        replica = data.draw(st.sampled_from(self.replicas))
        (self.available.add if available else self.available.discard)(replica)
        self.router.set_available(replica, available)

    @rule(model=st.sampled_from(["llama", "phi"]), max_output_tokens=st.integers(1, 9))
    def route(self, model, max_output_tokens):
        number, self.requests = self.requests, self.requests + 1
        wanted = Request(number, model, PROMPT, max_output_tokens, 0)
        if not self.untried(model, []):
            with pytest.raises(NoReplica):
                self.router.route(wanted, model, 0)
            return
        self.routes.append((wanted, self.router.route(wanted, model, 0)))
        self.tried[number], self.promised[number] = [], self.held[number]

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def next(self, data):
        wanted, route = data.draw(st.sampled_from(self.routes))
        tried, promised = self.tried[wanted.id], self.promised.pop(wanted.id, None)
        if promised is not None and promised in self.available:
            expected = [promised]
        elif len(tried) >= self.max_attempts:
            expected = []
        else:
            expected = self.untried(wanted.model, tried)
        chosen = route.next(0)
        if chosen is None:
            assert expected == []
            self.held.pop(wanted.id, None)
        else:
            assert chosen in expected
            assert chosen is self.held[wanted.id]
            tried.append(chosen)

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def leave(self, data):
        entry = data.draw(st.sampled_from(self.routes))
        self.routes.remove(entry)
        entry[1].__exit__()
        self.held.pop(entry[0].id, None)

    @invariant()
    def loads_are_those_of_the_open_routes(self):
        for replica in getattr(self, "replicas", []):
            inside = [wanted for wanted, _ in self.routes if self.held.get(wanted.id) is replica]
            assert replica.requests_in_flight == len(inside)
            assert replica.tokens_in_flight == sum(wanted.max_tokens for wanted in inside)


TestRouter = RouterMachine.TestCase
TestRouter.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
