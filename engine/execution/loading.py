"""From a model on disk to weights in memory: read, checked, put together as the decoder wants them, and kept.

A GGUF file is dequantised tensor by tensor. What comes of it is written beside a hash of the source, as safetensors,
and mapped from there the next time: no copy, no work, and pages come as they are touched.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import BadModel
from engine.execution.weights import Layer, Weights
from engine.formats import Checkpoint, TensorInfo
from engine.settings import Architecture

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = "modelyard-decoder-1"
PIECE_BYTES = 1 << 22
ROWS_AT_A_TIME = 1 << 22  # weights that are dequantised together: the scratch stays near the processor

SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(slots=True)
class Loaded:
    """Weights in memory. `keep` writes them to where the next load finds them; None: they came from there, or nobody
    wants that. It is for a quiet moment: it writes as much as the weights take.
    """

    weights: Weights
    shape: Architecture
    weights_hash: str
    keep: Callable[[], None] | None


def load_weights(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, folder: Path | None = None
) -> Loaded:
    """The weights of a model. Raises BadModel, naming file and tensor, for what is missing or no good.

    `folder` is where converted weights of GGUF files are kept; None: nowhere. A kept file that is not whole, or is not
    ours, is as good as none.
    """
    if checkpoint.shape is None:
        raise BadModel(checkpoint.path, checkpoint.why_not or "its architecture is not one that our decoder runs")
    shape = checkpoint.shape
    keeps = folder is not None and checkpoint.format == "gguf"
    digest = source_hash(checkpoint, folder if keeps else None)
    kept = folder / f"{digest[:32]}-{str(dtype).removeprefix('torch.')}.safetensors" if folder and keeps else None
    if kept is not None and (found := _kept(kept, digest, shape)) is not None:
        weights, shape = found
        return Loaded(_on(weights, device), shape, digest, None)
    source = _Gguf(checkpoint) if checkpoint.format == "gguf" else _Safetensors(checkpoint)
    shape = source.completed(shape)
    weights = _assembled(source, shape, dtype)
    keep = None
    if kept is not None:
        tensors = _flat(weights)
        keep = lambda: _write(kept, tensors, digest, shape)  # noqa: E731
    return Loaded(_on(weights, device), shape, digest, keep)


def source_hash(checkpoint: Checkpoint, folder: Path | None = None) -> str:
    """SHA-256 over the contents of the model's weights files, in order, as hex.

    With `folder`, the hash of files that have the size, times and inode that they had when they were last read is
    remembered there instead of computed: 40 GB take half a minute.
    """
    files = sorted({info.path for info in checkpoint.tensors.values()} | set(checkpoint.files))
    stamp = [[str(path.resolve()), *_stamp(path)] for path in files]
    note = None
    if folder is not None:
        note = folder / f"{sha256(json.dumps(stamp).encode()).hexdigest()[:32]}.json"
        if (known := _remembered(note, stamp)) is not None:
            return known
    digest = sha256()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    if note is not None:
        _replace(note, json.dumps({"stamp": stamp, "sha256": digest.hexdigest()}).encode())
    return digest.hexdigest()


def _stamp(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _remembered(note: Path, stamp: list[list[object]]) -> str | None:
    try:
        about = json.loads(note.read_bytes()[:PIECE_BYTES])
    except (OSError, ValueError):
        return None
    if not isinstance(about, dict) or about.get("stamp") != stamp:
        return None
    known = about.get("sha256")
    return known if isinstance(known, str) and len(known) == sha256().digest_size * 2 else None


# what the decoder's weights are called in the files


@dataclass(slots=True)
class _Names:
    """What one format calls the tensors. {} is the number of the layer."""

    embedding: str
    norm: str
    head: str
    attention_norm: str
    qkv: tuple[str, ...]  # one fused tensor, or q, k and v
    attention_out: str
    ffn_norm: str
    gate_up: tuple[str, ...]  # one fused tensor, or gate and up
    down: str
    q_norm: str
    k_norm: str
    attention_post_norm: str
    ffn_post_norm: str


def _gguf_names(family: str) -> _Names:
    def block(name: str) -> str:
        return "blk.{}." + name + ".weight"

    fused = family == "phi3"
    return _Names(
        embedding="token_embd.weight",
        norm="output_norm.weight",
        head="output.weight",
        attention_norm=block("attn_norm"),
        qkv=(block("attn_qkv"),) if fused else (block("attn_q"), block("attn_k"), block("attn_v")),
        attention_out=block("attn_output"),
        ffn_norm=block("ffn_norm"),
        gate_up=(block("ffn_up"),) if fused else (block("ffn_gate"), block("ffn_up")),
        down=block("ffn_down"),
        q_norm=block("attn_q_norm"),
        k_norm=block("attn_k_norm"),
        attention_post_norm=block("post_attention_norm"),
        ffn_post_norm=block("post_ffw_norm"),
    )


def _safetensors_names(family: str, prefix: str) -> _Names:
    def layer(name: str) -> str:
        return prefix + "model.layers.{}." + name + ".weight"

    fused, gemma = family == "phi3", family.startswith("gemma")
    attention = "self_attn."
    return _Names(
        embedding=f"{prefix}model.embed_tokens.weight",
        norm=f"{prefix}model.norm.weight",
        head=f"{prefix}lm_head.weight",
        attention_norm=layer("input_layernorm"),
        qkv=(layer(attention + "qkv_proj"),)
        if fused
        else tuple(layer(f"{attention}{each}_proj") for each in "qkv"),
        attention_out=layer(attention + "o_proj"),
        ffn_norm=layer("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"),
        gate_up=(layer("mlp.gate_up_proj"),) if fused else (layer("mlp.gate_proj"), layer("mlp.up_proj")),
        down=layer("mlp.down_proj"),
        q_norm=layer(attention + "q_norm"),
        k_norm=layer(attention + "k_norm"),
        attention_post_norm=layer("post_attention_layernorm"),
        ffn_post_norm=layer("post_feedforward_layernorm"),
    )


# where tensors come from


class _Gguf:
    """The tensors of a GGUF file, dequantised as they are asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.shape is not None
        self._checkpoint = checkpoint
        self.names = _gguf_names(checkpoint.shape.family)
        self.is_permuted = checkpoint.architecture == "llama"
        self.norm_offset = 0.0

    def completed(self, shape: Architecture) -> Architecture:
        """The shape with what only a tensor says: the rotary factors of Llama 3."""
        name = "rope_freqs.weight"
        if name not in self._checkpoint.tensors:
            return shape
        factors = self.read(name, ((shape.rotary_dim or shape.head_dim) // 2,), torch.float32)
        return replace(shape, rope_factors=factors.tolist())

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def read(self, name: str, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        info = _checked(self._checkpoint, name, size)
        raw = _mapped(info)
        if info.kind in SAFETENSORS_DTYPES:
            return _plain(raw, info).to(dtype)
        return self._dequantised(raw, info, dtype)

    def _dequantised(self, raw: "npt.NDArray[np.uint8]", info: TensorInfo, dtype: torch.dtype) -> Tensor:
        from gguf.constants import GGMLQuantizationType  # noqa: PLC0415  only for quantised weights
        from gguf.quants import dequantize  # noqa: PLC0415

        kind = GGMLQuantizationType.__members__.get(info.kind)
        rows, columns = int(np.prod(info.shape[:-1], dtype=np.int64)), info.shape[-1]
        packed = raw.reshape(rows, -1)
        out = torch.empty((rows, columns), dtype=dtype)
        step = max(1, ROWS_AT_A_TIME // columns)
        for first in range(0, rows, step):
            part = packed[first : first + step]
            try:
                values = dequantize(part, kind) if kind is not None else None
            except (NotImplementedError, KeyError):
                values = None
            if values is None:
                raise BadModel(info.path, f"tensor {info.name} is quantised as {info.kind}, which is not read")
            out[first : first + step] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return out.reshape(info.shape)


class _Safetensors:
    """The tensors of a folder of Hugging Face."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.shape is not None
        self._checkpoint = checkpoint
        family = checkpoint.shape.family
        prefix = "language_model." if "language_model.model.norm.weight" in checkpoint.tensors else ""
        self.names = _safetensors_names(family, prefix)
        self.is_permuted = False
        self.norm_offset = 1.0 if family.startswith("gemma") else 0.0

    def completed(self, shape: Architecture) -> Architecture:
        return shape

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def read(self, name: str, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        info = _checked(self._checkpoint, name, size)
        if info.kind not in SAFETENSORS_DTYPES:
            allowed = ", ".join(SAFETENSORS_DTYPES)
            raise BadModel(info.path, f"tensor {info.name} is of type {info.kind}, but weights are read as {allowed}")
        return _plain(_mapped(info), info).to(dtype)


def _checked(checkpoint: Checkpoint, name: str, size: tuple[int, ...]) -> TensorInfo:
    info = checkpoint.tensors.get(name)
    if info is None:
        raise BadModel(checkpoint.path, f"tensor {name} is missing, which a {checkpoint.family} model has")
    if info.shape != size:
        raise BadModel(info.path, f"tensor {name} has the shape {_x(info.shape)}, but should have {_x(size)}")
    return info


def _x(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _mapped(info: TensorInfo) -> "npt.NDArray[np.uint8]":
    """The bytes of a tensor as they lie in the file. Raises BadModel when the file ends before them."""
    try:
        return np.memmap(info.path, np.uint8, "r", info.offset, (info.num_bytes,))
    except (OSError, ValueError) as error:
        raise BadModel(info.path, f"tensor {info.name} cannot be read: {error}") from error


def _plain(raw: "npt.NDArray[np.uint8]", info: TensorInfo) -> Tensor:
    """Bytes of an unquantised tensor as a tensor of their own: nothing refers to the file afterwards."""
    return torch.from_numpy(np.array(raw)).view(SAFETENSORS_DTYPES[info.kind]).reshape(info.shape)


# putting them together


def _assembled(source: "_Gguf | _Safetensors", shape: Architecture, dtype: torch.dtype) -> Weights:
    names, hidden = source.names, shape.hidden
    embedding = source.read(names.embedding, (shape.vocab, hidden), dtype)
    tied = shape.tied_embeddings
    return Weights(
        embedding=embedding,
        layers=[_layer(source, shape, number, dtype) for number in range(shape.layers)],
        norm=_norm(source, names.norm, hidden, dtype),
        head=embedding if tied else source.read(names.head, (shape.vocab, hidden), dtype),
    )


def _layer(source: "_Gguf | _Safetensors", shape: Architecture, number: int, dtype: torch.dtype) -> Layer:
    names, hidden = source.names, shape.hidden
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def norm(name: str, size: int = hidden) -> Tensor:
        return _norm(source, name.format(number), size, dtype)

    layer = Layer(
        attention_norm=norm(names.attention_norm),
        qkv=_joined(source, names.qkv, (q_rows, kv_rows, kv_rows), hidden, number, dtype),
        attention_out=source.read(names.attention_out.format(number), (hidden, q_rows), dtype),
        ffn_norm=norm(names.ffn_norm),
        gate_up=_joined(source, names.gate_up, (shape.ffn, shape.ffn), hidden, number, dtype),
        down=source.read(names.down.format(number), (hidden, shape.ffn), dtype),
    )
    if source.is_permuted:
        for first, rows, heads in ((0, q_rows, shape.heads), (q_rows, kv_rows, shape.kv_heads)):
            assert isinstance(layer.qkv, Tensor)
            _unpermute(layer.qkv[first : first + rows], heads)
    if shape.qkv_bias:
        layer.qkv_bias = torch.cat(
            [
                source.read(name.format(number).removesuffix("weight") + "bias", (rows,), dtype)
                for name, rows in zip(names.qkv, (q_rows, kv_rows, kv_rows), strict=True)
            ]
        )
    if shape.qk_norm:
        layer.q_norm, layer.k_norm = norm(names.q_norm, shape.head_dim), norm(names.k_norm, shape.head_dim)
    if shape.post_norms:
        layer.attention_post_norm = norm(names.attention_post_norm)
        layer.ffn_post_norm = norm(names.ffn_post_norm)
    return layer


def _norm(source: "_Gguf | _Safetensors", name: str, size: int, dtype: torch.dtype) -> Tensor:
    weight = source.read(name, (size,), torch.float32)
    return (weight + source.norm_offset).to(dtype)


def _joined(
    source: "_Gguf | _Safetensors",
    names: tuple[str, ...],
    rows: tuple[int, ...],
    columns: int,
    number: int,
    dtype: torch.dtype,
) -> Tensor:
    """Matrices under each other, or the one that holds them all already."""
    if len(names) == 1:
        return source.read(names[0].format(number), (sum(rows), columns), dtype)
    joined, first = torch.empty((sum(rows), columns), dtype=dtype), 0
    for name, count in zip(names, rows, strict=True):
        joined[first : first + count] = source.read(name.format(number), (count, columns), dtype)
        first += count
    return joined


def _unpermute(rows: Tensor, heads: int) -> None:
    """Rotary pairs from side by side, as GGUF's `llama` has them, to half a head apart, in place."""
    count, columns = rows.shape
    pairs = rows.view(heads, count // heads // 2, 2, columns)
    rows.copy_(pairs.transpose(1, 2).reshape(count, columns))


# keeping them


def _flat(weights: Weights) -> dict[str, Tensor]:
    """All tensors by name; a tied head is not there."""
    tensors = {"embedding": weights.embedding, "norm": weights.norm}
    if weights.head is not weights.embedding:
        tensors["head"] = weights.head
    for number, layer in enumerate(weights.layers):
        for field in fields(layer):
            if (tensor := getattr(layer, field.name)) is not None:
                tensors[f"layers.{number}.{field.name}"] = tensor
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _write(path: Path, tensors: dict[str, Tensor], digest: str, shape: Architecture) -> None:
    """Keep converted weights: written aside, renamed when whole. A folder that takes nothing is no error."""
    about = {"format": FORMAT, "source": digest, "rope_factors": json.dumps(shape.rope_factors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
            aside = Path(file.name)
        try:
            save_file(tensors, aside, about)
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, SafetensorError):
        return  # the next load converts again


def _replace(path: Path, contents: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
            file.write(contents)
        Path(file.name).replace(path)
    except OSError:
        return  # it is computed again


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kept(path: Path, digest: str, shape: Architecture) -> tuple[Weights, Architecture] | None:
    """The weights that were kept, mapped; None when there are none, or none that can be right."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT or about.get("source") != digest:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        shape = replace(shape, rope_factors=json.loads(about["rope_factors"]))
        weights = _unflat(tensors, shape)
    except (OSError, SafetensorError, KeyError, ValueError, EOFError):
        return None
    return weights if weights is None else (weights, shape)


def _unflat(tensors: dict[str, Tensor], shape: Architecture) -> Weights | None:
    """Weights of named tensors. KeyError when one is missing, None when one has another shape."""
    names = [field.name for field in fields(Layer)]
    layers = [
        Layer(**{name: tensors[key] for name in names if (key := f"layers.{number}.{name}") in tensors})
        for number in range(shape.layers)
        if f"layers.{number}.down" in tensors
    ]
    embedding = tensors["embedding"]
    head = embedding if shape.tied_embeddings else tensors["head"]
    weights = Weights(embedding, layers, tensors["norm"], head)
    return weights if _sizes(weights) == dict(_expected(shape)) else None


def _sizes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _flat(weights).items()}


def _expected(shape: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor that is kept."""
    hidden, ffn, head_dim = shape.hidden, shape.ffn, shape.head_dim
    q_rows, joined = shape.heads * head_dim, (shape.heads + 2 * shape.kv_heads) * head_dim
    yield "embedding", (shape.vocab, hidden)
    yield "norm", (hidden,)
    if not shape.tied_embeddings:
        yield "head", (shape.vocab, hidden)
    sizes: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "qkv": (joined, hidden),
        "attention_out": (hidden, q_rows),
        "ffn_norm": (hidden,),
        "gate_up": (2 * ffn, hidden),
        "down": (hidden, ffn),
    }
    if shape.qkv_bias:
        sizes["qkv_bias"] = (joined,)
    if shape.qk_norm:
        sizes |= {"q_norm": (head_dim,), "k_norm": (head_dim,)}
    if shape.post_norms:
        sizes |= {"attention_post_norm": (hidden,), "ffn_post_norm": (hidden,)}
    for number in range(shape.layers):
        for name, size in sizes.items():
            yield f"layers.{number}.{name}", size


def _on(weights: Weights, device: torch.device) -> Weights:
    """The weights on that device; themselves where they are."""
    if weights.norm.device == device or device.type == "cpu":
        return weights

    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    layers = [Layer(*[move(getattr(layer, each.name)) for each in fields(layer)]) for layer in weights.layers]  # type: ignore[arg-type]
    embedding = move(weights.embedding)  # type: ignore[arg-type]
    head = embedding if weights.head is weights.embedding else move(weights.head)  # type: ignore[arg-type]
    return Weights(embedding, layers, move(weights.norm), head)  # type: ignore[arg-type]
