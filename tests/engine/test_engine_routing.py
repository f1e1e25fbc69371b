"""Groups, fallbacks, sessions and explanations, with the whole engine behind them."""

from collections import Counter
from itertools import count

import numpy as np
import pytest

from engine.clock import NS_PER_S
from engine.engine import Engine
from engine.errors import BadRequest, BadSettings, EngineError, NoReplica, NotFound, TooLong
from engine.registry import HealthMonitor
from engine.request import Request, Stream
from engine.settings import (
    Architecture,
    FleetSettings,
    HealthSettings,
    LoadingSettings,
    ModelSettings,
    RoutingSettings,
)

LAYERS = {"hidden": 2048, "heads": 32, "kv_heads": 8, "head_dim": 64, "ffn": 8192, "vocab": 128_256}
SIZES = {"small": (4, 4096), "middle": (8, 32_768), "big": (16, 131_072)}
QUIET = HealthSettings(enabled=False)


def shape(name):
    layers, context_tokens = SIZES[name]
    return Architecture(layers=layers, context_tokens=context_tokens, **LAYERS)


class World:
    """An engine with three models, two replicas each, on the virtual clock."""

    def __init__(self, settings, clock, **changes):
        models = [ModelSettings(name=name, architecture=shape(name)) for name in SIZES]
        replicas = {f"{name}-{side}": name for name in SIZES for side in "ab"}
        settings.fleet = FleetSettings(models=models, replicas=replicas)
        options = {"decision_log": 1.0, "slow_start_s": 0.0, **changes.pop("routing", {})}
        settings.routing = RoutingSettings(**options)
        for name, value in changes.items():
            setattr(settings, name, value)
        self.clock, self.events, self.ids = clock, [], count()
        self.engine = Engine(settings, clock, [self])
        self.emit = self.events.append
        self.engine.start()

    def ask(self, model="auto", prompt=64, output=8, **options):
        tokens = np.arange(prompt, dtype=np.int32) if isinstance(prompt, int) else prompt
        request = Request(next(self.ids), model, tokens, output, self.clock.now_ns(), **options)
        found = []

        async def serve():
            try:
                found.append(await self.engine.serve(request, Stream()))
            except EngineError as error:
                found.append(error)

        self.clock.spawn(serve())
        return found

    def run(self, seconds=5.0):
        self.clock.env.run(until=self.clock.now_ns() + round(seconds * NS_PER_S))

    def get(self, *arguments, **options):
        found = self.ask(*arguments, **options)
        self.run()
        return found[0]

    def kill(self, *models):
        for name, replica in self.engine.replicas.items():
            if name.split("-")[0] in models:
                replica.crash()

    def told(self, kind):
        return [event for event in self.events if event.kind == kind]


@pytest.fixture
def world(settings, clock):
    return lambda **changes: World(settings, clock, **changes)


def test_auto_is_every_model_of_the_fleet(world):
    here = world()
    answers = Counter(here.get().model for _ in range(6))
    assert answers == {f"{name}@1.0.0": 2 for name in SIZES}


def test_a_group_and_a_tag_mean_some_models(world):
    here = world(routing={"groups": {"cheap": ["small", "middle"]}})
    assert {here.get("cheap").model for _ in range(6)} == {"small@1.0.0", "middle@1.0.0"}
    assert isinstance(here.get("tag:code"), NotFound)


def test_a_session_stays_with_one_model_of_a_group(world):
    here = world()
    replicas = {here.get(session="user-123").replica for _ in range(20)}
    assert len(replicas) == 1
    here.run(360)
    after = {here.get(session="user-123").replica for _ in range(5)}
    assert len(after) == 1


def test_where_a_model_of_a_group_dies_another_one_answers_whole(world):
    here = world(routing={"strategy": "affinity", "max_attempts": 2})
    first = here.get(session="s", output=40)
    found = here.ask(session="s", output=40, prompt=65)
    here.kill(first.model.split("@")[0])
    here.run()
    assert found[0].model != first.model
    assert len(found[0].tokens) == 40


def test_an_answer_that_has_begun_is_not_continued_by_another_model(world):
    here = world(health=QUIET)
    found = here.ask(output=2000, session="s")
    here.run(0.2)
    here.kill(*SIZES)
    here.run()
    assert isinstance(found[0], EngineError)
    assert not here.told("request_fell_back")


def test_a_model_that_cannot_serve_has_its_fallbacks_tried_in_order(world):
    here = world(routing={"fallbacks": {"big": ["middle", "small"]}})
    here.kill("big", "middle")
    here.run(5)
    answer = here.get("big")
    assert answer.model == "small@1.0.0"
    assert [(each.before, each.after, each.reason) for each in here.told("request_fell_back")] == [
        ("big", "middle", "no_replica"),
        ("middle", "small", "no_replica"),
    ]
    assert isinstance(here.get("middle"), NoReplica)


def test_a_refusal_says_when_those_who_are_closed_are_looked_at_again(world):
    here = world(health=HealthSettings(probe_every_s=7))
    here.kill("middle")
    here.run(30)
    assert here.get("middle").retry_after_s == 7


def test_a_request_that_is_too_long_goes_to_a_longer_model(world):
    here = world(routing={"context_fallbacks": {"small": ["middle", "big"]}})
    assert here.get("small", prompt=5000).model == "middle@1.0.0"
    assert here.get("small", prompt=40_000).model == "big@1.0.0"
    assert isinstance(here.get("small", prompt=200_000), TooLong)
    assert here.get("small").model == "small@1.0.0"


