"""Everything that can be set, as plain dataclasses: made once at the door, read everywhere, changed nowhere.

Each class checks itself in `__post_init__` and raises BadSettings naming the key, the value and what is
allowed. Units are in the names; seconds and GiB here become nanoseconds and bytes inside.
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from engine.errors import BadSettings


def require(key: str, value: object, holds: bool, allowed: str) -> None:
    """Raise BadSettings for `key` unless its value `holds`; one sentence with all that is needed to mend it."""
    if not holds:
        raise BadSettings(f"{key} is {value!r}, but must be {allowed}")


def at_least(key: str, value: float, least: float) -> None:
    require(key, value, isfinite(value) and value >= least, f"at least {least:g}")


def above(key: str, value: float, bound: float) -> None:
    require(key, value, isfinite(value) and value > bound, f"above {bound:g}")


@dataclass(slots=True, kw_only=True)
class Architecture:
    """The shape of a Llama-like decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context_tokens: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context_tokens"):
            at_least(f"architecture.{name}", getattr(self, name), 1)
        for name in ("rope_theta", "norm_eps"):
            above(f"architecture.{name}", getattr(self, name), 0)
        require("architecture.heads", self.heads, self.heads % self.kv_heads == 0, "a multiple of kv_heads")
        require("architecture.head_dim", self.head_dim, self.head_dim % 2 == 0, "even: RoPE turns pairs")

    @property
    def parameters(self) -> int:
        """The number of weights, norms and embeddings included."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * layer + embeddings + self.hidden

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token leaves in the KV cache: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(slots=True, kw_only=True)
class ModelSettings:
    """A model: its full-size architecture, and a small stand-in of the same family for real passes on a CPU."""

    name: str
    architecture: Architecture
    stand_in: Architecture
    version: str = "1.0.0"
    weight_bytes: float = 2.0  # per parameter, at full size
    kv_bytes: float = 2.0  # per number in the KV cache, at full size

    def __post_init__(self) -> None:
        above(f"fleet.models.{self.name}.weight_bytes", self.weight_bytes, 0)
        above(f"fleet.models.{self.name}.kv_bytes", self.kv_bytes, 0)


@dataclass(slots=True, kw_only=True)
class FleetSettings:
    """Who serves: `replicas` maps the name of each replica to the name of its model."""

    models: list[ModelSettings]
    replicas: dict[str, str]
    max_batch: int = 32  # sequences that run together in one replica
    step_tokens: int = 512  # prefill and decode tokens of one step together (chunked prefill)

    def __post_init__(self) -> None:
        at_least("fleet.max_batch", self.max_batch, 1)
        require(
            "fleet.step_tokens",
            self.step_tokens,
            isfinite(self.step_tokens) and self.step_tokens >= self.max_batch,
            f"at least fleet.max_batch ({self.max_batch}): each running sequence needs a token a step",
        )
        require("fleet.replicas", self.replicas, len(self.replicas) > 0, "at least one replica")
        known = [model.name for model in self.models]
        for replica, model in self.replicas.items():
            require(f"fleet.replicas.{replica}", model, model in known, f"one of {', '.join(known)}")


@dataclass(slots=True, kw_only=True)
class HardwareSettings:
    """An accelerator, as its datasheet says: dense FLOP/s at the weights' precision, bytes a second."""

    name: str
    flops: float
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        for name in ("flops", "memory_bytes", "memory_bytes_per_s", "link_bytes_per_s"):
            above(f"hardware.{name}", getattr(self, name), 0)


@dataclass(slots=True, kw_only=True)
class ExecutorSettings:
    """Which executor, and the options that only this one knows."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class RoutingSettings:
    """Which strategy, its options, and how many replicas one request may try."""

    strategy: str = "round_robin"
    options: dict[str, Any] = field(default_factory=dict)
    max_attempts: int = 3

    def __post_init__(self) -> None:
        at_least("routing.max_attempts", self.max_attempts, 1)


@dataclass(slots=True, kw_only=True)
class HealthSettings:
    """When a replica counts as unhealthy, and when as healthy again.

    A lost replica falls at once; a probe (one generated token) that comes too late must do so `fall` times in
    a row. It rises after `rise` good probes in a row.
    """

    enabled: bool = True
    probe_every_s: float = 1.0
    probe_timeout_s: float = 5.0
    fall: int = 2
    rise: int = 2

    def __post_init__(self) -> None:
        above("health.probe_every_s", self.probe_every_s, 0)
        above("health.probe_timeout_s", self.probe_timeout_s, 0)
        at_least("health.fall", self.fall, 1)
        at_least("health.rise", self.rise, 1)


@dataclass(slots=True, kw_only=True)
class QuotaSettings:
    """How many requests of one model may be in service together, and how many may wait for that."""

    enabled: bool = True
    max_concurrent_requests: int = 64
    queue_capacity: int = 256

    def __post_init__(self) -> None:
        at_least("quotas.max_concurrent_requests", self.max_concurrent_requests, 1)
        at_least("quotas.queue_capacity", self.queue_capacity, 0)


@dataclass(slots=True, kw_only=True)
class CacheSettings:
    """The prefix cache: one tier of RAM shared by all replicas of the process."""

    enabled: bool = True
    block_tokens: int = 16
    ram_gib: float = 0.25
    eviction: str = "lru"
    options: dict[str, Any] = field(default_factory=dict)
    share_between_tenants: bool = False

    def __post_init__(self) -> None:
        at_least("tiers.block_tokens", self.block_tokens, 1)
        at_least("tiers.ram_gib", self.ram_gib, 0)


@dataclass(slots=True, kw_only=True)
class EngineSettings:
    """One engine, whole."""

    fleet: FleetSettings
    executor: ExecutorSettings
    hardware: HardwareSettings
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    seed: int = 1

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
