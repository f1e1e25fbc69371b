"""Spans of one request: built from hand-made facts, and the same live as simulated."""

import asyncio
import json
from itertools import pairwise

import numpy as np
import pytest

from engine.clock import NS_PER_S, WallClock, to_ns
from engine.engine import Engine
from engine.errors import EngineError
from engine.request import Request
from engine.telemetry import (
    Asked,
    AttemptLost,
    Content,
    Ended,
    FellBack,
    Preempted,
    PrefixFound,
    Routed,
    Telemetry,
    semconv,
)
from engine.telemetry.context import WORD, TraceContext, TraceIds, following, parse_traceparent, pseudonym
from engine.telemetry.phases import MARKS, PHASES, bounds_ns
from engine.telemetry.spans import MAX_NOTES, Kind, Sampling, SpanBuilder
from sim.world import SimClock

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"


def ended(number=7, outcome="completed", at_ns=900, **more):
    times = dict(zip(MARKS, (110, 130, 130, 170, 250, 410), strict=True))
    given = {
        "tenant": "acme",
        "session": None,
        "model_requested": "llama",
        "arrival_ns": 100,
        "prompt_tokens": 30,
    }
    given |= {"model": "llama@1.0.0", "replica": "a", "attempts": 1, "output_tokens": 5, **times}
    return Ended(at_ns=at_ns, request_id=number, outcome=outcome, **{**given, **more})


def routed(number=7, at_ns=100, chosen="a", model="llama@1.0.0", attempt=1):
    return Routed(
        at_ns, number, attempt, "least_loaded", chosen, ("a", "b"), (5, 9), "llama", "strategy", model
    )


class Traces(list):
    """A builder, and the traces that it has made."""

    def __init__(self, sampling=None, **options):
        self.builder = SpanBuilder(self.append, TraceIds(1, 0), sampling or Sampling(), **options)

    def tell(self, *events):
        for event in events:
            self.builder.emit(event)
        return self


def took(trace):
    return {span.name: span.end_ns - span.start_ns for span in trace[1:]}


# context


def test_a_traceparent_is_read():
    assert parse_traceparent(GOOD, "a=1,b=2") == TraceContext(TRACE, PARENT, True, "a=1,b=2")
    assert parse_traceparent(f"00-{TRACE}-{PARENT}-00").is_sampled is False
    assert parse_traceparent(f"00-{TRACE}-{PARENT}-fe").is_sampled is False
    assert parse_traceparent(f"cc-{TRACE}-{PARENT}-01-more").is_sampled is True


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        GOOD + "-more",
        GOOD.upper(),
        GOOD + " ",
        " " + GOOD,
        GOOD + "\n",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-0g",
        f"cc-{TRACE}-{PARENT}-01.more",
        f"cc-{TRACE}-{PARENT}-01-" + "x" * 10_000,
        f"00-{TRACE}-{PARENT}-\N{ARABIC-INDIC DIGIT ONE}1",
    ],
)
def test_a_traceparent_that_is_not_one_is_no_ones(header):
    assert parse_traceparent(header) is None
    made = TraceIds(1, 0).context(header)
    assert made.parent_span_id == ""
    assert made.is_sampled is None
    assert len(made.trace_id) == 32


@pytest.mark.parametrize("state", ["x" * 513, "a=1\r\nb: 2", "a=\N{SNOWMAN}"])
def test_a_state_that_may_not_be_handed_on_is_left_out_alone(state):
    assert parse_traceparent(GOOD, state) == TraceContext(TRACE, PARENT, True, "")


def test_names_are_those_of_the_seed_and_the_clocks_zero():
    assert TraceIds(1, 0).of(5) == TraceIds(1, 0).of(5)
    others = {TraceIds(1, 0).of(5), TraceIds(2, 0).of(5), TraceIds(1, 1).of(5), TraceIds(1, 0).of(6)}
    assert len(others) == 4
    ids = TraceIds(1, 0)
    names = [ids.context(None).trace_id for _ in range(1_000)] + [
        f"{ids.of(n)[0]:032x}" for n in range(1_000)
    ]
    assert len(set(names)) == 2_000
    spans = [following(WORD, number) for number in range(1, 100)]
    assert len(set(spans)) == 99
    assert 0 not in spans


