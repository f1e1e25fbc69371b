"""How KV blocks are written smaller on their way to a colder tier: as they are, in fp16, or in int8.

int8 gives keys one scale per channel and up to 64 tokens, values one per token and head. A scale is one byte: how
many eighths of a power of two it lies below the largest of the block. The error of each block is measured while it
is packed, and a block that would lose more than is allowed takes the next more exact form.
"""

from dataclasses import dataclass
from math import ceil, inf, isfinite, prod

import torch
from torch import Tensor

FORMS = ("raw", "fp16", "int8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GROUP_TOKENS = 64  # that share the scales of their keys
LEVELS = 127.0
BASES_BYTES = 8  # the largest key and the largest value of the block, float32
STEPS_PER_OCTAVE = 8
COARSEST = 255
ROUNDED_UP = 1.0001  # sums of float32 err by less
KV_DIMENSIONS = 5
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # at most, of one number
SMALLEST_BASE = 2.0**-60  # below it the finest scales would be subnormal


@dataclass(slots=True, frozen=True)
class Packed:
    """A KV block as bytes. `error` bounds its relative L2 error; 0.0 means that the same bits come back."""

    form: str
    dtype: str
    shape: tuple[int, ...]
    error: float
    data: memoryview | bytes

    @property
    def is_lossy(self) -> bool:
        return self.error > 0


def packed_bytes(form: str, dtype: str, shape: tuple[int, ...]) -> int:
    """The exact length of the bytes of a block of (layers, 2, kv_heads, tokens, head_dim)."""
    _check(form, dtype, shape)
    if form == "raw":
        return prod(shape) * DTYPES[dtype].itemsize
    if form == "fp16":
        return prod(shape) * 2
    layers, _, heads, tokens, width = shape
    return BASES_BYTES + layers * heads * (ceil(tokens / GROUP_TOKENS) * width + tokens) + prod(shape)


class Codec:
    """Packs blocks in `form`, or in the next more exact one where the error would exceed `max_error`."""

    def __init__(self, form: str, max_error: float = 0.01) -> None:
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; allowed: one of {', '.join(FORMS)}")
        if not (isfinite(max_error) and max_error >= 0):
            raise ValueError(f"max_error is {max_error}; allowed: a number from 0")
        self.form = form
        self.max_error = max_error

    @torch.inference_mode()
    def pack(self, block: Tensor, floor_error: float = 0.0) -> Packed:
        """The block as bytes of its own. `floor_error` is what it lost before: the result claims no less."""
        dtype, shape = str(block.dtype).removeprefix("torch."), tuple(block.shape)
        _check(self.form, dtype, shape)
        block = block.detach().cpu().contiguous()
        for form in reversed(FORMS[1 : FORMS.index(self.form) + 1]):
            found = _as_int8(block) if form == "int8" else _as_fp16(block)
            if found is not None and found[1] <= self.max_error:
                return Packed(form, dtype, shape, max(found[1], floor_error), _view(found[0]))
        return Packed("raw", dtype, shape, floor_error, _view(_bytes_of(block).clone()))

    @staticmethod
    @torch.inference_mode()
    def unpack(packed: Packed, out: Tensor | None = None) -> Tensor:
        """The block in its own dtype and shape, in `out` if given. Raises ValueError for sizes that do not fit."""
        expected = packed_bytes(packed.form, packed.dtype, packed.shape)
        data = memoryview(packed.data).cast("B")
        if len(data) != expected:
            raise ValueError(
                f"{packed.form} block of {packed.shape} has {len(data)} bytes; allowed: {expected}"
            )
        dtype = DTYPES[packed.dtype]
        if out is None:
            out = torch.empty(packed.shape, dtype=dtype)
        if tuple(out.shape) != packed.shape or out.dtype != dtype:
            raise ValueError(f"out is {out.dtype} of {tuple(out.shape)}; allowed: {dtype} of {packed.shape}")
        if expected:
            stored = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            out.copy_(_restored(stored, packed.form, dtype, packed.shape))
        return out


def _check(form: str, dtype: str, shape: tuple[int, ...]) -> None:
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; allowed: one of {', '.join(FORMS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: one of {', '.join(DTYPES)}")
    if len(shape) != KV_DIMENSIONS or shape[1] != 2 or min(shape) < 0:  # noqa: PLR2004  keys and values
        raise ValueError(f"shape is {shape}; allowed: (layers, 2, kv_heads, tokens, head_dim)")


def _as_fp16(block: Tensor) -> tuple[Tensor, float] | None:
    """The bytes and their error; None where the range of fp16 is too small, or nothing would be gained."""
    half = block.half()
    if block.dtype == torch.float16 or not bool(half.isfinite().all()):
        return None
    return _bytes_of(half), _error(block, half.to(block.dtype))


def _as_int8(block: Tensor) -> tuple[Tensor, float] | None:
    """Bases, scale codes of keys and of values, numbers of keys and of values; and the error. None for NaN and Inf.

    The error is that of the numbers as they are here, and what rounding them back to the block's own type may add.
    """
    codes, numbers, bases, worst = [], [], [], 0.0
    for half in (0, 1):
        exact = block[:, half].float()
        largest = _key_peaks(exact) if half == 0 else _peaks(exact, -1)
        base = float(largest.max()) if largest.numel() else 0.0
        if not isfinite(base) or 0 < base < SMALLEST_BASE:
            return None
        code = _scale_codes(largest, base)
        levels, lost = _levels(exact, _scales(code, base), is_keys=half == 0) if base else (exact, 0.0)
        worst = max(worst, lost)
        bases.append(base)
        codes.append(code.flatten())
        numbers.append(levels.to(torch.int8).flatten().view(torch.uint8))
    data = torch.cat([torch.tensor(bases, dtype=torch.float32).view(torch.uint8), *codes, *numbers])
    if worst:
        return data, worst * ROUNDED_UP + ROUNDING[block.dtype]
    dtype, shape = str(block.dtype).removeprefix("torch."), tuple(block.shape)
    return data, _error(block, Codec.unpack(Packed("int8", dtype, shape, 0.0, _view(data))))


def _levels(exact: Tensor, scales: Tensor, *, is_keys: bool) -> tuple[Tensor, float]:
    """Numbers from -127 to 127, and the relative L2 error of what they stand for."""
    if is_keys:
        exact, scales = _grouped(exact, scales)
    levels = (exact / scales).round_()
    missed = torch.mul(levels, scales).sub_(exact)
    norm = float(torch.linalg.vector_norm(exact))
    lost = float(torch.dot(missed.flatten(), missed.flatten())) ** 0.5
    return levels, lost / norm if norm else (inf if lost else 0.0)


def _grouped(keys: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (layers, heads, tokens, head_dim) and the scales of their groups, so that one meets the other."""
    layers, heads, tokens, width = keys.shape
    if tokens <= GROUP_TOKENS:
        return keys, scales
    if tokens % GROUP_TOKENS == 0:
        return keys.reshape(layers, heads, -1, GROUP_TOKENS, width), scales.unsqueeze(3)
    return keys, scales.repeat_interleave(GROUP_TOKENS, dim=2)[:, :, :tokens]


def _restored(stored: Tensor, form: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if form == "raw":
        return stored.view(dtype).view(shape)
    if form == "fp16":
        return stored.view(torch.float16).view(shape)
    layers, _, heads, tokens, width = shape
    groups, half = ceil(tokens / GROUP_TOKENS), layers * heads * tokens * width
    sizes = [BASES_BYTES, layers * heads * groups * width, layers * heads * tokens, half, half]
    parts: list[Tensor] = list(torch.split(stored, sizes))
    header, key_codes, value_codes, keys, values = parts
    key_base, value_base = header.clone().view(torch.float32).tolist()
    kv_shape = (layers, heads, tokens, width)
    out = torch.empty(shape, dtype=torch.float32)
    key_scales = _scales(key_codes.view(layers, heads, groups, width), key_base)
    found, scales = _grouped(keys.view(torch.int8).view(kv_shape), key_scales)
    out[:, 0] = torch.mul(found, scales).view(kv_shape)
    value_scales = _scales(value_codes.view(layers, heads, tokens, 1), value_base)
    torch.mul(values.view(torch.int8).view(kv_shape), value_scales, out=out[:, 1])
    return out


def _peaks(exact: Tensor, dim: int) -> Tensor:
    """The largest magnitude along a dimension, which stays; NaN where there is one."""
    if not exact.numel():
        return exact.new_zeros(
            [1 if index == dim % exact.ndim else size for index, size in enumerate(exact.shape)]
        )
    return exact.abs().amax(dim, keepdim=True)  # aminmax needs no second tensor, and takes ten times as long


def _key_peaks(keys: Tensor) -> Tensor:
    """The largest magnitude of each channel in each group of tokens: (layers, heads, groups, head_dim)."""
    if keys.shape[2] <= GROUP_TOKENS and keys.numel():
        return _peaks(keys, 2)
    if not keys.numel():
        return keys.new_zeros((*keys.shape[:2], ceil(keys.shape[2] / GROUP_TOKENS), keys.shape[3]))
    groups: list[Tensor] = list(torch.split(keys, GROUP_TOKENS, dim=2))
    return torch.cat([_peaks(group, 2) for group in groups], dim=2)


def _scale_codes(largest: Tensor, base: float) -> Tensor:
    """Steps below the base, so few that the scale still covers the largest number."""
    if not base:
        return torch.zeros_like(largest, dtype=torch.uint8)
    steps = (STEPS_PER_OCTAVE * torch.log2(base / largest)).floor_().clamp_(0, COARSEST)
    codes = steps.to(torch.uint8)
    too_small = (_scales(codes, base) * LEVELS < largest) & (codes > 0)
    return codes - too_small.to(torch.uint8)


def _scales(codes: Tensor, base: float) -> Tensor:
    return torch.exp2(codes.float() / -STEPS_PER_OCTAVE) * (base / LEVELS)


def _error(block: Tensor, restored: Tensor) -> float:
    """The relative L2 error of keys or of values, whichever is larger; 0.0 only if every bit is the same."""
    if torch.equal(_bytes_of(block), _bytes_of(restored)):
        return 0.0
    worst = 0.0
    for half in (0, 1):
        exact = block[:, half].float()
        norm = float(torch.linalg.vector_norm(exact))
        lost = float(torch.linalg.vector_norm(restored[:, half].float() - exact))
        worst = max(worst, lost / norm if norm else (inf if lost else 0.0))
    return (
        worst * ROUNDED_UP if worst else inf
    )  # only the signs of zeros differ: a more exact form keeps them


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _view(data: Tensor) -> memoryview:
    return memoryview(data.numpy()).toreadonly()  # type: ignore[arg-type]
