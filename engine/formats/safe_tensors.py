"""The header of a safetensors file: a length, a JSON object that says where each tensor lies, then the data.

Tensors fill the data without hole or overlap, and each has exactly the bytes that its shape and type need. A pickle,
whatever its name, is recognised by its first bytes and refused.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import BadModel
from engine.formats.checkpoint import TensorInfo
from engine.formats.files import opened, parse_json, pickled, read_exactly, shown

LENGTH_BYTES = 8
MAX_HEADER = 2**22  # real ones have some 100 bytes a tensor
MAX_TENSORS = 2**14  # as in a GGUF file; real shards have some thousand
MAX_COMMAS = 2**18  # parsed JSON takes many times its size: what it holds is counted before it is parsed
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**63

BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(slots=True)
class SafetensorsHeader:
    """What a file says of itself: its tensors, in the order of their bytes, and free text by key."""

    path: Path
    tensors: dict[str, TensorInfo] = field(repr=False)
    metadata: dict[str, str] = field(repr=False)


def read_safetensors(path: Path) -> SafetensorsHeader:
    """The header of one file. Raises BadModel, which says what is wrong with it; the file is closed on return."""
    with opened(path) as (file, size):
        head = read_exactly(file, path, min(size, LENGTH_BYTES + 1))
        length = int.from_bytes(head[:LENGTH_BYTES], "little")
        if head[LENGTH_BYTES:] != b"{" or length > size - LENGTH_BYTES:
            raise BadModel(path, pickled(head) or _no_header(head, length, size))
        if length > MAX_HEADER:
            raise BadModel(
                path, f"announces a header of {length:,} bytes, but at most {MAX_HEADER:,} are read"
            )
        data = head[LENGTH_BYTES:] + read_exactly(file, path, length - 1)
    objects, lists = data.count(b"{"), data.count(b"[")
    if max(objects, lists // 2) > MAX_TENSORS + 2 or data.count(b",") > MAX_COMMAS:
        raise BadModel(path, f"its header is nested too deeply, or holds more than {MAX_TENSORS:,} tensors")
    header = parse_json(path, data, "its header")
    metadata = _metadata(path, header.pop("__metadata__", {}))
    start = LENGTH_BYTES + length
    tensors = [_tensor(path, name, entry, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    _check_filled(path, tensors, start, size)
    return SafetensorsHeader(path, {tensor.name: tensor for tensor in tensors}, metadata)


def _no_header(head: bytes, length: int, size: int) -> str:
    if len(head) <= LENGTH_BYTES:
        return f"has {len(head)} bytes, too few for a safetensors header"
    if length > size - LENGTH_BYTES:
        return f"announces a header of {length:,} bytes, but has {size:,} in all: incomplete, or no safetensors file"
    return "is not a safetensors file: its header does not begin with {"


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BadModel(path, "__metadata__ is something else than strings by key")
    return found


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadModel(
            path, f"tensor {shown(name)} must have dtype, shape and data_offsets, and nothing else"
        )
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in BITS:
        raise BadModel(path, f"tensor {shown(name)} has the unknown dtype {shown(kind)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise BadModel(
            path, f"tensor {shown(name)} has the shape {shown(shape)}, but must have up to 32 counts"
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004
        raise BadModel(
            path, f"tensor {shown(name)} has the data_offsets {shown(offsets)}, but must have begin and end"
        )
    bits = _elements(path, name, shape) * BITS[kind]
    span = offsets[1] - offsets[0]
    if bits != span * 8:
        raise BadModel(
            path,
            f"tensor {shown(name)} has {span:,} bytes, but {kind} of shape {shown(shape)} needs {bits / 8:,.10g}",
        )
    return TensorInfo(name, tuple(shape), kind, path, start + offsets[0], span)


def _elements(path: Path, name: str, shape: list[int]) -> int:
    elements = 1
    for size in shape:
        elements *= size
        if elements >= MAX_ELEMENTS:
            raise BadModel(
                path, f"tensor {shown(name)} has the shape {shown(shape)}, of 2^63 elements or more"
            )
    return elements


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < MAX_ELEMENTS for value in values
    )


def _check_filled(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    """Refuse holes and overlaps: bytes that no tensor or two tensors own are how two parsers come to differ."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            fault = "overlaps what lies before it" if tensor.offset < end else "leaves a hole before it"
            raise BadModel(
                path, f"tensor {shown(tensor.name)} {fault}: it begins at {tensor.offset:,}, not {end:,}"
            )
        end += tensor.num_bytes
    if end != size:
        raise BadModel(
            path, f"has {size:,} bytes, but its tensors end at {end:,}: incomplete, or more than that"
        )
