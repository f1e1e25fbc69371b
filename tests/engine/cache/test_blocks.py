"""A block's name says all that leads up to it, and nothing else."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine.cache import BlockChain, namespace

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
