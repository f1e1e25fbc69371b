"""Sampling: the right distribution, by every option, and chance that depends on seed and position alone."""

import json
import re
import warnings
from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.errors import BadRequest, GenerationFailed
from engine.execution import Grammars, Sequence, Spelling
from engine.execution.sampling import FIRST_LOOK, NEAR_SCORES, Sampler, Wish, drawn, ranked, told, uniform
from engine.request import MAX_LOGPROBS, Grammar, Sampling, Stream
from sim.world import SimClock

pytestmark = pytest.mark.torch

TOKENS = np.array([3, 1, 4, 1, 5], dtype=np.int32)


def scores(*sizes, seed=0, spread=2.0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)) * spread


def wish(sampling=None, seed=7, tokens=TOKENS, new_tokens=()):
    sequence = Sequence(1, tokens, 99, Stream(), SimClock().signal())
    sequence.new_tokens = list(new_tokens)
    return Wish(sampling, seed, sequence)


def sampled(**options):
    return Sampling(**{"temperature": 0.8, **options})


def choose(logits, *wishes):
    return Sampler().choose(logits, wishes)


def tokens(logits, *wishes):
    return [choice.token for choice in choose(logits, *wishes)]


def distribution(logits, sampling):
    """What sampling draws from, slowly and in float64: probabilities by token."""
    exact = logits.double().numpy() / sampling.temperature
    weights = np.exp(exact - exact.max())
    order = np.lexsort((np.arange(len(weights)), -weights))
    if sampling.top_k:
        weights[order[sampling.top_k :]] = 0
    if sampling.top_p < 1:
        upto = np.cumsum(weights[order] / weights.sum())
        weights[order[int((upto < sampling.top_p).sum()) + 1 :]] = 0
    weights[weights < sampling.min_p * weights.max()] = 0
    return weights / weights.sum()


def edges(logits, sampling):
    """Tokens in the order in which they are drawn, and the chances at which each begins and ends."""
    shares = distribution(logits, sampling)
    order = np.arange(len(shares))
    if sampling.top_k or sampling.top_p < 1:
        order = np.lexsort((order, -logits.double().numpy()))
    order = order[shares[order] > 0]
    ends = np.cumsum(shares[order])
    return order, np.concatenate([[0], ends[:-1]]), ends


def assert_draws(logits, sampling):
    """At the middle and near both ends of its share each token is drawn, and no other."""
    order, begins, ends = edges(logits, sampling)
    is_wide = ends - begins > 1e-4
    for part in 0.02, 0.5, 0.98:
        chances = (begins + part * (ends - begins))[is_wide]
        rows = logits.expand(len(chances), -1)
        got = drawn(rows, [sampling] * len(chances), chances.tolist())
        assert got.tolist() == order[is_wide].tolist()


OPTIONS = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.0},
    "cold": {"temperature": 0.05},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "top_k and top_p": {"top_k": 9, "top_p": 0.7},
    "all": {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
    "top_k beyond the vocabulary": {"top_k": 1_000_000},
    "almost everything": {"top_p": 0.9999},
}


# greedy


def test_greedy_takes_the_highest_score_and_of_equal_ones_the_lowest_id():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -1.0], [5.0, 5.0, 5.0, 5.0]])
    assert tokens(logits, wish(), wish(Sampling()), wish(Sampling(top_k=2, top_p=0.1))) == [1, 0, 0]
    with_logprobs = Sampling(logprobs=1)
    assert tokens(logits, *[wish(with_logprobs)] * 3) == [1, 0, 0]


def test_a_temperature_next_to_nothing_is_greedy():
    logits = scores(3, 50)
    expected = tokens(logits, *[wish()] * 3)
    for temperature in 5e-324, 1e-300, 1e-9, 2e-5:
        assert tokens(logits, *[wish(Sampling(temperature=temperature))] * 3) == expected


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"top_p": 5e-324}, {"min_p": 1.0}])
def test_what_leaves_one_token_is_greedy(options):
    logits = scores(40, 200)
    wishes = [wish(sampled(temperature=2.0, **options), seed) for seed in range(40)]
    assert tokens(logits, *wishes) == logits.argmax(dim=-1).tolist()


