"""How fast KV gets smaller: int8 and fp16 beside a plain copy of the same blocks, on one thread."""

from time import perf_counter_ns

import pytest
import torch

from engine.cache.codec import Codec

SHAPE = (24, 2, 8, 16, 64)  # layers, keys and values, heads, tokens, head size
GOAL_GB_PER_S = 1.0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def best_s(operation, rounds=30):
    """The best of some rounds: the machine is shared."""
    best = float("inf")
    for _ in range(rounds):
        begun_ns = perf_counter_ns()
        operation()
        best = min(best, (perf_counter_ns() - begun_ns) / 1e9)
    return best


@pytest.mark.benchmark(group="targeted")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["int8", "fp16"])
def test_packing_keeps_up_with_a_disk(report, pace, form, dtype):
    block = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    codec = Codec(form, 0.05)
    packed = codec.pack(block)
    assert packed.form == form
    gigabytes = block.nbytes / 1e9
    pack_s, unpack_s = best_s(lambda: codec.pack(block)), best_s(lambda: Codec.unpack(packed))
    copy_s = best_s(block.clone)
    report(
        pack_gb_per_s=gigabytes / pack_s,
        unpack_gb_per_s=gigabytes / unpack_s,
        of_a_copy=copy_s / pack_s,
        times_smaller=block.nbytes / len(packed.data),
        error_percent=100 * packed.error,
    )
    if form == "int8":
        assert gigabytes / pack_s > GOAL_GB_PER_S / 3 * min(1.0, pace())  # a third of it is a defect anywhere
