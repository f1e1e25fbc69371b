"""A block's name says all that leads up to it, and nothing else."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine.cache import BlockChain, LineChain, LineNames, namespace
from engine.request import Stream

START = namespace("llama", "1.0.0", "tenant", 4)
TOKENS = np.arange(103, dtype=np.int32)


def names(tokens, start=START, block_tokens=4):
    chain = BlockChain(start, block_tokens)
    chain.extend(tokens)
    return chain.keys


@pytest.mark.parametrize("cuts", [[1], [3, 4], [5, 6, 7, 50], [0, 0, 102], list(range(103))])
def test_the_names_do_not_depend_on_how_the_tokens_came(cuts):
    chain = BlockChain(START, 4)
    for part in np.split(TOKENS, cuts):
        chain.extend(part)
    assert chain.keys == names(TOKENS)


@pytest.mark.parametrize("cuts", [[1], [3, 4], [2, 2, 9], list(range(23))])
def test_an_answer_may_be_followed_in_parts(cuts):
    chain, stream = BlockChain(START, 4), Stream()
    chain.extend(TOKENS[:10])
    for begin, end in zip([0, *cuts], [*cuts, 30], strict=True):
        for token in TOKENS[10 + begin : 10 + end].tolist():
            stream.push(token, 0)
        chain.follow(stream, begin)
        assert chain.keys == names(TOKENS[: 10 + end])


@pytest.mark.parametrize("kind", [list, tuple, iter, np.int64, np.dtype(">i4")])
def test_the_names_do_not_depend_on_how_the_tokens_are_kept(kind):
    tokens = kind(TOKENS.tolist()) if callable(kind) and kind is not np.int64 else TOKENS.astype(kind)
    assert names(tokens) == names(TOKENS)


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (103, 25)])
def test_a_partial_block_has_no_name(num_tokens, num_blocks):
    assert len(names(TOKENS[:num_tokens])) == num_blocks


def test_a_name_depends_on_every_token_before_it():
    changed = TOKENS.copy()
    changed[17] += 1
    same = [one == other for one, other in zip(names(TOKENS), names(changed), strict=True)]
    assert same == [True] * 4 + [False] * 21


def test_equal_blocks_at_other_places_have_other_names():
    keys = names(np.zeros(40, dtype=np.int32))
    assert len(set(keys)) == len(keys) == 10


@pytest.mark.parametrize(
    "other",
    [
        ("phi", "1.0.0", "tenant", 4),
        ("llama", "1.0.1", "tenant", 4),
        ("llama", "1.0.0", "tenanu", 4),
        ("llama", "1.0.0", "", 4),
        ("llama", "1.0.0", "tenant", 8),
        ("llama1", ".0.0", "tenant", 4),
        ("llama", "1.0.0t", "enant", 4),
    ],
)
def test_no_name_is_shared_between_namespaces(other):
    assert not set(names(TOKENS)) & set(names(TOKENS, namespace(*other)))


def test_any_tenant_has_a_namespace():
    tenants = ["", "\0", "a\0b", "a", "ü", "名前", "x" * 10_000, "\n", "16", "\ud800"]
    assert len({namespace("llama", "1.0.0", tenant, 4) for tenant in tenants}) == len(tenants)


CODE = """
from engine.cache import BlockChain, namespace
chain = BlockChain(namespace("llama", "1.0.0", "tenant", 4), 4)
chain.extend(range(103))
print(chain.keys[-1].hex())
"""


@pytest.mark.parametrize("seed", ["0", "4711"])
def test_another_process_gives_the_same_names(seed):
    told = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == names(TOKENS)[-1].hex()


class Prompt:
    """A prompt that was drawn: from so many lines, of so many tokens each."""

    telling_tokens = 3

    def __init__(self, *origins, few=0):
        self._origins = origins
        self._few = few  # the first tokens of the last line
        self.tokens = np.full(200, few, dtype=np.int32)

    def origins(self):
        return self._origins

    def __getitem__(self, index):
        return self.tokens[index]


def lines(*origins, answer=0, few=0):
    chain = LineChain(START, 4, Prompt(*origins, few=few))
    stream = Stream()
    for _ in range(answer):
        stream.push(1, 0)
    chain.follow(stream, 0)
    return chain.keys


def shared(one, other):
    return sum(a == b for a, b in zip(one, other, strict=False))


@pytest.mark.parametrize("answer", range(12))
def test_a_prompt_that_was_drawn_has_a_name_for_each_full_block_of_it_and_its_answer(answer):
    keys = lines((b"a", 9), (b"b", 10), (b"c", 30), answer=answer)
    assert len(keys) == len(set(keys)) == (30 + answer) // 4


def test_prompts_share_what_they_drew_alike_and_no_more():
    whole = lines((b"a", 16), (b"b", 40))
    assert shared(whole, lines((b"a", 16), (b"b", 80))) == 10
    assert shared(whole, lines((b"a", 16), (b"c", 40))) == 4
    assert shared(whole, lines((b"a", 12), (b"b", 40))) == 3
    assert shared(whole, lines((b"x", 16), (b"b", 40))) == 0
    assert shared(whole, lines((b"a", 13), (b"c", 40))) == 3


def test_answers_are_shared_where_the_whole_prompt_is_the_same():
    whole = lines((b"a", 14), answer=20)
    assert shared(whole, lines((b"a", 14), answer=9)) == 5
    assert shared(whole, lines((b"a", 13), answer=20)) == 3
    assert shared(whole, lines((b"a", 34))) == 3


def test_a_block_with_few_tokens_of_a_line_is_called_after_them():
    one, same, other = (
        lines((b"a", 14), (name, 40), few=few) for name, few in ((b"b", 5), (b"c", 5), (b"d", 6))
    )
    assert (shared(one, same), shared(one, other)) == (4, 3)
    assert shared(lines((b"a", 13), (b"b", 40), few=5), lines((b"a", 13), (b"c", 40), few=5)) == 3


def test_an_answer_goes_on_where_a_lost_replica_left_it():
    stream, chain = Stream(), LineChain(START, 4, Prompt((b"a", 14)))
    for first in range(0, 12, 3):
        for _ in range(3):
            stream.push(1, 0)
        chain.follow(stream, first)
    assert chain.keys == lines((b"a", 14), answer=12)


@pytest.mark.parametrize("capacity", [1, 20, 1000])
def test_names_that_are_remembered_are_the_names(capacity):
    known, random = LineNames(capacity), np.random.default_rng(1)
    for _ in range(300):
        first, second = (b"%d" % number for number in random.integers(6, size=2))
        begin, length = (int(number) for number in random.integers(1, 60, size=2))
        prompt = Prompt((first, begin), (second, begin + length), few=int(random.integers(3)))
        assert LineChain(START, 4, prompt, known).keys == LineChain(START, 4, prompt).keys


def test_what_is_remembered_of_names_has_a_bound():
    known = LineNames(capacity=100)
    for number in range(1_000):
        LineChain(START, 4, Prompt((b"%d" % number, 40)), known)
    lines_of_all = [*known._young.values(), *known._old.values()]
    assert 0 < sum(len(names) for _, names in lines_of_all) <= 110
    assert 0 < len(known._lines) + len(known._old_lines) <= 110
