"""Our Llama against a naive reference: explicit loops and masks, no fused products, no SDPA."""

import math

import pytest
import torch

from engine.execution.llama import Llama, Rows, seeded_weights
from engine.settings import Architecture

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")


def architecture(**changes):
    shape = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48, "vocab": 97}
    return Architecture(**{**shape, "context_tokens": 256, "rope_theta": 500.0, **changes})


SHAPES = [
    architecture(),
    architecture(kv_heads=4),
    architecture(kv_heads=1, layers=3),
    architecture(tied_embeddings=False, head_dim=6),
    architecture(tied_embeddings=False, heads=6, kv_heads=2, hidden=24, norm_eps=1e-2),
]


def naive_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def naive_rotate(x, position, theta):
    """One head at one position, as Hugging Face's Llama turns it: the first half pairs with the second."""
    half = len(x) // 2
    turned = x.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        a, b = x[i], x[i + half]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def naive_logits(shape, weights, tokens):
    """Logits (T, vocab) of the whole sequence, position by position."""
    x = weights.embedding[tokens]
    count, size, per_group = len(tokens), shape.head_dim, shape.heads // shape.kv_heads
    for layer in weights.layers:
        joint = naive_norm(x, layer.attention_norm, shape.norm_eps) @ layer.qkv.T
        q, k, v = joint.split([shape.heads * size, shape.kv_heads * size, shape.kv_heads * size], dim=-1)
        out = torch.zeros(count, shape.heads * size)
        for head in range(shape.heads):
            group = head // per_group
            keys = [
                naive_rotate(k[t, group * size : (group + 1) * size], t, shape.rope_theta)
                for t in range(count)
            ]
            for t in range(count):
                query = naive_rotate(q[t, head * size : (head + 1) * size], t, shape.rope_theta)
                scores = torch.stack([query @ keys[s] for s in range(t + 1)]) / math.sqrt(size)
                values = v[: t + 1, group * size : (group + 1) * size]
                out[t, head * size : (head + 1) * size] = scores.softmax(0) @ values
        x = x + out @ layer.attention_out.T
        gate, up = (naive_norm(x, layer.ffn_norm, shape.norm_eps) @ layer.gate_up.T).split(shape.ffn, dim=-1)
        x = x + (gate * torch.sigmoid(gate) * up) @ layer.down.T
    return naive_norm(x, weights.norm, shape.norm_eps) @ weights.head.T


def empty_kv(shape, length):
    return torch.full((shape.layers, 2, shape.kv_heads, length, shape.head_dim), float("nan"))


def prefilled(model, tokens, chunk):
    """Hidden states and KV of `tokens`, prefilled in chunks."""
    kv = empty_kv(model.shape, len(tokens))
    parts = [
        model.prefill(tokens[start : start + chunk], kv, start) for start in range(0, len(tokens), chunk)
    ]
    return torch.cat(parts), kv


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape.heads}h{shape.kv_heads}kv{shape.layers}l")
def model(request):
    with torch.inference_mode():
        yield Llama(request.param, seeded_weights(request.param, 7, CPU))


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (23,), generator=torch.Generator().manual_seed(3))


def test_logits_equal_the_naive_reference(model, tokens):
    hidden, _ = prefilled(model, tokens, chunk=len(tokens))
    reference = naive_logits(model.shape, model.weights, tokens)
    assert (model.logits(hidden) - reference).abs().max() < 1e-4
    assert reference.std() > 0.1


@pytest.mark.parametrize("chunk", [1, 5, 22])
def test_prefill_in_chunks_equals_prefill_in_one_go(model, tokens, chunk):
    whole, kv = prefilled(model, tokens, chunk=len(tokens))
    parts, kv_of_parts = prefilled(model, tokens, chunk=chunk)
    assert (whole - parts).abs().max() < 1e-5 * whole.abs().max()
    assert (kv - kv_of_parts).abs().max() < 1e-5 * kv.abs().max()
    assert (model.logits(whole) - model.logits(parts)).abs().max() < 1e-5
    assert model.logits(whole).argmax(-1).tolist() == model.logits(parts).argmax(-1).tolist()


def test_decode_of_unequal_lengths_equals_prefill_of_each(model, tokens):
    lengths = [4, 22, 11]
    rack = torch.zeros(4, *empty_kv(model.shape, 32).shape)
    for row, length in enumerate(lengths):
        _, kv = prefilled(model, tokens[:length], chunk=length)
        rack[row, :, :, :, :length] = kv
    positions = torch.tensor(lengths)
    mask = torch.where(torch.arange(23) <= positions[:, None], 0.0, -torch.inf)
    rows = Rows(rack, positions, torch.arange(3), mask[:, None, None], 23)
    hidden = model.decode(tokens[positions], [rows])
    for row, length in enumerate(lengths):
        expected, kv = prefilled(model, tokens[: length + 1], chunk=length + 1)
        assert (hidden[row] - expected[-1]).abs().max() < 1e-4
        assert (rack[row, :, :, :, : length + 1] - kv).abs().max() < 1e-4


def test_rows_of_several_racks_decode_in_one_pass_in_their_order(model, tokens):
    racks = []
    for length in (9, 17):
        rack = torch.zeros(1, *empty_kv(model.shape, 32).shape)
        rack[0, :, :, :, :length] = prefilled(model, tokens[:length], chunk=length)[1]
        mask = torch.zeros(1, 1, 1, length + 1)
        racks.append(Rows(rack, torch.tensor([length]), torch.arange(1), mask, length + 1))
    together = model.decode(tokens[[9, 17]], racks)
    for index, length in enumerate((9, 17)):
        expected, _ = prefilled(model, tokens[: length + 1], chunk=length + 1)
        assert (together[index] - expected[-1]).abs().max() < 1e-4


def test_weights_are_a_function_of_shape_and_seed_and_touch_no_global_state():
    before = torch.get_rng_state()
    one, same, other = (seeded_weights(SHAPES[0], seed, CPU) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.layers[1].down, same.layers[1].down)
    assert not torch.equal(one.embedding, other.embedding)


def test_the_number_of_weights_is_what_the_architecture_says():
    for shape in SHAPES:
        weights = seeded_weights(shape, 1, CPU)
        tensors = [weights.embedding, weights.norm]
        tensors += [] if shape.tied_embeddings else [weights.head]
        for layer in weights.layers:
            tensors += [
                layer.attention_norm,
                layer.qkv,
                layer.attention_out,
                layer.ffn_norm,
                layer.gate_up,
                layer.down,
            ]
        assert sum(tensor.numel() for tensor in tensors) == shape.parameters
        assert (weights.head is weights.embedding) == shape.tied_embeddings
