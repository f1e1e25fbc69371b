"""Whether the books of a cache add up: all blocks of a table at once, a million in a second."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.cache.holders import Space
from engine.cache.table import CHILD, Table
from engine.cache.tier import Tier

Slots = npt.NDArray[np.int64]
Column = npt.NDArray[np.integer[Any]]


class Books:
    """What every block of a table says of itself, side by side with what was counted on the way."""

    def __init__(self, table: Table, tiers: list[Tier], spaces: Iterable[Space]) -> None:
        self._table = table
        self._tiers = tiers
        self._spaces = list(spaces)
        self._slots: Slots = np.fromiter(table.slots.values(), np.int64, len(table.slots))
        self._home = np.array(table.home, np.int64)
        self._parent = np.array(table.parent, np.int64)
        self._kids = np.array(table.kids, np.int64)
        self._space = self._places(table.space)

    def _places(self, spaces: list[Space]) -> Slots:
        """The place of each among all namespaces; behind them for one that is none of them."""
        known = np.fromiter(map(id, self._spaces), np.int64, len(self._spaces))
        asked = np.fromiter(map(id, spaces), np.int64, len(spaces))
        order = np.argsort(known)
        found = np.minimum(np.searchsorted(known, asked, sorter=order), max(0, len(known) - 1))
        places: Slots = (
            np.where(known[order[found]] == asked, order[found], len(known)) if len(known) else found
        )
        return places

    def check(self, stuck: set[int]) -> None:
        """Raise AssertionError when anything does not add up; `stuck` are those who may be in no order."""
        self._check_names()
        held = [self._check_tier(tier, stuck) for tier in self._tiers]
        for number, space in enumerate(self._spaces):
            assert list(space.held_bytes) == [int(of_tier[number]) for of_tier in held]

    def _check_names(self) -> None:
        """Each block is known by its name, and the one before it is resident and no colder."""
        table, slots = self._table, self._slots
        assert [table.keys[slot] for slot in table.slots.values()] == list(table.slots)
        assert (self._space[slots] < len(self._spaces)).all()
        behind = slots[self._parent[slots] > 0]
        parents = self._parent[behind]
        is_resident = np.zeros(len(self._home), dtype=bool)
        is_resident[slots] = True
        assert is_resident[parents].all()
        assert (self._space[~is_resident] == len(self._spaces)).all()  # who has left keeps no namespace alive
        assert (self._home[parents] <= self._home[behind]).all()
        assert ((self._kids[slots] > 0) == np.isin(slots, parents)).all()

    def _check_tier(self, tier: Tier, stuck: set[int]) -> Column:
        """One tier's blocks, bytes, children and order; what each namespace holds there."""
        here = self._slots[self._home[self._slots] == tier.rank]
        assert tier.num_blocks == len(here)
        counted = np.bincount(self._parent[here], minlength=len(self._home))
        assert (self._told(tier)[self._slots] == counted[self._slots]).all()
        held = self._held(tier, here)
        assert tier.used_bytes == held.sum() <= tier.capacity_bytes
        after = self._table.links.after
        for slot in here[counted[here] == 0].tolist():
            if not tier.busy(slot):
                assert after[slot] or slot in stuck, "a block that nobody can evict"
        return held

    def _told(self, tier: Tier) -> Column:
        """How many children the table says that each block has in a tier."""
        told = np.where(self._home == tier.rank, self._kids // CHILD, 0)
        for slot, others in self._table.elsewhere.items():
            told[slot] += others[tier.rank]
        return told

    def _held(self, tier: Tier, here: Slots) -> Column:
        """What each namespace holds of a tier, in their order."""
        rank, space, home = tier.rank, self._space, self._table.home
        usual = np.array([each.holder.block_bytes[rank] for each in self._spaces], dtype=np.int64)
        held = usual * np.bincount(self._space[here], minlength=len(usual))
        for slot, size in tier.sizes.items():
            if home[slot] == rank:
                held[space[slot]] += size - usual[space[slot]]
        for slot, size in tier.copies.items():
            assert home[slot] < rank, "a copy lies in a hotter tier than its block, or in the same one"
            held[space[slot]] += size
        assert tier.copied_bytes == sum(tier.copies.values())
        return held
