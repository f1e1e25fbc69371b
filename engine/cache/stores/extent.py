"""An extent: KV blocks of one model that were written together and are published together, as one file or object.

    start   64 bytes: magic, version, flags, number of blocks, seq, size of all, length of the model's name, checksum
    model   its name in UTF-8, filled up to 64 bytes
    index   a head of 192 bytes for each block
    blocks  each the same head again, then its bytes, filled up to 64

The head is there twice so that the index can be read without the blocks and one block without the index, in one
request. Every head has a checksum of its own and tells the checksum of the block; both are xxh3, which is no match
for an attacker: whoever can write to the place can put wrong blocks there. All numbers are little-endian.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from xxhash import xxh3_64_intdigest

from engine.cache.stores.backend import Buffer

MAGIC = b"MYKVEXT\n"
HEAD_MAGIC = b"MYKB"
VERSION = 1

START = Struct("<8sHHIQQI20xQ")  # magic, version, flags, blocks, seq, bytes, model's bytes, checksum
HEAD = Struct("<4sHBxI4xQQQQQd16s16s16s8s16s32s16xQ")
SHAPE = Struct("<8I")
CHECKSUM_BYTES = 8
ALIGNMENT = 64  # of every part: a block's numbers can be used where they lie

MAX_BLOCKS = 1 << 16
MAX_MODEL_BYTES = 4096
MAX_BLOCK_BYTES = 1 << 32
MAX_RANK = 8
KEY_BYTES = 16
FORM_BYTES = 8
DTYPE_BYTES = 16
UINT32 = 1 << 32


class Damaged(Exception):
    """Bytes that are not what was written there."""


@dataclass(slots=True)
class Record:
    """What is stored of one block: its names, what its bytes are, and the bytes.

    `key`, `parent` and `space` (the namespace: weights and tenant) have 16 bytes each. `error` bounds the relative
    error that came with `form`.
    """

    key: bytes
    parent: bytes
    space: bytes
    form: str
    dtype: str
    shape: tuple[int, ...]
    error: float
    data: Buffer


@dataclass(slots=True)
class Head:
    """What stands before a block. `offset` is where this head begins in the extent, `length` the block's bytes."""

    index: int
    seq: int
    model: int
    offset: int
    length: int
    checksum: int
    error: float
    key: bytes
    parent: bytes
    space: bytes
    form: str
    dtype: str
    shape: tuple[int, ...]

    def packed(self) -> bytes:
        shape = SHAPE.pack(*self.shape, *(0,) * (MAX_RANK - len(self.shape)))
        form, dtype = self.form.encode("ascii"), self.dtype.encode("ascii")
        data = HEAD.pack(
            HEAD_MAGIC, VERSION, len(self.shape), self.index, self.seq, self.model, self.offset, self.length,
            self.checksum, self.error, self.key, self.parent, self.space, form, dtype, shape, 0,
        )  # fmt: skip
        return _sealed(data)


@dataclass(slots=True)
class Start:
    """The first 64 bytes: what the extent is said to be."""

    num_blocks: int
    seq: int
    num_bytes: int
    model_bytes: int

    @property
    def index_at(self) -> int:
        return START.size + aligned(self.model_bytes)

    @property
    def blocks_at(self) -> int:
        """The size of everything before the first block."""
        return self.index_at + self.num_blocks * HEAD.size


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def model_digest(model: str) -> int:
    """What a head tells of the model."""
    return xxh3_64_intdigest(model.encode(errors="surrogatepass"))


