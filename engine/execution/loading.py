"""From a model on disk to weights in memory: checked, read, dequantised, put together as the decoder wants them.

Tensors go through a small buffer straight to where they belong, so that the peak is the result. What was made of a
GGUF file can be kept, and is mapped the next time: no copy and no work, and pages come as they are touched.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.errors import BadModel, BadSettings, LoadFailed
from engine.execution.digests import Digests
from engine.execution.slab import Layout, keep_block, mapped_block, new_block
from engine.execution.weights import Int8Matrix, Matrix, Weights, int8
from engine.formats import Checkpoint, TensorInfo
from engine.formats.files import opened, shown
from engine.settings import Architecture

if TYPE_CHECKING:
    import io

CHUNK_WEIGHTS = 2**16  # are dequantised together: the scratch stays in the cache
THREADS = 2
CONFIG = "config.json"
ROPE_FREQS = "rope_freqs.weight"

Packed = npt.NDArray[np.uint8]

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(slots=True)
class Loaded:
    """Weights in memory, and the shape they have; `shape` knows the rotary factors that GGUF stores as a tensor.

    `weights_hash` is a SHA-256 of the files' contents. `is_mapped`: they came from the kept file. Otherwise `keep`
    writes that file, and says whether it could: for a quiet moment and any thread, since it writes `num_bytes` to the
    disk. It is None when there is nothing to keep.
    """

    weights: Weights
    shape: Architecture
    weights_hash: str
    num_bytes: int
    is_mapped: bool
    keep: Callable[[], bool] | None


def load_weights(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
    *,
    in_int8: bool = False,
) -> Loaded:
    """The weights of a model in `dtype`; `in_int8`: with the projections in int8, as `quantised` makes them.

    `folder` is where converted weights are kept; None: nowhere. A kept file that is not whole, not ours, or changed
    since is as good as none. Weights of a Hugging Face folder are kept in int8 only: the rest is no conversion.
    Raises BadModel, naming file and tensor, for what is missing or no good, and LoadFailed when a file or the memory
    is out of reach.
    """
    shape = checkpoint.shape
    if shape is None:
        why = checkpoint.why_not or "its architecture is not one that our decoder runs"
        raise BadModel(checkpoint.path, why)
    try:
        return _loaded(checkpoint, _with_factors(checkpoint, shape), device, dtype, folder, in_int8)
    except OSError as error:
        raise LoadFailed(f"{checkpoint.path}: cannot be read: {error}") from error


def _loaded(
    checkpoint: Checkpoint,
    shape: Architecture,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path | None,
    in_int8: bool,
) -> Loaded:
    parts = list(_checked(checkpoint, shape))
    digests = Digests(folder)
    digest = digests.of_all(_files(checkpoint))
    layout = Layout.of(shape, dtype, in_int8=in_int8)
    header = layout.header(digest)
    kept = None
    if folder is not None and (in_int8 or checkpoint.format == "gguf"):
        kind = "int8-" * in_int8 + str(dtype).removeprefix("torch.")
        kept = folder / f"{digest[:32]}-{kind}.safetensors"
        block = mapped_block(kept, header, layout.num_bytes, digests)
        if block is not None:
            weights = layout.weights(block.to(device))
            return Loaded(weights, shape, digest, layout.num_bytes, is_mapped=True, keep=None)
    block = new_block(layout.num_bytes, device)
    weights = layout.weights(block)
    _fill(weights, parts)
    keep = None if kept is None else partial(keep_block, kept, header, block, digests)
    return Loaded(weights, shape, digest, layout.num_bytes, is_mapped=False, keep=keep)


def _files(checkpoint: Checkpoint) -> list[Path]:
    """What a model is made of: weights, and the configuration where it is a file of its own."""
    config = [checkpoint.path / CONFIG] if checkpoint.format == "safetensors" else []
    return [path for path in config if path.exists()] + sorted(checkpoint.files)


# which tensor goes where


@dataclass(slots=True)
class _Part:
    """A tensor of the files: rows of `target` in `Weights`, from `first_row` on.

    `paired_heads`: its rows lie with rotary pairs side by side, in so many heads. `plus` is added to its numbers.
    """

    name: str
    shape: tuple[int, ...]
    target: str
    first_row: int = 0
    paired_heads: int = 0
    plus: float = 0.0
    info: TensorInfo | None = None


_GGUF = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "qkv": "attn_qkv.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "attention_out": "attn_output.weight",
    "attention_post_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "gate_up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "ffn_post_norm": "post_ffw_norm.weight",
}
_HUGGING_FACE = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "qkv": "self_attn.qkv_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "attention_out": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "gate_up": "mlp.gate_up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_HUGGING_FACE_POST_NORMS = {
    "attention_post_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "ffn_post_norm": "post_feedforward_layernorm.weight",
}


def _checked(checkpoint: Checkpoint, shape: Architecture) -> Iterator[_Part]:
    """Every part with the place where it lies. Raises BadModel for the first that is missing or of another shape."""
    readable: set[str] = set()
    for part in _parts(checkpoint, shape):
        info = _found(checkpoint, part.name, part.shape)
        if info.kind not in readable or len(info.shape) == 1:
            _check_kind(info, checkpoint.format)
            readable.add(info.kind)
        part.info = info
        yield part


def _found(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> TensorInfo:
    info = checkpoint.tensors.get(name)
    if info is None:
        raise BadModel(checkpoint.path, f"has no tensor {name}, which should be {list(shape)}")
    if info.shape != shape:
        raise BadModel(info.path, f"tensor {name} is {list(info.shape)}, but should be {list(shape)}")
    return info


def _parts(checkpoint: Checkpoint, shape: Architecture) -> Iterator[_Part]:
    is_gguf = checkpoint.format == "gguf"
    names = _GGUF if is_gguf else _HUGGING_FACE
    if shape.post_norms and not is_gguf:
        names = {**names, **_HUGGING_FACE_POST_NORMS}
    prefix = "blk.{}." if is_gguf else "model.layers.{}."
    plus = 0.0 if is_gguf or not shape.family.startswith("gemma") else 1.0
    table = (shape.vocab, shape.hidden)
    yield _Part(names["embedding"], table, "embedding")
    yield _Part(names["norm"], (shape.hidden,), "norm", plus=plus)
    if not shape.tied_embeddings:
        yield _Part(names["head"], table, "head")
    is_paired = is_gguf and checkpoint.architecture == "llama"
    for number in range(shape.layers):
        for part in _layer_parts(shape, is_paired):
            part.name = prefix.format(number) + names[part.name]
            part.plus = plus if part.target.endswith("norm") else 0.0
            part.target = f"layers.{number}.{part.target}"
            yield part


def _layer_parts(shape: Architecture, is_paired: bool) -> Iterator[_Part]:
    """The parts of one layer, named as in the tables above."""
    hidden, ffn = shape.hidden, shape.ffn
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield _Part("attention_norm", (hidden,), "attention_norm")
    yield _Part("attention_out", (hidden, queries), "attention_out")
    yield _Part("ffn_norm", (hidden,), "ffn_norm")
    yield _Part("down", (hidden, ffn), "down")
    if shape.family == "phi3":
        yield _Part("qkv", (queries + 2 * keys, hidden), "qkv")
        yield _Part("gate_up", (2 * ffn, hidden), "gate_up")
    else:
        yield from _split("qkv", "", (hidden,), shape, is_paired)
        yield _Part("gate", (ffn, hidden), "gate_up")
        yield _Part("up", (ffn, hidden), "gate_up", ffn)
    if shape.qkv_bias:
        yield from _split("qkv_bias", "_bias", (), shape, is_paired)
    if shape.qk_norm:
        yield _Part("q_norm", (shape.head_dim,), "q_norm")
        yield _Part("k_norm", (shape.head_dim,), "k_norm")
    if shape.post_norms:
        yield _Part("attention_post_norm", (hidden,), "attention_post_norm")
        yield _Part("ffn_post_norm", (hidden,), "ffn_post_norm")


def _split(
    target: str, suffix: str, columns: tuple[int, ...], shape: Architecture, is_paired: bool
) -> Iterator[_Part]:
    """Queries, keys and values under each other. What turns has its pairs side by side in GGUF's `llama`."""
    first = 0
    for letter, heads in ("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads):
        rows = heads * shape.head_dim
        paired = heads if is_paired and letter != "v" else 0
        yield _Part(letter + suffix, (rows, *columns), target, first, paired)
        first += rows


def _with_factors(checkpoint: Checkpoint, shape: Architecture) -> Architecture:
    """The shape with the rotary factors of a GGUF file, which it has as a tensor."""
    if checkpoint.format != "gguf" or ROPE_FREQS not in checkpoint.tensors:
        return shape
    info = _found(checkpoint, ROPE_FREQS, ((shape.rotary_dim or shape.head_dim) // 2,))
    _check_kind(info, checkpoint.format)
    factors = next(_chunks(info)).float().view(-1).tolist()
    if shape.rope_factors:  # of a scaling that the metadata name: both divide
        factors = [one * other for one, other in zip(factors, shape.rope_factors, strict=True)]
    try:
        return replace(shape, rope_factors=factors)
    except BadSettings as error:
        raise BadModel(info.path, f"tensor {ROPE_FREQS} has numbers that are not above 0") from error


# reading


def _fill(weights: Weights, parts: Iterable[_Part]) -> None:
    """Read every part into its rows. Two threads take two thirds of the time of one, even where cores are busy."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda part: _copy(part, _target(weights, part.target)), parts):
            pass


@torch.inference_mode()  # of the thread, and nobody else may write to what was made in it
def _copy(part: _Part, target: Matrix) -> None:
    assert part.info is not None
    first = part.first_row
    for rows in _chunks(part.info, part.paired_heads):
        _put(target, first, rows.float() + part.plus if part.plus else rows)
        first += len(rows)


def _target(weights: Weights, name: str) -> Matrix:
    owner: object = weights
    if name.startswith("layers."):
        _, number, name = name.split(".")
        owner = weights.layers[int(number)]
    found = getattr(owner, name)
    assert isinstance(found, Matrix)
    return found


def _put(target: Matrix, first: int, rows: Tensor) -> None:
    if isinstance(target, Int8Matrix):
        part = int8(rows)
        target.weight[first : first + len(rows)] = part.weight
        target.scales[first : first + len(rows)] = part.scales
        return
    place, rows = target[first : first + len(rows)], rows.view(len(rows), *target.shape[1:])
    if place.dtype == rows.dtype and place.device.type == "cpu":
        # torch would split this among threads, and wait ms for each of them where cores are busy
        np.copyto(place.view(torch.uint8).numpy(), rows.view(torch.uint8).numpy())
    else:
        place.copy_(rows)


def _chunks(info: TensorInfo, paired_heads: int = 0) -> Iterator[Tensor]:
    """The numbers of a tensor as (rows, columns), some rows at a time, and whole heads where those are paired.

    A vector is a column, and comes as one. Raises BadModel when the file has become shorter.
    """
    rows, columns = info.shape[0], prod(info.shape[1:])
    together = rows // paired_heads if paired_heads else 1
    step = rows if len(info.shape) == 1 else max(1, CHUNK_WEIGHTS // (together * columns)) * together
    with opened(info.path) as (file, _):
        file.seek(info.offset)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            packed = _read(file, info, info.num_bytes * count // rows).reshape(count, -1)
            if paired_heads:
                packed = _unpaired(packed, together)
            yield _decoded(packed, info.kind).view(count, columns)


def _read(file: BinaryIO, info: TensorInfo, num_bytes: int) -> Packed:
    """The next bytes of a tensor. Raises BadModel when the file ends before them."""
    data, filled = np.empty(num_bytes, np.uint8), 0
    while filled < num_bytes:
        count = cast("io.FileIO", file).readinto(data[filled:].data)
        if not count:
            raise BadModel(info.path, f"tensor {info.name} is cut off: the file has become shorter")
        filled += count
    return data


def _unpaired(rows: Packed, head_rows: int) -> Packed:
    """Whole heads, from rotary pairs side by side to pairs half a head apart, as Hugging Face has them."""
    pairs = rows.reshape(-1, head_rows // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _decoded(packed: Packed, kind: str) -> Tensor:
    """The numbers, one behind the other."""
    if kind in PLAIN:
        return torch.from_numpy(packed.reshape(-1)).view(PLAIN[kind])
    from gguf.constants import GGMLQuantizationType  # noqa: PLC0415 - 0.2 s, for quantised weights only
    from gguf.quants import dequantize  # noqa: PLC0415

    values = dequantize(packed.reshape(1, -1), GGMLQuantizationType[kind])  # blocks know no rows
    return torch.from_numpy(values).view(-1)


def _check_kind(info: TensorInfo, file_format: str) -> None:
    """Raise BadModel unless numbers of that kind can be read."""
    if info.kind in PLAIN:
        return
    if file_format != "gguf" or len(info.shape) == 1:
        allowed = ", ".join(PLAIN)
        why = f"tensor {shown(info.name, quoted=False)} is {info.kind}, but weights are read from {allowed}"
        raise BadModel(info.path, why)
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    try:
        _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[info.kind]]
        _decoded(np.zeros((1, block_bytes), np.uint8), info.kind)
    except (KeyError, NotImplementedError) as error:
        why = f"tensor {info.name} is quantised as {info.kind}, which cannot be read"
        raise BadModel(info.path, why) from error