# the shape of a trace


def test_a_trace_is_a_root_and_its_phases_without_gaps():
    (trace,) = Traces(epoch_ns=1_000_000, kind=Kind.SERVER).tell(routed(), ended())
    root, children = trace[0], trace[1:]
    assert (root.name, root.kind, root.parent_id, root.error) == ("chat llama", Kind.SERVER, 0, None)
    assert (root.start_ns, root.end_ns) == (1_000_100, 1_000_900)
    assert took(trace) == {
        "load": 10,
        "admit": 20,
        "transfer": 40,
        "queue": 80,
        "prefill": 160,
        "decode": 490,
    }
    assert children[0].start_ns == root.start_ns
    assert children[-1].end_ns == root.end_ns
    assert all(before.end_ns == after.start_ns for before, after in pairwise(children))
    assert {span.trace_id for span in trace} == {root.trace_id}
    assert {span.parent_id for span in children} == {root.span_id}
    assert len({span.span_id for span in trace}) == len(trace)


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        (dict.fromkeys(MARKS) | {"attempts": 0}, {"load": 800}),
        (
            dict.fromkeys(MARKS) | {"attempts": 0, "loaded_ns": 100, "admitted_ns": 150},
            {"load": 0, "admit": 800},
        ),
        (
            {"started_ns": None, "first_token_ns": None},
            {"load": 10, "admit": 20, "transfer": 40, "queue": 730},
        ),
        (
            {"attempts": 2, "tried_ns": 150},
            {
                "load": 10,
                "admit": 20,
                "retry": 20,
                "transfer": 20,
                "queue": 80,
                "prefill": 160,
                "decode": 490,
            },
        ),
        (
            {"tried_ns": 133},  # live, a first attempt begins a moment later
            {"load": 10, "admit": 20, "transfer": 40, "queue": 80, "prefill": 160, "decode": 490},
        ),
    ],
    ids=["nothing", "admitted", "queued", "second attempt", "live"],
)
def test_phases_are_those_that_were_reached_and_sum_to_the_whole(changes, due):
    (trace,) = Traces().tell(ended(**changes))
    assert took(trace) == due
    assert sum(due.values()) == 800


def test_another_model_makes_a_route_and_another_replica_does_not():
    again = routed(at_ns=108, chosen="b", attempt=2)
    assert "route" not in took(Traces().tell(routed(), again, ended())[0])
    other = routed(at_ns=108, chosen="q", model="qwen@1.0.0")
    assert took(Traces().tell(routed(), other, ended())[0])["route"] == 8
    fell = FellBack(105, 7, "llama", "qwen", "over_quota")
    assert took(Traces().tell(fell, ended())[0])["route"] == 5


def test_what_was_reached_with_a_model_before_does_not_count():
    fell = FellBack(600, 7, "llama", "qwen", "over_quota")
    (trace,) = Traces().tell(routed(), fell, ended(outcome="failed", reason="load_failed", attempts=0))
    assert took(trace) == {"route": 500, "load": 300}


def test_bounds_never_fall_and_cover_the_request():
    generator = np.random.default_rng(3)
    for _ in range(300):
        marks = [int(mark) if mark > 0 else None for mark in generator.integers(-400, 1_000, len(MARKS))]
        end = ended(at_ns=900, **dict(zip(MARKS, marks, strict=True)))
        bounds, reached = bounds_ns(end, int(generator.integers(0, 1_000)))
        assert (bounds[0], bounds[-1], len(bounds)) == (100, 900, len(PHASES) + 1)
        assert bounds == sorted(bounds)
        assert bounds[reached] == 900


