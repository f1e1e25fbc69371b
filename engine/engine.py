"""The engine: the parts put together, and the path of a request from top to bottom."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from engine.cache import (
    BlockChain,
    Carrier,
    Chain,
    Decision,
    Drawn,
    LineChain,
    LineNames,
    Packer,
    Prefix,
    PrefixCache,
    Space,
    close_stores,
    figures,
    namespace,
    open_stores,
)
from engine.clock import NS_PER_S, Clock, to_ns, utc_now
from engine.errors import (
    BadRequest,
    BadSettings,
    DeadlinePassed,
    EngineError,
    GenerationFailed,
    LoadFailed,
    NoReplica,
    OverQuota,
    QueueFull,
    ReplicaLost,
    TooLong,
)
from engine.execution import Compiled, Replica, Work
from engine.figures import Distribution, Figure, Values
from engine.fleet import COSTED_TOKENS, Fleet, Home, LoadTimes, median_load_times
from engine.quotas import Crossing, Grant, ModeChange, Quotas
from engine.registry import (
    Changes,
    Discovery,
    Health,
    HealthChange,
    HealthMonitor,
    Model,
    Registry,
    Store,
    discover,
    rescan,
)
from engine.request import GRAMMAR, Completion, Grammar, Request, Sampling, Stream, Usage, Wording
from engine.routing import (
    LOAD,
    MODEL,
    NAME,
    Attempts,
    Choice,
    DecisionTimer,
    Experiments,
    Router,
    RouterChange,
    Seat,
    Targets,
    Walk,
)
from engine.settings import EngineSettings, LimitSettings, require
from engine.telemetry import (
    Admitted,
    AttemptLost,
    Ended,
    Evicted,
    FellBack,
    HealthChanged,
    ModeChanged,
    ModelMoved,
    Preempted,
    PrefixFound,
    Routed,
    RouterChanged,
    Sink,
    SoftLimitPassed,
    StoreFailed,
    Story,
    Telemetry,
)

if TYPE_CHECKING:
    from engine.text import Text

MAX_NAME = 256
"""Characters of a tenant's and of a session's name."""

TRIED_ELSEWHERE = (NoReplica, QueueFull, ReplicaLost, LoadFailed, GenerationFailed, OverQuota)
"""Why another model of a group is asked for the whole answer."""

AVAILABLE = (Health.HEALTHY, Health.DEGRADED)
BEST_FIRST = (
    Health.HEALTHY,
    Health.DEGRADED,
    Health.LOADING,
    Health.UNHEALTHY,
    Health.DRAINING,
    Health.UNLOADED,
)


class Engine:
    """Many models, one door. Make it, `start` it under its clock, then `serve` as many requests as come."""

    def __init__(
        self,
        settings: EngineSettings,
        clock: Clock,
        sinks: Sequence[Sink] = (),
        *,
        models: Iterable[Model] = (),
        load_times: LoadTimes | None = None,
    ) -> None:
        """`models` are known besides those of the fleet, and loaded when they are asked for.

        `load_times` says what loading takes where it is modelled; the median if nobody says. Raises BadSettings or
        UnknownName before anything runs.
        """
        self.settings = settings
        self.clock = clock
        self.telemetry = Telemetry(clock, sinks)
        remembered = settings.models.registry_file
        self.registry = Registry(Store(Path(remembered)) if remembered is not None else None)
        self.quotas = Quotas(settings.quotas, clock, self._quota_changed, epoch_ns=clock.epoch_ns)
        self._lines_end = settings.fleet.queue_capacity is not None
        self.cache = PrefixCache(
            replace(settings.cache, limits=[*settings.cache.limits, *held_bytes(settings)])
        )
        self._cached_tokens = [f"cached_tokens_{tier.name}" for tier in self.cache.tiers]  # fields of `Ended`
        self._line_names = LineNames()
        self.router = Router(
            settings.routing,
            self._routed,
            seed=settings.seed,
            headroom=self._headroom,
            price=self._price,
            block_tokens=settings.cache.block_tokens,
            later=clock.call_later,
            on_change=self._router_changed,
        )
        every = settings.routing.time_every
        self._timer = DecisionTimer(self.router, every) if every else None
        self._attempts = self.router.attempts if self._timer is None else self._timer.attempts
        self._states: dict[str, Health] = {}  # of models, as they were told last
        self._num_unflushed = 0
        self.health = HealthMonitor(settings.health, self._health_changed)
        self._watched = self.health if settings.health.enabled else None
        for model in (*map(Model.from_settings, settings.fleet.models), *models):
            self.registry.add(model)
        self._discovered = self._discover()
        self.experiments = Experiments(settings.routing.experiments)
        self._experiments_on = len(self.experiments) > 0
        self.targets = Targets(
            settings.routing,
            self.registry.find,
            self.registry.with_tag,
            settings.fleet.replicas.values(),
            lambda: [model for model in self.registry.all() if model.is_serviceable],
        )
        self.fleet = Fleet(
            settings,
            clock,
            self.registry,
            self.router,
            self.health,
            load_times or median_load_times(settings.models),
            self._model_moved,
            lambda key: self.targets.groups_of(self.registry.find(key)),
        )
        self.lifecycle = self.fleet.lifecycle
        for model in self.registry.all():
            if model.is_pinned:
                self.lifecycle.pin(model.key)
        if settings.models.preload:
            self._preload()
        self._is_real = is_real = not self.fleet.executor_of(settings.executor.name).is_modelled
        self._stores = open_stores(self.cache, is_real=is_real)
        packer = make_packer(settings) if is_real and len(self.cache.tiers) > 1 else None
        self.carrier = Carrier(self.cache, clock, self._stores, packer, self._store_failed)
        self.carrier.adopt()
        self.cache.on_evicted = self._evicted

    @property
    def replicas(self) -> dict[str, Replica]:
        """Those in memory, by name."""
        return self.fleet.replicas

    def start(self) -> None:
        """Let the replicas serve, their health be watched, and what is known of models be kept up to date."""
        self.fleet.start()
        models = self.settings.models
        if models.registry_file is not None:
            self.clock.spawn(self._flush_again_and_again(models.flush_every_s))
        if models.folder is not None and models.rescan_every_s is not None:
            self.clock.spawn(self._rescan_again_and_again(models.rescan_every_s))

    def flush(self) -> None:
        """Put the use counts of all models into the registry's file, where there is one. Raises BadSettings."""
        self.registry.flush(utc_now().isoformat(timespec="seconds"))

    def close(self) -> None:
        """Write down use counts and the KV that would be gone, and let go of the folders of the cache's tiers.

        The clock has been closed before: nothing runs any more.
        """
        if self.settings.models.registry_file is not None:
            self._flush_if_it_can_be()
        self.carrier.flush()
        close_stores(self._stores)
        self.quotas.close()

    def figures(self) -> Iterator[Figure | Distribution]:
        """What its parts count, for a scrape."""
        yield from self.fleet.figures()
        yield from figures(self.cache, self.carrier)
        yield from self.quotas.figures()
        yield from self.router.figures()
        yield from self.experiments.figures()
        if self._timer is not None:
            yield from self._timer.figures()
        if self.settings.models.registry_file is not None:
            unflushed: Values = {(): float(self._num_unflushed)}
            yield Figure(
                "modelyard:registry_failures", "Use counts that could not be written.", (), unflushed
            )

    def pin(self, name: str, *, pinned: bool = True) -> None:
        """Never unload that model to make room, or do so again; remembered where there is a registry's file.

        Raises NotFound.
        """
        self.lifecycle.pin(self.registry.edit(name, is_pinned=pinned).key, pinned=pinned)

    async def rescan(self) -> Changes:
        """Look at the models folder again. Raises BadSettings when there is none, or it cannot be listed."""
        found = self._discovered
        if found is None:
            raise BadSettings("models.folder is null, but must be the models folder for a rescan")
        changes, _ = await self.clock.compute(lambda: rescan(found))
        self.learn(changes)
        return changes

    def learn(self, changes: Changes) -> None:
        """Take over what a rescan found. Models that are gone or changed serve whom they hold, then they leave."""
        self._discovered = changes.discovery
        gone, _ = self.registry.relearn(changes)
        for model in gone:
            self.clock.spawn(self._dismiss(model.key))

    async def serve(self, request: Request, stream: Stream | None = None) -> Completion:
        """The whole path of a request, top to bottom. Nothing else knows this order.

        Tokens appear in `stream` as they come. A replica that is lost on the way is replaced by the next
        candidate, which carries on after the last token: no token is generated for the caller twice, and none is
        missing. Raises an EngineError when the request ends in any way but completed.
        """
        stream = stream if stream is not None else Stream()
        with self.telemetry.follow(request, stream) as story:
            name = self._arm(request, story) if self._experiments_on else request.model
            try:
                return await self._serve_as(name, request, story, stream)
            finally:
                if story.end.arm is not None:
                    self._observe_arm(story.end.arm, story, stream)

    async def _serve_as(self, name: str, request: Request, story: Story, stream: Stream) -> Completion:
        """The path through what a name means, and through its fallbacks where that cannot serve."""
        walk: Walk | None = None
        while True:
            try:
                if self.targets.is_group(name):
                    return await self._serve_by_group(name, request, story, stream)
                return await self._serve_by_model(name, request, story, stream)
            except EngineError as error:
                walk = walk or self.targets.walk(name)
                if stream.num_tokens or not walk.fail(error):  # no other model carries on in mid-answer
                    if isinstance(error, NoReplica):
                        error.retry_after_s = self._back_in_s(name)
                    raise
                self._fell_back(request, name, walk.name, error)
                name = walk.name

    async def _serve_by_model(self, name: str, request: Request, story: Story, stream: Stream) -> Completion:
        """The path through one model, which is loaded for it if need be."""
        model = self.registry.find(name)
        story.end.model = model.key
        self._check(request)
        held = self.lifecycle.hold_at_once(model.key)
        with held if held is not None else await self.lifecycle.hold(model.key, request.deadline_ns):
            now_ns = self._loaded(story.end)
            job = self._read(request, self.fleet.homes[model.key], story, stream)
            self.registry.used(model, now_ns)
            with self._attempts(model.key, job.request, job.request.max_tokens, now_ns) as attempts:
                return await self._serve_on(attempts, job, story)

    async def _serve_by_group(self, group: str, request: Request, story: Story, stream: Stream) -> Completion:
        """The path through one model of a group, and through another one where that cannot serve.

        Models in memory come first; where none of the group is open, its models are loaded in their order.
        """
        self._check(request)
        if self.router.wants_prefixes:
            request.prefix_keys = self._group_keys(request)
        failed: list[str] = []
        error: EngineError | None = None
        while True:
            without = self._too_dear(group, request.tenant, failed)
            if failed:
                without += [seat for seat in self.router.seats_of(group) if seat.model in failed]
            now_ns = self.clock.now_ns()
            try:
                attempts = self._attempts(group, request, request.max_tokens, now_ns, without)
            except NoReplica as nobody:
                waiting = [card.key for card in self.targets.members(group) if card.key not in failed]
                if not waiting:
                    raise error or nobody from None
                failed.append(waiting[0])
                try:
                    return await self._serve_by_model(waiting[0], request, story, stream)
                except TRIED_ELSEWHERE as failure:
                    if stream.num_tokens or not may_be_elsewhere(failure):
                        raise
                    error = failure
                continue
            with attempts:
                model = self.registry.find(attempts.first.model)
                story.end.model = model.key
                failed.append(model.key)
                attempts.stay_with(model.key)
                try:
                    with await self.lifecycle.hold(model.key, request.deadline_ns):
                        now_ns = self._loaded(story.end)
                        job = self._read(request, self.fleet.homes[model.key], story, stream)
                        self.registry.used(model, now_ns)
                        return await self._serve_on(attempts, job, story)
                except (*TRIED_ELSEWHERE, TooLong) as failure:
                    if stream.num_tokens or not may_be_elsewhere(failure):
                        raise
                    error = failure

    async def _serve_on(self, attempts: Attempts, job: "Job", story: Story) -> Completion:
        """Admit, then one replica of the model after the other, until one has answered."""
        request, key, clock = job.request, job.home.key, self.clock
        if request.sampling is not None and request.sampling.grammar is not None:
            job.grammar = await self._compiled(request.sampling.grammar, job.home)
        lost: ReplicaLost | None = None
        is_full = False
        health = self._watched
        grant = self._reserve(request, key)
        if grant is None:
            grant = await self.quotas.wait(request, key, request.max_tokens)
        with grant:
            try:
                now_ns = clock.now_ns()
                self._admitted(story, now_ns)
                while (chosen := attempts.next(now_ns)) is not None:
                    replica = self.fleet.replicas[chosen.name]
                    if self._lines_end and not replica.takes_more:
                        attempts.pass_over()
                        is_full = True
                        continue
                    if health is not None and not health.enter(replica.name):
                        attempts.pass_over()  # it is on trial, and others try it
                        continue
                    try:
                        return await self._attempt(job, replica, chosen, story)
                    except ReplicaLost as error:
                        self._lost(replica, story, job.stream)
                        lost, now_ns = error, clock.now_ns()
                    finally:
                        if health is not None:
                            health.leave(replica.name)
            finally:
                self._settle(grant, job, story)
        if lost is not None and len(attempts.tried) >= self.router.max_attempts:
            raise lost
        if is_full and lost is None:
            capacity = self.settings.fleet.queue_capacity
            raise QueueFull(
                f"{capacity} requests wait at each replica of {key!r}, as fleet.queue_capacity allows"
            )
        raise NoReplica(f"no healthy replica of {key!r} is left for request {request.id}") from lost

    def _reserve(self, request: Request, key: str) -> "Grant | NoGrant | None":
        """What the quota grants at once; None for whoever has to wait. Operators may switch quotas at any time."""
        if not self.quotas.settings.enabled:
            return NO_GRANT
        return self.quotas.reserve(request, key, request.max_tokens, self.clock.now_ns())

    def _read(self, request: Request, home: Home, story: Story, stream: Stream) -> "Job":
        """The request as that model reads it: in its words, and no longer than its mode lets it be."""
        if request.wording is not None:
            request = self._worded(request.wording, request, home, story)
        if self.quotas.modes_cut:
            request = self._cut(request, home.model.key)
        job = self._job(request, home, stream)
        if request.prefix_keys and job.chain is not None and request.wording is None:
            home.names.learn(request.prefix_keys, job.chain.keys)
        return job

    def _worded(self, wording: Wording, request: Request, home: Home, story: Story) -> Request:
        """The request in the words of the model that serves it, which may not be the one it was sent to."""
        worded = wording(request, home.text, home.request_tokens)
        if worded is not request:
            self._check(worded)
            story.end.prompt_tokens = worded.num_prompt_tokens
        return worded

    async def _compiled(self, grammar: Grammar, home: Home) -> Compiled:
        """The grammar in a model's tokens. Raises BadRequest where it is no good, or the model cannot follow it."""
        if home.grammars is None:
            why = "its executor makes tokens up by a formula"
            if home.executor.follows_grammars:
                why = "it has no tokenizer" if home.text is None else "no token of it ends an answer"
            what = f"grammar is {grammar.kind!r}, but {home.model.key!r} cannot follow any: {why}"
            raise BadRequest(what, GRAMMAR)
        known = home.grammars.find(grammar)
        if known is not None:
            return known
        compiled, _ = await self.clock.compute(partial(home.grammars.compile, grammar))
        home.grammars.keep(compiled)
        return compiled

    def is_available(self, replica: str) -> bool:
        """Whether the router may give requests to that replica."""
        return self.health.knows(replica) and self.health.health(replica) in AVAILABLE

    def _back_in_s(self, name: str) -> float:
        """When the first of the replicas that are closed now may serve again; a second where none is."""
        is_group = self.targets.is_group(name)
        meant = self.targets.members(name) if is_group else [self.registry.find(name)]
        keys = [card.key for card in meant]
        now_ns, health = self.clock.now_ns(), self.settings.health
        least_ns = to_ns(health.probe_every_s) if health.probes else 1
        waits = [
            max(least_ns, self.health.retry_in_ns(replica.name, now_ns))
            for replica in self.replicas.values()
            if replica.model in keys
            and self.health.knows(replica.name)
            and self.health.health(replica.name) not in AVAILABLE
        ]
        return min(waits, default=NS_PER_S) / NS_PER_S

    def _preload(self) -> None:
        """Have the models of the fleet's replicas in memory before time begins. Raises BadSettings."""
        for replica, name in self.settings.fleet.replicas.items():
            key = self.registry.find(name).key
            if key not in self.fleet.homes:
                try:
                    self.fleet.load_now(key)
                except LoadFailed as error:
                    raise BadSettings(f"replica {replica!r} cannot be loaded: {error}") from error
                self._states[key] = Health.HEALTHY

    def _discover(self) -> Discovery | None:
        """The models folder, everything in it known from now on; None without one. Raises BadSettings."""
        folder = self.settings.models.folder
        if folder is None:
            return None
        found = discover(Path(folder))
        self.registry.learn(found)
        return found

    async def _dismiss(self, key: str) -> None:
        await self.lifecycle.unload(key, may_return=key in self.registry)
        if key not in self.registry:
            self.lifecycle.forget(key)

    async def _flush_again_and_again(self, every_s: float) -> None:
        while True:
            await self.clock.sleep(to_ns(every_s))
            self._flush_if_it_can_be()

    def _flush_if_it_can_be(self) -> None:
        """A disk that is full, or a file that another process holds, stops nobody: the next time has all of it."""
        try:
            self.flush()
        except BadSettings:
            self._num_unflushed += 1

    async def _rescan_again_and_again(self, every_s: float) -> None:
        while True:
            await self.clock.sleep(to_ns(every_s))
            with suppress(BadSettings):  # a disk that is away for a while takes no model along
                await self.rescan()

    async def _attempt(self, job: "Job", replica: Replica, seat: Seat, story: Story) -> Completion:
        """Prefix, execute, settle: one try on one replica."""
        request, chain, stream, end = job.request, job.chain, job.stream, story.end
        end.replica = stream.replica = replica.name
        now_ns = self._tried(end)
        tokens, num_tokens = request.prompt_tokens, request.num_prompt_tokens
        num_before = stream.num_tokens
        if num_before:
            num_tokens += num_before
            tokens = np.concatenate([tokens, np.asarray(stream.tokens, dtype=np.int32)])
        keys = chain.keys if chain is not None else []
        space = job.space
        found = None if space is None else self.cache.find(space, keys, num_tokens, now_ns)
        with found or NO_PREFIX as prefix:
            decision = None
            if found is not None and self.cache.mover is not None:
                end.queued_ns = None  # of an attempt before: somebody may leave while the prefix comes
                decision = await self.carrier.bring(found, job.home.executor, num_tokens)
                now_ns = self.clock.now_ns()
            end.queued_ns = now_ns
            if found is not None and (found.num_blocks or self.telemetry.takers[PrefixFound]):
                self._found(found, job, story, decision)
            work = Work(
                tokens,
                request.max_output_tokens - num_before,
                prefix.payloads(),
                prefix.num_tokens,
                request.deadline_ns,
                request.sampling,
                job.seed,
                request.priority,
                job.stops(),
                partial(self._preempted, request, replica) if self.telemetry.takers[Preempted] else None,
                job.grammar.follow(stream.tokens) if job.grammar is not None else None,
            )
            try:
                answer = await replica.generate(work, stream)
            except GenerationFailed:
                self._failed(replica.name)
                raise
            finally:
                job.follow(num_before)
            end.started_ns, now_ns = answer.started_ns, self.clock.now_ns()
            if chain is not None and space is not None:
                known = chain.keys[: answer.computed_tokens // self.cache.block_tokens]
                self.cache.keep(space, known, answer.blocks, now_ns)
        if decision is not None and stream.first_token_ns is not None and not num_before:
            self.carrier.judge(decision, stream.first_token_ns - answer.started_ns)
        if job.chain is not None and request.session is not None:
            self._prefetch(job)
        self._observe(seat, story, stream, num_before, now_ns)
        is_stopped_late = job.reader is not None and job.reader.finish()
        cached = end.cached_tokens if space is not None else 0
        usage = Usage(request.num_prompt_tokens, stream.num_tokens, cached)
        completion = Completion(
            request.id,
            replica.model,
            replica.name,
            end.attempts,
            stream,
            usage,
            now_ns,
            "stop" if answer.is_stopped or is_stopped_late else "length",
        )
        return story.completed(completion)

    def _failed(self, replica: str) -> None:
        """A request failed, and it was the replica's fault."""
        if self._watched is not None:
            self._watched.failed(replica, self.clock.now_ns())

    def _observe(self, seat: Seat, story: Story, stream: Stream, num_before: int, now_ns: int) -> None:
        """Note how well a replica has served: for its health, and for those who route by latency."""
        if self._watched is not None:
            self._watched.served(seat.name, now_ns)
        first_ns, last_ns, num = stream.first_token_ns, stream.last_token_ns, stream.num_tokens
        if first_ns is not None and last_ns is not None and not num_before:
            asked_ns = story.end.admitted_ns or story.end.arrival_ns
            token_ns = (last_ns - first_ns) / (num - 1) if num > 1 else 0.0
            self.router.observe(seat, first_ns - asked_ns, token_ns, now_ns)

    def _check(self, request: Request) -> None:
        """Raise BadRequest for what no model could serve, DeadlinePassed for what nobody waits for."""
        if request.num_prompt_tokens < 1:
            raise BadRequest("the prompt has 0 tokens, but must have at least 1")
        if request.max_output_tokens < 1:
            raise BadRequest(f"max_output_tokens is {request.max_output_tokens}, but must be at least 1")
        if len(request.tenant) > MAX_NAME:
            raise BadRequest(f"tenant has {len(request.tenant)} characters, but may have {MAX_NAME}")
        if request.session is not None and len(request.session) > MAX_NAME:
            raise BadRequest(f"session has {len(request.session)} characters, but may have {MAX_NAME}")
        if request.deadline_ns is not None and request.deadline_ns <= self.clock.now_ns():
            raise DeadlinePassed(f"the deadline of request {request.id} had passed when it arrived")

    def _job(self, request: Request, home: Home, stream: Stream) -> "Job":
        """What its attempts need to know of a request. Raises BadRequest for what this model cannot serve."""
        name = home.key
        if request.max_tokens > home.request_tokens:
            raise TooLong(
                f"{request.num_prompt_tokens} prompt and {request.max_output_tokens} output tokens do not fit "
                f"{name!r}, which holds {home.request_tokens} tokens a request"
            )
        if request.vocab is None or request.vocab > home.vocab:
            low, high = int(request.prompt_tokens.min()), int(request.prompt_tokens.max())
            if low < 0 or high >= home.vocab:
                wrong = low if low < 0 else high
                raise BadRequest(
                    f"prompt token {wrong} is not in the vocabulary of {name!r}: 0 to {home.vocab - 1}",
                    "prompt",
                )
        sampling, space, chain = request.sampling, None, None
        if self.cache.enabled:
            space = self._space(request, home)
            chain = self._chain(request, home, space)
        if sampling is None:
            return Job(request, home, space, chain, stream)
        for token, _ in sampling.logit_bias:
            if token >= home.vocab:
                known = f"the vocabulary of {name!r}: 0 to {home.vocab - 1}"
                raise BadRequest(f"logit_bias has token {token}, which is not in {known}", "logit_bias")
        if sampling.stop and home.text is None:
            raise BadRequest(
                f"stop is {sampling.stop!r}, but {name!r} has no tokenizer to find it with", "stop"
            )
        seed = sampling.seed
        if seed is None:  # a formula draws nothing
            seed = 0 if home.executor.is_modelled else seed_of(self.settings.seed, request.id)
        return Job(request, home, space, chain, stream, seed, Reader(request, sampling, home.text, stream))

    def _space(self, request: Request, home: Home) -> Space:
        """The namespace of that tenant's KV of that model."""
        tenant = "" if self.settings.cache.share_between_tenants else request.tenant
        space = home.spaces.get(tenant)
        if space is None or not space.is_known:  # the cache has forgotten it
            model, executor, cache = home.model, home.executor, self.cache
            space = cache.space(model.key, home.weights_id, tenant, home.block_bytes, home.value_bytes)
            tokens = min(COSTED_TOKENS, executor.context_tokens)
            space.holder.recompute_ns = executor.prefill_ns(0, tokens) * cache.block_tokens / tokens
            if len(home.spaces) > len(cache.spaces):
                home.spaces = {name: each for name, each in home.spaces.items() if each.is_known}
            home.spaces[tenant] = space
        return space

    def _chain(self, request: Request, home: Home, space: Space) -> Chain | None:
        """The names of its blocks; None where no block of the model is ever kept."""
        if not home.block_bytes:
            return None
        return self._names(request, space.digest, is_real=not home.executor.is_modelled)

    def _names(self, request: Request, start: bytes, *, is_real: bool) -> Chain:
        """The names of a request's blocks from that start on: by its tokens, or by what they would be drawn from.

        Where something `is_real`, somebody may compare them with names of other tokens.
        """
        prompt, size = request.prompt_tokens, self.cache.block_tokens
        if not is_real and request.sampling is None and getattr(prompt, "telling_tokens", size + 1) <= size:
            return LineChain(start, size, cast("Drawn", prompt), self._line_names)
        chain = BlockChain(start, size)
        chain.extend(prompt)
        return chain

    def _found(self, prefix: Prefix, job: "Job", story: Story, decision: Decision | None) -> None:
        """Tell what of the prompt needs no prefill, and where it was."""
        end, tokens = story.end, self.cache.block_tokens
        left = job.request.num_prompt_tokens
        if prefix.num_blocks:
            for rank, name in enumerate(self._cached_tokens):
                if blocks := prefix.blocks_by_tier[rank]:
                    cached = min(blocks * tokens, left)
                    setattr(end, name, cached)
                    left -= cached
        if not self.telemetry.takers[PrefixFound]:
            return
        found = PrefixFound(self.clock.now_ns(), job.request.id, end.replica or "", end.cached_tokens)
        if decision is not None:
            found.loaded_tokens = decision.loaded_blocks * tokens
            found.recomputed_tokens = decision.dropped_blocks * tokens
            found.waited_ns = decision.waited_ns
        self.telemetry.emit(found)

    def _prefetch(self, job: "Job") -> None:
        """Bring the blocks of a session back before its next turn, if that is wanted."""
        after_s = self.settings.cache.prefetch_after_s
        space, chain = job.space, job.chain
        if after_s is not None and space is not None and chain is not None:
            again = partial(self.carrier.prefetch, space, chain.keys)
            self.clock.call_later(to_ns(after_s), again)

    def _evicted(self, model: str, tier: str, blocks: int, read_ns: int) -> None:
        if self.telemetry.takers[Evicted]:
            self.telemetry.emit(Evicted(self.clock.now_ns(), model, tier, blocks, read_ns))

    def _store_failed(self, tier: str, kind: str) -> None:
        self.telemetry.emit(StoreFailed(self.clock.now_ns(), tier, kind))

    def explain(self, request: Request) -> Choice:
        """Who would serve that request now and why, and what its quota says; nothing changes.

        Raises NotFound or NoReplica.
        """
        name = self.experiments.target(request, self.clock.now_ns())
        pool = name if self.targets.is_group(name) else self.registry.find(name).key
        if pool == name and self.router.wants_prefixes:
            request.prefix_keys = self._group_keys(request)
        choice = self.router.explain(pool, request, self.clock.now_ns())
        model = next(each.model for each in choice.candidates if each.name == choice.chosen)
        choice.verdict = self.quotas.verdict(request, model, self.clock.now_ns())
        return choice

    def _arm(self, request: Request, story: Story) -> str:
        """The name that is asked for: the request's own, or that of its arm where somebody experiments on it."""
        arm = self.experiments.assign(request, self.clock.now_ns())
        if arm is None:
            return request.model
        story.end.arm = arm.label
        return arm.target

    def _observe_arm(self, label: str, story: Story, stream: Stream) -> None:
        """Note what came of a request in an arm of an experiment."""
        end, first_ns, last_ns = story.end, stream.first_token_ns, stream.last_token_ns
        if end.outcome != "completed" or first_ns is None or last_ns is None:
            self.experiments.observe(label, completed=False)
            return
        self.experiments.observe(
            label,
            completed=True,
            ttft_s=(first_ns - end.arrival_ns) / NS_PER_S,
            e2e_s=(last_ns - end.arrival_ns) / NS_PER_S,
            hit_ratio=end.cached_tokens / end.prompt_tokens,
        )

    def _headroom(self, model: str) -> float:
        return self.quotas.headroom(model)

    def _too_dear(self, group: str, tenant: str, failed: Sequence[str]) -> list[Seat]:
        """Seats of models whose mode sends a group's requests to its cheapest open model."""
        quotas = self.quotas
        if not any(mode.cheaper for mode in quotas.settings.modes.values()):
            return []
        seats = self.router.seats_of(group)
        open_models = dict.fromkeys(seat.model for seat in seats if seat.is_open and seat.model not in failed)
        cheap = [card.key for card in self.targets.cheapest(group) if card.key in open_models]
        dear = [key for key in cheap[1:] if quotas.settings_of(quotas.mode(key, tenant)).cheaper]
        return [seat for seat in seats if seat.model in dear]

    def _settle(self, grant: "Grant | NoGrant", job: "Job", story: Story) -> None:
        """Settle what was used, however it ended: prompt and output where something was computed, else nothing."""
        end, num_tokens = story.end, job.stream.num_tokens
        if num_tokens or end.started_ns is not None:
            cost = self.quotas.settings.cached_token_cost
            cached = round((1 - cost) * end.cached_tokens) if cost != 1 else 0
            grant.settle(job.request.num_prompt_tokens - cached + num_tokens)

    def _cut(self, request: Request, key: str) -> Request:
        """The request as its model's mode lets it through: some allow only shorter answers."""
        mode = self.quotas.settings_of(self.quotas.mode(key, request.tenant))
        most = mode.max_output_tokens
        if most is None or request.max_output_tokens <= most:
            return request
        return replace(request, max_output_tokens=most)

    def _quota_changed(self, change: Crossing | ModeChange) -> None:
        if isinstance(change, Crossing):
            self.telemetry.emit(
                SoftLimitPassed(
                    change.at_ns,
                    change.model,
                    change.tenant,
                    change.kind,
                    change.share,
                    change.used,
                    change.limit,
                )
            )
        else:
            self.telemetry.emit(
                ModeChanged(
                    change.at_ns, change.model, change.tenant, change.before, change.after, change.cause
                )
            )

    def _group_keys(self, request: Request) -> list[bytes]:
        """Names of the request's blocks that are the same for all models, and another tenant's are not."""
        start = namespace("", "", "" if self.settings.cache.share_between_tenants else request.tenant, 0)
        return self._names(request, start, is_real=self._is_real).keys

    def _price(self, seat: Seat, request: Request, num_blocks: int) -> float:
        """The blocks of prefill that a model's cache saves: each less what loading it from its tier takes of that."""
        home = self.fleet.homes.get(seat.model)
        if home is None or not home.block_bytes:
            return 0.0
        names, shared = home.names, request.prefix_keys
        last = names.young.get(shared[num_blocks - 1])
        if last is not None and self.cache.is_hot(last):
            return float(num_blocks)  # and so are those before it
        if shared[num_blocks - 1] in names:  # and so are those before it
            num_blocks = self.cache.reach(names, shared, num_blocks)
            if len(self.cache.tiers) == 1 and not self.cache.hollow:
                return float(num_blocks)
            keys = names.of(shared[:num_blocks])
        else:  # not all of it was read there since the process began
            chain = self._chain(request, home, self._space(request, home))
            assert chain is not None, "a model that keeps blocks names them"
            keys = chain.keys[:num_blocks]
            names.learn(shared, chain.keys)
        return self._worth(self._space(request, home), home, keys)

    def _worth(self, space: Space, home: Home, keys: list[bytes]) -> float:
        """The blocks of prefill that blocks in several tiers save."""
        recompute_ns = space.holder.recompute_ns or 1.0  # 0: the executor answers at once
        with self.cache.peek(space, keys) as prefix:
            worth = 0.0
            for rank, blocks in enumerate(prefix.blocks_by_tier):
                load_ns = self.carrier.load_ns(rank, home.block_bytes) if rank else 0.0
                worth += blocks * max(0.0, 1 - load_ns / recompute_ns)
            return worth

    def _routed(self, choice: Choice) -> None:
        if not self.telemetry.takers[Routed]:
            return
        names = tuple([row[NAME] for row in choice.seen])
        loads = tuple([row[LOAD] for row in choice.seen])
        chosen = choice.chosen
        model = choice.seen[names.index(chosen)][MODEL] if chosen in names else ""
        self.telemetry.emit(
            Routed(
                choice.at_ns,
                choice.request_id,
                choice.attempt,
                choice.strategy,
                chosen,
                names,
                loads,
                choice.pool,
                choice.reason,
                model,
            )
        )

    def _router_changed(self, change: RouterChange) -> None:
        self.telemetry.emit(RouterChanged(change.at_ns, change.subject, change.change, change.cause))

    def _fell_back(self, request: Request, before: str, after: str, error: EngineError) -> None:
        self.telemetry.emit(FellBack(self.clock.now_ns(), request.id, before, after, error.reason))

    def _loaded(self, end: Ended) -> int:
        """Its model is in memory, as of now: what one before it let in or tried is not of this one."""
        end.loaded_ns = now_ns = self.clock.now_ns()
        if end.admitted_ns is not None:
            end.admitted_ns = end.tried_ns = end.queued_ns = None
        return now_ns

    def _tried(self, end: Ended) -> int:
        """One more attempt begins, as of now: what one before it found in the cache is not of this one."""
        if end.attempts:
            for name in self._cached_tokens:
                setattr(end, name, 0)
        end.attempts += 1
        end.tried_ns = now_ns = self.clock.now_ns()
        return now_ns

    def _admitted(self, story: Story, now_ns: int) -> None:
        story.end.admitted_ns = now_ns
        if self.telemetry.takers[Admitted]:
            self.telemetry.emit(Admitted(now_ns, story.request.id, now_ns - story.request.arrival_ns))

    def _lost(self, replica: Replica, story: Story, stream: Stream) -> None:
        now_ns = self.clock.now_ns()
        self.telemetry.emit(
            AttemptLost(now_ns, story.request.id, story.end.attempts, replica.name, stream.num_tokens)
        )
        if self._watched is not None:
            self._watched.lost(replica.name, now_ns)

    def _preempted(self, request: Request, replica: Replica, lost_tokens: int) -> None:
        self.telemetry.emit(Preempted(self.clock.now_ns(), request.id, replica.name, lost_tokens))

    def _health_changed(self, change: HealthChange) -> None:
        replica = self.replicas[change.replica]
        self.router.set_available(replica.name, change.after in AVAILABLE, change.at_ns)
        self.telemetry.emit(
            HealthChanged(change.at_ns, change.replica, change.before, change.after, change.cause)
        )
        if change.after is Health.UNHEALTHY and not self.settings.health.probes:
            again_ns = self.health.retry_in_ns(replica.name, change.at_ns)
            self.clock.call_later(again_ns, partial(self._try_again, replica.name))
        if self.lifecycle.state(replica.model) is Health.HEALTHY:
            self._model_moved(replica.model, self._best_health(replica.model), change.cause)

    def _try_again(self, replica: str) -> None:
        self.health.try_again(replica, self.clock.now_ns())

    def _best_health(self, key: str) -> Health:
        """A model is as well as the best of its replicas."""
        healths = [self.health.health(replica.name) for replica in self.fleet.homes[key].replicas]
        return min(healths, key=BEST_FIRST.index)

    def _model_moved(self, key: str, state: Health, cause: str) -> None:
        before = self._states.get(key, Health.UNLOADED)
        self._states[key] = state
        if before is not state:
            if key in self.registry:  # a rescan may have found it gone
                self.registry.set_state(key, state, cause if state is Health.UNHEALTHY else None)
            self.telemetry.emit(ModelMoved(self.clock.now_ns(), key, before, state, cause))


class NoPrefix:
    """What is found where there is no cache: the same nothing for every request."""

    num_tokens = 0

    def payloads(self) -> list[Any]:
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class NoGrant:
    """What is held where there are no quotas: nothing, which is given back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def settle(self, used_tokens: int) -> None:
        pass


NO_PREFIX = NoPrefix()
NO_GRANT = NoGrant()


class Reader:
    """Turns tokens into text where there is a tokenizer, and says when to stop.

    It reads along as they come where it might stop them or somebody listens, and else when all of them are there:
    then nobody has to be woken for each.
    """

    __slots__ = ("_is_along", "_num_read", "_stop_tokens", "_stream", "_text")

    def __init__(self, request: Request, sampling: Sampling, text: "Text | None", stream: Stream) -> None:
        eos = () if text is None or sampling.ignore_eos else text.tokenizer.eos_ids
        stop_tokens = frozenset((*sampling.stop_tokens, *eos)) if sampling.stop_tokens else eos
        self._stop_tokens: Collection[int] = stop_tokens
        self._text = None if text is None else text.stream(sampling.stop, request.prompt_tokens)
        self._stream = stream
        self._num_read = 0
        self._is_along = bool(stop_tokens or sampling.stop)

    def __call__(self, token: int) -> bool:
        """Take a token; whether it is the last one."""
        self._num_read += 1
        if token in self._stop_tokens:
            return True
        if self._text is None:
            return False
        piece, is_stopped = self._text.push(token)
        self._stream.write(piece)
        return is_stopped

    def along(self) -> "Reader | None":
        """Who has to see each token as it comes: it, or nobody."""
        return self if self._is_along or self._stream.listener is not None else None

    def catch_up(self) -> None:
        """Read what has come by now."""
        if not self._is_along and self._text is not None and self._num_read < self._stream.num_tokens:
            tokens = self._stream.tokens[self._num_read :]
            self._num_read += len(tokens)
            self._stream.write(self._text.push_all(tokens))

    def finish(self) -> bool:
        """Let go of the text that was held back; whether a stop string came of it, whose last bytes are U+FFFD."""
        if self._text is None:
            return False
        self._stream.write(self._text.flush())
        return self._text.stopped_by is not None


@dataclass(slots=True, init=False)
class Job:
    """A request on its way through a model: what all of its attempts share."""

    request: Request
    home: Home
    space: Space | None  # None: there is no cache
    chain: Chain | None
    stream: Stream
    seed: int
    reader: Reader | None
    grammar: Compiled | None

    def __init__(
        self,
        request: Request,
        home: Home,
        space: Space | None,
        chain: Chain | None,
        stream: Stream,
        seed: int = 0,
        reader: Reader | None = None,
        grammar: Compiled | None = None,
    ) -> None:
        self.request = request
        self.home = home
        self.space = space
        self.chain = chain
        self.stream = stream
        self.seed = seed
        self.reader = reader
        self.grammar = grammar

    def stops(self) -> Reader | None:
        """Who has to see each token as it comes, if anybody."""
        return None if self.reader is None else self.reader.along()

    def follow(self, first: int) -> None:
        """Name the blocks of an answer from that token on, and read what nobody has read yet."""
        if self.chain is not None:
            self.chain.follow(self.stream, first)
        if self.reader is not None:
            self.reader.catch_up()


def may_be_elsewhere(error: EngineError) -> bool:
    """Whether another model may do better: not where a tenant has used up what it may use of all of them."""
    return not isinstance(error, OverQuota) or error.is_of_model


TIERS_OF = {"ram_gib": "ram", "ssd_gib": "ssd"}


def held_bytes(settings: EngineSettings) -> list[LimitSettings]:
    """What quotas say of bytes, as limits of the cache. Raises BadSettings for what the cache cannot hold to."""
    found = []
    for rule in settings.quotas.limits if settings.quotas.enabled else []:
        for name, tier in TIERS_OF.items():
            gib = getattr(rule, name)
            if gib is None:
                continue
            key, given = f"quotas.limits.{name}", tier in settings.cache.tiers
            require(key, gib, given, f"null: there is no tier {tier!r}")
            require("quotas.limits.tenant", rule.tenant, rule.tenant != "*", f"a name where {name} is given")
            models = [model.name for model in settings.fleet.models] if rule.model == "*" else [rule.model]
            found += [LimitSettings(tier=tier, gib=gib, model=model, tenant=rule.tenant) for model in models]
    return found


def make_packer(settings: EngineSettings) -> Packer:
    """What turns this executor's KV into something to store."""
    from engine.cache.packing import TorchPacker  # noqa: PLC0415  it brings torch

    device = settings.executor.options.get("device", "cpu") if settings.cache.gpu is not None else "cpu"
    return TorchPacker(str(device))


def seed_of(seed: int, request_id: int) -> int:
    """The seed of a request that brings none: another one for each, the same one in each run."""
    return int.from_bytes(blake2b(f"{seed}/{request_id}".encode(), digest_size=8).digest(), "big") >> 1