# the distribution


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("vocab", [7, 300, 5 * FIRST_LOOK])
def test_each_token_is_drawn_over_just_its_share(options, vocab):
    assert_draws(scores(vocab, seed=vocab), sampled(**options))


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_mixture_of_options_and_equal_scores_draws_what_the_slow_way_draws(data):
    logits = torch.tensor(data.draw(st.lists(st.sampled_from([-inf, -2.5, -1.0, 0.0, 0.5, 3.0]), min_size=1)))
    assume(logits.max() > -inf)
    sampling = Sampling(
        temperature=data.draw(st.floats(0.1, 2)),
        top_k=data.draw(st.integers(0, 12)),
        top_p=data.draw(st.just(1.0) | st.floats(0.01, 1)),
        min_p=data.draw(st.just(0.0) | st.floats(0, 1)),
    )
    whole = distribution(logits, Sampling(temperature=sampling.temperature, top_k=sampling.top_k))
    upto, ratios = np.cumsum(np.sort(whole)[::-1]), whole / whole.max()
    assume(sampling.top_p == 1 or np.abs(upto - sampling.top_p).min() > 1e-6)
    assume(np.abs(ratios - sampling.min_p).min() > 1e-6)
    assert_draws(logits, sampling)


@pytest.mark.parametrize(
    "options", [*OPTIONS.values(), {"repetition_penalty": 1.4}, {"repetition_penalty": 0.6}]
)
def test_the_library_that_callers_know_gives_the_same_probabilities(options):
    """Set and shares, of the processors of `transformers` in the order of its `generate`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("transformers")
    sampling, logits = sampled(**options), scores(64, seed=5)
    steps = [
        library.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        library.TemperatureLogitsWarper(sampling.temperature),
    ]
    if sampling.top_k:
        steps.append(library.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(library.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(library.MinPLogitsWarper(sampling.min_p))
    expected = logits[None]
    for each in steps:
        expected = each(torch.tensor(TOKENS[None], dtype=torch.long), expected)
    ours = distribution(wish(sampling).penalised(logits), sampling)
    assert np.abs(ours - expected.softmax(dim=-1)[0].numpy()).max() < 1e-6
    assert ((ours > 0) == (expected[0] > -inf).numpy()).all()
    assert_draws(wish(sampling).penalised(logits), sampling)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 6, "min_p": 0.02}], ids=str)
def test_frequencies_over_positions_are_the_probabilities(options):
    logits, sampling, count = scores(12, seed=3, spread=1.0), sampled(**options), 20_000
    chances = [uniform(11, position) for position in range(count)]
    seen = np.bincount(drawn(logits.expand(count, -1), [sampling] * count, chances), minlength=12)
    expected = distribution(logits, sampling) * count
    assert (seen[expected == 0] == 0).all()
    assert is_even(seen[expected > 0], expected[expected > 0])


def is_even(seen, expected):
    """Pearson's chi-square is at most four standard deviations above what chance gives."""
    freedom = len(seen) - 1
    return ((seen - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_chance_is_even_over_positions_and_over_seeds_and_one_says_nothing_of_the_next():
    over_positions = np.array([uniform(5, position) for position in range(20_000)])
    over_seeds = np.array([uniform(seed, 5) for seed in range(20_000)])
    for chances in over_positions, over_seeds:
        assert 0 <= chances.min() < chances.max() < 1
        assert is_even(np.histogram(chances, 50, (0, 1))[0], np.full(50, 400))
        assert abs(np.corrcoef(chances[1:], chances[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(over_positions, over_seeds)[0, 1]) < 0.02
    assert len({*over_positions, *over_seeds}) == 39_999  # they share the one of seed 5 at position 5


def test_chance_never_changes_between_versions():
    assert [uniform(*each) for each in [(0, 0), (1, 0), (0, 1), (2**63 - 1, 131_072)]] == CHANCES


CHANCES = [0.011546754286331562, 0.3035680343067586, 0.5023796042735054, 0.8348361898931347]


@pytest.mark.parametrize("chance", [0.0, 5e-324, 1 - 2**-53])
def test_the_ends_of_chance_draw_tokens_that_are_possible(chance):
    logits = torch.tensor([[-inf, -200.0, 0.0, 1.0, -200.0, -inf]])
    for options in {}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 0.1}:
        assert drawn(logits, [Sampling(temperature=1.0, **options)], [chance]).item() in {2, 3}


# what chance depends on


def test_a_choice_is_that_of_the_sequence_alone_in_any_company_and_order():
    everything = [sampled(**options, logprobs=3, repetition_penalty=1.2) for options in OPTIONS.values()]
    wishes = [
        wish(each, seed) for seed, each in enumerate([*everything, None, Sampling(), *map(plain, everything)])
    ]
    logits = scores(len(wishes), NEAR_SCORES // 40, spread=1.0)
    alone = [choose(logits[row : row + 1], each)[0] for row, each in enumerate(wishes)]
    assert choose(logits, *wishes) == alone
    order = np.random.default_rng(1).permutation(len(wishes))
    assert choose(logits[order], *[wishes[row] for row in order]) == [alone[row] for row in order]


def plain(sampling):
    return Sampling(
        temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p
    )


def test_another_seed_or_position_gives_other_tokens_and_the_same_ones_the_same():
    logits = scores(1, 1000, spread=0.5)
    by_seed = [tokens(logits, wish(sampled(), seed))[0] for seed in range(50)]
    by_position = [tokens(logits, wish(sampled(), 1, new_tokens=[0] * count))[0] for count in range(50)]
    assert len(set(by_seed)) > 40
    assert len(set(by_position)) > 40
    assert by_seed == [tokens(logits, wish(sampled(), seed))[0] for seed in range(50)]


def test_a_sequence_that_begins_anew_goes_on_with_the_same_tokens():
    each = wish(sampled(repetition_penalty=1.5), new_tokens=[9, 2, 6])
    logits = scores(1, 1000, spread=0.5)
    expected = choose(logits, each)
    each.sequence.rewind()
    assert choose(logits, Wish(each.sampling, each.seed, each.sequence)) == expected
    moved = wish(each.sampling, tokens=np.concatenate([TOKENS, np.array([9, 2, 6], dtype=np.int32)]))
    assert choose(logits, moved) == expected


def test_no_global_random_state_is_touched_nor_read():
    logits, before = scores(4, 100), torch.get_rng_state()
    first = tokens(logits, *[wish(sampled())] * 4)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert tokens(logits, *[wish(sampled())] * 4) == first


# the repetition penalty


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=6, max_size=30),
    st.floats(0.1, 10),
    st.lists(st.integers(0, 5)),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_penalty_meets_each_token_seen_once_whether_in_prompt_or_output(values, penalty, new_tokens):
    each = wish(Sampling(repetition_penalty=penalty), new_tokens=new_tokens[:2])
    logits = torch.tensor(values)
    each.penalised(logits)
    each.sequence.new_tokens = new_tokens
    expected = logits.double().numpy().copy()
    for token in {3, 1, 4, 5, *new_tokens}:
        expected[token] = expected[token] / penalty if expected[token] > 0 else expected[token] * penalty
    assert np.allclose(each.penalised(logits), expected, rtol=1e-6)
    assert tokens(logits[None], each) == [int(expected.astype(np.float32).argmax())]
    assert logits.tolist() == torch.tensor(values).tolist()


@pytest.mark.parametrize(
    ("penalty", "possible"), [(1e-300, {4}), (1e-30, {4}), (1e30, {0, 2, 4}), (1e300, {0, 2, 4})]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_penalty_without_measure_still_gives_a_token(penalty, possible, temperature):
    logits = torch.tensor([[1.0, -1.0, 0.0, -inf, 2.0, -3.0]])
    sampling = Sampling(temperature=temperature, repetition_penalty=penalty)
    choices = [choose(logits, wish(sampling, seed))[0] for seed in range(20)]
    assert {choice.error for choice in choices} == {None}
    assert {choice.token for choice in choices} == ({min(possible)} if temperature == 0 else possible)
    (all_seen,) = choose(logits[:, [1, 1, 1, 1, 1, 5]], wish(sampling, new_tokens=[0, 2]))
    assert all_seen.error is None


# what is added and taken


@pytest.mark.parametrize("presence", [0.0, 0.5, -1.5])
@pytest.mark.parametrize("frequency", [0.0, 0.25, -2.0])
def test_presence_and_frequency_are_of_the_answer_alone_whoever_gave_it(presence, frequency):
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    each = wish(sampling)  # its prompt is 3, 1, 4, 1, 5
    for token in (2, 2, 7, 2):
        each.sequence.stream.push(token, 0)
    logits = scores(1, 9)[0]
    expected = logits.clone()
    expected[2] -= presence + 3 * frequency
    expected[7] -= presence + frequency
    assert torch.allclose(each.adjusted(logits), expected)
    assert tokens(logits[None], each) == [int(expected.argmax())]


def test_a_bias_makes_a_token_certain_or_impossible():
    logits = scores(1, 50)
    best = int(logits.argmax())
    assert tokens(logits, wish(Sampling(logit_bias=((best, -100.0),)))) != [best]
    assert [tokens(logits, wish(sampled(logit_bias=((17, 100.0),)), seed)) for seed in range(9)] == [[17]] * 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1, but must be from -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan, but must be from -2 to 2"),
        ({"logit_bias": ((5, 101.0),)}, "logit_bias is {5: 101.0}, but must be from -100 to 100"),
        ({"logit_bias": ((-5, 1.0),)}, "logit_bias is {-5: 1.0}, but must be for tokens from 0 on"),
        (
            {"logit_bias": tuple((token, 1.0) for token in range(1025))},
            "logit_bias has 1025 tokens, but may have 1024",
        ),
    ],
    ids=["presence", "frequency", "bias", "token", "many"],
)
def test_what_cannot_be_added_is_refused(options, message):
    with pytest.raises(BadRequest, match=re.escape(message)):
        Sampling(**options)


# log probabilities


def test_logprobs_are_those_of_the_model_before_anything_is_changed():
    logits = scores(5, 400)
    wild = sampled(temperature=1.7, top_k=40, repetition_penalty=2.0, logprobs=MAX_LOGPROBS)
    exact = logits.double().log_softmax(dim=-1)
    for row, choice in enumerate(choose(logits, *[wish(wild, seed) for seed in range(5)])):
        assert choice.logprobs.chosen == pytest.approx(float(exact[row, choice.token]), abs=1e-5)
        values, ids = exact[row].sort(descending=True)
        assert [token for token, _ in choice.logprobs.top] == ids[:MAX_LOGPROBS].tolist()
        assert [value for _, value in choice.logprobs.top] == pytest.approx(
            values[:MAX_LOGPROBS].tolist(), abs=1e-5
        )


def test_each_row_gets_as_many_logprobs_as_it_asked_for():
    logits, counts = scores(5, 12), [None, 0, 2, 20, 1]
    choices = choose(logits, *[wish(Sampling(logprobs=count)) for count in counts])
    assert choices[0].logprobs is None
    assert [len(choice.logprobs.top) for choice in choices[1:]] == [0, 2, 12, 1]
    assert choices[4].logprobs.top == [(choices[4].token, choices[4].logprobs.chosen)]
    assert told(logits[2:3], [choices[2].token], [2]) == [choices[2].logprobs]


# ranks


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_ranks_are_by_score_and_then_by_id(data):
    levels = [-inf, -1.5, -0.0, 0.0, 2.0, 2.5]
    row = st.lists(st.sampled_from(levels), min_size=60, max_size=60)
    table = np.array(data.draw(st.lists(row, min_size=1, max_size=3)), dtype=np.float32)
    count = data.draw(st.integers(1, 60))
    expected = [np.lexsort((np.arange(60), -each))[:count].tolist() for each in table]
    assert ranked(torch.from_numpy(table), count).tolist() == expected


def test_ranks_of_scores_in_few_bits_are_by_id_too():
    coarse = scores(3, 4000).bfloat16().float()
    for count in 1, 50, 999, 4000:
        expected = [np.lexsort((np.arange(4000), -each))[:count].tolist() for each in coarse.numpy()]
        assert ranked(coarse, count).tolist() == expected


# grammars


def spelled(grammar, size=300):
    """A grammar in a vocabulary of so many tokens: the bytes, the end, and beyond it what stands for nothing."""
    tokens = [*[bytes([byte]) for byte in range(256)], b"<end>", *[b""] * (size - 257)]
    grammars = Grammars(lambda: Spelling(tokens, [256], [256], lambda text: list(text.encode())))
    return grammars.compile(grammar)


DIGITS = spelled(Grammar("regex", "[0-9]+"))
DIGIT_TOKENS = list(range(48, 58))


def held(sampling=None, compiled=DIGITS, **more):
    made = wish(sampling, **more)
    made.sequence.follower = compiled.follow()
    return Wish(sampling, made.seed, made.sequence)


def ruled_out(logits, allowed):
    alone = torch.full_like(logits, -inf)
    alone[..., allowed] = logits[..., allowed]
    return alone


WITH_GRAMMAR = [None, *[Sampling(**each) for each in OPTIONS.values()], Sampling(repetition_penalty=1.5)]


@pytest.mark.parametrize("sampling", WITH_GRAMMAR, ids=str)
@pytest.mark.parametrize("size", [300, 512, 1000])
def test_a_grammar_leaves_what_is_allowed_as_if_nothing_else_had_a_score(sampling, size):
    logits = scores(8, size)
    allowed = [*DIGIT_TOKENS, 256]
    new = [49]
    got = tokens(logits, *[held(sampling, seed=seed, new_tokens=new) for seed in range(8)])
    expected = tokens(
        ruled_out(logits, allowed), *[wish(sampling, seed, new_tokens=new) for seed in range(8)]
    )
    assert got == expected
    assert set(got) <= set(allowed)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 5}], ids=str)
