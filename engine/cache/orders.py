"""All eviction policies, in a row: each answers one question, which block leaves next.

An order knows slots: small numbers that stand for blocks. It holds those of one tier, and of one model or of all
models, as the allocation wants it. Lists run through slots (`Links`), so a block costs sixteen bytes in whatever
list it stands, and every step is O(1).

Chains: a block may leave only when nothing that hangs on it is in its tier, and nobody reads it; the cache tells that
by `busy`. A request touches only the last block of what it read: all before it are busy until that one is gone, and
then take its place (`inherit`), so a touch costs the same whatever the length of the prefix, and a chain loses its
tail before its head.
"""

from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from math import inf, log2
from typing import ClassVar, Final, Protocol

from engine.named import Named
from engine.native import append, extend, i64, vec
from engine.settings import at_least, require

NOWHERE: Final = 0


class Links:
    """Doubly linked rings through slots. Slot 0 is nobody; a ring is known by its `head`, a slot of its own.

    `after[head]` is the first of a ring, `before[head]` its last. A slot is in one ring at most, and
    `after[slot] == NOWHERE` when it is in none. `used[slot]` is when its block was last read, in ticks of the cache's
    own. A column that grows is another one afterwards: nobody keeps one while slots may be taken.
    """

    __slots__ = ("after", "before", "free", "used")

    def __init__(self) -> None:
        self.before = vec[i64]([NOWHERE])
        self.after = vec[i64]([NOWHERE])
        self.used = vec[i64]([0])
        self.free: list[int] = []

    def grow(self, more: int) -> None:
        """Have so many slots more, which are in no ring, and not given to anybody either."""
        self.before = extend(self.before, vec[i64]([NOWHERE] * more))
        self.after = extend(self.after, vec[i64]([NOWHERE] * more))
        self.used = extend(self.used, vec[i64]([0] * more))

    def take(self) -> int:
        """A slot that nobody uses."""
        if self.free:
            return self.free.pop()
        self.before = append(self.before, NOWHERE)
        self.after = append(self.after, NOWHERE)
        self.used = append(self.used, 0)
        return len(self.after) - 1

    def ring(self) -> int:
        """The head of a new, empty ring."""
        head = self.take()
        self.before[head] = self.after[head] = head
        return head

    def insert(self, slot: int, next_slot: int) -> None:
        """Put a slot that is in no ring before another one; before a head: at the end of its ring."""
        before, after = self.before, self.after
        previous = before[next_slot]
        after[previous] = before[next_slot] = slot
        before[slot] = previous
        after[slot] = next_slot

    def unlink(self, slot: int) -> None:
        """Take a slot out of its ring."""
        before, after = self.before, self.after
        previous, following = before[slot], after[slot]
        after[previous] = following
        before[following] = previous
        after[slot] = NOWHERE

    def move(self, slot: int, next_slot: int) -> None:
        """Put a slot, in a ring or in none, before another one."""
        before, after = self.before, self.after
        following = after[slot]
        if following:
            previous = before[slot]
            after[previous] = following
            before[following] = previous
        previous = before[next_slot]
        after[previous] = before[next_slot] = slot
        before[slot] = previous
        after[slot] = next_slot

    def join(self, ring: int, other: int) -> None:
        """Put all of another ring at the end of this one; the other's head is given back."""
        before, after = self.before, self.after
        first, last = after[other], before[other]
        if first != other:
            previous = before[ring]
            after[previous], before[first] = first, previous
            after[last], before[ring] = ring, last
        self.give_back(other)

    def give_back(self, slot: int) -> None:
        """A slot that nobody uses any more, in no ring; or the head of an empty ring."""
        self.after[slot] = NOWHERE
        self.free.append(slot)


