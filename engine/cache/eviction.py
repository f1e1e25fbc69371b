"""All eviction policies, in a row: each answers one question, which block leaves.

The policy orders keys; the cache owns bytes and tells the policy only of blocks that nobody references, so a
victim can always leave.
"""

from collections import OrderedDict
from typing import Protocol

from engine.named import Named

BlockKey = bytes


class Eviction(Protocol):
    """An order of blocks. The cache touches a prefix from its tail to its head, so a head outlives its tail."""

    def touch(self, key: BlockKey) -> None:
        """The block is new here, or was used."""

    def forget(self, key: BlockKey) -> None:
        """The block is not to be a victim any more: it left, or somebody references it. It is held here."""

    def victim(self) -> BlockKey:
        """The block that should leave next. Only called when one is held; it stays until `forget`."""

    def __len__(self) -> int:
        """How many blocks could leave."""


eviction: Named[Eviction] = Named("eviction policy")


@eviction("lru")
class LRU:
    """Least recently used: every touch moves a block to the back of the line."""

    def __init__(self) -> None:
        self._line: OrderedDict[BlockKey, None] = OrderedDict()

    def touch(self, key: BlockKey) -> None:
        self._line[key] = None
        self._line.move_to_end(key)

    def forget(self, key: BlockKey) -> None:
        del self._line[key]

    def victim(self) -> BlockKey:
        return next(iter(self._line))

    def __len__(self) -> int:
        return len(self._line)
