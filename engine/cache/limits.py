"""What a model or a tenant may hold of a tier, in steps: choosier, smaller, earlier away, and then no more.

The steps are shares of the limit (`LimitSettings`): from `admit_from` on only blocks that were wanted before come in,
from `compress_from` on they come in as int8, from `demote_from` on the oldest go down ahead of need. At the limit the
rule `when_full` says who gives way: its own oldest blocks, or the new one. What others hold never matters, so the
answer can be told beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.cache.holders import Space
from engine.settings import TIERS, LimitSettings

REMEMBERED = 65_536


@dataclass(slots=True, eq=False)
class Rule:
    """One limit and what is held under it."""

    settings: LimitSettings
    rank: int
    limit_bytes: int
    held_bytes: int = 0

    def covers(self, model: str, tenant: str) -> bool:
        """Whether a model (with its version) and a tenant are meant."""
        wanted = self.settings
        names = (model, model.rpartition("@")[0])
        return wanted.tenant in (None, tenant) and (wanted.model is None or wanted.model in names)

    def share(self, more_bytes: int) -> float:
        """How much of the limit would be held with so much more."""
        return (self.held_bytes + more_bytes) / self.limit_bytes if self.limit_bytes else float("inf")


class Doorkeeper:
    """Remembers which blocks were wanted lately, in two generations; the older goes when the young one is full."""

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def knows(self, key: bytes) -> bool:
        """Whether that block was asked about before; it is known from now on."""
        if key in self._young:
            return True
        was_known = key in self._old
        if len(self._young) >= REMEMBERED:
            self._old, self._young = self._young, set()
        self._young.add(key)
        return was_known


class Limits:
    """All limits. Spaces without one cost nothing."""

    def __init__(self, settings: Sequence[LimitSettings], names: Sequence[str]) -> None:
        """`names` are the tiers that there are, the hottest first."""
        self.rules = [
            Rule(limit, list(names).index(limit.tier), int(limit.gib * 2**30))
            for limit in sorted(settings, key=lambda limit: TIERS.index(limit.tier))
        ]
        self.doorkeeper = Doorkeeper()

    def __bool__(self) -> bool:
        return bool(self.rules)

    def rules_of(self, model: str, tenant: str) -> list[Rule]:
        """The rules that a namespace is under."""
        return [rule for rule in self.rules if rule.covers(model, tenant)]

    def has_own_order(self, tenant: str) -> bool:
        """Whether that tenant's blocks have to be found apart from those of others."""
        return any(rule.settings.tenant == tenant for rule in self.rules)

    def wanted(self, space: Space, rank: int, size_bytes: int, keys: Sequence[bytes]) -> int:
        """How many of these new blocks, from the head, may come in by the rule of second use."""
        strict = [
            rule
            for rule in space.rules
            if rule.rank == rank and 1 > rule.settings.admit_from < rule.share(size_bytes)
        ]
        if not strict:
            return len(keys)
        known = [self.doorkeeper.knows(key) for key in keys]
        return known.index(False) if False in known else len(keys)

    def compresses(self, space: Space, rank: int) -> bool:
        """Whether new blocks of that namespace come into that tier as int8."""
        return any(rule.rank == rank and rule.share(0) >= rule.settings.compress_from for rule in space.rules)
