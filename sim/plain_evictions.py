"""Who should leave a cache next, by each eviction policy, in its plainest words: to hold the engine's own against.

For entries of one block each, one request at a time. Nothing here is shared with the engine, nothing is fast: a list
is searched for its least where the engine keeps rings and heaps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import Protocol

Name = tuple[str, int]
"""An entry: its model, and which of that model's it is."""


@dataclass(slots=True)
class Entry:
    """What a cache holds of one name. `came` and `read` count requests: when it came in, when it was read last."""

    name: Name
    size_bytes: int
    density: float
    came: int
    read: int
    uses: int = 0  # after the first
    counted: int = 0  # when it came to that many uses
    worth: float = 0.0
    is_main: bool = False
    marks: int = 0

    @property
    def model(self) -> str:
        return self.name[0]


Entries = dict[Name, Entry]


class Policy(Protocol):
    """Chooses, and notes what it needs to. What is held stands in `held`, in the order in which it came."""

    def came(self, entry: Entry, held: Entries) -> None:
        """It is new, and in `held` already."""

    def read(self, entry: Entry, held: Entries) -> None:
        """It is there and was asked for again."""

    def next(self, held: Entries) -> list[Entry]:
        """Who may leave now: one, or several where the policy does not say which."""

    def left(self, entry: Entry, held: Entries) -> None:
        """It was evicted, and is still in `held`."""


class Least:
    """The least by some measure leaves."""

    def __init__(self, measure: Callable[[Entry], float]) -> None:
        self._measure = measure

    def came(self, entry: Entry, held: Entries) -> None: ...

    def read(self, entry: Entry, held: Entries) -> None: ...

    def next(self, held: Entries) -> list[Entry]:
        return [min(held.values(), key=self._measure)]

    def left(self, entry: Entry, held: Entries) -> None: ...


class LeastUsed(Least):
    """LFU: the least often used leaves, of those who came to their count first."""

    def __init__(self) -> None:
        self._clock = 0

    def came(self, entry: Entry, held: Entries) -> None:
        self._clock += 1
        entry.counted = self._clock

    read = came

    def next(self, held: Entries) -> list[Entry]:
        return [min(held.values(), key=lambda entry: (entry.uses, entry.counted))]


class OfTheSmallest(Least):
    """The model that holds least gives its least recently read; any of those that hold as little."""

    def __init__(self) -> None: ...

    def next(self, held: Entries) -> list[Entry]:
        bytes_of: dict[str, int] = {}
        for entry in held.values():
            bytes_of[entry.model] = bytes_of.get(entry.model, 0) + entry.size_bytes
        least = min(bytes_of.values())
        return [oldest_of(model, held) for model, total in bytes_of.items() if total == least]


