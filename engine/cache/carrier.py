"""What carries payloads between tiers: jobs on bounded queues, while the cache decides and others go on.

The cache's books are ahead of the bytes: a block that was demoted counts in its new tier at once, and its payload
waits in memory (*staged*) until it is written; who wants it meanwhile takes it from there. A block that was promoted
counts as hot at once, and is *arriving* until its payload is there; who wants it meanwhile waits for the same job.
What waits in memory is bounded by the queue of each way (`queue_gib`): what would go beyond is not moved, but
evicted.

Where a tier has no store, only sizes move (`engine/cache/sizes.py`), and a transfer takes what the tier's settings
say. That is the simulation.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from engine.cache.cache import Mover, Prefix, PrefixCache
from engine.cache.finding import closed, found_in
from engine.cache.holders import Space
from engine.cache.sizes import BATCH_BYTES, Parcel, Sizes
from engine.cache.stores import ExtentStore
from engine.cache.tier import Tier
from engine.cache.ways import Way
from engine.clock import NS_PER_S, Clock, to_ns

MEMORY = ("gpu", "ram")
PATIENCE = 4.0
MIN_PATIENCE_NS = 50_000_000
LONG_PATIENCE_NS = 60 * NS_PER_S
FAULTS_TO_CLOSE = 3


class Packer(Protocol):
    """Turns payloads into records of a store and back; knows the forms. Made by `engine.cache.packing`."""

    def pack(self, payload: Any, form: str, max_error: float, error: float) -> Any:
        """The payload in that form, or in a more exact one. `error` is what it carries already."""

    def keep(self, payload: Any, form: str, max_error: float, error: float) -> Any:
        """The same for a tier in memory, which takes a payload as it is."""

    def unpack(self, packed: Any) -> Any:
        """The payload as the executor takes it."""

    def record(self, packed: Any, key: bytes, parent: bytes, space: bytes) -> Any:
        """What a store takes of a block."""

    def packed(self, record: Any) -> Any:
        """What was in a store's record."""

    def num_bytes(self, packed: Any) -> int: ...

    def error(self, packed: Any) -> float:
        """The relative error that comes back with it; 0 for the same bits."""


class Prefill(Protocol):
    """What tells how long computing takes: an executor."""

    def prefill_ns(self, start: int, end: int) -> int:
        """What computing tokens `start` to `end` (exclusive) of a prompt takes, all before them being there."""


@dataclass(slots=True, eq=False)
class Staged:
    """A payload on its way down. `origin` is where it has to be read first, if it is not in memory."""

    key: bytes
    payload: Any
    size_bytes: int
    origin: tuple[int, Any] | None = None


@dataclass(slots=True, eq=False)
class Errand:
    """One block in a write: all that the worker thread needs to know of it."""

    slot: int
    staged: Staged
    parent: bytes
    space: bytes
    form: str
    error: float


Stored = tuple[int, int]
"""Where a block lies in a store, and its slot."""


class Verified(NamedTuple):
    """How many blocks were read, their bytes, and how many of them were no good."""

    blocks: int
    num_bytes: int
    damaged: int


Wanted = tuple[int, bytes, Staged | None]
"""A block that was promoted: slot, key, and where its payload is."""


class Arrival:
    """Payloads that are being brought up together, and who waits for them.

    `is_alone`: none of them is on its way a second time since.
    """

    __slots__ = ("callbacks", "is_alone", "is_over")

    def __init__(self) -> None:
        self.is_alone = True
        self.is_over = False
        self.callbacks: list[Callable[[], None]] = []

    def end(self) -> None:
        self.is_over = True
        for callback in self.callbacks:
            callback()


@dataclass(slots=True)
class Decision:
    """Load or compute again: what was chosen for a prefix. Times are those of loading and prefill together.

    `other_ns` is what the other choice was expected to take.
    """

    loaded_blocks: int
    dropped_blocks: int
    expected_ns: int
    other_ns: int
    waited_ns: int = 0


@dataclass(slots=True)
class Tally:
    """Load-or-compute decisions. A wrong one took longer than the other was expected to."""

    loads: int = 0
    loads_wrong: int = 0
    computes: int = 0
    computes_wrong: int = 0
    given_up: int = 0
    lost_blocks: int = 0
    failed_writes: int = 0
    prefetched_blocks: int = 0