def test_others_in_the_batch_do_not_notice(options):
    logits = scores(6, 400)
    sampling = Sampling(**options)
    alone = choose(logits, *[wish(sampling, seed) for seed in range(6)])
    mixed = choose(logits, *[held(sampling, seed=s) if s % 2 else wish(sampling, s) for s in range(6)])
    assert mixed[::2] == alone[::2]
    assert {choice.token for choice in mixed[1::2]} <= set(DIGIT_TOKENS)


def test_logprobs_are_those_of_the_model_whatever_a_grammar_rules_out():
    logits = scores(1, 300)
    (choice,) = choose(logits, held(Sampling(logprobs=2)))
    exact = logits.log_softmax(dim=-1)[0]
    assert choice.token == int(ruled_out(logits, DIGIT_TOKENS).argmax())
    assert choice.logprobs.chosen == pytest.approx(float(exact[choice.token]), abs=1e-5)
    assert choice.logprobs.top[0][0] == int(logits.argmax())


def test_a_grammar_goes_along_with_the_answer():
    answer = spelled(Grammar("regex", "abc"))
    each = held(None, answer)
    for token in *b"abc", 256:
        assert tokens(scores(1, 300, seed=token), each) == [token]
        each.sequence.new_tokens.append(token)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}], ids=str)
