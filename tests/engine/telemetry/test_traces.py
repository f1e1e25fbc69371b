"""Traces on their way: to a file, and to a receiver of OTLP over HTTP that answers well, badly, late or never."""

import asyncio
import gzip
import json
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from engine.clock import WallClock
from engine.engine import Engine
from engine.errors import BadSettings
from engine.request import Request
from engine.telemetry import Asked, Ended, Routed
from engine.telemetry.context import TraceIds
from engine.telemetry.spans import Kind, Moment, Span
from engine.telemetry.traces import BATCH_SPANS, Dispatch, JsonTraces, TraceFile, trace_sink

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


def spans(count=1, **more):
    given = {"start_ns": 10, "end_ns": 20, **more}
    return [Span(f"span {number}", TRACE, number + 1, PARENT, **given) for number in range(count)]


def full_span():
    attributes = {
        "text": "a\N{SNOWMAN}",
        "count": 1 << 62,
        "ratio": 0.5,
        "yes": True,
        "names": ("a", "b"),
        "loads": (1, 2),
    }
    moment = Moment("lost", 1_700_000_000_000_000_015, {"replica": "a"})
    begin_ns = 1_700_000_000_000_000_010
    return Span(
        "chat llama",
        TRACE,
        7,
        PARENT,
        begin_ns,
        begin_ns + 10,
        Kind.SERVER,
        attributes,
        [moment],
        "no_replica",
        "a=1",
    )


def values(pairs):
    return {pair.key: plain(pair.value) for pair in pairs}


def plain(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind)


def check_full(request):
    """That the request holds `full_span`, whole."""
    (resource,) = request.resource_spans
    assert values(resource.resource.attributes)["service.name"] == "shop"
    (scope,) = resource.scope_spans
    assert scope.scope.name == "modelyard"
    (span,) = scope.spans
    assert (span.trace_id, span.span_id, span.parent_span_id) == (
        TRACE.to_bytes(16, "big"),
        (7).to_bytes(8, "big"),
        PARENT.to_bytes(8, "big"),
    )
    assert (span.name, span.kind, span.trace_state) == ("chat llama", 2, "a=1")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (
        1_700_000_000_000_000_010,
        1_700_000_000_000_000_020,
    )
    assert values(span.attributes) == {
        "text": "a\N{SNOWMAN}",
        "count": 1 << 62,
        "ratio": 0.5,
        "yes": True,
        "names": ["a", "b"],
        "loads": [1, 2],
    }
    (event,) = span.events
    assert (event.name, event.time_unix_nano, values(event.attributes)) == (
        "lost",
        1_700_000_000_000_000_015,
        {"replica": "a"},
    )
    assert (span.status.code, span.status.message) == (2, "no_replica")


class Receiver:
    """A collector on loopback that keeps what it is sent, as protobuf has it, and answers as it is told."""

    def __init__(self):
        self.requests, self.headers, self.statuses = [], [], []
        self.go = threading.Event()
        self.go.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.go.wait(10)
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status == 200:
                    if self.headers["content-encoding"] == "gzip":
                        body = gzip.decompress(body)
                    receiver.requests.append(ExportTraceServiceRequest.FromString(body))
                    receiver.headers.append({**self.headers, "path": self.path})
                self.send_response(status)
                self.send_header("content-length", "0")
                self.send_header("retry-after", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def spans(self):
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self):
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def make(clock):
    made = []

    def make(**options):
        sink = trace_sink(clock, TraceIds(1, 0), service_name="shop", **{"timeout_s": 2.0, **options})
        made.append(sink)
        sink.start()
        return sink

    yield make
    for sink in made:
        sink.close()


def sent(sink, trace):
    """Send a trace that is there already."""
    for dispatch in sink._dispatches:
        dispatch.export(trace)


def fates(sink):
    (figure,) = [figure for figure in sink.figures() if figure.name == "modelyard:trace_spans"]
    return {name: int(count) for (name,), count in figure.values.items()}


# a collector


def test_a_collector_is_sent_each_span_whole_and_gzipped(make, receiver):
    sink = make(endpoint=receiver.url, headers={"x-api-key": "k"})
    sent(sink, [full_span()])
    sink.close()
    check_full(receiver.requests[0])
    (headers,) = receiver.headers
    assert (headers["path"], headers["x-api-key"]) == ("/v1/traces", "k")
    given = {name.lower(): value for name, value in headers.items()}
    assert (given["content-encoding"], given["content-type"]) == ("gzip", "application/x-protobuf")
    assert fates(sink) == {"sent": 1, "dropped": 0, "failed": 0}


