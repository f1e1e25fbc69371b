"""What a KV block is called: a hash of its tokens chained over all blocks before it.

The chain starts from a namespace (model, version, KV layout, tenant's salt), so that one flat table serves all
models and tenants and no block is ever found by another. The hash has 128 bits (BLAKE2b): two different
prefixes with one name are not expected within the lifetime of any machine, and tokens are not compared again.

Where a prompt says what it was drawn from, and no tensor is ever made of it, blocks are named by that instead
(`LineChain`): the same blocks are shared, and no token is worked out.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from struct import pack
from typing import Final, Protocol

import numpy as np

from engine.native import i64
from engine.request import Stream, Tokens

KEY_BYTES: Final = 16
LAYOUT_VERSION = 1

TOKEN = np.dtype("<i4")
NOTHING = blake2b(digest_size=KEY_BYTES)
"""The hash of nothing; copies of it go on."""

_COUNTED_BYTES: Final = 7
"""Of a name, that are counted on from block to block: what a machine number holds. The others are the line's."""

_BITS: Final = (1 << 8 * _COUNTED_BYTES) - 1
_STEP: Final = 0x9E3779B97F4A7D  # odd, 2^56 by the golden ratio: multiples of it spread evenly

Origin = tuple[bytes, int]
"""A stretch of a prompt: what its tokens are the first of, and where it ends (exclusive), counted from the head."""


class Drawn(Protocol):
    """A prompt that was drawn, and says from what: equal names, equal tokens.

    `telling_tokens`: so many tokens of two different stretches are not the same by chance.
    """

    telling_tokens: int

    def origins(self) -> Sequence[Origin]: ...

    def __getitem__(self, index: slice) -> Tokens: ...


def namespace(model: str, weights: str, salt: str, block_tokens: int) -> bytes:
    """The start of every chain of this model version and tenant."""
    text = "\0".join((model, weights, salt, str(block_tokens), str(LAYOUT_VERSION)))
    data = text.encode(errors="surrogatepass")  # JSON lets a tenant's name hold half a character
    return blake2b(data, digest_size=KEY_BYTES).digest()


class Chain(Protocol):
    """The names of the full blocks of a growing sequence."""

    keys: list[bytes]

    def follow(self, stream: Stream, first: int) -> None:
        """Append the tokens of an answer, from that one on."""


class BlockChain:
    """The names of the full blocks of a growing sequence of tokens. About 0.5 us a block."""

    __slots__ = ("_block_bytes", "_rest", "_unread", "keys")

    def __init__(self, start: bytes, block_tokens: int) -> None:
        self._block_bytes = block_tokens * 4
        self._rest = start  # the last name, then the bytes of a block that is not full yet
        self._unread: int | None = None  # the first token of an answer that is not in there yet
        self.keys: list[bytes] = []

    def extend(self, tokens: Tokens | Iterable[int]) -> None:
        """Append tokens; a block gets its name when it is full. A partial last block is never shared."""
        if isinstance(tokens, np.ndarray):
            told = (tokens if tokens.dtype is TOKEN else tokens.astype(TOKEN)).tobytes()
        else:  # most often a few: an array of them would cost more than all the rest
            several = tokens if isinstance(tokens, list) else list(tokens)
            told = pack(f"<{len(several)}i", *several)
        head, data = self._rest[:KEY_BYTES], self._rest[KEY_BYTES:] + told
        size, keys = self._block_bytes, self.keys
        whole = len(data) - len(data) % size
        for start in range(0, whole, size):
            name = NOTHING.copy()  # a quarter less than a new one
            name.update(head + data[start : start + size])
            head = name.digest()
            keys.append(head)
        self._rest = head + data[whole:]

    def follow(self, stream: Stream, first: int) -> None:
        if self._unread is not None:
            first = self._unread
        if len(self._rest) + 4 * (stream.num_tokens - first) < KEY_BYTES + self._block_bytes:
            self._unread = first  # no block gets full: they can wait
            return
        self._unread = None
        self.extend(stream.tokens[first:])


MOST_NAMES = 1 << 14
"""That are kept of lines, and as many lines that follow others: some megabytes."""


