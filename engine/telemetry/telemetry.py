"""Where facts go: every event to every sink, and each request's story to exactly one end."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from engine.clock import Clock
from engine.errors import EngineError
from engine.request import Completion, Request, Stream
from engine.telemetry.events import Arrived, Content, Ended, Event


class Sink(Protocol):
    """Somewhere for events to go. `emit` must not block for long: it runs on the path of the request.

    One that has `kinds`, a set of classes of events, is given these only; one that has none, all but private ones.
    Where it has `takers`, a table by class, those that stand there are called instead of `emit`.
    """

    def emit(self, event: Event) -> None:
        """Take note of one event."""


Take = Callable[[Any], None]
"""Takes note of one event of a certain kind."""


class Takers(dict[type[Event], list[Take]]):
    """Who is told of events of each kind: looked for when the first one of it comes."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []

    def __missing__(self, kind: type[Event]) -> list[Take]:
        unless_told = () if kind.is_private else (kind,)
        wanting = [sink for sink in self.sinks if kind in getattr(sink, "kinds", unless_told)]
        found: list[Take] = [getattr(sink, "takers", {}).get(kind, sink.emit) for sink in wanting]
        self[kind] = found
        return found


class Telemetry:
    """Gives each event to each sink that wants its kind, in order.

    `takers` of a kind are empty where nobody wants it: then it need not be made.
    """

    def __init__(self, clock: Clock, sinks: Sequence[Sink] = ()) -> None:
        self.clock = clock
        self.takers = Takers()
        for sink in sinks:
            self.add(sink)

    def add(self, sink: Sink) -> None:
        """Tell that sink from now on, after those before it."""
        self.takers.sinks.append(sink)
        self.takers.clear()

    def clear(self) -> None:
        """Tell nobody any more."""
        self.takers.sinks.clear()
        self.takers.clear()

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody wants events of that kind."""
        return bool(self.takers[kind])

    def emit(self, event: Event) -> None:
        for take in self.takers[type(event)]:
            take(event)

    def follow(self, request: Request, stream: Stream) -> "Story":
        """The story of one request: a context whose end, however it comes, is told once."""
        return Story(self, request, stream)


class Story:
    """One request from its arrival to its one terminal outcome."""

    __slots__ = ("_stream", "_telemetry", "end", "request")

    def __init__(self, telemetry: Telemetry, request: Request, stream: Stream) -> None:
        self.request = request
        self._telemetry = telemetry
        self._stream = stream
        self.end = Ended(  # by place: names cost more than the object
            request.arrival_ns,
            request.id,
            request.tenant,
            request.session,
            request.model,
            request.arrival_ns,
            request.num_prompt_tokens,
            "cancelled",
        )
        self.end.priority = request.priority

    def __enter__(self) -> Self:
        request, telemetry = self.request, self._telemetry
        if telemetry.takers[Arrived]:
            telemetry.emit(
                Arrived(
                    telemetry.clock.now_ns(),
                    request.id,
                    request.tenant,
                    request.session,
                    request.model,
                    request.num_prompt_tokens,
                    request.max_output_tokens,
                )
            )
        return self

    def completed(self, completion: Completion) -> Completion:
        """Note that the caller got the answer."""
        self.end.outcome, self.end.finish_reason = "completed", completion.finish_reason
        return completion

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = self.end
        if error is None:
            pass  # completed, as it was told
        elif isinstance(error, EngineError):
            end.outcome, end.reason = error.outcome, error.reason
        elif isinstance(error, Exception):
            end.outcome, end.reason = "failed", "internal_error"
        else:
            end.outcome, end.reason = "cancelled", "cancelled"
        end.at_ns = self._telemetry.clock.now_ns()
        end.first_token_ns = self._stream.first_token_ns
        end.output_tokens = self._stream.num_tokens
        if self._telemetry.takers[Content]:
            self._telemetry.emit(Content(end.at_ns, end.request_id, "output", "".join(self._stream.text)))
        self._telemetry.emit(end)