def test_requests_of_an_engine_arrive_as_traces_with_parents_and_times(settings, receiver):
    async def main():
        clock = WallClock()
        sink = trace_sink(
            clock,
            TraceIds(1, clock.epoch_ns),
            endpoint=receiver.url,
            service_name="shop",
            server=("host", 80),
        )
        engine = Engine(settings, clock, [sink])
        engine.start()
        sink.start()
        begun_ns = clock.epoch_ns + clock.now_ns()
        engine.telemetry.emit(Asked(clock.now_ns(), 0, "chat", f"{TRACE:032x}", f"{PARENT:016x}", True))
        for number in range(2):
            prompt = np.full(32, 5, dtype=np.int32)
            await engine.serve(Request(number, "llama", prompt, 2, clock.now_ns(), session="s"))
        ended_ns = clock.epoch_ns + clock.now_ns()
        await clock.close()
        engine.close()
        sink.close()
        return begun_ns, ended_ns

    begun_ns, ended_ns = asyncio.run(main())
    found = receiver.spans()
    roots = [span for span in found if span.name == "chat llama"]
    assert len(roots) == 2
    assert [span.kind for span in roots] == [2, 2]
    assert (roots[0].trace_id, roots[0].parent_span_id) == (
        TRACE.to_bytes(16, "big"),
        PARENT.to_bytes(8, "big"),
    )
    assert roots[1].parent_span_id == b""
    for root in roots:
        told = values(root.attributes)
        assert told["server.address"] == "host"
        assert told["gen_ai.usage.output_tokens"] == 2
        assert told["modelyard.routing.candidates"] == ["a", "b", "c"]
        children = [span for span in found if span.parent_span_id == root.span_id]
        assert [span.name for span in children] == ["load", "admit", "transfer", "queue", "prefill", "decode"]
        assert {span.trace_id for span in children} == {root.trace_id}
        edges = [root.start_time_unix_nano, *[span.end_time_unix_nano for span in children]]
        assert [span.start_time_unix_nano for span in children] == edges[:-1]
        assert edges[-1] == root.end_time_unix_nano
        assert begun_ns <= edges[0] < edges[-1] <= ended_ns


def test_a_collector_that_is_down_for_a_moment_gets_all_in_the_end(make, receiver):
    receiver.statuses = [503, 429]
    sink = make(endpoint=receiver.url)
    sent(sink, spans(3))
    sink.close()
    assert len(receiver.spans()) == 3
    assert fates(sink) == {"sent": 3, "dropped": 0, "failed": 0}


def test_what_a_collector_refuses_is_counted(make, receiver, caplog):
    receiver.statuses = [400]
    sink = make(endpoint=receiver.url)
    sent(sink, spans(3))
    sink.close()
    assert fates(sink) == {"sent": 0, "dropped": 0, "failed": 3}
    assert "400" in caplog.text


def test_a_collector_that_hangs_holds_up_nobody_and_memory_is_bounded(make, receiver):
    receiver.go.clear()
    sink = make(endpoint=receiver.url, max_waiting=40, timeout_s=0.5)
    for _ in range(30):
        sent(sink, spans(7))  # returns at once
    waiting = len(sink._dispatches[0]._waiting)
    assert waiting <= 40
    sink.close()
    assert not sink._dispatches[0]._thread.is_alive()
    told = fates(sink)
    assert told["sent"] == 0
    assert told["dropped"] + told["failed"] == 210
    assert told["dropped"] % 7 == 0  # whole traces


def test_a_collector_that_is_not_there_costs_no_more_than_its_timeout(make):
    sink = make(endpoint="http://127.0.0.1:9/v1/traces", timeout_s=0.3)
    sent(sink, spans(2))
    sink.close()
    assert fates(sink) == {"sent": 0, "dropped": 0, "failed": 2}


def test_an_install_without_opentelemetry_says_what_to_install(clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSettings, match=r"traces.endpoint is 'http://x/v1/traces'.*modelyard\[otel\]"):
        trace_sink(clock, TraceIds(1, 0), endpoint="http://x/v1/traces")


# a queue and its thread


class Kept:
    """A destination that keeps the sizes of its batches, or raises."""

    def __init__(self, error=None):
        self.batches, self.error, self.is_closed = [], error, False

    def send(self, batch):
        if self.error is not None:
            raise self.error
        self.batches.append(len(batch))
        return True

    def close(self):
        self.is_closed = True


