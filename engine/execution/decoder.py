"""A decoder in torch, made for our KV: Llama, Mistral, Qwen 2 and 3, Phi 3, Gemma 2 and 3 in one forward pass.

Pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward, as in Touvron et al.,
"Llama 2" (arXiv 2307.09288); what another family does otherwise is a switch of `Architecture`. The projections of
q, k, v and those of gate and up are one matrix product each.
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

FIRST_POSITIONS = 2048  # that a rotary table has; it doubles when a sequence grows longer

MASKED_TOKENS = 512
"""Tokens of one pass under a mask. 16k tokens after one cached block: 3.6 s and 72 MiB; in one pass 7 s, 1.9 GiB."""

Turn = tuple[Tensor, Tensor]
"""Cosines and sines of some positions, each (positions, 1, numbers that turn)."""


@dataclass(slots=True)
class Rows:
    """Decoding sequences whose KV lies side by side: row i of `kv[:len(positions)]` holds `positions[i]` tokens.

    `kv` is (rows, layers, 2, G, S, D); `mask` (B, 1, 1, `longest`) is 0 where a row has keys, the new one included,
    and -inf elsewhere: added to the scores, where a bool mask would be turned into this one in each layer.
    Layers with a window read the keys from `window_from` on, under `window_mask`; None: they see what all layers see.
    """

    kv: Tensor
    positions: Tensor
    index: Tensor
    mask: Tensor
    longest: int
    window_from: int = 0
    window_mask: Tensor | None = None

    @classmethod
    def of(cls, kv: Tensor, lengths: Sequence[int], window_tokens: int = 0) -> Self:
        """Rows that hold `lengths` tokens and get one more each. `window_tokens` is that of the architecture."""
        positions = torch.tensor(lengths, device=kv.device)
        longest = max(lengths) + 1
        places = torch.arange(longest, device=kv.device)
        is_hidden = places > positions[:, None]
        index = torch.arange(len(lengths), device=kv.device)
        rows = cls(kv, positions, index, added_mask(is_hidden, kv.dtype)[:, None, None], longest)
        if 0 < window_tokens < longest:
            first = rows.window_from = max(0, min(lengths) + 1 - window_tokens)
            is_hidden = (is_hidden | (places <= positions[:, None] - window_tokens))[:, first:]
            rows.window_mask = added_mask(is_hidden, kv.dtype)[:, None, None]
        return rows

    def seen(self, is_windowed: bool) -> tuple[int, Tensor]:
        """The first key that a layer reads, and its mask."""
        if is_windowed and self.window_mask is not None:
            return self.window_from, self.window_mask
        return 0, self.mask


def added_mask(is_hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What scores get added: -inf where hidden, else 0."""
    return torch.where(is_hidden, -torch.inf, 0.0).to(dtype)


class Rotary:
    """Cosines and sines of one rotary base. The table grows with the positions that are asked for."""

    def __init__(self, turning: int, theta: float, factors: Sequence[float], like: Tensor) -> None:
        exponents = torch.arange(0, turning, 2, device=like.device).float() / turning
        self._frequencies = 1.0 / theta**exponents
        if factors:
            self._frequencies /= torch.tensor(factors, device=like.device)
        self._dtype = like.dtype
        self._table = self._computed(FIRST_POSITIONS)

    def upto(self, length: int) -> Turn:
        """Those of at least the first `length` positions."""
        table = self._table
        if length > len(table[0]):
            table = self._table = self._computed(max(length, 2 * len(table[0])))
        return table

    def _computed(self, length: int) -> Turn:
        positions = torch.arange(length, device=self._frequencies.device).float()
        angles = torch.outer(positions, self._frequencies)[:, None]
        cos = torch.cat([angles.cos()] * 2, dim=-1)
        sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)  # with the sign of rotate-half
        return cos.to(self._dtype), sin.to(self._dtype)


