"""The log: events as lines of JSON, one a fact, without secrets, and never more of one kind than anybody can read."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.clock import NS_PER_S, Clock, to_ns, utc_text
from engine.errors import BadSettings
from engine.figures import Figure, Values
from engine.telemetry.context import pseudonym
from engine.telemetry.events import (
    Admitted,
    Arrived,
    Asked,
    AttemptLost,
    Content,
    Ended,
    Event,
    FellBack,
    HealthChanged,
    HttpAnswered,
    ModeChanged,
    ModelMoved,
    Preempted,
    PrefixFound,
    Routed,
    SoftLimitPassed,
    StoreFailed,
)
from engine.telemetry.files import OpenStream, Outbox, RotatingFile, Target
from engine.telemetry.redaction import MAX_TEXT, clean, network_of

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
NAMES = {number: name for name, number in LEVELS.items()}

LEVEL_OF: dict[type[Event], int] = {
    Admitted: DEBUG,
    Arrived: DEBUG,
    Asked: DEBUG,
    AttemptLost: WARNING,
    FellBack: WARNING,
    ModeChanged: WARNING,
    Preempted: DEBUG,
    PrefixFound: DEBUG,
    Routed: DEBUG,
    SoftLimitPassed: WARNING,
    StoreFailed: ERROR,
}
"""How grave it is; what stands neither here nor below is worth to be known."""

GRAVE = {"failed": ERROR, "timed_out": WARNING, "unhealthy": ERROR, "degraded": WARNING}
"""How grave an outcome of a request, or a state of a model or a replica is; others are as they should be."""

SERVER_FAULT = 500
REFUSALS = (401, 403)

ONE_REQUEST = (Ended, HttpAnswered)
"""The two lines that each request has."""

LONG = ("cause", "fault", "body")
"""Fields that may be longer than a name."""

OURS = frozenset(
    {"outcome", "reason", "finish_reason", "route", "operation", "strategy", "candidates", "loads", "replica"}
)
"""Fields in which there is nothing but words of our own or the operator's."""

FLUSH_S = 0.2
TOLD_NS = NS_PER_S
"""How often it is told that lines were left out."""
MAX_TRACES = 10_000
"""Requests in flight of which it is remembered which trace they belong to."""


def level_of(event: Any) -> int:
    """How grave an event is."""
    kind = type(event)
    if kind is Ended:
        return GRAVE.get(event.outcome, INFO)
    if kind is HttpAnswered:
        if event.status >= SERVER_FAULT:
            return ERROR
        return WARNING if event.status in REFUSALS else INFO
    if kind is HealthChanged or kind is ModelMoved:
        return GRAVE.get(event.after, INFO)
    return LEVEL_OF.get(kind, INFO)


@dataclass(slots=True, frozen=True)
class Wanted:
    """The kinds of events that may become a line, or say whose trace a line belongs to."""

    least: int
    content: bool

    def __contains__(self, kind: type[Event]) -> bool:
        if kind is Content:
            return self.content
        if kind is Asked or kind in ONE_REQUEST or kind is HealthChanged or kind is ModelMoved:
            return True
        return LEVEL_OF.get(kind, INFO) >= self.least


class Bucket:
    """So many lines a second, and as many at once."""

    __slots__ = ("_at_ns", "_left", "_most")

    def __init__(self, per_s: float, now_ns: int) -> None:
        self._most = self._left = per_s
        self._at_ns = now_ns

    def take(self, now_ns: int) -> bool:
        """Whether one more may pass."""
        left = min(self._most, self._left + (now_ns - self._at_ns) * self._most / NS_PER_S)
        self._at_ns = now_ns
        self._left = left - 1 if left >= 1 else left
        return left >= 1


