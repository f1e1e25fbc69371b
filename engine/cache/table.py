"""What is known of each block, by slot: columns of machine numbers, so that a million blocks stay small.

A block costs its name (64 bytes), its place in the dictionary (42 to 60), its slot as an object (32), two links, the
way back to its name, the block before it and a count for the hottest tier (8 each), 4 bytes for namespace, last use,
reads and a count for each other tier, and two marks of a byte. `tests/benchmarks/test_cache.py` measures the sum for
a million blocks.
"""

from array import array
from typing import Any, Final

from engine.cache.orders import NOWHERE, Links

NO_TIER: Final = 255
MOST_AHEAD: Final = 4_096
"""Slots that are made ahead of need, at most: one at a time they cost ten times as much."""


class Table:
    """All resident blocks. Slot 0 is nobody, and the parent of every first block."""

    __slots__ = ("ends", "home", "keys", "kids", "links", "parent", "reads", "slots", "space", "used")

    def __init__(self, num_tiers: int) -> None:
        self.links = Links()
        self.slots: dict[bytes, int] = {}
        self.keys: list[bytes | None] = [None]
        self.parent = [NOWHERE]
        self.space = array("i", [0])
        self.home = bytearray([NO_TIER])
        self.ends = bytearray([0])  # whether a request ended here, rather than passed through
        self.reads = array("I", [0])  # by requests that ended here, or at a block after it that has left
        self.used = array("I", [0])  # ticks of the last read of a request that ended here
        # resident children, by their tier. Those of the hottest change most: a list takes twice the memory, and to
        # write a number there a tenth of the time
        self.kids: list[Any] = [[0], *[array("I", [0]) for _ in range(1, num_tiers)]]

    def take(self) -> int:
        """A free slot, its columns made."""
        slot = self.links.take()
        if slot >= len(self.home):
            self._grow(slot + 1 - len(self.home))
        return slot

    def _grow(self, more: int) -> None:
        """Have columns for so many slots more."""
        zeros = bytes(4 * more)
        self.keys += [None] * more
        self.parent += [NOWHERE] * more
        self.home += bytes([NO_TIER]) * more
        self.ends += bytes(more)
        hottest, *colder = self.kids
        hottest += [0] * more
        for column in (self.space, self.reads, self.used, *colder):
            column.frombytes(zeros)

    def _reserve(self, count: int) -> None:
        """Have so many free slots, and columns for all."""
        free, links = self.links.free, self.links
        more = count - len(free)
        if more > 0:
            more = max(more, min(len(links.after) >> 3, MOST_AHEAD))
            first = len(links.after)
            links.before += [NOWHERE] * more
            links.after += [NOWHERE] * more
            free[:0] = range(first + more - 1, first - 1, -1)  # who was used before is used first
        missing = len(links.after) - len(self.home)
        if missing > 0:
            self._grow(missing)

    def extend(self, keys: list[bytes], parent: int, space: int, tier: int = 0) -> int:
        """New blocks of a tier (one or more), one after the other behind `parent`; the slot of the last."""
        names, parents, spaces, home, kids = self.keys, self.parent, self.space, self.home, self.kids[tier]
        count = len(keys)
        self._reserve(count)
        free = self.links.free
        taken = free[: -count - 1 : -1]
        del free[-count:]
        self.slots.update(zip(keys, taken, strict=True))
        kids[parent] += 1
        for slot, key in zip(taken, keys, strict=True):
            names[slot] = key
            parents[slot] = parent
            spaces[slot] = space
            home[slot] = tier
            kids[slot] = 1
            parent = slot
        kids[parent] = 0
        return parent

    def remove(self, run: list[int]) -> None:
        """Forget blocks of a chain, from the tail up, that have no children but each other."""
        slots, names, parents, home, free = self.slots, self.keys, self.parent, self.home, self.links.free
        kids = self.kids[home[run[0]]]
        reads = self.reads
        for slot in run:
            parent = parents[slot]
            del slots[names[slot]]  # type: ignore[arg-type]
            names[slot] = None
            reads[parent] += reads[slot]
            reads[slot] = 0
            kids[parent] -= 1
            home[slot] = NO_TIER
        free += run

    def sink(self, run: list[int], tier: int) -> None:
        """Note that blocks of a chain, from the tail up, all of one tier, lie in another one now."""
        home, tail = self.home, run[0]
        above, below = self.kids[home[tail]], self.kids[tier]
        home[tail] = tier
        if len(run) > 1:
            for slot in run[1:]:
                home[slot] = tier
                above[slot] -= 1
                below[slot] += 1
        parent = self.parent[run[-1]]
        above[parent] -= 1
        below[parent] += 1

    def rise(self, run: list[int]) -> None:
        """Note that blocks of a chain, from the head, all of one tier, lie in the hottest one now."""
        self.sink(run[::-1], 0)

    def move(self, slot: int, tier: int) -> None:
        """Note that a block lies in another tier now."""
        self.sink([slot], tier)

    def has_kids(self, slot: int) -> bool:
        return any(kids[slot] for kids in self.kids)

    def match(self, keys: "list[bytes]", upto: int) -> int:
        """How many of the first `upto` keys of a chain are resident, from its head. O(log n): prefix-closed."""
        slots = self.slots
        if not upto or keys[0] not in slots:
            return 0
        low, high = 1, upto
        while low < high:
            middle = (low + high + 1) // 2
            if keys[middle - 1] in slots:
                low = middle
            else:
                high = middle - 1
        return low

    def runs(self, keys: "list[bytes]", count: int) -> list[tuple[int, int]]:
        """The tiers of the first `count` resident blocks of a chain: (tier, end), the hottest first.

        Tiers never get hotter along a chain, so each boundary is found by bisection.
        """
        slots, home = self.slots, self.home
        found, start = [], 0
        while start < count:
            tier = home[slots[keys[start]]]
            if home[slots[keys[count - 1]]] == tier:
                found.append((tier, count))
                break
            low, high = start + 1, count - 1
            while low < high:
                middle = (low + high + 1) // 2
                if home[slots[keys[middle - 1]]] == tier:
                    low = middle
                else:
                    high = middle - 1
            found.append((tier, low))
            start = low
        return found
