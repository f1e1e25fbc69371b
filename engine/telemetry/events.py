"""The facts that the engine and its server tell, one class each.

No prompt, completion or key is in any of them but `Content`, which nobody is given who does not ask for it by name.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar


@dataclass(slots=True)
class Event:
    """A fact and its time on the engine's clock. `kind` is its stable name in every sink."""

    kind: ClassVar[str] = "event"
    is_private: ClassVar[bool] = False  # then only sinks that name it in their `kinds` are told
    at_ns: int

    def as_dict(self) -> dict[str, Any]:
        """Name and fields, ready for JSON."""
        return {"event": self.kind, **{name: getattr(self, name) for name in self.names()}}

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        """The names of the fields, in order."""
        return tuple([field.name for field in fields(cls)])


@dataclass(slots=True)
class Arrived(Event):
    """A request stands at the door."""

    kind: ClassVar[str] = "request_arrived"
    request_id: int
    tenant: str
    session: str | None
    model: str
    prompt_tokens: int
    max_output_tokens: int


@dataclass(slots=True)
class Asked(Event):
    """What came over the wire with a request, told by the server just before the engine serves it.

    `trace_id`, `parent_span_id` and `is_sampled` (None: nobody has decided) are those of the caller, or of the
    server's own making; hexadecimal, as in a `traceparent`. What the client did not set is None.
    """

    kind: ClassVar[str] = "request_asked"
    request_id: int
    operation: str  # "chat" or "text_completion"
    trace_id: str
    parent_span_id: str = ""
    is_sampled: bool | None = None
    trace_state: str = ""
    response_id: str = ""
    is_stream: bool = False
    choices: int = 1
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None


@dataclass(slots=True)
class Content(Event):
    """What was said, in the caller's words or the model's: for sinks that were switched on for it, and nobody else.

    `role` is "input" (told by the server: messages or a prompt) or "output" (told by the engine: the text so far when
    the request ended, tool calls as the model wrote them).
    """

    kind: ClassVar[str] = "request_content"
    is_private: ClassVar[bool] = True
    request_id: int
    role: str
    body: Any  # as it goes into JSON


@dataclass(slots=True)
class HttpAnswered(Event):
    """An HTTP request has its answer, whole, or its client has gone: the access log.

    `route` is the template ("/v1/models/{id}"), "" where none fits. `request_id` is the engine's, of the first
    choice.
    """

    kind: ClassVar[str] = "http_answered"
    http_id: str  # as in x-request-id
    method: str
    route: str
    status: int
    duration_ns: int
    request_bytes: int = 0
    response_bytes: int = 0
    is_stream: bool = False
    is_aborted: bool = False  # the client went before the end
    tenant: str | None = None
    key_id: str | None = None
    client: str | None = None  # its address
    error: str | None = None  # its code
    request_id: int | None = None
    trace_id: str | None = None


@dataclass(slots=True)
class Routed(Event):
    """A replica was chosen, and why: the decision log. `loads` are the candidates' tokens in flight before it."""

    kind: ClassVar[str] = "request_routed"
    request_id: int
    attempt: int
    strategy: str
    chosen: str
    candidates: tuple[str, ...]
    loads: tuple[int, ...]
    pool: str = ""
    reason: str = ""
    model: str = ""  # of the chosen one


@dataclass(slots=True)
class FellBack(Event):
    """What was asked for could not serve, for that reason; something else is tried in its place."""

    kind: ClassVar[str] = "request_fell_back"
    request_id: int
    before: str
    after: str
    reason: str


@dataclass(slots=True)
class RouterChanged(Event):
    """The router ejected a replica or took it back, or a pool began or ended to panic."""

    kind: ClassVar[str] = "router_changed"
    subject: str
    change: str
    cause: str


@dataclass(slots=True)
class SoftLimitPassed(Event):
    """Use has passed a share of a limit, upward. None: of all models, or of all tenants."""

    kind: ClassVar[str] = "soft_limit_passed"
    model: str | None
    tenant: str | None
    limit: str
    share: float
    used: float
    allowed: float


