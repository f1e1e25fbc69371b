"""The path of a request, end to end: routed, admitted, cached, executed, told; and carried on when a replica dies."""

import asyncio
from itertools import pairwise

import numpy as np
import pytest

from engine.clock import NS_PER_S, WallClock
from engine.engine import Engine
from engine.errors import (
    BadSettings,
    DeadlinePassed,
    EngineError,
    NoReplica,
    OverQuota,
    ReplicaLost,
    UnknownName,
)
from engine.request import Request, Stream
from engine.settings import (
    GIB,
    CacheSettings,
    ExecutorSettings,
    FleetSettings,
    HealthSettings,
    ModelSettings,
    QuotaSettings,
    RoutingSettings,
    TierSettings,
)
from sim.world import SimClock

MS = 1_000_000
QUIET = HealthSettings(enabled=False)


class Events(list):
    emit = list.append


class Play:
    """An engine on the virtual clock, its events, and what became of each request."""

    def __init__(self, settings, clock):
        self.clock, self.events = clock, Events()
        self.engine = Engine(settings, clock, [self.events])
        self.engine.start()
        self.answers, self.streams, self.asked = {}, {}, 0

    def ask(self, prompt=100, output=20, model="llama", **options):
        number, self.asked = self.asked, self.asked + 1
        tokens = (
            np.arange(prompt, dtype=np.int32) if isinstance(prompt, int) else np.array(prompt, dtype=np.int32)
        )
        request = Request(number, model, tokens, output, self.clock.now_ns(), **options)
        self.streams[number] = Stream()
        self.clock.spawn(self._serve(request))
        return number

    async def _serve(self, request):
        try:
            self.answers[request.id] = await self.engine.serve(request, self.streams[request.id])
        except EngineError as error:
            self.answers[request.id] = error

    def run(self, seconds=30.0):
        self.clock.env.run(until=self.clock.now_ns() + round(seconds * NS_PER_S))
        return [self.answers.get(number) for number in range(self.asked)]

    def kinds(self, number=0):
        mine = [event for event in self.events if getattr(event, "request_id", None) == number]
        return [event.kind for event in mine]

    def told(self, kind):
        return [event for event in self.events if event.kind == kind]

    def is_idle(self):
        quotas, replicas = self.engine.quotas, self.engine.replicas.values()
        loads = sum(each.num_in_hand for each in replicas)
        loads += sum(each.tokens_in_flight + each.requests_in_flight for each in self.engine.router.seats())
        self.engine.cache.check_integrity()
        return quotas.in_service == quotas.num_waiting == loads == 0


@pytest.fixture
def play(settings, clock):
    return lambda **changes: Play(changed(settings, **changes), clock)


def changed(settings, **changes):
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings


def test_an_engine_serves_as_soon_as_it_is_started(engine, clock):
    request = Request(7, "llama@1.0.0", np.arange(5, dtype=np.int32), 3, 0)
    answer = clock.env.run(until=clock.spawn(engine.serve(request)))
    assert (answer.request_id, answer.model, answer.replica, answer.attempts) == (7, "llama@1.0.0", "a", 1)
    assert len(answer.tokens) == answer.usage.output_tokens == 3
    assert answer.finished_ns == clock.now_ns()


def test_the_steps_of_a_request_are_told_in_their_order(play):
    world = play()
    world.ask()
    world.run()
    assert world.kinds() == [
        "request_arrived",
        "request_routed",
        "request_admitted",
        "prefix_found",
        "request_ended",
    ]
    end = world.told("request_ended")[0]
    assert end.arrival_ns <= end.admitted_ns <= end.started_ns < end.first_token_ns < end.at_ns
    assert (end.model, end.replica, end.attempts, end.output_tokens) == ("llama@1.0.0", "a", 1, 20)


def test_the_stream_is_the_answer(play):
    world = play()
    world.ask(output=9)
    (answer,) = world.run()
    assert answer.tokens == world.streams[0].tokens
    assert len(answer.tokens) == 9