class Order(Protocol):
    """Who leaves next among the blocks of one tier.

    `busy(slot)` says whether a block may not leave now. Busy blocks may stay in the order or be put aside; who was
    put aside comes back by `touch` or `inherit`. So may a block that was never added because it was busy from its
    first moment. What is known of a slot is forgotten when the block leaves: the next one in it starts anew.
    """

    # whether a parent that inherits is the next victim, unless it stood there already
    keeps_place: ClassVar[bool]

    def add(self, slot: int, key: bytes, density: float) -> None:
        """A block is new here. `density`: what it costs to compute it again, in ns a byte."""

    def touch(self, slot: int) -> None:
        """The block at the end of what a request read, or a block that was put aside and is not busy any more."""

    def inherit(self, parent: int, child: int) -> None:
        """`child` is about to leave this tier, and was the last to keep `parent` busy here.

        The parent has been used whenever the child was: it is to stand where the child stands, or later.
        """

    def leave(self, slot: int, key: bytes) -> None:
        """The block was evicted. Policies with a memory remember its key."""

    def forget(self, slot: int) -> None:
        """The block went for another reason, to another tier or with its model."""

    def victim(self) -> int:
        """The block that should leave next, not busy; NOWHERE when there is none. It stays until told otherwise."""

    def worth(self, slot: int) -> float:
        """What the victim is worth beside victims of other orders of this policy: the least goes first."""


orders: Named[Order] = Named("eviction policy")
Busy = Callable[[int], bool]


class LRU:
    """Least recently used first."""

    keeps_place = True
    __slots__ = ("_busy", "_links", "head")

    def __init__(self, links: Links, busy: Busy) -> None:
        self._links = links
        self._busy = busy
        self.head = links.ring()

    def add(self, slot: int, key: bytes, density: float) -> None:
        links, head = self._links, self.head
        before, after = links.before, links.after  # written out: a call costs as much again
        last = before[head]
        after[last] = before[head] = slot
        before[slot] = last
        after[slot] = head

    def touch(self, slot: int) -> None:
        before, after, head = self._links.before, self._links.after, self.head
        following = after[slot]
        if following == head:
            return
        if following:
            previous = before[slot]
            after[previous] = following
            before[following] = previous
        last = before[head]
        after[last] = before[head] = slot
        before[slot] = last
        after[slot] = head

    def inherit(self, parent: int, child: int) -> None:
        before, after = self._links.before, self._links.after
        if after[parent]:
            return
        following = after[child]
        if following:  # it gives its place away at once
            previous = before[child]
            after[previous] = before[following] = parent
            before[parent] = previous
            after[parent] = following
            after[child] = NOWHERE
        else:
            self._links.insert(parent, after[self.head])

    def forget(self, slot: int) -> None:
        after = self._links.after
        following = after[slot]
        if following:
            before = self._links.before
            previous = before[slot]
            after[previous] = following
            before[following] = previous
            after[slot] = NOWHERE

    def leave(self, slot: int, key: bytes) -> None:
        self.forget(slot)

    def victim(self) -> int:
        after, head, busy = self._links.after, self.head, self._busy
        while (slot := after[head]) != head:
            if not busy(slot):
                return slot
            self._links.unlink(slot)
        return NOWHERE

    def worth(self, slot: int) -> float:
        read: int = self._links.used[slot]
        return read


class FIFO(LRU):
    """First in, first out: to be read changes nothing."""

    __slots__ = ()

    def touch(self, slot: int) -> None:
        if not self._links.after[slot] and not self._busy(slot):
            self._links.insert(slot, self._links.after[self.head])  # it was put aside as the oldest of all


class SIEVE(LRU):
    """First in, first out, with a second chance that moves nobody.

    A hand walks from the oldest to the newest, lets those stay that were read since it last passed, and takes the
    first that was not. A byte a slot. A victim costs a step for each block it finds read, so at most one for each
    read there was.
    """

    keeps_place = False
    __slots__ = ("_hand", "_read")

    def __init__(self, links: Links, busy: Busy) -> None:
        super().__init__(links, busy)
        self._hand = self.head
        self._read = bytearray()

    def add(self, slot: int, key: bytes, density: float) -> None:
        if slot >= len(self._read):
            self._read.extend(bytes(slot + 1))
        before, after, head = self._links.before, self._links.after, self.head
        last = before[head]
        after[last] = before[head] = slot
        before[slot] = last
        after[slot] = head

    def touch(self, slot: int) -> None:
        if self._links.after[slot]:
            self._read[slot] = True
            return
        if slot >= len(self._read):
            self._read.extend(bytes(slot + 1))
        self._read[slot] = True
        if not self._busy(slot):
            self._links.insert(slot, self._hand)  # the hand has passed it

    def inherit(self, parent: int, child: int) -> None:
        after = self._links.after
        if max(parent, child) >= len(self._read):
            self._read.extend(bytes(max(parent, child) + 1))
        self._read[parent] |= self._read[child]
        if not after[parent]:
            self._links.insert(parent, child if after[child] else self._hand)
            if self._hand == child:
                self._hand = parent

    def forget(self, slot: int) -> None:
        before, after = self._links.before, self._links.after
        following = after[slot]
        if following:
            if slot == self._hand:
                self._hand = following
            previous = before[slot]
            after[previous] = following
            before[following] = previous
            after[slot] = NOWHERE
        if slot < len(self._read):
            self._read[slot] = False

    def victim(self) -> int:
        after, head, read, busy, hand = self._links.after, self.head, self._read, self._busy, self._hand
        while True:
            if hand == head:
                hand = after[head]
                if hand == head:
                    self._hand = head
                    return NOWHERE
            following = after[hand]
            if read[hand]:
                read[hand] = False
            elif busy(hand):
                self._links.unlink(hand)
            else:
                self._hand = hand
                return hand
            hand = following