class LineNames:
    """The names of lines that were named before: most of a conversation's turn was in the turn before it.

    Two generations of up to half of `capacity` names each (None: `MOST_NAMES`): what was not asked for while one of
    them filled up is forgotten.
    """

    __slots__ = ("_lines", "_most", "_num_young", "_old", "_old_lines", "_young")

    def __init__(self, capacity: int | None = None) -> None:
        self._most = max(1, (MOST_NAMES if capacity is None else capacity) // 2)
        self._num_young = 0
        self._young: dict[bytes, tuple[int, list[bytes]]] = {}
        self._old: dict[bytes, tuple[int, list[bytes]]] = {}
        self._lines: dict[bytes, bytes] = {}  # by what they are called after
        self._old_lines: dict[bytes, bytes] = {}

    def line(self, before: bytes, begin: int, name: bytes) -> bytes:
        """What the line is called that begins with token `begin`, behind all those before it."""
        told = b"%s%d/%s" % (before, begin, name)
        line = self._lines.get(told)
        if line is None:
            line = self._old_lines.get(told)
            if line is None:
                line = digest(before, told[KEY_BYTES:])
            if len(self._lines) >= self._most:
                self._old_lines, self._lines = self._lines, {}
            self._lines[told] = line
        return line

    def of(self, line: bytes, first: int, last: int) -> list[bytes]:
        """The names of the blocks `first` to `last` (exclusive) of a prompt, all in one line that begins there."""
        known = self._young.get(line)
        if known is None or known[0] != first:
            known = self._old.get(line)
            if known is None or known[0] != first:
                known = (first, [])
            self._num_young += len(known[1])
            self._young[line] = known
        names, count = known[1], last - first
        more = count - len(names)
        if more > 0:
            names += named(line, last - more, last)
            self._num_young += more
            if self._num_young > self._most:
                self._old, self._young, self._num_young = self._young, {}, 0
        return names[:count]


class LineChain:
    """The names of the full blocks of a prompt that was drawn, and of its answer, without the tokens of either.

    Each stretch of a prompt is a *line*, called after all lines up to it; a block is called after the line in which
    it ends and its number. So two prompts share a block if and only if both were drawn alike up to its end. The
    answer is a line too, called after the whole prompt: for executors that answer the same prompt alike. A quarter of
    a microsecond a block.
    """

    __slots__ = ("_block_tokens", "_is_prompt", "_line", "_num_tokens", "keys")

    def __init__(
        self, start: bytes, block_tokens: int, prompt: Drawn, known: LineNames | None = None
    ) -> None:
        """`known` has the names of earlier prompts with blocks of that size."""
        known = known or LineNames()
        self._block_tokens = block_tokens
        self._is_prompt = True
        self.keys: list[bytes] = []
        line, begin = start, 0
        for name, end in prompt.origins():
            if begin and 0 < (few := -begin % block_tokens) < prompt.telling_tokens and begin + few <= end:
                # a block with few tokens of this line may be the same as another one's, and is called after them
                self.keys.append(digest(line, prompt[begin : begin + few].astype("<i4").tobytes()))
            line = known.line(line, begin, name)
            first, last = len(self.keys), end // block_tokens
            if first < last:
                self.keys += known.of(line, first, last)
            begin = end
        self._line = line
        self._num_tokens = begin

    def follow(self, stream: Stream, first: int) -> None:
        if self._is_prompt:
            self._is_prompt = False
            self._line = digest(self._line, b"answer%d" % self._num_tokens)
        self._num_tokens += stream.num_tokens - first
        begin, end = len(self.keys), self._num_tokens // self._block_tokens
        if begin < end:
            self.keys += named(self._line, begin, end)


def named(line: bytes, first: i64, last: i64) -> list[bytes]:
    """What the blocks `first` to `last` (exclusive) of a prompt are called, which end in that line."""
    rest, names = line[_COUNTED_BYTES:], []
    begin: i64 = int.from_bytes(line[:_COUNTED_BYTES], "big")
    count = begin + first * _STEP & _BITS  # whatever bits more a number has
    for _ in range(last - first):
        whole: int = count
        names.append(whole.to_bytes(_COUNTED_BYTES, "big") + rest)
        count = count + _STEP & _BITS
    return names


def digest(head: bytes, data: bytes) -> bytes:
    """The name of what comes next after a name."""
    name = NOTHING.copy()
    name.update(head + data)
    return name.digest()
