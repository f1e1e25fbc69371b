"""Our decoder, Llama's way, against a naive reference: explicit loops and masks, no fused products, no SDPA.

What other families do otherwise is compared with transformers in test_decoder_parity.py, and here with itself.
"""

import math
from dataclasses import replace

import pytest
import torch

from engine.execution.decoder import FIRST_POSITIONS, MASKED_TOKENS, Decoder, Rows
from engine.execution.weights import (
    BLOCK_ROWS,
    MOST_INT8_ROWS,
    Int8Matrix,
    int8,
    product,
    quantised,
    seeded_weights,
    usual_rows,
)
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

GEMMA_2 = architecture(
    layers=4,
    kv_heads=4,
    post_norms=True,
    activation="gelu_tanh",
    embedding_scale=5.6,
    attention_softcap=2.0,
    final_softcap=3.0,
    window_tokens=7,
    global_every=2,
)
GEMMA_3 = architecture(
    layers=3,
    kv_heads=1,
    post_norms=True,
    qk_norm=True,
    activation="gelu_tanh",
    attention_scale=0.2,
    rope_local_theta=20.0,
    window_tokens=5,
    global_every=3,
)
SWITCHED = [
    architecture(window_tokens=6),
    architecture(qkv_bias=True, rotary_dim=4),
    architecture(qk_norm=True, rope_factors=[1.0, 2.0, 3.0, 4.0]),
    GEMMA_2,
    GEMMA_3,
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
def llama(request):
    with torch.inference_mode():
        yield Decoder(request.param, seeded_weights(request.param, 7, CPU))


@pytest.fixture(
    params=[*SHAPES, *SWITCHED], ids=lambda shape: f"{shape.heads}h{shape.kv_heads}kv{shape.layers}l"
)
def model(request):
    with torch.inference_mode():
        yield Decoder(request.param, seeded_weights(request.param, 7, CPU))


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (23,), generator=torch.Generator().manual_seed(3))


def test_logits_equal_the_naive_reference(llama, tokens):
    hidden, _ = prefilled(llama, tokens, chunk=len(tokens))
    reference = naive_logits(llama.shape, llama.weights, tokens)
    assert (llama.logits(hidden) - reference).abs().max() < 1e-4
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
    hidden = model.decode(tokens[torch.tensor(lengths)], [Rows.of(rack, lengths, model.shape.window_tokens)])
    for row, length in enumerate(lengths):
        expected, kv = prefilled(model, tokens[: length + 1], chunk=length + 1)
        assert (hidden[row] - expected[-1]).abs().max() < 1e-4
        assert (rack[row, :, :, :, : length + 1] - kv).abs().max() < 1e-4


def test_rows_of_several_racks_decode_in_one_pass_in_their_order(model, tokens):
    racks = []
    for length in (9, 17):
        rack = torch.zeros(1, *empty_kv(model.shape, 32).shape)
        rack[0, :, :, :, :length] = prefilled(model, tokens[:length], chunk=length)[1]
        racks.append(Rows.of(rack, [length], model.shape.window_tokens))
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


def tensors_of(weights):
    found = [weights.embedding, weights.norm]
    found += [] if weights.head is weights.embedding else [weights.head]
    for layer in weights.layers:
        found += [getattr(layer, name) for name in layer.__slots__ if getattr(layer, name) is not None]
    return found


@pytest.mark.parametrize("shape", [*SHAPES, *SWITCHED])
def test_the_number_of_weights_is_what_the_architecture_says(shape):
    weights = seeded_weights(shape, 1, CPU)
    assert sum(tensor.numel() for tensor in tensors_of(weights)) == shape.parameters
    assert (weights.head is weights.embedding) == shape.tied_embeddings


def test_a_row_sees_its_own_tokens_and_in_a_window_the_latest_of_them():
    rows = Rows.of(torch.zeros(3, 1, 2, 1, 16, 2), [3, 9, 6], window_tokens=4)
    mask, window = rows.mask[:, 0, 0] == 0, rows.window_mask[:, 0, 0] == 0
    assert [each.nonzero().flatten().tolist() for each in mask] == [[*range(4)], [*range(10)], [*range(7)]]
    seen = [(each.nonzero().flatten() + rows.window_from).tolist() for each in window]
    assert seen == [[0, 1, 2, 3], [6, 7, 8, 9], [3, 4, 5, 6]]


