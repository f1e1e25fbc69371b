"""Everything that can be set, as plain dataclasses: made once at the door, read everywhere, changed nowhere.

Each class checks itself in `__post_init__` and raises BadSettings naming the key, the value and what is
allowed. Units are in the names; seconds and GiB here become nanoseconds and bytes inside.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite
from typing import Any, Final

from engine.errors import BadSettings


def require(key: str, value: object, holds: bool, allowed: str) -> None:
    """Raise BadSettings for `key` unless its value `holds`; one sentence with all that is needed to mend it."""
    if not holds:
        raise BadSettings(f"{key} is {value!r}, but must be {allowed}")


DAY_S = 86_400
LONGEST_S = 100 * 365 * DAY_S
"""A century. Three of them in nanoseconds are more than 64 bits hold."""
MOST = (1 << 63) - 1
"""The largest number that a database keeps."""


def at_least(key: str, value: float, least: float) -> None:
    """Raise BadSettings for less, for what is no number, and for a time that no clock counts."""
    require(key, value, least <= value < inf, f"at least {least:g}")
    _within_a_century(key, value)


def above(key: str, value: float, bound: float) -> None:
    """The same for less, and for the bound itself."""
    require(key, value, bound < value < inf, f"above {bound:g}")
    _within_a_century(key, value)


def _within_a_century(key: str, value: float) -> None:
    is_time = key.endswith("_s") and not key.endswith("_per_s")
    require(key, value, not is_time or value <= LONGEST_S, f"at most {LONGEST_S:,} seconds, a century")


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")
"""The architectures that our own decoder runs."""

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(slots=True, kw_only=True)
class Architecture:
    """The shape of a decoder, and the switches in which the families differ. The defaults are Llama's.

    `window_tokens` is the number of latest tokens, itself included, that a token sees in a windowed layer; 0 is
    all. Layer i (from 0) sees everything where (i + 1) is a multiple of `global_every`; 0: every layer has the
    window. `rope_factors` divide the rotary frequencies (head_dim / 2 of them, or none) of the layers that see
    everything; windowed ones turn at `rope_local_theta`, undivided, where that is given. A softcap of 0 is none.
    """

    family: str = "llama"
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context_tokens: int
    rope_theta: float = 10_000.0
    rope_factors: list[float] = field(default_factory=list)
    rope_local_theta: float | None = None
    rotary_dim: int | None = None  # the first so many numbers of a head turn; None: all
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    qkv_bias: bool = False  # Qwen 2
    qk_norm: bool = False  # RMS norm of each query and key head: Qwen 3, Gemma 3
    post_norms: bool = False  # norms after attention and feed-forward too: Gemma
    activation: str = "silu"
    embedding_scale: float = 1.0  # Gemma: the root of `hidden`
    attention_scale: float | None = None  # of the scores; None: 1 / root of head_dim
    attention_softcap: float = 0.0  # Gemma 2
    final_softcap: float = 0.0  # Gemma 2
    window_tokens: int = 0
    global_every: int = 0

    def __post_init__(self) -> None:
        require("architecture.family", self.family, self.family in FAMILIES, f"one of {', '.join(FAMILIES)}")
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context_tokens"):
            at_least(f"architecture.{name}", getattr(self, name), 1)
        for name in ("rope_theta", "norm_eps", "embedding_scale"):
            above(f"architecture.{name}", getattr(self, name), 0)
        for name in ("attention_softcap", "final_softcap", "window_tokens", "global_every"):
            at_least(f"architecture.{name}", getattr(self, name), 0)
        require("architecture.heads", self.heads, self.heads % self.kv_heads == 0, "a multiple of kv_heads")
        require("architecture.head_dim", self.head_dim, self.head_dim % 2 == 0, "even: RoPE turns pairs")
        turning = self.rotary_dim
        require(
            "architecture.rotary_dim",
            turning,
            turning is None or (0 < turning <= self.head_dim and turning % 2 == 0),
            f"even and at most head_dim ({self.head_dim})",
        )
        pairs = (turning or self.head_dim) // 2
        require(
            "architecture.rope_factors",
            self.rope_factors,
            not self.rope_factors
            or (len(self.rope_factors) == pairs and all(isfinite(f) and f > 0 for f in self.rope_factors)),
            f"{pairs} numbers above 0, or none",
        )
        require(
            "architecture.activation",
            self.activation,
            self.activation in ACTIVATIONS,
            f"one of {', '.join(ACTIVATIONS)}",
        )

    @property
    def parameters(self) -> int:
        """The number of weights, norms, biases and embeddings included."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = (4 if self.post_norms else 2) * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + bias + norms + 3 * self.hidden * self.ffn
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * layer + embeddings + self.hidden

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token leaves in the KV cache: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def sees_everything(self, layer: int) -> bool:
        """Whether that layer (from 0) has no window."""
        if not self.window_tokens:
            return True
        return self.global_every > 0 and (layer + 1) % self.global_every == 0


