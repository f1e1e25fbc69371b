"""What a grammar costs a token, at the size of SmolLM2's vocabulary, and what it costs its neighbours: nothing."""

import json

import numpy as np
import pytest
import torch

from engine.execution import Grammars, Sequence, Spelling
from engine.execution.sampling import Sampler, Wish
from engine.request import Grammar, Sampling, Stream
from sim.world import SimClock

pytestmark = [pytest.mark.benchmark(group="frequent"), pytest.mark.torch]

VOCAB, ROWS = 49_152, 16
END = VOCAB - 1
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        "size": {"type": "number"},
        "kind": {"enum": ["small", "large"]},
    },
    "required": ["name", "tags", "size", "kind"],
}
GRAMMARS = {
    "json_object": Grammar("json_object"),
    "json_schema": Grammar("json_schema", json.dumps(SCHEMA)),
}
ANSWER = '{"name": "' + "abc de " * 12 + '", "tags": ["x", "yy z"], "size": 12.5e3, "kind": "small"}'


@pytest.fixture(scope="module")
def grammars():
    """All bytes, and words of two to seven letters, each second one with a space in front."""
    draw = np.random.default_rng(0)
    words = {bytes([byte]): None for byte in range(256)}
    while len(words) < END:
        letters = draw.integers(ord("a"), ord("z") + 1, draw.integers(2, 8), dtype=np.uint8).tobytes()
        words[b" " + letters if len(words) % 2 else letters] = None
    tokens = [*words, b"<end>"]
    return Grammars(lambda: Spelling(tokens, [END], [END], lambda text: list(text.encode())))


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS.keys())
def test_follow(measure, grammars, grammar):
    """`each_us` is of one token: what may come next, all along an answer of some hundred."""
    compiled, tokens = grammars.compile(grammar), list(ANSWER.encode())

    def answer():
        follower = compiled.follow()
        for place in range(len(tokens)):
            mask = follower.allowed(tokens[:place])
        return mask

    assert any(measure(answer, calls=1, rounds=20, units=len(tokens)))


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS.keys())
def test_compile(measure, grammars, grammar):
    grammars.compile(grammar)
    assert measure(lambda: grammars.compile(grammar), calls=1, rounds=20).grammar == grammar


@pytest.mark.parametrize("held", [0, 1, ROWS])
def test_choose(measure, grammars, held):
    """`each_us` is of one row of a greedy batch, in which so many follow a grammar."""
    compiled = grammars.compile(GRAMMARS["json_schema"])
    scores = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(0))
    wishes = []
    for row in range(ROWS):
        sequence = Sequence(row, np.arange(9, dtype=np.int32), 99, Stream(), SimClock().signal())
        sequence.new_tokens = list(ANSWER[:20].encode())
        sequence.follower = compiled.follow() if row < held else None
        wishes.append(Wish(Sampling(), row, sequence))
    sampler = Sampler()
    choices = measure(lambda: sampler.choose(scores, wishes), calls=1, rounds=10, units=ROWS)
    assert all(choice.error is None for choice in choices)