MOST_USES = 2**31 - 1
TICKS = 2.0**-42  # of ticks, a fraction of one use: among equally often used blocks the oldest goes first


class LFU:
    """Least often used first, among those the one that came to its count first.

    `ageing_every`: every count is halved each time that so many uses have been counted; 0 for never, and then what
    was popular once stays for ever. A ring for each count, and the counts in a sorted list of some hundreds.
    Eight bytes a slot: the count, and when it was last brought up to date, because halving walks through the rings
    and not through the slots.
    """

    keeps_place = False
    __slots__ = (
        "_age",
        "_ageing_every",
        "_busy",
        "_counts",
        "_halved",
        "_links",
        "_rings",
        "_until_ageing",
        "_uses",
    )

    def __init__(self, links: Links, busy: Busy, ageing_every: int = 0) -> None:
        self._links = links
        self._busy = busy
        self._uses = array("i")  # after the first
        self._halved = array("i")
        self._rings: dict[int, int] = {}
        self._counts: list[int] = []
        self._age = 0
        at_least("eviction.ageing_every", ageing_every, 0)
        self._ageing_every = self._until_ageing = ageing_every

    def add(self, slot: int, key: bytes, density: float) -> None:
        if slot >= len(self._uses):
            self._grow(slot)
        self._stand(slot, 0)

    def touch(self, slot: int) -> None:
        before, after, rings = self._links.before, self._links.after, self._rings
        if slot >= len(self._uses):
            self._grow(slot)
        uses = self._uses[slot] >> (self._age - self._halved[slot])
        more = uses + 1 if uses < MOST_USES else uses
        self._uses[slot], self._halved[slot] = more, self._age
        if not after[slot]:
            if not self._busy(slot):
                self._stand(slot, more)
        elif (
            before[slot] == after[slot] and more not in rings
        ):  # alone: its ring becomes that of the next count
            rings[more] = rings.pop(uses)
            self._counts[bisect_left(self._counts, uses)] = more
        else:
            self._take_out(slot, uses)
            self._stand(slot, more)
        if self._ageing_every:
            self._until_ageing -= 1
            if not self._until_ageing:
                self._halve()

    def inherit(self, parent: int, child: int) -> None:
        after = self._links.after
        if max(parent, child) >= len(self._uses):
            self._grow(max(parent, child))
        own, through_child = self._count(parent), self._count(child)
        if after[parent]:
            if not through_child:
                return
            self._take_out(parent, own)
        self._stand(
            parent, min(own + through_child, MOST_USES), NOWHERE if own or not after[child] else child
        )

    def forget(self, slot: int) -> None:
        if self._links.after[slot]:
            self._take_out(slot, self._count(slot))
        if slot < len(self._uses):
            self._uses[slot] = 0

    def leave(self, slot: int, key: bytes) -> None:
        self.forget(slot)

    def victim(self) -> int:
        counts, rings, after, busy = self._counts, self._rings, self._links.after, self._busy
        while counts:
            slot = after[rings[counts[0]]]
            if not busy(slot):
                return slot
            self._take_out(slot, counts[0])
        return NOWHERE

    def worth(self, slot: int) -> float:
        read: int = self._links.used[slot]
        return self._count(slot) + read * TICKS

    def _grow(self, slot: int) -> None:
        self._uses.frombytes(bytes(4 * (slot + 1)))
        self._halved.frombytes(bytes(4 * (slot + 1)))

    def _count(self, slot: int) -> int:
        return self._uses[slot] >> (self._age - self._halved[slot])

    def _stand(self, slot: int, uses: int, next_slot: int = NOWHERE) -> None:
        """Put a slot that is in no ring into the ring of its count, at the end or before another one."""
        self._uses[slot], self._halved[slot] = uses, self._age
        if not next_slot:
            ring = self._rings.get(uses, NOWHERE)
            if not ring:
                ring = self._rings[uses] = self._links.ring()
                insort(self._counts, uses)
            next_slot = ring
        before, after = self._links.before, self._links.after
        previous = before[next_slot]
        after[previous] = before[next_slot] = slot
        before[slot] = previous
        after[slot] = next_slot

    def _take_out(self, slot: int, uses: int) -> None:
        before, after = self._links.before, self._links.after
        previous, following = before[slot], after[slot]
        after[previous] = following
        before[following] = previous
        after[slot] = NOWHERE
        if previous == following:  # only the head is left
            self._links.give_back(self._rings.pop(uses))
            del self._counts[bisect_left(self._counts, uses)]

    def _halve(self) -> None:
        """Halve every count: two rings become one, those with the lower count in front."""
        self._age += 1
        self._until_ageing = self._ageing_every
        rings, halves = self._rings, dict[int, int]()
        for uses in self._counts:
            half = uses >> 1
            if half in halves:
                self._links.join(halves[half], rings[uses])
            else:
                halves[half] = rings[uses]
        self._rings, self._counts = halves, list(halves)


