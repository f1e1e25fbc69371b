"""Transfers where nothing but sizes moves: what they take passes on the clock. That is the simulation.

What goes down waits in a line for each tier, and what stands next in it of one model goes together. Nobody else is
kept waiting: a block that is wanted before it is written is taken from memory.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from engine.cache.cache import Mover, PrefixCache
from engine.cache.crossings import Crossings, Over
from engine.cache.holders import Holder, Space
from engine.cache.tier import Tier
from engine.cache.ways import Way
from engine.clock import Clock
from engine.settings import GIB

BATCH_BYTES: Final = 16 << 20
"""Blocks of one model that are written together: one extent of a store."""

BATCH_S: Final = 0.01
"""The time of what goes together where only sizes move: as long as a read may have to wait behind it."""


class Parcel:
    """Blocks of one model that are to be written to a tier.

    `is_whole`: each of them still waits for this. `more`: what goes together with it, once it is under way.
    """

    __slots__ = ("holder", "is_whole", "more", "num_bytes", "slots")

    def __init__(self, holder: Holder, slots: list[Any], num_bytes: int) -> None:
        self.holder = holder
        self.slots = slots  # compiled, a list of numbers would make each anew, which is only looked for here
        self.num_bytes = num_bytes
        self.is_whole = True
        self.more: Sequence[Parcel] = ()


class Writer:
    """Who writes the blocks of one tier: as many lots at a time as the tier allows."""

    __slots__ = (
        "_crossings",
        "_most_bytes",
        "_most_lots",
        "_num_busy",
        "_over",
        "_start",
        "_way",
        "line",
        "staged",
    )

    def __init__(self, tier: Tier, ways: list[Way], crossings: Crossings, *, is_below_gpu: bool) -> None:
        self.staged: dict[int, Parcel] = {}  # by slot: what is booked here, and not written yet
        self.line: deque[Parcel] = deque()
        self._way = way = ways[tier.rank]
        self._crossings = crossings
        # what has to be crossed first: from the accelerator to memory, and from there to what is below
        self._start = ways[0] if is_below_gpu else way
        has_two_hops = is_below_gpu and tier.name != "ram"
        self._over: Over = self._has_come_down if has_two_hops else self._is_there
        self._num_busy = 0
        self._most_lots = tier.settings.concurrency
        # no extent bounds what goes together, but a read must not wait for long
        self._most_bytes = max(BATCH_BYTES, round(tier.settings.gib_per_s * GIB * BATCH_S))

    def write(self, space: Space, slots: list[Any], size_bytes: int) -> None:
        """Put blocks into the line of those to be written; none of them stands there already."""
        num_bytes = size_bytes * len(slots)
        parcel = Parcel(space.holder, slots, num_bytes)
        staged = self.staged
        for slot in slots:
            staged[slot] = parcel
        self.line.append(parcel)
        self._way.queued_bytes += num_bytes

    def forget(self, slots: Sequence[Any]) -> None:
        """Blocks need not be written any more. That is to be found out before they are written again."""
        staged = self.staged
        if staged and not staged.keys().isdisjoint(slots):
            for slot in slots:
                parcel = staged.pop(slot, None)
                if parcel is not None:
                    parcel.is_whole = False

    def begin(self, at_ns: int) -> None:
        """Have what stands in the line written, as far as the tier allows more lots at a time."""
        while self.line and self._num_busy < self._most_lots:
            self._num_busy += 1
            self._next(at_ns)

    def _next(self, at_ns: int) -> None:
        """Write what is next in the line, of one model; what nobody waits for any more takes no time."""
        line, most = self.line, self._most_bytes
        while line:
            first = line.popleft()
            total, is_wanted = first.num_bytes, first.is_whole or self._is_wanted(first)
            if line and total < most and line[0].holder is first.holder:
                holder, more = first.holder, []
                while line and total < most and line[0].holder is holder:
                    parcel = line.popleft()
                    more.append(parcel)
                    total += parcel.num_bytes
                    is_wanted = is_wanted or parcel.is_whole or self._is_wanted(parcel)
                first.more = more
            if is_wanted:
                self._crossings.write(self._start, total, self._over, first, at_ns)
                return
            self._way.queued_bytes -= total
        self._num_busy -= 1

    def _is_wanted(self, parcel: Parcel) -> bool:
        """Whether any of its blocks is still to be written, be it with another parcel."""
        return not self.staged.keys().isdisjoint(parcel.slots)

    def _has_come_down(self, first: Parcel, at_ns: int) -> None:
        """It is in memory, and has its tier's own way before it."""
        total = first.num_bytes + sum([parcel.num_bytes for parcel in first.more])
        self._crossings.write(self._way, total, self._is_there, first, at_ns)

    def _is_there(self, first: Parcel, at_ns: int) -> None:
        """What crossed together is written."""
        way, total, staged = self._way, first.num_bytes, self.staged
        if first.is_whole:
            for slot in first.slots:
                del staged[slot]
        else:
            self._unstage(first)
        if first.more:
            for parcel in first.more:
                total += parcel.num_bytes
                self._unstage(parcel)
        way.num_writes += 1
        way.written_bytes += total
        way.queued_bytes -= total
        if self.line:
            self._next(at_ns)
        else:
            self._num_busy -= 1

    def _unstage(self, parcel: Parcel) -> None:
        """What is left of a parcel waits no longer."""
        staged = self.staged
        for slot in parcel.slots:
            if staged.get(slot) is parcel:
                del staged[slot]


class Sizes(Mover):
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
        above = self.writers[source.rank]
        if above.staged:
            above.forget(slots)
        self.writers[target.rank].write(space, slots, size_bytes)
        if not self._is_called:
            self._call_writers()

    def copied(self, space: Space, slots: list[int], target: Tier, size_bytes: int) -> None:
        self.writers[target.rank].write(space, slots, size_bytes)
        if not self._is_called:
            self._call_writers()

    def _call_writers(self) -> None:
        """Have them begin when this moment is over.

        Reads of the same moment go first: room was made for them. And what they push out goes with the rest.
        """
        self._is_called = True
        self._crossings.after(self._clock.now_ns(), self._begin)

    def _begin(self, at_ns: int) -> None:
        self._is_called = False
        for writer in self.writers:
            if writer.line:
                writer.begin(at_ns - 1)

    def dropped(self, slot: int, tier: Tier) -> None:
        self.writers[tier.rank].forget((slot,))

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
