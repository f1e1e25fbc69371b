"""The cache: which KV blocks are resident, who references them, and who leaves when there is no room.

Metadata and payload are apart: the cache never looks into a payload, a tensor under torch and None where only
sizes are simulated. Residency is prefix-closed: a block is resident only if the one before it is. So the longest
cached prefix is found by bisection, and nothing resident is out of reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from engine.cache.eviction import Eviction, eviction
from engine.settings import CacheSettings

GIB = 1 << 30


@dataclass(slots=True, eq=False)
class _Block:
    """A resident block. `references` are prefixes in use; a referenced block never leaves."""

    payload: Any
    size_bytes: int
    parent: bytes | None
    references: int = 0


class Prefix:
    """The longest cached prefix of a prompt, pinned until the `with` block ends."""

    __slots__ = ("_blocks", "_cache", "_keys", "num_tokens", "payloads")

    def __init__(
        self, cache: "PrefixCache", keys: Sequence[bytes], blocks: list[_Block], num_tokens: int
    ) -> None:
        self._cache = cache
        self._keys = keys
        self._blocks = blocks
        self.num_tokens = num_tokens
        self.payloads = [block.payload for block in blocks]

    def __len__(self) -> int:
        """How many blocks it has."""
        return len(self._blocks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._cache.unpin(self._keys, self._blocks)


class PrefixCache:
    """One tier of RAM for all models and replicas of the process."""

    def __init__(self, settings: CacheSettings) -> None:
        """Raises UnknownName, or BadSettings for options that the policy does not have."""
        self.enabled = settings.enabled
        self.block_tokens = settings.block_tokens
        self.capacity_bytes = int(settings.ram_gib * GIB)
        self.used_bytes = 0
        self._pinned_bytes = 0  # of them, in blocks that somebody references
        self._policy: Eviction = eviction.make(settings.eviction, **settings.options)
        self._blocks: dict[bytes, _Block] = {}

    def __len__(self) -> int:
        """How many blocks are resident."""
        return len(self._blocks)

    def match(self, keys: Sequence[bytes]) -> int:
        """How many of a chain's blocks, from its head, are resident. O(log n): residency is prefix-closed."""
        blocks = self._blocks
        if not keys or keys[0] not in blocks:
            return 0
        low, high = 1, len(keys)
        while low < high:
            middle = (low + high + 1) // 2
            if keys[middle - 1] in blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def fetch(self, keys: Sequence[bytes], num_tokens: int) -> Prefix:
        """The longest cached prefix of a prompt of `num_tokens`, pinned.

        At least one token is always left to prefill: its logits are what the first new token comes from.
        """
        useful = min(len(keys), (num_tokens - 1) // self.block_tokens)
        matched = keys[: self.match(keys[:useful])]
        found, pinned_bytes = [], 0
        for key in matched:
            block = self._blocks[key]
            if block.references == 0:
                self._policy.forget(key)
                pinned_bytes += block.size_bytes
            block.references += 1
            found.append(block)
        self._pinned_bytes += pinned_bytes
        return Prefix(self, matched, found, len(found) * self.block_tokens)

    def unpin(self, keys: Sequence[bytes], blocks: Sequence[_Block]) -> None:
        """End the use of a prefix; tail first, so that its head is the last to leave."""
        freed_bytes = 0
        for key, block in zip(reversed(keys), reversed(blocks), strict=True):
            block.references -= 1
            if block.references == 0:
                self._policy.touch(key)
                freed_bytes += block.size_bytes
        self._pinned_bytes -= freed_bytes

    def keep(self, keys: Sequence[bytes], payloads: Sequence[Any], block_bytes: int) -> None:
        """Make the last `len(payloads)` blocks of a chain resident, as far as room can be made for them.

        The blocks before them count as used too. What does not fit is dropped from the tail, so residency stays
        prefix-closed; a block that is there already keeps the payload that it has.
        """
        if not self.enabled:
            return
        known = len(keys) - len(payloads)
        held: list[_Block] = []
        for index, key in enumerate(keys):
            block = self._blocks.get(key)
            if block is None:
                if index < known or not self._make_room(block_bytes):
                    break  # its head has left meanwhile, or too much of what is resident is in use
                block = self._blocks[key] = _Block(
                    payloads[index - known], block_bytes, keys[index - 1] if index else None
                )
                self.used_bytes += block_bytes
                self._pinned_bytes += block_bytes
            elif block.references == 0:
                self._policy.forget(key)
                self._pinned_bytes += block.size_bytes
            block.references += 1  # room for the tail must not be made at the cost of its own head
            held.append(block)
        self.unpin(keys[: len(held)], held)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not add up: bytes, capacity, references, prefix closure, victims."""
        assert self.used_bytes == sum(block.size_bytes for block in self._blocks.values())
        assert self.used_bytes <= self.capacity_bytes
        assert all(block.references >= 0 for block in self._blocks.values())
        in_use = [block for block in self._blocks.values() if block.references]
        assert self._pinned_bytes == sum(block.size_bytes for block in in_use)
        assert all(block.parent is None or block.parent in self._blocks for block in self._blocks.values())
        assert len(self._policy) == sum(block.references == 0 for block in self._blocks.values())

    def _make_room(self, size_bytes: int) -> bool:
        """Evict until `size_bytes` fit; False, and nobody leaves, when they cannot fit beside what is in use."""
        if self._pinned_bytes + size_bytes > self.capacity_bytes:
            return False
        while self.used_bytes + size_bytes > self.capacity_bytes:
            victim = self._policy.victim()
            self._policy.forget(victim)
            self.used_bytes -= self._blocks.pop(victim).size_bytes
        return True