class LogSink:
    """A sink that writes a line for each event that is grave enough.

    No prompt, completion or key stands in any line, sessions have another name, and addresses of clients end in
    zeros; `content` lets all of this through but keys. Each kind of event has a budget for each level, so that a
    flood of one hides no other, and no error.
    """

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        *,
        level: int = INFO,
        content: bool = False,
        requests: bool = True,
        max_per_s: float | None = None,
    ) -> None:
        self.kinds = Wanted(level, content)
        self.level = level
        self.num_lines = 0
        self.num_dropped = 0
        self._outbox = outbox
        self._clock = clock
        self._content = content
        self._requests = requests
        self._max_per_s = max_per_s
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self._dropped: dict[str, int] = {}
        self._told_ns = -TOLD_NS
        self._trace_of: dict[int, str] = {}
        self._second = -1
        self._second_text = ""
        self._encode = json.JSONEncoder(separators=(",", ":"), default=str, allow_nan=False).encode

    def start(self) -> None:
        """Write now and then, off the loop; without it lines are written when enough have come together."""
        self._outbox.start()
        self._clock.spawn(self._flush_again_and_again())

    def emit(self, event: Any) -> None:
        kind = type(event)
        if kind is Asked:
            self._remember(event)
        level = level_of(event)
        is_due = level >= self.level and (level > INFO or self._requests or kind not in ONE_REQUEST)
        if is_due and self._may(event.kind, level):
            self._put(event.at_ns, level, event.kind, self._fields(event))
        if kind is Ended:
            self._trace_of.pop(event.request_id, None)

    def write(self, level: int, kind: str, **fields: object) -> None:
        """A line that is no event's: what another library says. From any thread."""
        if level >= self.level and self._may(kind, level):
            told = {name: clean(value, MAX_TEXT) for name, value in fields.items()}
            self._put(self._clock.now_ns(), level, kind, told)

    def figures(self) -> Iterator[Figure]:
        """How many lines there were, and how many there are not."""
        lost = self._outbox.num_lost
        yield Figure("modelyard:log_lines", "Lines of the log.", (), {(): float(self.num_lines)})
        whys: Values = {("too_many",): float(self.num_dropped), ("unwritten",): float(lost)}
        yield Figure("modelyard:log_lines_lost", "Lines that are not in the log.", ("why",), whys)

    def reopen(self) -> None:
        """Go on in a new file: the old one was moved away."""
        self._outbox.reopen()

    def close(self) -> None:
        """Write what is left. The loop may wait for it: nothing runs any more."""
        self._tell_dropped()
        self._outbox.close()

    def _may(self, kind: str, level: int) -> bool:
        """Whether one more line of that kind and level may be written now."""
        if self._max_per_s is None:
            return True
        now_ns = self._clock.now_ns()
        bucket = self._buckets.get((kind, level))
        if bucket is None:
            bucket = self._buckets[kind, level] = Bucket(self._max_per_s, now_ns)
        if bucket.take(now_ns):
            if self._dropped and now_ns - self._told_ns >= TOLD_NS:
                self._tell_dropped()
            return True
        self.num_dropped += 1
        name = f"{kind}/{NAMES.get(level, level)}"
        self._dropped[name] = self._dropped.get(name, 0) + 1
        return False

    def _tell_dropped(self) -> None:
        counts, self._dropped = self._dropped, {}
        if counts:
            self._told_ns = self._clock.now_ns()
            self._put(
                self._told_ns, WARNING, "logs_dropped", {"lines": sum(counts.values()), "counts": counts}
            )

    def _fields(self, event: Any) -> dict[str, object]:
        """The fields of an event, as they may be told."""
        fields: dict[str, object] = {}
        for name in event.names():
            value = getattr(event, name)
            if value is not None and type(value) is not int and name not in OURS:
                value = self._veiled(name, value)
            fields[name] = value
        request_id = fields.get("request_id")
        if isinstance(request_id, int) and not fields.get("trace_id") and request_id in self._trace_of:
            fields["trace_id"] = self._trace_of[request_id]
        return fields

    def _veiled(self, name: str, value: Any) -> object:
        if not self._content:
            if name == "session":
                return pseudonym(value)
            if name == "client":
                return network_of(value)
        return clean(value, MAX_TEXT) if name in LONG else clean(value)

    def _remember(self, asked: Asked) -> None:
        if asked.trace_id:
            if len(self._trace_of) >= MAX_TRACES:
                self._trace_of.pop(next(iter(self._trace_of)))
            self._trace_of[asked.request_id] = asked.trace_id

    def _put(self, at_ns: int, level: int, kind: str, fields: dict[str, object]) -> None:
        line = {"time": self._time(at_ns), "level": NAMES.get(level, str(level)), "event": kind, **fields}
        self._outbox.put(self._encode(line).encode() + b"\n")
        self.num_lines += 1

    def _time(self, at_ns: int) -> str:
        """UTC, to the microsecond."""
        second, rest = divmod(self._clock.epoch_ns + at_ns, NS_PER_S)
        text = self._second_text
        if second != self._second:
            text = self._second_text = utc_text(second * NS_PER_S)[: len("2000-01-01T00:00:00")]
            self._second = second
        return f"{text}.{rest // 1000:06d}Z"

    async def _flush_again_and_again(self) -> None:
        while True:
            await self._clock.sleep(to_ns(FLUSH_S))
            if self._dropped and self._clock.now_ns() - self._told_ns >= TOLD_NS:
                self._tell_dropped()
            await self._outbox.flush()


class Records(logging.Handler):
    """Takes what libraries say through Python's `logging`, and writes it into the same log."""

    def __init__(self, sink: LogSink) -> None:
        super().__init__(sink.level)
        self._sink = sink
        self._shape = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        told = {"logger": record.name, "message": _message(record)}
        if record.exc_info:
            told["exception"] = self._shape.formatException(record.exc_info)
        level = record.levelno // 10 * 10  # 50, critical, is an error too
        self._sink.write(max(DEBUG, min(level, ERROR)), "log", **told)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  whoever logs must not fail of it
        return f"{record.msg} {record.args!r}"


def install_logging(sink: LogSink, logger: str | None = None) -> Callable[[], None]:
    """Have what is logged through Python's `logging` (by uvicorn, say) written by `sink`; gives what undoes it."""
    root, handler = logging.getLogger(logger), Records(sink)
    before = root.level
    root.addHandler(handler)
    root.setLevel(sink.level)

    def undo() -> None:
        root.removeHandler(handler)
        root.setLevel(before)

    return undo


def log_sink(
    clock: Clock,
    *,
    file: str | None = None,
    level: str = "info",
    content: bool = False,
    requests: bool = True,
    max_per_s: float | None = 1000,
    max_bytes: int = 64 << 20,
    keep: int = 5,
    stream: IO[str] | None = None,
) -> LogSink | None:
    """The log as it was configured, on `stream` (stderr) where there is no `file`; None where it is off.

    Raises BadSettings.
    """
    if level == "off":
        return None
    if level not in LEVELS:
        raise BadSettings(f"server.log.level is {level!r}, but must be one of {', '.join(LEVELS)}, off")
    target: Target = OpenStream(stream or sys.stderr)
    if file is not None:
        target = RotatingFile(Path(file), max_bytes, keep, key="server.log.file")
    outbox = Outbox(target, clock)
    return LogSink(
        outbox, clock, level=LEVELS[level], content=content, requests=requests, max_per_s=max_per_s
    )