MOST_READS = 3  # two bits of a byte, the others are:
MAIN, HERE, END = 4, 8, 16  # in the main queue; known; added or read itself, not only inherited


class S3FIFO:
    """Two queues, first in, first out: a small one that tries new blocks, and a main one for those that were read.

    A block that was read `reads` times in the small queue, `small_share` of the tier, goes on to the main one, where
    each read, up to three, is worth another round. One that failed leaves its key, and joins the main queue at once
    when it comes again. Keys are remembered for `memory_share` of the blocks held. A byte a slot; a key costs some
    150 bytes.
    """

    keeps_place = False
    __slots__ = (
        "_busy",
        "_gone",
        "_held",
        "_held_main",
        "_links",
        "_main",
        "_main_share",
        "_memory_share",
        "_reads",
        "_small",
        "_state",
    )

    def __init__(
        self,
        links: Links,
        busy: Busy,
        small_share: float = 0.1,
        memory_share: float = 0.9,
        reads: int = 2,
    ) -> None:
        self._links = links
        self._busy = busy
        self._small, self._main = links.ring(), links.ring()
        self._held = self._held_main = 0
        self._state = bytearray()
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        require("eviction.small_share", small_share, 0 <= small_share <= 1, "from 0 to 1")
        at_least("eviction.memory_share", memory_share, 0)
        require(
            "eviction.reads", reads, 0 <= reads <= MOST_READS, f"from 0 to {MOST_READS}: more are not counted"
        )
        self._main_share = 1 - small_share
        self._memory_share = memory_share
        self._reads = reads

    def add(self, slot: int, key: bytes, density: float) -> None:
        if slot >= len(self._state):
            self._state.extend(bytes(slot + 1))
        self._held += 1
        if key in self._gone:
            del self._gone[key]
            self._held_main += 1
            self._state[slot] = HERE | END | MAIN
            self._links.insert(slot, self._main)
        else:
            self._state[slot] = HERE | END
            self._links.insert(slot, self._small)

    def touch(self, slot: int) -> None:
        state = self._know(slot)
        self._state[slot] = END | (state + 1 if state & MOST_READS < MOST_READS else state)
        if not self._links.after[slot] and not self._busy(slot):
            self._links.insert(
                slot, self._links.after[self._queue(slot)]
            )  # it was put aside as the first of its queue

    def inherit(self, parent: int, child: int) -> None:
        after = self._links.after
        own, of_child = self._know(parent), self._know(child)
        reads = max(own & MOST_READS, of_child & MOST_READS)
        self._state[parent] = own & ~MOST_READS | of_child & MAIN | reads
        is_promoted = of_child & MAIN > own & MAIN
        self._held_main += is_promoted
        if is_promoted or not after[parent]:
            in_line = after[child] and self._queue(child) == self._queue(parent)
            self._links.move(parent, child if in_line else after[self._queue(parent)])

    def leave(self, slot: int, key: bytes) -> None:
        if self._know(slot) & (MAIN | END) == END:
            gone = self._gone
            gone[key] = None
            while len(gone) > self._memory_share * self._held:
                gone.popitem(last=False)
        self.forget(slot)

    def forget(self, slot: int) -> None:
        if slot < len(self._state) and self._state[slot]:
            self._held -= 1
            self._held_main -= self._state[slot] & MAIN == MAIN
            self._state[slot] = 0
        if self._links.after[slot]:
            self._links.unlink(slot)

    def victim(self) -> int:
        after, state, busy, links = self._links.after, self._state, self._busy, self._links
        small, main = self._small, self._main
        while True:
            first, oldest = after[small], after[main]
            if oldest != main and (first == small or self._held_main > self._main_share * self._held):
                if state[oldest] & MOST_READS:
                    state[oldest] -= 1
                    links.move(oldest, main)
                elif busy(oldest):
                    links.unlink(oldest)
                else:
                    return oldest
            elif first == small:
                return NOWHERE
            elif state[first] & MOST_READS >= self._reads:
                state[first] = state[first] & ~MOST_READS | MAIN
                self._held_main += 1
                links.move(first, main)
            elif busy(first):
                links.unlink(first)
            else:
                return first

    def worth(self, slot: int) -> float:
        read: int = self._links.used[slot]
        return read

    def _queue(self, slot: int) -> int:
        return self._main if self._state[slot] & MAIN else self._small

    def _know(self, slot: int) -> int:
        """The state of a block, which counts as held from now on."""
        if slot >= len(self._state):
            self._state.extend(bytes(slot + 1))
        if not self._state[slot]:
            self._state[slot] = HERE
            self._held += 1
        return self._state[slot]