def test_what_is_known_of_a_request_stands_in_its_root():
    (trace,) = Traces(server=("host", 8000)).tell(
        routed(),
        PrefixFound(120, 7, "a", 16, loaded_tokens=16, recomputed_tokens=4),
        ended(session="ada", arm="x:b", finish_reason="stop", cached_tokens_ssd=16, priority=2),
    )
    root = trace[0].attributes
    assert root == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "modelyard",
        "gen_ai.request.model": "llama",
        "gen_ai.response.model": "llama@1.0.0",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 310 / NS_PER_S,
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.conversation.id": pseudonym("ada"),
        "server.address": "host",
        "server.port": 8000,
        "modelyard.request.id": 7,
        "modelyard.tenant": "acme",
        "modelyard.priority": 2,
        "modelyard.outcome": "completed",
        "modelyard.attempts": 1,
        "modelyard.replica": "a",
        "modelyard.cache.tokens.ssd": 16,
        "modelyard.routing.strategy": "least_loaded",
        "modelyard.routing.pool": "llama",
        "modelyard.routing.candidates": ("a", "b"),
        "modelyard.routing.loads": (5, 9),
        "modelyard.routing.chosen": "a",
        "modelyard.routing.reason": "strategy",
        "modelyard.routing.arm": "x:b",
    }
    by_name = {span.name: span.attributes for span in trace[1:]}
    assert by_name["transfer"] == {
        "modelyard.cache.loaded_tokens": 16,
        "modelyard.cache.recomputed_tokens": 4,
    }
    assert by_name["prefill"] == {"modelyard.tokens": 14}
    assert by_name["decode"] == {"modelyard.tokens": 5}


def test_what_came_over_the_wire_stands_in_its_root_too():
    asked = Asked(
        90, 7, "text_completion", TRACE, PARENT, True, "a=1", "cmpl-1", True, 3, 99, 0.5, 0.9, None, 42
    )
    (trace,) = Traces().tell(asked, ended())
    root = trace[0]
    assert (root.name, f"{root.trace_id:032x}", f"{root.parent_id:016x}") == (
        "text_completion llama",
        TRACE,
        PARENT,
    )
    assert root.trace_state == "a=1"
    given = {name: value for name, value in root.attributes.items() if name in semconv.ONLY_ASKED}
    assert given == {
        "gen_ai.request.choice.count": 3,
        "gen_ai.request.max_tokens": 99,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 42,
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "cmpl-1",
    }


def test_choices_of_one_request_are_traces_with_one_name():
    traces = Traces().tell(*[Asked(0, number, "chat", TRACE) for number in (1, 2)], ended(1), ended(2))
    assert {f"{span.trace_id:032x}" for trace in traces for span in trace} == {TRACE}
    assert len({span.span_id for trace in traces for span in trace}) == 14


def test_what_went_wrong_stands_in_the_root_in_order():
    (trace,) = Traces(epoch_ns=1_000).tell(
        routed(),
        AttemptLost(200, 7, 1, "a", 3),
        routed(at_ns=200, chosen="b", attempt=2),
        Preempted(300, 7, "b", 12),
        FellBack(400, 7, "llama", "qwen", "no_replica"),
        routed(at_ns=400, chosen="q", model="qwen@1"),
        ended(attempts=3),
    )
    root = trace[0]
    assert [(each.name, each.at_ns) for each in root.moments] == [
        ("request_routed", 1_100),
        ("attempt_lost", 1_200),
        ("request_routed", 1_200),
        ("request_preempted", 1_300),
        ("request_fell_back", 1_400),
    ]
    assert root.moments[1].attributes == {
        "modelyard.replica": "a",
        "modelyard.attempt": 1,
        "modelyard.tokens": 3,
    }
    assert root.attributes["modelyard.routing.chosen"] == "q"


@pytest.mark.parametrize(
    ("outcome", "reason", "error"),
    [
        ("completed", None, None),
        ("failed", "no_replica", "no_replica"),
        ("timed_out", "deadline_passed", "deadline_passed"),
        ("rejected", "over_quota", None),
        ("cancelled", "cancelled", None),
    ],
)
def test_faults_of_the_service_are_errors_and_every_end_has_its_reason(outcome, reason, error):
    (trace,) = Traces().tell(ended(outcome=outcome, reason=reason))
    assert trace[0].error == error
    assert trace[0].attributes.get("error.type") == reason


