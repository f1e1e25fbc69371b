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
            data = _as_int8(block) if form == "int8" else _as_fp16(block)
            if data is None:
                continue
            error = _error(block, Codec.unpack(Packed(form, dtype, shape, 0.0, _view(data))))
            if error <= self.max_error:
                return Packed(form, dtype, shape, max(error, floor_error), _view(data))
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


def _as_fp16(block: Tensor) -> Tensor | None:
    """None where the range of fp16 is too small, or nothing would be gained."""
    half = block.half()
    if block.dtype == torch.float16 or not bool(half.isfinite().all()):
        return None
    return _bytes_of(half)


def _as_int8(block: Tensor) -> Tensor | None:
    """Bases, scale codes of keys and of values, numbers of keys and of values. None for NaN and Inf."""
    codes, numbers, bases = [], [], []
    for half in (0, 1):
        values = block[:, half].float()
        largest = _key_peaks(values) if half == 0 else values.abs().amax(-1, keepdim=True)
        base = float(largest.max()) if largest.numel() else 0.0
        if not isfinite(base) or 0 < base < SMALLEST_BASE:
            return None
        code = _scale_codes(largest, base)
        scales = _spread(_scales(code, base), values.shape) if half == 0 else _scales(code, base)
        levels = (values / scales).round_().clamp_(-LEVELS, LEVELS) if base else torch.zeros_like(values)
        bases.append(base)
        codes.append(code.flatten())
        numbers.append(levels.to(torch.int8).flatten().view(torch.uint8))
    header = torch.tensor(bases, dtype=torch.float32).view(torch.uint8)
    return torch.cat([header, *codes, *numbers])


def _restored(stored: Tensor, form: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if form == "raw":
        return stored.view(dtype).view(shape)
    if form == "fp16":
        return stored.view(torch.float16).view(shape)
    layers, _, heads, tokens, width = shape
    groups, half = ceil(tokens / GROUP_TOKENS), layers * heads * tokens * width
    sizes = [BASES_BYTES, layers * heads * groups * width, layers * heads * tokens, half, half]
    header, key_codes, value_codes, keys, values = stored.split(sizes)
    key_base, value_base = header.clone().view(torch.float32).tolist()
    kv_shape = torch.Size((layers, heads, tokens, width))
    key_scales = _spread(_scales(key_codes.view(layers, heads, groups, width), key_base), kv_shape)
    value_scales = _scales(value_codes.view(layers, heads, tokens, 1), value_base)
    restored = [keys.view(torch.int8).view(kv_shape) * key_scales]
    restored.append(values.view(torch.int8).view(kv_shape) * value_scales)
    return torch.stack(restored, dim=1)


def _key_peaks(keys: Tensor) -> Tensor:
    """The largest magnitude of each channel in each group of tokens: (layers, heads, groups, head_dim)."""
    if not keys.numel():
        return keys.new_zeros((*keys.shape[:2], ceil(keys.shape[2] / GROUP_TOKENS), keys.shape[3]))
    return torch.stack([group.abs().amax(2) for group in keys.split(GROUP_TOKENS, dim=2)], dim=2)


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


def _spread(scales: Tensor, shape: torch.Size) -> Tensor:
    """Each group's scales beside each of its tokens."""
    return scales.repeat_interleave(GROUP_TOKENS, dim=2)[:, :, : shape[2]]


def _error(block: Tensor, restored: Tensor) -> float:
    """The relative L2 error of keys or of values, whichever is larger; 0.0 only if every bit is the same."""
    if torch.equal(_bytes_of(block), _bytes_of(restored)):
        return 0.0
    worst = 0.0
    for half in (0, 1):
        exact = block[:, half].double()
        norm = float(exact.norm())
        lost = float((restored[:, half].double() - exact).norm())
        worst = max(worst, lost / norm if norm else (inf if lost else 0.0))
    return (
        worst * ROUNDED_UP if worst else inf
    )  # only the signs of zeros differ: a more exact form keeps them


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _view(data: Tensor) -> memoryview:
    return memoryview(data.numpy()).toreadonly()