class Decoder:
    """The forward pass. Holds weights and rotary tables, no KV and nothing of a sequence.

    Computes in the dtype of the norms, which the KV has to have too; int8 matrices multiply in bfloat16.
    """

    def __init__(self, shape: Architecture, weights: Weights) -> None:
        self.shape = shape
        self.weights = weights
        self.dtype = weights.norm.dtype
        self._turning = shape.rotary_dim or shape.head_dim
        self._rotaries = [Rotary(self._turning, shape.rope_theta, shape.rope_factors, weights.norm)]
        if shape.rope_local_theta is not None:
            self._rotaries.append(Rotary(self._turning, shape.rope_local_theta, (), weights.norm))
        self._is_windowed = [not shape.sees_everything(number) for number in range(shape.layers)]
        self._head_norms = [self._joint_norm(layer) for layer in weights.layers]
        self._attention_scale = shape.attention_scale or shape.head_dim**-0.5
        # rounded as the models were trained: Gemma's root of 640 is 25.25 in bfloat16, not 25.298
        self._embedding_scale = torch.tensor(shape.embedding_scale, dtype=self.dtype).item()

    def prefill(self, tokens: Tensor, kv: Tensor, start: int) -> Tensor:
        """Compute KV of `tokens` (T), the tokens from `start` on of one sequence; hidden states (T, hidden).

        `kv` (layers, 2, G, S, D) holds the first `start` tokens and gets the others.
        """
        needs_mask = start > 0 or self._is_masked(start + len(tokens))
        hiddens = []
        for part in torch.split(tokens, MASKED_TOKENS if needs_mask else len(tokens)):
            hiddens.append(self._prefill(part, kv, start))
            start += len(part)
        return torch.cat(hiddens) if len(hiddens) > 1 else hiddens[0]

    def decode(self, tokens: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Compute KV of one more token a sequence, `tokens` (B) in the order of `rows`; hidden states (B, hidden)."""
        positions = torch.cat([each.positions for each in rows]) if len(rows) > 1 else rows[0].positions
        turns = self._turns(positions, max(part.longest for part in rows))
        hidden = self._embedded(tokens)
        for number, layer in enumerate(self.weights.layers):
            q, new = self._qkv(number, hidden, turns)
            outs, first = [], 0
            for part in rows:
                last = first + len(part.positions)
                outs.append(self._attend(number, part, q[first:last], new[first:last]))
                first = last
            hidden = self._finish(layer, hidden, torch.cat(outs) if len(outs) > 1 else outs[0])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, (..., vocab) in float32, for hidden states (..., hidden)."""
        scores = product(self._norm(hidden, self.weights.norm), self.weights.head).float()
        cap = self.shape.final_softcap
        return scores.div_(cap).tanh_().mul_(cap) if cap else scores

    def _prefill(self, tokens: Tensor, kv: Tensor, start: int) -> Tensor:
        """One pass of `prefill`."""
        shape, count = self.shape, len(tokens)
        end = start + count
        turns = self._turns(slice(start, end), end)
        full, window = self._masks(start, end)
        hidden = self._embedded(tokens)
        for number, layer in enumerate(self.weights.layers):
            q, new = self._qkv(number, hidden, turns)
            kv[number, :, :, start:end] = new.permute(1, 2, 0, 3)
            first, mask = window if self._is_windowed[number] else full
            keys, values = kv[number, :, :, first:end]
            grouped = q.transpose(0, 1).view(shape.kv_heads, -1, count, shape.head_dim)
            if shape.attention_softcap:
                assert mask is not None
                out = self._capped(grouped, keys, values, mask)
            else:
                size = (*grouped.shape[:2], end - first, shape.head_dim)
                keys, values = keys[:, None].expand(size), values[:, None].expand(size)
                out = scaled_dot_product_attention(
                    grouped, keys, values, mask, is_causal=mask is None, scale=self._attention_scale
                )
            hidden = self._finish(layer, hidden, out.flatten(0, 1).transpose(0, 1))
        return hidden

    def _is_masked(self, end: int) -> bool:
        """Whether a prefill up to `end` needs a mask even from the start on."""
        return self.shape.attention_softcap > 0 or 0 < self.shape.window_tokens < end

    def _masks(self, start: int, end: int) -> tuple[tuple[int, Tensor | None], tuple[int, Tensor | None]]:
        """The first key that layers without and with a window read, and their masks (T, keys); None: causal."""
        full: tuple[int, Tensor | None] = (0, None)
        if not start and not self._is_masked(end):
            return full, full
        mask = torch.full((end - start, end), -torch.inf, dtype=self.dtype, device=self.weights.norm.device)
        mask = mask.triu_(start + 1)  # a chunk sees all of what came before it, and itself causally
        full, window_tokens = (0, mask), self.shape.window_tokens
        if not 0 < window_tokens < end:
            return full, full
        first = max(0, start + 1 - window_tokens)
        keys = torch.arange(first, end, device=mask.device)
        queries = torch.arange(start, end, device=mask.device)[:, None]
        return full, (first, mask[:, first:].masked_fill(keys <= queries - window_tokens, -torch.inf))

    def _attend(self, number: int, rows: Rows, q: Tensor, new: Tensor) -> Tensor:
        """Attention of one new token a row: its R query heads a group are the queries of one product."""
        shape, count = self.shape, len(rows.positions)
        kv = rows.kv[:, number]
        kv[rows.index, :, :, rows.positions] = new
        first, mask = rows.seen(self._is_windowed[number])
        keys, values = kv[:count, :, :, first : rows.longest].unbind(1)
        grouped = q.view(count, shape.kv_heads, -1, shape.head_dim)
        if shape.attention_softcap:
            out = self._capped(grouped[:, :, :, None], keys, values, mask[:, None])
        else:
            out = scaled_dot_product_attention(grouped, keys, values, mask, scale=self._attention_scale)
        return out.reshape(count, shape.heads, shape.head_dim)

    def _capped(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention whose scores cannot leave (-softcap, softcap): q (..., G, R, T, D), keys (..., G, S, D).

        The queries of a group are rows of one product, so that keys are not repeated. No fused kernel does this.
        """
        cap = self.shape.attention_softcap
        scores = (q.flatten(-3, -2) @ keys.transpose(-1, -2)).mul_(self._attention_scale / cap)
        scores = scores.tanh_().mul_(cap).view(*q.shape[:-1], -1).add_(mask)
        shares = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        out: Tensor = shares.flatten(-3, -2) @ values
        return out.view(q.shape)

    def _embedded(self, tokens: Tensor) -> Tensor:
        hidden = self.weights.embedding[tokens]
        return hidden if self._embedding_scale == 1.0 else hidden * self._embedding_scale

    def _turns(self, places: slice | Tensor, length: int) -> list[Turn]:
        """What queries and keys at `places`, all below `length`, turn by: the last is that of windowed layers."""
        tables = [rotary.upto(length) for rotary in self._rotaries]
        return [(cos[places], sin[places]) for cos, sin in tables]

    def _qkv(self, number: int, hidden: Tensor, turns: list[Turn]) -> tuple[Tensor, Tensor]:
        """Rotated queries (T, H, D); rotated keys and values (T, 2, G, D)."""
        shape, layer = self.shape, self.weights.layers[number]
        joint = product(self._norm(hidden, layer.attention_norm), layer.qkv, layer.qkv_bias)
        joint = joint.view(len(hidden), shape.heads + 2 * shape.kv_heads, shape.head_dim)
        turning = joint[:, : shape.heads + shape.kv_heads]
        head_norm = self._head_norms[number]
        if head_norm is not None:
            torch.mul(rms_norm(turning, (shape.head_dim,), eps=shape.norm_eps), head_norm, out=turning)
        if self._turning < shape.head_dim:
            turning = turning[..., : self._turning]
        cos, sin = turns[-1 if self._is_windowed[number] else 0]
        rolled = turning.roll(self._turning // 2, -1)
        turning.mul_(cos).addcmul_(rolled, sin)  # in place: the new keys then lie beside the new values
        new = joint[:, shape.heads :].view(-1, 2, shape.kv_heads, shape.head_dim)
        return joint[:, : shape.heads], new

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

    def _joint_norm(self, layer: Layer) -> Tensor | None:
        """The norms of all query heads, then of all key heads, (H + G, D): one product instead of two."""
        if layer.q_norm is None or layer.k_norm is None:
            return None
        counts = (self.shape.heads, self.shape.kv_heads)
        norms = zip((layer.q_norm, layer.k_norm), counts, strict=True)
        return torch.cat([norm.expand(count, -1) for norm, count in norms])
