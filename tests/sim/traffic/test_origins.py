"""Names without tokens: a prompt shares the blocks that its tokens say it shares."""

import numpy as np
import pytest

from engine.cache import BlockChain, LineChain
from sim.traffic import Trace, draw
from sim.traffic.mixes import MixWorkload

START = bytes(16)
MODELS = ["a", "b", "c", "d", "e"]


def of_ids(rows, id_tokens, cut):
    """A trace whose prompts are made of blocks with ids, the last one cut short by some tokens."""
    count = len(rows)
    return Trace(
        arrival_ns=np.arange(count, dtype=np.int64),
        prompt_tokens=np.array([len(row) * id_tokens - cut for row in rows], np.int32),
        output_tokens=np.ones(count, np.int32),
        prefix=np.full(count, -1, np.int32),
        prefixes=[],
        model="llama",
        vocab=4096,
        seed=1,
        source="test",
        block_ids=np.concatenate(rows).astype(np.int32),
        block_end=np.cumsum([len(row) for row in rows]),
        id_tokens=id_tokens,
    )


IDS = [[1, 2, 3], [1, 2, 3, 4], [1, 5, 3], [1, 2, 3], [9], [9, 9], [1, 2]]
TRACES = {
    **{mix: draw(MixWorkload(mix=mix, requests=120, duration_s=300), 1, MODELS) for mix in "ABCD"},
    "tenants": draw(MixWorkload(requests=120, duration_s=300, vocab=16, tenants=True), 2, MODELS),
    "ids": of_ids(IDS, 512, 0),
    "ids, cut": of_ids(IDS, 512, 100),
    "short ids": of_ids(IDS, 48, 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("block_tokens", [7, 16, 64])
@pytest.mark.parametrize("name", TRACES)
def test_names_by_origin_are_the_same_where_names_by_tokens_are(name, block_tokens):
    trace = TRACES[name]
    if trace.telling_tokens > block_tokens:
        pytest.skip("tokens of so small a vocabulary may be the same by chance")
    by_tokens, by_origin, num_shared = {}, {}, 0
    for index in range(len(trace)):
        prompt = trace.request(index).prompt_tokens
        chain = BlockChain(START, block_tokens)
        chain.extend(prompt)
        keys = LineChain(START, block_tokens, prompt).keys
        for one, other in zip(chain.keys, keys, strict=True):
            num_shared += one in by_tokens
            assert by_tokens.setdefault(one, other) == other
            assert by_origin.setdefault(other, one) == one
    assert num_shared


def test_so_few_tokens_of_a_small_vocabulary_tell_nothing():
    assert TRACES["B"].telling_tokens == 6
    assert TRACES["tenants"].telling_tokens == 16
    binary = draw(MixWorkload(mix="B", requests=1, vocab=2), 1, MODELS)
    assert binary.telling_tokens == 64