@dataclass(slots=True, kw_only=True)
class ModelSettings:
    """A model, as executors know it: its architecture, and where its weights come from.

    `path` is a GGUF file (the first of a split one) or a Hugging Face folder with its weights. Without it the torch
    executor makes weights up, from a seed, in the shape of `stand_in`: small enough for real passes on a CPU.
    """

    name: str
    architecture: Architecture | None  # None: not one that our decoder runs
    stand_in: Architecture | None = None
    path: str | None = None
    version: str = "1.0.0"
    weight_bytes: float = 2.0  # per parameter, at full size
    kv_bytes: float = 2.0  # per number in the KV cache, at full size

    def __post_init__(self) -> None:
        is_name = self.name != "" and self.name.isprintable()  # it stands in headers and labels
        require("fleet.models.name", self.name, is_name, "a name that can be printed")
        above(f"fleet.models.{self.name}.weight_bytes", self.weight_bytes, 0)
        above(f"fleet.models.{self.name}.kv_bytes", self.kv_bytes, 0)

    @property
    def key(self) -> str:
        """What tells it from every other model and version."""
        return f"{self.name}@{self.version}"


DISCIPLINES = ("fifo", "priority", "preemptive", "ps")


@dataclass(slots=True, kw_only=True)
class FleetSettings:
    """Who serves: `replicas` maps the name of each replica to the name of its model.

    A model that has none here gets one of its own, called like itself, when it is first asked for.
    """

    models: list[ModelSettings]
    replicas: dict[str, str]
    max_batch: int = 32  # sequences that run together in one replica
    step_tokens: int = 512  # prefill and decode tokens of one step together (chunked prefill)
    fast_forward: bool = (
        True  # many decode steps are one event where the executor foresees them; the same results
    )
    queue_capacity: int | None = None  # requests that may wait in the line of one replica; null: no bound
    discipline: str = "fifo"  # who is next in that line: fifo, priority; with executor law preemptive, ps
    letters: bool = False  # modelled executors take and give text, of a made-up vocabulary: letters

    def __post_init__(self) -> None:
        at_least("fleet.max_batch", self.max_batch, 1)
        if self.queue_capacity is not None:
            at_least("fleet.queue_capacity", self.queue_capacity, 0)
        require(
            "fleet.discipline",
            self.discipline,
            self.discipline in DISCIPLINES,
            f"one of {', '.join(DISCIPLINES)}",
        )
        shares = self.discipline != "ps" or self.max_batch > 1
        require("fleet.max_batch", self.max_batch, shares, "at least 2 with discipline ps: so many share")
        require(
            "fleet.step_tokens",
            self.step_tokens,
            isfinite(self.step_tokens) and self.step_tokens >= self.max_batch,
            f"at least fleet.max_batch ({self.max_batch}): each running sequence needs a token a step",
        )
        known = [model.name for model in self.models]
        for replica, model in self.replicas.items():
            is_name = replica != "" and replica.isprintable()  # it stands in headers and labels
            require("fleet.replicas", replica, is_name, "names that can be printed")
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


THIS_MACHINE = HardwareSettings(
    name="this machine",
    flops=1.0,
    memory_bytes=1.0,
    memory_bytes_per_s=1.0,
    link_bytes_per_s=1.0,
    source="torch measures; nothing is computed from these",
)


