"""A decoder in torch, made for our KV: Llama, Mistral, Qwen 2 and 3, Phi 3, Gemma 2 and 3 in one forward pass.

Pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward, as in Touvron et al.,
"Llama 2" (arXiv 2307.09288); what the families do otherwise is a switch of `Architecture`. The projections of q, k
and v, and those of gate and up, are one matrix product each.
Shapes: B sequences, T tokens, H query heads, G key-value heads, R = H / G, D numbers a head, S tokens of KV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention, silu

from engine.execution.weights import Layer, Weights, product
from engine.settings import Architecture

FIRST_POSITIONS = 2048


@dataclass(slots=True)
class Rows:
    """Decoding sequences whose KV lies side by side: row i of `kv[:len(positions)]` holds `positions[i]` tokens.

    `kv` is (rows, layers, 2, G, S, D); `mask` (B, 1, 1, S) is 0 where a row has keys, the new one included, and
    -inf elsewhere: added to the scores, where a bool mask would be turned into this one in each layer. `window` is
    the same for layers that see the latest tokens only; None where there are none, or where all fit into it.
    """

    kv: Tensor
    positions: Tensor
    index: Tensor
    mask: Tensor
    window: Tensor | None
    longest: int

    @classmethod
    def of(cls, kv: Tensor, lengths: Sequence[int], window_tokens: int) -> Self:
        """The rows of `kv`, row i of which holds `lengths[i]` tokens and gets one more now."""
        positions = torch.tensor(lengths, device=kv.device)
        longest = max(lengths) + 1
        places = torch.arange(longest, device=kv.device)
        is_free = places > positions[:, None]
        index = torch.arange(len(lengths), device=kv.device)
        window = None
        if 0 < window_tokens < longest:
            window = _as_mask(is_free | (places <= positions[:, None] - window_tokens), kv.dtype)
        return cls(kv, positions, index, _as_mask(is_free, kv.dtype), window, longest)


def _as_mask(is_hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S) to (B, 1, 1, S), -inf where hidden."""
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device)
    return mask.masked_fill_(is_hidden, -torch.inf)[:, None, None]


class Rotary:
    """Cosines and sines of every position so far, for one base and its divisors. Grows as positions are asked for."""

    def __init__(
        self, turning: int, theta: float, factors: Sequence[float], dtype: torch.dtype, device: torch.device
    ) -> None:
        frequencies = theta ** (-torch.arange(0, turning, 2, device=device) / turning)
        if factors:
            frequencies = frequencies / torch.tensor(factors, device=device)
        self._frequencies = frequencies
        self._dtype = dtype
        self.cos = self.sin = torch.empty(0)
        self.reach(FIRST_POSITIONS)

    def reach(self, length: int) -> None:
        """Have the first so many positions, and as many more as there were."""
        if length <= len(self.cos):
            return
        positions = torch.arange(max(length, 2 * len(self.cos)), device=self._frequencies.device)
        angles = torch.outer(positions.float(), self._frequencies)
        self.cos = torch.cat([angles.cos()] * 2, dim=-1)[:, None].to(self._dtype)
        sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)[:, None]  # with the sign of rotate-half
        self.sin = sin.to(self._dtype)


