"""What the blocks of a prompt are called in the KV of one model, by what they are called for all models."""

from collections.abc import Sequence

CAPACITY = 1 << 18


class BlockNames:
    """The names that were looked up before, up to `capacity` of them: naming blocks anew takes a hash for each.

    Two generations: what was not read for while one of them filled up is forgotten, whole prefixes from their ends.
    """

    __slots__ = ("_room", "old", "young")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._room = max(1, capacity // 2)
        self.young: dict[bytes, bytes] = {}
        self.old: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def learn(self, shared: Sequence[bytes], own: Sequence[bytes]) -> None:
        """Note the names of a prefix, block by block. O(blocks that are new): names are chained."""
        young = self.young
        new = len(shared)
        while new and shared[new - 1] not in young:
            new -= 1
        if new == len(shared):
            return
        if len(young) + len(shared) - new > self._room:
            self.old, self.young = young, {}
            young, new = self.young, max(0, len(shared) - self._room)
        young.update(zip(shared[new:], own[new:], strict=True))

    def __contains__(self, shared: bytes) -> bool:
        return shared in self.young or shared in self.old

    def of(self, shared: Sequence[bytes]) -> list[bytes]:
        """The names of a prefix in this model, as far as they are known: from some block on, none is."""
        found, young, old = [], self.young, self.old
        for key in shared:
            own = young.get(key) or old.get(key)
            if own is None:
                break
            found.append(own)
        return found
