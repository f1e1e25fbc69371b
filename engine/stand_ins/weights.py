"""The weights of a stand-in: drawn from its seed, then rounded to what a file of some kind can hold.

Names are those of GGUF. Rows lie as Hugging Face has them, and norms are what is multiplied with; each format turns
them into its own habit without changing a bit of any number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.settings import Architecture
from engine.stand_ins.designs import StandIn

KINDS = ("Q8_0", "Q4_0", "F16", "F32")
"""How matrices may be stored, by the name that GGUF has for it. Norms and biases are always F32."""

ATTENTION_SCALE = 2.0
EMBEDDING_SCALE = 0.2
BIAS_SCALE = 0.5
NORM_SPREAD = 0.1
GEMMA_NORM = 12.0  # its head is the embeddings, which are small before they are scaled
NORM_STEPS = 256  # norms are multiples of 1/256, so that taking 1 away and adding it again is exact

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Stored:
    """A tensor as a file has it: `data` is float32, float16, or the bytes of its quantised rows."""

    name: str
    shape: tuple[int, ...]
    kind: str
    data: NDArray[Any]

    @property
    def values(self) -> Floats:
        """The numbers that a reader of the file gets."""
        from gguf import GGMLQuantizationType, dequantize  # noqa: PLC0415 - 0.2 s, only when files are made

        values: Floats = dequantize(self.data, GGMLQuantizationType[self.kind])
        return values


def stored_weights(stand_in: StandIn, kind: str) -> list[Stored]:
    """All tensors of the stand-in, matrices as `kind`."""
    from gguf import GGMLQuantizationType, quantize  # noqa: PLC0415

    tensors = []
    for name, values in drawn_weights(stand_in):
        kept = kind if values.ndim > 1 else "F32"
        data = quantize(values, GGMLQuantizationType[kept])
        tensors.append(Stored(name, values.shape, kept, data))
    return tensors


def drawn_weights(stand_in: StandIn) -> Iterator[tuple[str, Floats]]:
    """Every tensor and its name, in the same order with the same numbers each time.

    Matrices keep the variance of what they multiply, with two exceptions that make greedy choices follow the whole
    prompt: q, k and v are larger, so that attention looks at few places instead of averaging over all, and embeddings
    are smaller than what the layers add to them, so that a tied head does not answer with the token it was asked.
    """
    shape, draw = stand_in.architecture, _Drawing(stand_in)
    scale = EMBEDDING_SCALE / shape.embedding_scale
    yield "token_embd.weight", draw.normal((shape.vocab, shape.hidden), scale)
    for layer in range(shape.layers):
        for name, values in _layer(shape, draw):
            yield f"blk.{layer}.{name}", values
    yield "output_norm.weight", draw.norm(shape.hidden, GEMMA_NORM if is_gemma(shape) else 1.0)
    if not shape.tied_embeddings:
        yield "output.weight", draw.matrix(shape.vocab, shape.hidden, ATTENTION_SCALE)


def is_gemma(shape: Architecture) -> bool:
    return shape.family in {"gemma2", "gemma3"}


class _Drawing:
    """Numbers from one generator, which belongs to one stand-in alone."""

    def __init__(self, stand_in: StandIn) -> None:
        words = np.frombuffer(sha256(stand_in.name.encode()).digest(), "<u4").tolist()
        seed = np.random.SeedSequence(stand_in.seed, spawn_key=tuple(words))
        self._random = np.random.Generator(np.random.PCG64DXSM(seed))

    def normal(self, shape: tuple[int, ...], scale: float) -> Floats:
        values: Floats = self._random.standard_normal(shape, np.float32) * np.float32(scale)
        return values

    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> Floats:
        return self.normal((rows, columns), scale * columns**-0.5)

    def norm(self, size: int, mean: float = 1.0) -> Floats:
        values = (1 + self.normal((size,), NORM_SPREAD)) * np.float32(mean)
        rounded: Floats = np.rint(values * np.float32(NORM_STEPS)) / np.float32(NORM_STEPS)
        return rounded


def _layer(shape: Architecture, draw: _Drawing) -> Iterator[tuple[str, Floats]]:
    yield "attn_norm.weight", draw.norm(shape.hidden)
    yield from _attention(shape, draw)
    yield "attn_output.weight", draw.matrix(shape.hidden, shape.heads * shape.head_dim)
    if shape.post_norms:
        yield "post_attention_norm.weight", draw.norm(shape.hidden)
    yield "ffn_norm.weight", draw.norm(shape.hidden)
    if shape.family == "phi3":  # gate, then up, in one matrix
        yield "ffn_up.weight", draw.matrix(2 * shape.ffn, shape.hidden)
    else:
        yield "ffn_gate.weight", draw.matrix(shape.ffn, shape.hidden)
        yield "ffn_up.weight", draw.matrix(shape.ffn, shape.hidden)
    yield "ffn_down.weight", draw.matrix(shape.hidden, shape.ffn)
    if shape.post_norms:
        yield "post_ffw_norm.weight", draw.norm(shape.hidden)


def _attention(shape: Architecture, draw: _Drawing) -> Iterator[tuple[str, Floats]]:
    heads_dim, kv_dim = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if shape.family == "phi3":
        yield "attn_qkv.weight", draw.matrix(heads_dim + 2 * kv_dim, shape.hidden, ATTENTION_SCALE)
        return
    for name, rows in ("attn_q", heads_dim), ("attn_k", kv_dim), ("attn_v", kv_dim):
        yield f"{name}.weight", draw.matrix(rows, shape.hidden, ATTENTION_SCALE)
        if shape.qkv_bias:
            yield f"{name}.bias", draw.normal((rows,), BIAS_SCALE)
    if shape.qk_norm:
        yield "attn_q_norm.weight", draw.norm(shape.head_dim, ATTENTION_SCALE)
        yield "attn_k_norm.weight", draw.norm(shape.head_dim, ATTENTION_SCALE)
