"""Where facts go: every event to every sink, and each request's story to exactly one end."""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from engine.clock import Clock
from engine.errors import EngineError
from engine.request import Completion, Request, Stream
from engine.telemetry.events import Arrived, Ended, Event


class Sink(Protocol):
    """Somewhere for events to go. `emit` must not block for long: it runs on the path of the request."""

    def emit(self, event: Event) -> None:
        """Take note of one event."""


class Telemetry:
    """Gives each event to each sink, in order."""

    def __init__(self, clock: Clock, sinks: Sequence[Sink] = ()) -> None:
        self.clock = clock
        self.sinks = list(sinks)

    def emit(self, event: Event) -> None:
        for sink in self.sinks:
            sink.emit(event)

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
        self.end = Ended(
            at_ns=request.arrival_ns,
            request_id=request.id,
            tenant=request.tenant,
            session=request.session,
            model_requested=request.model,
            arrival_ns=request.arrival_ns,
            prompt_tokens=request.num_prompt_tokens,
            outcome="cancelled",
        )

    def __enter__(self) -> Self:
        request = self.request
        self._telemetry.emit(
            Arrived(
                self._telemetry.clock.now_ns(),
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
        self.end.outcome = "completed"
        return completion

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = self.end
        if isinstance(error, EngineError):
            end.outcome, end.reason = error.outcome, error.reason
        elif isinstance(error, Exception):
            end.outcome, end.reason = "failed", "internal_error"
        elif error is not None:
            end.outcome, end.reason = "cancelled", "cancelled"
        end.at_ns = self._telemetry.clock.now_ns()
        end.first_token_ns = self._stream.first_token_ns
        end.output_tokens = len(self._stream.tokens)
        self._telemetry.emit(end)
