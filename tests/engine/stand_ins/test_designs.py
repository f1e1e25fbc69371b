import math

import pytest

from engine.settings import FAMILIES
from engine.stand_ins import REFERENCE, designs
from engine.stand_ins.designs import rope_factors


def test_every_family_of_our_decoder_has_one_stand_in():
    assert sorted(each.architecture.family for each in designs.values()) == sorted(FAMILIES)
    assert all(each.name == name for name, each in designs.items())


def test_the_reference_models_come_first():
    assert list(designs)[:5] == list(REFERENCE)
    families = [designs[name].architecture.family for name in REFERENCE]
    assert families == ["llama", "qwen2", "phi3", "mistral", "gemma2"]


@pytest.mark.parametrize("aspect", ["seed", "shape", "vocab"])
def test_no_two_stand_ins_share_their(aspect):
    found = []
    for each in designs.values():
        shape = each.architecture
        sizes = (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.ffn)
        found.append({"seed": each.seed, "shape": sizes, "vocab": shape.vocab}[aspect])
    assert len(set(found)) == len(designs)


@pytest.mark.parametrize("name", designs)
def test_rows_can_be_quantised_in_blocks_of_32(name):
    shape = designs[name].architecture
    assert [row % 32 for row in (shape.hidden, shape.ffn, shape.heads * shape.head_dim)] == [0, 0, 0]


def test_special_tokens_fit_behind_the_trained_ones_and_leave_some_unused():
    for each in designs.values():
        chat, vocab = each.chat, each.architecture.vocab
        assert vocab > 576 + len(chat.special)
        named = {chat.bos, *chat.eos, chat.padding, chat.unknown} - {None}
        assert named <= set(chat.special)


def test_rope_factors_leave_fast_rotations_and_slow_down_slow_ones():
    llama = designs["Llama-3.3-70B-Instruct"]
    scaling, factors = llama.rope_scaling, llama.architecture.rope_factors
    theta, size = llama.architecture.rope_theta, llama.architecture.head_dim
    lengths = [2 * math.pi * theta ** (2 * pair / size) for pair in range(size // 2)]
    for length, factor in zip(lengths, factors, strict=True):
        turns = scaling.original_tokens / length
        if turns > scaling.high_factor:
            assert factor == 1
        elif turns < scaling.low_factor:
            assert factor == scaling.factor
        else:
            assert 1 < factor < scaling.factor
    assert {1.0, scaling.factor} < set(factors)
    assert factors == rope_factors(scaling, theta, size)
