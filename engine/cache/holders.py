"""Whose blocks they are: models, namespaces (a model version and a tenant), and what each holds and wants."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.cache.reuse import Reuse
from engine.native import i64, vec

if TYPE_CHECKING:
    from engine.cache.limits import Rule


FORM_BYTES = {"fp16": 2.0, "int8": 1.04}
"""Bytes a number, scales included; a block whose true size differs is booked anew when it has been written."""


@dataclass(slots=True, eq=False)
class Holder:
    """A model version, as the cache sees it: what its blocks weigh, what they cost, and what it holds of each tier.

    `raw_bytes` is a block as the executor makes it, of numbers of `value_bytes`; `block_bytes[t]` its size in tier t.
    `recompute_ns` is what computing one block again takes, as the executor estimates it. `demand_bytes` is what it
    has been asked for, and decays.
    """

    key: str
    index: int
    raw_bytes: int
    value_bytes: float
    num_tiers: int
    reuse: Reuse
    held_bytes: vec[i64] = field(init=False)
    block_bytes: list[int] = field(default_factory=list)
    recompute_ns: float = 1.0
    demand_bytes: float = 0.0
    is_guess: bool = False  # known from a store only: what its blocks weigh is not known yet
    is_guest: bool = False  # a tenant's own part of a model, because it has a limit: sure of nothing

    def __post_init__(self) -> None:
        self.held_bytes = vec[i64]([0] * self.num_tiers)

    def form_bytes(self, form: str) -> int:
        """What a block takes in that form: as it is made, or as so many bytes a number, scales included."""
        smaller = FORM_BYTES.get(form)
        if smaller is None or smaller >= self.value_bytes:
            return max(1, self.raw_bytes)
        return max(1, round(self.raw_bytes * smaller / self.value_bytes))

    def bytes_in(self, tier: int, *, compress: bool) -> int:
        """What a block takes in a tier; `compress`: as int8, whatever the tier's own form."""
        usual = self.block_bytes[tier]
        return min(usual, self.form_bytes("int8")) if compress else usual

    def density(self, tier: int) -> float:
        """What computing its blocks again costs, in ns a byte of that tier."""
        return self.recompute_ns / self.block_bytes[tier]


@dataclass(slots=True, eq=False)
class Space:
    """A namespace: no block of it is ever found from another. `digest` is where its chains begin.

    `is_known`: not any more once the cache has forgotten it, because it holds nothing and others want its place.
    """

    digest: bytes
    holder: Holder
    tenant: str
    stats: "Counts"
    held_bytes: vec[i64] = field(init=False)  # by tier
    rules: "list[Rule]" = field(default_factory=list)
    is_known: bool = True

    def __post_init__(self) -> None:
        self.held_bytes = vec[i64]([0] * self.stats.num_tiers)


COUNTED = ("requests", "request_hits", "prompt_tokens", "prompt_blocks", "inserted_blocks", "refused_blocks")
BY_TIER = ("hit_tokens", "hit_blocks", "evicted_blocks", "demoted_blocks", "promoted_blocks")


@dataclass(slots=True, eq=False)
class Counts:
    """What was asked of a namespace's cache and what came of it, since the start. Lists are by tier.

    `prompt_tokens` and `prompt_blocks` are what requests brought; `hit_tokens` what they did not have to compute.
    """

    num_tiers: int
    requests: int = 0
    request_hits: int = 0
    prompt_tokens: int = 0
    prompt_blocks: int = 0
    hit_tokens: list[int] = field(default_factory=list)
    hit_blocks: list[int] = field(default_factory=list)
    inserted_blocks: int = 0
    refused_blocks: int = 0
    evicted_blocks: list[int] = field(default_factory=list)  # gone for good, by the tier in which they were
    demoted_blocks: list[int] = field(default_factory=list)  # by the tier to which they went
    promoted_blocks: list[int] = field(default_factory=list)  # by the tier from which they came

    def __post_init__(self) -> None:
        for name in BY_TIER:
            setattr(self, name, [0] * self.num_tiers)

    def add(self, other: "Counts") -> None:
        """Count for it what was counted for another one."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in BY_TIER:
            mine: list[int] = getattr(self, name)
            mine[:] = map(sum, zip(mine, getattr(other, name), strict=True))


NOBODY = Space(b"", Holder("", -1, 1, 2.0, 0, Reuse()), "", Counts(0))
"""Whose the slots are that hold no block."""