@dataclass(slots=True, kw_only=True)
class ExecutorSettings:
    """Which executor, and the options that only this one knows."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class RoutingSettings:
    """Who serves a request, and what happens when nobody does.

    `strategy` is a name, or a sum like "0.6 cache_aware + 0.4 least_loaded"; `modules` are imported first, so that
    strategies of one's own are known by name. `groups` are names for several models: names, versions, ranges, or
    "tag:..."; "auto" is all of the fleet unless it is given. Where a model or group cannot serve, those in
    `fallbacks` are tried in order, and theirs, `max_fallbacks` at most; where a request is too long for it, those in
    `context_fallbacks`. "*" stands for whoever is not named.

    A session keeps its replica until `session_timeout_s` after its last request, `session_capacity` sessions at most.
    A replica that comes back gets up to its share within `slow_start_s`. One whose time to first token is
    `eject_above` times the median gets nothing for `eject_s`, twice as long each time; never more than `max_ejected`
    of a pool. Where less than `panic_below` of a pool is left, none of them takes more than `panic_requests` at a
    time. `refresh_s` lets strategies see loads only so often, to show what that does. `decision_log` is the share of
    decisions that are put on record; of one in `time_every` the duration is measured, of none where that is 0.
    """

    strategy: str = "round_robin"
    options: dict[str, Any] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    max_attempts: int = 3
    groups: dict[str, list[str]] = field(default_factory=dict)
    fallbacks: dict[str, list[str]] = field(default_factory=dict)
    context_fallbacks: dict[str, list[str]] = field(default_factory=dict)
    max_fallbacks: int = 3
    experiments: list["ExperimentSettings"] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)  # of replicas, 1 where none is given
    sessions: bool = True
    session_timeout_s: float = 300.0
    session_capacity: int = 100_000
    slow_start_s: float = 1.0
    eject_above: float | None = None
    eject_s: float = 30.0
    max_ejected: float = 0.34
    panic_below: float = 0.0
    panic_requests: int = 64
    refresh_s: float = 0.0
    decision_log: float = 0.0
    time_every: int = 0
    index_blocks: int = 1 << 18

    def __post_init__(self) -> None:
        for name in ("max_attempts", "panic_requests", "session_capacity", "index_blocks"):
            at_least(f"routing.{name}", getattr(self, name), 1)
        for name in ("max_fallbacks", "slow_start_s", "refresh_s", "time_every"):
            at_least(f"routing.{name}", getattr(self, name), 0)
        for name in ("session_timeout_s", "eject_s"):
            above(f"routing.{name}", getattr(self, name), 0)
        for name in ("decision_log", "panic_below", "max_ejected"):
            share = getattr(self, name)
            require(f"routing.{name}", share, 0 <= share <= 1, "from 0 to 1")
        if self.eject_above is not None:
            above("routing.eject_above", self.eject_above, 1)
        for replica, weight in self.weights.items():
            at_least(f"routing.weights.{replica}", weight, 0)
        if self.weights:
            total = sum(self.weights.values())
            require("routing.weights", self.weights, total > 0, "above 0 for at least one replica")
        for group, members in self.groups.items():
            require(f"routing.groups.{group}", members, len(members) > 0, "at least one model")
        self._check_names()

    def _check_names(self) -> None:
        for name in ("fallbacks", "context_fallbacks"):
            _no_circle(f"routing.{name}", getattr(self, name))
        for what in ("name", "on"):
            given = [getattr(experiment, what) for experiment in self.experiments]
            twice = [value for value in given if given.count(value) > 1]
            allowed = "given to one experiment only"
            require(f"routing.experiments.{what}", twice[0] if twice else None, not twice, allowed)


def _no_circle(key: str, ways: dict[str, list[str]]) -> None:
    """Raise BadSettings where a way leads back to where it has been."""
    done: list[str] = []

    def follow(name: str, path: list[str]) -> None:
        circle = " -> ".join([*path, name])
        require(key, circle, name not in path, "free of circles")
        if name not in done:
            for further in ways.get(name, []):
                follow(further, [*path, name])
            done.append(name)

    for name in ways:
        follow(name, [])


@dataclass(slots=True, kw_only=True)
class HealthSettings:
    """When a replica counts as unhealthy, and when as healthy again.

    A lost replica falls at once; a probe (one generated token) that comes too late must do so `fall` times in
    a row. It rises after `rise` good probes in a row. `errors_in_a_row` requests that fail on it close it, and so
    does `unhealthy_error_rate` of at least `window_requests` in `window_s`; a smaller share makes it degraded. It
    stays closed for `retry_after_s`, twice as long each time. Without probes it comes back by up to
    `trial_requests` at a time, `rise` of which have to end well in a row.
    """

    enabled: bool = True
    probes: bool = True
    probe_every_s: float = 1.0
    probe_timeout_s: float = 5.0
    fall: int = 2
    rise: int = 2
    errors_in_a_row: int = 3
    window_s: float = 30.0
    window_requests: int = 20
    degraded_error_rate: float = 0.05
    unhealthy_error_rate: float = 0.5
    retry_after_s: float = 5.0
    max_retry_after_s: float = 120.0
    trial_requests: int = 1

    def __post_init__(self) -> None:
        for name in ("errors_in_a_row", "window_requests", "trial_requests"):
            at_least(f"health.{name}", getattr(self, name), 1)
        for name in ("window_s", "retry_after_s"):
            above(f"health.{name}", getattr(self, name), 0)
        at_least("health.max_retry_after_s", self.max_retry_after_s, self.retry_after_s)
        low, high = self.degraded_error_rate, self.unhealthy_error_rate
        require("health.degraded_error_rate", low, 0 < low <= 1, "above 0 and at most 1")
        require("health.unhealthy_error_rate", high, low <= high <= 1, f"from {low:g} (degraded) to 1")
        above("health.probe_every_s", self.probe_every_s, 0)
        above("health.probe_timeout_s", self.probe_timeout_s, 0)
        at_least("health.fall", self.fall, 1)
        at_least("health.rise", self.rise, 1)


@dataclass(slots=True, kw_only=True)
class LoadingSettings:
    """How much memory the weights of all models may take together, and how models come and go.

    With `preload` the models of the fleet's replicas are there from the start, otherwise each comes when it is first
    asked for. The times are what loading takes where it is modelled: the first load of a model is cold, log-normal
    with this median and 90th percentile; every later one comes from local disk. They are those of a base model in
    GenTD26, a production trace of 86 models.
    """

    folder: str | None = None  # of models that are known besides those of the fleet, loaded when asked for
    rescan_every_s: float | None = None  # None: only when somebody calls for it
    registry_file: str | None = (
        None  # where use counts and operators' edits outlive the process; None: nowhere
    )
    flush_every_s: float = 30.0
    weights_gib: float | None = None  # None: no limit
    preload: bool = True
    patience_s: float = 10.0  # how long a model waits for an idle one before a busy one has to go
    retry_after_s: float = 1.0  # after a failed load; doubles with each further failure
    max_retry_after_s: float = 60.0
    cold_median_s: float = 22.0
    cold_p90_s: float = 42.0
    warm_s: float = 2.6
    warm_timeout_s: float = 60.0  # for the first token of a model that has just been loaded

    def __post_init__(self) -> None:
        for name in ("weights_gib", "rescan_every_s"):
            if (value := getattr(self, name)) is not None:
                above(f"models.{name}", value, 0)
        above("models.flush_every_s", self.flush_every_s, 0)
        for name in ("patience_s", "retry_after_s", "max_retry_after_s", "warm_s", "warm_timeout_s"):
            at_least(f"models.{name}", getattr(self, name), 0)
        above("models.cold_median_s", self.cold_median_s, 0)
        at_least("models.cold_p90_s", self.cold_p90_s, self.cold_median_s)

    @property
    def budget_bytes(self) -> int | None:
        """The memory for weights; None: no limit."""
        return None if self.weights_gib is None else int(self.weights_gib * 2**30)


MODES = ("normal", "warning", "throttled", "limited", "emergency")
"""The steps of degradation, in order."""


@dataclass(slots=True, kw_only=True)
class AllowanceSettings:
    """What a model, a tenant, or a tenant with a model may use. Whatever is None has no limit.

    `model` and `tenant` are names; "*" is each of them for itself, and None all of them together. A rule that names
    somebody goes before the one with a "*". Hours and days are windows that begin at fixed times; with `sliding` the
    limit holds in every interval of that length. A burst limit is a rate, of which `burst_...` may come at once
    (GCRA). `ram_gib` and `ssd_gib` limit what the cache holds.
    """

    model: str | None = None
    tenant: str | None = None
    hourly_tokens: int | None = None
    daily_tokens: int | None = None
    hourly_requests: int | None = None
    daily_requests: int | None = None
    sliding: bool = False
    tokens_per_s: float | None = None
    burst_tokens: int | None = None
    requests_per_s: float | None = None
    burst_requests: int | None = None
    concurrent_requests: int | None = None
    concurrent_tokens: int | None = None
    ram_gib: float | None = None
    ssd_gib: float | None = None

    def __post_init__(self) -> None:
        key = "quotas.limits"
        require(
            f"{key}.model", self.model, self.model is not None or self.tenant is not None, "given, or tenant"
        )
        for name in ("hourly", "daily", "burst", "concurrent"):
            for what in ("tokens", "requests"):
                if (value := getattr(self, f"{name}_{what}")) is not None:
                    at_least(f"{key}.{name}_{what}", value, 1)
                    require(f"{key}.{name}_{what}", value, value <= MOST, f"at most {MOST:,}")
        for what in ("tokens", "requests"):
            rate, depth = getattr(self, f"{what}_per_s"), getattr(self, f"burst_{what}")
            if rate is not None:
                above(f"{key}.{what}_per_s", rate, 0)
            require(
                f"{key}.burst_{what}", depth, (depth is None) == (rate is None), f"given with {what}_per_s"
            )
            if rate is not None and depth is not None:
                is_soon = depth <= rate * LONGEST_S
                require(
                    f"{key}.{what}_per_s", rate, is_soon, f"such that burst_{what} is back within a century"
                )
        for name in ("ram_gib", "ssd_gib"):
            if (size := getattr(self, name)) is not None:
                above(f"{key}.{name}", size, 0)


@dataclass(slots=True, kw_only=True)
class ModeSettings:
    """From which share of a limit a degradation mode holds, and what it does besides its own step.

    `at` None: only an operator enters it. `max_output_tokens` cuts what is asked for, `cheaper` sends requests to a
    group to its cheapest model, `min_priority` refuses those below it.
    """

    at: float | None = None
    max_output_tokens: int | None = None
    cheaper: bool = False
    min_priority: int | None = None

    def check(self, name: str) -> None:
        """Raise BadSettings for values that no mode can have."""
        key = f"quotas.modes.{name}"
        if self.at is not None:
            require(f"{key}.at", self.at, 0 < self.at <= 1, "above 0 and at most 1, or null")
        if self.max_output_tokens is not None:
            at_least(f"{key}.max_output_tokens", self.max_output_tokens, 1)


def _modes() -> dict[str, ModeSettings]:
    return {
        "warning": ModeSettings(at=0.8),
        "throttled": ModeSettings(),
        "limited": ModeSettings(),
        "emergency": ModeSettings(min_priority=1),
    }


@dataclass(slots=True, kw_only=True)
class QuotaSettings:
    """What may be used, by whom; who waits for it, and how the service degrades before it refuses.

    `max_concurrent_requests` is for each model that no rule of `limits` gives another. A request that cannot be
    admitted waits where at most `queue_capacity` others of its model do: for a free place as long as its own deadline
    allows, for a limit that time lifts at most `max_wait_s`; what would take longer is refused at once. In the queue
    a step of `priority` counts like `aging_s` of waiting; tenants share it by `tenant_weights` (1 if not given).
    `soft_limits` are shares of each window that are told when they are passed; they are told again after use has
    fallen `hysteresis` below. Emergency ends `quiet_s` after its cause. `state_file` remembers what was used; up to
    `lease` of a limit counts as used after a crash. Days begin `day_starts_at_s` after midnight UTC, or after the
    start of a simulation. A cached prompt token costs `cached_token_cost`.
    """

    enabled: bool = True
    max_concurrent_requests: int = 64
    queue_capacity: int = 256
    max_wait_s: float = 30.0
    aging_s: float = 10.0
    limits: list[AllowanceSettings] = field(default_factory=list)
    tenant_weights: dict[str, float] = field(default_factory=dict)
    soft_limits: list[float] = field(default_factory=lambda: [0.8, 0.85, 0.9, 0.95])
    hysteresis: float = 0.02
    modes: dict[str, ModeSettings] = field(default_factory=_modes)
    quiet_s: float = 60.0
    cached_token_cost: float = 1.0
    state_file: str | None = None
    lease: float = 0.02
    day_starts_at_s: float = 0.0

    def __post_init__(self) -> None:
        at_least("quotas.max_concurrent_requests", self.max_concurrent_requests, 1)
        for name in ("queue_capacity", "max_wait_s", "quiet_s"):
            at_least(f"quotas.{name}", getattr(self, name), 0)
        above("quotas.aging_s", self.aging_s, 0)
        for tenant, weight in self.tenant_weights.items():
            above(f"quotas.tenant_weights.{tenant}", weight, 0)
        rising = all(low < high for low, high in pairwise(self.soft_limits))
        shares = all(0 < share <= 1 for share in self.soft_limits)
        require(
            "quotas.soft_limits", self.soft_limits, rising and shares, "rising, each above 0 and at most 1"
        )
        require("quotas.hysteresis", self.hysteresis, 0 <= self.hysteresis < 1, "from 0 to below 1")
        require("quotas.lease", self.lease, 0 < self.lease <= 1, "above 0 and at most 1")
        cost, day = self.cached_token_cost, self.day_starts_at_s
        require("quotas.cached_token_cost", cost, 0 <= cost <= 1, "from 0 to 1")
        require("quotas.day_starts_at_s", day, 0 <= day < DAY_S, f"from 0 to below {DAY_S}")
        self._check_modes()
        whose = [(limit.model, limit.tenant) for limit in self.limits]
        for pair in whose:
            require("quotas.limits", pair, whose.count(pair) == 1, "limited by one rule, not by two")

    def _check_modes(self) -> None:
        lowest = 0.0
        for name in self.modes:
            allowed = f"one of {', '.join(MODES[1:])}"
            require(f"quotas.modes.{name}", name, name in MODES[1:], allowed)
        for name in MODES[1:]:
            mode = self.modes.setdefault(name, ModeSettings())
            mode.check(name)
            if mode.at is not None:
                allowed = f"at least {lowest:g}, that of the mode before it"
                require(f"quotas.modes.{name}.at", mode.at, mode.at >= lowest, allowed)
                lowest = mode.at


TIERS = ("gpu", "ram", "ssd", "network", "cloud")
"""Where KV blocks can lie, the hottest first."""

FORMS = ("raw", "fp16", "int8")
"""What the numbers of a stored block can be: as they were made, or smaller."""

WRITES = ("back", "through", "second_use")
GIB: Final = 1 << 30


@dataclass(slots=True, kw_only=True)
class TierSettings:
    """One tier of the cache: how much it holds, and the way between it and the machine's memory.

    A transfer takes `latency_s` and then its bytes at `gib_per_s`, `concurrency` of them at a time; at most
    `queue_gib` wait for their turn, and what would wait beyond that is not moved. Where a store is behind the tier
    (`path` or `url`), its own time counts instead. Blocks that come down to it are written in `form`.

    `write`: a block is written here when it is evicted above (back), when it is new (through), or when it is used for
    the second time (second_use).
    """

    gib: float
    gib_per_s: float = 10.0
    latency_s: float = 0.0
    concurrency: int = 1
    queue_gib: float = 1.0
    form: str = "raw"
    max_error: float = (
        0.02  # relative: a block that int8 changes more than this is written in a more exact form
    )
    write: str = "back"
    path: str | None = None  # a folder: ssd, or a mounted one for network
    url: str | None = None  # redis://host:port/0 for network, s3://bucket/prefix for cloud
    endpoint: str | None = None  # of an S3-compatible server
    timeout_s: float = 10.0  # for one operation of a store that is not a folder
    retry_after_s: float = 30.0  # a store that fails again and again is left alone for so long

    def check(self, name: str) -> None:
        """Raise BadSettings for values that no tier can have."""
        key = f"tiers.{name}"
        for field_name in ("gib", "latency_s", "queue_gib", "retry_after_s"):
            at_least(f"{key}.{field_name}", getattr(self, field_name), 0)
        for field_name in ("gib_per_s", "timeout_s", "max_error"):
            above(f"{key}.{field_name}", getattr(self, field_name), 0)
        at_least(f"{key}.concurrency", self.concurrency, 1)
        require(f"{key}.form", self.form, self.form in FORMS, f"one of {', '.join(FORMS)}")
        require(f"{key}.write", self.write, self.write in WRITES, f"one of {', '.join(WRITES)}")
        if name in ("gpu", "ram"):
            require(f"{key}.path", self.path, self.path is None, "null: this tier is memory")
        if name == "cloud":
            require(f"{key}.path", self.path, self.path is None, "null: this tier has a url")
        scheme = {"network": "redis://", "cloud": "s3://"}.get(name)
        if self.url is not None:
            fits = scheme is not None and self.url.startswith(scheme)
            require(f"{key}.url", self.url, fits, "null" if scheme is None else f"{scheme}..., or null")
        require(f"{key}.url", self.url, self.url is None or self.path is None, "null where there is a path")

    @property
    def capacity_bytes(self) -> int:
        return int(self.gib * GIB)


@dataclass(slots=True, kw_only=True)
class LimitSettings:
    """How much of a tier a model or a tenant may hold; both given: that tenant with that model.

    Steps are shares of the limit, and 1 is no step. From `admit_from` on, only blocks that were wanted before come
    in; from `compress_from` on, they come in as int8; from `demote_from` on, the oldest are sent down one tier ahead
    of need. At the limit either its own oldest blocks make room (`evict`), or nothing more comes in (`refuse`).
    """

    tier: str
    gib: float
    model: str | None = None
    tenant: str | None = None
    admit_from: float = 0.8
    compress_from: float = 0.9
    demote_from: float = 0.95
    when_full: str = "evict"

    def __post_init__(self) -> None:
        key = "tiers.limits"
        require(f"{key}.tier", self.tier, self.tier in TIERS, f"one of {', '.join(TIERS)}")
        at_least(f"{key}.gib", self.gib, 0)
        whose = self.model is not None or self.tenant is not None
        require(f"{key}.model", self.model, whose, "given, or tenant must be")
        steps = (self.admit_from, self.compress_from, self.demote_from)
        for name, value in zip(("admit_from", "compress_from", "demote_from"), steps, strict=True):
            require(f"{key}.{name}", value, 0 < value <= 1, "above 0 and at most 1")
        choices = ("evict", "refuse")
        require(f"{key}.when_full", self.when_full, self.when_full in choices, "evict or refuse")


@dataclass(slots=True, kw_only=True)
class CacheSettings:
    """The prefix cache: up to five tiers, shared by all models and all replicas of the process.

    New blocks go to the hottest tier that is given. `inclusive`: a block that is promoted leaves a copy where it was,
    for as long as nobody needs the room. `load`: what lies below memory is loaded when that is cheaper than computing
    it again, always, or never. `prefetch_after_s`: so long after an answer the session's blocks are brought back to
    memory; None: never.
    """

    enabled: bool = True
    block_tokens: int = 16
    gpu: TierSettings | None = None
    ram: TierSettings | None = field(default_factory=lambda: TierSettings(gib=0.25))
    ssd: TierSettings | None = None
    network: TierSettings | None = None
    cloud: TierSettings | None = None
    inclusive: bool = False
    load: str = "cheaper"
    prefetch_after_s: float | None = None
    headroom: float = 0.0  # share of a tier that is freed beyond what is needed, whenever room has to be made
    eviction: str = "lru"
    options: dict[str, Any] = field(default_factory=dict)
    allocation: str = "shared"
    allocation_options: dict[str, Any] = field(default_factory=dict)
    limits: list[LimitSettings] = field(default_factory=list)
    share_between_tenants: bool = False

    def __post_init__(self) -> None:
        at_least("tiers.block_tokens", self.block_tokens, 1)
        for name, tier in self.tiers.items():
            tier.check(name)
        if self.enabled:
            require("tiers", {}, bool(self.tiers), f"given: at least one of {', '.join(TIERS)}")
        choices = ("cheaper", "always", "never")
        require("tiers.load", self.load, self.load in choices, f"one of {', '.join(choices)}")
        if self.prefetch_after_s is not None:
            at_least("tiers.prefetch_after_s", self.prefetch_after_s, 0)
        require("tiers.headroom", self.headroom, 0 <= self.headroom < 1, "from 0 to below 1")
        for number, limit in enumerate(self.limits):
            allowed = f"a tier that is given: {', '.join(self.tiers)}"
            require(f"tiers.limits[{number}].tier", limit.tier, limit.tier in self.tiers, allowed)

    @property
    def tiers(self) -> dict[str, TierSettings]:
        """Those that are given, the hottest first."""
        return {name: tier for name in TIERS if (tier := getattr(self, name)) is not None}


@dataclass(slots=True, kw_only=True)
class ArmSettings:
    """A side of an A/B split: what it is called, what its requests are sent to, and its share of them."""

    name: str
    target: str
    weight: float


@dataclass(slots=True, kw_only=True)
class RampStep:
    """The arms' weights from a time on, in their order."""

    at_s: float
    weights: list[float]


