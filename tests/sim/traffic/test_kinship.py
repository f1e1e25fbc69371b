"""Sessions and templates are found again by the names of blocks alone."""

from dataclasses import replace

import numpy as np
import pytest

from sim.traffic import Trace, draw
from sim.traffic.describe import describe, ideal_token_hit_ratio
from sim.traffic.fit import fit
from sim.traffic.generator import GeneratedWorkload, PrefixSettings, TopTemplate
from sim.traffic.kinship import kinship, related
from sim.traffic.lengths import LengthSettings
from sim.traffic.sessions import SessionSettings

BLOCK = 16
S = 1_000_000_000


def named(chains, prompt_tokens=None, **columns):
    """A trace of prompts that are chains of block names."""
    count = len(chains)
    prompts = [BLOCK * len(chain) for chain in chains] if prompt_tokens is None else prompt_tokens
    return Trace(
        arrival_ns=np.arange(count, dtype=np.int64) * S,
        prompt_tokens=np.array(prompts, np.int32),
        output_tokens=np.ones(count, np.int32),
        prefix=np.full(count, -1, np.int32),
        prefixes=[],
        model="m",
        vocab=4096,
        seed=1,
        source="by hand",
        block_ids=np.array([name for chain in chains for name in chain], np.int32),
        block_end=np.cumsum([len(chain) for chain in chains]),
        id_tokens=BLOCK,
        **columns,
    )


def without_sessions(trace):
    """What a trace of blocks would know of generated traffic: names of blocks of the prompts, and nothing else."""
    numbers, chains = {}, []
    for index in range(len(trace)):
        prompt = trace.prompt(index)
        ends = [*range(BLOCK, len(prompt) + 1, BLOCK)]
        ends += [len(prompt)] if len(prompt) % BLOCK else []
        chains.append([numbers.setdefault(prompt[:end].tobytes(), len(numbers)) for end in ends])
    return replace(
        named(chains, trace.prompt_tokens.tolist()),
        arrival_ns=trace.arrival_ns,
        output_tokens=trace.output_tokens,
    )


def test_a_prompt_that_begins_with_all_of_another_continues_it():
    found = kinship(named([[1, 2], [3, 4], [1, 2, 5], [3, 4, 6], [1, 2, 5, 7], [1, 8]]))
    assert found.session.tolist() == [0, 1, 0, 1, 0, 2]
    assert found.template.tolist() == [0, -1, 0, -1, 0, 0]
    assert found.template_tokens.tolist() == [BLOCK]


def test_many_prompts_that_go_on_from_a_template_are_not_one_session():
    found = kinship(named([[1, 2], *([1, 2, name] for name in range(3, 9))]))
    assert len(set(found.session.tolist())) == 7
    assert set(found.template.tolist()) == {0}
    assert found.template_tokens.tolist() == [2 * BLOCK]


def test_a_block_that_is_not_full_continues_nothing():
    trace = named([[1, 2], [1, 3]], [BLOCK + 3, BLOCK + 5])
    assert kinship(trace).session.tolist() == [0, 0]  # the full one is all of the first
    assert kinship(named([[1], [1]], [7, 7])).session.tolist() == [0, 1]
    assert kinship(named([[1], [1]], [7, 7])).template.tolist() == [-1, -1]


def test_models_share_nothing():
    trace = named([[1, 2], [1, 2, 3]], models=("a", "b"), model_of=np.array([0, 1], np.int32))
    assert kinship(trace).session.tolist() == [0, 1]


def test_sessions_that_are_known_are_kept():
    trace = named([[1, 2], [1, 2, 3], [1, 2, 4]], session=np.array([0, 1, 1], np.int32))
    found = kinship(trace)
    assert found.session.tolist() == [0, 1, 1]
    assert found.template_tokens[found.template].tolist() == [2 * BLOCK] * 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sessions_of_generated_traffic_are_found_again(seed):
    asked = GeneratedWorkload(
        requests=1500,
        prefixes=PrefixSettings(count=6, tokens=LengthSettings(law="uniform", min=64, max=640)),
        sessions=SessionSettings(mean_turns=3.0, think_median_s=20.0, think_sigma=0.8, wait=False),
        prompt=LengthSettings(median=120.0, sigma=0.5, min=40, max=2000),
        output=LengthSettings(median=60.0, sigma=0.5, min=1, max=500),
    )
    trace = draw(asked, seed, ["m"])
    blocks = without_sessions(trace)
    found = kinship(blocks).session
    pairs = {(int(one), int(other)) for one, other in zip(trace.session, found, strict=True)}
    assert len(pairs) == len(np.unique(trace.session)) == len(np.unique(found))
    assert describe(blocks).sessions == describe(trace).sessions
    assert ideal_token_hit_ratio(blocks, BLOCK) == pytest.approx(ideal_token_hit_ratio(trace, BLOCK), abs=0.1)
    assert ideal_token_hit_ratio(related(blocks), BLOCK) == pytest.approx(
        ideal_token_hit_ratio(trace, BLOCK), abs=0.02
    )


@pytest.mark.parametrize("seed", [4, 5])
def test_a_fit_to_names_of_blocks_has_their_sessions_templates_and_hits(seed):
    asked = GeneratedWorkload(
        requests=1500,
        prefixes=PrefixSettings(
            count=30,
            zipf=0.3,
            top=[TopTemplate(share=0.5, tokens=32), TopTemplate(share=0.2, tokens=800)],
            tokens=LengthSettings(median=300.0, sigma=0.4, min=64, max=4000),
        ),
        sessions=SessionSettings(mean_turns=2.0, think_median_s=20.0, think_sigma=0.8, wait=False),
        prompt=LengthSettings(median=400.0, sigma=0.6, min=40, max=5000),
        output=LengthSettings(median=60.0, sigma=0.5, min=1, max=500),
    )
    blocks = without_sessions(draw(asked, seed, ["m"]))
    found = fit(blocks).workload
    assert found.sessions.mean_turns == pytest.approx(2.0, rel=0.15)
    assert found.sessions.think_median_s == pytest.approx(20, rel=0.2)
    assert found.prompt.median == pytest.approx(400, rel=0.1)
    assert [(one.share, one.tokens) for one in found.prefixes.top[:2]] == [
        (pytest.approx(0.5, abs=0.07), 32),
        (pytest.approx(0.2, abs=0.06), 800),
    ]
    again = draw(found, seed + 10, ["m"])
    assert ideal_token_hit_ratio(without_sessions(again), BLOCK) == pytest.approx(
        ideal_token_hit_ratio(blocks, BLOCK), abs=0.05
    )