def test_windowed_layers_read_no_key_that_no_row_sees():
    kv = torch.zeros(2, 1, 2, 1, 64, 2)
    assert Rows.of(kv, [50, 40], window_tokens=8).window_from == 33
    assert Rows.of(kv, [50, 40], window_tokens=8).window_mask.shape == (2, 1, 1, 18)
    assert Rows.of(kv, [7, 2], window_tokens=8).window_mask is None


@torch.inference_mode()
def test_a_token_outside_every_window_changes_nothing():
    shape = architecture(window_tokens=4)  # two layers: the token sees 3 back, and through them 3 more
    model = Decoder(shape, seeded_weights(shape, 2, CPU))
    tokens = torch.arange(20)
    changed = tokens.clone()
    changed[12] = 90
    hidden, other = prefilled(model, tokens, 20)[0], prefilled(model, changed, 20)[0]
    is_equal = (hidden == other).all(dim=1)
    assert is_equal.nonzero().flatten().tolist() == [*range(12), 19]


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{"window_tokens": 100}, {"attention_softcap": 5.0}], ids=str)
def test_a_long_prompt_under_masks_goes_in_passes_and_answers_the_same(changes, monkeypatch):
    shape = architecture(**changes)
    model = Decoder(shape, seeded_weights(shape, 4, CPU))
    tokens = torch.arange(MASKED_TOKENS + 70) % 97
    kv, expected_kv = empty_kv(shape, len(tokens)), empty_kv(shape, len(tokens))
    expected, masks, passes = model._prefill(tokens, expected_kv, 0), model._masks, []
    monkeypatch.setattr(model, "_masks", lambda *span: passes.append(span) or masks(*span))
    assert (model.prefill(tokens, kv, 0) - expected).abs().max() < 1e-4
    assert (kv - expected_kv).abs().max() < 1e-4
    assert passes == [(0, MASKED_TOKENS), (MASKED_TOKENS, len(tokens))]


@torch.inference_mode()
def test_rotary_tables_grow_with_a_sequence_and_change_nothing_below():
    shape = architecture(layers=1)
    model = Decoder(shape, seeded_weights(shape, 4, CPU))
    short, kv = torch.arange(9), empty_kv(shape, FIRST_POSITIONS + 3)
    before = model.prefill(short, kv, 0)
    long = torch.arange(FIRST_POSITIONS + 3) % 97
    hidden = model.prefill(long, kv, 0)
    assert len(model._rotaries[0].upto(1)[0]) == 2 * FIRST_POSITIONS
    assert torch.equal(model.prefill(short, kv, 0), before)
    rows = Rows.of(kv[None].clone(), [FIRST_POSITIONS + 2])
    assert (model.decode(long[-1:], [rows])[0] - hidden[-1]).abs().max() < 1e-4


@torch.inference_mode()
def test_the_same_pass_gives_the_same_bits(model, tokens):
    one, other = (prefilled(model, tokens, chunk=9) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 33, 64, 65, 129, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_large_product_is_right_for_any_number_of_rows(rows, has_bias):
    random = torch.Generator().manual_seed(rows)
    x, matrix = torch.randn(rows, 256, generator=random), torch.randn(4_097, 256, generator=random)
    bias = torch.randn(4_097, generator=random) if has_bias else None
    out, exact = product(x, matrix, bias), x.double() @ matrix.double().T
    assert out.shape == exact.shape
    assert out.is_contiguous()
    assert (out - (exact if bias is None else exact + bias)).abs().max() < 1e-4


def test_programs_are_made_for_few_numbers_of_rows():
    """Each takes half a megabyte and as long as some products: prompts have all lengths."""
    asked = {rows: usual_rows(rows) for rows in range(1, 4_097)}
    assert all(rows <= usual <= 1.125 * rows for rows, usual in asked.items())
    assert all(asked[rows] == rows for rows in range(1, 17))
    assert all(asked[usual] == usual for usual in asked.values())
    assert len({asked[rows] for rows in range(1, 513)}) == 16 + 5 * 8


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 3, MOST_INT8_ROWS, MOST_INT8_ROWS + 1, 70])
@pytest.mark.parametrize("columns", [64, 40, 8])  # the last two are none that the kernel could read
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_int8_product_is_off_by_no_more_than_its_roundings(size, columns, dtype):
    random = torch.Generator().manual_seed(size)
    weight = torch.randn(97, columns, generator=random) * torch.rand(97, 1, generator=random)
    weight[5] = 0.0
    x = torch.randn(size, columns, generator=random).to(dtype)
    matrix = int8(weight)
    out, exact = product(x, matrix), x.double() @ weight.double().T
    assert out.dtype == dtype
    half_steps = x.double().abs().sum(-1, keepdim=True) * matrix.scales.double() / 2
    terms = x.double().abs() @ weight.double().abs().T + half_steps
    bfloat16 = (
        2.0**-8
    )  # of x, of the product before its scale, and of the result: half a unit each, and some slack
    assert ((out.double() - exact).abs() <= half_steps + 2 * bfloat16 * terms + 1e-6).all()
    assert (out[..., 5] == 0).all()