def laid_out(model: str, seq: int, records: Sequence[Record]) -> tuple[list[Buffer], list[int]]:
    """The parts of an extent, in order, and where each block's head begins; the last number is the size of all.

    Raises ValueError for what the format cannot hold.
    """
    name = model.encode(errors="surrogatepass")
    _require(
        "an extent's number of blocks", len(records), 1 <= len(records) <= MAX_BLOCKS, f"1 to {MAX_BLOCKS}"
    )
    _require("a model's name in bytes", len(name), len(name) <= MAX_MODEL_BYTES, f"at most {MAX_MODEL_BYTES}")
    digest, at = model_digest(model), Start(len(records), seq, 0, len(name)).blocks_at
    offsets, heads = [at], []
    blocks: list[Buffer] = []
    for index, record in enumerate(records):
        data = memoryview(record.data).cast("B")
        _check(record, len(data))
        head = Head(
            index, seq, digest, at, len(data), xxh3_64_intdigest(data), record.error, record.key, record.parent,
            record.space, record.form, record.dtype, record.shape,
        ).packed()  # fmt: skip
        filling = bytes(aligned(len(data)) - len(data))
        heads.append(head)
        blocks += [head, data, filling] if filling else [head, data]
        at += HEAD.size + aligned(len(data))
        offsets.append(at)
    start = START.pack(MAGIC, VERSION, 0, len(records), seq, at, len(name), 0)
    name_filled = name + bytes(aligned(len(name)) - len(name))
    beginning = _sealed(start, name_filled) + name_filled + b"".join(heads)
    return [beginning, *blocks], offsets


def read_start(data: Buffer, seq: int, num_bytes: int) -> Start:
    """The start of the extent of that number, whose file has that size. Raises Damaged."""
    if len(data) < START.size:
        raise Damaged("shorter than its start")
    magic, version, flags, blocks, found, size, model_bytes, _ = START.unpack_from(data)
    if magic != MAGIC:
        raise Damaged("no extent")
    if (version, flags) != (VERSION, 0):
        raise Damaged(f"version {version}, flags {flags}")
    if not 1 <= blocks <= MAX_BLOCKS or model_bytes > MAX_MODEL_BYTES:
        raise Damaged(f"{blocks} blocks, a model's name of {model_bytes} bytes")
    if found != seq:
        raise Damaged(f"number {found} instead of {seq}")
    start = Start(blocks, found, size, model_bytes)
    if size != num_bytes or start.blocks_at > num_bytes:
        raise Damaged(f"has {num_bytes} bytes, but should have {size}")
    return start


