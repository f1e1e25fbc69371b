"""The operators' port: what is there, and what may be changed while it serves. Each change is an audited fact."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from engine.cache.report import tables
from engine.clock import NS_PER_S
from engine.engine import Engine
from engine.errors import BadRequest, BadSettings, EngineError, NotFound
from engine.request import Request
from engine.server.answers import encode
from engine.server.audit import AuditLog
from engine.server.bodies import must, parsed, refused, shown
from engine.server.prompts import Prompt
from engine.server.public import OF_TENANT
from engine.server.settings import ServerSettings
from engine.server.typed import typed
from engine.settings import AllowanceSettings, ModeSettings, QuotaSettings

B = TypeVar("B")

LOOPBACK = "operator@loopback"
"""Who it was, where operators have no keys."""

MAX_EXPLAINED = 1 << 20


class Strategy(msgspec.Struct, forbid_unknown_fields=True):
    """Which strategy is to choose."""

    strategy: str
    options: dict[str, Any] = {}


class Weights(msgspec.Struct, forbid_unknown_fields=True):
    """Shares of the arms of an experiment, by name."""

    weights: dict[str, float]


class Mode(msgspec.Struct, forbid_unknown_fields=True):
    """A degradation mode for a model, a tenant, both, or everybody; null takes an operator's word back."""

    mode: str | None
    model: str | None = None
    tenant: str | None = None


class Pinned(msgspec.Struct, forbid_unknown_fields=True):
    """Whether a model has to stay in memory."""

    pinned: bool = True


class Explained(msgspec.Struct, forbid_unknown_fields=True):
    """A request that nobody serves: who would, and why."""

    model: str
    prompt_tokens: int = 16
    max_tokens: int = 16
    tenant: str = "default"
    session: str | None = None


