"""KV blocks as bytes and back: what each form loses, what it costs, and when a more exact one is taken."""

import pytest
import torch

from engine.cache.codec import FORMS, Codec, Packed, packed_bytes

pytestmark = pytest.mark.torch
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def block(tokens=16, width=64, dtype=torch.float32, seed=0):
    """Synthetic KV: keys whose channels differ log-normally, a few of them much larger; normal values."""
    draws = torch.Generator().manual_seed(seed)
    kv = torch.randn(4, 2, 2, tokens, width, generator=draws)
    channels = torch.exp(0.8 * torch.randn(4, 2, 1, width, generator=draws))
    channels[..., : max(1, width // 32)] *= 8
    kv[:, 0] *= channels
    return kv.to(dtype)


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def loss(exact, restored, half):
    exact, restored = exact[:, half].double(), restored[:, half].double()
    return float((exact - restored).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 16, 64, 100])
def test_the_stated_error_is_kept_and_the_size_is_as_foretold(dtype, tokens):
    for form in FORMS:
        kv = block(tokens, dtype=dtype)
        before = kv.clone()
        packed = Codec(form, 0.02).pack(kv)
        restored = Codec.unpack(packed)
        assert torch.equal(bits(kv), bits(before))
        assert len(packed.data) == packed_bytes(packed.form, packed.dtype, packed.shape)
        assert max(loss(kv, restored, 0), loss(kv, restored, 1)) <= packed.error or not packed.is_lossy
        assert packed.is_lossy or torch.equal(bits(restored), bits(kv))


@pytest.mark.parametrize(("tokens", "most"), [(16, 0.0057), (64, 0.0065)])
def test_int8_keys_lose_little(tokens, most):
    packed = Codec("int8").pack(block(tokens, 128))
    assert packed.form == "int8"
    assert 0.003 < loss(block(tokens, 128), Codec.unpack(packed), 0) < most


def test_int8_halves_fp16_and_quarters_float32():
    shape = (4, 2, 2, 16, 64)
    size = packed_bytes("int8", "float16", shape)
    assert packed_bytes("raw", "float16", shape) / size >= 1.9
    assert packed_bytes("raw", "float32", shape) / size >= 3.8


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_with_nan_or_inf_survive_bit_for_bit(special, dtype):
    kv = block(dtype=dtype)
    kv[1, 1, 0, 3, 5] = special
    for form in FORMS:
        packed = Codec(form).pack(kv)
        assert (packed.form, packed.error) == ("raw", 0.0)
        assert torch.equal(bits(Codec.unpack(packed)), bits(kv))


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("form", FORMS)
def test_zeros_survive_with_their_signs(zero, form):
    kv = torch.full((2, 2, 2, 16, 8), zero)
    assert torch.equal(bits(Codec.unpack(Codec(form).pack(kv))), bits(kv))


@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-42])
def test_huge_and_tiny_numbers_keep_the_bound(size):
    kv = block() * size
    packed = Codec("int8").pack(kv)
    restored = Codec.unpack(packed)
    assert packed.error <= 0.01
    assert (kv.double() - restored.double()).norm() <= max(packed.error, 1e-12) * kv.double().norm()


def test_a_block_that_would_lose_too_much_takes_the_next_form():
    assert Codec("int8", 0.02).pack(block()).form == "int8"
    assert Codec("int8", 0.001).pack(block()).form == "fp16"
    assert Codec("int8", 1e-9).pack(block()).form == "raw"


def test_bfloat16_within_range_is_exact_in_fp16():
    packed = Codec("fp16").pack(block(dtype=torch.bfloat16).clamp_(-100, 100))
    assert packed.form == "fp16"
    assert packed.error < 1e-6


def test_what_was_lost_before_stays_in_the_record():
    assert Codec("raw").pack(block(), floor_error=0.25).error == 0.25


def test_sizes_that_do_not_fit_are_refused():
    packed = Codec("int8").pack(block())
    short = Packed(packed.form, packed.dtype, packed.shape, packed.error, bytes(packed.data)[:-1])
    with pytest.raises(ValueError, match="bytes; allowed"):
        Codec.unpack(short)
    with pytest.raises(ValueError, match="out is"):
        Codec.unpack(packed, torch.empty(3))
    with pytest.raises(ValueError, match="form is 'int4'"):
        Codec("int4")
