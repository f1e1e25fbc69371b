"""The engine: the parts put together, and the path of a request from top to bottom."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from engine.cache import BlockChain, PrefixCache, namespace
from engine.clock import Clock, to_ns
from engine.errors import BadRequest, BadSettings, DeadlinePassed, NoReplica, ReplicaLost
from engine.execution import Machine, Replica, Scheduler, executors
from engine.execution.replica import Work
from engine.quotas import ConcurrencyQuota
from engine.registry import HealthMonitor, Registry
from engine.registry.health import Health, HealthChange
from engine.request import Completion, Request, Stream, Usage
from engine.routing import Router
from engine.routing.strategies import Replica as Routable
from engine.settings import EngineSettings, ExecutorSettings, ModelSettings
from engine.telemetry import Admitted, AttemptLost, HealthChanged, PrefixFound, Routed, Sink, Story, Telemetry

AVAILABLE = (Health.HEALTHY, Health.DEGRADED)


class Engine:
    """Many models, one door. Make it, `start` it under its clock, then `serve` as many requests as come."""

    def __init__(self, settings: EngineSettings, clock: Clock, sinks: Sequence[Sink] = ()) -> None:
        """Raises BadSettings or UnknownName before anything runs."""
        self.settings = settings
        self.clock = clock
        self.telemetry = Telemetry(clock, sinks)
        self.registry = Registry()
        self.router = Router(settings.routing, self._routed)
        self.quotas = ConcurrencyQuota(settings.quotas, clock)
        self.cache = PrefixCache(settings.cache)
        self.health = HealthMonitor(settings.health, self._health_changed)
        for model in settings.fleet.models:
            self.registry.add(model)
        self.limits: dict[str, Limits] = {}
        self._block_bytes: dict[str, int] = {}
        self.replicas = self._make_replicas()

    def start(self) -> None:
        """Let the replicas serve and their health be watched."""
        for replica in self.replicas.values():
            replica.start()
            if self.settings.health.enabled:
                self.clock.spawn(self._watch(replica))

    async def serve(self, request: Request, stream: Stream | None = None) -> Completion:
        """The whole path of a request, top to bottom. Nothing else knows this order.

        Tokens appear in `stream` as they come. A replica that is lost on the way is replaced by the next
        candidate, which carries on after the last token: no token is generated for the caller twice, and none is
        missing. Raises an EngineError when the request ends in any way but completed.
        """
        stream = stream if stream is not None else Stream()
        lost: ReplicaLost | None = None
        with self.telemetry.follow(request, stream) as story:
            model = self.registry.find(request.model)
            story.end.model = model.name
            self._check(request, model.name)
            chain = self._chain(request, model)
            with self.router.route(request, model.name, self.clock.now_ns()) as route:
                with await self.quotas.admit(request, model.name):
                    self._admitted(story)
                    while (chosen := route.next(self.clock.now_ns())) is not None:
                        replica = self.replicas[chosen.name]
                        try:
                            return await self._attempt(request, replica, chain, stream, story)
                        except ReplicaLost as error:
                            self._lost(replica, story, stream)
                            lost = error
                if lost is not None and len(route.tried) >= self.router.max_attempts:
                    raise lost
                raise NoReplica(
                    f"no healthy replica of {model.name!r} is left for request {request.id}"
                ) from lost

    def is_available(self, replica: str) -> bool:
        """Whether the router may give requests to that replica."""
        return self.health.health(replica) in AVAILABLE

    async def _attempt(
        self, request: Request, replica: Replica, chain: BlockChain | None, stream: Stream, story: Story
    ) -> Completion:
        """Prefix, execute, settle: one try on one replica."""
        end = story.end
        end.replica, end.attempts = replica.name, end.attempts + 1
        tokens = request.prompt_tokens
        if stream.tokens:
            tokens = np.concatenate([tokens, np.asarray(stream.tokens, dtype=np.int32)])
        num_before = len(stream.tokens)
        keys = chain.keys if chain is not None else []
        with self.cache.fetch(keys, len(tokens)) as prefix:
            end.cached_tokens_ram = min(prefix.num_tokens, request.num_prompt_tokens)
            self.telemetry.emit(
                PrefixFound(self.clock.now_ns(), request.id, replica.name, end.cached_tokens_ram)
            )
            work = Work(
                tokens,
                request.max_output_tokens - num_before,
                prefix.payloads,
                prefix.num_tokens,
                request.deadline_ns,
            )
            try:
                answer = await replica.generate(work, stream)
            finally:
                if chain is not None:
                    chain.extend(stream.tokens[num_before:])
            end.started_ns = answer.started_ns
            if chain is not None:
                known = chain.keys[: answer.computed_tokens // self.cache.block_tokens]
                self.cache.keep(known, answer.blocks, self._block_bytes[replica.name])
        usage = Usage(request.num_prompt_tokens, len(stream.tokens), end.cached_tokens_ram)
        completion = Completion(
            request.id, replica.model, replica.name, end.attempts, stream.tokens, usage, self.clock.now_ns()
        )
        return story.completed(completion)

    async def _watch(self, replica: Replica) -> None:
        """Probe a replica again and again, for as long as the engine runs."""
        settings = self.settings.health
        while True:
            await self.clock.sleep(to_ns(settings.probe_every_s))
            answered = await replica.probe(to_ns(settings.probe_timeout_s))
            self.health.probed(replica.name, answered, self.clock.now_ns())

    def _check(self, request: Request, model: str) -> None:
        """Raise BadRequest or NoReplica for what nobody could serve, DeadlinePassed for what nobody waits for."""
        if request.num_prompt_tokens < 1:
            raise BadRequest("the prompt has 0 tokens, but must have at least 1")
        if request.max_output_tokens < 1:
            raise BadRequest(f"max_output_tokens is {request.max_output_tokens}, but must be at least 1")
        limits = self.limits.get(model)
        if limits is None:
            raise NoReplica(f"the fleet has no replica of {model!r}")
        if request.max_tokens > limits.request_tokens:
            raise BadRequest(
                f"{request.num_prompt_tokens} prompt and {request.max_output_tokens} output tokens do not fit "
                f"{model!r}, which holds {limits.request_tokens} tokens a request"
            )
        low, high = int(request.prompt_tokens.min()), int(request.prompt_tokens.max())
        if low < 0 or high >= limits.vocab:
            wrong = low if low < 0 else high
            raise BadRequest(
                f"prompt token {wrong} is not in the vocabulary of {model!r}: 0 to {limits.vocab - 1}"
            )
        if request.deadline_ns is not None and request.deadline_ns <= self.clock.now_ns():
            raise DeadlinePassed(f"the deadline of request {request.id} had passed when it arrived")

    def _chain(self, request: Request, model: ModelSettings) -> BlockChain | None:
        if not self.cache.enabled:
            return None
        salt = "" if self.settings.cache.share_between_tenants else request.tenant
        chain = BlockChain(
            namespace(model.name, model.version, salt, self.cache.block_tokens), self.cache.block_tokens
        )
        chain.extend(request.prompt_tokens)
        return chain

    def _make_replicas(self) -> dict[str, Replica]:
        settings, fleet = self.settings, self.settings.fleet
        options = executor_options(settings.executor)
        loaded: dict[str, object] = {}
        replicas: dict[str, Replica] = {}
        for name, model_name in fleet.replicas.items():
            model = self.registry.find(model_name)
            machine = Machine(model, settings.hardware, self.clock, fleet.max_batch, settings.seed, loaded)
            executor = executors.make(settings.executor.name, machine, options)
            scheduler = Scheduler(fleet.max_batch, fleet.step_tokens, executor.kv_capacity_tokens)
            # without a cache no block is worth copying out: no sequence fills one that is so long
            block_tokens = self.cache.block_tokens if self.cache.enabled else executor.context_tokens + 1
            replica = Replica(name, model.name, executor, scheduler, self.clock, block_tokens)
            replicas[name] = replica
            self._block_bytes[name] = executor.kv_bytes_per_token * settings.cache.block_tokens
            self.limits[model.name] = Limits(
                min(executor.context_tokens, executor.kv_capacity_tokens), executor.vocab
            )
            self.router.add(replica)
            self.health.add(name)
        return replicas

    def _routed(
        self, request: Request, attempt: int, chosen: Routable, candidates: Sequence[Routable], now_ns: int
    ) -> None:
        self.telemetry.emit(
            Routed(
                now_ns,
                request.id,
                attempt,
                self.router.strategy_name,
                chosen.name,
                tuple([replica.name for replica in candidates]),
                tuple([replica.tokens_in_flight for replica in candidates]),
            )
        )

    def _admitted(self, story: Story) -> None:
        now_ns = self.clock.now_ns()
        story.end.admitted_ns = now_ns
        self.telemetry.emit(Admitted(now_ns, story.request.id, now_ns - story.request.arrival_ns))

    def _lost(self, replica: Replica, story: Story, stream: Stream) -> None:
        now_ns = self.clock.now_ns()
        self.telemetry.emit(
            AttemptLost(now_ns, story.request.id, story.end.attempts, replica.name, len(stream.tokens))
        )
        self.health.lost(replica.name, now_ns)

    def _health_changed(self, change: HealthChange) -> None:
        self.router.set_available(self.replicas[change.replica], change.after in AVAILABLE)
        self.telemetry.emit(
            HealthChanged(change.at_ns, change.replica, change.before, change.after, change.cause)
        )


@dataclass(slots=True)
class Limits:
    """What one request to a model may be."""

    request_tokens: int
    vocab: int


def executor_options(settings: ExecutorSettings) -> object:
    """The chosen executor's own options. Raises BadSettings for one that it does not have."""
    cls = executors.find(settings.name).Options
    allowed = [field.name for field in fields(cls)]
    for name, value in settings.options.items():
        if name not in allowed:
            raise BadSettings(
                f"executor.{name} is {value!r}, but executor {settings.name!r} has no such option; "
                f"its options are {', '.join(allowed)}"
            )
    return cls(**settings.options)
