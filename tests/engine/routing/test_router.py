"""The router: the open, the untried, and loads that add up whatever happens."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.clock import NS_PER_S, to_ns
from engine.errors import BadSettings, NoReplica, UnknownName
from engine.request import Request
from engine.routing import Router, strategy
from engine.settings import RoutingSettings

PROMPT = np.zeros(4, dtype=np.int32)
BLEND = "0.6 cache_aware + 0.3 least_loaded + 0.1 latency_based"
NAMES = [*strategy.names(), BLEND]
IN_TURN = ("round_robin", "least_loaded", "quota_aware", "affinity", "cache_aware", BLEND)


def loads(seats):
    return [seat.tokens_in_flight for seat in seats]


def test_a_request_counts_from_the_decision_to_the_end(make, ask):
    router, seats = make()
    attempts = router.attempts("llama", ask(), 10, 0)
    assert loads(seats) == [10, 0, 0]
    assert seats[0].requests_in_flight == 1
    with attempts:
        assert attempts.next(0) is seats[0]
        assert loads(seats) == [10, 0, 0]
    assert loads(seats) == [0, 0, 0]
    assert seats[0].requests_in_flight == 0


def test_a_burst_sees_its_own_decisions(make, ask):
    router, seats = make(strategy="least_loaded")
    burst = [router.attempts("llama", ask(number), 10, 0) for number in range(6)]
    assert loads(seats) == [20, 20, 20]
    for attempts in burst:
        attempts.__exit__()
    assert loads(seats) == [0, 0, 0]


def test_twin_that_counts_when_the_request_ends_sends_the_whole_burst_to_one(make, ask):
    # seen in other routers: 480 of 480 requests to one engine, seven idle
    router, _ = make(strategy="power_of_two", count=2)
    routed = Counter()
    for number in range(20):
        seat = router.route("llama", ask(number), 10, 0)
        routed[seat.name] += 1
    assert max(routed.values()) <= 11
    late, others = make(strategy="power_of_two", count=2)
    others[1].tokens_in_flight = 1
    sent = Counter()
    for number in range(20):
        seat = late.route("llama", ask(number), 10, 0)
        late.release("llama", seat, ask(number), 10, 0)  # as if it counted only afterwards
        sent[seat.name] += 1
    assert sent == {"a": 20}


def test_the_load_moves_on_with_each_attempt(make, ask):
    router, seats = make()
    with router.attempts("llama", ask(), 10, 0) as attempts:
        seen = []
        while (chosen := attempts.next(0)) is not None:
            seen.append((chosen.name, loads(seats)))
    assert seen == [("a", [10, 0, 0]), ("b", [0, 10, 0]), ("c", [0, 0, 10])]
    assert loads(seats) == [0, 0, 0]


def test_the_load_is_given_back_when_an_error_leaves_the_block_and_only_once(make, ask):
    router, seats = make()
    attempts = router.attempts("llama", ask(), 10, 0)
    with pytest.raises(ZeroDivisionError), attempts:
        raise ZeroDivisionError
    attempts.__exit__()
    assert loads(seats) == [0, 0, 0]


@pytest.mark.parametrize(("max_attempts", "names"), [(1, "a"), (2, "ab"), (9, "abc")])
def test_no_replica_is_tried_twice_and_no_more_than_allowed(make, ask, max_attempts, names):
    router, _ = make(max_attempts=max_attempts)
    with router.attempts("llama", ask(), 10, 0) as attempts:
        assert [attempts.next(0).name for _ in names] == list(names)
        assert attempts.next(0) is None
        assert [seat.name for seat in attempts.tried] == list(names)


def test_one_that_is_passed_over_is_no_attempt(make, ask):
    router, seats = make(max_attempts=2)
    with router.attempts("llama", ask(), 10, 0) as attempts:
        attempts.next(0)
        attempts.pass_over()
        assert [attempts.next(0), attempts.next(0)] == [seats[1], seats[2]]
        assert attempts.next(0) is None


def test_an_answer_that_has_begun_stays_with_its_model(make, ask):
    router, _ = make()
    for name in "xyz":
        router.add(name, "phi", groups=["auto"])
    router.add("d", "llama", groups=["auto"])
    with router.attempts("auto", ask(), 10, 0) as attempts:
        model = attempts.first.model
        attempts.stay_with(model)
        tried = []
        while (seat := attempts.next(0)) is not None:
            tried.append(seat.model)
    assert set(tried) == {"phi"}
    assert len(tried) == 3


def test_a_closed_replica_gets_nothing_until_it_is_back(make, ask):
    router, seats = make()
    router.set_available("b", False)
    for number in range(6):
        assert router.route("llama", ask(number), 10, 0) is not seats[1]
    router.set_available("b", True)
    chosen = [router.route("llama", ask(), 10, 0).name for _ in range(3)]
    assert sorted(chosen) == ["a", "b", "c"]


def test_one_that_falls_ill_after_it_was_chosen_is_not_given_out(make, ask):
    router, seats = make()
    with router.attempts("llama", ask(), 10, 0) as attempts:
        router.set_available("a", False)
        assert attempts.next(0) is seats[1]
        assert loads(seats) == [0, 10, 0]


def test_without_an_open_replica_there_is_no_route(make, ask):
    router, seats = make(count=1)
    with pytest.raises(NoReplica, match="no healthy replica serves 'phi'"):
        router.route("phi", ask(), 10, 0)
    with router.attempts("llama", ask(), 10, 0) as attempts:
        router.set_available("a", False)
        assert attempts.next(0) is None
    assert loads(seats) == [0]
    assert not router.has_open("llama")
    with pytest.raises(NoReplica, match="no healthy replica serves 'llama'"):
        router.route("llama", ask(), 10, 0)


def test_decisions_are_told_before_they_count(make, ask):
    seen = []

    def observe(choice):
        candidates = [(each.name, each.tokens_in_flight) for each in choice.candidates]
        seen.append((choice.request_id, choice.attempt, choice.chosen, candidates, choice.at_ns))

    router, _ = make(count=2, observer=observe, decision_log=1.0)
    with router.attempts("llama", ask(7), 10, 100) as attempts:
        attempts.next(200)
        attempts.next(300)
    assert seen == [(7, 1, "a", [("a", 0), ("b", 0)], 100), (7, 2, "b", [("b", 0)], 300)]


def test_a_share_of_the_decisions_is_on_record_the_same_ones_each_time(make, ask):
    logged = []
    for _ in range(2):
        router, _ = make(decision_log=0.1)
        for number in range(2000):
            router.route("llama", ask(number), 1, 0)
        logged.append([choice.request_id for choice in router.log])
    assert logged[0] == logged[1]
    assert 150 < len(logged[0]) < 250


@pytest.mark.parametrize("name", NAMES)
def test_a_replica_may_join_a_router_that_already_decides(make, ask, name):
    router, (first,) = make(count=1, strategy=name)
    router.route("llama", ask(), 10, 0)
    second = router.add("z", "llama")
    chosen = {router.route("llama", ask(number), 10, 0).name for number in range(60)}
    assert chosen == {"a", "z"} or name == "cost"  # which knows no costs here
    assert first.requests_in_flight + second.requests_in_flight == 61


@pytest.mark.parametrize("name", ["round_robin", "least_loaded"])
@pytest.mark.parametrize("late", [None, 0, 1, 2])
@pytest.mark.parametrize("lost", range(3))
def test_while_one_is_always_lost_the_others_share_evenly(make, ask, name, late, lost):
    router, seats = make(strategy=name)
    if late is not None:  # it was ill when the first request came, and is back now
        router.set_available(seats[late].name, False)
        with router.attempts("llama", ask(), 10, 0) as attempts:
            attempts.next(0)
        router.set_available(seats[late].name, True)
    served = Counter()
    for number in range(600):
        with router.attempts("llama", ask(number), 10, 0) as attempts:
            while (chosen := attempts.next(0)) is seats[lost]:
                pass
            served[chosen.name] += 1
    assert sum(served.values()) == 600
    assert max(served.values()) - min(served.values()) <= 2


def test_models_have_their_own_turns(make, ask):
    router, _ = make(count=2)
    for name in "xy":
        router.add(name, "phi")
    order = [router.route(model, ask(), 10, 0).name for model in ("llama", "phi") * 2]
    assert order == ["a", "x", "b", "y"]


def test_a_removed_replica_is_gone_from_all_its_pools(make, ask):
    router, _ = make(count=1)
    router.add("x", "phi", groups=["auto", "small"])
    assert router.route("small", ask(), 10, 0).name == "x"
    router.remove("x")
    for pool in ("phi", "auto", "small"):
        assert not router.has_open(pool)
    assert router.seats_of("auto") == []


def test_a_strategy_that_does_not_exist_or_does_not_fit_is_refused(make):
    with pytest.raises(UnknownName, match="no strategy is called 'fastest'"):
        make(strategy="fastest")
    with pytest.raises(BadSettings, match="does not take these options"):
        make(options={"weight": 2})
    with pytest.raises(
        BadSettings, match=r"routing.modules names 'no_such_module', which cannot be imported"
    ):
        make(modules=["no_such_module"])


# slow start


def share_of(router, ask, name, decisions, now_ns):
    chosen = Counter(router.route("llama", ask(number), 0, now_ns).name for number in range(decisions))
    return chosen[name] / decisions


@pytest.mark.parametrize("name", ["round_robin", "least_loaded", "random", "power_of_two", "cost"])
def test_a_replica_that_is_back_gets_its_share_little_by_little(make, ask, name):
    router, seats = make(strategy=name, slow_start_s=10.0, count=5)
    router.set_available("a", False, 0)
    for seat in seats[1:]:
        seat.tokens_in_flight = 1000  # whoever balances load would now give everything to the empty one
    router.set_available("a", True, to_ns(100))
    shares = [share_of(router, ask, "a", 1000, to_ns(100 + after_s)) for after_s in (0, 5, 9.9)]
    assert shares[0] == pytest.approx(0.02, abs=0.005)
    assert shares[1] <= 0.11 + 0.005
    assert shares[2] <= 0.2 + 0.005
    if name == "least_loaded":
        assert shares[1] == pytest.approx(0.11, abs=0.005)
        assert share_of(router, ask, "a", 100, to_ns(110)) == 1.0


def test_after_slow_start_decisions_are_made_the_short_way_again(make, ask):
    router, _ = make(slow_start_s=1.0)
    router.set_available("a", False, 0)
    router.set_available("a", True, 0)
    assert router._pools["llama"].is_watched
    router.route("llama", ask(), 1, to_ns(2))
    assert not router._pools["llama"].is_watched


def test_alone_a_replica_on_slow_start_serves_everything(make, ask):
    router, _ = make(count=2, slow_start_s=10.0)
    for name in "ab":
        router.set_available(name, False, 0)
    router.set_available("a", True, 0)
    assert share_of(router, ask, "a", 10, 0) == 1.0


# panic and ejection


def test_when_too_few_are_left_they_are_not_overloaded_and_it_is_said(make, ask):
    told = []
    router, _ = make(count=5, panic_below=0.5, panic_requests=3, on_change=told.append)
    for name in "abc":
        router.set_available(name, False, 7)
    assert [(each.subject, each.change) for each in told] == [("llama", "panic")]
    for number in range(6):
        router.route("llama", ask(number), 1, 8)
    with pytest.raises(NoReplica, match=r"only 2 of 5 replicas of 'llama' are left"):
        router.route("llama", ask(), 1, 9)
    router.set_available("c", True, 10)
    assert told[-1].change == "panic over"
    assert router.route("llama", ask(), 1, 11).name in "cde"


def test_twin_that_does_not_say_so_sends_everything_to_the_last_one(make, ask):
    router, seats = make(count=5)
    for name in "abcd":
        router.set_available(name, False)
    for number in range(100):
        router.route("llama", ask(number), 1, 0)
    assert seats[4].requests_in_flight == 100


def observed(router, seats, slow, now_ns):
    for number in range(32):
        for seat in seats:
            router.observe(seat, 900 if seat is slow else 100 + number % 7, 1.0, now_ns)


def test_the_one_that_is_far_slower_is_left_out_for_a_while_longer_each_time(make, ask, clock):
    told = []
    router, seats = make(
        count=4, eject_above=3.0, eject_s=10.0, on_change=told.append, later=clock.call_later
    )
    observed(router, seats, seats[1], 0)
    assert [(each.subject, each.change) for each in told] == [("b", "ejected")]
    assert "times the median" in told[0].cause
    assert all(router.route("llama", ask(number), 1, 0) is not seats[1] for number in range(20))
    clock.env.run(until=to_ns(10.1))
    assert told[-1].change == "back"
    assert seats[1].is_open
    observed(router, seats, seats[1], to_ns(10.1))
    clock.env.run(until=to_ns(29))
    assert not seats[1].is_open
    clock.env.run(until=to_ns(31))
    assert seats[1].is_open


def test_never_more_than_some_are_ejected(make, clock):
    router, seats = make(count=4, eject_above=2.0, max_ejected=0.25, later=clock.call_later)
    for number in range(64):
        for place, seat in enumerate(seats):
            router.observe(seat, 100 if place < 2 else 1000 + number, 1.0, 0)
    assert sum(not seat.is_open for seat in seats) == 1


# stale loads


def test_loads_that_are_seen_only_now_and_then_send_a_burst_to_one(make, ask):
    router, _ = make(count=4, strategy="least_loaded", options={"ties": "random"}, refresh_s=1.0)
    router.route("llama", ask(), 10, 0)
    router.route("llama", ask(), 10, NS_PER_S)  # sees the load of the first
    now_ns = 2 * NS_PER_S
    sent = Counter(router.route("llama", ask(number), 10, now_ns + number).name for number in range(40))
    assert sum(seat.tokens_in_flight for seat in router.seats()) == 20  # nothing of the burst is seen
    assert len(sent) <= 3
    assert sum(seat.true_tokens for seat in router.seats()) == 420
    router.route("llama", ask(), 10, 3 * NS_PER_S)
    assert sum(seat.tokens_in_flight for seat in router.seats()) == 420


class RouterMachine(RuleBasedStateMachine):
    """The router against plain dicts and lists."""

    @initialize(name=st.sampled_from(NAMES), max_attempts=st.integers(1, 4), ramp=st.sampled_from([0.0, 5.0]))
    def begin(self, name, max_attempts, ramp):
        options = {"max_attempts": max_attempts, "slow_start_s": ramp, "decision_log": 1.0}
        self.router = Router(RoutingSettings(strategy=name, **options), self.decided)
        self.max_attempts, self.now_ns = max_attempts, 0
        self.seats, self.available, self.routes, self.sessions = [], {}, [], {}
        self.held, self.tried, self.requests = {}, {}, 0

    def decided(self, choice):
        pool = [seat.name for seat in self.untried(choice.pool, self.tried.get(choice.request_id, []))]
        assert [each.name for each in choice.candidates] == pool
        assert choice.chosen in pool
        self.held[choice.request_id] = choice.chosen
        known = self.sessions.get((choice.pool, choice.session))
        if choice.session is not None and known in pool:
            assert (choice.chosen, choice.reason) == (known, "session")
        self.sessions[choice.pool, choice.session] = choice.chosen

    def untried(self, pool, tried):
        members = [seat for seat in self.seats if pool in (seat.model, "auto")]
        return [seat for seat in members if self.available[seat.name] and seat.name not in tried]

    @precondition(lambda self: len(self.seats) < 8)
    @rule(model=st.sampled_from(["llama", "phi"]))
    def add(self, model):
        name = f"r{len(self.seats)}"
        self.seats.append(self.router.add(name, model, groups=["auto"]))
        self.available[name] = True

    @precondition(lambda self: self.seats)
    @rule(data=st.data(), available=st.booleans(), later_s=st.floats(0, 3))
    def set_available(self, data, available, later_s):
        self.now_ns += to_ns(later_s)
        seat = data.draw(st.sampled_from(self.seats))
        self.available[seat.name] = available
        self.router.set_available(seat.name, available, self.now_ns)

    @rule(
        pool=st.sampled_from(["llama", "phi", "auto"]),
        tokens=st.integers(1, 9),
        session=st.sampled_from([None, None, "s", "t"]),
    )
    def route(self, pool, tokens, session):
        number, self.requests = self.requests, self.requests + 1
        wanted = Request(number, pool, PROMPT, tokens, 0, session=session)
        if not self.untried(pool, []):
            with pytest.raises(NoReplica):
                self.router.attempts(pool, wanted, tokens, self.now_ns)
            return
        self.tried[number] = []
        self.routes.append((wanted, self.router.attempts(pool, wanted, tokens, self.now_ns)))

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def next(self, data):
        wanted, attempts = data.draw(st.sampled_from(self.routes))
        tried = self.tried[wanted.id]
        promised = self.held.get(wanted.id) if attempts._next is not None else None
        if promised is not None and self.available[promised]:
            expected = [promised]
        elif len(tried) >= self.max_attempts:
            expected = []
        else:
            expected = [seat.name for seat in self.untried(wanted.model, tried)]
        chosen = attempts.next(self.now_ns)
        if chosen is None:
            assert expected == []
            self.held.pop(wanted.id, None)
        else:
            assert chosen.name in expected
            tried.append(chosen.name)

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def leave(self, data):
        entry = data.draw(st.sampled_from(self.routes))
        self.routes.remove(entry)
        entry[1].__exit__()
        self.held.pop(entry[0].id, None)

    @invariant()
    def loads_are_those_of_the_open_routes(self):
        for seat in getattr(self, "seats", []):
            inside = [wanted for wanted, _ in self.routes if self.held.get(wanted.id) == seat.name]
            assert seat.requests_in_flight == len(inside)
            assert seat.tokens_in_flight == sum(wanted.max_output_tokens for wanted in inside)


TestRouter = RouterMachine.TestCase
TestRouter.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_somebody_above_the_strategy_is_asked_and_a_session_moves_along(make, ask):
    told = []
    router, seats = make(3, strategy="round_robin", decision_log=1.0, observer=told.append)
    assert router.route("llama", ask(1, session="s"), 10, 0) is seats[0]
    router.overrule = lambda request, attempt, among, chosen: among[2] if request.id == 2 else chosen
    assert router.route("llama", ask(2, session="s"), 10, 0) is seats[2]
    assert router.route("llama", ask(3, session="s"), 10, 0) is seats[2]
    assert [decision.reason for decision in told] == ["strategy", "overruled", "session"]
    assert [seat.tokens_in_flight for seat in seats] == [10, 0, 20]
