"""One trace a request: its facts are collected as they come, and become spans when it has ended.

The root span is the request, from its arrival to its outcome, with the decisions made for it as attributes. Its
children are the phases it went through, without gaps and without overlaps. Nothing here knows a clock or a file.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any, TypeVar

from engine.clock import NS_PER_S
from engine.figures import Figure
from engine.telemetry import semconv
from engine.telemetry.context import WORD, TraceIds, fit_state, following, pseudonym
from engine.telemetry.events import (
    Asked,
    AttemptLost,
    Content,
    Ended,
    Event,
    FellBack,
    Preempted,
    PrefixFound,
    Routed,
)
from engine.telemetry.phases import PHASES, bounds_ns
from engine.telemetry.redaction import scrubbed

Value = str | int | float | bool | tuple[str, ...] | tuple[int, ...]
Attributes = dict[str, Value]
AnEvent = TypeVar("AnEvent", bound=Event)

MAX_TEXT = 256
"""Characters of a name that a caller chose."""
MAX_CONTENT = 65_536
"""Characters of what was said."""
MAX_NOTES = 128
"""Facts of one request beyond which it is not told any more that it was preempted: that may go on for ever."""
TIERS = ("gpu", "ram", "ssd", "network", "cloud")
FAULTS = ("failed", "timed_out")
"""Outcomes that are errors of the service. Refusals are answers, and who has gone away did so himself."""


class Kind(IntEnum):
    """OpenTelemetry's kinds of spans, by their numbers in OTLP."""

    INTERNAL = 1
    SERVER = 2


@dataclass(slots=True)
class Moment:
    """Something that happened at one moment of a span."""

    name: str
    at_ns: int
    attributes: Attributes