class Decoder:
    """The forward pass. Holds weights and rotary tables, no KV and no state."""

    def __init__(self, shape: Architecture, weights: Weights) -> None:
        self.shape = shape
        self.weights = weights
        self.dtype = weights.norm.dtype
        device = weights.norm.device
        self._sees_all = [shape.sees_everything(layer) for layer in range(shape.layers)]
        self._turning = shape.rotary_dim or shape.head_dim
        rotary = Rotary(self._turning, shape.rope_theta, shape.rope_factors, self.dtype, device)
        local = rotary
        if shape.rope_local_theta is not None:
            local = Rotary(self._turning, shape.rope_local_theta, (), self.dtype, device)
        self._rotary, self._local = rotary, local
        self._scale = shape.attention_scale if shape.attention_scale is not None else shape.head_dim**-0.5

    def prefill(self, tokens: Tensor, kv: Tensor, start: int) -> Tensor:
        """Compute KV of `tokens` (T), the tokens from `start` on of one sequence; hidden states (T, hidden).

        `kv` (layers, 2, G, S, D) holds the first `start` tokens and gets the others.
        """
        shape, count = self.shape, len(tokens)
        end = start + count
        self._reach(end)
        turns = [(each.cos[start:end], each.sin[start:end]) for each in (self._rotary, self._local)]
        mask = self._causal(start, end, 0) if start or shape.attention_softcap else None
        window = self._causal(start, end, shape.window_tokens) if 0 < shape.window_tokens < end else mask
        hidden = self._embed(tokens)
        for number, layer in enumerate(self.weights.layers):
            sees_all = self._sees_all[number]
            q, new = self._qkv(layer, hidden, *turns[0 if sees_all else 1])
            kv[number, :, :, start:end] = new.permute(1, 2, 0, 3)
            keys, values = kv[number, :, :, :end]
            grouped = q.transpose(0, 1).view(shape.kv_heads, -1, count, shape.head_dim)
            size = (*grouped.shape[:2], end, shape.head_dim)
            out = self._attention(
                grouped, keys[:, None].expand(size), values[:, None].expand(size), mask if sees_all else window
            )
            hidden = self._finish(layer, hidden, out.flatten(0, 1).transpose(0, 1))
        return hidden

    def decode(self, tokens: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Compute KV of one more token a sequence, `tokens` (B) in the order of `rows`; hidden states (B, hidden)."""
        self._reach(max(part.longest for part in rows))
        positions = torch.cat([each.positions for each in rows]) if len(rows) > 1 else rows[0].positions
        turns = [(self._rotary.cos[positions], self._rotary.sin[positions])] * 2
        if self._local is not self._rotary:
            turns[1] = self._local.cos[positions], self._local.sin[positions]
        hidden = self._embed(tokens)
        for number, layer in enumerate(self.weights.layers):
            sees_all = self._sees_all[number]
            q, new = self._qkv(layer, hidden, *turns[0 if sees_all else 1])
            outs, first = [], 0
            for part in rows:
                last = first + len(part.positions)
                mask = part.mask if sees_all or part.window is None else part.window
                outs.append(self._attend(number, part, mask, q[first:last], new[first:last]))
                first = last
            hidden = self._finish(layer, hidden, torch.cat(outs) if len(outs) > 1 else outs[0])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, (..., vocab) in float32, for hidden states (..., hidden)."""
        scores = product(self._norm(hidden, self.weights.norm), self.weights.head).float()
        cap = self.shape.final_softcap
        return torch.tanh_(scores.div_(cap)).mul_(cap) if cap else scores

    def _attend(self, number: int, rows: Rows, mask: Tensor, q: Tensor, new: Tensor) -> Tensor:
        """Attention of one new token a row: its R query heads a group are the queries of one product."""
        shape, count = self.shape, len(rows.positions)
        kv = rows.kv[:, number]
        kv[rows.index, :, :, rows.positions] = new
        keys, values = kv[:count, :, :, : rows.longest].unbind(1)
        grouped = q.view(count, shape.kv_heads, -1, shape.head_dim)
        out = self._attention(grouped, keys, values, mask)
        return out.reshape(count, shape.heads, shape.head_dim)

    def _attention(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention over the last two dimensions; without a mask, each query sees what is not after it."""
        cap = self.shape.attention_softcap
        if not cap:
            return scaled_dot_product_attention(q, keys, values, mask, is_causal=mask is None, scale=self._scale)
        scores = (q * self._scale) @ keys.transpose(-1, -2)
        scores = torch.tanh_(scores.div_(cap)).mul_(cap)
        assert mask is not None
        return torch.softmax(scores.add_(mask), dim=-1, dtype=torch.float32).to(q.dtype) @ values

    def _causal(self, start: int, end: int, window_tokens: int) -> Tensor:
        """(T, S): what the tokens from `start` on see of all up to `end`, themselves causally."""
        mask = torch.full((end - start, end), -torch.inf, dtype=self.dtype, device=self.weights.norm.device)
        mask = mask.triu(start + 1)
        if window_tokens:
            places = torch.arange(end, device=mask.device)
            mask.masked_fill_(places <= places[start:, None] - window_tokens, -torch.inf)
        return mask

    def _embed(self, tokens: Tensor) -> Tensor:
        table = self.weights.embedding
        hidden = table[tokens] if isinstance(table, Tensor) else table.rows(tokens, self.dtype)
        return hidden if self.shape.embedding_scale == 1.0 else hidden * self.shape.embedding_scale

    def _qkv(self, layer: Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries (T, H, D); rotated keys and values (T, 2, G, D). cos and sin: (T, 1, turning)."""
        shape = self.shape
        joint = product(self._norm(hidden, layer.attention_norm), layer.qkv, layer.qkv_bias)
        joint = joint.view(len(hidden), shape.heads + 2 * shape.kv_heads, shape.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            self._norm_heads(joint, layer.q_norm, layer.k_norm)
        turning = joint[:, : shape.heads + shape.kv_heads, : self._turning]
        rolled = turning.roll(self._turning // 2, -1)
        turning.mul_(cos).addcmul_(rolled, sin)  # in place: the new keys then lie beside the new values
        new = joint[:, shape.heads :].view(-1, 2, shape.kv_heads, shape.head_dim)
        return joint[:, : shape.heads], new

    def _norm_heads(self, joint: Tensor, q_norm: Tensor, k_norm: Tensor) -> None:
        """RMS norm of each query head and each key head, in place."""
        shape = self.shape
        first, last = shape.heads, shape.heads + shape.kv_heads
        size, eps = (shape.head_dim,), shape.norm_eps
        joint[:, :first] = rms_norm(joint[:, :first], size, q_norm, eps)
        joint[:, first:last] = rms_norm(joint[:, first:last], size, k_norm, eps)

    def _finish(self, layer: Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        """The rest of a block after attention (T, H, D)."""
        out = product(attended.reshape(len(hidden), -1), layer.attention_out)
        if layer.attention_post_norm is not None:
            out = self._norm(out, layer.attention_post_norm)
        hidden = out.add_(hidden)
        gate, up = product(self._norm(hidden, layer.ffn_norm), layer.gate_up).chunk(2, dim=-1)
        active = silu(gate) if self.shape.activation == "silu" else gelu(gate, approximate="tanh")
        out = product(active.mul_(up), layer.down)
        if layer.ffn_post_norm is not None:
            out = self._norm(out, layer.ffn_post_norm)
        return out.add_(hidden)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden, (self.shape.hidden,), weight, self.shape.norm_eps)

    def _reach(self, length: int) -> None:
        self._rotary.reach(length)
        self._local.reach(length)