class InTurn(Least):
    """The models give in turn, each its least recently read."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def next(self, held: Entries) -> list[Entry]:
        models = dict.fromkeys(entry.model for entry in held.values())
        fewest = min(self._turns.get(model, 0) for model in models)
        return [oldest_of(model, held) for model in models if self._turns.get(model, 0) == fewest]

    def left(self, entry: Entry, held: Entries) -> None:
        self._turns[entry.model] = self._turns.get(entry.model, 0) + 1


class Sieve(Least):
    """A hand goes from the oldest to the newest, spares who was read since, and takes the first other."""

    def __init__(self) -> None:
        self._hand: Name | None = None

    def read(self, entry: Entry, held: Entries) -> None:
        entry.marks = 1

    def next(self, held: Entries) -> list[Entry]:
        names = list(held)
        place = names.index(self._hand) if self._hand is not None else 0
        while held[names[place]].marks:
            held[names[place]].marks = 0
            place = (place + 1) % len(names)
        self._hand = names[place]
        return [held[names[place]]]

    def left(self, entry: Entry, held: Entries) -> None:
        names = list(held)
        after = names.index(entry.name) + 1
        self._hand = names[after] if after < len(names) else None


class S3Fifo(Least):
    """A small queue tries what is new; who was read twice there goes to the main one, for a round for each read."""

    def __init__(self) -> None:
        self._small: list[Name] = []
        self._main: list[Name] = []
        self._gone: list[Name] = []

    def came(self, entry: Entry, held: Entries) -> None:
        entry.is_main = entry.name in self._gone
        if entry.is_main:
            self._gone.remove(entry.name)
        (self._main if entry.is_main else self._small).append(entry.name)

    def read(self, entry: Entry, held: Entries) -> None:
        entry.marks = min(3, entry.marks + 1)

    def next(self, held: Entries) -> list[Entry]:
        while True:
            if self._main and (not self._small or len(self._main) > 0.9 * len(held)):
                first = held[self._main[0]]
                if not first.marks:
                    return [first]
                first.marks -= 1
                self._main.append(self._main.pop(0))
            else:
                first = held[self._small[0]]
                if first.marks < 2:  # noqa: PLR2004  reads that it takes
                    return [first]
                first.is_main, first.marks = True, 0
                self._main.append(self._small.pop(0))

    def left(self, entry: Entry, held: Entries) -> None:
        (self._main if entry.is_main else self._small).remove(entry.name)
        if not entry.is_main:
            self._gone.append(entry.name)
            while len(self._gone) > 0.9 * len(held):
                del self._gone[0]


class Arc(Least):
    """The oldest of those read once, or of those read again: what left too early decides which.

    Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", 2003.
    """

    def __init__(self) -> None:
        self._once: list[Name] = []
        self._again: list[Name] = []
        self._gone_once: list[Name] = []
        self._gone_again: list[Name] = []
        self._target = 0.0

    def came(self, entry: Entry, held: Entries) -> None:
        once, again, count = self._gone_once, self._gone_again, len(held)
        if entry.name in once:
            self._target = min(count, self._target + max(1.0, len(again) / len(once)))
            once.remove(entry.name)
            self._again.append(entry.name)
        elif entry.name in again:
            self._target = max(0.0, self._target - max(1.0, len(once) / len(again)))
            again.remove(entry.name)
            self._again.append(entry.name)
        else:
            self._once.append(entry.name)

    def read(self, entry: Entry, held: Entries) -> None:
        (self._once if entry.name in self._once else self._again).remove(entry.name)
        self._again.append(entry.name)

    def next(self, held: Entries) -> list[Entry]:
        is_again = not self._once or (self._again and len(self._once) <= self._target)
        return [held[(self._again if is_again else self._once)[0]]]

    def left(self, entry: Entry, held: Entries) -> None:
        once, again, most = self._gone_once, self._gone_again, len(held)
        if entry.name in self._once:
            self._once.remove(entry.name)
            once.append(entry.name)
        else:
            self._again.remove(entry.name)
            again.append(entry.name)
        while once and len(self._once) + len(once) > most:
            del once[0]
        while len(once) + len(again) > most:
            del (again or once)[0]


class GreedyDualSize(Least):
    """GDSF: what was lost to evictions when it was last read, plus its reads x what a byte of it costs to compute.

    Reads and costs are told apart by eighths of a doubling, as the engine does; who is worth the same may go first.
    """

    def __init__(self) -> None:
        self._level = 0.0

    def came(self, entry: Entry, held: Entries) -> None:
        steps = round(8 * log2(entry.density)) + round(8 * log2(entry.uses + 1))
        entry.worth = self._level + 2.0 ** (steps / 8)

    read = came

    def next(self, held: Entries) -> list[Entry]:
        least = min(entry.worth for entry in held.values())
        return [entry for entry in held.values() if entry.worth <= least * (1 + 1e-12)]

    def left(self, entry: Entry, held: Entries) -> None:
        self._level = max(self._level, entry.worth)


POLICIES: dict[str, Callable[[], Policy]] = {
    "lru": lambda: Least(lambda entry: entry.read),
    "fifo": lambda: Least(lambda entry: entry.came),
    "lfu": LeastUsed,
    "smallest": OfTheSmallest,
    "round_robin": InTurn,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
    "arc": Arc,
    "gdsf": GreedyDualSize,
}


def oldest_of(model: str, held: Entries) -> Entry:
    """The least recently read entry of a model."""
    return min((entry for entry in held.values() if entry.model == model), key=lambda entry: entry.read)


@dataclass(slots=True)
class Verdicts:
    """What an engine evicted, held against a policy: `wrong` says of each mistake who left instead of whom."""

    evictions: int = 0
    by_model: dict[str, int] = field(default_factory=dict)
    wrong: list[tuple[Name | None, Name]] = field(default_factory=list)
    early: int = 0  # evictions for which there was no need
    newer: int = 0  # where somebody stayed who had been read before and came before


def judged(
    policy: Policy,
    capacity_bytes: int,
    asked: Sequence[tuple[Name, int, float]],
    evicted: Sequence[Sequence[Name]],
) -> Verdicts:
    """Play requests, (name, size, density) of each, and judge who was evicted at each of them.

    Who was evicted leaves here too, whatever the policy says: one mistake is one mistake.
    """
    held: Entries = {}
    found = Verdicts()
    for number, ((name, size_bytes, density), leaving) in enumerate(zip(asked, evicted, strict=True)):
        spared = 0  # what the last of them made free
        for victim in leaving:
            spared = _judge_one(policy, held, victim, found)
        entry = held.get(name)
        if entry is None:
            entry = held[name] = Entry(name, size_bytes, density, number, number)
            policy.came(entry, held)
        else:
            entry.read, entry.uses = number, entry.uses + 1
            policy.read(entry, held)
        total = sum(each.size_bytes for each in held.values())
        found.early += bool(leaving) and total + spared <= capacity_bytes
    return found


def _judge_one(policy: Policy, held: Entries, victim: Name, found: Verdicts) -> int:
    """Note one eviction; the bytes that it made free."""
    found.evictions += 1
    found.by_model[victim[0]] = found.by_model.get(victim[0], 0) + 1
    entry = held.get(victim)
    allowed = policy.next(held) if held else []
    if entry is None:
        found.wrong.append((None, victim))
        return 0
    if entry not in allowed:
        found.wrong.append((allowed[0].name, victim))
    found.newer += any(other.read < entry.read for other in held.values())
    policy.left(entry, held)
    del held[victim]
    return entry.size_bytes
