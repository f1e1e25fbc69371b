"""The clients' port: OpenAI's routes over the engine."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import count
from typing import Any

import msgspec

from engine.clock import NS_PER_S, Clock
from engine.engine import MAX_NAME, Engine
from engine.errors import BadRequest, EngineError, Forbidden, LoadFailed, NotFound, TooLong, openai_answer
from engine.fleet import Home
from engine.registry.model import OWNER
from engine.request import GRAMMAR, Request
from engine.server.answers import EVENTS, JSON, Head, Whole, encode, lines
from engine.server.bodies import (
    AnyBody,
    Body,
    ChatBody,
    CompletionBody,
    UsualChat,
    UsualCompletion,
    check_prompt,
    check_turns,
    prompts_of,
    refused,
)
from engine.server.client import Client, ClientGone
from engine.server.gate import Handler
from engine.server.generation import Choice, Generation, Pacer
from engine.server.keys import Holder
from engine.server.manners import Manner, Manners
from engine.server.prompts import Prompt, chat_prompt, name_within, seeded, text_prompt
from engine.server.settings import DEFAULT_TENANT, MAX_PRIORITY, LimitsSettings, ServerSettings
from engine.telemetry import Asked, Content, OwnCounts
from engine.telemetry.context import TraceContext

MS = 1_000_000


@dataclass(slots=True, frozen=True)
class Kind:
    """What tells chats and completions apart."""

    is_chat: bool
    param: str  # that the prompt comes in
    operation: str  # as OpenTelemetry calls it
    prefix: str
    whole: str
    chunk: str


CHATS = Kind(True, "messages", "chat", "chatcmpl", "chat.completion", "chat.completion.chunk")
TEXTS = Kind(False, "prompt", "text_completion", "cmpl", "text_completion", "text_completion")


class Public:
    """What clients may ask for. `instance` tells the answers of this process from those of others."""

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        *,
        instance: str,
        exposition: Callable[[str], tuple[bytes, str]],
        trace_of: Callable[[str | None, str | None], TraceContext],
        counts: OwnCounts,
    ) -> None:
        self.is_draining = False
        self._engine = engine
        self._settings = settings
        self._limits: LimitsSettings = settings.limits
        self._clock: Clock = engine.clock
        self._instance = instance
        self._exposition = exposition
        self._trace_of = trace_of
        self._counts = counts
        self._chats = Manners(UsualChat, ChatBody, check_turns, settings.limits)
        self._texts = Manners(UsualCompletion, CompletionBody, check_prompt, settings.limits)
        self._of_batches = {b"x-priority": b"%d" % settings.jobs.batch_priority}
        self._ids = count()
        self._names = count()

    @property
    def routes(self) -> dict[tuple[str, str], Handler]:
        """By method and path."""
        return {
            ("POST", "/v1/chat/completions"): partial(self._generate, CHATS),
            ("POST", "/v1/completions"): partial(self._generate, TEXTS),
            ("GET", "/v1/models"): self.models,
            ("GET", "/metrics"): self.metrics,
            ("GET", "/health"): self.health,
            ("HEAD", "/health"): self.health,
            ("GET", "/ready"): self.ready,
            ("HEAD", "/ready"): self.ready,
        }

    @cached_property
    def _pacer(self) -> Pacer:  # of the loop that serves
        return Pacer()

    def name_request(self) -> str:
        """A name for an HTTP request that brings none."""
        return f"req-{self._instance}-{next(self._names):x}"

    # generation

    async def ask(self, path: str, raw: bytes, holder: Holder) -> tuple[int, dict[str, str], bytes]:
        """What a line of a batch of that holder is answered, without a connection: status, headers, body."""
        kind, draft = {"/v1/chat/completions": CHATS, "/v1/completions": TEXTS}[path], None
        try:
            draft = self._draft(raw, kind, holder)
            if draft.manner.is_stream:
                raise refused("stream", "stream is true, but must be false in a batch")
            if len(raw) > LONG_BYTES:
                await self._word_aside(draft)
            generation = self._asking(draft, kind, holder, self._of_batches)
            await generation.run(self._engine)
        except EngineError as error:
            self._word(error, kind, draft)
            answer = openai_answer(error)
            return answer.status, answer.headers, encode(answer.body)
        return 200, {}, self._body(generation, kind)

    async def _generate(self, kind: Kind, client: Client) -> None:
        raw = client.taken() or await client.body()
        try:
            draft = self._draft(raw, kind, client.holder)
            if len(raw) > LONG_BYTES:
                await self._word_aside(draft)
            generation = self._asking(draft, kind, client.holder, client.headers)
        except BadRequest as error:
            _blame(error, kind)
            raise
        first = generation.choices[0]
        client.engine_id, client.is_stream = first.request.id, generation.is_stream
        self._tell(client, kind, generation, draft.body)
        try:
            if generation.is_stream:
                await self._stream(client, kind, generation, draft)
                return
            client.cancel_when_gone()
            if len(generation.choices) == 1:
                first.completion = await self._engine.serve(first.request, first.stream)
            else:
                await generation.run(self._engine)
        except EngineError as error:
            await self._refuse(client, kind, draft, first.request, error)
        except BaseException:
            if client.is_gone:
                raise ClientGone from None
            raise
        else:
            client.stop_watching()
            if client.exchange.is_full():
                await client.exchange.room()
            client.tell(200, JSON + self._lines(client, first), self._body(generation, kind))

    async def _refuse(
        self, client: Client, kind: Kind, draft: "Draft", request: Request, error: EngineError
    ) -> None:
        """Answer with the error, unless an answer has begun."""
        if client.status:
            raise error
        self._word(error, kind, draft)
        client.error = error.code or error.reason
        await client.refuse(error, self._limits_left(request) + _request_id(client))

    def _word(self, error: EngineError, kind: Kind, draft: "Draft | None") -> None:
        """Say it as a client may read it: what is to blame as the client calls it, and no path of this machine."""
        _blame(error, kind)
        if isinstance(error, BadRequest) and error.param == GRAMMAR and draft is not None:
            error.param = "response_format" if _has_format(draft.body) else "tools"
        if isinstance(error, LoadFailed) and error.model is not None and error.model in self._engine.registry:
            error.args = (self._engine.registry.find(error.model).public(str(error)),)

    async def _stream(self, client: Client, kind: Kind, generation: Generation, draft: "Draft") -> None:
        head = Head(
            generation.name,
            kind.chunk,
            generation.created,
            draft.body.model,
            tells_usage=draft.manner.tells_usage,
        )
        out = _Out(
            client,
            lambda choice: self._lines(client, choice),
            self._served_by,
            lambda error: self._word(error, kind, draft),
        )
        await generation.stream(self._engine, out, self._pacer, head)
        if not client.is_gone:
            await client.write(b"", more=False)

    def _draft(self, raw: bytes, kind: Kind, holder: Holder) -> "Draft":
        """What a body asks for. Raises BadRequest, NotFound, Forbidden."""
        most_tokens = self._limits.max_prompt_tokens
        if kind.is_chat:
            chat, manner = self._chats.read(raw)
            prompts = [chat_prompt(chat, most_tokens=most_tokens, able=self._able)]
            return Draft(chat, manner, prompts, self._meant(chat.model, holder))
        text, manner = self._texts.read(raw)
        is_open = text.max_tokens is None
        if isinstance(text.prompt, str):
            prompts = [text_prompt(text.prompt, is_open, most_tokens)]
        else:
            prompts = [text_prompt(words, is_open, most_tokens) for words in prompts_of(text)]
        return Draft(text, manner, prompts, self._meant(text.model, holder))

    def _asking(
        self, draft: "Draft", kind: Kind, holder: Holder, headers: Mapping[bytes, bytes]
    ) -> Generation:
        """The same as requests to the engine. Raises BadRequest."""
        body, manner, prompts = draft.body, draft.manner, draft.prompts
        now_ns = self._clock.now_ns()
        # the key's; where nobody has keys, the one that `user` names
        tenant = holder.tenant if holder.id else name_within("user", body.user) or DEFAULT_TENANT
        session = self._session(headers, holder) if b"x-session-id" in headers else None
        priority = self._priority(headers, holder) if b"x-priority" in headers else 0
        deadline_ns = self._deadline_ns(headers, now_ns) if b"x-deadline-ms" in headers else None
        output = body.output_tokens
        most = self._settings.default_max_tokens if output is None else output
        if self._limits.max_output_tokens is not None:
            most = min(most, self._limits.max_output_tokens)
        home = self._home(draft.meant)  # that will probably serve it, so that the router knows its prompt
        made: list[Choice] = []
        for prompt in prompts:
            tokens, vocab, room = prompt.estimate() if home is None else prompt.tokens(home.text), None, most
            if home is not None:
                vocab = prompt.vocab(home.text)
                if prompt.is_open:
                    room = prompt.room(most, home.request_tokens - len(tokens))
            for _ in range(manner.num_choices):
                sampling = manner.sampling
                if body.seed is not None:
                    sampling = seeded(sampling, body.seed, len(made))
                request = Request(  # by place: names cost more than the object
                    next(self._ids),
                    body.model,
                    tokens,
                    room,
                    now_ns,
                    tenant,
                    session,
                    priority,
                    deadline_ns,
                    sampling,
                    (),
                    vocab,
                    prompt,
                )
                if home is not None and prompt.grammar is not None:
                    request = prompt(request, home.text, home.request_tokens)  # it is the model's own
                made.append(Choice(len(made), prompt, request))
        if home is not None and len(made) > 1:
            self._check_together(draft.meant, tenant, [choice.request.max_tokens for choice in made])
        name = f"{kind.prefix}-{self._instance}-{made[0].request.id:x}"
        created = (self._clock.epoch_ns + now_ns) // NS_PER_S
        return Generation(made, len(prompts), name, created, is_chat=kind.is_chat, is_stream=manner.is_stream)

    def _check_together(self, meant: list[str], tenant: str, tokens: list[int]) -> None:
        """Raise BadRequest for choices that no limit will ever let in together: who comes again comes in vain."""
        errors = [self._engine.quotas.never(key, tenant, tokens) for key in meant]
        if errors[0] is not None and all(errors):
            raise errors[0]

    async def _word_aside(self, draft: "Draft") -> None:
        """Work out the tokens of long prompts in a thread: others are served meanwhile."""
        home = self._home(draft.meant)
        if home is not None:
            for prompt in draft.prompts:
                await asyncio.to_thread(prompt.tokens, home.text)

    def _home(self, meant: list[str]) -> Home | None:
        """The first of these models that is in memory; None where none is."""
        for key in meant:
            if (home := self._engine.fleet.homes.get(key)) is not None:
                return home
        return None

    def _meant(self, name: str, holder: Holder) -> list[str]:
        """The models that a name means. Raises NotFound, and Forbidden where the key is not for it."""
        engine = self._engine
        if engine.targets.is_group(name):
            meant = [card.key for card in engine.targets.members(name)]
        else:
            meant = [self._found(name, holder)]
        if holder.models is None:
            return meant
        if not holder.may_use(name) and not all(map(holder.may_use, meant)):
            allowed = ", ".join(sorted(holder.models or ()))
            raise Forbidden(f"model {name!r} is not one that this key may use: {allowed}")
        return meant

    def _found(self, name: str, holder: Holder) -> str:
        """The key of that model. Raises NotFound, which tells no more of others than the list of models does."""
        try:
            return self._engine.registry.find(name).key
        except NotFound:
            if holder.models is None or holder.may_use(name):
                raise
            allowed = ", ".join(sorted(holder.models))
            raise NotFound(f"no model is called {name[:64]!r}; this key may use {allowed}") from None

    def _able(self) -> list[str]:
        """Models in memory that take tools."""
        homes = self._engine.fleet.homes
        return [key for key, home in homes.items() if home.text is not None and home.text.calls is not None]

    def _session(self, headers: Mapping[bytes, bytes], holder: Holder) -> str | None:
        """The session that the header names; where tenants have keys, each has its own of every name.

        No tenant can be called anything with the mark between the two in it.
        """
        name = _ascii(b"x-session-id", headers[b"x-session-id"])
        if not holder.id:
            return name_within("x-session-id", name)
        most = max(0, MAX_NAME - len(holder.tenant) - 1)
        if len(name) > most:
            raise refused("x-session-id", f"x-session-id has {len(name)} characters, but may have {most}")
        return f"{holder.tenant}{OF_TENANT}{name}" if name else None

    def _priority(self, headers: Mapping[bytes, bytes], holder: Holder) -> int:
        priority = _whole_number(b"x-priority", headers[b"x-priority"], -MAX_PRIORITY, MAX_PRIORITY)
        return priority if holder.max_priority is None else min(priority, holder.max_priority)

    def _deadline_ns(self, headers: Mapping[bytes, bytes], now_ns: int) -> int:
        return now_ns + MS * _whole_number(b"x-deadline-ms", headers[b"x-deadline-ms"], 1, MAX_DEADLINE_MS)

    def _tell(self, client: Client, kind: Kind, generation: Generation, body: AnyBody) -> None:
        """Tell what came over the wire to those who want to know."""
        self._counts.asked(len(generation.choices), body.output_tokens)
        takers = self._engine.telemetry.takers
        if takers[Asked] or takers[Content]:
            self._tell_who_looks(client, kind, generation, body)

    def _tell_who_looks(self, client: Client, kind: Kind, generation: Generation, body: AnyBody) -> None:
        telemetry = self._engine.telemetry
        if telemetry.wants(Asked):
            trace = self._trace_of(*(_as_sent(client.headers.get(name)) for name in TRACE_HEADERS))
            client.trace_id = trace.trace_id
            for choice in generation.choices:
                request, sampling = choice.request, choice.request.sampling
                assert sampling is not None, "HTTP requests have one"
                telemetry.emit(
                    Asked(
                        request.arrival_ns,
                        request.id,
                        kind.operation,
                        trace.trace_id,
                        trace.parent_span_id,
                        trace.is_sampled,
                        trace.state,
                        generation.name,
                        generation.is_stream,
                        len(generation.choices),
                        request.max_output_tokens,
                        body.temperature,
                        body.top_p,
                        body.top_k if isinstance(body, Body) else None,
                        body.seed,
                    )
                )
        if telemetry.wants(Content):
            said: Any = (
                body.prompt
                if isinstance(body, UsualCompletion | CompletionBody)
                else msgspec.to_builtins(body.messages)
            )
            for choice in generation.choices:
                telemetry.emit(Content(choice.request.arrival_ns, choice.request.id, "input", said))

    def _body(self, told: Generation, kind: Kind) -> bytes:
        model = self._served_by(told.choices[0])
        return encode(Whole(told.name, kind.whole, told.created, model, told.whole(), told.usage()))

    def _served_by(self, choice: Choice) -> str:
        """The name that the client asked for; where that means several models, the one that serves."""
        asked, replica = choice.request.model, choice.stream.replica
        if not self._engine.targets.is_group(asked) or replica not in self._engine.replicas:
            return asked
        return self._engine.replicas[replica].model

    def _lines(self, client: Client, choice: Choice) -> bytes:
        """What a client may want to know beside the answer: who served it, and what is left of its limits."""
        told, completion, replica = _request_id(client), choice.completion, choice.stream.replica
        if replica is not None and (serving := self._engine.replicas.get(replica)) is not None:
            told += _served_lines(replica, serving.model)
            if self._engine.quotas.has_limits:
                told += self._left(serving.model, choice.request.tenant)
        if completion is not None:
            took_ms = (completion.finished_ns - choice.request.arrival_ns) // MS
            told += _effort_lines(completion.attempts, took_ms)
        return told

    def _limits_left(self, request: Request) -> bytes:
        """Of whoever was refused."""
        engine, name = self._engine, request.model
        if engine.targets.is_group(name):
            return b""
        return self._left(engine.registry.find(name).key, request.tenant)

    def _left(self, model: str, tenant: str) -> bytes:
        quotas = self._engine.quotas
        if not quotas.has_limits:
            return b""
        told = quotas.headers(model, tenant, self._clock.now_ns())
        return lines([(name.encode(), value.encode()) for name, value in told.items()]) if told else b""

    # what else there is

    async def models(self, client: Client) -> None:
        """All models that the key may use, and the groups of the settings, which are asked for like models."""
        holder, registry = client.holder, self._engine.registry
        known = (
            registry.all()
            if holder.models is None
            else [model for model in registry.all() if holder.may_use(model.key)]
        )
        data = [*map(registry.model_json, known), *self._groups(holder)]
        await client.answer(200, JSON, ('{"object": "list", "data": [' + ", ".join(data) + "]}").encode())

    def _groups(self, holder: Holder) -> Iterator[str]:
        """The groups of which the key may use all models, or the name."""
        for name in self._engine.targets.named:
            with suppress(NotFound, Forbidden):  # of a tag that nobody has by now, or not for this key
                yield self._group_json(name, self._meant(name, holder))

    def model_json(self, name: str, holder: Holder) -> str:
        """One model or group. Raises NotFound, Forbidden."""
        meant = self._meant(name, holder)
        if self._engine.targets.is_group(name):
            return self._group_json(name, meant)
        registry = self._engine.registry
        return registry.model_json(registry.find(name))

    def _group_json(self, name: str, keys: list[str]) -> str:
        """A group as if it were a model: as well as the best of its models, and as short as the shortest."""
        models = [self._engine.registry.find(key) for key in keys]
        best = next((model for model in models if model.is_serviceable), models[0])
        lengths = [model.context_tokens for model in models if model.context_tokens]
        return encode(
            {
                "id": name,
                "object": "model",
                "created": min(model.created_s for model in models),
                "owned_by": OWNER,
                "state": str(best.state),
                "max_model_len": min(lengths, default=0),
                "members": keys,
            }
        ).decode()

    async def metrics(self, client: Client) -> None:
        """Of all tenants, by name: where there are keys, for an operator's."""
        if not client.holder.is_admin:
            raise Forbidden("the key is not an operator's, but must be for the metrics of all tenants")
        body, kind = self._exposition(client.header(b"accept") or "")
        await client.answer(200, lines([(b"content-type", kind.encode())]), body)

    async def health(self, client: Client) -> None:
        """The process answers."""
        await client.answer(200, JSON, b'{"status":"ok"}')

    async def ready(self, client: Client) -> None:
        """Whether requests are welcome: at least one replica can serve, or a model could be loaded for them."""
        engine = self._engine
        available = sum(map(engine.is_available, engine.replicas))
        could_load = not engine.replicas and any(model.is_serviceable for model in engine.registry.all())
        is_ready = not self.is_draining and (available > 0 or could_load)
        told = {
            "status": "draining" if self.is_draining else "ready" if is_ready else "not_ready",
            "replicas": len(engine.replicas),
            "replicas_available": available,
        }
        await client.answer(200 if is_ready else 503, JSON, encode(told))