@torch.inference_mode()
def test_a_tall_int8_matrix_is_multiplied_in_blocks_as_in_one():
    weight = torch.randn(2 * BLOCK_ROWS + 5, 16, generator=torch.Generator().manual_seed(1))
    x = torch.randn(MOST_INT8_ROWS + 1, 16, generator=torch.Generator().manual_seed(2))
    exact, out = x @ weight.T, int8(weight).apply(x)
    assert out.shape == exact.shape
    assert (out - exact).norm() < 0.02 * exact.norm()
    assert (out[:, -5:] - exact[:, -5:]).norm() < 0.02 * exact[:, -5:].norm()


@torch.inference_mode()
def test_an_int8_product_takes_a_bias_as_any_other():
    x, bias = torch.ones(3, 8), torch.arange(4.0)
    matrix = int8(torch.eye(4, 8))
    assert torch.equal(product(x, matrix, bias), product(x, matrix) + bias)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [*SHAPES, *SWITCHED])
def test_projections_are_quantised_and_what_makes_scores_is_not(shape):
    weights = seeded_weights(shape, 3, CPU)
    small = quantised(weights)
    assert small.head is weights.head
    assert small.embedding is weights.embedding
    matrices = [tensor for tensor in tensors_of(small) if isinstance(tensor, Int8Matrix)]
    assert len(matrices) == 4 * shape.layers
    assert all(matrix.weight.dtype == torch.int8 and matrix.weight.abs().max() == 127 for matrix in matrices)
    assert quantised(small).layers[0].qkv is small.layers[0].qkv
    down = small.layers[0].down
    step = down.scales.float()[:, None]
    assert ((down.weight * step - weights.layers[0].down).abs() <= step / 2 + 1e-9).all()


@torch.inference_mode()
def test_quantised_weights_choose_nearly_the_same_tokens():
    shape = architecture(hidden=64, head_dim=16, ffn=128, layers=3)
    weights = seeded_weights(shape, 5, CPU)
    exact, small = Decoder(shape, weights), Decoder(shape, quantised(weights))
    prompt = torch.randint(0, 97, (200,), generator=torch.Generator().manual_seed(8))
    expected = exact.logits(prefilled(exact, prompt, 200)[0])
    logits = small.logits(prefilled(small, prompt, 200)[0])
    assert logits.dtype == torch.float32
    agreement = (logits.argmax(-1) == expected.argmax(-1)).float().mean()
    assert agreement > 0.9
    assert 0 < (logits - expected).norm() < 0.1 * expected.norm()


@torch.inference_mode()
def test_quantised_weights_decode_what_they_prefill(tokens):
    shape = replace(GEMMA_2, tied_embeddings=False)
    model = Decoder(shape, quantised(seeded_weights(shape, 5, CPU)))
    hidden, kv = prefilled(model, tokens, len(tokens))
    rows = Rows.of(kv[None].clone(), [len(tokens) - 1], shape.window_tokens)
    alone = model.decode(tokens[-1:], [rows])[0]
    assert (alone - hidden[-1]).norm() < 0.05 * hidden[-1].norm()