class ARC:
    """Two lists, each least recently used first, of blocks that were read once and of those that were read again.

    Beside each stand the keys of the blocks it lost: one that comes back shows that its list was too short, and moves
    the target between them. A byte a slot; as many keys are remembered as blocks are held, some 150 bytes each.
    """

    keeps_place = False
    __slots__ = (
        "_again",
        "_busy",
        "_gone_again",
        "_gone_once",
        "_held",
        "_held_once",
        "_links",
        "_once",
        "_state",
        "_target",
    )

    def __init__(self, links: Links, busy: Busy) -> None:
        self._links = links
        self._busy = busy
        self._once, self._again = links.ring(), links.ring()
        self._held = self._held_once = 0
        self._state = bytearray()
        self._gone_once: OrderedDict[bytes, None] = OrderedDict()
        self._gone_again: OrderedDict[bytes, None] = OrderedDict()
        self._target = 0.0  # how many blocks that were read once should be here

    def add(self, slot: int, key: bytes, density: float) -> None:
        self._know(slot)
        self._state[slot] |= END
        if (self._gone_once or self._gone_again) and self._comes_back(key):
            self._read_again(slot)
        self._links.insert(slot, self._list(slot))

    def touch(self, slot: int) -> None:
        state = self._know(slot)
        if not state & MAIN:
            self._read_again(slot)
        self._state[slot] |= END
        self._links.move(slot, self._again)

    def inherit(self, parent: int, child: int) -> None:
        after = self._links.after
        own, of_child = self._know(parent), self._know(child)
        is_moved = of_child & MAIN > own & MAIN
        if is_moved:
            self._read_again(parent)
        if is_moved or not after[parent]:
            in_line = after[child] and self._list(child) == self._list(parent)
            self._links.move(parent, child if in_line else after[self._list(parent)])

    def leave(self, slot: int, key: bytes) -> None:
        state, held, once, again = self._know(slot), self._held, self._gone_once, self._gone_again
        if state & END:
            (again if state & MAIN else once)[key] = None
        self.forget(slot)
        while once and self._held_once + len(once) > held:
            once.popitem(last=False)
        while len(once) + len(again) > held:
            (again or once).popitem(last=False)

    def forget(self, slot: int) -> None:
        if slot < len(self._state) and self._state[slot]:
            self._held -= 1
            self._held_once -= self._state[slot] & MAIN == 0
            self._state[slot] = 0
        if self._links.after[slot]:
            self._links.unlink(slot)

    def victim(self) -> int:
        after, busy = self._links.after, self._busy
        while True:
            slot, oldest_again = after[self._once], after[self._again]
            if slot == self._once or (oldest_again != self._again and self._held_once <= self._target):
                slot = oldest_again
                if slot == self._again:
                    return NOWHERE
            if not busy(slot):
                return slot
            self._links.unlink(slot)

    def worth(self, slot: int) -> float:
        read: int = self._links.used[slot]
        return read

    def _list(self, slot: int) -> int:
        return self._again if self._state[slot] & MAIN else self._once

    def _know(self, slot: int) -> int:
        """The state of a block, which counts as held from now on."""
        if slot >= len(self._state):
            self._state.extend(bytes(slot + 1))
        if not self._state[slot]:
            self._state[slot] = HERE
            self._held += 1
            self._held_once += 1
        return self._state[slot]

    def _read_again(self, slot: int) -> None:
        self._held_once -= self._state[slot] & MAIN == 0
        self._state[slot] |= MAIN

    def _comes_back(self, key: bytes) -> bool:
        """Whether the key is remembered; if so, the list that lost it gets more room."""
        once, again = self._gone_once, self._gone_again
        if key in once:
            self._target = min(self._held, self._target + max(1.0, len(again) / len(once)))
            del once[key]
            return True
        if key in again:
            self._target = max(0.0, self._target - max(1.0, len(once) / len(again)))
            del again[key]
            return True
        return False


