"""The header of a GGUF file: its metadata and where its tensors lie, read by a reader that trusts nothing.

Layout (versions 2 and 3, little-endian): the magic, a version, the counts of tensors and of key-value pairs; the
pairs; name, dimensions, type and offset of each tensor; then the data, aligned. Arrays are stepped over and read
when somebody asks (`read_array`): a vocabulary of 262,144 strings is most of a header, and of the time it takes.

Every number in the file is held against what is left of the file before it is used. What is refused costs less
than 100 ms and 16 MiB, whatever the header claims.
"""

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from engine.errors import BadModel
from engine.formats.checkpoint import TensorInfo
from engine.formats.cursor import MAX_ARRAY_TEXT, MAX_TEXT, U64, Cursor
from engine.formats.files import opened, pickled, shown
from engine.formats.tensor_kinds import TENSOR_KINDS, TensorKind

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MIN_FILE = 24
MAX_KEYS = MAX_TENSORS = 2**14  # the largest models have some 60 and 2,000
MAX_KEY = 2**16
EAGER_TEXT = 2**19  # a longer string stays in the file until it is asked for
MAX_EAGER_TEXT = 2**20  # of all keys, names and short strings together
MAX_STRINGS = 2**20  # of all arrays together: they are walked one by one
NESTED_COST = 32  # an array in an array takes as long as so many strings
MAX_NESTING = 2
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 2**63
ALIGNMENTS = tuple(2**power for power in range(3, 21))
DEFAULT_ALIGNMENT = 32

SPLIT_NAME = re.compile(
    r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<suffix>\.gguf)", re.DOTALL | re.IGNORECASE
)
MAX_PARTS = 1_000

U32: Final = struct.Struct("<I")
COUNTS: Final = struct.Struct("<4sIQQ")
TENSOR_TAIL: Final = struct.Struct("<IQ")
ARRAY_HEAD: Final = struct.Struct("<IQ")

STRING, ARRAY, BOOL, UINT32 = 8, 9, 7, 4
VALUE_NAMES = (
    "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY", "UINT64", "INT64",
    "FLOAT64",
)  # fmt: skip
SCALARS = {
    number: struct.Struct(f"<{code}")
    for number, code in enumerate(("B", "b", "H", "h", "I", "i", "f", "B", None, None, "Q", "q", "d"))
    if code
}
MIN_SIZES = {
    **{number: codec.size for number, codec in SCALARS.items()},
    STRING: U64.size,
    ARRAY: ARRAY_HEAD.size,
}


@dataclass(slots=True, frozen=True)
class GgufArray:
    """An array that was not read. `kind` is its elements' (STRING, FLOAT32, ...), `offset` that of the first.

    A single string of more than half a MiB is one too: a STRING array of one.
    """

    kind: str
    count: int
    offset: int
    path: Path


@dataclass(slots=True)
class GgufHeader:
    """Everything before the data. `metadata` holds scalars and strings as they are, arrays as `GgufArray`.

    `tensors` are in the order of the file, their offsets absolute; `files` are all parts of a split file.
    """

    path: Path
    version: int
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    alignment: int
    data_offset: int
    files: tuple[Path, ...]


def read_gguf(path: Path) -> GgufHeader:
    """The header of one file. Raises BadModel, which says what is wrong with it; the file is closed on return."""
    with opened(path) as (file, size):
        return _HeaderReader(path, file, size).read()