def test_a_second_identical_prompt_finds_its_prefix_and_is_faster(play):
    world = play()
    world.ask(prompt=1000)
    world.run()
    world.ask(prompt=1000)
    first, second = world.run()
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 992)
    assert second.tokens == first.tokens
    one, two = world.told("request_ended")
    assert two.first_token_ns - two.arrival_ns < one.first_token_ns - one.arrival_ns
    assert two.cached_tokens_ram == 992


def test_a_conversation_finds_its_own_answer_in_the_cache(play):
    world = play()
    world.ask(prompt=100, output=60)
    (answer,) = world.run()
    world.ask(prompt=[*range(100), *answer.tokens, 1, 2, 3])
    assert world.run()[1].usage.cached_tokens == 144  # of 159 tokens whose KV was computed, the full blocks


@pytest.mark.parametrize(("is_shared", "expected"), [(False, 0), (True, 96)])
def test_tenants_share_a_prefix_only_when_that_is_asked_for(play, is_shared, expected):
    world = play(cache=CacheSettings(share_between_tenants=is_shared))
    world.ask(tenant="one")
    world.run()
    world.ask(tenant="other")
    world.ask(tenant="one")
    _, other, same = world.run()
    assert other.usage.cached_tokens == expected
    assert same.usage.cached_tokens == 96


def test_without_a_cache_nothing_is_found_and_nothing_is_copied_out(play):
    world = play(cache=CacheSettings(enabled=False))
    copied = []
    for replica in world.engine.replicas.values():
        executor = replica._loop._executor
        executor.retire = lambda *told, do=executor.retire: copied.extend(do(*told))
    world.ask()
    world.run()
    world.ask()
    assert [answer.usage.cached_tokens for answer in world.run()] == [0, 0]
    assert (len(world.engine.cache), copied) == (0, [])


def undisturbed(settings, *requests):
    """What the same requests get on a fleet that nothing happens to."""
    clock = SimClock()
    world = Play(settings, clock)
    for prompt, output in requests:
        world.ask(prompt, output)
    tokens = [answer.tokens for answer in world.run()]
    clock.close()
    return tokens


@pytest.mark.parametrize("dies_ms", [1, 11, 50, 137, 260, 401])
def test_callers_do_not_notice_that_a_replica_dies(settings, play, dies_ms):
    asked = [(40 + 30 * number, 10 + 7 * number) for number in range(9)]
    expected = undisturbed(settings, *asked)
    world = play()
    for prompt, output in asked:
        world.ask(prompt, output)
    world.run(dies_ms / 1000)
    in_hand = world.engine.replicas["a"].num_in_hand
    world.engine.replicas["a"].crash()
    answers = world.run()
    assert [answer.tokens for answer in answers] == expected
    assert [len(answer.tokens) for answer in answers] == [output for _, output in asked]
    assert sum(answer.attempts == 2 for answer in answers) == in_hand > 0
    assert world.is_idle()


def test_a_request_is_carried_on_over_two_deaths(settings, play):
    expected = undisturbed(settings, (100, 60))
    world = play()
    world.ask(100, 60)
    for name in "ab":
        world.run(0.2)
        world.engine.replicas[name].crash()
    (answer,) = world.run()
    assert [answer.tokens] == expected
    assert (answer.replica, answer.attempts) == ("c", 3)
    assert world.kinds().count("request_routed") == 3
    assert [event.new_tokens for event in world.told("attempt_lost")] == [19, 38]


def test_cached_tokens_are_those_of_the_last_attempt(play):
    size = play().engine.fleet.homes["llama@1.0.0"].block_bytes / GIB
    tiers = {"gpu": TierSettings(gib=8 * size), "ram": TierSettings(gib=80 * size)}
    world = play(cache=CacheSettings(**tiers, load="always"))
    world.ask(100, 1)
    world.run()
    world.ask(np.arange(500, 600), 1)  # sends the first one's blocks down
    world.run()
    asked_ns = world.clock.now_ns()
    number = world.ask(100, 60)
    world.run(0.4)
    (found,) = [event for event in world.told("prefix_found") if event.at_ns >= asked_ns]
    assert found.cached_tokens == 96
    serving = next(each for each in world.engine.replicas.values() if each.num_in_hand)
    serving.crash()
    answer = world.run()[number]
    end = world.told("request_ended")[-1]
    assert answer.attempts == 2
    assert answer.usage.cached_tokens == end.cached_tokens_gpu == 96
    assert end.cached_tokens_ram == 0  # where the lost attempt had found them


