"""What is known of each block, by slot: columns of numbers, so that a million blocks stay small.

A block costs its name (64 bytes), its place in the dictionary (42 to 60), its slot as an object (32), two links, the
way back to its name, the block before it, its namespace, its tier, its children and its last use (8 each), 4 bytes
for reads, and a mark of a byte. `tests/benchmarks/test_cache.py` measures the sum for a million blocks.
"""

from array import array
from typing import Final

from engine.cache.holders import NOBODY, Space
from engine.cache.orders import NOWHERE, Links
from engine.native import extend, i64, vec

NO_TIER: Final = 255
CHILD: Final = 2
"""Of a block's `kids`: one child in its own tier. The bit below says whether any lies elsewhere."""

ALL: Final = 5
"""Of a block's children elsewhere: where their number in all tiers stands, behind those of each of five."""

MOST_AHEAD: Final = 4_096
"""Slots that are made ahead of need, at most: one at a time they cost ten times as much."""


class Table:
    """All resident blocks. Slot 0 is nobody, and the parent of every first block, whose children nobody counts.

    What changes with every move is in columns that grow with the table: whoever wants one asks for it anew. A block's
    children are one number, whatever tiers they lie in: twice those in its own tier, which is where nearly all are,
    and one more where others lie elsewhere (`elsewhere`, by tier, and in all). It stays small, as Python likes it.
    """

    __slots__ = (
        "elsewhere",
        "ends",
        "home",
        "keys",
        "kids",
        "links",
        "num_blocks",
        "parent",
        "reads",
        "slots",
        "space",
    )

    def __init__(self, num_tiers: int) -> None:
        assert num_tiers <= ALL, "a cache has five tiers at most"
        self.links = Links()
        self.slots: dict[bytes, int] = {}
        self.num_blocks = [0] * num_tiers  # by tier
        self.keys: list[bytes | None] = [None]
        self.parent = vec[i64]([NOWHERE])
        self.home = vec[i64]([NO_TIER])
        self.kids = vec[i64]([0])
        self.elsewhere: dict[int, list[int]] = {}
        self.space: list[Space] = [NOBODY]
        self.ends = bytearray([0])  # whether a request ended here, rather than passed through
        self.reads = array("I", [0])  # by requests that ended here, or at a block after it that has left

    def _grow(self, more: int) -> None:
        """Have columns for so many slots more."""
        self.keys += [None] * more
        self.parent = extend(self.parent, vec[i64]([NOWHERE] * more))
        self.home = extend(self.home, vec[i64]([NO_TIER] * more))
        self.kids = extend(self.kids, vec[i64]([0] * more))
        self.space += [NOBODY] * more
        self.ends += bytes(more)
        self.reads.frombytes(bytes(4 * more))

    def _reserve(self, count: int) -> None:
        """Have so many free slots, and columns for all."""
        free, links = self.links.free, self.links
        more = count - len(free)
        if more > 0:
            more = max(more, min(len(links.after) >> 3, MOST_AHEAD))
            first = len(links.after)
            links.grow(more)
            free[:0] = range(first + more - 1, first - 1, -1)  # who was used before is used first
        missing = len(links.after) - len(self.home)
        if missing > 0:
            self._grow(missing)

    def extend(self, keys: list[bytes], parent: int, space: Space, tier: int = 0) -> int:
        """New blocks of a tier (one or more), one after the other behind `parent`; the slot of the last."""
        count = len(keys)
        self._reserve(count)
        slots, names, parents, spaces = self.slots, self.keys, self.parent, self.space
        home, kids, free = self.home, self.kids, self.links.free
        taken = free[: -count - 1 : -1]
        del free[-count:]
        self.num_blocks[tier] = self.num_blocks[tier] + count
        if home[parent] == tier:
            kids[parent] = kids[parent] + CHILD
        elif parent:
            self._note_elsewhere(parent, tier, 1)
        for slot, key in zip(taken, keys):  # noqa: B905  as many, and compiled, `strict` takes a call for each
            slots[key] = slot
            names[slot] = key
            parents[slot] = parent
            spaces[slot] = space
            home[slot] = tier
            kids[slot] = CHILD
            parent = slot
        kids[parent] = 0
        return parent

    def remove(self, run: list[int]) -> None:
        """Forget blocks of a chain, from the tail up, that have no children but each other."""
        slots, names, home, kids, free = self.slots, self.keys, self.home, self.kids, self.links.free
        reads, spaces, tier, more = self.reads, self.space, home[run[0]], 0
        for slot in run:
            del slots[names[slot]]  # type: ignore[arg-type]
            names[slot] = None
            spaces[slot] = NOBODY
            kids[slot] = 0
            home[slot] = NO_TIER
            read = reads[slot]
            if read:
                more += read
                reads[slot] = 0
        self.num_blocks[tier] = self.num_blocks[tier] - len(run)
        parent = self.parent[run[-1]]
        if more:
            reads[parent] += more
        if home[parent] == tier:
            kids[parent] = kids[parent] - CHILD
        elif parent:
            self._note_elsewhere(parent, tier, -1)
        free += run

    def move(self, run: list[int], tier: int) -> None:
        """Note that blocks of a chain, from the tail up, all of one tier, lie in another one now."""
        home, kids, tail, count = self.home, self.kids, run[0], len(run)
        source = home[tail]
        home[tail] = tier
        if kids[tail]:
            self._recount(tail, source, tier, 0)
        for place in range(1, count):
            slot = run[place]
            home[slot] = tier
            if kids[slot] != CHILD:  # more than the one that comes along
                self._recount(slot, source, tier, 1)
        self.num_blocks[source] = self.num_blocks[source] - count
        self.num_blocks[tier] = self.num_blocks[tier] + count
        parent = self.parent[run[-1]]
        if parent:
            if home[parent] == source:
                kids[parent] = kids[parent] - CHILD
            else:
                self._note_elsewhere(parent, source, -1)
            if home[parent] == tier:
                kids[parent] = kids[parent] + CHILD
            else:
                self._note_elsewhere(parent, tier, 1)

    def _recount(self, slot: int, source: int, tier: int, num_along: int) -> None:
        """Say anew how many children are in a block's own tier, which is another one now.

        `num_along`: of those that were in its tier before, how many came along.
        """
        kids, elsewhere = self.kids, self.elsewhere
        stay = (kids[slot] >> 1) - num_along
        if kids[slot] & 1:
            others = elsewhere[slot]
            here = others[tier]
            others[tier] = 0
            others[ALL] = others[ALL] + stay - here
            if not others[ALL]:
                del elsewhere[slot]
                kids[slot] = CHILD * (num_along + here)
                return
            num_along += here
        elif stay:
            others = elsewhere[slot] = [0, 0, 0, 0, 0, 0]  # compiled, to multiply one takes ten times as long
            others[ALL] = stay
        else:
            kids[slot] = CHILD * num_along
            return
        others[source] = stay
        kids[slot] = CHILD * num_along + 1

    def _note_elsewhere(self, slot: int, tier: int, more: int) -> None:
        """So many children more of a block lie in that tier, which is not its own."""
        others = self.elsewhere.get(slot)
        if others is None:
            others = self.elsewhere[slot] = [0, 0, 0, 0, 0, 0]
            self.kids[slot] = self.kids[slot] + 1
        others[tier] = others[tier] + more
        others[ALL] = others[ALL] + more
        if not others[ALL]:
            del self.elsewhere[slot]
            self.kids[slot] = self.kids[slot] - 1

    def num_children(self, slot: int, tier: int) -> int:
        """How many children of a block lie in that tier."""
        if self.home[slot] == tier:
            return self.kids[slot] >> 1
        others = self.elsewhere.get(slot)
        return others[tier] if others else 0

    def has_kids(self, slot: int) -> bool:
        return self.kids[slot] > 0

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
