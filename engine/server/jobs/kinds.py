"""All kinds of jobs, in a row: what each takes, what it does, and what it tells.

A kind is made anew for each try. What it leaves as its checkpoint is what is done: it goes on behind that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec

from engine.cache.tier import Tier
from engine.clock import NS_PER_S, Clock, to_ns
from engine.engine import Engine
from engine.errors import BadRequest, EngineError
from engine.execution import Replica
from engine.named import Named
from engine.server.jobs.batch_run import Office, run_batch
from engine.server.jobs.batches import ENDPOINTS
from engine.server.jobs.course import Course
from engine.server.jobs.runner import Lane, Result
from engine.server.jobs.store import JobStore
from engine.server.keys import Holder
from engine.server.settings import DEFAULT_TENANT, JobSettings

MAX_SHOWN = 100  # names in a result
MAX_SLICE_BLOCKS = 64  # that are moved without letting others go first
MAX_CHUNK_BYTES = 4 << 20  # that are read of a store in one go
MAX_CHUNK_BLOCKS = 256
MIB = 1 << 20
OK, NOT_OK = 200, 300


class JobFailed(EngineError):
    """A part of the job could not be done; another try takes up that part alone."""

    reason = "job_failed"


class Arguments(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a job is told. Most take nothing."""


@dataclass(slots=True, kw_only=True)
class Tools:
    """What jobs work with."""

    engine: Engine
    clock: Clock
    settings: JobSettings
    office: Office
    store: JobStore

    def unix_ns(self) -> int:
        return self.clock.epoch_ns + self.clock.now_ns()


class Kind(Protocol):
    """A job. `by_hand`: operators and schedules may ask for it; the others have ways of their own."""

    takes: ClassVar[type[Arguments]]
    lane: ClassVar[Lane]
    by_hand: ClassVar[bool]

    async def run(self, course: Course) -> Result:
        """Do it, from the course's checkpoint on. Raises what has gone wrong; BadRequest where no other try helps."""


kinds: Named[Kind] = Named("kind of job")


def checked(kind: str, arguments: Mapping[str, Any]) -> Any:
    """The arguments of a kind, as its class takes them. Raises UnknownName, BadRequest."""
    cls = kinds.find(kind)
    try:
        return msgspec.convert(dict(arguments), cls.takes)
    except msgspec.ValidationError as error:
        allowed = ", ".join(cls.takes.__struct_fields__) or "none"
        raise BadRequest(f"the arguments of {kind} are no good: {error}; it takes {allowed}") from error


@kinds("rescan")
class Rescan:
    """Looks at the models folder again: what is new is known from then on, what is gone serves whom it holds."""

    takes = Arguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: Arguments) -> None:
        self._engine = tools.engine

    async def run(self, course: Course) -> Result:
        changes = await self._engine.rescan()
        found: Result = {}
        for name in ("added", "changed", "removed"):
            several = getattr(changes, name)
            found[name] = len(several)
            found[f"{name}_files"] = [each.shown for each in several[:MAX_SHOWN]]
        return found


class SweepArguments(Arguments, kw_only=True):
    """`timeout_s`: how long a replica has for one token; null: as the settings of health have it."""

    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"timeout_s is {self.timeout_s}, but must be above 0")


@kinds("health_sweep")
class HealthSweep:
    """Asks every replica that has nothing to do for one token. Those at work are seen by their work."""

    takes = SweepArguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: SweepArguments) -> None:
        self._engine = engine = tools.engine
        seconds = arguments.timeout_s
        self._timeout_ns = to_ns(engine.settings.health.probe_timeout_s if seconds is None else seconds)

    async def run(self, course: Course) -> Result:
        engine, seen = self._engine, dict(course.checkpoint or {})
        names = sorted(engine.replicas)
        for name in names:
            replica = engine.replicas.get(name)
            if name in seen or replica is None:  # it was unloaded meanwhile
                continue
            seen[name] = await self._look(replica)
            await course.save(len(seen), len(names), checkpoint=seen)
        return {"replicas": seen, "failed": sorted(name for name, how in seen.items() if how == "failed")}

    async def _look(self, replica: Replica) -> str:
        engine = self._engine
        if replica.num_in_hand:
            return "busy"
        answered = await replica.probe(self._timeout_ns)
        if engine.replicas.get(replica.name) is replica and engine.health.knows(replica.name):
            engine.health.probed(replica.name, answered, engine.clock.now_ns())
        return "answered" if answered else "failed"


class RebalanceArguments(Arguments, kw_only=True):
    """`free`: the share of each tier that is to be free afterwards; `most_blocks`: moved of one tier at the most."""

    free: float = 0.05
    most_blocks: int = 16_384

    def __post_init__(self) -> None:
        if not 0 <= self.free < 1:
            raise ValueError(f"free is {self.free}, but must be from 0 to below 1")
        if self.most_blocks < 1:
            raise ValueError(f"most_blocks is {self.most_blocks}, but must be at least 1")