def test_many_spans_go_out_in_batches_and_none_is_left_behind():
    kept = Kept()
    dispatch = Dispatch(kept, 10_000, 1.0)
    for _ in range(200):
        dispatch.export(spans(7))
    dispatch.start()
    dispatch.close()
    assert sum(kept.batches) == dispatch.num_sent == 1_400
    assert max(kept.batches) == BATCH_SPANS
    assert kept.is_closed
    dispatch.export(spans(7))
    assert dispatch.num_dropped == 7  # nobody sends any more


def test_a_trace_for_which_there_is_no_room_is_left_out_whole():
    dispatch = Dispatch(Kept(), 20, 1.0)
    for _ in range(4):
        dispatch.export(spans(7))
    assert (len(dispatch._waiting), dispatch.num_dropped) == (14, 14)
    dispatch.close()  # it was never started
    assert dispatch.num_dropped == 28


def test_a_destination_with_a_defect_ends_nothing(caplog):
    dispatch = Dispatch(Kept(RuntimeError("broken")), 100, 1.0)
    dispatch.start()
    dispatch.export(spans(3))
    dispatch.close()
    assert dispatch.num_failed == 3
    assert "broken" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


def test_traces_that_go_nowhere_are_none(clock):
    assert trace_sink(clock, TraceIds(1, 0)) is None


# files


def parsed(data):
    """Lines of OTLP's JSON, read by protobuf's own reader, ids as OTLP has them."""
    requests = []
    for line in data.splitlines():
        tree = json.loads(line)
        for resource in tree["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    for name in ("traceId", "spanId", "parentSpanId"):  # hexadecimal, unlike other bytes
                        span[name] = base64_of(bytes.fromhex(span[name]))
        requests.append(Parse(json.dumps(tree), ExportTraceServiceRequest()))
    return requests


def base64_of(data):
    from base64 import b64encode  # noqa: PLC0415

    return b64encode(data).decode()


def test_a_file_has_what_a_collector_would_get():
    lines = []
    traces = JsonTraces(lines.append, "shop")
    traces.export([full_span()])
    assert lines == []
    traces.flush()
    traces.flush()
    (line,) = lines
    assert line.endswith(b"\n")
    check_full(parsed(line)[0])


def test_the_lines_of_a_file_are_batches():
    lines = []
    traces = JsonTraces(lines.append)
    for _ in range(200):
        traces.export(spans(7))
    traces.flush()
    counts = [len(request.resource_spans[0].scope_spans[0].spans) for request in parsed(b"".join(lines))]
    assert sum(counts) == 1_400
    assert len(counts) == 3


def test_a_live_file_is_written_and_reopened(make, tmp_path):
    path = tmp_path / "traces.jsonl"
    sink = make(file=str(path), sample=1.0)
    for event in (Routed(1, 1, 1, "x", "a", ("a",), (0,), "llama", "", "llama"), ended(1)):
        sink.emit(event)
    sink.close()
    (request,) = parsed(path.read_bytes())
    names = [span.name for span in request.resource_spans[0].scope_spans[0].spans]
    assert names[0] == "chat llama"
    file = TraceFile(path, "shop")
    path.rename(tmp_path / "moved")
    file.reopen()
    assert file.send(spans(1))
    file.close()
    assert len(parsed(path.read_bytes())) == 1


def ended(number):
    return Ended(9, number, "t", None, "llama", 0, 3, "completed", model="llama", replica="a", attempts=1)


def test_a_file_and_a_collector_get_the_same(make, receiver, tmp_path):
    path = tmp_path / "traces.jsonl"
    sink = make(file=str(path), endpoint=receiver.url)
    for number in range(3):
        sink.emit(ended(number))
    sink.close()
    here = [
        span
        for request in parsed(path.read_bytes())
        for span in request.resource_spans[0].scope_spans[0].spans
    ]
    there = receiver.spans()
    assert len(here) == len(there) > 3
    for one, other in zip(here, there, strict=True):
        one.ClearField("flags")
        other.ClearField("flags")
        if not other.status.code:
            other.ClearField("status")  # the library writes an empty one
        assert one == other


def test_a_file_that_cannot_be_written_is_refused(clock, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadSettings, match=r"traces\.file is '.*taken/x', but cannot be written"):
        trace_sink(clock, TraceIds(1, 0), file=str(tmp_path / "taken" / "x"))
