"""Where traces go: files of OTLP's JSON, and collectors that take OTLP over HTTP. Neither makes a request wait."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from engine.clock import Clock
from engine.errors import BadSettings
from engine.figures import Figure, Values
from engine.telemetry import semconv
from engine.telemetry.context import TraceIds
from engine.telemetry.files import MIB, RotatingFile
from engine.telemetry.spans import Kind, Sampling, Span, SpanBuilder

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

LOG = logging.getLogger(__name__)

BATCH_SPANS = 512
EVERY_S = 1.0
"""How many spans go out together, and how long the first of them waits for the others."""
FILE_BYTES, FILES_KEPT = 64 * MIB, 5
STATUS_ERROR = 2
FLAGS_SAMPLED = 1


class Destination(Protocol):
    """Takes batches of spans, one at a time, in a thread of its own."""

    def send(self, spans: Sequence[Span]) -> bool:
        """Send them; whether they have arrived."""

    def close(self) -> None:
        """Give up what it is sending: there is no more time."""


class OtlpJson:
    """Spans in OTLP's JSON: each line is an `ExportTraceServiceRequest`, as OpenTelemetry's file exporter has it."""

    def __init__(self, service_name: str) -> None:
        resource = {semconv.SERVICE_NAME: service_name, semconv.SERVICE_VERSION: own_version()}
        self._resource = {"attributes": _pairs(resource)}
        self._scope = {"name": semconv.MODELYARD, "version": own_version()}
        self._encode = msgspec.json.Encoder().encode

    def line(self, spans: Sequence[Span]) -> bytes:
        """The spans as one line, its end included."""
        scope = {"scope": self._scope, "spans": [_span_json(span) for span in spans]}
        return self._encode({"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}) + b"\n"


class JsonTraces:
    """Writes each trace as it comes, so many spans a line: for a simulation, in which nobody waits."""

    def __init__(self, write: Callable[[bytes], object], service_name: str = semconv.MODELYARD) -> None:
        self._write = write
        self._json = OtlpJson(service_name)
        self._spans: list[Span] = []

    def export(self, trace: list[Span]) -> None:
        self._spans += trace
        if len(self._spans) >= BATCH_SPANS:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        spans, self._spans = self._spans, []
        if spans:
            self._write(self._json.line(spans))


class TraceFile:
    """A rotated file of OTLP's JSON."""

    def __init__(self, path: Path, service_name: str) -> None:
        """Raises BadSettings when it cannot be written."""
        self._file = RotatingFile(path, FILE_BYTES, FILES_KEPT, key="server.traces.file")
        self._json = OtlpJson(service_name)

    def send(self, spans: Sequence[Span]) -> bool:
        return not self._file.write([self._json.line(spans)])

    def reopen(self) -> None:
        """Go on in a new file: the old one was moved away."""
        self._file.reopen()

    def close(self) -> None:
        self._file.close()


