"""Every request has exactly one end, told to every sink."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.clock import WallClock
from engine.engine import Engine
from engine.errors import EngineError
from engine.request import Completion, Request, Stream, Usage
from engine.settings import QuotaSettings, RoutingSettings
from engine.telemetry import AttemptLost, Ended, HealthChanged, Meter, Telemetry

MS = 1_000_000


class Events(list):
    emit = list.append

    def ends(self):
        return [(event.outcome, event.reason) for event in self if isinstance(event, Ended)]


class Play:
    """An engine whose events are kept, and requests that are served in it."""

    def __init__(self, settings, clock):
        self.events, self.errors = Events(), []
        self.clock = clock
        self.engine = Engine(settings, clock, [self.events])
        self.engine.start()

    def ask(self, number=0, model="llama", tokens=(7,) * 32, output=8, **options):
        prompt = np.array(tokens, dtype=np.int32)
        request = Request(number, model, prompt, output, self.clock.now_ns(), **options)
        return self.clock.spawn(self._serve(request))

    async def _serve(self, request):
        try:
            await self.engine.serve(request)
        except EngineError as error:
            self.errors.append(type(error).__name__)

    def run(self, until_ns=20_000 * MS):
        self.clock.env.run(until=until_ns)
        return self.events.ends()


@pytest.fixture
def play(settings, clock):
    return lambda: Play(settings, clock)


def test_a_request_that_is_served_is_completed(play):
    world = play()
    world.ask()
    assert world.run() == [("completed", None)]
    assert world.errors == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": ()},
        {"output": 0},
        {"output": -1},
        {"tokens": (1, -1)},
        {"tokens": (128_256,)},
    ],
)
def test_what_nobody_could_serve_is_rejected(play, wrong):
    world = play()
    world.ask(**wrong)
    assert world.run() == [("rejected", "bad_request")]
    assert world.errors == ["BadRequest"]


@pytest.mark.parametrize("output", [10**9, 131_072 - 31])
def test_what_is_too_long_for_the_model_is_rejected_and_says_so(play, output):
    world = play()
    world.ask(output=output)
    assert world.run() == [("rejected", "context_too_long")]
    assert world.errors == ["TooLong"]


def test_a_request_that_just_fits_is_not_rejected(play):
    world = play()
    world.ask(tokens=(0, 128_255), output=2)
    assert world.run() == [("completed", None)]


def test_an_unknown_model_is_rejected(play):
    world = play()
    world.ask(model="gpt")
    assert world.run() == [("rejected", "not_found")]


def test_too_many_are_rejected(settings, play):
    settings.quotas = QuotaSettings(max_concurrent_requests=1, queue_capacity=1)
    world = play()
    for number in range(3):
        world.ask(number)
    assert Counter(world.run()) == {("completed", None): 2, ("rejected", "over_quota"): 1}


def test_without_a_replica_a_request_fails(play):
    world = play()
    for replica in world.engine.replicas.values():
        world.engine.router.set_available(replica.name, False)
    world.ask()
    assert world.run(100 * MS) == [("failed", "no_replica")]


def test_when_no_second_try_is_allowed_a_lost_replica_fails_the_request(settings, play):
    settings.routing = RoutingSettings(max_attempts=1)
    world = play()
    world.ask(output=50)
    world.run(100 * MS)
    world.engine.replicas["a"].crash()
    assert world.run() == [("failed", "replica_lost")]
    assert [event.new_tokens for event in world.events if isinstance(event, AttemptLost)] == [9]


def test_a_deadline_that_had_passed_on_arrival(play):
    world = play()
    world.run(MS)
    world.ask(deadline_ns=MS)
    assert world.run() == [("timed_out", "deadline_passed")]


def test_a_deadline_in_the_queue(settings, play):
    settings.quotas = QuotaSettings(max_concurrent_requests=1)
    world = play()
    world.ask(0, output=100)
    world.ask(1, deadline_ns=50 * MS)
    assert world.run() == [("timed_out", "deadline_passed"), ("completed", None)]
    end = next(event for event in world.events if isinstance(event, Ended))
    assert (end.at_ns, end.admitted_ns, end.attempts) == (50 * MS, None, 0)


def test_a_deadline_while_executing(play):
    world = play()
    world.ask(output=100, deadline_ns=100 * MS)
    assert world.run() == [("timed_out", "deadline_passed")]
    end = world.events[-1]
    assert (end.at_ns, end.attempts, end.output_tokens) == (100 * MS, 1, 9)


def test_a_request_whose_world_ends_is_cancelled(play):
    world = play()
    world.ask(output=100)
    world.run(100 * MS)
    world.clock.close()
    assert world.events.ends() == [("cancelled", "cancelled")]


@pytest.mark.parametrize("after", ["arrival", "admission"])
def test_a_caller_that_cancels_is_told_so(settings, after):
    settings.quotas = QuotaSettings(max_concurrent_requests=1)
    events = Events()

    async def main():
        clock = WallClock()
        engine = Engine(settings, clock, [events])
        prompt = np.zeros(8, dtype=np.int32)
        grant = engine.quotas.reserve(Request(99, "llama", prompt, 1, 0), "llama@1.0.0", 1, 0)
        task = asyncio.ensure_future(
            engine.serve(Request(0, "llama", prompt, 4, 0))
        )  # nobody started the engine
        await asyncio.sleep(0)
        if after == "admission":
            grant.release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        grant.release()
        await clock.close()
        assert engine.quotas.in_service == engine.quotas.num_waiting == 0
        assert all(
            replica.num_waiting == engine.router.seat(replica.name).tokens_in_flight == 0
            for replica in engine.replicas.values()
        )

    asyncio.run(main())
    assert events.ends() == [("cancelled", "cancelled")]
    assert (events[-1].admitted_ns is not None) == (after == "admission")


def test_a_defect_of_ours_is_an_internal_error_and_not_swallowed(play, monkeypatch):
    world = play()
    monkeypatch.setattr(world.engine, "_chain", lambda *_: 1 // 0)
    world.ask()
    with pytest.raises(ZeroDivisionError):
        world.run()
    assert world.events.ends() == [("failed", "internal_error")]


def test_an_executor_with_a_defect_fails_over(play, monkeypatch):
    world = play()

    monkeypatch.setattr(world.engine.replicas["a"]._loop._executor, "ticks", lambda _: 1 // 0)
    world.ask()
    with pytest.raises(ZeroDivisionError):
        world.run()
    assert world.run() == [("completed", None)]


def test_every_sink_is_told_in_order(clock):
    one, two = Events(), Events()
    telemetry = Telemetry(clock, [one, two])
    change = HealthChanged(0, "a", "healthy", "unhealthy", "lost")
    telemetry.emit(change)
    assert one == two == [change]


def test_a_stream_without_completion_is_cancelled_and_knows_its_tokens(clock):
    events, stream = Events(), Stream()
    request = Request(1, "llama", np.zeros(3, dtype=np.int32), 4, 0, tenant="t", session="s")
    with Telemetry(clock, [events]).follow(request, stream):
        stream.push(5, 7)
        stream.push(6, 9)
    end = events[-1]
    assert (end.outcome, end.output_tokens, end.first_token_ns) == ("cancelled", 2, 7)
    assert (end.tenant, end.session, end.model_requested, end.prompt_tokens) == ("t", "s", "llama", 3)
    assert stream.last_token_ns == 9


def test_completed_gives_the_completion_back(clock):
    completion = Completion(1, "llama", "a", 1, [5], Usage(3, 1, 0), 0)
    request = Request(1, "llama", np.zeros(3, dtype=np.int32), 1, 0)
    with Telemetry(clock).follow(request, Stream()) as story:
        assert story.completed(completion) is completion


def test_the_numbers_of_a_run_are_those_of_its_events(settings, clock):
    meter, events = Meter(), Events()
    engine = Engine(settings, clock, [meter, events])
    engine.start()

    async def serve(request):
        await engine.serve(request)

    for number in range(12):
        prompt = np.full(16 + number, 1, dtype=np.int32)
        clock.spawn(serve(Request(number, "llama", prompt, 1 + number % 3, 0)))
    clock.env.run(until=5_000 * MS)
    told = {
        sample.name: sample.value
        for family in text_string_to_metric_families(meter.exposition())
        for sample in family.samples
        if sample.labels == {"model_name": "llama@1.0.0"}
    }
    assert told["vllm:prompt_tokens_total"] == sum(16 + number for number in range(12))
    assert told["vllm:generation_tokens_total"] == 24
    ends = [event for event in events if isinstance(event, Ended)]
    assert told["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(sum(e.at_ns for e in ends) / 1e9)