@kinds("cache_rebalance")
class CacheRebalance:
    """Says anew what each model is sure of, and demotes what is borrowed before its lender asks for it."""

    takes = RebalanceArguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: RebalanceArguments) -> None:
        self._cache = tools.engine.cache
        self._clock = tools.clock
        self._arguments = arguments

    async def run(self, course: Course) -> Result:
        cache = self._cache
        cache.balance(self._clock.now_ns())
        demoted = {}
        for done, tier in enumerate(cache.tiers[:-1], 1):  # nothing is below the last one
            demoted[tier.name] = await self._relieve(tier)
            await course.save(done, len(cache.tiers) - 1)
        free = {tier.name: tier.capacity_bytes - tier.used_bytes for tier in cache.tiers}
        return {"demoted_blocks": demoted, "free_bytes": free}

    async def _relieve(self, tier: Tier) -> int:
        """Some blocks at a time, with others going first in between."""
        wanted, most = int(self._arguments.free * tier.capacity_bytes), self._arguments.most_blocks
        total = 0
        while total < most:
            at_once = min(MAX_SLICE_BLOCKS, most - total)
            moved = self._cache.demote_ahead(tier, wanted, at_once)
            total += moved
            if moved < at_once:
                break
            await self._clock.sleep(0)
        return total


class ScrubArguments(Arguments, kw_only=True):
    """`bytes_per_s`: how fast it reads; null: as the settings have it. `tiers` null: all that have a store."""

    bytes_per_s: float | None = None
    tiers: list[str] | None = None

    def __post_init__(self) -> None:
        if self.bytes_per_s is not None and not 0 < self.bytes_per_s < float("inf"):
            raise ValueError(f"bytes_per_s is {self.bytes_per_s}, but must be above 0")


@kinds("cache_scrub")
class CacheScrub:
    """Reads what the cache's tiers have stored, at a modest pace, and drops what is not what was written.

    A place in a store outlives the process, so it goes on behind the last one that it has read.
    """

    takes = ScrubArguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: ScrubArguments) -> None:
        carrier = tools.engine.carrier
        known = [tier.name for tier in carrier.stored_tiers()]
        for name in arguments.tiers or ():
            if name not in known:
                raise BadRequest(
                    f"tier {name!r} has no store; those that have one: {', '.join(known) or 'none'}"
                )
        wanted = known if arguments.tiers is None else arguments.tiers
        self._carrier = carrier
        self._tiers = [tier for tier in carrier.stored_tiers() if tier.name in wanted]
        self._clock = tools.clock
        self._bytes_per_s = arguments.bytes_per_s or float(tools.settings.scrub_bytes_per_s)

    async def run(self, course: Course) -> Result:
        seen: dict[str, dict[str, int]] = dict(course.checkpoint or {})
        for tier in self._tiers:
            counts = seen.setdefault(tier.name, {"place": -1, "blocks": 0, "bytes": 0, "damaged": 0})
            await self._read(tier, counts, seen, course)
        return {name: {what: counts[what] for what in COUNTED} for name, counts in seen.items()}

    async def _read(
        self, tier: Tier, counts: dict[str, int], seen: dict[str, dict[str, int]], course: Course
    ) -> None:
        stored = [each for each in await self._carrier.stored(tier) if each[0] > counts["place"]]
        for chunk in chunks(tier, stored):
            found = await self._carrier.verify(tier, chunk)
            counts["place"] = chunk[-1][0]
            counts["blocks"] += found.blocks
            counts["bytes"] += found.num_bytes
            counts["damaged"] += found.damaged
            done = sum(each["blocks"] for each in seen.values())
            await course.save(done, note=tier.name, checkpoint=seen)
            await course.pause(to_ns(found.num_bytes / self._bytes_per_s))


COUNTED = ("blocks", "bytes", "damaged")