class Collector:
    """A collector that takes OTLP over HTTP, as protobuf, gzipped. What fails for a while is sent again."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], timeout_s: float, service_name: str
    ) -> None:
        """Raises BadSettings where OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415  an extra
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
                OTLPSpanExporter,
            )
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415
        except ImportError as error:
            raise BadSettings(
                f"server.traces.endpoint is {endpoint!r}, but must be null where OpenTelemetry is not installed "
                "(pip install 'modelyard[otel]')"
            ) from error
        self._exporter = OTLPSpanExporter(
            endpoint, headers=dict(headers), timeout=timeout_s, compression=Compression.Gzip
        )
        whose = {semconv.SERVICE_NAME: service_name, semconv.SERVICE_VERSION: own_version()}
        self._resource = Resource.create(whose)
        self._scope = InstrumentationScope(semconv.MODELYARD, own_version())

    def send(self, spans: Sequence[Span]) -> bool:
        readable = [_readable(span, self._resource, self._scope) for span in spans]
        return self._exporter.export(readable).name == "SUCCESS"

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class Dispatch:
    """Takes traces without waiting, and sends them in a thread of its own, many spans at a time.

    At most `max_waiting` spans wait. A trace for which there is no room is left out, whole, and counted.
    """

    def __init__(self, destination: Destination, max_waiting: int, timeout_s: float) -> None:
        self.num_sent = 0
        self.num_dropped = 0
        self.num_failed = 0
        self._destination = destination
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._waiting: deque[Span] = deque()
        self._wake = Event()
        self._is_closing = False
        self._thread = Thread(target=self._run, name="modelyard traces", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def export(self, trace: list[Span]) -> None:
        if len(self._waiting) + len(trace) > self._max_waiting or self._is_closing:
            self.num_dropped += len(trace)
            return
        self._waiting.extend(trace)
        if len(self._waiting) >= min(BATCH_SPANS, self._max_waiting // 2):
            self._wake.set()

    def close(self) -> None:
        """Send what is waiting, for as long as one export may take; then what is left is dropped."""
        if self._is_closing:
            return
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s)
        is_stuck = self._thread.is_alive()
        self._destination.close()
        if is_stuck:
            self._thread.join(EVERY_S)
        self.num_dropped += len(self._waiting)
        self._waiting.clear()

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            is_last = self._is_closing  # before the last look
            while self._waiting:
                self._send()
            if is_last:
                return

    def _send(self) -> None:
        take = self._waiting.popleft
        batch = [take() for _ in range(min(BATCH_SPANS, len(self._waiting)))]
        try:
            arrived = self._destination.send(batch)
        except Exception:
            LOG.exception("%d spans could not be sent", len(batch))
            arrived = False
        if arrived:
            self.num_sent += len(batch)
        else:
            self.num_failed += len(batch)


class TraceSink:
    """A sink that makes a trace of each request and sends it to wherever it was configured to go."""

    def __init__(
        self, builder: SpanBuilder, dispatches: Sequence[Dispatch], files: Sequence[TraceFile]
    ) -> None:
        self.kinds = builder.kinds
        self.emit = builder.emit
        self.builder = builder
        self._dispatches = dispatches
        self._files = files

    def start(self) -> None:
        """Send from now on."""
        for dispatch in self._dispatches:
            dispatch.start()

    def figures(self) -> Iterator[Figure]:
        """How many requests were traced, and what became of their spans."""
        yield from self.builder.figures()
        sent: Values = {
            ("sent",): float(sum(each.num_sent for each in self._dispatches)),
            ("dropped",): float(sum(each.num_dropped for each in self._dispatches)),
            ("failed",): float(sum(each.num_failed for each in self._dispatches)),
        }
        yield Figure("modelyard:trace_spans", "Spans by what became of them.", ("fate",), sent)

    def reopen(self) -> None:
        """Go on in new files: the old ones were moved away."""
        for file in self._files:
            file.reopen()

    def close(self) -> None:
        """Send what is left; takes as long as one export may, so not on a loop that serves."""
        for dispatch in self._dispatches:
            dispatch.close()


def trace_sink(
    clock: Clock,
    ids: TraceIds,
    *,
    endpoint: str | None = None,
    file: str | None = None,
    sample: float = 1.0,
    keep_errors: bool = True,
    keep_slower_s: float | None = None,
    content: bool = False,
    headers: Mapping[str, str] | None = None,
    service_name: str = semconv.MODELYARD,
    timeout_s: float = 10.0,
    max_waiting: int = 4096,
    server: tuple[str, int] | None = None,
) -> TraceSink | None:
    """Traces as they were configured; None where they go nowhere. Raises BadSettings.

    `server` is the address and the port at which clients find it.
    """
    destinations: list[Destination] = []
    files = []
    if file is not None:
        files.append(TraceFile(Path(file), service_name))
        destinations += files
    if endpoint is not None:
        destinations.append(Collector(endpoint, headers or {}, timeout_s, service_name))
    if not destinations:
        return None
    dispatches = [Dispatch(each, max_waiting, timeout_s) for each in destinations]
    exports = [each.export for each in dispatches]

    def export(trace: list[Span]) -> None:
        for each in exports:
            each(trace)

    sampling = Sampling(share=sample, keep_errors=keep_errors, keep_slower_s=keep_slower_s)
    builder = SpanBuilder(
        export, ids, sampling, epoch_ns=clock.epoch_ns, kind=Kind.SERVER, server=server, content=content
    )
    return TraceSink(builder, dispatches, files)


def own_version() -> str:
    """The installed version; "" in a source tree on the path."""
    try:
        return version("modelyard")
    except PackageNotFoundError:
        return ""


def _span_json(span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {
        "traceId": f"{span.trace_id:032x}",
        "spanId": f"{span.span_id:016x}",
        "parentSpanId": f"{span.parent_id:016x}" if span.parent_id else "",
        "flags": FLAGS_SAMPLED,
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _pairs(span.attributes),
    }
    if span.moments:
        told["events"] = [
            {"timeUnixNano": str(each.at_ns), "name": each.name, "attributes": _pairs(each.attributes)}
            for each in span.moments
        ]
    if span.trace_state:
        told["traceState"] = span.trace_state
    if span.error is not None:
        told["status"] = {"code": STATUS_ERROR, "message": span.error}
    return told


def _pairs(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value_json(value)} for name, value in attributes.items()]


def _value_json(value: Any) -> dict[str, Any]:
    """A value as OTLP's JSON has it: 64-bit integers are texts there."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [_value_json(item) for item in value]}}
    return {"stringValue": str(value)}


def _readable(span: Span, resource: "Resource", scope: "InstrumentationScope") -> "ReadableSpan":
    """A span as OpenTelemetry's library has it."""
    from opentelemetry import trace as api  # noqa: PLC0415  an extra
    from opentelemetry.sdk.trace import Event as SdkEvent  # noqa: PLC0415
    from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415

    state = api.TraceState.from_header([span.trace_state]) if span.trace_state else None
    flags = api.TraceFlags(FLAGS_SAMPLED)
    context = api.SpanContext(
        span.trace_id, span.span_id, is_remote=False, trace_flags=flags, trace_state=state
    )
    parent = None
    if span.parent_id:
        parent = api.SpanContext(span.trace_id, span.parent_id, is_remote=False, trace_flags=flags)
    code = api.StatusCode.UNSET if span.error is None else api.StatusCode.ERROR
    return ReadableSpan(
        span.name,
        context,
        parent,
        resource,
        span.attributes,
        [SdkEvent(each.name, each.attributes, each.at_ns) for each in span.moments],
        kind=api.SpanKind.SERVER if span.kind is Kind.SERVER else api.SpanKind.INTERNAL,
        status=api.Status(code, span.error),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=scope,
    )
