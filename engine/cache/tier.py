"""One tier: its bytes, the orders in which its blocks leave, and whose turn it is to give when room is needed."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heapreplace
from typing import Any, Final

from engine.cache.allocation import Allocation, Rank
from engine.cache.holders import Holder
from engine.cache.orders import FIFO, LRU, NOWHERE, Order, orders
from engine.cache.table import CHILD, Table
from engine.settings import CacheSettings, TierSettings

ENDLESS: Final = 1 << 62
UNKNOWN: Rank = (float("-inf"), 0.0)


def endless() -> int:
    """The room on the way to a tier where nothing has to be carried."""
    return ENDLESS


class Part:
    """The blocks of one model in one tier, or of all models where the tier is not divided."""

    __slots__ = ("holder", "index", "is_queued", "order", "sure_bytes", "turns")

    def __init__(self, index: int, order: Order, holder: Holder | None) -> None:
        self.index = index
        self.order = order
        self.holder = holder
        self.sure_bytes = 0
        self.turns = 0  # how often it gave
        self.is_queued = False


class Tier:
    """A tier's books. Metadata only: payloads lie in `payloads` or in a store, and nothing here looks at them.

    `copies` are blocks that live in a hotter tier and are written here too, the oldest first. Where they were only
    left behind they go before anybody else when room is needed; where they are written on purpose (`write`) they go
    last: they are what is found again after a crash. `payloads` has what is in memory, by slot.
    """

    def __init__(
        self,
        rank: int,
        name: str,
        settings: TierSettings,
        cache: CacheSettings,
        table: Table,
        pins: dict[int, int],
    ) -> None:
        self.rank = rank
        self.name = name
        self.settings = settings
        self.capacity_bytes = settings.capacity_bytes
        self.used_bytes = 0
        self.is_open = True  # closed: nothing new comes here, after faults of its store
        self.copies: OrderedDict[int, int] = OrderedDict()  # slot -> bytes
        self.copied_bytes = 0
        self.drops_copies_first = settings.write == "back"
        self.sizes: dict[int, int] = {}  # of blocks that are not of their model's usual size here
        self.payloads: dict[int, Any] = {}
        self.room_bytes: Callable[[], int] = endless  # how much may be sent here, beside what is on its way
        self.parts: list[Part] = []
        self._table = table
        self._pins = pins
        self._eviction = cache.eviction
        self._options = cache.options
        self._heap: list[tuple[Rank, int]] = []
        self._between = getattr(orders.find(cache.eviction), "between", None)
        self.is_divided = False
        self.order: Order | None = None  # of all blocks, where it is not divided
        self.ring: LRU | None = None  # the same, where that is a ring and nothing else
        self.pours_to: Tier | None = None  # the next tier, where both are rings
        self._allocation: Allocation

    def divide(self, allocation: Allocation, *, by_model: bool) -> None:
        """Be divided that way from now on. Called once, before the first block.

        `by_model`: keep the blocks of each model apart although the allocation would not.
        """
        self._allocation = allocation
        self.is_divided = by_model or allocation.is_divided or self._between is not None
        if not self.is_divided:
            self.order = order = self._make_order()
            self.parts.append(Part(0, order, None))
            made: type = type(order)
            is_ring = made in {LRU, FIFO}  # what is derived from them may do more
            if is_ring and isinstance(order, LRU):
                self.ring = order

    def admit(self, holder: Holder) -> None:
        """Make room in the books for a new model."""
        if self.is_divided:
            self.parts.append(Part(holder.index, self._make_order(), holder))

    @property
    def num_blocks(self) -> int:
        """How many blocks are here."""
        return self._table.num_blocks[self.rank]

    def part_of(self, holder: Holder) -> Part:
        return self.parts[holder.index if self.is_divided else 0]

    def order_of(self, holder: Holder) -> Order:
        return self.parts[holder.index if self.is_divided else 0].order

    def add(self, slot: int, key: bytes, holder: Holder) -> None:
        """A block that may leave one day stands in its order from now on."""
        ring = self.ring
        if ring is not None:  # that costs are nothing to, and whose methods need not be looked for
            ring.add(slot, key, 0.0)
            return
        part = self.parts[holder.index if self.is_divided else 0]
        part.order.add(slot, key, holder.recompute_ns / holder.block_bytes[self.rank])
        if not part.is_queued:
            self.queue(part)

    def touch(self, slot: int, holder: Holder) -> None:
        ring = self.ring
        if ring is not None:
            ring.touch(slot)
            return
        part = self.parts[holder.index if self.is_divided else 0]
        part.order.touch(slot)
        if not part.is_queued:
            self.queue(part)

    def busy(self, slot: int) -> bool:
        """Whether a block may not leave this tier: another one of this tier hangs on it, or somebody reads it."""
        return self._table.kids[slot] >= CHILD or slot in self._pins

    def spare_blocks(self, holder: Holder) -> int:
        """How many blocks a model can give in one go before somebody else might have to, where it is divided."""
        spare_bytes = holder.held_bytes[self.rank] - self.parts[holder.index].sure_bytes
        return max(1, -(-spare_bytes // holder.block_bytes[self.rank]))

    def rebalance(self, sure_bytes: Sequence[int]) -> None:
        """Take over what each model is sure of."""
        if self.is_divided:
            for part, sure in zip(self.parts, sure_bytes, strict=True):
                part.sure_bytes = sure
            self._heap.clear()
            for part in self.parts:
                self.queue(part)

    def victim(self, holder: Holder, needed_bytes: int, tick: int) -> int:
        """The block that leaves when `holder` needs room; NOWHERE when nobody can give.

        Those who hold more than they are sure of give, the least rank first. `holder` itself is one of them when the
        new bytes would take it beyond that.
        """
        if not self.is_divided:
            return self.parts[0].order.victim()
        own = self.parts[holder.index]
        giver, least = self._giver(tick)
        if giver is not own and holder.held_bytes[self.rank] + needed_bytes > own.sure_bytes:
            slot = own.order.victim()
            if slot and (giver is None or self._rank(own, slot, tick) < least):
                giver = own
        if giver is None:
            return own.order.victim()
        giver.turns += 1
        return giver.order.victim()

    def borrowed(self, tick: int) -> int:
        """The block that leaves next of those who hold more than they are sure of; NOWHERE where nobody does."""
        if not self.is_divided:
            return self.parts[0].order.victim()
        giver, _ = self._giver(tick)
        return NOWHERE if giver is None else giver.order.victim()

    def _giver(self, tick: int) -> tuple[Part | None, Rank]:
        """Of all who hold more than they are sure of, the one whose victim ranks least. Amortised O(log models)."""
        heap, parts, rank = self._heap, self.parts, self.rank
        while heap:
            known, index = heap[0]
            part = parts[index]
            holder = part.holder
            assert holder is not None
            if holder.held_bytes[rank] <= part.sure_bytes or not (slot := part.order.victim()):
                heappop(heap)
                part.is_queued = False
                continue
            now = self._rank(part, slot, tick)
            if now > known:
                heapreplace(heap, (now, index))
                if heap[0][1] != index:
                    continue
            return part, now
        return None, (0.0, 0.0)

    def queue(self, part: Part) -> None:
        """Let a model be asked again: its true rank is found when its turn comes."""
        part.is_queued = True
        if self.is_divided:
            heappush(self._heap, (UNKNOWN, part.index))

    def _rank(self, part: Part, slot: int, tick: int) -> Rank:
        holder = part.holder
        assert holder is not None
        worth = (
            part.order.worth(slot)
            if self._between is None
            else self._between(part.turns, holder.held_bytes[self.rank])
        )
        age = tick - self._table.links.used[slot]
        return self._allocation.rank(holder, self.rank, worth, age)

    def _make_order(self) -> Order:
        return orders.make(self._eviction, self._table.links, self.busy, **self._options)