def chunks(tier: Tier, stored: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Neighbours, as many as are read in one go."""
    mean_bytes = max(1, tier.used_bytes // max(1, tier.num_blocks + len(tier.copies)))
    size = max(1, min(MAX_CHUNK_BLOCKS, MAX_CHUNK_BYTES // mean_bytes))
    for begin in range(0, len(stored), size):
        yield stored[begin : begin + size]


class WarmPrompt(Arguments, kw_only=True):
    """A prompt whose KV is computed ahead: of a chat, or as a text."""

    model: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if (self.messages is None) is (self.prompt is None):
            raise ValueError("a prompt has either messages or prompt")

    def asked(self) -> tuple[str, bytes]:
        """Path and body of the request that computes it, and one token beyond."""
        chat, text = ENDPOINTS
        if self.messages is not None:
            body = {"model": self.model, "messages": self.messages, "max_completion_tokens": 1}
            return chat, msgspec.json.encode(body)
        return text, msgspec.json.encode({"model": self.model, "prompt": self.prompt, "max_tokens": 1})


class WarmUpArguments(Arguments, kw_only=True):
    """Models to load, and prompts that are computed in the name of `tenant`, whose cache they come into."""

    models: list[str] = []
    prompts: list[WarmPrompt] = []
    tenant: str = DEFAULT_TENANT


@kinds("warm_up")
class WarmUp:
    """Loads models, and lets prompts be computed, before somebody asks for them."""

    takes = WarmUpArguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: WarmUpArguments) -> None:
        self._engine = tools.engine
        self._ask = tools.office.ask
        self._arguments = arguments
        self._holder = Holder(id="warm-up", tenant=arguments.tenant)

    async def run(self, course: Course) -> Result:
        arguments, done = self._arguments, list(course.checkpoint or [])
        total = len(arguments.models) + len(arguments.prompts)
        failed: dict[str, str] = {}
        for name in arguments.models:
            if name not in done:
                try:
                    await self._engine.lifecycle.load(self._engine.registry.find(name).key)
                except EngineError as error:
                    failed[name] = str(error)
                    continue
                done.append(name)
                await course.save(len(done), total, checkpoint=done, note=name)
        for number, prompt in enumerate(arguments.prompts):
            what = f"prompt {number}"
            if what not in done:
                status, _, body = await self._ask(*prompt.asked(), self._holder)
                if not OK <= status < NOT_OK:
                    failed[what] = f"{status} {body[:200].decode('utf-8', 'replace')}"
                    continue
                done.append(what)
                await course.save(len(done), total, checkpoint=done, note=prompt.model)
        if failed:
            name, why = next(iter(failed.items()))
            raise JobFailed(f"{len(failed)} of {total} could not be warmed up; {name}: {why}")
        return {"done": done}


class ResetArguments(Arguments, kw_only=True):
    """Whose limits: a model's, a tenant's, both together, or everybody's where neither is named."""

    model: str | None = None
    tenant: str | None = None


@kinds("quota_reset")
class QuotaReset:
    """Lets what was used of limits count no more."""

    takes = ResetArguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: ResetArguments) -> None:
        self._engine = tools.engine
        self._arguments = arguments

    async def run(self, course: Course) -> Result:
        model = self._arguments.model
        key = None if model is None else self._engine.registry.find(model).key
        return {"books": self._engine.quotas.reset(model=key, tenant=self._arguments.tenant)}


@kinds("quota_save")
class QuotaSave:
    """Puts what is spent into the quotas' file, exactly."""

    takes = Arguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: Arguments) -> None:
        self._engine = tools.engine

    async def run(self, course: Course) -> Result:
        self._engine.quotas.save()
        return {"file": self._engine.settings.quotas.state_file}


@kinds("registry_flush")
class RegistryFlush:
    """Puts the use counts of all models into the registry's file."""

    takes = Arguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: Arguments) -> None:
        self._engine = tools.engine

    async def run(self, course: Course) -> Result:
        self._engine.flush()
        return {"file": self._engine.settings.models.registry_file}


@kinds("tidy")
class Tidy:
    """Forgets what was over long ago: jobs, batches, and files that have expired."""

    takes = Arguments
    lane = Lane()
    by_hand = True

    def __init__(self, tools: Tools, arguments: Arguments) -> None:
        self._tools = tools

    async def run(self, course: Course) -> Result:
        tools = self._tools
        now_ns = tools.unix_ns()
        before_ns = now_ns - to_ns(tools.settings.keep_s)
        found = {"files": 0, "batches": 0, "jobs": 0}
        works = {
            "files": lambda: tools.office.files.expire(now_ns // NS_PER_S),
            "batches": lambda: tools.office.batches.prune(before_ns // NS_PER_S),
            "jobs": lambda: tools.store.prune(before_ns),
        }
        for name, work in works.items():
            while number := (await tools.clock.compute(work))[0]:
                found[name] += number
                course.check()
        return dict(found)


class BatchArguments(Arguments, kw_only=True):
    """Which one."""

    batch: str


@kinds("batch")
class RunBatch:
    """Runs an offline batch while the fleet has time. Made by /v1/batches, and by nobody else."""

    takes = BatchArguments
    lane = Lane(is_aside=True)
    by_hand = False

    def __init__(self, tools: Tools, arguments: BatchArguments) -> None:
        self._office = tools.office
        self._batch = arguments.batch

    async def run(self, course: Course) -> Result:
        batch = await run_batch(self._office, self._batch, course)
        return {
            "batch": batch.id,
            "status": batch.status,
            "completed": batch.completed,
            "failed": batch.failed,
        }
