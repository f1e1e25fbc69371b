"""The weights of a decoder, as its forward pass wants them: projections that run together are one matrix."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from engine.settings import Architecture

EMBEDDING_SCALE = 0.2
ATTENTION_SCALE = 2.0
BIAS_SPREAD = 0.1

WIDEST_INT8_ROWS = 48
"""Rows of activations up to which the int8 kernel is the faster one: it reads the weights as they are, but multiplies
without tiles. Beyond, the matrix is turned into bfloat16 and multiplied as such."""


@dataclass(slots=True)
class Int8Matrix:
    """A matrix (out, in) in int8, one bfloat16 scale a row: a quarter of the bytes that a decode step has to read."""

    values: Tensor
    scales: Tensor

    def product(self, x: Tensor) -> Tensor:
        """X (..., in) times the transposed matrix, (..., out), in x's dtype. Multiplied in bfloat16."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if x.device.type == "cpu" and len(rows) <= WIDEST_INT8_ROWS:
            out = torch._weight_int8pack_mm(rows, self.values, self.scales)  # noqa: SLF001  torch's own, without a public name
        else:
            out = linear(rows, self.values.to(torch.bfloat16)) * self.scales
        return out.to(x.dtype).reshape(*x.shape[:-1], -1)

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of that index, as an embedding looks them up."""
        return self.values[index].to(dtype) * self.scales[index].to(dtype)[..., None]


Matrix = Tensor | Int8Matrix


@dataclass(slots=True)
class Layer:
    """One block. Matrices are (out, in); norms are what is multiplied with (Gemma's 1 + w is already added up).

    `qkv` has the rows of all query heads, then key heads, then value heads, rotary pairs half a head apart (the
    layout of Hugging Face); `gate_up` the rows of the gate, then of up. What a family does not have is None.
    """

    attention_norm: Tensor
    qkv: Matrix
    attention_out: Matrix
    ffn_norm: Tensor
    gate_up: Matrix
    down: Matrix
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_post_norm: Tensor | None = None
    ffn_post_norm: Tensor | None = None


@dataclass(slots=True)
class Weights:
    """All weights of a model. `head` is `embedding` itself where they are tied."""

    embedding: Matrix
    layers: list[Layer]
    norm: Tensor
    head: Matrix


def product(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """X (..., in) times the transposed matrix (out, in), plus the bias (out)."""
    if isinstance(matrix, Tensor):
        return linear(x, matrix, bias)
    out = matrix.product(x)
    return out if bias is None else out.add_(bias)


def quantised(weights: Weights) -> Weights:
    """The same with every matrix in int8, rounded to the nearest, one scale a row: its largest value is 127.

    An element is off by at most half a scale, and 1/256 of itself for the scale's own rounding. Norms and biases stay.
    """
    embedding = int8(weights.embedding)
    layers = [
        replace(
            layer,
            qkv=int8(layer.qkv),
            attention_out=int8(layer.attention_out),
            gate_up=int8(layer.gate_up),
            down=int8(layer.down),
        )
        for layer in weights.layers
    ]
    head = embedding if weights.head is weights.embedding else int8(weights.head)
    return Weights(embedding, layers, weights.norm, head)


def int8(matrix: Matrix) -> Int8Matrix:
    """A matrix in int8. A row of zeros stays one."""
    if isinstance(matrix, Int8Matrix):
        return matrix
    largest = matrix.abs().amax(dim=1).float()
    scales = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny).to(torch.bfloat16)
    values = (matrix.float() / scales.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Int8Matrix(values, scales)


def seeded_weights(shape: Architecture, seed: int, device: torch.device) -> Weights:
    """Random weights, a function of `shape` and `seed` alone, in float32.

    Matrices keep the variance of what they multiply, with two exceptions that make greedy choices follow the whole
    prompt: q, k and v are larger, so that attention looks at few places instead of averaging over all, and
    embeddings are smaller, so that a tied head does not answer with the token it was asked.
    """
    random = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        weights: Tensor = torch.randn(rows, columns, generator=random) * columns**-0.5
        return weights.to(device)

    def ones(size: int = shape.hidden) -> Tensor:
        return torch.ones(size, device=device)

    heads_dim, kv_dim = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def layer() -> Layer:
        made = Layer(
            ones(),
            matrix(heads_dim + 2 * kv_dim, shape.hidden) * ATTENTION_SCALE,
            matrix(shape.hidden, heads_dim),
            ones(),
            matrix(2 * shape.ffn, shape.hidden),
            matrix(shape.hidden, shape.ffn),
        )
        if shape.qkv_bias:
            bias = torch.randn(heads_dim + 2 * kv_dim, generator=random) * BIAS_SPREAD
            made.qkv_bias = bias.to(device)
        if shape.qk_norm:
            made.q_norm, made.k_norm = ones(shape.head_dim), ones(shape.head_dim)
        if shape.post_norms:
            made.attention_post_norm, made.ffn_post_norm = ones(), ones()
        return made

    embedding = matrix(shape.vocab, shape.hidden) * EMBEDDING_SCALE
    layers = [layer() for _ in range(shape.layers)]
    head = embedding if shape.tied_embeddings else matrix(shape.vocab, shape.hidden)
    return Weights(embedding, layers, ones(), head)
