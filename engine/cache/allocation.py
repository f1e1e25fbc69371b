"""All ways to divide a tier between models, in a row: what each is sure of, and who gives when somebody needs room.

A model may hold more than it is sure of for as long as nobody else needs the room (work-conserving): budgets are not
walls. When room is needed, those that hold more than they are sure of give it, by the eviction policy. A model that
is itself beyond its own is one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from engine.cache.holders import Holder
from engine.named import Named
from engine.settings import above, require

Rank = tuple[float, float]
T = TypeVar("T")


class Allocation(Protocol):
    """How one tier's capacity is divided. O(models), every few seconds and not every request."""

    is_divided: bool  # whether each model has an order of its own
    is_timely: bool  # whether ranks change with the time alone

    def sure_bytes(self, capacity_bytes: int, holders: Sequence[Holder], tier: int) -> list[int]:
        """What each model cannot lose to others; at most `capacity_bytes` together."""

    def rank(self, holder: Holder, tier: int, worth: float, age: int) -> Rank:
        """Where a model's next victim stands among those of the others: the least goes first.

        `worth` is the eviction policy's own measure, `age` the ticks since the victim was last read.
        """


allocation: Named[Allocation] = Named("allocation")


def by_weight(capacity_bytes: int, weights: Sequence[float]) -> list[int]:
    """The capacity in the proportion of the weights, rounded down; evenly when all are zero."""
    total = sum(weights)
    if total <= 0:
        return [capacity_bytes // len(weights)] * len(weights)
    return [int(capacity_bytes * (weight / total)) for weight in weights]


def check_shares(key: str, shares: dict[str, float]) -> None:
    """Raise BadSettings unless these are shares of one capacity."""
    for name, share in shares.items():
        require(f"{key}.{name}", share, 0 <= share <= 1, "from 0 to 1")
    total = sum(shares.values())
    require(key, shares, total <= 1 + 1e-9, f"at most 1 together, but they are {total:g}")


@allocation("shared")
class Shared:
    """No division: one order for all models. The baseline that every claim is compared with."""

    is_divided = False
    is_timely = False

    def sure_bytes(self, capacity_bytes: int, holders: Sequence[Holder], tier: int) -> list[int]:
        return [0] * len(holders)

    def rank(self, holder: Holder, tier: int, worth: float, age: int) -> Rank:
        return (0.0, worth)


@allocation("fair")
class Fair:
    """The same for each model that is known to the cache."""

    is_divided = True
    is_timely = False

    def sure_bytes(self, capacity_bytes: int, holders: Sequence[Holder], tier: int) -> list[int]:
        return [capacity_bytes // len(holders)] * len(holders)

    def rank(self, holder: Holder, tier: int, worth: float, age: int) -> Rank:
        return (0.0, worth)


@allocation("proportional")
@dataclass(slots=True, kw_only=True)
class Proportional:
    """In proportion to what each model was asked for (bytes of KV, halved each `half_life_s`), or to `weights`.

    With weights, a model that has none gets the mean of those given. Until there is a demand, evenly.
    """

    weights: dict[str, float] = field(default_factory=dict)
    half_life_s: float = 600.0
    is_divided: bool = field(default=True, init=False)
    is_timely: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        above("allocation.half_life_s", self.half_life_s, 0)
        for name, weight in self.weights.items():
            require(f"allocation.weights.{name}", weight, weight >= 0, "at least 0")

    def sure_bytes(self, capacity_bytes: int, holders: Sequence[Holder], tier: int) -> list[int]:
        if not self.weights:
            return by_weight(capacity_bytes, [holder.demand_bytes for holder in holders])
        mean = sum(self.weights.values()) / len(self.weights)
        return by_weight(capacity_bytes, [named(self.weights, holder.key, mean) for holder in holders])

    def rank(self, holder: Holder, tier: int, worth: float, age: int) -> Rank:
        return (0.0, worth)


@allocation("priority")
@dataclass(slots=True, kw_only=True)
class Priority:
    """Guaranteed floors by class, the rest to the highest class that wants it.

    `classes` names each class with the share that its models are sure of together, the highest class first; `members`
    says which model is in which class, and who is not named is in the last one. Beyond the floors, a lower class
    always gives before a higher one.
    """

    classes: dict[str, float] = field(default_factory=lambda: {"high": 0.4, "normal": 0.2, "low": 0.1})
    members: dict[str, str] = field(default_factory=dict)
    is_divided: bool = field(default=True, init=False)
    is_timely: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        require("allocation.classes", self.classes, bool(self.classes), "at least one class with its share")
        check_shares("allocation.classes", self.classes)
        for model, name in self.members.items():
            known = ", ".join(self.classes)
            require(f"allocation.members.{model}", name, name in self.classes, f"one of {known}")

    def sure_bytes(self, capacity_bytes: int, holders: Sequence[Holder], tier: int) -> list[int]:
        of_model = [self._class(holder.key) for holder in holders]
        return [int(capacity_bytes * self.classes[name] / of_model.count(name)) for name in of_model]

    def rank(self, holder: Holder, tier: int, worth: float, age: int) -> Rank:
        return (-float(list(self.classes).index(self._class(holder.key))), worth)

    def _class(self, key: str) -> str:
        return named(self.members, key, next(reversed(self.classes)))


@allocation("dynamic")
@dataclass(slots=True, kw_only=True)
class Dynamic:
    """A floor for each model, and above the floors one ranking of all blocks by what it would cost to lose them.

    The rank is P(read in the next tick) x what computing the block again takes / its bytes. The chance is learned
    from the ages at which blocks were wanted again, in the cache or after they had left; the costs are the
    executor's. `floor` is the share of an even part that no model loses to others; `floors` sets it for some as a
    share of the whole. Idle floors are lent.
    """

    floor: float = 0.25
    floors: dict[str, float] = field(default_factory=dict)
    is_divided: bool = field(default=True, init=False)
    is_timely: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        require("allocation.floor", self.floor, 0 <= self.floor <= 1, "from 0 to 1")
        check_shares("allocation.floors", self.floors)

    def sure_bytes(self, capacity_bytes: int, holders: Sequence[Holder], tier: int) -> list[int]:
        even = self.floor / len(holders)
        shares = [named(self.floors, holder.key, even) for holder in holders]
        scale = min(1.0, 1.0 / sum(shares)) if sum(shares) else 0.0
        return [int(capacity_bytes * share * scale) for share in shares]

    def rank(self, holder: Holder, tier: int, worth: float, age: int) -> Rank:
        return (0.0, holder.reuse.hazard(age) * holder.density(tier))


def named(values: dict[str, T], key: str, otherwise: T) -> T:
    """The value for a model, which may be named with its version or without."""
    if key in values:
        return values[key]
    return values.get(key.rpartition("@")[0], otherwise)