def test_a_wrong_request_has_no_fallbacks(world):
    here = world(routing={"fallbacks": {"*": ["small"]}})
    assert isinstance(here.get("big", output=0), BadRequest)
    assert not here.told("request_fell_back")


def test_a_fallback_may_be_a_group(world):
    here = world(routing={"groups": {"rest": ["small", "middle"]}, "fallbacks": {"big": ["rest"]}})
    here.kill("big")
    here.run(5)
    assert {here.get("big").model for _ in range(4)} == {"small@1.0.0", "middle@1.0.0"}


def test_a_group_that_nobody_has_in_memory_is_loaded(world):
    here = world(models=LoadingSettings(preload=False, cold_median_s=1.0, cold_p90_s=1.0))
    assert not here.engine.fleet.homes
    assert here.get("auto").model == "small@1.0.0"
    assert list(here.engine.fleet.homes) == ["small@1.0.0"]


def test_names_that_make_no_sense_stop_the_start(world):
    with pytest.raises(BadSettings, match=r"routing.fallbacks names 'gone', but .*'gone'"):
        world(routing={"fallbacks": {"big": ["gone"]}})


def test_a_session_of_ten_megabytes_is_refused_at_the_door(world):
    here = world()
    answer = here.get(session="x" * 10_000_000)
    assert str(answer) == "session has 10000000 characters, but may have 256"
    assert str(here.get(tenant="t" * 257)) == "tenant has 257 characters, but may have 256"
    assert here.get(session="x" * 256).finish_reason == "length"


def test_cache_aware_sends_a_prefix_to_the_model_whose_cache_has_it(world):
    here = world(routing={"strategy": "cache_aware"})
    first = here.get(prompt=640)
    others = [here.get(prompt=np.full(640, number, dtype=np.int32)) for number in range(1, 7)]
    assert {answer.model for answer in others} == {f"{name}@1.0.0" for name in SIZES}
    again = [here.get(prompt=640) for _ in range(5)]
    assert {answer.model for answer in again} == {first.model}
    assert again[0].usage.cached_tokens == 624
    other_tenant = [here.get(prompt=640, tenant="other").model for _ in range(3)]
    assert len(set(other_tenant[:1])) == 1
    assert here.get(prompt=640, tenant="third").usage.cached_tokens == 0


def test_what_the_cache_has_lost_is_worth_nothing(world):
    here = world(routing={"strategy": "cache_aware"})
    first = here.get(prompt=640)
    here.engine.cache.drop_model(first.model)
    seats = here.engine.router.seats()
    request = Request(99, "auto", np.arange(640, dtype=np.int32), 4, 0)
    told = here.engine.explain(request)
    assert all(each.saved_blocks == 0 for each in told.candidates)
    assert any(each.blocks == 40 for each in told.candidates)
    assert all(seat.tokens_in_flight == 0 for seat in seats)


def test_explain_names_the_candidates_and_changes_nothing(world):
    here = world(routing={"strategy": "0.6 cache_aware + 0.3 least_loaded + 0.1 latency_based"})
    here.get(prompt=640)
    request = Request(99, "auto", np.arange(640, dtype=np.int32), 4, 0)
    told = here.engine.explain(request)
    assert [each.name for each in told.candidates] == list(here.engine.replicas)
    assert told == here.engine.explain(request)
    assert set(told.terms()) == {"cache_aware", "least_loaded", "latency_based"}
    with pytest.raises(NotFound):
        here.engine.explain(Request(1, "gpt", np.arange(4, dtype=np.int32), 4, 0))


def test_latency_is_seen_by_the_router(world):
    here = world(routing={"strategy": "latency_based"})
    for _ in range(12):
        here.get()
    seen = {seat.name: seat.latency_ns for seat in here.engine.router.seats() if seat.num_observed}
    assert seen
    assert all(latency_ns > 1e6 for latency_ns in seen.values())


def burst_on_trial(here):
    """Twenty requests at once for a model whose only replica that is there is on trial."""
    for replica in ("small-a", "small-b"):
        here.engine.replicas[replica].crash()
    here.get("small")
    here.engine.replicas["small-a"].recover()
    here.run(1.5)
    found = [here.ask("small", output=50) for _ in range(20)]
    here.run(0.05)
    inside = here.engine.replicas["small-a"].num_in_hand
    here.run()
    return inside, [answer[0] for answer in found]


def test_half_open_lets_one_request_through(world):
    # elsewhere half-open admits everything
    health = HealthSettings(probes=False, retry_after_s=1.0)
    inside, answers = burst_on_trial(world(health=health))
    assert inside == 1
    assert sum(not isinstance(answer, EngineError) for answer in answers) == 1


def test_twin_whose_half_open_admits_everything_is_seen(world, monkeypatch):
    monkeypatch.setattr(HealthMonitor, "enter", lambda monitor, replica: True)
    health = HealthSettings(probes=False, retry_after_s=1.0)
    inside, _ = burst_on_trial(world(health=health))
    assert inside == 20


def test_a_replica_on_trial_that_takes_nobody_uses_up_no_attempt(world):
    here = world(health=HealthSettings(probes=False, retry_after_s=1.0), routing={"max_attempts": 1})
    for replica in ("small-a", "small-b"):
        here.engine.replicas[replica].crash()
        here.get("small")
        here.engine.replicas[replica].recover()
    here.run(1)  # both are on trial by now, for one request each
    found = [here.ask("small", output=50) for _ in range(2)]
    here.run()
    assert all(answer[0].finish_reason == "length" for answer in found)