def _blame(error: EngineError, kind: Kind) -> None:
    """Say what was too long, or had nothing in it, as the client calls it."""
    if isinstance(error, TooLong) or (isinstance(error, BadRequest) and error.param == TEXTS.param):
        error.param = kind.param


TRACE_HEADERS = (b"traceparent", b"tracestate")


def _as_sent(header: bytes | None) -> str | None:
    """Whatever is in it: what is no trace is left out, as W3C wants it, and refuses nobody."""
    return None if header is None else header.decode("latin-1")


def _has_format(body: AnyBody) -> bool:
    """Whether its answer has to be JSON, be it by a schema or not."""
    form = body.response_format if isinstance(body, ChatBody) else None
    return form is not None and form["type"] != "text"


OF_TENANT = "\x1f"
LONG_BYTES = 1 << 16
"""A body from which on prompts are worked out beside the loop: 20 ms of tokenising, which others would wait for."""
MAX_DEADLINE_MS = 24 * 3_600_000


@dataclass(slots=True)
class Draft:
    """A body that was read, and what it means here."""

    body: AnyBody
    manner: Manner
    prompts: list[Prompt]
    meant: list[str]  # models


class _Out:
    """The client, as a streamed answer sees it."""

    def __init__(
        self,
        client: Client,
        lines_of: Callable[[Choice], bytes],
        model_of: Callable[[Choice], str],
        word: Callable[[EngineError], None],
    ) -> None:
        self.model_of = model_of
        self.word = word
        self.put = client.put
        self._client = client
        self._lines_of = lines_of

    async def begin(self, choice: Choice) -> None:
        await self._client.start(200, EVENTS + self._lines_of(choice))

    async def write(self, data: bytes) -> None:
        await self._client.write(data)

    @property
    def is_gone(self) -> bool:
        return self._client.is_gone

    def when_gone(self, tell: Callable[[], None]) -> None:
        self._client.when_gone(tell)


def _request_id(client: Client) -> bytes:
    """Which is printable, as the gate has seen."""
    return b"x-request-id: " + client.request_id.encode() + b"\r\n"


@lru_cache(maxsize=1024)
def _served_lines(replica: str, model: str) -> bytes:
    return lines(
        [
            (b"x-modelyard-replica", replica.encode("latin-1", "replace")),
            (b"x-modelyard-model", model.encode("latin-1", "replace")),
        ]
    )


@lru_cache(maxsize=4096)
def _effort_lines(attempts: int, took_ms: int) -> bytes:
    return b"x-modelyard-attempts: %d\r\nopenai-processing-ms: %d\r\n" % (attempts, took_ms)


def _ascii(name: bytes, value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest(f"the header {name.decode()} is {value!r}, but must be ASCII") from None


def _whole_number(name: bytes, value: bytes, low: int, high: int) -> int:
    text = _ascii(name, value)
    digits = text.removeprefix("-")
    if digits.isdecimal() and len(digits) <= MAX_DIGITS and low <= int(text) <= high:
        return int(text)
    raise BadRequest(
        f"the header {name.decode()} is {text[:64]!r}, but must be a whole number from {low} to {high}"
    )


MAX_DIGITS = 12
