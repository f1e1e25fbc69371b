"""What is counted and timed: operations that every request passes, each in a small and busy system of its own.

Everything that an operation works on is made here, by hand: a baseline must not move because a default did.
What is imported is imported where it is used: under valgrind an import costs fifty times what it does elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from typing import Any

MODEL = "llama"
KEY = "llama@1.0.0"
REPLICAS = 5
HELD_PER_REPLICA = 4
ASKING = 64
PROMPT_BLOCKS = 32
BLOCK_TOKENS = 16
BLOCK_BYTES = 1_024
FAR = 10**15

Operation = Callable[[], object]
Work = Callable[[int], object]
"""Does something so many times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An operation by name: how it is set up, and how much of it each class looks at."""

    name: str
    make: Callable[[], Operation] | None = None
    """What does it once; None where only many at a time can be made."""
    make_work: Callable[[], Work] | None = None
    counted_calls: int
    """N of (Ir(2N) - Ir(N)) / N: some millions of instructions, so that what happens once is lost in them."""
    warm_calls: int = 60
    """Before anything is measured: Python specialises what it has run often."""

    def work(self) -> Work:
        """Set up, and ready to be done n times."""
        if self.make_work is not None:
            return self.make_work()
        assert self.make is not None, "an operation can be made"
        operation = self.make()

        def repeated(times: int) -> None:
            for _ in range(times):
                operation()

        return repeated


def route(strategy: str) -> Callable[[], Operation]:
    """A decision among five busy replicas, and its release."""

    def make() -> Operation:
        from engine.routing import Router  # noqa: PLC0415
        from engine.settings import RoutingSettings  # noqa: PLC0415

        router, requests = Router(RoutingSettings(strategy=strategy)), asking(strategy)
        for number in range(REPLICAS):
            seat = router.add(f"r{number}", MODEL)
            seat.prefill_ns = 1_000.0
            router.observe(seat, 1_000 + number, 10.0, 0)
        for number in range(HELD_PER_REPLICA * REPLICAS):
            router.route(MODEL, requests[number], 100 + 37 * number, 0)
        choose, release, turns = router.route, router.release, count()

        def decide() -> object:
            number = next(turns)
            request = requests[number % ASKING]
            seat = choose(MODEL, request, 128, number)
            release(MODEL, seat, request, 128, number)
            return seat

        return decide

    return make


def asking(strategy: str) -> list[Any]:
    """Requests that come by turns, with the names of their blocks where the strategy looks at those."""
    import numpy as np  # noqa: PLC0415

    from engine.request import Request  # noqa: PLC0415

    prompt = np.zeros(PROMPT_BLOCKS * BLOCK_TOKENS, dtype=np.int32)
    keys = chain(0) if strategy == "cache_aware" else ()
    return [Request(number, MODEL, prompt, 64, 0, prefix_keys=keys) for number in range(ASKING)]


def chain(number: int, blocks: int = PROMPT_BLOCKS) -> list[bytes]:
    """Names of the blocks of one prompt: digests, as a cache has them, of which a sample takes its share."""
    seeds = ((number << 32 | index).to_bytes(16, "little") for index in range(blocks))
    return [blake2b(seed, digest_size=16).digest() for seed in seeds]


def quota_check() -> Operation:
    """A check of eight limits, and the place given back at once."""
    from engine.quotas import Quotas  # noqa: PLC0415
    from engine.settings import AllowanceSettings, QuotaSettings  # noqa: PLC0415
    from sim.world import SimClock  # noqa: PLC0415

    rule: dict[str, Any] = {
        "hourly_tokens": FAR,
        "daily_tokens": FAR,
        "requests_per_s": 1e6,
        "burst_requests": 1_000,
        "concurrent_requests": 50,
    }
    limits = [AllowanceSettings(model=MODEL, **rule), AllowanceSettings(tenant="*", **rule)]
    ledger = Quotas(QuotaSettings(limits=limits), SimClock()).ledger(KEY, "t")
    reserve, release, times = ledger.reserve, ledger.release, count(0, 60_000_000)

    def check() -> object:
        is_in = reserve(10, next(times))
        if is_in:
            release()
        return is_in

    return check


def cache_of(*chains: list[bytes]) -> tuple[Any, Any]:
    """A cache in memory that holds some prompts, and the space of their model."""
    from engine.cache import PrefixCache  # noqa: PLC0415
    from engine.settings import GIB, CacheSettings, TierSettings  # noqa: PLC0415

    room = TierSettings(gib=4_096 * BLOCK_BYTES / GIB)
    cache = PrefixCache(CacheSettings(ram=room))
    space = cache.space(KEY, "w", "", BLOCK_BYTES)
    for keys in chains:
        cache.keep(space, keys)
    return cache, space


def cache_lookup_hit() -> Operation:
    """How much of a prompt of 32 blocks is there: all of it."""
    keys = chain(0)
    cache, _ = cache_of(*map(chain, range(ASKING)))
    return lambda: cache.match(keys)


def cache_lookup_miss() -> Operation:
    """The same of a prompt whose first block is not there."""
    keys = chain(ASKING)
    cache, _ = cache_of(*map(chain, range(ASKING)))
    return lambda: cache.match(keys)


def cache_find() -> Operation:
    """A prefix found, counted and pinned; what holds it is the result."""
    keys = chain(0)
    cache, space = cache_of(*map(chain, range(ASKING)))
    num_tokens = PROMPT_BLOCKS * BLOCK_TOKENS + 1

    def find() -> object:
        with cache.find(space, keys, num_tokens) as prefix:
            return prefix

    return find


def registry_of(models: int) -> Any:
    """So many models of two versions, each with an alias."""
    from engine.registry import Model, Registry  # noqa: PLC0415

    registry = Registry()
    for number in range(models // 2):
        for version in ("1.0.0", "1.1.0"):
            registry.add(Model(name=f"model-{number}", version=version, family="llama", tags=("chat",)))
        registry.alias(f"alias-{number}", f"model-{number}")
    return registry


def registry_lookup() -> Operation:
    """A model found by its alias, among a hundred."""
    find = registry_of(100).find
    return lambda: find("alias-7")


def registry_json() -> Operation:
    """The answer of `/v1/models` for a hundred models."""
    return registry_of(100).as_json  # type: ignore[no-any-return]


def simulation_loop() -> Work:
    """A run of so many requests through the whole engine: three replicas, prefixes, quotas, one tier."""
    from sim.gate.fleet import prompts, three_replicas  # noqa: PLC0415
    from sim.stage import Stage  # noqa: PLC0415

    settings = three_replicas()

    def play(requests: int) -> None:
        stage = Stage(settings, prompts(requests))
        stage.play()
        stage.close()

    return play


OPERATIONS = {
    kind.name: kind
    for kind in (
        Kind(name="route_round_robin", make=route("round_robin"), counted_calls=500),
        Kind(name="route_least_loaded", make=route("least_loaded"), counted_calls=500),
        Kind(name="route_cache_aware", make=route("cache_aware"), counted_calls=300),
        Kind(name="quota_check", make=quota_check, counted_calls=400),
        Kind(name="cache_lookup_hit", make=cache_lookup_hit, counted_calls=500),
        Kind(name="cache_lookup_miss", make=cache_lookup_miss, counted_calls=2_000),
        Kind(name="cache_find", make=cache_find, counted_calls=50),
        Kind(name="registry_lookup", make=registry_lookup, counted_calls=2_000),
        Kind(name="registry_json", make=registry_json, counted_calls=4, warm_calls=4),
        Kind(name="simulation_request", make_work=simulation_loop, counted_calls=20, warm_calls=0),
    )
}
"""By name. The last one is measured in requests."""
