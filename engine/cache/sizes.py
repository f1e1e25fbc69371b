"""Transfers where nothing but sizes moves: what they take passes on the clock. That is the simulation.

What goes down waits in a line for each tier, and what stands next in it of one model goes together. Nobody else is
kept waiting: a block that is wanted before it is written is taken from memory.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from engine.cache.cache import PrefixCache
from engine.cache.crossings import Crossings
from engine.cache.holders import Space
from engine.cache.tier import Tier
from engine.cache.ways import Way
from engine.clock import Clock
from engine.settings import GIB

BATCH_BYTES = 16 << 20
"""Blocks of one model that are written together: one extent of a store."""

BATCH_S = 0.01
"""The time of what goes together where only sizes move: as long as a read may have to wait behind it."""


@dataclass(slots=True, eq=False)
class Parcel:
    """Blocks of one namespace that are to be written to a tier."""

    space: Space
    slots: list[int]
    num_bytes: int


class Writer:
    """Who writes the blocks of one tier: as many lots at a time as the tier allows."""

    __slots__ = ("_crossings", "_hops", "_most_bytes", "_most_lots", "_num_busy", "_way", "line", "staged")

    def __init__(self, tier: Tier, ways: list[Way], crossings: Crossings, *, is_below_gpu: bool) -> None:
        self.staged: dict[int, Parcel] = {}  # by slot: what is booked here, and not written yet
        self.line: deque[Parcel] = deque()
        self._way = ways[tier.rank]
        self._crossings = crossings
        # what has to be crossed: from the accelerator to memory, and from there to what is below
        self._hops = [ways[0]] if is_below_gpu else []
        if tier.name != "ram":
            self._hops.append(self._way)
        self._num_busy = 0
        self._most_lots = tier.settings.concurrency
        # no extent bounds what goes together, but a read must not wait for long
        self._most_bytes = max(BATCH_BYTES, round(tier.settings.gib_per_s * GIB * BATCH_S))

    def write(self, space: Space, slots: list[int], size_bytes: int) -> None:
        """Put blocks into the line of those to be written."""
        num_bytes = size_bytes * len(slots)
        parcel = Parcel(space, slots, num_bytes)
        self.staged.update(dict.fromkeys(slots, parcel))
        self.line.append(parcel)
        self._way.queued_bytes += num_bytes

    def begin(self, at_ns: int) -> None:
        """Have what stands in the line written, as far as the tier allows more lots at a time."""
        while self.line and self._num_busy < self._most_lots:
            self._num_busy += 1
            self._next(at_ns)

    def _next(self, at_ns: int) -> None:
        """Write what is next in the line, of one model; what nobody waits for any more takes no time."""
        line, staged, most = self.line, self.staged, self._most_bytes
        while line:
            parcel = line.popleft()
            parcels, total = [parcel], parcel.num_bytes
            if line and total < most:
                holder = parcel.space.holder
                while line and total < most and line[0].space.holder is holder:
                    parcel = line.popleft()
                    parcels.append(parcel)
                    total += parcel.num_bytes
            for parcel in parcels:
                if not staged.keys().isdisjoint(parcel.slots):
                    over = partial(self._crossed, 1, parcels, total)
                    self._crossings.write(self._hops[0], total, over, at_ns)
                    return
            self._way.queued_bytes -= total
        self._num_busy -= 1

    def _crossed(self, hops: int, parcels: list[Parcel], total_bytes: int, at_ns: int) -> None:
        """Cross what comes next, or be there."""
        if hops < len(self._hops):
            over = partial(self._crossed, hops + 1, parcels, total_bytes)
            self._crossings.write(self._hops[hops], total_bytes, over, at_ns)
            return
        way, staged = self._way, self.staged
        way.num_writes += 1
        way.written_bytes += total_bytes
        way.queued_bytes -= total_bytes
        for parcel in parcels:
            for slot in parcel.slots:
                if staged.get(slot) is parcel:
                    del staged[slot]
        self._next(at_ns)


class Sizes:
    """All transfers between tiers in modelled time. Implements `Mover` for the cache."""

    def __init__(self, cache: PrefixCache, ways: list[Way], clock: Clock) -> None:
        names = [tier.name for tier in cache.tiers]
        self._cache = cache
        self._has_gpu = names[:1] == ["gpu"]
        self._names = names
        self._ways = ways
        self._clock = clock
        self._crossings = crossings = Crossings(clock)
        self.writers = [
            Writer(tier, ways, crossings, is_below_gpu=self._has_gpu and tier.rank == 1)
            for tier in cache.tiers
        ]
        self._is_called = False  # whether writers are called who have not begun

    def catch_up(self) -> None:
        self._crossings.catch_up(self._clock.now_ns())

    def size_bytes(self, space: Space, tier: Tier, *, compress: bool) -> int:
        return space.holder.bytes_in(tier.rank, compress=compress)

    def moved(self, space: Space, slots: list[int], source: Tier, target: Tier, size_bytes: int) -> None:
        if above := self.writers[source.rank].staged:
            for slot in slots:
                above.pop(slot, None)
        self.copied(space, slots, target, size_bytes)

    def copied(self, space: Space, slots: list[int], target: Tier, size_bytes: int) -> None:
        self.writers[target.rank].write(space, slots, size_bytes)
        if not self._is_called:
            self._is_called = True
            # reads of the same moment go first: room was made for them; and what they push out goes with the rest
            self._crossings.after(self._clock.now_ns(), self._begin)

    def _begin(self, at_ns: int) -> None:
        self._is_called = False
        for writer in self.writers:
            if writer.line:
                writer.begin(at_ns - 1)

    def dropped(self, slot: int, tier: Tier) -> None:
        self.writers[tier.rank].staged.pop(slot, None)

    def is_staged(self, slot: int, rank: int) -> bool:
        """Whether a block is booked in that tier and not written yet: it is in memory."""
        return slot in self.writers[rank].staged

    def read(self, rank: int, size_bytes: int, then: Callable[[], None], *, in_memory: bool) -> None:
        """Bring so much up from a tier, from memory if it is there, and then call back."""
        if in_memory:
            self._come_up(size_bytes, then)
            return
        way = self._ways[rank]
        way.reading_bytes += size_bytes
        self._crossings.read(way, size_bytes, partial(self._has_read, way, size_bytes, then))

    def _has_read(self, way: Way, size_bytes: int, then: Callable[[], None]) -> None:
        way.reading_bytes -= size_bytes
        way.num_reads += 1
        way.read_bytes += size_bytes
        way.learn(size_bytes, way.modelled_ns(size_bytes))
        self._come_up(size_bytes, then)

    def _come_up(self, size_bytes: int, then: Callable[[], None]) -> None:
        if self._has_gpu:
            self._crossings.read(self._ways[0], size_bytes, then)
        else:
            then()