def test_cached_tokens_are_those_of_the_prompt_also_when_the_answer_is_cached(play):
    world = play()
    world.ask(100, 60)
    world.run()
    world.ask(100, 60)
    world.run(0.4)
    world.engine.replicas["b"].crash()
    _, answer = world.run()
    assert answer.attempts == 2
    assert answer.usage.cached_tokens == world.told("request_ended")[-1].cached_tokens_ram == 100


def test_a_dead_replica_is_marked_and_gets_nothing_until_probes_bring_it_back(play):
    world = play()
    world.ask()
    world.run(0.05)
    world.engine.replicas["a"].crash()
    world.run(5)
    assert not world.engine.is_available("a")
    for _ in range(4):
        world.ask()
    assert {answer.replica for answer in world.run()[1:]} == {"b", "c"}
    world.engine.replicas["a"].recover()
    world.run(1.5)
    assert not world.engine.is_available("a")
    world.run(1.0)
    assert world.engine.is_available("a")
    for _ in range(3):
        world.ask()
    assert {answer.replica for answer in world.run()[5:]} == {"a", "b", "c"}
    changes = [(event.replica, event.after, event.cause) for event in world.told("health_changed")]
    assert changes == [("a", "unhealthy", "replica lost"), ("a", "healthy", "probes answered")]


def test_probes_alone_find_a_dead_replica(play):
    world = play()
    world.engine.replicas["b"].crash()
    world.run(1.5)
    assert world.engine.is_available("b")
    world.run(1.0)
    assert not world.engine.is_available("b")
    assert world.told("health_changed")[0].cause == "probes failed"


def test_a_busy_replica_is_not_taken_for_a_dead_one(settings, play):
    settings.fleet.max_batch = 2
    world = play()
    for _ in range(6):
        world.ask(output=1500)  # a quarter of a minute in every slot: no probe gets one
    answers = world.run()
    assert {len(answer.tokens) for answer in answers} == {1500}
    assert world.told("health_changed") == []


def test_without_health_the_dead_go_on_getting_requests(play):
    world = play(health=QUIET)
    world.engine.replicas["a"].crash()
    for _ in range(9):
        world.ask()
    answers = world.run()
    assert {answer.replica for answer in answers} == {"b", "c"}
    assert len(world.told("attempt_lost")) >= 3
    assert world.told("health_changed") == []
    assert world.engine.is_available("a")


def test_when_all_are_dead_there_is_no_replica_and_then_there_is_again(play):
    world = play()
    for replica in world.engine.replicas.values():
        replica.crash()
    world.run(3)
    world.ask()
    assert isinstance(world.run(1)[0], NoReplica)
    world.engine.replicas["c"].recover()
    world.run(5)
    world.ask()
    assert world.run()[1].replica == "c"
    assert world.is_idle()


def test_when_the_last_one_dies_under_a_request_that_has_tries_left(play):
    world = play(routing=RoutingSettings(max_attempts=9))
    world.ask(output=50)
    world.run(0.1)
    for replica in world.engine.replicas.values():
        replica.crash()
    (answer,) = world.run(1)
    assert isinstance(answer, NoReplica)
    assert isinstance(answer.__cause__, ReplicaLost)
    assert "no healthy replica of 'llama@1.0.0' is left for request 0" in str(answer)
    assert len(world.told("attempt_lost")) == 3


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_a_request_is_lost_when_its_tries_are_used_up(play, max_attempts):
    world = play(routing=RoutingSettings(max_attempts=max_attempts), health=QUIET)
    for replica in world.engine.replicas.values():
        replica.crash()
    world.ask()
    assert isinstance(world.run(1)[0], ReplicaLost)
    assert len(world.told("attempt_lost")) == max_attempts
    assert world.is_idle()