def test_a_name_that_nobody_knows_makes_no_new_name_of_a_span():
    (trace,) = Traces().tell(
        ended(outcome="rejected", reason="not_found", model=None, model_requested="x" * 9_999)
    )
    assert trace[0].name == "chat"
    assert len(trace[0].attributes["gen_ai.request.model"]) < 300
    (trace,) = Traces().tell(ended(tenant="\ud800"))
    assert trace[0].attributes["modelyard.tenant"].encode() == b"?"


def test_a_key_that_is_taken_for_a_name_is_in_no_trace():
    key = "sk-proj-abcdefgh12345678"
    fell = FellBack(105, 7, key, "qwen", "not_found")
    (trace,) = Traces().tell(fell, ended(model_requested=key, tenant=key))
    assert key not in str(trace)
    assert trace[0].attributes["gen_ai.request.model"] == "[redacted]"


# what was said


def test_what_was_said_stands_in_a_trace_that_was_asked_for_it(clock):
    body = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "user", "content": [{"type": "text", "text": "in Rome"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    said = (Content(1, 7, "input", body), Content(2, 7, "output", "It is sunny."))
    quiet = Traces()
    assert not Telemetry(clock, [quiet.builder]).wants(Content)
    (trace,) = Traces(content=True).tell(*said, ended(finish_reason="stop"))
    assert json.loads(trace[0].attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "What is the weather?"}]},
        {"role": "user", "parts": [{"type": "text", "content": "in Rome"}]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": "{}"}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
    ]
    assert json.loads(trace[0].attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "It is sunny."}], "finish_reason": "stop"}
    ]


@pytest.mark.parametrize(
    "body", ["a prompt", ["a", 1, None], [{"role": 3, "tool_calls": None}], [1, 2, 3]], ids=repr
)
def test_whatever_was_said_can_be_told(body):
    (trace,) = Traces(content=True).tell(Content(1, 7, "input", body), ended())
    assert json.loads(trace[0].attributes["gen_ai.input.messages"])


KEY = "sk-abcdefghijklmnopqrstuvwxyz"
CALL = {"id": "c1", "function": {"name": "f", "arguments": f'{{"api_key": "{KEY}"}}'}}


@pytest.mark.parametrize(
    "body",
    [
        f"my key is {KEY}",
        [f"the first: {KEY}", "another"],
        [{"role": "user", "content": f'"password=hunter2hunter2" and {KEY}'}],
        [{"role": "user", "content": [{"type": "text", "text": KEY}]}],
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "tool", "tool_call_id": "c1", "content": KEY}],
    ],
    ids=range(6),
)
def test_keys_are_in_no_trace_whatever_was_asked_for(body):
    (trace,) = Traces(content=True).tell(
        Content(1, 7, "input", body), Content(2, 7, "output", f"it is {KEY}"), ended()
    )
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        told = trace[0].attributes[name]
        assert "[redacted]" in told
        assert KEY not in told
        assert "hunter2" not in told
        assert json.loads(told)


# which are kept


def test_the_share_is_drawn_by_the_name_as_opentelemetry_draws():
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415

    for share in (0.0, 0.1, 0.5, 1.0):
        theirs = TraceIdRatioBased(share)
        ours = Sampling(share=share)
        kept = 0
        for number in range(1_000):
            trace_id, _ = TraceIds(1, 0).of(number)
            keeps = ours.keeps(ended(), trace_id, None)
            assert keeps == theirs.should_sample(None, trace_id, "x").decision.is_sampled()
            kept += keeps
        assert abs(kept - 1_000 * share) < 60


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_who_called_decides_where_he_has(share):
    sampling = Sampling(share=share, keep_errors=False)
    for is_sampled in (True, False):
        assert sampling.keeps(ended(), 1, is_sampled) is is_sampled
        traces = Traces(sampling).tell(Asked(0, 7, "chat", TRACE, PARENT, is_sampled), ended())
        assert len(traces) == is_sampled