def read_index(data: Buffer, start: Start) -> tuple[str, list[Head]]:
    """The model and the heads of all blocks, out of the first `start.blocks_at` bytes. Raises Damaged."""
    if len(data) < start.blocks_at:
        raise Damaged("became shorter")
    view = memoryview(data).cast("B")
    stated: int = START.unpack_from(view)[-1]
    if _checksum(view[: START.size - CHECKSUM_BYTES], view[START.size : start.index_at]) != stated:
        raise Damaged("checksum of the start")
    try:
        model = str(view[START.size : START.size + start.model_bytes], "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise Damaged("the model's name is not UTF-8") from error
    heads = list(_heads(view, start, model_digest(model)))
    end = heads[-1].offset + HEAD.size + aligned(heads[-1].length)
    if end != start.num_bytes:
        raise Damaged(f"its blocks end at byte {end} of {start.num_bytes}")
    return model, heads


def read_head(data: memoryview) -> Head:
    """A head out of its 192 bytes. Raises Damaged."""
    if len(data) < HEAD.size:
        raise Damaged("shorter than a head")
    (
        magic, version, rank, index, seq, model, offset, length, checksum, error, key, parent, space, form, dtype,
        shape, stated,
    ) = HEAD.unpack_from(data)  # fmt: skip
    if magic != HEAD_MAGIC or version != VERSION:
        raise Damaged("no head of a block")
    if rank > MAX_RANK or length > MAX_BLOCK_BYTES:
        raise Damaged(f"{rank} dimensions, {length} bytes")
    if xxh3_64_intdigest(data[: HEAD.size - CHECKSUM_BYTES]) != stated:
        raise Damaged("checksum of a head")
    return Head(
        index, seq, model, offset, length, checksum, error, key, parent, space, _text(form), _text(dtype),
        _shape(shape, rank),
    )  # fmt: skip


def read_block(
    data: memoryview, at: int, end: int, key: bytes, model: int, seq: int, index: int, offset: int
) -> Record:
    """The block whose head begins at `at`, if it is that one and its bytes are those that were written.

    `end` is where the next one begins. Raises Damaged. The record's bytes lie in `data`. About 2 us and the checksum:
    this is the one place where a head is not made an object.
    """
    begin = at + HEAD.size
    if len(data) < begin:
        raise Damaged("shorter than a head")
    (
        magic, version, rank, found_index, found_seq, found_model, found_offset, length, checksum, error, found_key,
        parent, space, form, dtype, shape, stated,
    ) = HEAD.unpack_from(data, at)  # fmt: skip
    if (found_seq, found_index, found_offset, found_model) != (seq, index, offset, model) or found_key != key:
        raise Damaged("another block")
    if magic != HEAD_MAGIC or version != VERSION or rank > MAX_RANK:
        raise Damaged("no head of a block")
    if xxh3_64_intdigest(data[at : begin - CHECKSUM_BYTES]) != stated:
        raise Damaged("checksum of a head")
    if begin + length > min(end, len(data)):
        raise Damaged("shorter than its head says")
    block = data[begin : begin + length]
    if xxh3_64_intdigest(block) != checksum:
        raise Damaged("checksum of a block")
    return Record(found_key, parent, space, _text(form), _text(dtype), _shape(shape, rank), error, block)


def _heads(view: memoryview, start: Start, digest: int) -> Iterator[Head]:
    """The heads of the index: in order, of this extent and model, each block where the one before ends."""
    at = start.blocks_at
    for index in range(start.num_blocks):
        where = start.index_at + index * HEAD.size
        head = read_head(view[where : where + HEAD.size])
        if (head.index, head.seq, head.model, head.offset) != (index, start.seq, digest, at):
            raise Damaged("a head of another extent")
        at += HEAD.size + aligned(head.length)
        yield head


def _check(record: Record, num_bytes: int) -> None:
    for what, key in (("key", record.key), ("parent", record.parent), ("space", record.space)):
        _require(f"a block's {what} in bytes", len(key), len(key) == KEY_BYTES, str(KEY_BYTES))
    _require("a block's size in bytes", num_bytes, num_bytes <= MAX_BLOCK_BYTES, f"at most {MAX_BLOCK_BYTES}")
    _require(
        "a block's form", record.form, _fits(record.form, FORM_BYTES), f"up to {FORM_BYTES} ASCII characters"
    )
    _require(
        "a block's dtype",
        record.dtype,
        _fits(record.dtype, DTYPE_BYTES),
        f"up to {DTYPE_BYTES} ASCII characters",
    )
    fits = len(record.shape) <= MAX_RANK and all(0 <= size < UINT32 for size in record.shape)
    _require("a block's shape", record.shape, fits, f"up to {MAX_RANK} sizes below 2^32")


def _fits(text: str, num_bytes: int) -> bool:
    return text.isascii() and text.isprintable() and len(text) <= num_bytes


def _require(what: str, value: object, is_good: bool, allowed: str) -> None:
    if not is_good:
        raise ValueError(f"{what} is {value!r}, but must be {allowed}")


@lru_cache(maxsize=64)
def _shape(field: bytes, rank: int) -> tuple[int, ...]:
    """Few shapes occur, and making one anew costs as much as all else of a head."""
    return SHAPE.unpack(field)[:rank]


@lru_cache(maxsize=64)
def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii", "replace")


def _sealed(data: bytes, *more: bytes) -> bytes:
    """The same with its last eight bytes set to the checksum of all before them, and of what follows."""
    body = data[:-CHECKSUM_BYTES]
    return body + _checksum(body, *more).to_bytes(CHECKSUM_BYTES, "little")


def _checksum(*parts: bytes | memoryview) -> int:
    return xxh3_64_intdigest(b"".join(parts))
