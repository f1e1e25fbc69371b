"""All weights of a model side by side in one block of memory, laid out as in the safetensors file they are kept as.

What a kept file has to begin with follows from the model alone. So no such file is parsed: it either begins with
exactly these bytes and has exactly that size, or it is not used.
"""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from engine.errors import LoadFailed
from engine.execution.digests import TMP, Digests, written_aside
from engine.execution.weights import Int8Matrix, Layer, Matrix, Weights
from engine.settings import Architecture

FORMAT = "modelyard-weights-2"
ALIGNMENT = 64
PIECE_BYTES = 2**24
ABANDONED_NS = 3600 * 10**9

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}
PROJECTIONS = {"qkv", "attention_out", "gate_up", "down"}
SCALES = ".scales"


@dataclass(slots=True)
class Place:
    """Where a tensor lies in the block."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(slots=True)
class Layout:
    """The place of every tensor in the block, without gaps."""

    places: dict[str, Place]
    num_bytes: int

    @classmethod
    def of(cls, shape: Architecture, dtype: torch.dtype, *, in_int8: bool = False) -> Self:
        """The layout of all weights of `shape` in `dtype`; `in_int8`: projections as `Int8Matrix`."""
        tensors: list[tuple[str, tuple[int, ...], torch.dtype]] = []
        for name, size in sizes(shape):
            if in_int8 and name.rpartition(".")[2] in PROJECTIONS:
                tensors += [(name, size, torch.int8), (name + SCALES, size[:1], torch.bfloat16)]
            else:
                tensors.append((name, size, dtype))
        tensors.sort(key=lambda tensor: -tensor[2].itemsize)  # so that each begins at a multiple of its own
        layout = cls({}, 0)
        for name, size, kind in tensors:
            begin = layout.num_bytes
            layout.num_bytes += int(np.prod(size)) * kind.itemsize
            layout.places[name] = Place(kind, size, begin, layout.num_bytes)
        return layout

    def header(self, source: str) -> bytes:
        """What comes before the block in the file; `source` is the digest of what the weights were made from."""
        entries: dict[str, object] = {"__metadata__": {"format": FORMAT, "source": source}}
        for name, place in self.places.items():
            entries[name] = {
                "dtype": DTYPES[place.dtype],
                "shape": place.shape,
                "data_offsets": (place.begin, place.end),
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def weights(self, block: Tensor) -> Weights:
        """The weights that lie in the block: views, nothing is copied."""

        def tensor(name: str) -> Tensor:
            place = self.places[name]
            return block[place.begin : place.end].view(place.dtype).view(place.shape)

        def matrix(name: str) -> Matrix:
            whole = tensor(name)
            return Int8Matrix(whole, tensor(name + SCALES)) if name + SCALES in self.places else whole

        def layer(number: int) -> Layer:
            names = [each.name for each in fields(Layer)]
            found = {name: f"layers.{number}.{name}" for name in names}
            return Layer(**{name: matrix(key) for name, key in found.items() if key in self.places})  # type: ignore[arg-type]

        count = sum(name.endswith(".attention_norm") for name in self.places)
        embedding = tensor("embedding")
        head = matrix("head") if "head" in self.places else embedding
        return Weights(embedding, [layer(number) for number in range(count)], tensor("norm"), head)


def sizes(shape: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and size of every tensor of `Weights`; a tied head is not among them."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "embedding", (shape.vocab, hidden)
    of_layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "qkv": (queries + 2 * keys, hidden),
        "attention_out": (hidden, queries),
        "ffn_norm": (hidden,),
        "gate_up": (2 * shape.ffn, hidden),
        "down": (hidden, shape.ffn),
    }
    if shape.qkv_bias:
        of_layer["qkv_bias"] = (queries + 2 * keys,)
    if shape.qk_norm:
        of_layer |= {"q_norm": (shape.head_dim,), "k_norm": (shape.head_dim,)}
    if shape.post_norms:
        of_layer |= {"attention_post_norm": (hidden,), "ffn_post_norm": (hidden,)}
    for number in range(shape.layers):
        for name, size in of_layer.items():
            yield f"layers.{number}.{name}", size
    yield "norm", (hidden,)
    if not shape.tied_embeddings:
        yield "head", (shape.vocab, hidden)


def new_block(num_bytes: int, device: torch.device) -> Tensor:
    """Memory for a block, not yet written. Raises LoadFailed when there is not so much."""
    try:
        if device.type != "cpu":
            return torch.empty(num_bytes, dtype=torch.uint8, device=device)
        # numpy asks for huge pages, torch does not: the first write of 540 MB takes 0.04 s instead of 0.3
        return torch.from_numpy(np.empty(num_bytes, np.uint8))
    except (MemoryError, RuntimeError) as error:
        raise LoadFailed(f"the weights need {num_bytes:,} bytes, which {device} does not have") from error


def mapped_block(path: Path, header: bytes, num_bytes: int, digests: Digests) -> Tensor | None:
    """The block of a kept file: mapped, so that pages come as they are touched. None if the file is not right."""
    try:
        with path.open("rb") as file:
            is_ours = (
                file.read(len(header)) == header
                and os.fstat(file.fileno()).st_size == len(header) + num_bytes
                and digests.vouches_for(path)
            )
            if not is_ours:
                return None
            memory = mmap.mmap(
                file.fileno(), 0, access=mmap.ACCESS_COPY
            )  # private: no write reaches the file
    except (OSError, ValueError):
        return None
    return torch.frombuffer(memory, dtype=torch.uint8, offset=len(header))


def keep_block(path: Path, header: bytes, block: Tensor, digests: Digests) -> bool:
    """Write a block where `mapped_block` finds it, and say whether that worked; if not, nothing remains of it."""
    digest = sha256()
    try:
        _remove_abandoned(path)
        with written_aside(path) as file:
            for data in _pieces(header, block):
                digest.update(data)
                file.write(data)
    except OSError:
        return False  # a full or read-only folder: the next load converts again
    digests.vouch(path, digest.hexdigest())
    return True


def _pieces(header: bytes, block: Tensor) -> Iterator[memoryview]:
    yield memoryview(header)
    for piece in torch.split(block, PIECE_BYTES):
        yield piece.cpu().numpy().data


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that died while writing left: nobody has written to it for an hour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    asides = list(path.parent.glob(f".*{TMP}"))
    if not asides:
        return
    path.parent.touch()  # the time as the file system has it
    now_ns = path.parent.stat().st_mtime_ns
    for aside in asides:
        try:
            if now_ns - aside.stat().st_mtime_ns > ABANDONED_NS:
                aside.unlink()
        except FileNotFoundError:
            continue