def test_a_replica_that_falls_ill_while_its_request_waits_is_not_used(play):
    world = play(quotas=QuotaSettings(max_concurrent_requests=1))
    world.ask(output=50)
    world.ask()  # chosen for b, waits
    world.run(0.1)
    world.engine.health.lost("b", world.clock.now_ns())
    _, second = world.run(10)
    assert (second.replica, second.attempts) == ("c", 1)


def test_slots_are_given_back_whatever_the_outcome(play):
    world = play(quotas=QuotaSettings(max_concurrent_requests=2, queue_capacity=2), health=QUIET)
    world.ask(output=400, deadline_ns=500 * MS)  # times out while it runs
    world.ask(output=20)  # is served
    world.ask(deadline_ns=100 * MS)  # times out in the queue
    world.ask(output=30)
    world.ask()  # is refused
    world.ask(model="gpt")
    world.ask(output=0)
    answers = world.run()
    assert [type(answer).__name__ for answer in answers] == [
        "DeadlinePassed",
        "Completion",
        "DeadlinePassed",
        "Completion",
        "OverQuota",
        "NotFound",
        "BadRequest",
    ]
    assert isinstance(answers[4], OverQuota)
    assert answers[4].retry_after_s > 0
    assert world.is_idle()
    for replica in world.engine.replicas.values():
        replica.crash()
    world.ask()
    world.run()
    assert world.is_idle()


def test_nothing_comes_after_the_deadline(play):
    world = play()
    world.ask(output=400, deadline_ns=500 * MS)
    (answer,) = world.run()
    assert isinstance(answer, DeadlinePassed)
    assert len(world.streams[0].tokens) == world.told("request_ended")[0].output_tokens
    assert world.streams[0].last_token_ns <= 500 * MS
    assert world.is_idle()


def test_two_models_have_their_own_replicas_and_slots(settings, clock):
    (model,) = settings.fleet.models
    other = ModelSettings(name="phi", architecture=model.architecture, stand_in=model.stand_in)
    settings.fleet = FleetSettings(models=[model, other], replicas={"a": "llama", "b": "phi"})
    settings.quotas = QuotaSettings(max_concurrent_requests=1, queue_capacity=0)
    world = Play(settings, clock)
    world.ask(model="llama")
    world.ask(model="phi")
    answers = world.run()
    assert [(answer.model, answer.replica) for answer in answers] == [
        ("llama@1.0.0", "a"),
        ("phi@1.0.0", "b"),
    ]
    world.ask(model="phi")
    assert world.run()[2].usage.cached_tokens == 96
    world.engine.replicas["a"].crash()
    world.run(3)
    world.ask(model="llama")
    assert isinstance(world.run()[3], NoReplica)


def test_a_model_without_a_replica_is_loaded_when_it_is_asked_for(settings, clock):
    (model,) = settings.fleet.models
    settings.fleet.models.append(
        ModelSettings(name="phi", architecture=model.architecture, stand_in=model.stand_in)
    )
    world = Play(settings, clock)
    world.ask(model="phi")
    (answer,) = world.run(30)
    assert (answer.model, answer.replica) == ("phi@1.0.0", "phi@1.0.0")
    assert world.streams[0].first_token_ns > 22 * 1000 * MS


def test_two_engines_do_not_know_of_each_other(settings, clock):
    one, two = Play(settings, clock), Play(settings, clock)
    one.ask()
    one.run()
    two.ask()
    two.run()
    assert two.answers[0].usage.cached_tokens == 0
    assert two.answers[0].replica == one.answers[0].replica == "a"


