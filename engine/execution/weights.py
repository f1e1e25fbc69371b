"""The weights of a decoder, as its forward pass wants them: projections that run together are one matrix."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from engine.settings import Architecture

EMBEDDING_SCALE = 0.2
ATTENTION_SCALE = 2.0
BIAS_SPREAD = 0.1

HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")

LARGE_PRODUCT = 2**20
"""Multiplications from which oneDNN's product is the faster one: 8 x 128 x 1024 take 30 us either way."""

ROWS_A_DOUBLING_BITS = 3
"""Of the numbers of rows that oneDNN is asked for, between one power of two and the next there are 2^3.

For each number of rows it makes a program of its own, which takes as long as some products and half a megabyte, and
keeps the latest 1,024: prompts of all lengths never let it finish. Rows that are added take a sixteenth, in the mean.
"""

MOST_INT8_ROWS = 16
"""Rows of activations up to which the int8 kernel is the faster one: it has no tiles, so its time grows with them.

(3072, 576), one thread, microseconds for 1, 8, 16, 32, 512 rows: kernel 51, 234, 397, 794, 12,635; bfloat16 made of
the int8 and multiplied as such 317, 354, 415, 548, 4,564; float32 100, 438, 681, 1,262, 17,958.
"""

BLOCK_ROWS = 4096
"""Rows of a matrix that are bfloat16 at a time: a head of 262,144 x 640 as a whole would be 336 MB, for a moment."""

INT8_LANES = (
    16  # columns that the int8 kernel takes at once: where they do not come out even it reads past the end
)


@dataclass(slots=True)
class Int8Matrix:
    """A matrix (out, in) in int8, one bfloat16 scale a row: a quarter of the bytes that a decode step has to read."""

    weight: Tensor
    scales: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The product of x (..., in) with the transposed matrix, (..., out), in x's dtype. Multiplies in bfloat16."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        fits_kernel = len(rows) <= MOST_INT8_ROWS and rows.shape[-1] % INT8_LANES == 0
        if fits_kernel and x.device.type == "cpu":
            out = torch._weight_int8pack_mm(rows, self.weight, self.scales)  # noqa: SLF001 - it has no public name
        else:
            blocks = torch.split(self.weight, BLOCK_ROWS)
            outs = [linear(rows, block.to(torch.bfloat16)) for block in blocks]
            out = (torch.cat(outs, dim=-1) if len(outs) > 1 else outs[0]).mul_(self.scales)
        return out.to(x.dtype).view(*x.shape[:-1], -1)


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

    embedding: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Matrix


def product(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """X (..., in) times the transposed matrix (out, in), plus the bias (out).

    In float32 on a CPU, oneDNN's product is twice as fast as the one that torch's `linear` takes there, for one row
    as for 512, and as fast on plain weights as on packed ones; but calling it costs 10 us more.
    """
    if not isinstance(matrix, Tensor):
        out = matrix.apply(x)
        return out if bias is None else out.add_(bias)
    is_large = x.numel() * len(matrix) >= LARGE_PRODUCT
    if HAS_ONEDNN and is_large and x.dtype is torch.float32 and x.device.type == "cpu":
        rows = len(x)
        added = usual_rows(rows) - rows if x.dim() == 2 else 0  # noqa: PLR2004  rows of one sequence, or of a batch
        if added:
            x = pad(x, (0, 0, 0, added))
        out = torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")  # noqa: SLF001  it has no other name
        assert isinstance(out, Tensor)
        return out[:rows] if added else out
    return linear(x, matrix, bias)


def usual_rows(rows: int) -> int:
    """The next number of rows that oneDNN is asked for: itself up to 16, and at most an eighth more beyond."""
    bits = max(0, (rows - 1).bit_length() - ROWS_A_DOUBLING_BITS - 1)
    return -(-rows >> bits) << bits


def quantised(weights: Weights) -> Weights:
    """The same with every projection in int8, rounded to the nearest, one scale a row: its largest value is 127.

    An element is off by at most half a scale. The rest stays, the head too: scores that are rounded to bfloat16 cost
    SmolLM2 as much perplexity as all projections together (1.1 % instead of 0.4 %).
    """
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
    return Weights(weights.embedding, layers, weights.norm, weights.head)


def int8(matrix: Matrix) -> Int8Matrix:
    """A matrix in int8. A row of zeros stays one."""
    if isinstance(matrix, Int8Matrix):
        return matrix
    blocks = [_int8_rows(block) for block in torch.split(matrix, BLOCK_ROWS)]
    return Int8Matrix(
        torch.cat([weight for weight, _ in blocks]), torch.cat([scales for _, scales in blocks])
    )


def _int8_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in int8, and their scales. Values are rounded to the scale as bfloat16 has it, which adds no error."""
    largest = rows.abs().amax(dim=1).float()
    scales = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny).to(torch.bfloat16)
    weight = (rows.float() / scales.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return weight, scales


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