@dataclass(slots=True)
class Span:
    """Something that took a time. A `parent_id` of 0 is none; times are from 1970, or virtual."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    start_ns: int
    end_ns: int
    kind: Kind = Kind.INTERNAL
    attributes: Attributes = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    error: str | None = None
    trace_state: str = ""


Exporter = Callable[[list[Span]], None]
"""Takes a trace, root first. It must not block."""


@dataclass(slots=True, kw_only=True)
class Sampling:
    """Which traces are kept: by whoever called, else a share of them by their names; and what is always kept."""

    share: float = 1.0
    keep_errors: bool = True
    keep_slower_s: float | None = None

    def keeps(self, end: Ended, trace_id: int, is_sampled: bool | None) -> bool:
        """Whether the trace of that request is kept. The share is drawn as OpenTelemetry does: others draw alike."""
        if is_sampled is None:
            is_sampled = self.share >= 1 or (trace_id & WORD) < round(self.share * (WORD + 1))
        if is_sampled or (self.keep_errors and end.outcome in FAULTS):
            return True
        slow_s = self.keep_slower_s
        return slow_s is not None and end.at_ns - end.arrival_ns > slow_s * NS_PER_S


class SpanBuilder:
    """A sink that makes a trace of what is told of each request.

    It remembers the facts of at most `max_in_flight` requests at a time; where there are more, those of the oldest
    are forgotten: its trace then has its phases, but not how it was decided.
    """

    def __init__(
        self,
        export: Exporter,
        ids: TraceIds,
        sampling: Sampling,
        *,
        epoch_ns: int = 0,
        kind: Kind = Kind.INTERNAL,
        server: tuple[str, int] | None = None,
        content: bool = False,
        max_in_flight: int = 10_000,
    ) -> None:
        told: set[type[Event]] = {Asked, Routed, FellBack, PrefixFound, AttemptLost, Preempted, Ended}
        self.kinds = frozenset({*told, Content} if content else told)
        self.num_kept = 0
        self.num_left_out = 0
        self.num_forgotten = 0
        self._export = export
        self._ids = ids
        self._sampling = sampling
        self._epoch_ns = epoch_ns
        self._kind = kind
        self._server = server
        self._max_in_flight = max_in_flight
        self._notes: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        """How many requests are remembered."""
        return len(self._notes)

    def emit(self, event: Any) -> None:
        if type(event) is Ended:
            self._end(event)
            return
        notes = self._notes.get(event.request_id)
        if notes is None:
            if len(self._notes) >= self._max_in_flight:
                self._notes.pop(next(iter(self._notes)))
                self.num_forgotten += 1
            notes = self._notes[event.request_id] = []
        if len(notes) < MAX_NOTES or type(event) is not Preempted:
            notes.append(event)

    def figures(self) -> Iterator[Figure]:
        """How many traces were made, and how many requests have none or less than a whole one."""
        yield Figure("modelyard:traces", "Requests that were traced.", (), {(): float(self.num_kept)})
        yield Figure("modelyard:traces_left_out", "Not sampled.", (), {(): float(self.num_left_out)})
        yield Figure(
            "modelyard:traces_forgotten", "Too many were in flight.", (), {(): float(self.num_forgotten)}
        )

    def _end(self, end: Ended) -> None:
        notes = self._notes.pop(end.request_id, [])
        asked = first_of(notes, Asked)
        named = asked is not None and asked.trace_id  # else it has a name of its own, which is dearer
        trace_id = int(named, 16) if named else self._ids.of(end.request_id)[0]
        if not self._sampling.keeps(end, trace_id, None if asked is None else asked.is_sampled):
            self.num_left_out += 1
            return
        self.num_kept += 1
        root = self._root(end, notes, asked, trace_id)
        self._export([root, *self._phases(end, notes, root)])

    def _root(self, end: Ended, notes: list[Any], asked: Asked | None, trace_id: int) -> Span:
        operation = semconv.CHAT if asked is None else asked.operation
        model = (
            "" if end.model is None else f" {named(end.model_requested)}"
        )  # else anybody can make new names
        root = Span(
            f"{operation}{model}",
            trace_id,
            self._ids.of(end.request_id)[1],
            int(asked.parent_span_id or "0", 16) if asked is not None else 0,
            self._epoch_ns + end.arrival_ns,
            self._epoch_ns + end.at_ns,
            self._kind,
            described(end, operation),
            error=(end.reason or end.outcome) if end.outcome in FAULTS else None,
        )
        if self._server is not None:
            root.attributes[semconv.SERVER_ADDRESS], root.attributes[semconv.SERVER_PORT] = self._server
        if asked is not None:
            root.trace_state = fit_state(asked.trace_state)
            root.attributes |= wanted(asked)
        self._tell(root, notes)
        for note in notes:
            if type(note) is Content:
                root.attributes |= said(note, operation, end.finish_reason)
        return root

    def _tell(self, root: Span, notes: list[Any]) -> None:
        """The last decision as attributes, and what went wrong before it as moments."""
        decided = False
        for note in reversed(notes):
            if type(note) is Routed and not decided:
                decided = True
                root.attributes |= decision(note)
            elif (tell := MOMENTS.get(type(note))) is not None:
                root.moments.append(Moment(note.kind, self._epoch_ns + note.at_ns, tell(note)))
        root.moments.reverse()

    def _phases(self, end: Ended, notes: list[Any], root: Span) -> Iterator[Span]:
        """The phases that a request has reached, one behind the other.

        Whoever was served by the first name has no `route`, and whoever had one attempt no `retry`: what these took
        live, some microseconds, is in the phase behind them.
        """
        turned_ns = turned(notes)
        bounds, reached = bounds_ns(end, end.arrival_ns if turned_ns is None else turned_ns)
        left_out = set()
        if turned_ns is None:
            left_out.add("route")
            bounds[1] = bounds[0]
        if end.attempts <= 1:
            left_out.add("retry")
            admit_end = PHASES.index("retry")
            if reached > admit_end + 1:
                bounds[admit_end + 1] = bounds[admit_end]
            else:  # it ended before its first attempt: that belongs to what was before
                bounds[admit_end] = bounds[admit_end + 1]
        for number, (name, (begin_ns, end_ns)) in enumerate(zip(PHASES, pairwise(bounds), strict=True)):
            if number < reached and name not in left_out:
                yield Span(
                    name,
                    root.trace_id,
                    following(root.span_id, number + 1),
                    root.span_id,
                    self._epoch_ns + begin_ns,
                    self._epoch_ns + end_ns,
                    attributes=of_phase(name, end, notes),
                )


def described(end: Ended, operation: str) -> Attributes:
    """What is known of a request at its end."""
    told: Attributes = {
        semconv.OPERATION: operation,
        semconv.PROVIDER: semconv.MODELYARD,
        semconv.REQUEST_MODEL: named(end.model_requested),
        semconv.INPUT_TOKENS: end.prompt_tokens,
        semconv.OUTPUT_TOKENS: end.output_tokens,
        semconv.CACHED_TOKENS: end.cached_tokens,
        semconv.REQUEST_ID: end.request_id,
        semconv.TENANT: named(end.tenant),
        semconv.PRIORITY: end.priority,
        semconv.OUTCOME: end.outcome,
        semconv.ATTEMPTS: end.attempts,
    }
    given = {
        semconv.RESPONSE_MODEL: end.model,
        semconv.REPLICA: end.replica,
        semconv.ROUTING_ARM: end.arm,
        semconv.REASON: end.reason,
    }
    told |= {name: value for name, value in given.items() if value is not None}
    if end.outcome != "completed":
        told[semconv.ERROR_TYPE] = end.reason or end.outcome
    if end.session is not None:
        told[semconv.CONVERSATION] = pseudonym(end.session)
    if end.finish_reason is not None:
        told[semconv.FINISH_REASONS] = (end.finish_reason,)
    if end.first_token_ns is not None:
        told[semconv.TIME_TO_FIRST_CHUNK] = (end.first_token_ns - end.arrival_ns) / NS_PER_S
    for tier in TIERS:
        if tokens := getattr(end, f"cached_tokens_{tier}"):
            told[f"{semconv.CACHE_TOKENS}.{tier}"] = tokens
    return told


def wanted(asked: Asked) -> Attributes:
    """What the client set."""
    given = {
        semconv.RESPONSE_ID: asked.response_id or None,
        semconv.REQUEST_STREAM: asked.is_stream,
        semconv.REQUEST_CHOICES: asked.choices if asked.choices != 1 else None,
        semconv.REQUEST_MAX_TOKENS: asked.max_output_tokens,
        semconv.REQUEST_TEMPERATURE: asked.temperature,
        semconv.REQUEST_TOP_P: asked.top_p,
        semconv.REQUEST_TOP_K: asked.top_k,
        semconv.REQUEST_SEED: asked.seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def decision(routed: Routed) -> Attributes:
    return {
        semconv.ROUTING_STRATEGY: routed.strategy,
        semconv.ROUTING_POOL: routed.pool,
        semconv.ROUTING_CANDIDATES: routed.candidates,
        semconv.ROUTING_LOADS: routed.loads,
        semconv.ROUTING_CHOSEN: routed.chosen,
        semconv.ROUTING_REASON: routed.reason,
    }


MOMENTS: dict[type[Event], Callable[[Any], Attributes]] = {
    Routed: decision,
    FellBack: lambda fact: {
        semconv.FALLBACK_BEFORE: named(fact.before),
        semconv.FALLBACK_AFTER: fact.after,
        semconv.REASON: fact.reason,
    },
    AttemptLost: lambda fact: {
        semconv.REPLICA: fact.replica,
        semconv.ATTEMPT: fact.attempt,
        semconv.TOKENS: fact.new_tokens,
    },
    Preempted: lambda fact: {semconv.REPLICA: fact.replica, semconv.TOKENS: fact.lost_tokens},
}


def of_phase(name: str, end: Ended, notes: list[Any]) -> Attributes:
    """What one phase was about."""
    if name == "transfer":
        found = first_of(reversed(notes), PrefixFound)
        loaded, computed = (found.loaded_tokens, found.recomputed_tokens) if found is not None else (0, 0)
        return {semconv.CACHE_LOADED_TOKENS: loaded, semconv.CACHE_RECOMPUTED_TOKENS: computed}
    if name == "prefill":
        return {semconv.TOKENS: end.prompt_tokens - end.cached_tokens}
    if name == "decode":
        return {semconv.TOKENS: end.output_tokens}
    if name == "load" and end.model is not None:
        return {semconv.MODEL: end.model}
    if name == "queue" and end.replica is not None:
        return {semconv.REPLICA: end.replica}
    return {}


def turned(notes: list[Any]) -> int | None:
    """When another name or model than the first was turned to, the last time; None where the first one served."""
    turned_ns = model = None
    for note in notes:
        if type(note) is FellBack:
            turned_ns = note.at_ns
        elif type(note) is Routed:
            if model is not None and note.model != model:
                turned_ns = note.at_ns
            model = note.model
    return turned_ns


def first_of(notes: Any, kind: type[AnEvent]) -> AnEvent | None:
    return next((note for note in notes if type(note) is kind), None)


def named(name: str) -> str:
    """A name that a caller chose; some take a key for one."""
    return scrubbed(bounded(name, MAX_TEXT))


def bounded(text: str, most: int) -> str:
    """The text, as long as it may be, and such that it can be written as UTF-8."""
    if len(text) > most:
        text = text[:most] + "..."
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def said(content: Content, operation: str, finish_reason: str | None) -> Attributes:
    """What was said, in the form of OpenTelemetry's messages."""
    if content.role == "output":
        message = {"role": "assistant", "parts": [_text(content.body)], "finish_reason": finish_reason or ""}
        return {semconv.OUTPUT_MESSAGES: _written([message])}
    if operation == semconv.CHAT and isinstance(content.body, list):
        return {semconv.INPUT_MESSAGES: _written([_message(each) for each in content.body])}
    return {semconv.INPUT_MESSAGES: _written([{"role": "user", "parts": [_text(content.body)]}])}