def test_the_same_play_gives_the_same_events(settings):
    def told():
        clock = SimClock()
        world = Play(settings, clock)
        for number in range(20):
            world.ask(10 + number, 5)
        world.run(0.07)
        world.engine.replicas["b"].crash()
        world.run()
        clock.close()
        return [event.as_dict() for event in world.events]

    assert told() == told()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"executor": ExecutorSettings(name="abacus")},
            "no executor is called 'abacus'; choose from .*roofline",
        ),
        ({"routing": RoutingSettings(strategy="best")}, "no strategy is called 'best'"),
        ({"cache": CacheSettings(eviction="mru")}, "no eviction policy is called 'mru'"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_runs(settings, clock, changes, message):
    with pytest.raises(UnknownName, match=message):
        Engine(changed(settings, **changes), clock)


def test_an_option_of_another_executor_is_refused_with_those_there_are(settings, clock):
    settings.executor = ExecutorSettings(name="roofline", options={"threads": 2})
    with pytest.raises(
        BadSettings, match=r"executor\.threads is 2, but executor 'roofline' has no such option; .*kv_share"
    ):
        Engine(settings, clock)


def test_two_models_of_one_name_are_refused(settings, clock):
    settings.fleet.models *= 2
    with pytest.raises(BadSettings, match=r"two models are called 'llama@1\.0\.0'"):
        Engine(settings, clock)


def test_on_the_wall_clock_many_requests_complete_and_the_engine_closes(settings):
    settings.hardware.flops = settings.hardware.memory_bytes_per_s = settings.hardware.link_bytes_per_s = 1e18
    settings.executor = ExecutorSettings(name="roofline", options={"overhead_us": 1.0})
    settings.health = HealthSettings(probe_every_s=0.001)
    settings.quotas = QuotaSettings(max_concurrent_requests=8)
    events = Events()

    async def main():
        clock = WallClock()
        engine = Engine(settings, clock, [events])
        engine.start()
        prompt = np.arange(40, dtype=np.int32)
        requests = [Request(number, "llama", prompt, 5 + number, clock.now_ns()) for number in range(20)]
        answers = await asyncio.gather(*[engine.serve(request) for request in requests])
        await clock.close()
        assert engine.quotas.in_service == engine.quotas.num_waiting == 0
        return answers

    answers = asyncio.run(main())
    assert [answer.request_id for answer in answers] == list(range(20))
    assert [len(answer.tokens) for answer in answers] == [5 + number for number in range(20)]
    assert all(one.tokens == other.tokens[: len(one.tokens)] for one, other in pairwise(answers))
    assert [event.outcome for event in events if event.kind == "request_ended"] == ["completed"] * 20


def test_on_the_wall_clock_a_crash_is_survived(settings):
    settings.hardware.flops = settings.hardware.memory_bytes_per_s = settings.hardware.link_bytes_per_s = 1e18
    settings.executor = ExecutorSettings(name="roofline", options={"overhead_us": 1.0})

    async def main():
        clock = WallClock()
        engine = Engine(settings, clock)
        engine.start()
        stream = Stream()
        request = Request(0, "llama", np.arange(40, dtype=np.int32), 200, clock.now_ns())
        answer = asyncio.ensure_future(engine.serve(request, stream))
        while not stream.tokens:  # noqa: ASYNC110  a stream has no signal of its own
            await asyncio.sleep(0)
        engine.replicas["a"].crash()
        engine.replicas["a"].recover()
        completion = await answer
        await clock.close()
        return completion

    completion = asyncio.run(main())
    assert (completion.replica, completion.attempts) == ("b", 2)
    assert len(completion.tokens) == 200


def test_nobody_waits_for_an_engine_whose_clock_is_closed(settings):
    async def main():
        clock = WallClock()
        engine = Engine(settings, clock)
        engine.start()
        request = Request(0, "llama", np.arange(40, dtype=np.int32), 2000, clock.now_ns())
        answer = asyncio.ensure_future(engine.serve(request))
        await asyncio.sleep(0.01)
        await clock.close()
        with pytest.raises(EngineError):
            await asyncio.wait_for(answer, 60)
        assert engine.quotas.in_service == 0

    asyncio.run(main())
