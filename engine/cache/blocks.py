"""What a KV block is called: a hash of its tokens chained over all blocks before it.

The chain starts from a namespace (model, version, KV layout, tenant's salt), so that one flat table serves all
models and tenants and no block is ever found by another. The hash has 128 bits (BLAKE2b): two different
prefixes with one name are not expected within the lifetime of any machine, and tokens are not compared again.
"""

from collections.abc import Iterable, Sized
from hashlib import blake2b

import numpy as np

from engine.request import Tokens

KEY_BYTES = 16
LAYOUT_VERSION = 1


def namespace(model: str, weights: str, salt: str, block_tokens: int) -> bytes:
    """The start of every chain of this model version and tenant."""
    text = "\0".join((model, weights, salt, str(block_tokens), str(LAYOUT_VERSION)))
    data = text.encode(errors="surrogatepass")  # JSON lets a tenant's name hold half a character
    return blake2b(data, digest_size=KEY_BYTES).digest()


class BlockChain:
    """The names of the full blocks of a growing sequence of tokens. About 0.5 us a block."""

    __slots__ = ("_block_bytes", "_rest", "keys")

    def __init__(self, start: bytes, block_tokens: int) -> None:
        self._block_bytes = block_tokens * 4
        self._rest = start  # the last name, then the bytes of a block that is not full yet
        self.keys: list[bytes] = []

    def extend(self, tokens: Tokens | Iterable[int]) -> None:
        """Append tokens; a block gets its name when it is full. A partial last block is never shared."""
        if not isinstance(tokens, np.ndarray):
            tokens = np.asarray(tokens if isinstance(tokens, Sized) else list(tokens), dtype=np.int32)
        head, data = self._rest[:KEY_BYTES], self._rest[KEY_BYTES:] + tokens.astype("<i4").tobytes()
        size, keys = self._block_bytes, self.keys
        whole = len(data) - len(data) % size
        for start in range(0, whole, size):
            head = blake2b(head + data[start : start + size], digest_size=KEY_BYTES).digest()
            keys.append(head)
        self._rest = head + data[whole:]
