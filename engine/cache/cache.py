"""The cache: one for all models and tenants, over up to five tiers.

It decides, and knows sizes only: which blocks are where, who reads them, who leaves when there is no room. What
carries payloads (`engine/cache/carrier.py`) is told of each decision. Everything here is synchronous and takes the
time from its caller.

Two rules carry all of it. *Closed*: a block is resident in some tier only if the one before it is. *Ordered*: no
block lies in a hotter tier than the one before it. So the longest cached prefix over all tiers is one bisection, its
boundaries between tiers are one more each, and reading a prefix pins and touches one block a tier, whatever its
length: those before it cannot leave before it does.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, Final, Self

from engine.cache.allocation import allocation
from engine.cache.blocks import namespace
from engine.cache.holders import Counts, Holder, Space
from engine.cache.integrity import Books
from engine.cache.limits import Limits, Rule
from engine.cache.names import BlockNames
from engine.cache.orders import NOWHERE
from engine.cache.regret import Sample
from engine.cache.reuse import Reuse
from engine.cache.table import CHILD, Table
from engine.cache.tier import Tier
from engine.clock import NS_PER_S
from engine.settings import CacheSettings

if TYPE_CHECKING:
    from engine.cache.stores import Found

TICK_NS: Final = 10_000_000
"""The unit of last use: 32 bits of it are 497 days."""

LAST_TICK: Final = (1 << 32) - 1
REBALANCE_NS: Final = NS_PER_S
MIN_GHOSTS = 4_096
SWEPT_FROM = 16_384
"""Namespaces, from which on those that hold nothing are forgotten: a kilobyte each, and one for each tenant."""

OTHERS = "(others)"
"""The tenant of what was counted for namespaces that are forgotten."""


class Mover:
    """What carries payloads. It is told of decisions when they are made: the books are ahead of the bytes."""

    def catch_up(self) -> None:
        """Something is to be decided now: what has been carried by now makes room for it."""
        raise NotImplementedError

    def size_bytes(self, space: Space, tier: Tier, *, compress: bool) -> int:
        """What a block of a namespace will take in that tier; `compress`: as int8, whatever the tier's own form."""
        raise NotImplementedError

    def moved(self, space: Space, slots: list[int], source: Tier, target: Tier, size_bytes: int) -> None:
        """Blocks of a namespace were demoted; each takes `size_bytes` there."""
        raise NotImplementedError

    def copied(self, space: Space, slots: list[int], target: Tier, size_bytes: int) -> None:
        """Blocks of a namespace, in the hottest tier, are to be written to a colder one too."""
        raise NotImplementedError

    def dropped(self, slot: int, tier: Tier) -> None:
        """A block, or its copy, left a tier: what is there of it is worth nothing."""
        raise NotImplementedError


OnEvicted = Callable[[str, str, int, int], None]
"""Told of blocks that left for good: model, tier, how many of a chain, and when the last of them was last read."""