class Carrier(Mover):
    """Implements `Mover` for the cache, and brings prefixes to where the executor takes them from.

    Without payloads it leaves the first to `Sizes`.
    """

    def __init__(
        self,
        cache: PrefixCache,
        clock: Clock,
        stores: Mapping[str, ExtentStore] | None = None,
        packer: Packer | None = None,
        on_fault: Callable[[str, str], None] | None = None,
    ) -> None:
        """`stores` by tier, for those that have one; without a `packer` nothing but sizes is moved."""
        self.tally = Tally()
        self._ways = [Way(tier.settings, clock) for tier in cache.tiers]
        self._cache = cache
        self._clock = clock
        self._stores = stores or {}
        self._packer = packer
        self._sizes = Sizes(cache, self._ways, clock) if packer is None else None
        self._on_fault = on_fault
        self._staged: list[dict[int, Staged]] = [{} for _ in cache.tiers]
        self._places: list[dict[int, Any]] = [{} for _ in cache.tiers]
        self._lines: list[deque[Parcel]] = [deque() for _ in cache.tiers]
        self._writers = [0] * len(cache.tiers)
        self._is_called = [False] * len(cache.tiers)  # whether a writer is called that has not begun
        self._arriving: dict[int, Arrival] = {}
        self._faults = [0] * len(cache.tiers)
        self._compacting: set[int] = set()
        self._troubles: deque[tuple[int, OSError | None]] = deque()  # from worker threads; None: it went well
        if len(cache.tiers) > 1:
            cache.mover = self if self._sizes is None else self._sizes
            for tier, way in zip(cache.tiers, self._ways, strict=True):
                tier.room_bytes = way.room_bytes

    @property
    def ways(self) -> list[Way]:
        """The way to each tier, as it is now."""
        self.catch_up()
        return self._ways

    # what the cache tells

    def catch_up(self) -> None:
        if self._sizes is not None:
            self._sizes.catch_up()

    def size_bytes(self, space: Space, tier: Tier, *, compress: bool) -> int:
        return space.holder.bytes_in(tier.rank, compress=compress)

    def moved(self, space: Space, slots: list[int], source: Tier, target: Tier, size_bytes: int) -> None:
        staged, keys = self._staged[target.rank], self._cache.table.keys
        for slot in slots:
            key = keys[slot]
            assert key is not None
            staged[slot] = self._take(slot, key, source, size_bytes)
        self._write(space, slots, target, size_bytes)

    def copied(self, space: Space, slots: list[int], target: Tier, size_bytes: int) -> None:
        staged = self._staged[target.rank]
        keys, payloads, ready = self._cache.table.keys, self._cache.tiers[0].payloads, []
        for slot in slots:
            key, payload = keys[slot], payloads.get(slot)
            assert key is not None
            if payload is None:
                self._cache.unwritten(slot, target)  # it is only arriving itself
                continue
            staged[slot] = Staged(key, payload, size_bytes)
            ready.append(slot)
        if ready:
            self._write(space, ready, target, size_bytes)

    def dropped(self, slot: int, tier: Tier) -> None:
        self._staged[tier.rank].pop(slot, None)
        tier.payloads.pop(slot, None)
        place = self._places[tier.rank].pop(slot, None)
        if place is not None:
            self._forget(tier, [place])

    # bringing prefixes up

    async def bring(self, prefix: Prefix, prefill: Prefill, num_tokens: int) -> Decision | None:
        """Have the payloads of a prefix in the hottest tier, or give up what is cheaper computed again.

        The request waits here, and nobody else. Counts what is used. None when there was nothing to decide.
        """
        decision = None
        by_tier = prefix.blocks_by_tier
        if by_tier and prefix.num_blocks > by_tier[0]:
            decision = self._decide(prefix, prefill, num_tokens)
            if decision.dropped_blocks:
                prefix.cut(prefix.num_blocks - decision.dropped_blocks)
            if decision.loaded_blocks:
                self._fetch(prefix)
        if prefix.num_blocks and (self._arriving or decision is not None):
            await self._wait(prefix, decision)
        self._cache.count(prefix)
        return decision

    def judge(self, decision: Decision, prefill_ns: int) -> None:
        """Note how a decision turned out: what prefill took in the end, from the moment it began."""
        tally, was_wrong = self.tally, decision.waited_ns + prefill_ns > decision.other_ns
        if decision.loaded_blocks:
            tally.loads += 1
            tally.loads_wrong += was_wrong
        else:
            tally.computes += 1
            tally.computes_wrong += was_wrong

    def prefetch(self, space: Space, keys: list[bytes]) -> None:
        """Bring a chain to the hottest tier ahead of need, as far as there is room."""
        with self._cache.peek(space, keys) as prefix:
            if prefix.num_blocks > prefix.blocks_by_tier[0]:
                self.tally.prefetched_blocks += prefix.num_blocks - prefix.blocks_by_tier[0]
                self._fetch(prefix)

    def adopt(self) -> int:
        """Take over what the stores hold from before, the hottest first; how many blocks. What has no use is dropped.

        Blocks, while nothing else runs yet.
        """
        cache, adopted = self._cache, 0
        for tier in cache.tiers:
            store = self._stores.get(tier.name)
            if store is None:
                continue
            found = found_in(store)
            useful = closed(found, cache.table.slots.keys())
            slots = cache.adopt(tier, useful)
            for each, slot in zip(useful, slots, strict=True):
                if slot:
                    self._places[tier.rank][slot] = each.place
                    adopted += 1
            kept = set(self._places[tier.rank].values())
            store.drop([each.place for each in found if each.place not in kept])
        return adopted

    def stored_tiers(self) -> list[Tier]:
        """Those behind which there is a store."""
        return [tier for tier in self._cache.tiers if tier.name in self._stores]

    async def stored(self, tier: Tier) -> list[Stored]:
        """What is written of a tier at this moment, in the order in which it lies there."""
        places = list(self._places[tier.rank].items())
        found, _ = await self._clock.compute(lambda: sorted([(place, slot) for slot, place in places]))
        return found

    async def verify(self, tier: Tier, several: Sequence[Stored]) -> Verified:
        """Read blocks that are still where they were, and let go of those that are damaged: nobody waits for them.

        Raises StoreFault when the store itself fails; it counts as a fault that a request has met.
        """
        cache, rank, store = self._cache, tier.rank, self._stores[tier.name]
        places, keys = self._places[rank], cache.table.keys
        blocks = [
            (place, slot, key)
            for place, slot in several
            if places.get(slot) == place and slot not in cache.hollow and (key := keys[slot]) is not None
        ]
        if not blocks:
            return Verified(0, 0, 0)
        way = self._ways[rank]
        await way.enter(is_read=True)
        try:
            sizes, _ = await self._clock.compute(lambda: sizes_in(store, blocks))
        except OSError as error:
            self._troubles.append((rank, error))
            raise
        finally:
            way.leave()
            self._heed()
        damaged = 0
        for (place, slot, key), size in zip(blocks, sizes, strict=True):
            if size is None and places.get(slot) == place and keys[slot] == key:
                cache.unwritten(slot, tier)
                damaged += 1
        return Verified(len(blocks), sum(filter(None, sizes)), damaged)

    def flush(self) -> int:
        """Write what is in memory only to the first tier that has a store, as far as there is room; how many blocks.

        For the end of the process: a prefix whose head was always hot would not be found again. Blocks; nothing else
        runs any more. A store that fails is left as it is.
        """
        target = next((tier for tier in self._cache.tiers if tier.name in self._stores), None)
        if target is None:
            return 0
        cache, written = self._cache, 0
        left = target.capacity_bytes - target.used_bytes
        by_model: dict[str, list[Errand]] = {}
        for key, slot in cache.table.slots.items():  # who is read before whom came before: heads first
            staged = self._volatile(slot, key, target)
            if staged is None or slot in cache.hollow:
                continue
            space = cache.space_of(slot)
            if slot not in self._staged[target.rank]:  # not booked there yet
                left -= space.holder.block_bytes[target.rank]
            if left < 0:
                break
            by_model.setdefault(space.holder.key, []).append(self._errand(slot, staged, target))
        for model, errands in by_model.items():
            for batch in batches(errands):
                written += sum(outcome is not None for outcome in self._stow(target, model, batch))
        self._troubles.clear()
        return written

    def _volatile(self, slot: int, key: bytes, target: Tier) -> Staged | None:
        """The payload of a block that no store has; None for others."""
        home = self._cache.table.home[slot]
        if home > target.rank or slot in self._places[target.rank]:
            return None
        staged = self._staged[home].get(slot) or self._staged[target.rank].get(slot)
        payload = staged.payload if staged is not None else self._cache.tiers[home].payloads.get(slot)
        size = self._cache.space_of(slot).holder.block_bytes[target.rank]
        return None if payload is None else Staged(key, payload, size)

    def _decide(self, prefix: Prefix, prefill: Prefill, num_tokens: int) -> Decision:
        """Where to cut: behind some tier's run, whichever makes loading up to there and computing the rest cheapest.

        Ways are independent: what comes from two tiers takes as long as the slower one.
        """
        cache, tokens, how = self._cache, self._cache.block_tokens, self._cache.settings.load
        sizes, start = prefix.space.holder.block_bytes, prefix.blocks_by_tier[0]
        none_ns = prefill.prefill_ns(start * tokens, num_tokens)
        best_end, best_ns, all_ns, load_ns, begin = start, float(none_ns), float(none_ns), 0.0, start
        for rank, count in enumerate(prefix.blocks_by_tier):
            if rank == 0 or not count:
                continue
            if not self._is_readable(rank):
                break
            end = start + count
            load_ns = max(load_ns, self.load_ns(rank, (end - start) * sizes[rank]))
            all_ns = load_ns + prefill.prefill_ns(end * tokens, num_tokens)
            is_memory = cache.tiers[rank].name in MEMORY
            if how == "always" or (how == "never" and is_memory) or (how == "cheaper" and all_ns < best_ns):
                best_end, best_ns = end, all_ns
            start = end
        loaded = best_end - begin
        other_ns = none_ns if loaded else all_ns
        return Decision(loaded, prefix.num_blocks - best_end, round(best_ns), round(other_ns))

    def load_ns(self, rank: int, size_bytes: int) -> float:
        """What bringing so much from a tier to the hottest one takes."""
        tier, hot = self._cache.tiers[rank], self._cache.tiers[0]
        taken = 0.0 if tier.name == "ram" else self._ways[rank].expected_ns(size_bytes)
        return taken + (self._ways[0].expected_ns(size_bytes) if hot.name == "gpu" else 0.0)

    def _is_readable(self, rank: int) -> bool:
        """Whether a tier's store answers: one that fails again and again is left alone for a while."""
        return self._faults[rank] < FAULTS_TO_CLOSE

    def _fetch(self, prefix: Prefix) -> None:
        """Promote a prefix, and start the jobs that bring its payloads."""
        if self._sizes is not None:
            self._fetch_sizes(prefix, self._sizes)
            return
        cache, keys = self._cache, self._cache.table.keys
        wanted: dict[tuple[int, bool], list[Wanted]] = {}
        for rank, lifted in prefix.lift():
            source, staged = cache.tiers[rank], self._staged[rank]
            for slot in lifted:
                key = keys[slot]
                assert key is not None
                in_memory = source.name == "ram" or slot in staged
                wanted.setdefault((rank, in_memory), []).append((slot, key, self._source(slot, key, source)))
        for slot in [each for each in prefix.slots() if cache.table.home[each]]:
            # no room above: it is read where it is
            key, source = keys[slot], cache.tiers[cache.table.home[slot]]
            assert key is not None
            in_memory = source.name == "ram" or slot in self._staged[source.rank]
            lent = self._source(slot, key, source, is_lent=True)
            wanted.setdefault((source.rank, in_memory), []).append((slot, key, lent))
        for (rank, in_memory), blocks in wanted.items():
            arrival = Arrival()
            for slot, _, _ in blocks:
                self._arriving[slot] = arrival
            self._clock.spawn(self._read(rank, prefix, blocks, arrival, in_memory=in_memory))

    def _fetch_sizes(self, prefix: Prefix, sizes: Sizes) -> None:
        """The same where nothing but sizes moves."""
        sizes.catch_up()
        cache = self._cache
        wanted: dict[tuple[int, bool], list[int]] = {}
        left = prefix.num_blocks - prefix.blocks_by_tier[0]
        for rank, lifted in prefix.lift():
            left -= len(lifted)
            self._sort_out(rank, lifted, wanted)
            if sizes.writers[rank].staged:
                copies = cache.tiers[rank].copies
                gone = [slot for slot in lifted if slot not in copies] if copies else lifted
                sizes.writers[rank].forget(gone)
        start = 0
        for rank, end in prefix.runs() if left else ():
            if rank:  # no room above: it is read where it is
                slots = cache.table.slots
                self._sort_out(rank, [slots[key] for key in prefix.keys[start:end]], wanted)
            start = end
        size = prefix.space.holder.block_bytes
        for (rank, in_memory), blocks in wanted.items():
            if in_memory and cache.tiers[0].name != "gpu":
                continue
            arrival = Arrival()
            if not self._arriving.keys().isdisjoint(blocks):
                self._supersede(blocks)
            self._arriving.update(dict.fromkeys(blocks, arrival))
            then = partial(self._have_arrived, blocks, arrival)
            sizes.read(rank, len(blocks) * size[rank], then, in_memory=in_memory)

    def _sort_out(self, rank: int, slots: list[int], wanted: dict[tuple[int, bool], list[int]]) -> None:
        """Tell what is in memory of a tier's blocks from what has to be read there."""
        assert self._sizes is not None
        staged = self._sizes.writers[rank].staged
        if self._cache.tiers[rank].name == "ram":
            wanted.setdefault((rank, True), []).extend(slots)
        elif not staged or staged.keys().isdisjoint(slots):
            wanted.setdefault((rank, False), []).extend(slots)
        else:
            for slot in slots:
                wanted.setdefault((rank, slot in staged), []).append(slot)

    def _supersede(self, slots: list[int]) -> None:
        """Blocks that are arriving come another way, too: what comes first is not the end of it."""
        for slot in slots:
            if (arrival := self._arriving.get(slot)) is not None:
                arrival.is_alone = False

    def _have_arrived(self, slots: list[int], arrival: Arrival) -> None:
        """Blocks of which nothing but sizes is known are there."""
        arriving = self._arriving
        for slot in slots:
            if arrival.is_alone or arriving.get(slot) is arrival:
                del arriving[slot]
        arrival.end()

    async def _read(
        self, rank: int, prefix: Prefix, blocks: list[Wanted], arrival: Arrival, *, in_memory: bool
    ) -> None:
        """Bring blocks from one tier to the hottest. What cannot be read is lost: a miss, and never an error."""
        cache = self._cache
        way = self._ways[rank]
        size = len(blocks) * prefix.space.holder.block_bytes[rank]
        found: list[Any] = [None] * len(blocks)
        try:
            if in_memory:
                found = await self._payloads(blocks)
            else:
                way.reading_bytes += size
                await way.enter(is_read=True)
                begun_ns = self._clock.now_ns()
                try:
                    found = await self._payloads(blocks)
                finally:
                    way.leave()
                    way.reading_bytes -= size
                way.num_reads += 1
                way.read_bytes += size
                way.learn(size, self._clock.now_ns() - begun_ns)
        finally:
            self._heed()
            for (slot, key, _), payload in zip(blocks, found, strict=True):
                if self._arriving.get(slot) is arrival:
                    del self._arriving[slot]
                if cache.table.keys[slot] == key:
                    self._arrived(slot, payload, prefix)
            arrival.end()

    def _arrived(self, slot: int, found: "tuple[Any, float] | None", prefix: Prefix) -> None:
        """A block's payload is there, or it cannot be had."""
        cache = self._cache
        if found is None:
            self.tally.lost_blocks += 1
            cache.lose(slot)
            return
        payload, error = found
        if cache.table.home[slot]:  # it is still where it was
            prefix.loans[slot] = payload
            return
        cache.tiers[0].payloads[slot] = payload
        if error:
            cache.lossy[slot] = error

    async def _payloads(self, blocks: list[Wanted]) -> list[Any]:
        """The payload and its error of each block, None for what cannot be read."""
        found, _ = await self._clock.compute(lambda: self._unpacked(blocks))
        return found

    def _unpacked(self, blocks: list[Wanted]) -> list[tuple[Any, float] | None]:
        """Read and unpack, in a worker thread."""
        packer = self._packer
        assert packer is not None
        packed: list[Any] = [None if source is None else source.payload for _, _, source in blocks]
        stored: dict[int, list[int]] = {}
        for index, (_, _, source) in enumerate(blocks):
            if source is not None and source.payload is None and source.origin is not None:
                stored.setdefault(source.origin[0], []).append(index)
        for rank, indexes in stored.items():
            places = [blocks[index][2].origin[1] for index in indexes]  # type: ignore[union-attr, index]
            records = self._stored(rank, places, [blocks[index][1] for index in indexes])
            for index, record in zip(indexes, records, strict=True):
                packed[index] = None if record is None else packer.packed(record)
        return [None if each is None else (packer.unpack(each), packer.error(each)) for each in packed]

    def _stored(self, rank: int, places: list[Any], keys: list[bytes]) -> list[Any]:
        """Records of a store; None for what it cannot give. A fault is counted, and is no error to anybody."""
        try:
            records = self._stores[self._cache.tiers[rank].name].read(places, keys)
        except OSError as error:
            self._troubles.append((rank, error))
            return [None] * len(places)
        self._troubles.append((rank, None))
        return records

    def _source(self, slot: int, key: bytes, tier: Tier, *, is_lent: bool = False) -> Staged | None:
        """Where the payload of a block is that was just promoted; left there where it stays as a copy."""
        if is_lent or slot in tier.copies:
            staged, payload = self._staged[tier.rank].get(slot), tier.payloads.get(slot)
            place = self._places[tier.rank].get(slot)
        else:
            staged, payload = self._staged[tier.rank].pop(slot, None), tier.payloads.pop(slot, None)
            place = self._places[tier.rank].pop(slot, None)
        if staged is not None:
            return staged
        if payload is not None:
            return Staged(key, payload, 0)
        return None if place is None else Staged(key, None, 0, (tier.rank, place))

    async def _wait(self, prefix: Prefix, decision: Decision | None) -> None:
        """Wait for what is arriving of a prefix, with some patience; what does not come is computed."""
        begun_ns, slots, arriving = self._clock.now_ns(), prefix.slots(), self._arriving
        arrivals = dict.fromkeys(filter(None, map(arriving.get, slots))) if arriving else {}
        if arrivals:
            await self._await(arrivals, decision)
        if self._packer is not None:
            hot, loans = self._cache.tiers[0].payloads, prefix.loans
            sound = [slot in hot or slot in loans for slot in slots]
        else:
            sound = []
        missing = self._cache.hollow
        is_sound = all(sound) and arriving.keys().isdisjoint(slots) and missing.isdisjoint(slots)
        if not is_sound:
            self.tally.given_up += 1
            for index, slot in enumerate(slots):
                if slot in arriving or slot in missing or (sound and not sound[index]):
                    prefix.cut(index)
                    break
        if decision is not None:
            decision.waited_ns = self._clock.now_ns() - begun_ns

    async def _await(self, arrivals: Iterable[Arrival], decision: Decision | None) -> None:
        """Wait until all of these are over, or patience is."""
        left, over = 0, self._clock.signal()

        def one_is_there() -> None:
            nonlocal left
            left -= 1
            if not left:
                over.set()

        for arrival in arrivals:
            left += 1
            arrival.callbacks.append(one_is_there)
        expected_ns = decision.other_ns if decision is not None else 20 * MIN_PATIENCE_NS
        patience_ns = max(MIN_PATIENCE_NS, round(PATIENCE * expected_ns))
        if self._cache.settings.load == "always":
            patience_ns = max(patience_ns, LONG_PATIENCE_NS)
        timer = self._clock.call_later(patience_ns, over.set)
        await over.wait()
        timer.cancel()

    # writing down

    def _take(self, slot: int, key: bytes, source: Tier, size_bytes: int) -> Staged:
        """The payload of a block that leaves a tier, or where it has to be read."""
        staged = self._staged[source.rank].pop(slot, None)
        if staged is not None:
            return Staged(key, staged.payload, size_bytes, staged.origin)
        payload = source.payloads.pop(slot, None)
        if payload is None and self._packer is not None:
            place = self._places[source.rank].pop(slot, None)
            if place is not None:
                return Staged(key, None, size_bytes, (source.rank, place))
        return Staged(key, payload, size_bytes)

    def _write(self, space: Space, slots: list[int], tier: Tier, size_bytes: int) -> None:
        """Put blocks into the line of those to be written, and have somebody write them."""
        rank = tier.rank
        num_bytes = size_bytes * len(slots)
        self._lines[rank].append(Parcel(space.holder, slots, num_bytes))
        self._ways[rank].queued_bytes += num_bytes
        if not self._is_called[rank]:
            self._call_writer(tier)

    def _call_writer(self, tier: Tier) -> None:
        """Have one more writer, if the tier allows that; what is put into the line until it begins is its work."""
        rank = tier.rank
        if self._writers[rank] < tier.settings.concurrency:
            self._writers[rank] += 1
            self._is_called[rank] = True
            self._clock.spawn(self._write_all(tier))

    async def _write_all(self, tier: Tier) -> None:
        """Write until the line is empty: what is next in it of one model goes together."""
        line, way = self._lines[tier.rank], self._ways[tier.rank]
        try:
            try:
                await self._clock.sleep(0)  # reads of the same moment go first: room was made for them
            finally:
                self._is_called[tier.rank] = False
            while line:
                first = line.popleft()
                parcels, total = [first], first.num_bytes
                while line and line[0].holder is first.holder and total < BATCH_BYTES:
                    more = line.popleft()
                    parcels.append(more)
                    total += more.num_bytes
                if line and not self._is_called[tier.rank]:
                    self._call_writer(tier)
                try:
                    slots = [slot for parcel in parcels for slot in parcel.slots]
                    await self._write_batch(tier, way, slots, total)
                finally:
                    way.queued_bytes -= total
        finally:
            self._writers[tier.rank] -= 1

    async def _write_batch(self, tier: Tier, way: Way, slots: list[int], total_bytes: int) -> None:
        cache, staged = self._cache, self._staged[tier.rank]
        found = [(slot, each) for slot in slots if (each := staged.get(slot)) is not None]
        batch = [self._errand(slot, each, tier) for slot, each in found if cache.table.keys[slot] == each.key]
        if not batch:
            return
        model = cache.space_of(batch[0].slot).holder.key
        await way.enter(is_read=False)
        try:
            outcome, _ = await self._clock.compute(lambda: self._stow(tier, model, batch))
        finally:
            way.leave()
            self._heed()
        way.num_writes += 1
        way.written_bytes += total_bytes
        self._settle(tier, batch, outcome)

    def _errand(self, slot: int, staged: Staged, tier: Tier) -> Errand:
        cache = self._cache
        space, table = cache.space_of(slot), cache.table
        parent = table.parent[slot]
        before = (table.keys[parent] if parent else None) or space.digest
        is_small = staged.size_bytes < space.holder.block_bytes[tier.rank]
        form = "int8" if is_small else tier.settings.form
        return Errand(slot, staged, before, space.digest, form, cache.lossy.get(slot, 0.0))

    def _settle(self, tier: Tier, batch: list[Errand], outcome: list[Any]) -> None:
        """Blocks are written, or could not be: those are lost from this tier."""
        staged, unneeded = self._staged[tier.rank], []
        for errand, written in zip(batch, outcome, strict=True):
            is_ours = staged.get(errand.slot) is errand.staged
            if is_ours:
                del staged[errand.slot]
                self._settle_one(tier, errand.slot, written)
            elif written is not None and tier.name not in MEMORY:
                unneeded.append(written[0])
        if unneeded:
            self._forget(tier, unneeded)

    def _settle_one(self, tier: Tier, slot: int, written: Any) -> None:
        """Note where a block is now, and what it takes there; None for one that could not be written."""
        if written is None:
            self.tally.failed_writes += 1
            self._cache.unwritten(slot, tier)
            return
        place, size_bytes, error = written
        (tier.payloads if tier.name in MEMORY else self._places[tier.rank])[slot] = place
        if error:
            self._cache.lossy[slot] = error
        self._cache.resize(slot, tier, size_bytes)

    def _stow(self, tier: Tier, model: str, batch: list[Errand]) -> list[Any]:
        """Pack and write, in a worker thread: (place, bytes, error) of each block, None for a failure."""
        packer, bound = self._packer, tier.settings.max_error
        assert packer is not None
        packed: list[Any] = []
        for errand in batch:
            payload, origin = errand.staged.payload, errand.staged.origin
            if payload is None and origin is not None:
                record = self._stored(origin[0], [origin[1]], [errand.staged.key])[0]
                payload = None if record is None else packer.packed(record)
            pack = packer.keep if tier.name in MEMORY else packer.pack
            packed.append(None if payload is None else pack(payload, errand.form, bound, errand.error))
        found = [index for index, each in enumerate(packed) if each is not None]
        outcome: list[Any] = [None] * len(batch)
        places = [packed[index] for index in found]
        if tier.name not in MEMORY:
            records = [
                packer.record(packed[index], batch[index].staged.key, batch[index].parent, batch[index].space)
                for index in found
            ]
            try:
                places = self._stores[tier.name].write(model, records) if records else []
            except OSError as error:
                self._troubles.append((tier.rank, error))
                return outcome
            self._troubles.append((tier.rank, None))
        for index, place in zip(found, places, strict=True):
            outcome[index] = (place, packer.num_bytes(packed[index]), packer.error(packed[index]))
        return outcome

    def _forget(self, tier: Tier, places: list[Any]) -> None:
        """Let a store drop what nobody will ask for; off the path of everybody."""
        store = self._stores.get(tier.name)
        if store is not None:
            self._clock.spawn(self._drop(tier.rank, store, places))

    async def _drop(self, rank: int, store: ExtentStore, places: list[Any]) -> None:
        await self._clock.compute(lambda: self._dropped(rank, store, places))
        self._heed()
        await self._compact(rank, store)

    async def _compact(self, rank: int, store: ExtentStore) -> None:
        """Write anew what still lives in extents that are mostly dead, one such job a store at a time."""
        if rank in self._compacting or store.counters.dead_bytes <= store.counters.live_bytes:
            return
        self._compacting.add(rank)
        try:
            moved, _ = await self._clock.compute(lambda: self._compacted(rank, store))
            places, outdated = self._places[rank], dict(moved)
            for slot, place in places.items():
                if place in moved:
                    places[slot] = moved[place]
                    outdated[place] = place
            unneeded = list(outdated.values())
            await self._clock.compute(lambda: self._dropped(rank, store, unneeded))
        finally:
            self._compacting.discard(rank)
            self._heed()

    def _compacted(self, rank: int, store: ExtentStore) -> dict[Any, Any]:
        try:
            return dict(store.compact())
        except OSError as error:
            self._troubles.append((rank, error))
            return {}

    def _dropped(self, rank: int, store: ExtentStore, places: list[Any]) -> None:
        try:
            store.drop(places)
        except OSError as error:
            self._troubles.append((rank, error))

    def _heed(self) -> None:
        """Take note of what worker threads met: a store that failed some times in a row is left alone for a while."""
        while self._troubles:
            rank, error = self._troubles.popleft()
            if error is None:
                self._faults[rank] = 0
                continue
            tier = self._cache.tiers[rank]
            self._faults[rank] += 1
            if self._on_fault is not None:
                self._on_fault(tier.name, str(getattr(error, "kind", error)))
            if self._faults[rank] == FAULTS_TO_CLOSE:
                self._cache.close_tier(tier)
                self._clock.call_later(to_ns(tier.settings.retry_after_s), partial(self._try_again, tier))

    def _try_again(self, tier: Tier) -> None:
        self._faults[tier.rank] = FAULTS_TO_CLOSE - 1  # the next fault closes it again
        self._cache.open_tier(tier)


def sizes_in(store: ExtentStore, blocks: Sequence[tuple[int, int, bytes]]) -> list[int | None]:
    """The size of each block in a store, verified; None for what is not what was written there."""
    records = store.read([place for place, _, _ in blocks], [key for _, _, key in blocks])
    return [None if each is None else memoryview(each.data).nbytes for each in records]


def batches(errands: list[Errand]) -> Iterator[list[Errand]]:
    """Errands in lots of about an extent."""
    lot: list[Errand] = []
    total = 0
    for errand in errands:
        lot.append(errand)
        total += errand.staged.size_bytes
        if total >= BATCH_BYTES:
            yield lot
            lot, total = [], 0
    if lot:
        yield lot