def read_split(first: Path) -> GgufHeader:
    """The headers of a file and, where it is the first of a split one, of all its parts, as one.

    The metadata are those of the first. Raises BadModel, which names the part that is missing or does not belong.
    """
    header = read_gguf(first)
    count = _split_number(header, "count", 1)
    match = SPLIT_NAME.fullmatch(first.name)
    named = int(match["parts"]) if match else 1
    if count != named:
        raise BadModel(first, f"holds a split.count of {count}, but its name says that it is one of {named}")
    if match is None or count == 1:
        return header
    if int(match["part"]) != 1:
        raise BadModel(
            first, f"is part {int(match['part'])} of {count}; a split model is opened by its part 1"
        )
    if count > MAX_PARTS:
        raise BadModel(first, f"is one of {count} parts, but at most {MAX_PARTS} are read")
    _check_part(header, 1, count)
    for part in range(2, count + 1):
        _add_part(
            header, first.with_name(f"{match['stem']}-{part:05}-of-{count:05}{match['suffix']}"), part, count
        )
    total = _split_number(header, "tensors.count", len(header.tensors))
    if total != len(header.tensors):
        raise BadModel(
            first, f"promises {total} tensors in {count} parts, but they have {len(header.tensors)}"
        )
    return header


def read_array(array: GgufArray) -> list[str] | NDArray[Any]:
    """The elements of an array: a list of strings, or numbers. Raises BadModel when the file is not what it was."""
    return read_strings(array) if array.kind == "STRING" else read_numbers(array)


def read_strings(array: GgufArray) -> list[str]:
    """The elements of an array of strings; 262,144 of them take some 60 ms. Raises BadModel if it has others."""
    if array.kind != "STRING":
        raise BadModel(array.path, f"has {array.kind} where an array of strings is needed")
    with opened(array.path) as (file, size):
        cursor = Cursor(array.path, file, size, array.offset)
        _bound_array(cursor, STRING, array.count)
        return cursor.strings(array.count)


def read_numbers(array: GgufArray) -> NDArray[Any]:
    """The elements of an array of numbers. Raises BadModel if it has others."""
    number = VALUE_NAMES.index(array.kind)
    if number not in SCALARS:
        raise BadModel(array.path, f"has {array.kind} where an array of numbers is needed")
    with opened(array.path) as (file, size):
        cursor = Cursor(array.path, file, size, array.offset)
        _bound_array(cursor, number, array.count)
        data = cursor.take(array.count * MIN_SIZES[number], "an array")
        code = "?" if number == BOOL else SCALARS[number].format[1:]
        return np.frombuffer(data, dtype=np.dtype(f"<{code}"))