UNITS = ("session", "tenant", "request")
TOLERANCE = 1e-9


@dataclass(slots=True, kw_only=True)
class ExperimentSettings:
    """An A/B split of the requests for one name, `on`.

    What is assigned to an arm, by a stable hash, is a `unit`: a session (where there is none, the tenant), a tenant,
    or each request for itself. `salt` other than the name tells experiments apart that should share no assignment.
    `alpha` is the chance of a false finding that its report allows.
    """

    name: str
    on: str
    arms: list[ArmSettings]
    unit: str = "session"
    ramp: list[RampStep] = field(default_factory=list)
    alpha: float = 0.05
    salt: str = ""

    def __post_init__(self) -> None:
        key = f"routing.experiments.{self.name}"
        require(f"{key}.arms", len(self.arms), len(self.arms) > 1, "at least two arms")
        names = [arm.name for arm in self.arms]
        require(f"{key}.arms", names, len(dict.fromkeys(names)) == len(names), "arms with names of their own")
        _weights(f"{key}.arms", [arm.weight for arm in self.arms], len(self.arms))
        require(f"{key}.unit", self.unit, self.unit in UNITS, f"one of {', '.join(UNITS)}")
        require(f"{key}.alpha", self.alpha, 0 < self.alpha < 1, "above 0 and below 1")
        times = [step.at_s for step in self.ramp]
        rising = all(early < late for early, late in pairwise(times)) and all(at_s >= 0 for at_s in times)
        require(f"{key}.ramp", times, rising, "rising times from 0 on")
        for number, step in enumerate(self.ramp):
            _weights(f"{key}.ramp[{number}].weights", step.weights, len(self.arms))


def _weights(key: str, weights: list[float], count: int) -> None:
    require(key, weights, len(weights) == count, f"{count} weights, one for each arm")
    good = all(isfinite(weight) and weight >= 0 for weight in weights) and abs(sum(weights) - 1) < TOLERANCE
    require(key, weights, good, "weights from 0 to 1 that sum to 1")


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
    models: LoadingSettings = field(default_factory=LoadingSettings)
    seed: int = 1

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
