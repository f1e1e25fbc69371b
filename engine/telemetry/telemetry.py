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
    """

    def emit(self, event: Event) -> None:
        """Take note of one event."""


class Telemetry:
    """Gives each event to each sink that wants its kind, in order."""

    def __init__(self, clock: Clock, sinks: Sequence[Sink] = ()) -> None:
        self.clock = clock
        self._sinks: list[Sink] = []
        self._takers: dict[type[Event], list[Callable[[Any], None]]] = {}
        for sink in sinks:
            self.add(sink)

    def add(self, sink: Sink) -> None:
        """Tell that sink from now on, after those before it."""
        self._sinks.append(sink)
        self._takers.clear()

    def clear(self) -> None:
        """Tell nobody any more."""
        self._sinks.clear()
        self._takers.clear()

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody wants events of that kind; one that nobody wants need not be made."""
        takers = self._takers.get(kind)
        return bool(self._takers_of(kind) if takers is None else takers)

    def emit(self, event: Event) -> None:
        takers = self._takers.get(type(event))
        for take in self._takers_of(type(event)) if takers is None else takers:
            take(event)

    def _takers_of(self, kind: type[Event]) -> list[Callable[[Any], None]]:
        unless_told = () if kind.is_private else (kind,)
        found: list[Callable[[Any], None]] = [
            sink.emit for sink in self._sinks if kind in getattr(sink, "kinds", unless_told)
        ]
        self._takers[kind] = found
        return found

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
            priority=request.priority,
            outcome="cancelled",
        )

    def __enter__(self) -> Self:
        request, telemetry = self.request, self._telemetry
        if telemetry.wants(Arrived):
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
        if self._telemetry.wants(Content):
            self._telemetry.emit(Content(end.at_ns, end.request_id, "output", "".join(self._stream.text)))
        self._telemetry.emit(end)