def test_no_score_for_what_a_grammar_allows_is_an_error_of_that_row(options):
    logits = scores(3, 300)
    logits[1, DIGIT_TOKENS] = -inf
    logits[2, 99] = inf  # it would be the only one that is possible
    choices = choose(logits, *[held(Sampling(**options)) for _ in range(3)])
    assert [type(choice.error) for choice in choices] == [type(None), GenerationFailed, GenerationFailed]
    assert "that its grammar allows are -inf" in str(choices[1].error)


def test_a_grammar_that_grows_beyond_all_bounds_is_the_callers_fault_not_the_models():
    wild = spelled(
        Grammar(
            "json_schema", json.dumps({"type": "object", "properties": {f"p{n}": {} for n in range(2_000)}})
        )
    )
    choices = choose(scores(2, 300), held(None, wild, new_tokens=list(b'{"')), held())
    assert isinstance(choices[0].error, BadRequest)
    assert choices[1].error is None


# scores that are no good


@pytest.mark.parametrize("options", [{}, {"logprobs": 2}, {"temperature": 1.0, "top_p": 0.9}], ids=str)
def test_a_row_without_scores_is_an_error_of_its_own(options):
    logits = scores(4, 30)
    expected = choose(logits, *[wish(Sampling(**options))] * 4)
    logits[1, 17] = nan
    logits[2] = -inf
    choices = choose(logits, *[wish(Sampling(**options))] * 4)
    assert str(choices[1].error) == "the scores of its tokens are nan"
    assert str(choices[2].error) == "the scores of its tokens are -inf"
    assert [choices[0], choices[3]] == [expected[0], expected[3]]


@pytest.mark.parametrize(
    "options", [*OPTIONS.values(), {"temperature": 0}, {"repetition_penalty": 9.0}], ids=str
)
def test_an_infinite_score_wins_and_may_be_seen_in_the_logprobs(options):
    logits = scores(2, 30)
    logits[0, 3] = inf
    first, second = choose(logits, *[wish(sampled(**options, logprobs=1))] * 2)
    assert (first.token, first.logprobs.chosen, first.logprobs.top) == (3, 0.0, [(3, 0.0)])
    assert second == choose(logits[1:], wish(sampled(**options, logprobs=1)))[0]


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_draws():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    wishes = [wish(sampled(**options), seed) for seed, options in enumerate(OPTIONS.values())]
    logits = scores(len(wishes), 50_000).bfloat16().float()
    assert tokens(logits.cuda(), *wishes) == tokens(logits, *wishes)
