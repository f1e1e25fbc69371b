"""A decoder-only Llama in torch, made for our KV: prefill of one sequence, decode of many of unequal lengths.

Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU feed-forward, as in Touvron et al.,
"Llama 2" (arXiv 2307.09288); the projections of q, k, v and those of gate and up are one matrix product each.
Shapes: B sequences, T tokens, H query heads, G key-value heads, R = H / G, D numbers a head, S tokens of KV.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from engine.settings import Architecture

EMBEDDING_SCALE = 0.2
ATTENTION_SCALE = 2.0


@dataclass(slots=True)
class Layer:
    """The weights of one block, each as (out, in)."""

    attention_norm: Tensor
    qkv: Tensor
    attention_out: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(slots=True)
class Weights:
    """All weights of a model. `head` is `embedding` itself where they are tied."""

    embedding: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Tensor


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

    def ones() -> Tensor:
        return torch.ones(shape.hidden, device=device)

    heads_dim, kv_dim = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    embedding = matrix(shape.vocab, shape.hidden) * EMBEDDING_SCALE
    layers = [
        Layer(
            ones(),
            matrix(heads_dim + 2 * kv_dim, shape.hidden) * ATTENTION_SCALE,
            matrix(shape.hidden, heads_dim),
            ones(),
            matrix(2 * shape.ffn, shape.hidden),
            matrix(shape.hidden, shape.ffn),
        )
        for _ in range(shape.layers)
    ]
    head = embedding if shape.tied_embeddings else matrix(shape.vocab, shape.hidden)
    return Weights(embedding, layers, ones(), head)


@dataclass(slots=True)
class Rows:
    """Decoding sequences whose KV lies side by side: row i of `kv[:len(positions)]` holds `positions[i]` tokens.

    `kv` is (rows, layers, 2, G, S, D); `mask` (B, 1, 1, S) is 0 where a row has keys, the new one included, and
    -inf elsewhere: added to the scores, where a bool mask would be turned into this one in each layer.
    """

    kv: Tensor
    positions: Tensor
    index: Tensor
    mask: Tensor
    longest: int


class Llama:
    """The forward pass. Holds weights and rotary tables, no KV and no state."""

    def __init__(self, shape: Architecture, weights: Weights) -> None:
        self.shape = shape
        self.weights = weights
        device = weights.embedding.device
        frequencies = shape.rope_theta ** (
            -torch.arange(0, shape.head_dim, 2, device=device) / shape.head_dim
        )
        angles = torch.outer(torch.arange(shape.context_tokens, device=device).float(), frequencies)
        self._cos = torch.cat([angles.cos()] * 2, dim=-1)[:, None]
        self._sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)[:, None]  # with the sign of rotate-half

    def prefill(self, tokens: Tensor, kv: Tensor, start: int) -> Tensor:
        """Compute KV of `tokens` (T), the tokens from `start` on of one sequence; hidden states (T, hidden).

        `kv` (layers, 2, G, S, D) holds the first `start` tokens and gets the others.
        """
        shape, count = self.shape, len(tokens)
        end = start + count
        cos, sin = self._cos[start:end], self._sin[start:end]
        mask = None
        if start:  # a chunk sees all of what came before it, and itself causally
            mask = torch.full((count, end), -torch.inf, device=tokens.device).triu(start + 1)
        hidden = self.weights.embedding[tokens]
        for number, layer in enumerate(self.weights.layers):
            q, new = self._qkv(layer, hidden, cos, sin)
            kv[number, :, :, start:end] = new.permute(1, 2, 0, 3)
            keys, values = kv[number, :, :, :end]
            grouped = q.transpose(0, 1).view(shape.kv_heads, -1, count, shape.head_dim)
            size = (*grouped.shape[:2], end, shape.head_dim)
            out = scaled_dot_product_attention(
                grouped, keys[:, None].expand(size), values[:, None].expand(size), mask, is_causal=not start
            )
            hidden = self._finish(layer, hidden, out.flatten(0, 1).transpose(0, 1))
        return hidden

    def decode(self, tokens: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Compute KV of one more token a sequence, `tokens` (B) in the order of `rows`; hidden states (B, hidden)."""
        positions = torch.cat([each.positions for each in rows]) if len(rows) > 1 else rows[0].positions
        cos, sin = self._cos[positions], self._sin[positions]
        hidden = self.weights.embedding[tokens]
        for number, layer in enumerate(self.weights.layers):
            q, new = self._qkv(layer, hidden, cos, sin)
            outs, first = [], 0
            for part in rows:
                last = first + len(part.positions)
                outs.append(self._attend(number, part, q[first:last], new[first:last]))
                first = last
            hidden = self._finish(layer, hidden, torch.cat(outs) if len(outs) > 1 else outs[0])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, (..., vocab), for hidden states (..., hidden)."""
        return linear(self._norm(hidden, self.weights.norm), self.weights.head)

    def _attend(self, number: int, rows: Rows, q: Tensor, new: Tensor) -> Tensor:
        """Attention of one new token a row: its R query heads a group are the queries of one product."""
        shape, count = self.shape, len(rows.positions)
        kv = rows.kv[:, number]
        kv[rows.index, :, :, rows.positions] = new
        keys, values = kv[:count, :, :, : rows.longest].unbind(1)
        grouped = q.view(count, shape.kv_heads, -1, shape.head_dim)
        out = scaled_dot_product_attention(grouped, keys, values, rows.mask)
        return out.reshape(count, shape.heads, shape.head_dim)

    def _qkv(self, layer: Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries (T, H, D); rotated keys and values (T, 2, G, D). cos and sin: (T, 1, D)."""
        shape = self.shape
        joint = linear(self._norm(hidden, layer.attention_norm), layer.qkv)
        joint = joint.view(len(hidden), shape.heads + 2 * shape.kv_heads, shape.head_dim)
        turning = joint[:, : shape.heads + shape.kv_heads]
        rolled = turning.roll(shape.head_dim // 2, -1)
        turning.mul_(cos).addcmul_(rolled, sin)  # in place: the new keys then lie beside the new values
        new = joint[:, shape.heads :].view(-1, 2, shape.kv_heads, shape.head_dim)
        return joint[:, : shape.heads], new

    def _finish(self, layer: Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        """The rest of a block after attention (T, H, D)."""
        hidden = linear(attended.reshape(len(hidden), -1), layer.attention_out).add_(hidden)
        gate, up = linear(self._norm(hidden, layer.ffn_norm), layer.gate_up).chunk(2, dim=-1)
        return linear(silu(gate).mul_(up), layer.down).add_(hidden)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden, (self.shape.hidden,), weight, self.shape.norm_eps)
