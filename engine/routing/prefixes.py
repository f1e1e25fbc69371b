"""The prefix index: which holder has the KV of which prefix, as far as the router knows. One for all replicas.

Keys are chained, so a holder of a block holds those before it, and the longest match is found by bisection. A
decision is recorded when it is made: a burst of requests with one new prefix goes to one place, not to all.
"""

from collections.abc import Sequence


class PrefixIndex:
    """Keys of blocks to a mask of their holders, bounded to the `capacity` blocks asked for most recently.

    Two generations: what was not asked for while one of them filled up is forgotten, whole prefixes from their ends.
    """

    __slots__ = ("_room", "num_rotations", "old", "young")

    def __init__(self, capacity: int) -> None:
        self._room = max(1, capacity // 2)
        self.young: dict[bytes, int] = {}
        self.old: dict[bytes, int] = {}
        self.num_rotations = 0

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading blocks of a prompt that has some somebody holds."""
        young, old = self.young, self.old
        if keys[-1] in young or keys[-1] in old:
            return len(keys)
        if keys[0] not in young and keys[0] not in old:
            return 0
        low, high = 1, len(keys)
        while high - low > 1:
            middle = (low + high) >> 1
            key = keys[middle - 1]
            if key in young or key in old:
                low = middle
            else:
                high = middle
        return low

    def holders(self, key: bytes) -> int:
        """The mask of those who hold the prefix that ends with this block."""
        return self.young.get(key, 0) | self.old.get(key, 0)

    def depth_of(self, keys: Sequence[bytes], bit: int, longest: int) -> int:
        """How many leading blocks one holder has, of those `longest` that anybody has."""
        young, old = self.young, self.old
        if not longest or not (young.get(keys[0], 0) | old.get(keys[0], 0)) & bit:
            return 0
        if young.get(keys[longest - 1], 0) & bit:
            return longest
        low, high = 1, longest + 1
        while high - low > 1:
            middle = (low + high) >> 1
            key = keys[middle - 1]
            if (young.get(key, 0) | old.get(key, 0)) & bit:
                low = middle
            else:
                high = middle
        return low

    def record(self, keys: Sequence[bytes], bit: int) -> None:
        """That holder has this prefix, or will soon. O(blocks that are new to it)."""
        if not keys:
            return
        young = self.young
        if young.get(keys[-1], 0) & bit:
            return
        if young and len(young) + len(keys) > self._room:
            self.old, self.young = young, {}
            self.num_rotations += 1
            young = self.young
        old = self.old
        for key in reversed(keys[: self._room]):
            mask = young.get(key, 0)
            if mask & bit:
                break  # and it has all before it, in this generation
            young[key] = mask | old.get(key, 0) | bit

    def forget(self, bit: int) -> None:
        """That holder has lost everything. O(blocks): off the path of requests."""
        for generation in (self.young, self.old):
            for key in [key for key, mask in generation.items() if mask & bit]:
                generation[key] &= ~bit
                if not generation[key]:
                    del generation[key]