@pytest.mark.parametrize(
    ("end", "is_kept"),
    [
        (ended(), False),
        (ended(outcome="failed"), True),
        (ended(outcome="timed_out"), True),
        (ended(outcome="rejected"), False),
        (ended(outcome="cancelled"), False),
        (ended(at_ns=100 + to_ns(2)), False),
        (ended(at_ns=101 + to_ns(2)), True),
    ],
    ids=["completed", "failed", "timed out", "rejected", "cancelled", "just in time", "slow"],
)
@pytest.mark.parametrize("is_sampled", [None, False])
def test_errors_and_slow_ones_are_kept_whatever_the_share(end, is_kept, is_sampled):
    traces = Traces(Sampling(share=0, keep_slower_s=2.0))
    traces.tell(Asked(0, 7, "chat", TRACE, PARENT, is_sampled), routed(), end)
    assert len(traces) == is_kept
    assert (traces.builder.num_kept, traces.builder.num_left_out) == (is_kept, not is_kept)
    if is_kept:
        assert traces[0][0].attributes["modelyard.routing.chosen"] == "a"  # whole all the same


# what it remembers


def test_nothing_is_remembered_of_a_request_that_has_ended():
    traces = Traces(Sampling(share=0))
    for number in range(100):
        traces.tell(Asked(0, number, "chat", TRACE), routed(number), ended(number))
    assert len(traces.builder) == 0


def test_of_too_many_requests_the_oldest_are_forgotten_but_traced():
    traces = Traces(max_in_flight=3)
    traces.tell(*[routed(number) for number in range(5)], *[ended(number) for number in range(5)])
    assert len(traces) == 5
    knows = ["modelyard.routing.chosen" in trace[0].attributes for trace in traces]
    assert knows == [False, False, True, True, True]
    assert traces.builder.num_forgotten == 2
    assert all(took(trace)["decode"] == 490 for trace in traces)


def test_a_request_that_is_preempted_for_ever_takes_no_more_memory():
    traces = Traces().tell(*[Preempted(at_ns, 7, "a", 1) for at_ns in range(10_000)], routed(), ended())
    assert len(traces[0][0].moments) == MAX_NOTES
    assert traces[0][0].attributes["modelyard.routing.chosen"] == "a"


# live and simulated


REQUESTS = (
    {"tokens": 40},
    {"tokens": 40, "session": "s"},
    {"tokens": 40, "session": "s"},
    {"tokens": 40, "model": "gpt"},
    {"tokens": 40, "output": 10**9},
    {"tokens": 40, "deadline_ns": 0},
)


async def asked(engine, clock):
    """Those requests, one after the other."""
    for number, wish in enumerate(REQUESTS):
        prompt = np.full(wish["tokens"], 5, dtype=np.int32)
        options = {name: wish[name] for name in ("session", "deadline_ns") if name in wish}
        request = Request(
            number, wish.get("model", "llama"), prompt, wish.get("output", 2), clock.now_ns(), **options
        )
        try:
            await engine.serve(request)
        except EngineError:
            continue


def shape(traces):
    """Names of spans and of attributes: what a query is made of."""
    return [[(span.name, sorted(span.attributes)) for span in trace] for trace in traces]


def test_live_and_simulated_traces_have_the_same_names(settings):
    settings.cache.prefetch_after_s = None

    def simulated():
        clock, traces = SimClock(), Traces()
        engine = Engine(settings, clock, [traces.builder])
        engine.start()
        clock.env.run(until=clock.spawn(asked(engine, clock)))
        clock.close()
        engine.close()
        return traces

    async def live():
        clock, traces = WallClock(), Traces(kind=Kind.SERVER)
        engine = Engine(settings, clock, [traces.builder])
        engine.start()
        await asked(engine, clock)
        await clock.close()
        engine.close()
        return traces

    there, here = simulated(), asyncio.run(live())
    assert len(there) == len(here) == len(REQUESTS)
    assert shape(here) == shape(there)
    assert {name for trace in shape(here) for name, _ in trace} >= {
        "chat llama",
        "chat",
        "load",
        "prefill",
        "decode",
    }
    assert any("gen_ai.conversation.id" in keys for _, keys in shape(here)[1])
    for trace in here:
        edges = [trace[0].start_ns, *[span.end_ns for span in trace[1:]]]
        assert [span.start_ns for span in trace[1:]] == edges[:-1]
        assert edges[-1] == trace[0].end_ns