class Admin:
    """What operators may look at and change."""

    def __init__(
        self, engine: Engine, settings: ServerSettings, audit: AuditLog | None, version: str
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._audit = audit
        self._version = version
        self._begun_ns = engine.clock.now_ns()
        self.sources: dict[str, Callable[[], Any]] = {}  # more that stands in the status, by name
        self._leaving: set[asyncio.Task[None]] = set()

    def routes(self) -> list[BaseRoute]:
        """All of them, under /admin."""
        return [
            Route("/admin/status", self._shown(self.status)),
            Route("/admin/models", self._shown(self.models)),
            Route("/admin/models/{name:path}/load", self._done(self.load), methods=["POST"]),
            Route("/admin/models/{name:path}/unload", self._done(self.unload), methods=["POST"]),
            Route("/admin/models/{name:path}/drain", self._done(self.drain), methods=["POST"]),
            Route("/admin/models/{name:path}/pin", self._done(self.pin), methods=["PUT", "POST"]),
            Route("/admin/rescan", self._done(self.rescan), methods=["POST"]),
            Route("/admin/replicas/{name:path}/drain", self._done(self.drain_replica), methods=["POST"]),
            Route("/admin/replicas/{name:path}/resume", self._done(self.resume_replica), methods=["POST"]),
            Route("/admin/routing", self._shown(self.routing)),
            Route("/admin/routing/strategy", self._done(self.set_strategy), methods=["PUT"]),
            Route("/admin/explain", self._done(self.explain), methods=["POST"]),
            Route("/admin/experiments", self._shown(self._engine.experiments.report)),
            Route("/admin/experiments/{name:path}/weights", self._done(self.set_weights), methods=["PUT"]),
            Route("/admin/quotas", self._shown(self.quotas), methods=["GET"]),
            Route("/admin/quotas", self._done(self.set_quotas), methods=["PUT"]),
            Route("/admin/mode", self._done(self.set_mode), methods=["PUT"]),
            Route("/admin/cache", self._shown(self.cache)),
        ]

    # what is there

    def status(self) -> dict[str, Any]:
        """The whole of it on one page: for people, and for `status` and `top`."""
        engine, quotas = self._engine, self.quotas()
        found = {
            "version": self._version,
            "uptime_s": (engine.clock.now_ns() - self._begun_ns) / NS_PER_S,
            "strategy": engine.router.strategy_name,
            "requests_in_service": engine.quotas.in_service,
            "requests_waiting": engine.quotas.num_waiting,
            "models": self.models()["models"],
            "replicas": self.replicas(),
            "tiers": self.tiers(),
            "quotas": quotas["used"],
            "modes": quotas["modes"],
            "experiments": {
                each.settings.name: {
                    arm.label: weight for arm, weight in zip(each.arms, each.weights, strict=True)
                }
                for each in engine.experiments.all()
            },
        }
        return found | {name: source() for name, source in self.sources.items()}

    def models(self) -> dict[str, Any]:
        """All models, and what they have in memory."""
        engine = self._engine
        return {
            "models": [
                {
                    "id": model.key,
                    "state": str(engine.lifecycle.state(model.key)),
                    "reason": model.public_reason,
                    "pinned": model.is_pinned,
                    "use_count": model.use_count,
                    "size_bytes": model.size_bytes,
                    "replicas": []
                    if (home := engine.fleet.homes.get(model.key)) is None
                    else [replica.name for replica in home.replicas],
                }
                for model in engine.registry.all()
            ],
            "weights_bytes": engine.lifecycle.used_bytes,
            "weights_budget_bytes": engine.lifecycle.budget_bytes,
        }

    def replicas(self) -> list[dict[str, Any]]:
        """Those in memory: how well they are and what they have in hand."""
        engine, found = self._engine, []
        for replica in engine.replicas.values():
            if not engine.health.knows(replica.name):
                continue  # it is being warmed
            seat = engine.router.seat(replica.name)
            found.append(
                {
                    "name": replica.name,
                    "model": replica.model,
                    "health": str(engine.health.health(replica.name)),
                    "is_open": seat.is_open,
                    "is_drained": seat.is_drained,
                    "running": replica.num_running,
                    "waiting": replica.num_waiting,
                    "tokens_in_flight": seat.tokens_in_flight,
                    "routed": seat.num_routed,
                    "steps": replica.num_steps,
                    "busy_s": replica.busy_ns / NS_PER_S,
                    "ttft_s": seat.latency_ns / NS_PER_S if seat.num_observed else None,
                }
            )
        return found

    def tiers(self) -> dict[str, Any]:
        """How full the cache is."""
        cache = self._engine.cache
        return {
            tier.name: {
                "used_bytes": tier.used_bytes,
                "capacity_bytes": tier.capacity_bytes,
                "blocks": tier.num_blocks,
            }
            for tier in cache.tiers
        }

    def routing(self) -> dict[str, Any]:
        """Strategy, its options, and each replica's place."""
        router = self._engine.router
        return {
            "strategy": router.strategy_name,
            "options": router.settings.options,
            "groups": router.settings.groups,
            "fallbacks": router.settings.fallbacks,
            "sessions": len(router.sessions),
            "replicas": self.replicas(),
        }

    def quotas(self) -> dict[str, Any]:
        """Rules and what is used of them."""
        quotas = self._engine.quotas
        used: list[dict[str, Any]] = []
        modes: list[dict[str, Any]] = []
        for figure in quotas.figures():
            rows = [
                {**dict(zip(figure.labels, names, strict=True)), "value": value}
                for names, value in figure.values.items()
            ]
            if figure.name == "modelyard:quota_used_ratio":
                used = rows
            elif figure.name == "modelyard:quota_degradation_mode":
                modes = rows
        return {"settings": asdict(quotas.settings), "used": used, "modes": modes}

    def cache(self) -> dict[str, Any]:
        """All figures of the cache. O(blocks)."""
        return tables(self._engine.cache, self._engine.carrier)

    # what may be changed

    async def load(self, request: HttpRequest) -> Any:
        """Bring a model into memory; answered when it is there."""
        key = self._engine.registry.find(request.path_params["name"]).key
        before = self._state(key)
        await self._engine.lifecycle.load(key)
        return self._note(request, "model.load", key, before, self._state(key))

    async def unload(self, request: HttpRequest) -> Any:
        """Drain a model; answered when it has left."""
        key = self._engine.registry.find(request.path_params["name"]).key
        before = self._state(key)
        await self._engine.lifecycle.unload(key)
        return self._note(request, "model.unload", key, before, self._state(key))

    async def drain(self, request: HttpRequest) -> Any:
        """Let a model take no more requests; it leaves when those that it has have ended. Answered at once."""
        key = self._engine.registry.find(request.path_params["name"]).key
        before = self._state(key)
        task = asyncio.get_running_loop().create_task(self._engine.lifecycle.unload(key))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        await asyncio.sleep(0)  # it begins, and says so
        return self._note(request, "model.drain", key, before, self._state(key))

    async def pin(self, request: HttpRequest) -> Any:
        """Keep a model in memory, or do so no more."""
        sent = await _body(request)
        wanted = self._parsed(sent, Pinned) if sent else Pinned()
        model = self._engine.registry.find(request.path_params["name"])
        before = {"pinned": model.is_pinned}
        self._engine.pin(model.key, pinned=wanted.pinned)
        return self._note(request, "model.pin", model.key, before, {"pinned": wanted.pinned})

    async def rescan(self, request: HttpRequest) -> Any:
        """Look at the models folder again."""
        try:
            changes = await self._engine.rescan()
        except BadSettings as error:
            raise BadRequest(str(error)) from error
        found = {
            "added": [each.shown for each in changes.added],
            "changed": [each.shown for each in changes.changed],
            "removed": [each.shown for each in changes.removed],
        }
        return self._note(request, "models.rescan", "models", None, found)

    async def drain_replica(self, request: HttpRequest) -> Any:
        return self._drained(request, drained=True)

    async def resume_replica(self, request: HttpRequest) -> Any:
        return self._drained(request, drained=False)

    def _drained(self, request: HttpRequest, *, drained: bool) -> Any:
        engine, name = self._engine, request.path_params["name"]
        seats = {seat.name: seat for seat in engine.router.seats()}  # not of replicas that are being warmed
        before = {"drained": name in seats and seats[name].is_drained}
        engine.router.drain(name, engine.clock.now_ns(), drained=drained)
        action = "replica.drain" if drained else "replica.resume"
        return self._note(request, action, name, before, {"drained": drained})

    async def set_strategy(self, request: HttpRequest) -> Any:
        """Let another strategy choose from now on."""
        wanted = await self._sent(request, Strategy)
        router = self._engine.router
        before = {"strategy": router.strategy_name, "options": router.settings.options}
        try:
            router.set_strategy(wanted.strategy, wanted.options, self._engine.clock.now_ns())
        except BadSettings as error:
            raise refused("strategy", str(error)) from error
        after = {"strategy": wanted.strategy, "options": wanted.options}
        return self._note(request, "routing.strategy", "router", before, after)

    async def set_weights(self, request: HttpRequest) -> Any:
        """Other shares of an experiment's arms."""
        wanted = (await self._sent(request, Weights)).weights
        name = request.path_params["name"]
        for experiment in self._engine.experiments.all():
            if experiment.settings.name != name:
                continue
            arms = [arm.name for arm in experiment.settings.arms]
            good = sorted(wanted) == sorted(arms) and all(weight >= 0 for weight in wanted.values())
            if not good or abs(sum(wanted.values()) - 1) > TOLERANCE:
                raise refused(
                    "weights",
                    f"weights are {shown(wanted)}, but must be shares of {', '.join(arms)} that sum to 1",
                )
            before = dict(zip(arms, experiment.weights, strict=True))
            experiment.set_weights([wanted[arm] for arm in arms])
            return self._note(request, "experiment.weights", name, before, wanted)
        known = ", ".join(each.settings.name for each in self._engine.experiments.all()) or "none"
        raise NotFound(f"no experiment is called {name!r}; there are {known}")

    async def set_quotas(self, request: HttpRequest) -> Any:
        """Other limits: those fields of the settings that are sent. What is spent stays spent."""
        quotas = self._engine.quotas
        sent = self._parsed(await _body(request), dict[str, Any])
        changed = changed_quotas(quotas.settings, sent)
        before = {name: getattr(quotas.settings, name) for name in sent}
        quotas.update(changed)
        return self._note(request, "quotas.update", "quotas", _plain(before), sent)

    async def set_mode(self, request: HttpRequest) -> Any:
        """An operator's word on how far the service degrades."""
        wanted = await self._sent(request, Mode)
        engine = self._engine
        if not engine.quotas.settings.enabled:
            raise BadRequest(
                "quotas.enabled is false, so no mode has an effect; it must be true from the start"
            )
        model = None if wanted.model is None else engine.registry.find(wanted.model).key
        before = None if model is None else engine.quotas.mode(model, wanted.tenant or "default")
        who = self._who(request)
        engine.quotas.set_mode(wanted.mode, model=model, tenant=wanted.tenant, by=f"operator {who}")
        subject = f"{model or 'all models'}, {wanted.tenant or 'all tenants'}"
        return self._note(request, "mode.set", subject, before, wanted.mode)

    async def explain(self, request: HttpRequest) -> Any:
        """Who would serve such a request now, and why. Nothing changes."""
        wanted = await self._sent(request, Explained)
        if not 1 <= wanted.prompt_tokens <= MAX_EXPLAINED:
            raise refused(
                "prompt_tokens",
                f"prompt_tokens is {wanted.prompt_tokens}, but must be from 1 to {MAX_EXPLAINED}",
            )
        must("max_tokens", wanted.max_tokens, wanted.max_tokens >= 1, "1 or more")
        prompt = Prompt(lambda _: [], 4 * wanted.prompt_tokens, is_open=False).estimate()
        asked = Request(
            -1,
            wanted.model,
            prompt,
            wanted.max_tokens,
            self._engine.clock.now_ns(),
            wanted.tenant,
            self._session(wanted),
        )
        choice = self._engine.explain(asked)
        return {
            "pool": choice.pool,
            "strategy": choice.strategy,
            "chosen": choice.chosen,
            "reason": choice.reason,
            "quota": choice.verdict,
            "candidates": [asdict(each) for each in choice.candidates],
            "guards": list(choice.guards),
        }

    # how

    def _session(self, wanted: Explained) -> str | None:
        """The session as the router knows it: where tenants have keys, each has its own of every name."""
        if wanted.session is None or self._settings.keys_file is None:
            return wanted.session
        return f"{wanted.tenant}{OF_TENANT}{wanted.session}"

    def _state(self, key: str) -> dict[str, str]:
        return {"state": str(self._engine.lifecycle.state(key))}

    async def _sent(self, request: HttpRequest, kind: type[B]) -> B:
        return self._parsed(await _body(request), kind)

    def _parsed(self, raw: bytes, kind: type[B]) -> B:
        return parsed(raw, msgspec.json.Decoder(kind), self._settings.limits)

    def _who(self, request: HttpRequest) -> str:
        return str(request.state.holder.id) or LOOPBACK

    def _note(
        self, request: HttpRequest, action: str, subject: str, before: Any, after: Any
    ) -> dict[str, Any]:
        """Put the change down, and tell it to who made it."""
        self._write(request, action, subject, before, after, "done")
        return {"action": action, "subject": subject, "before": before, "after": after}

    def _write(
        self, request: HttpRequest, action: str, subject: str, before: Any, after: Any, outcome: str
    ) -> None:
        if self._audit is not None:
            client = request.state.client
            self._audit.write(
                self._who(request),
                action,
                subject,
                before=before,
                after=after,
                outcome=outcome,
                request_id=client.request_id,
                remote=client.address,
            )

    def _shown(self, look: Callable[[], Any]) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def show(_: HttpRequest) -> Response:
            return answered(look())

        return show

    def _done(
        self, change: Callable[[HttpRequest], Awaitable[Any]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def do(request: HttpRequest) -> Response:
            try:
                return answered(await change(request))
            except EngineError as error:
                self._write(request, request.url.path, "", None, None, error.reason)
                raise

        return do


TOLERANCE = 1e-9


def answered(told: Any) -> Response:
    """As JSON."""
    return Response(encode(told), media_type="application/json")


async def _body(request: HttpRequest) -> bytes:
    """Within the bounds that all bodies have. Raises TooLarge, TooSlow, NotJson."""
    raw: bytes = await request.state.client.body()
    return raw


def changed_quotas(before: QuotaSettings, sent: dict[str, Any]) -> QuotaSettings:
    """The settings with some fields replaced. Raises BadRequest for one that there is not, or that cannot be.

    `enabled`, `state_file` and what limits say of the cache stay as they are: they decide what is made at the start.
    """
    for name in sent:
        if name not in CHANGEABLE:
            raise refused(
                name,
                f"{name} cannot be changed while the server runs; what can be is {', '.join(CHANGEABLE)}",
            )
    try:
        changes = {name: typed(CHANGEABLE[name], value, f"quotas.{name}") for name, value in sent.items()}
        after = replace(before, **changes)
    except BadSettings as error:
        raise BadRequest(f"the quotas are no good: {error}") from error
    if _of_cache(before) != _of_cache(after):
        raise refused(
            "limits",
            "ram_gib and ssd_gib of limits cannot be changed while the server runs: the cache is made with them",
        )
    return after


def _of_cache(settings: QuotaSettings) -> dict[tuple[str | None, str | None], tuple[float | None, ...]]:
    """What rules say of the cache, by whom they are for."""
    sizes = {(rule.model, rule.tenant): (rule.ram_gib, rule.ssd_gib) for rule in settings.limits}
    return {whose: size for whose, size in sizes.items() if any(size)}


CHANGEABLE: dict[str, Any] = {
    "max_concurrent_requests": int,
    "queue_capacity": int,
    "max_wait_s": float,
    "aging_s": float,
    "limits": list[AllowanceSettings],
    "tenant_weights": dict[str, float],
    "soft_limits": list[float],
    "hysteresis": float,
    "modes": dict[str, ModeSettings],
    "quiet_s": float,
    "cached_token_cost": float,
}


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