def _message(message: Any) -> dict[str, Any]:
    """One of OpenAI's messages as one of OpenTelemetry's."""
    if not isinstance(message, dict):
        return {"role": "user", "parts": [_text(message)]}
    content, parts = message.get("content"), []
    if message.get("role") == "tool":
        parts = [
            {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": _told(content)}
        ]
    elif isinstance(content, list):
        parts = [_text(part.get("text") if isinstance(part, dict) else part) for part in content]
    elif content is not None:
        parts = [_text(content)]
    for call in message.get("tool_calls") or ():
        function = call.get("function", {})
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": _told(function.get("arguments")),
            }
        )
    return {"role": message.get("role", "user"), "parts": parts}


def _text(content: Any) -> dict[str, Any]:
    return {"type": "text", "content": _told(content)}


def _told(content: Any) -> Any:
    """What somebody wrote, without keys: those are told nowhere. What is cut off anyway is not looked through."""
    if isinstance(content, list):
        return [_told(each) for each in content]
    return scrubbed(content[:MAX_CONTENT]) if isinstance(content, str) else content


def _written(messages: list[dict[str, Any]]) -> str:
    """As JSON; what is too long ends in the middle, and is no JSON any more."""
    return bounded(json.dumps(messages, ensure_ascii=False, default=str), MAX_CONTENT)