STEPS = 8  # values are told apart by a factor of 2 ** (1 / 8)
COUNTED = 2**16 - 1  # uses
MIDDLE = 512  # the class of a density of 1 ns a byte; densities from 2 ** -64 to 2 ** 64 are told apart


class GDSF:
    """Worth least first: what was lost to evictions so far, when the block was last read, plus its reads x density.

    Reads x density is rounded to classes, eight in a doubling. Within a class the worth grows with the time of the
    last read, so a class is a ring with the least recently read in front, and the victim is the least of the firsts:
    a heap of a few dozen rings. A heap of all blocks would be faster and take another 120 bytes each; this takes 14.

    `level`: what was lost to evictions; orders that are to be compared by `worth` share one.
    """

    keeps_place = False
    __slots__ = (
        "_busy",
        "_class",
        "_density",
        "_firsts",
        "_last_victim",
        "_level",
        "_links",
        "_listed",
        "_rings",
        "_uses",
        "_worth",
    )

    def __init__(self, links: Links, busy: Busy, level: "array[float] | None" = None) -> None:
        self._links = links
        self._busy = busy
        self._level = array("d", [0.0]) if level is None else level
        self._worth = array("d")
        self._density = array("h")
        self._uses = array("H")  # after the first
        self._class = array("h")
        self._rings: dict[int, tuple[int, float]] = {}
        self._firsts: list[tuple[float, int]] = []  # for each ring in use, what its first is worth at least
        self._listed: set[int] = set()
        self._last_victim = NOWHERE

    def add(self, slot: int, key: bytes, density: float) -> None:
        if slot >= len(self._worth):
            self._grow(slot)
        steps = round(STEPS * log2(density)) if 0 < density < inf else 0
        self._density[slot] = known = min(max(steps + MIDDLE, 1), 2 * MIDDLE)
        self._stand(slot, known)

    def touch(self, slot: int) -> None:
        if slot >= len(self._worth):
            self._grow(slot)
        uses = self._uses[slot]
        if uses < COUNTED:
            self._uses[slot] = uses = uses + 1
        if self._density[slot]:
            self._stand(slot, self._density[slot] + round(STEPS * log2(uses + 1)))
        elif not self._busy(slot):
            self._stand(slot, MIDDLE)

    def inherit(self, parent: int, child: int) -> None:
        if max(parent, child) >= len(self._worth):
            self._grow(max(parent, child))
        after, uses, density, of_child = self._links.after, self._uses, self._density, self._class[child]
        if after[parent] and not uses[child] and self._worth[parent] >= self._worth[child]:
            return
        density[parent] = density[parent] or density[child]
        uses[parent] = min(uses[parent] + uses[child], COUNTED)
        class_of = max(of_child, density[parent] + round(STEPS * log2(uses[parent] + 1)))
        if after[child] and class_of == of_child:
            self._class[parent], self._worth[parent] = class_of, self._worth[child]
            self._links.move(parent, child)
        else:
            self._stand(parent, class_of)

    def forget(self, slot: int) -> None:
        if slot == self._last_victim:
            self._level[0] = max(self._level[0], self._worth[slot])
            self._last_victim = NOWHERE
        before, after = self._links.before, self._links.after
        following = after[slot]
        if following:
            previous = before[slot]
            after[previous] = following
            before[following] = previous
            after[slot] = NOWHERE
        if slot < len(self._worth):
            self._density[slot] = self._uses[slot] = 0

    def leave(self, slot: int, key: bytes) -> None:
        self.forget(slot)

    def victim(self) -> int:
        firsts, after, busy = self._firsts, self._links.after, self._busy
        while firsts:
            at_least, class_of = firsts[0]
            ring = self._rings[class_of][0]
            slot = after[ring]
            if slot == ring:
                heappop(firsts)
                self._listed.remove(class_of)
            elif self._worth[slot] > at_least:
                heapreplace(firsts, (self._worth[slot], class_of))
            elif busy(slot):
                self._links.unlink(slot)
            else:
                self._last_victim = slot
                return slot
        return NOWHERE

    def worth(self, slot: int) -> float:
        return self._worth[slot]

    def _grow(self, slot: int) -> None:
        more = slot + 1
        self._worth.frombytes(bytes(8 * more))
        for per_slot in (self._density, self._uses, self._class):
            per_slot.frombytes(bytes(2 * more))

    def _stand(self, slot: int, class_of: int) -> None:
        """Put a slot at the end of the ring of its class, as read now."""
        ring, value = self._rings.get(class_of) or self._open(class_of)
        worth = self._level[0] + value
        self._class[slot], self._worth[slot] = class_of, worth
        before, after = self._links.before, self._links.after
        if (following := after[slot]) != NOWHERE:
            previous = before[slot]
            after[previous] = following
            before[following] = previous
        last = before[ring]
        if last == ring and class_of not in self._listed:
            self._listed.add(class_of)
            heappush(self._firsts, (worth, class_of))
        after[last] = before[ring] = slot
        before[slot] = last
        after[slot] = ring

    def _open(self, class_of: int) -> tuple[int, float]:
        """A new ring, and what a read of a block in it is worth."""
        self._rings[class_of] = opened = self._links.ring(), 2.0 ** ((class_of - MIDDLE) / STEPS)
        return opened


class Smallest(LRU):
    """The model that holds least gives first, its least recently used block.

    Of a model, not of an entry: the blocks of one model are all of one size, so the smallest entry would always be
    one of the same model's. A model that holds little hits little, and the others keep their long prefixes whole.
    """

    __slots__ = ()

    @staticmethod
    def between(_turns: int, held_bytes: int) -> float:
        """Whose turn it is: the least goes first."""
        return held_bytes


class RoundRobin(LRU):
    """The models give in turn, each its least recently used block."""

    __slots__ = ()

    @staticmethod
    def between(turns: int, _held_bytes: int) -> float:
        """Whose turn it is: the least goes first."""
        return turns


for _name, _order in (
    ("lru", LRU),
    ("fifo", FIFO),
    ("sieve", SIEVE),
    ("lfu", LFU),
    ("s3fifo", S3FIFO),
    ("arc", ARC),
    ("gdsf", GDSF),
    ("smallest", Smallest),
    ("round_robin", RoundRobin),
):
    orders(_name)(_order)


def check_order(name: str, options: dict[str, object]) -> None:
    """Raise UnknownName or BadSettings for an eviction policy that cannot be made."""
    links = Links()
    orders.make(name, links, lambda _slot: False, **options)