class Prefix:
    """The longest cached prefix of a prompt, pinned until the `with` block ends.

    `blocks_by_tier[t]`: how many of its blocks were found in tier t. `loans` has the payloads, by slot, of blocks
    that were read for this one request only: the hottest tier has no room for them.
    """

    __slots__ = ("_cache", "_pinned", "blocks_by_tier", "keys", "loans", "num_blocks", "space")

    def __init__(self, cache: "PrefixCache", space: Space, keys: list[bytes], num_blocks: int) -> None:
        self._cache = cache
        self.space = space
        self.keys = keys
        self.num_blocks = num_blocks
        self.loans: dict[int, Any] = {}
        pinned: list[int]
        self.blocks_by_tier = by_tier = [0] * len(cache.tiers)
        self._pinned = pinned = []
        if num_blocks:
            table, pins = cache.table, cache.pins
            slots, start = table.slots, 0
            last = slots[keys[num_blocks - 1]]
            runs = table.runs(keys, num_blocks) if table.home[last] else ((0, num_blocks),)
            for tier, end in runs:
                by_tier[tier] = end - start
                start = end
                slot = last if end == num_blocks else slots[keys[end - 1]]
                pins[slot] = pins.get(slot, 0) + 1
                pinned.append(slot)

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self._cache.block_tokens

    def runs(self) -> list[tuple[int, int]]:
        """Where its blocks lie now: (tier, end), the hottest first."""
        return self._cache.table.runs(self.keys, self.num_blocks)

    def slots(self) -> list[int]:
        """Its blocks, from the head. O(n): for those who carry payloads."""
        slots = self._cache.table.slots
        return [slots[key] for key in self.keys[: self.num_blocks]]

    def cut(self, num_blocks: int) -> None:
        """Use only so many of its blocks, from the head."""
        left = num_blocks
        for tier, blocks in enumerate(self.blocks_by_tier):
            self.blocks_by_tier[tier] = min(blocks, left)
            left -= self.blocks_by_tier[tier]
        self.num_blocks = num_blocks
        self._pin()

    def lift(self) -> list[tuple[int, list[int]]]:
        """Promote what lies below the hottest tier, as far as there is room; by tiers, what came from each.

        At once, while everything is where it was found.
        """
        lifted = self._cache.lift(self)
        if lifted:
            self._pin()
        return lifted

    def payloads(self) -> list[Any]:
        """What is in memory of its blocks, from the head; None where only sizes are known."""
        found, loans = self._cache.tiers[0].payloads if self._cache.tiers else {}, self.loans
        if not found and not loans:
            return [None] * self.num_blocks
        return [loans[slot] if slot in loans else found.get(slot) for slot in self.slots()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pinned, self._pinned = self._pinned, []
        self._cache.release(self, pinned)

    def _pin(self) -> None:
        """Pin the last block of each tier, and let go of what was pinned before."""
        cache, keys, before = self._cache, self.keys, self._pinned
        pins, slots = cache.pins, cache.table.slots
        self._pinned = [slots[keys[end - 1]] for _, end in self.runs()]
        for slot in self._pinned:
            pins[slot] = pins.get(slot, 0) + 1
        for slot in before:
            cache.unpin(slot)


class PrefixCache:
    """One object for all models, tenants and replicas of the process.

    `hollow` are blocks whose payload was lost, to a fault of a store: they and what comes after them are not found
    until somebody computes them again. `lossy` are blocks that were int8 once, with the relative error that they
    carry since, wherever they are now.
    """

    def __init__(self, settings: CacheSettings) -> None:
        """Raises UnknownName, or BadSettings for options that a policy or an allocation does not have."""
        self.settings = settings
        self.enabled = settings.enabled
        self.block_tokens = settings.block_tokens
        self.mover: Mover | None = None
        self.on_evicted: OnEvicted | None = None
        given = settings.tiers if settings.enabled else {}
        self.table = Table(max(1, len(given)))
        self.pins: dict[int, int] = {}
        self.tiers = [
            Tier(rank, name, tier, settings, self.table, self.pins)
            for rank, (name, tier) in enumerate(given.items())
        ]
        self._below = [self.tiers[tier.rank + 1 :] for tier in self.tiers]
        self._written_when: dict[str, list[Tier]] = {"through": [], "second_use": [], "back": []}
        for tier in self.tiers[1:]:
            self._written_when[tier.settings.write].append(tier)
        self.allocation = allocation.make(settings.allocation, **settings.allocation_options)
        self.limits = Limits(settings.limits if settings.enabled else [], list(given))
        for tier in self.tiers:
            tier.divide(self.allocation, by_model=bool(self.limits))
        for tier, lower in pairwise(self.tiers):
            if tier.ring is not None and lower.ring is not None:
                tier.pours_to = lower
        self.holders: list[Holder] = []
        self.spaces: dict[bytes, Space] = {}
        self.hollow: set[int] = set()
        self.lossy: dict[int, float] = {}
        self.wanted_again: dict[
            str, list[int]
        ] = {}  # evicted, then wanted: by model, how often and the ticks between
        self.stopwatch_ticks = 0
        self._by_name: dict[tuple[str, str], Holder] = {}
        self._sweep_at = SWEPT_FROM
        self._reuse = Reuse()
        self._stuck: set[int] = set()  # could not leave, because something colder hangs on it
        self._ghosts: dict[
            bytes, tuple[int, int]
        ] = {}  # of ends that left: when last read, and when they left
        self.sample = Sample()
        self._tick = 1
        self._balanced_ns = -REBALANCE_NS

    def __len__(self) -> int:
        """How many blocks are resident, in whatever tier."""
        return len(self.table.slots)

    @property
    def used_bytes(self) -> int:
        """What lies in all tiers together."""
        used_bytes = 0
        for tier in self.tiers:  # compiled, `sum` takes ten times as long
            used_bytes += tier.used_bytes
        return used_bytes

    @property
    def capacity_bytes(self) -> int:
        capacity_bytes = 0
        for tier in self.tiers:
            capacity_bytes += tier.capacity_bytes
        return capacity_bytes

    def space(
        self, model: str, weights_id: str, tenant: str, block_bytes: int, value_bytes: float = 2.0
    ) -> Space:
        """The namespace of a tenant's blocks of a model. It outlives the model's time in memory.

        `model` is its key (name and version), `weights_id` another one for other weights, `block_bytes` the size of a
        block as the executor makes it, of numbers that take `value_bytes` each.
        """
        salt = "" if self.settings.share_between_tenants else tenant
        digest = namespace(model, weights_id, salt, self.block_tokens)
        space = self.spaces.get(digest)
        if space is None:
            return self._new_space(digest, model, salt, block_bytes, value_bytes)
        if space.holder.is_guess or space.tenant != salt:
            self._know(space, salt, block_bytes, value_bytes)
        return space

    def match(self, keys: list[bytes]) -> int:
        """How many of a chain's blocks, from its head, can be read, in whatever tier."""
        count = self.table.match(keys, len(keys))
        return self._sound(keys, count) if self.hollow else count

    def is_hot(self, key: bytes) -> bool:
        """Whether that block can be read from the hottest tier, and so all of its chain before it."""
        slot = self.table.slots.get(key)
        return slot is not None and not self.table.home[slot] and not self.hollow

    def reach(self, names: BlockNames, shared: Sequence[bytes], upto: int) -> int:
        """How many of the first `upto` blocks can be read, in whatever tier, by the names that all models share."""
        slots, young, old = self.table.slots, names.young, names.old
        low, high = 0, upto
        while low < high:
            middle = (low + high + 1) >> 1
            key = shared[middle - 1]
            if (young.get(key) or old.get(key)) in slots:
                low = middle
            else:
                high = middle - 1
        return low

    def find(self, space: Space, keys: list[bytes], num_tokens: int, now_ns: int | None = None) -> Prefix:
        """The longest cached prefix of a prompt of `num_tokens`, pinned.

        At least one token is always left to prefill: its logits are what the first new token comes from. Without a
        mover, what lies below the hottest tier is promoted at once, and counted.
        """
        if not space.is_known:
            space = self._known(space)
        counts = space.stats
        counts.requests += 1
        counts.prompt_tokens += num_tokens
        counts.prompt_blocks += num_tokens // self.block_tokens
        if not self.tiers:
            return Prefix(self, space, keys, 0)
        self._pass(now_ns)
        useful = min(len(keys), (num_tokens - 1) // self.block_tokens)
        count = self.table.match(keys, useful)
        if self.hollow:
            count = self._sound(keys, count)
        prefix = Prefix(self, space, keys, count)
        space.holder.demand_bytes += len(keys) * space.holder.block_bytes[0]
        if self.mover is None:
            self.count(prefix)
            if count and prefix.blocks_by_tier[0] < count:
                prefix.lift()
        return prefix

    def peek(self, space: Space, keys: list[bytes]) -> Prefix:
        """What is there of a chain, pinned, and not counted as asked for."""
        return Prefix(self, space, keys, self.match(keys))

    def count(self, prefix: Prefix) -> None:
        """Note what of a prefix is used."""
        counts, tokens = prefix.space.stats, self.block_tokens
        counts.request_hits += prefix.num_blocks > 0
        self.sample.note(prefix.keys, prefix.num_blocks)
        for rank, blocks in enumerate(prefix.blocks_by_tier):
            if blocks:
                counts.hit_blocks[rank] = counts.hit_blocks[rank] + blocks
                counts.hit_tokens[rank] = counts.hit_tokens[rank] + blocks * tokens

    def keep(
        self,
        space: Space,
        keys: list[bytes],
        payloads: Sequence[Any] | None = None,
        now_ns: int | None = None,
    ) -> int:
        """Make the last blocks of a chain resident, those of `payloads` (None: all, as sizes); how many are new.

        What the hottest tier cannot hold goes to the next ones, and what does not fit anywhere is dropped from the
        tail. A block that is there already moves to the hottest tier: its payload is in hand.
        """
        if not self.tiers or not keys:
            return 0
        if not space.is_known:
            space = self._known(space)
        self._pass(now_ns)
        if self.mover is not None:
            self.mover.catch_up()
        table, slots = self.table, self.table.slots
        first = len(keys) - len(payloads) if payloads is not None else 0
        start = first if payloads is not None else table.match(keys, len(keys))
        last = NOWHERE
        if start:
            known = slots.get(keys[start - 1])
            if known is None:
                return 0  # its head has left meanwhile
            last = known
        start, last = self._refill(space, keys, payloads, first, start, last)
        self._pin(last)  # room for the tail must not be made at the cost of its head
        begin, fits = last, 0
        if start < len(keys) and keys[start] not in slots:
            fresh = payloads[start - first :] if payloads is not None else None
            fits, last = self._insert_all(space, keys[start:], last, fresh)
        space.stats.refused_blocks += len(keys) - start - fits
        if last:
            self._note_end(last)
        self._unpin(begin)
        self._relieve(space)
        return fits

    def lift(self, prefix: Prefix) -> list[tuple[int, list[int]]]:
        """See `Prefix.lift`. Blocks leave their tier before room is made above: the two may change places."""
        slots, space = self.table.slots, prefix.space
        lifted: list[tuple[int, list[int]]] = []
        start = 0
        for rank, count in enumerate(prefix.blocks_by_tier):
            if rank and count:
                run = [slots[key] for key in prefix.keys[start : start + count]]
                if not self._raise(run, space):
                    run = run[: self._raise_some(run, space)]
                if run:
                    lifted.append((rank, run))
                if len(run) < count:
                    break
            start += count
        if lifted:
            slot = lifted[-1][1][-1]
            key = self.table.keys[slot]
            assert key is not None
            self.tiers[0].add(slot, key, space.holder)
        return lifted

    def release(self, prefix: Prefix, pinned: Sequence[int]) -> None:
        """End the use of a prefix: its blocks were just read."""
        table, tick = self.table, self._tick
        if pinned:
            last = pinned[-1]
            if self.table.ends[last] and not table.has_kids(last):
                prefix.space.holder.reuse.read(tick - table.links.used[last])
            for slot in pinned:
                table.links.used[slot] = tick
                self.unpin(slot)
            table.ends[last] = 1
            table.reads[last] += 1
            if self.mover is not None:
                self.mover.catch_up()
            self._write_through(prefix.space, prefix.keys[: prefix.num_blocks], "second_use")

    def unpin(self, slot: int) -> None:
        """One reader fewer; without any, the block may leave again, as one that was just read."""
        count = self.pins[slot] - 1
        if count:
            self.pins[slot] = count
        else:
            del self.pins[slot]
            self.tiers[self.table.home[slot]].touch(slot, self._holder_of(slot))

    def lose(self, slot: int) -> None:
        """The payload of a block is gone: it is not found any more until somebody computes it again."""
        self.hollow.add(slot)
        for tier in self.tiers:
            tier.payloads.pop(slot, None)

    def adopt(self, tier: Tier, found: "Sequence[Found]") -> list[int]:
        """Book blocks that a store holds from before, heads first; the slot of each, NOWHERE for no room.

        The latest written count as the latest read.
        """
        table, adopted = self.table, []
        for each in found:
            space = self.spaces.get(each.space) or self._new_space(
                each.space, each.model, "", each.num_bytes, 2.0
            )
            parent = NOWHERE if each.parent == each.space else table.slots.get(each.parent, -1)
            fits = tier.used_bytes + each.num_bytes <= tier.capacity_bytes
            if parent < 0 or each.key in table.slots or not fits:
                adopted.append(NOWHERE)
                continue
            space.holder.is_guess = space.holder.is_guess or not any(space.holder.held_bytes)
            slot = table.extend([each.key], parent, space, tier.rank)
            tier.sizes[slot] = each.num_bytes
            table.ends[slot] = 1
            if each.error:
                self.lossy[slot] = each.error
            self._charge(tier, space, each.num_bytes)
            adopted.append(slot)
        ordered = sorted((each.seq, slot) for each, slot in zip(found, adopted, strict=True) if slot)
        for _, slot in ordered:
            key = table.keys[slot]
            assert key is not None
            tier.add(slot, key, self._holder_of(slot))
        return adopted

    def unwritten(self, slot: int, tier: Tier) -> None:
        """A block could not be written to a tier that it was sent to."""
        if slot in tier.copies:
            self._drop_copy(tier, slot)
        elif self.table.home[slot] == tier.rank:
            if slot in self.pins or self.table.has_kids(slot):
                self.lose(slot)
            else:
                self._evict(tier, [slot], self.space_of(slot))

    def space_of(self, slot: int) -> Space:
        """The namespace of a block."""
        return self.table.space[slot]

    def resize(self, slot: int, tier: Tier, size_bytes: int) -> None:
        """Note what a block really takes in a tier, when that is known."""
        known = self._size(slot, tier)
        if size_bytes == known or self.table.home[slot] != tier.rank:
            return
        tier.sizes[slot] = size_bytes
        self._charge(tier, self.table.space[slot], size_bytes - known)
        if tier.used_bytes > tier.capacity_bytes:
            self._make_room(tier, self._holder_of(slot), 0)

    def drop_model(self, model: str) -> int:
        """Evict all blocks of a model that nobody reads, in all tiers; how many left."""
        table = self.table
        leaves = [
            slot
            for slot in table.slots.values()
            if table.space[slot].holder.key == model and not table.has_kids(slot)
        ]
        dropped = 0
        while leaves:
            slot = leaves.pop()
            if slot in self.pins:
                continue
            parent = table.parent[slot]
            self._evict(self.tiers[table.home[slot]], [slot], table.space[slot])
            dropped += 1
            if parent and not table.has_kids(parent):
                leaves.append(parent)
        return dropped

    def balance(self, now_ns: int) -> None:
        """Say now what each model is sure of, where nobody has asked for anything lately."""
        self._pass(now_ns)
        self._rebalance(0.0)

    def demote_ahead(self, tier: Tier, free_bytes: int, most_blocks: int) -> int:
        """Demote until so much of a tier is free, before somebody needs the room; how many blocks left it.

        Those who hold more than they are sure of give, to where there is room; nothing is evicted for it.
        """
        moved = 0
        if self.mover is not None:
            self.mover.catch_up()
        while moved < most_blocks and tier.capacity_bytes - tier.used_bytes < free_bytes:
            slot = tier.borrowed(self._tick)
            if not slot or not self._has_room_below(tier, slot):
                break
            if not self._demote(tier, slot, self.space_of(slot)):
                break
            moved += 1
        return moved

    def close_tier(self, tier: Tier) -> None:
        """Nothing new comes to that tier until `open_tier`; what is there stays."""
        tier.is_open = False

    def open_tier(self, tier: Tier) -> None:
        tier.is_open = True

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not add up: bytes, capacities, both rules, orders, namespaces."""
        Books(self.table, self.tiers, self.spaces.values()).check(self._stuck)
        for holder in self.holders:
            mine = [space.held_bytes for space in self.spaces.values() if space.holder is holder]
            assert list(holder.held_bytes) == [sum(column) for column in zip(*mine, strict=True)] or not mine
        for rule in self.limits.rules:
            of_rule = [space for space in self.spaces.values() if rule in space.rules]
            assert rule.held_bytes == sum(space.held_bytes[rule.rank] for space in of_rule)
        names = self.table.keys
        assert all(count > 0 and names[slot] is not None for slot, count in self.pins.items())
        assert all(names[slot] is not None for slot in self.hollow)

    # time

    def _pass(self, now_ns: int | None) -> None:
        """Time goes on. Without a time, each call is a tick, and the books are balanced now and then."""
        if now_ns is None:
            self._tick += 1
            if self._tick % 256 == 0:
                self._rebalance(0.0)
            return
        tick = now_ns // TICK_NS + 1
        if tick > self._tick:  # `max` costs four times as much
            self._tick = min(tick, LAST_TICK)
        passed_ns = now_ns - self._balanced_ns
        if passed_ns >= REBALANCE_NS:
            self._balanced_ns = now_ns
            self._rebalance(passed_ns / NS_PER_S)

    def _rebalance(self, passed_s: float) -> None:
        """Say anew what each model is sure of, and learn from what was seen. O(models)."""
        half_life_s = getattr(self.allocation, "half_life_s", None)
        keep = 0.5 ** (passed_s / half_life_s) if half_life_s else 1.0
        hosts = [holder for holder in self.holders if not holder.is_guest]
        if not hosts:
            return
        if self.allocation.is_timely:
            self._reuse.learn()
        for holder in self.holders:
            holder.demand_bytes *= keep
        for tier in self.tiers:
            if tier.is_divided:
                sure = iter(self.allocation.sure_bytes(tier.capacity_bytes, hosts, tier.rank))
                tier.rebalance([0 if holder.is_guest else next(sure) for holder in self.holders])

    # whose blocks

    def _new_space(
        self, digest: bytes, model: str, tenant: str, block_bytes: int, value_bytes: float
    ) -> Space:
        if len(self.spaces) >= self._sweep_at:
            self._forget_empty()
        holder = self._holder(model, tenant, block_bytes, value_bytes)
        space = self._made(digest, holder, tenant)
        space.rules = self.limits.rules_of(model, tenant)
        return space

    def _made(self, digest: bytes, holder: Holder, tenant: str) -> Space:
        count = len(self.tiers)
        space = self.spaces[digest] = Space(digest, holder, tenant, Counts(count))
        return space

    def _forget_empty(self) -> None:
        """Forget namespaces that hold nothing; what was counted for them is counted for all others of their model.

        Whoever has one in hand gets the one in its place (`_known`).
        """
        for space in [each for each in self.spaces.values() if not any(each.held_bytes)]:
            if space.tenant == OTHERS:
                continue
            of_others = OTHERS.encode() + space.holder.index.to_bytes(4, "big")
            others = self.spaces.get(of_others) or self._made(of_others, space.holder, OTHERS)
            others.stats.add(space.stats)
            del self.spaces[space.digest]
            space.is_known = False
        self._sweep_at = max(SWEPT_FROM, 2 * len(self.spaces))

    def _known(self, space: Space) -> Space:
        """A namespace; where it was forgotten while somebody had it in hand, the one in its place."""
        if space.is_known:
            return space
        holder = space.holder
        return self.spaces.get(space.digest) or self._new_space(
            space.digest, holder.key, space.tenant, holder.raw_bytes, holder.value_bytes
        )

    def _know(self, space: Space, tenant: str, block_bytes: int, value_bytes: float) -> None:
        """A namespace that was found in a store says whose it is, and what its blocks weigh.

        What was adopted has sizes of its own, so nothing is booked by the ones that are replaced here.
        """
        holder = space.holder
        if holder.is_guess:
            holder.is_guess = False
            holder.raw_bytes, holder.value_bytes = block_bytes, value_bytes
            holder.block_bytes = [holder.form_bytes(tier.settings.form) for tier in self.tiers]
        if space.tenant != tenant:
            for rule in space.rules:
                rule.held_bytes -= space.held_bytes[rule.rank]
            space.tenant = tenant
            space.rules = self.limits.rules_of(holder.key, tenant)
            for rule in space.rules:
                rule.held_bytes += space.held_bytes[rule.rank]

    def _holder(self, model: str, tenant: str, block_bytes: int, value_bytes: float) -> Holder:
        guest = tenant if self.limits.has_own_order(tenant) else ""
        holder = self._by_name.get((model, guest))
        if holder is None:
            count = len(self.tiers)
            holder = Holder(model, len(self.holders), block_bytes, value_bytes, count, self._reuse)
            holder.block_bytes = [holder.form_bytes(tier.settings.form) for tier in self.tiers]
            holder.is_guest = bool(guest)
            self._by_name[model, guest] = holder
            self.holders.append(holder)
            for tier in self.tiers:
                tier.admit(holder)
            self._rebalance(0.0)
        return holder

    def _holder_of(self, slot: int) -> Holder:
        return self.table.space[slot].holder

    def _size(self, slot: int, tier: Tier) -> int:
        """What a block takes in the tier in which it lies."""
        return tier.sizes.get(slot) or self._holder_of(slot).block_bytes[tier.rank]

    def _charge(self, tier: Tier, space: Space, size_bytes: int) -> None:
        """Book bytes (negative: discharge them) of a namespace in a tier."""
        rank, held, of_holder = tier.rank, space.held_bytes, space.holder.held_bytes
        tier.used_bytes += size_bytes
        held[rank] = held[rank] + size_bytes  # in full: compiled, `+=` of an item takes ten times as long
        of_holder[rank] = of_holder[rank] + size_bytes
        for rule in space.rules:
            if rule.rank == rank:
                rule.held_bytes += size_bytes

    def _rebook(self, source: Tier, left_bytes: int, target: Tier, came_bytes: int, space: Space) -> None:
        """Book bytes of a namespace that left one tier and came to another one."""
        above, below, held, of_holder = source.rank, target.rank, space.held_bytes, space.holder.held_bytes
        source.used_bytes -= left_bytes
        held[above] = held[above] - left_bytes
        of_holder[above] = of_holder[above] - left_bytes
        target.used_bytes += came_bytes
        held[below] = held[below] + came_bytes
        of_holder[below] = of_holder[below] + came_bytes
        for rule in space.rules:
            if rule.rank == above:
                rule.held_bytes -= left_bytes
            elif rule.rank == below:
                rule.held_bytes += came_bytes

    # coming in

    def _refill(
        self,
        space: Space,
        keys: list[bytes],
        payloads: Sequence[Any] | None,
        first: int,
        start: int,
        last: int,
    ) -> tuple[int, int]:
        """Pass over blocks that are there; those below the hottest tier, and hollow ones, get a new payload.

        The first block that is not there, and the last one that is.
        """
        table, slots = self.table, self.table.slots
        while start < len(keys) and (slot := slots.get(keys[start])) is not None:
            if payloads is not None and (table.home[slot] or slot in self.hollow):
                if last and table.home[last]:
                    break
                self._pin(slot, last)
                is_raised = self._renew(slot, space, payloads[start - first])
                self._unpin(slot, last)
                if not is_raised:
                    break
            last = slot
            start += 1
        return start, last

    def _renew(self, slot: int, space: Space, payload: Any) -> bool:
        """Give a block that is there a new payload, in the hottest tier; False when there is no room for it."""
        source = self.tiers[self.table.home[slot]]
        if source.rank:
            if not self._raise([slot], space):
                return False
            if self.mover is not None and slot not in source.copies:
                self.mover.dropped(slot, source)
        self.hollow.discard(slot)
        self.lossy.pop(slot, None)
        hot = self.tiers[0].payloads
        hot.pop(slot, None)
        if payload is not None:
            hot[slot] = payload
        return True

    def _pin(self, *slots: int) -> None:
        for slot in slots:
            if slot:
                self.pins[slot] = self.pins.get(slot, 0) + 1

    def _unpin(self, *slots: int) -> None:
        for slot in slots:
            if slot:
                self.unpin(slot)

    def _insert(self, space: Space, keys: list[bytes], parent: int, payloads: Sequence[Any] | None) -> int:
        """New blocks in the hottest tier, where there is room for them; the slot of the last."""
        table, hot, count = self.table, self.tiers[0], len(keys)
        last = table.extend(keys, parent, space)
        if payloads is not None and payloads[0] is not None:
            for key, payload in zip(keys, payloads, strict=False):
                hot.payloads[table.slots[key]] = payload
        self._charge(hot, space, count * space.holder.block_bytes[0])
        hot.add(last, keys[-1], space.holder)
        space.stats.inserted_blocks += count
        if self._ghosts:
            self._welcome_back(space, keys)
        self._write_through(space, keys, "through")
        return last

    def _insert_all(
        self, space: Space, keys: list[bytes], parent: int, payloads: Sequence[Any] | None
    ) -> tuple[int, int]:
        """New blocks, in the hottest tier while it has room, then in colder ones; how many, and the last."""
        count, last, first_tier = 0, parent, self.table.home[parent] if parent else 0
        if first_tier == 0:
            count = self._admitted(space, keys)
            if count:
                last = self._insert(space, keys[:count], last, payloads)
            first_tier = 1
            if count == len(keys) or space.rules:
                return count, last  # a limit may have said no, and not for want of room
        for lower in self.tiers[first_tier:]:
            size = space.holder.block_bytes[lower.rank]
            fits = min(len(keys) - count, lower.capacity_bytes // size)
            if not fits:
                continue
            self._pin(last)
            has_room = self._make_way(lower, space, [last] * fits, size)
            self._unpin(last)
            if has_room:
                fresh = payloads[count:] if payloads is not None else None
                last = self._insert_below(lower, space, keys[count : count + fits], last, fresh)
                count += fits
        return count, last

    def _insert_below(
        self, lower: Tier, space: Space, keys: list[bytes], parent: int, payloads: Sequence[Any] | None
    ) -> int:
        """New blocks straight into a colder tier, where there is room for them; the slot of the last."""
        table, hot, count = self.table, self.tiers[0], len(keys)
        size = space.holder.block_bytes[lower.rank]
        last = table.extend(keys, parent, space, lower.rank)
        slots = [table.slots[key] for key in keys]
        target = hot if self.mover is not None else lower
        if payloads is not None and payloads[0] is not None:
            for slot, payload in zip(slots, payloads, strict=False):
                target.payloads[slot] = payload
        self._charge(lower, space, count * size)
        lower.add(last, keys[-1], space.holder)
        space.stats.inserted_blocks += count
        if self.mover is not None:
            self.mover.moved(space, slots, hot, lower, size)
        return last

    def _admitted(self, space: Space, keys: list[bytes]) -> int:
        """How many of these new blocks come into the hottest tier, room made for them."""
        hot, holder = self.tiers[0], space.holder
        size, count = holder.block_bytes[0], len(keys)
        if space.rules:
            count = self.limits.wanted(space, 0, size, keys)
            for rule in space.rules:
                if rule.rank == 0:
                    count = min(count, self._within(rule, hot, holder, count * size) // size)
        needed = min(count, hot.capacity_bytes // size) * size
        if needed and not self._make_room(hot, holder, needed):
            needed = hot.capacity_bytes - hot.used_bytes
        return min(count, needed // size)

    def _within(self, rule: Rule, tier: Tier, holder: Holder, wanted_bytes: int) -> int:
        """How much of what is wanted a limit allows; its own oldest blocks make room where that is the rule."""
        left = rule.limit_bytes - rule.held_bytes
        if left < wanted_bytes and rule.settings.when_full == "evict":
            order = tier.order_of(holder)
            while left < min(wanted_bytes, rule.limit_bytes) and (slot := order.victim()):
                self._send_away(tier, slot)
                left = rule.limit_bytes - rule.held_bytes
        return max(0, min(left, wanted_bytes))

    def _relieve(self, space: Space) -> None:
        """Send the oldest blocks down where a limit is nearly reached."""
        for rule in space.rules:
            tier = self.tiers[rule.rank]
            if rule.share(0) > rule.settings.demote_from and tier.rank + 1 < len(self.tiers):
                order = tier.order_of(space.holder)
                while rule.share(0) > rule.settings.demote_from and (slot := order.victim()):
                    self._send_away(tier, slot)

    def _write_through(self, space: Space, keys: Sequence[bytes], when: str) -> None:
        """Write hot blocks to colder tiers too, where that is their way; from the tail, until one is there."""
        table = self.table
        for tier in self._written_when[when]:
            if not tier.is_open:
                continue
            fresh, slots, home, copies, hollow = [], table.slots, table.home, tier.copies, self.hollow
            for key in reversed(keys):
                slot = slots[key]
                if home[slot] or slot in copies or slot in hollow:
                    break
                fresh.append(slot)
            fresh.reverse()
            if fresh and not self._copy(fresh, space, tier):
                for slot in fresh:  # head first: what does not fit is the tail
                    if not self._copy([slot], space, tier):
                        break

    def _copy(self, slots: list[int], space: Space, tier: Tier) -> bool:
        """Write hot blocks to a colder tier too, if there is room for all of them."""
        size = self._size_there(space, tier)
        total = size * len(slots)
        if total > tier.room_bytes() or not self._make_room(tier, space.holder, total):
            return False
        copies = tier.copies
        for slot in slots:
            copies[slot] = size
        tier.copied_bytes += total
        self._charge(tier, space, total)
        if self.mover is not None:
            self.mover.copied(space, slots, tier, size)
        return True

    def _welcome_back(self, space: Space, keys: list[bytes]) -> None:
        """Learn from blocks that left too early: they are wanted again."""
        ghosts, tick = self._ghosts, self._tick
        if ghosts.keys().isdisjoint(keys):
            return
        for key in keys:
            if (ghost := ghosts.pop(key, None)) is not None:
                read, left = ghost
                space.holder.reuse.returned(left - read, tick - read)
                seen = self.wanted_again.setdefault(space.holder.key, [0, 0])
                seen[0] += 1
                seen[1] += tick - left

    def _note_end(self, slot: int) -> None:
        """A request ends at this block."""
        self.table.links.used[slot] = self._tick
        self.table.ends[slot] = 1

    # moving

    def _raise_some(self, run: list[int], space: Space) -> int:
        """Move blocks to the hottest tier one by one; how many found room."""
        for count, slot in enumerate(run):
            if not self._raise([slot], space):
                return count
        return len(run)

    def _raise(self, run: list[int], space: Space) -> bool:
        """Move blocks of a chain, from the head, to the hottest tier; False when there is no room for all."""
        table, hot, holder = self.table, self.tiers[0], space.holder
        source = self.tiers[table.home[run[0]]]
        order, usual = source.order_of(holder), holder.block_bytes[source.rank]
        sizes = [source.sizes.get(slot, usual) for slot in run] if source.sizes else [usual] * len(run)
        total, needed = sum(sizes), holder.block_bytes[0] * len(run)
        after, has_all = table.links.after, not order.keeps_place
        for slot in run:
            if has_all or after[slot]:  # who keeps places knows nothing of those who have none
                order.forget(slot)
        self._charge(source, space, -total)
        if not self._make_room(hot, holder, needed):
            if not self._make_room(source, holder, total):  # of those who left above, some may have come here
                self._clear(source, total)
            self._charge(source, space, total)
            self._touch_all(source, run, holder)
            return False
        table.move(run[::-1], 0)
        self._charge(hot, space, needed)
        promoted = space.stats.promoted_blocks
        promoted[source.rank] = promoted[source.rank] + len(run)
        if source.sizes:
            for slot in run:
                source.sizes.pop(slot, None)
        if self.settings.inclusive:
            self._leave_copies(source, space, run, sizes)
        if self.mover is None and source.payloads:
            self._hand_up(source, run)
        return True

    def _touch_all(self, tier: Tier, run: list[int], holder: Holder) -> None:
        kids, pins = self.table.kids, self.pins
        for slot in run:
            if kids[slot] < CHILD and slot not in pins:  # `Tier.busy`, without a call for each
                tier.touch(slot, holder)

    def _hand_up(self, source: Tier, run: list[int]) -> None:
        """Payloads go with their blocks; where a copy stays, they stay too."""
        for slot in run:
            if slot in source.payloads:
                self.tiers[0].payloads[slot] = source.payloads[slot]
                if slot not in source.copies:
                    del source.payloads[slot]

    def _leave_copies(self, source: Tier, space: Space, run: list[int], sizes: list[int]) -> None:
        """What was promoted is still written where it was, for as long as nobody needs the room."""
        for slot, size in zip(run, sizes, strict=True):
            if slot not in self.hollow and source.used_bytes + size <= source.capacity_bytes:
                source.copies[slot] = size
                source.copied_bytes += size
                self._charge(source, space, size)

    def _make_room(self, tier: Tier, holder: Holder, needed_bytes: int) -> bool:
        """Let blocks leave until `needed_bytes` fit; False when they do not fit beside what is in use."""
        capacity, order = tier.capacity_bytes, tier.order
        most = capacity - needed_bytes
        if tier.used_bytes <= most:
            return True
        if most < 0:
            return False
        if self.settings.headroom:
            most -= min(int(self.settings.headroom * capacity), most)
        while tier.used_bytes > most:
            if tier.copies and tier.drops_copies_first:
                self._drop_copy(tier)
            elif tier.pours_to and self._pour(tier, tier.pours_to, most):
                break
            elif slot := order.victim() if order else tier.victim(holder, needed_bytes, self._tick):
                self._send_away(tier, slot, tier.used_bytes - most, holder)
            elif tier.copies:
                self._drop_copy(tier)
            else:
                break
        return tier.used_bytes + needed_bytes <= capacity

    def _pour(  # noqa: C901, PLR0912, PLR0915  a call for each step costs half as much again
        self, tier: Tier, lower: Tier, most_bytes: int
    ) -> bool:
        """Let blocks leave a tier until it holds no more than that; False when nobody can leave, or not this way.

        What `_send_away` does, where both tiers are rings and nobody has a limit. Blocks of one chain that sink
        together to where none of them is written are most of all that moves in a cache of several tiers: these steps
        are written out.
        """
        mover, ring, ring_below = self.mover, tier.ring, lower.ring
        if mover is None or not lower.is_open or self.hollow or tier.sizes:
            return False
        assert ring is not None
        assert ring_below is not None
        table, pins, rank, below = self.table, self.pins, tier.rank, lower.rank
        head, head_below, copies = ring.head, ring_below.head, lower.copies
        home, parents, spaces, used = table.home, table.parent, table.space, table.links.used
        kids = table.kids
        before, after = table.links.before, table.links.after
        while tier.used_bytes > most_bytes:
            tail = after[head]
            if tail == head:
                return False
            if kids[tail] >= CHILD or tail in pins:
                table.links.unlink(tail)
                continue
            space = spaces[tail]
            size, size_below = space.holder.block_bytes[rank], space.holder.block_bytes[below]
            run: list[int] = [tail]
            parent, left_bytes = parents[tail], tier.used_bytes - most_bytes - size
            while (
                left_bytes > 0
                and home[parent] == rank
                and CHILD <= kids[parent] < 2 * CHILD
                and not after[parent]
                and parent not in pins
            ):
                run.append(parent)
                parent = parents[parent]
                left_bytes -= size
            if copies and not copies.keys().isdisjoint(run):
                if tail in copies:
                    self._sink_to_copies(tier, lower, self._written(lower, run), space)
                    continue
                run = list(takewhile(lambda slot: slot not in copies, run))
                parent = parents[run[-1]]
            count = len(run)
            total = size_below * count
            if total > lower.room_bytes():
                self._send_each(tier, run[:1] if copies else self._in_turn(tier, run), space)
                continue
            has_room = lower.used_bytes + total <= lower.capacity_bytes
            if not has_room and not self._make_room(lower, space.holder, total):
                self._send_each(tier, run[:1], space)
                continue
            previous, following = before[tail], after[tail]
            if parent:
                read, seen = used[tail], used[parent]
                if seen < read:
                    used[parent] = read
                if (
                    home[parent] == rank
                    and CHILD <= kids[parent] < 2 * CHILD
                    and not after[parent]
                    and parent not in pins
                ):
                    before[parent], after[previous] = previous, parent  # it takes their place
                    previous = parent
            after[previous], before[following] = following, previous
            last = before[head_below]
            after[last] = before[head_below] = tail
            before[tail], after[tail] = last, head_below
            table.move(run, below)
            self._rebook(tier, size * count, lower, total, space)
            demoted = space.stats.demoted_blocks
            demoted[below] = demoted[below] + count
            mover.moved(space, run, tier, lower, size_below)
            if parent in self._stuck:
                self._unstick(parent)
        return True

    def _clear(self, tier: Tier, needed_bytes: int) -> None:
        """Let blocks leave until `needed_bytes` fit that have nowhere else to be, whoever is sure of what leaves."""
        for part in tier.parts:
            while tier.used_bytes + needed_bytes > tier.capacity_bytes and (slot := part.order.victim()):
                self._send_away(tier, slot)

    def _send_away(
        self, tier: Tier, slot: int, needed_bytes: int = 1, demander: Holder | None = None
    ) -> None:
        """A block leaves a tier: down to the next one that takes it, or for good. It stays where it cannot do either.

        The blocks before it that hang on nothing else go with it, as far as `needed_bytes` asks for more: together,
        or one after the other where the way down does not take all of them.
        """
        space = self.table.space[slot]
        sizes, run = space.holder.block_bytes, [slot]
        size = sizes[tier.rank]
        if needed_bytes > size and not space.rules and not self.hollow and not tier.sizes:
            run = self._run(tier, slot, space, -(-needed_bytes // size), demander)
            if len(run) > 1:
                below = self._below[tier.rank]
                lower = below[0] if below else None
                # what is written there already needs no way
                if lower and not lower.copies and sizes[lower.rank] * len(run) > lower.room_bytes():
                    run = self._in_turn(tier, run)
                elif self._send_run(tier, lower, run, space):
                    return
                else:
                    run = run[:1]
        self._send_each(tier, run, space)

    def _send_each(self, tier: Tier, run: list[int], space: Space) -> None:
        """Blocks of a chain, from the tail up, leave a tier one after the other, until one of them stays."""
        for slot in run:
            if not self._demote(tier, slot, space):
                self._give_up(tier, slot, space)
                return

    def _give_up(self, tier: Tier, slot: int, space: Space) -> None:
        """A block that no other tier takes leaves for good, or stays because of what hangs on it."""
        if self.table.has_kids(slot):
            tier.order_of(space.holder).forget(slot)
            self._stuck.add(slot)
        else:
            self._evict(tier, [slot], space)

    def _demote(self, tier: Tier, slot: int, space: Space) -> bool:
        """Send a block down to the next tier that takes it; False when none does."""
        run, sizes = [slot], space.holder.block_bytes
        for lower in self._below[tier.rank]:
            if slot in lower.copies:
                self._sink_to_copies(tier, lower, run, space)
                return True
            size = self._size_there(space, lower) if space.rules else sizes[lower.rank]
            if self._make_way(lower, space, run, size):
                self._sink(tier, lower, run, space, size)
                return True
            if self.table.num_children(slot, lower.rank):
                break  # it must not lie colder than what hangs on it
        return False

    def _has_room_below(self, tier: Tier, slot: int) -> bool:
        """Whether the next tier takes a block without another one leaving it."""
        lower = next(iter(self._below[tier.rank]), None)
        if lower is None:
            return False
        size = self._size_there(self.space_of(slot), lower)
        return slot in lower.copies or lower.used_bytes + size <= lower.capacity_bytes

    def _run(
        self, tier: Tier, slot: int, space: Space, num_blocks: int, demander: Holder | None
    ) -> list[int]:
        """A victim and those before it that would be the next ones: from the tail up, as many as are needed."""
        rank, holder = tier.rank, space.holder
        if not tier.order_of(holder).keeps_place:
            return [slot]
        if holder is not demander and tier.is_divided:  # others keep what they are sure of
            num_blocks = min(num_blocks, tier.spare_blocks(holder))
        table, pins, run = self.table, self.pins, [slot]
        parents, home, kids, after = table.parent, table.home, table.kids, table.links.after
        for _ in range(num_blocks - 1):
            slot = parents[slot]
            if home[slot] != rank or not CHILD <= kids[slot] < 2 * CHILD or after[slot] or slot in pins:
                break
            run.append(slot)
        return run

    def _in_turn(self, tier: Tier, run: list[int]) -> list[int]:
        """As many of a run, from the tail up, as are sure to be the next victims of a tier one after the other."""
        if tier.is_divided:  # it may be somebody else's turn
            return run[:1]
        stuck = self._stuck
        if stuck:  # who was stuck stands elsewhere in its order as soon as it is not any more
            for index in range(1, len(run)):
                if run[index] in stuck:
                    return run[:index]
        return run

    def _send_run(self, tier: Tier, lower: Tier | None, run: list[int], space: Space) -> bool:
        """Send several blocks of a chain one tier down, or off the last one; False when each has to be looked at."""
        if lower is None:
            self._evict(tier, run, space)
            return True
        if lower.copies:  # what is written there already goes in another way
            if run[0] in lower.copies and not tier.is_divided:
                self._sink_to_copies(tier, lower, self._written(lower, run), space)
                return True
            written = next((index for index, slot in enumerate(run) if slot in lower.copies), len(run))
            if written <= 1:
                return False
            run = run[:written]
        size = space.holder.block_bytes[lower.rank]
        if not self._make_way(lower, space, run, size):
            return False
        self._sink(tier, lower, run, space, size)
        return True

    def _size_there(self, space: Space, tier: Tier) -> int:
        """What a block of a namespace will take in a colder tier."""
        if self.mover is None or not space.rules:
            return space.holder.block_bytes[tier.rank]
        return self.mover.size_bytes(space, tier, compress=self.limits.compresses(space, tier.rank))

    def _make_way(self, lower: Tier, space: Space, run: list[int], size_bytes: int) -> bool:
        """Whether a colder tier takes blocks of that size; there is room for them then."""
        total = size_bytes * len(run)
        if not lower.is_open or total > lower.room_bytes() or (self.hollow and run[0] in self.hollow):
            return False
        if space.rules:
            for rule in space.rules:
                if rule.rank == lower.rank and self._within(rule, lower, space.holder, total) < total:
                    return False
        return lower.used_bytes + total <= lower.capacity_bytes or self._make_room(lower, space.holder, total)

    def _sink(self, tier: Tier, lower: Tier, run: list[int], space: Space, size_bytes: int) -> None:
        """Book blocks of a chain, from the tail up, in a colder tier. Only the last can leave that one next."""
        table, rank, holder, tail = self.table, lower.rank, space.holder, run[0]
        key, count = table.keys[tail], len(run)
        assert key is not None
        left_bytes = self._sizes_of(tier, run, holder)
        self._leave(tier, run, key, holder)
        table.move(run, rank)
        if size_bytes != holder.block_bytes[rank]:
            lower.sizes.update(dict.fromkeys(run, size_bytes))
        self._rebook(tier, left_bytes, lower, size_bytes * count, space)
        lower.add(tail, key, holder)
        demoted = space.stats.demoted_blocks
        demoted[rank] = demoted[rank] + count
        if self.mover is not None:
            self.mover.moved(space, run, tier, lower, size_bytes)
        elif tier.payloads:
            for slot in run:
                if slot in tier.payloads:
                    lower.payloads[slot] = tier.payloads.pop(slot)
        if self._stuck and (parent := table.parent[run[-1]]) in self._stuck:
            self._unstick(parent)

    def _written(self, lower: Tier, run: list[int]) -> list[int]:
        """As many of a run, from the tail up, as are written in a colder tier already: of those who stand in a row.

        Who was stuck stands elsewhere in its order as soon as it is not any more.
        """
        copies, stuck = lower.copies, self._stuck
        for index, slot in enumerate(run):
            if slot not in copies or (index and slot in stuck):
                return run[:index]
        return run

    def _sink_to_copies(self, tier: Tier, lower: Tier, run: list[int], space: Space) -> None:
        """Blocks of a chain, from the tail up, are written in that tier already: their copies are the blocks now."""
        table, rank, holder = self.table, lower.rank, space.holder
        size_bytes = self._sizes_of(tier, run, holder)
        self._leave(tier, run, table.keys[run[0]] or b"", holder)
        self._charge(tier, space, -size_bytes)
        table.move(run, rank)
        for slot in run:
            size = lower.copies.pop(slot)
            lower.copied_bytes -= size
            if size != holder.block_bytes[rank]:
                lower.sizes[slot] = size
            lower.add(slot, table.keys[slot] or b"", holder)
        demoted = space.stats.demoted_blocks
        demoted[rank] = demoted[rank] + len(run)
        if self.mover is not None or tier.payloads:
            for slot in run:
                if self.mover is not None:
                    self.mover.dropped(slot, tier)
                elif slot in tier.payloads:
                    lower.payloads[slot] = tier.payloads.pop(slot)
        if self._stuck and (parent := table.parent[run[-1]]) in self._stuck:
            self._unstick(parent)

    def _leave(self, tier: Tier, run: list[int], key: bytes, holder: Holder) -> None:
        """Take blocks of a chain, from the tail up, out of their order; the one before them takes their place.

        `key` is that of the last one of the chain.
        """
        table, slot, ring = self.table, run[0], tier.ring
        part = tier.parts[holder.index if tier.is_divided else 0]
        order, parent = part.order, table.parent[run[-1]]
        if parent:
            used, rank = table.links.used, tier.rank
            read, seen = used[slot], used[parent]
            if seen < read:
                used[parent] = read
            is_last = CHILD <= table.kids[parent] < 2 * CHILD
            if is_last and table.home[parent] == rank and parent not in self.pins:
                if ring is not None:
                    ring.inherit(parent, slot)
                else:
                    order.inherit(parent, slot)
                    if not part.is_queued:
                        tier.queue(part)
        if ring is not None:
            ring.forget(slot)
        else:
            order.leave(slot, key)

    def _sizes_of(self, tier: Tier, run: list[int], holder: Holder) -> int:
        """What blocks that leave a tier took there; sizes of their own are forgotten."""
        usual = holder.block_bytes[tier.rank]
        return sum([tier.sizes.pop(slot, usual) for slot in run]) if tier.sizes else usual * len(run)

    def _evict(self, tier: Tier, run: list[int], space: Space) -> None:
        """Blocks of a chain, from the tail up, that nothing else hangs on leave for good, their copies with them."""
        table = self.table
        for lower in self._below[tier.rank]:
            for slot in run if lower.copies else ():
                if slot in lower.copies:
                    self._drop_copy(lower, slot)
        size_bytes = self._sizes_of(tier, run, space.holder)
        self._leave(tier, run, table.keys[run[0]] or b"", space.holder)
        self._charge(tier, space, -size_bytes)
        ends, read = self.table.ends, table.links.used[run[0]]
        for slot in run:
            if ends[slot]:
                ends[slot] = 0
                key = table.keys[slot]
                assert key is not None
                self._mourn(key, read, space.holder)
        evicted = space.stats.evicted_blocks
        evicted[tier.rank] = evicted[tier.rank] + len(run)
        if self.on_evicted is not None:
            self.on_evicted(space.holder.key, tier.name, len(run), (read - 1) * TICK_NS)
        if self.hollow or self._stuck or self.lossy:
            self._forget_marks(run)
        if self.mover is not None or tier.payloads:
            self._discard(tier, run)
        parent = table.parent[run[-1]]
        table.remove(run)
        if parent in self._stuck:
            self._unstick(parent)

    def _discard(self, tier: Tier, run: list[int]) -> None:
        for slot in run:
            if self.mover is not None:
                self.mover.dropped(slot, tier)
            tier.payloads.pop(slot, None)

    def _forget_marks(self, run: list[int]) -> None:
        for slot in run:
            self.hollow.discard(slot)
            self._stuck.discard(slot)
            self.lossy.pop(slot, None)

    def _mourn(self, key: bytes, read: int, holder: Holder) -> None:
        """Remember an end that left, for a while: whether it is wanted again tells how long to keep such blocks."""
        ghosts = self._ghosts
        holder.reuse.left(self._tick - read)
        ghosts[key] = (read, self._tick)
        if len(ghosts) > max(MIN_GHOSTS, len(self.table.slots) // 4):
            del ghosts[next(iter(ghosts))]

    def _drop_copy(self, tier: Tier, slot: int | None = None) -> None:
        """Give up a copy, the oldest one unless it is said which."""
        if slot is None:
            slot = next(iter(tier.copies))
        size = tier.copies.pop(slot)
        tier.copied_bytes -= size
        self._charge(tier, self.table.space[slot], -size)
        tier.payloads.pop(slot, None)
        if self.mover is not None:
            self.mover.dropped(slot, tier)

    def _unstick(self, slot: int) -> None:
        """A block that could not leave may be able to now.

        One on which another of its tier hangs takes that one's place later: they may just be leaving together.
        """
        self._stuck.discard(slot)
        tier = self.tiers[self.table.home[slot]]
        if not tier.busy(slot):
            tier.touch(slot, self._holder_of(slot))

    def _sound(self, keys: list[bytes], count: int) -> int:
        """How many of the first `count` resident blocks have their payload."""
        slots, hollow = self.table.slots, self.hollow
        for index in range(count):
            if slots[keys[index]] in hollow:
                return index
        return count