class _HeaderReader:
    """One pass over a header, front to back."""

    __slots__ = ("_array_text", "_cursor", "_path", "_size", "_strings", "_text")

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._cursor = Cursor(path, file, size)
        self._path = path
        self._size = size
        self._text = 0  # bytes of text read so far
        self._strings = 0  # strings in arrays so far
        self._array_text = 0  # bytes of those and of the strings that were stepped over

    def read(self) -> GgufHeader:
        version, num_tensors, num_keys = self._counts()
        metadata = self._metadata(num_keys)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if alignment not in ALIGNMENTS:
            self._refuse(
                f"general.alignment is {alignment}, but must be a power of two from {ALIGNMENTS[0]} to"
                f" {ALIGNMENTS[-1]:,}"
            )
        tensors = [self._tensor() for _ in range(num_tensors)]
        data_offset = -(-self._cursor.position // alignment) * alignment
        placed = self._placed(tensors, data_offset, alignment)
        return GgufHeader(self._path, version, metadata, placed, alignment, data_offset, (self._path,))

    def _refuse(self, why: str) -> NoReturn:
        raise BadModel(self._path, why)

    def _counts(self) -> tuple[int, int, int]:
        head = self._cursor.take(min(self._size, MIN_FILE), "its first bytes")
        if not head.startswith(MAGIC):
            self._refuse(pickled(head) or "is not a GGUF file: it does not begin with GGUF")
        if len(head) < MIN_FILE:
            self._refuse(f"has {len(head)} bytes, but a GGUF header has at least {MIN_FILE}")
        _, version, num_tensors, num_keys = COUNTS.unpack(head)
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                self._refuse("is a big-endian GGUF file; only little-endian ones are read")
            self._refuse(f"is GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
        for what, count, most in (
            ("tensors", num_tensors, MAX_TENSORS),
            ("metadata keys", num_keys, MAX_KEYS),
        ):
            if count > most:
                self._refuse(f"announces {count:,} {what}, but at most {most:,} are read")
        return version, num_tensors, num_keys

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._short_text(MAX_KEY, "a metadata key")
            if key in metadata:
                self._refuse(f"has the metadata key {shown(key)} twice")
            (number,) = self._cursor.unpack(U32, "a metadata key")
            if key == "general.alignment" and number != UINT32:
                self._refuse(f"has a general.alignment of type {_value_name(number)}, but it must be UINT32")
            metadata[key] = self._value(key, number)
        return metadata

    def _value(self, key: str, number: int) -> Any:
        if number in SCALARS:
            (value,) = self._cursor.unpack(SCALARS[number], "a metadata value")
            if number != BOOL:
                return value
            if value > 1:
                self._refuse(f"has the truth value {value} for {shown(key)}, but it must be 0 or 1")
            return value == 1
        if number == STRING:
            return self._string(key)
        if number != ARRAY:
            self._refuse(f"has the unknown value type {number} for {shown(key)}")
        element, length = self._cursor.unpack(ARRAY_HEAD, "an array")
        array = GgufArray(_value_name(element), length, self._cursor.position, self._path)
        self._skip_array(key, element, length, nesting=1)
        return array

    def _string(self, key: str) -> str | GgufArray:
        start = self._cursor.position
        (length,) = self._cursor.unpack(U64, "a metadata string")
        if length > MAX_TEXT:
            self._refuse(
                f"has a string of {length:,} bytes for {shown(key)}, but at most {MAX_TEXT:,} are read"
            )
        self._cursor.position = start
        if length > EAGER_TEXT:
            self._skip_strings(1)
            return GgufArray("STRING", 1, start, self._path)
        return self._short_text(EAGER_TEXT, "a metadata string")

    def _skip_array(self, key: str, element: int, count: int, nesting: int) -> None:
        if element not in MIN_SIZES:
            self._refuse(f"has an array of the unknown value type {element} for {shown(key)}")
        _bound_array(self._cursor, element, count)
        if element in SCALARS:
            self._cursor.skip(count * MIN_SIZES[element], "an array")
            return
        self._strings += count if element == STRING else count * NESTED_COST
        if self._strings > MAX_STRINGS:
            self._refuse(f"has {self._strings:,} strings in arrays, but at most {MAX_STRINGS:,} are read")
        if element == STRING:
            self._skip_strings(count)
            return
        if nesting == MAX_NESTING:
            self._refuse(f"has arrays nested deeper than {MAX_NESTING} for {shown(key)}")
        for _ in range(count):
            inner, length = self._cursor.unpack(ARRAY_HEAD, "an array")
            self._skip_array(key, inner, length, nesting + 1)

    def _skip_strings(self, count: int) -> None:
        start = self._cursor.position
        self._cursor.skip_strings(count, MAX_ARRAY_TEXT - self._array_text)
        self._array_text += self._cursor.position - start

    def _tensor(self) -> tuple[str, tuple[int, ...], TensorKind, int]:
        """Name, shape (outermost first), kind, and offset in the data."""
        name = self._short_text(MAX_KEY, "a tensor name")
        (dimensions,) = self._cursor.unpack(U32, "a tensor's description")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._refuse(
                f"tensor {shown(name)} has {dimensions} dimensions, but must have 1 to {MAX_DIMENSIONS}"
            )
        shape = self._cursor.unpack(SHAPES[dimensions], "a tensor's description")[::-1]
        number, offset = self._cursor.unpack(TENSOR_TAIL, "a tensor's description")
        kind = TENSOR_KINDS.get(number)
        if kind is None:
            self._refuse(f"tensor {shown(name)} has the unknown type {number}")
        return name, shape, kind, offset

    def _placed(
        self, tensors: list[tuple[str, tuple[int, ...], TensorKind, int]], data_offset: int, alignment: int
    ) -> dict[str, TensorInfo]:
        """Each tensor with its bytes, which lie one behind the other and inside the file."""
        placed: dict[str, TensorInfo] = {}
        end = 0
        for name, shape, kind, offset in tensors:
            if name in placed:
                self._refuse(f"has the tensor {shown(name)} twice")
            num_bytes = self._num_bytes(name, shape, kind)
            if offset % alignment:
                self._refuse(f"tensor {shown(name)} lies at {offset:,}, which is no multiple of {alignment}")
            if offset < end:
                self._refuse(
                    f"tensor {shown(name)} lies at {offset:,}, but the one before it ends at {end:,}"
                )
            end = offset + num_bytes
            if data_offset + end > self._size:
                self._refuse(
                    f"tensor {shown(name)} ends at byte {data_offset + end:,}, but the file has {self._size:,}: is it"
                    " incomplete?"
                )
            placed[name] = TensorInfo(name, shape, kind.name, self._path, data_offset + offset, num_bytes)
        return placed

    def _num_bytes(self, name: str, shape: tuple[int, ...], kind: TensorKind) -> int:
        elements = 1
        for size in shape:
            elements *= size
        if not 0 < elements < MAX_ELEMENTS:
            self._refuse(
                f"tensor {shown(name)} has the shape {list(shape)}: no dimension may be 0, nor the product 2^63"
            )
        if shape[-1] % kind.block_elements:
            self._refuse(
                f"tensor {shown(name)} has rows of {shape[-1]:,}, but {kind.name} stores blocks of"
                f" {kind.block_elements}"
            )
        return elements // kind.block_elements * kind.block_bytes

    def _short_text(self, limit: int, what: str) -> str:
        text = self._cursor.text(limit, what)
        self._text += len(text)
        if self._text > MAX_EAGER_TEXT:
            self._refuse(f"has more than {MAX_EAGER_TEXT:,} characters of names and short strings")
        return text


SHAPES = {count: struct.Struct(f"<{count}Q") for count in range(1, MAX_DIMENSIONS + 1)}


def _bound_array(cursor: Cursor, number: int, count: int) -> None:
    """Refuse an array whose elements cannot all be in what is left of the file."""
    if count * MIN_SIZES[number] > cursor.left:
        cursor.refuse(
            f"has an array of {count:,} x {VALUE_NAMES[number]}, more than the {cursor.left:,} bytes that are left"
        )


def _value_name(number: int) -> str:
    return VALUE_NAMES[number] if number < len(VALUE_NAMES) else f"unknown type {number}"


def _split_number(header: GgufHeader, name: str, default: int) -> int:
    value = header.metadata.get(f"split.{name}", default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadModel(header.path, f"split.{name} is {shown(value)}, but must be a count")
    return value or default


def _check_part(header: GgufHeader, part: int, count: int) -> None:
    said = [header.metadata.get("split.no"), header.metadata.get("split.count")]
    if said != [part - 1, count]:
        raise BadModel(
            header.path,
            f"should be part {part} of {count}, but holds [split.no, split.count] = {shown(said)}",
        )


def _add_part(header: GgufHeader, path: Path, part: int, count: int) -> None:
    if not path.exists():
        raise BadModel(header.path, f"is the first of {count} parts, but {path.name} is missing")
    more = read_gguf(path)
    _check_part(more, part, count)
    twice = header.tensors.keys() & more.tensors.keys()
    if twice:
        raise BadModel(path, f"has the tensor {shown(min(twice))}, which an earlier part has too")
    if len(header.tensors) + len(more.tensors) > MAX_TENSORS:
        raise BadModel(header.path, f"has more than {MAX_TENSORS:,} tensors in its parts")
    header.tensors.update(more.tensors)
    header.files += (path,)