@dataclass(slots=True)
class ModeChanged(Event):
    """A model, a tenant, or the whole service works in another degradation mode."""

    kind: ClassVar[str] = "mode_changed"
    model: str | None
    tenant: str | None
    before: str
    after: str
    cause: str


@dataclass(slots=True)
class Admitted(Event):
    """The quota let the request in, after waiting so long for its turn."""

    kind: ClassVar[str] = "request_admitted"
    request_id: int
    waited_ns: int


@dataclass(slots=True)
class PrefixFound(Event):
    """So many tokens of the prompt lie in the cache and need no prefill.

    `loaded_tokens` of them were brought from a colder tier, while the request waited; `recomputed_tokens` more were
    there too, but are cheaper to compute again.
    """

    kind: ClassVar[str] = "prefix_found"
    request_id: int
    replica: str
    cached_tokens: int
    loaded_tokens: int = 0
    recomputed_tokens: int = 0
    waited_ns: int = 0


@dataclass(slots=True)
class Evicted(Event):
    """Blocks at the end of a chain left the cache for good; the last of them had last been read at `read_ns`.

    There may be more of these than requests: only who names it in its `kinds` is told.
    """

    kind: ClassVar[str] = "blocks_evicted"
    is_private: ClassVar[bool] = True
    model: str
    tier: str
    blocks: int
    read_ns: int


@dataclass(slots=True)
class StoreFailed(Event):
    """The store behind a tier of the cache could not do what it was asked; no request suffers but by a miss."""

    kind: ClassVar[str] = "store_failed"
    tier: str
    fault: str


@dataclass(slots=True)
class AttemptLost(Event):
    """A replica died with the request in its hands, or before it took it; `new_tokens` had been generated."""

    kind: ClassVar[str] = "attempt_lost"
    request_id: int
    attempt: int
    replica: str
    new_tokens: int


@dataclass(slots=True)
class Preempted(Event):
    """A request had to give its KV to those that began before it; so many tokens are to be computed anew."""

    kind: ClassVar[str] = "request_preempted"
    request_id: int
    replica: str
    lost_tokens: int


@dataclass(slots=True)
class ModelMoved(Event):
    """A model is loading, in memory and well or not, leaving, or gone from memory."""

    kind: ClassVar[str] = "model_state_changed"
    model: str
    before: str
    after: str
    cause: str


@dataclass(slots=True)
class HealthChanged(Event):
    """A replica is seen in another state than before."""

    kind: ClassVar[str] = "health_changed"
    replica: str
    before: str
    after: str
    cause: str


@dataclass(slots=True)
class Ended(Event):
    """The one terminal outcome of a request, with all that is known of it: a row of the requests table.

    In order: `loaded_ns` the model was in memory, `admitted_ns` the quota let it in, `tried_ns` its last attempt
    began, `queued_ns` that stood in its replica's line, the prefix brought; `started_ns` prefill began. `at_ns` is
    the time of the outcome (`finished_ns` of the table). `replica` is that of the last attempt, `first_token_ns` the
    time of the first token the caller got, at whichever attempt.
    """

    kind: ClassVar[str] = "request_ended"
    request_id: int
    tenant: str
    session: str | None
    model_requested: str
    arrival_ns: int
    prompt_tokens: int
    outcome: str
    reason: str | None = None
    model: str | None = None
    replica: str | None = None
    arm: str | None = None
    priority: int = 0
    attempts: int = 0
    loaded_ns: int | None = None
    admitted_ns: int | None = None
    tried_ns: int | None = None
    queued_ns: int | None = None
    started_ns: int | None = None
    first_token_ns: int | None = None
    output_tokens: int = 0
    cached_tokens_gpu: int = 0
    cached_tokens_ram: int = 0
    cached_tokens_ssd: int = 0
    cached_tokens_network: int = 0
    cached_tokens_cloud: int = 0
    finish_reason: str | None = None  # of one that completed

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that needed no prefill, from whatever tier."""
        return (
            self.cached_tokens_gpu
            + self.cached_tokens_ram
            + self.cached_tokens_ssd
            + self.cached_tokens_network
            + self.cached_tokens_cloud
        )
