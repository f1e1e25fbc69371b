"""What a choice of tokens costs beside the cheapest one there is: an argmax over the same scores."""

from time import perf_counter_ns

import numpy as np
import pytest
import torch

from engine.clock import NS_PER_S
from engine.execution import Sequence
from engine.execution.sampling import Sampler, Wish
from engine.request import Sampling, Stream
from sim.world import SimClock

pytestmark = [pytest.mark.benchmark(group="frequent"), pytest.mark.torch]

SIZES = {"16 x 49,152": (16, 49_152), "4 x 262,144": (4, 262_144)}
WAYS = {
    "greedy": None,
    "temperature": Sampling(temperature=0.8),
    "top_k": Sampling(temperature=0.8, top_k=50),
    "top_p": Sampling(temperature=0.8, top_p=0.9),
    "penalty": Sampling(repetition_penalty=1.1),
    "logprobs": Sampling(logprobs=5),
    "everything": Sampling(
        temperature=0.8, top_k=50, top_p=0.9, min_p=0.05, repetition_penalty=1.1, logprobs=5
    ),
}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def argmax_s(scores):
    """The best of 20 rounds."""
    rounds = []
    for _ in range(20):
        begun_ns = perf_counter_ns()
        scores.argmax(dim=-1).tolist()
        rounds.append((perf_counter_ns() - begun_ns) / NS_PER_S)
    return min(rounds)


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.usefixtures("one_thread")
def test_choose(measure, benchmark, size, sampling):
    """`each_us` is of one row. The scores are as peaked as those of language models: most of the mass in some 50."""
    rows, vocab = size
    ranks = torch.stack(
        [torch.randperm(vocab, generator=torch.Generator().manual_seed(row)) for row in range(rows)]
    )
    scores = -1.5 * (ranks + 1).log()
    prompt = np.arange(500, dtype=np.int32)
    sequences = [Sequence(row, prompt, 9, Stream(), SimClock().signal()) for row in range(rows)]
    wishes = [Wish(sampling, each.id, each) for each in sequences]
    sampler, before_s = Sampler(), argmax_s(scores)
    choices = measure(lambda: sampler.choose(scores, wishes), calls=1, rounds=20, units=rows)
    assert all(choice.error is None for choice in choices)
    if benchmark.stats is not None:
        chosen_s = min(benchmark.stats.stats.data)
        benchmark.extra_info["ratio_to_argmax"] = chosen_s / min(before_s, argmax_s(scores))
        benchmark.extra_info["tokens_per_wall_s"] = rows / chosen_s
