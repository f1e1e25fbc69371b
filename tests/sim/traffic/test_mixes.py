import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from engine.errors import BadSettings
from sim.replay import endless, replay_reference
from sim.traffic import MixWorkload, draw
from sim.traffic.mixes import MIXES, TENANT_SHARES, _renewals, chains, turns

CONF = Path(__file__).parents[3] / "conf" / "workload"
COLUMNS = ("arrival_ns", "model", "tenant", "session", "turn", "template", "prompt_tokens", "output_tokens")
NAN, INF = float("nan"), float("inf")


def columns_that_differ(one, two):
    return {name for name in COLUMNS if getattr(one, name).tolist() != getattr(two, name).tolist()}


def mean_over_seeds(figure, **settings):
    return np.mean([figure(chains(MixWorkload(**settings), seed)) for seed in (1, 2, 3)])


@pytest.mark.parametrize(
    ("mix", "requests", "p50", "p90", "p99"),
    [
        ("A", 13_566, 4477, 11681, 21585),
        ("B", 13_230, 1793, 3641, 6172),
        ("C", 14_237, 4379, 7406, 10992),
        ("D", 13_206, 2980, 5199, 8523),
    ],
)
def test_a_mix_has_the_size_and_the_prompts_it_was_published_with(mix, requests, p50, p90, p99):
    made = [chains(MixWorkload(mix=mix), seed).summary() for seed in (1, 2, 3)]
    assert np.mean([one["requests"] for one in made]) == pytest.approx(requests, rel=0.04)
    for name, expected in (("p50", p50), ("p90", p90), ("p99", p99)):
        assert np.mean([one[f"prompt_tokens_{name}"] for one in made]) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("mix", "ideal"), [("A", 0.396), ("B", 0.919), ("C", 0.957), ("D", 0.950)])
def test_an_endless_cache_finds_what_was_published(mix, ideal):
    found = mean_over_seeds(lambda made: endless(made).block_hit_ratio(), mix=mix)
    assert found == pytest.approx(ideal, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zipf", "shares", "published"),
    [
        (1.0, None, (0.760 + 0.759 + 0.775) / 3),
        (1.0, 0.0, (0.721 + 0.709 + 0.739) / 3),
        (1.0, 1.0, (0.758 + 0.756 + 0.765) / 3),
        (1.5, None, (0.763 + 0.759 + 0.775) / 3),
        (1.5, 0.0, (0.690 + 0.669 + 0.720) / 3),
        (1.5, 1.5, (0.763 + 0.759 + 0.775) / 3),
    ],
)
def test_a_tenth_of_mix_b_as_one_lru_and_divided_finds_what_was_published(zipf, shares, published):
    divided = None if shares is None else np.arange(1, 6.0) ** -shares
    parts = None if divided is None else (divided / divided.sum()).tolist()

    def found(made):
        return replay_reference(made, 8_000, shares=parts).block_hit_ratio()

    assert mean_over_seeds(found, model_zipf=zipf) == pytest.approx(published, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mix", "share", "shared", "fair"),
    [("A", 0.1, 0.223, 0.192), ("B", 0.1, 0.758, 0.720), ("C", 0.1, 0.952, 0.902), ("D", 0.1, 0.859, 0.842)],
)
def test_a_part_of_each_mix_as_one_lru_and_divided_fairly_finds_what_was_published(mix, share, shared, fair):
    made = chains(MixWorkload(mix=mix), 1)
    capacity = int(share * made.unique_blocks())
    found = [replay_reference(made, capacity, shares=parts).block_hit_ratio() for parts in (None, [0.2] * 5)]
    assert found == pytest.approx([shared, fair], abs=0.05)
    assert found[0] > found[1]


@pytest.mark.parametrize(
    ("zipf", "published"), [(None, 0.760), (0.0, 0.725), (1.0, 0.671)], ids=["shared", "fair", "old demand"]
)
def test_when_popularity_moves_a_division_by_old_demand_finds_least(zipf, published):
    weights = np.arange(1, 6.0) ** -(zipf or 0.0)
    parts = None if zipf is None else (weights / weights.sum()).tolist()

    def found(made):
        later = made.arrival_ns >= 900 * 10**9
        return replay_reference(made, 8_000, shares=parts).block_hit_ratio(later)

    assert mean_over_seeds(found, rotate=True) == pytest.approx(published, abs=0.02)


def test_the_same_seed_draws_the_same_mix_and_another_moves_every_column():
    settings = MixWorkload(tenants=True)
    one = turns(settings, 1)
    assert columns_that_differ(one, turns(settings, 1)) == set()
    assert columns_that_differ(one, turns(settings, 2)) == set(COLUMNS)


def test_popularity_moves_models_and_what_follows_from_them_alone():
    one = turns(MixWorkload(), 1)
    assert columns_that_differ(one, turns(MixWorkload(model_zipf=0.0), 1)) == {
        "model",
        "template",
        "prompt_tokens",
    }
    assert columns_that_differ(one, turns(MixWorkload(rotate=True), 1)) == {
        "model",
        "template",
        "prompt_tokens",
    }


def test_longer_traffic_begins_with_the_shorter():
    short, long = turns(MixWorkload(duration_s=300), 1), turns(MixWorkload(duration_s=900), 1)
    first = turns(MixWorkload(duration_s=900, requests=100), 1)
    for name in COLUMNS:
        begin = getattr(long, name)[: len(short.arrival_ns)]
        assert begin.tolist() == getattr(short, name).tolist()
        assert getattr(first, name).tolist() == begin[:100].tolist()


def test_models_are_as_popular_as_zipf_says_and_change_places_at_half_time():
    made = turns(MixWorkload(rate=80, rotate=True), 1)
    _, first = np.unique(made.session, return_index=True)
    early = made.arrival_ns[first] < 900 * 10**9
    expected = np.arange(1, 6.0) ** -1.0
    expected /= expected.sum()
    for half, shares in ((early, expected), (~early, np.roll(expected, 2))):
        seen = np.bincount(made.model[first][half], minlength=5) / half.sum()
        assert (np.abs(seen - shares) < 4 * np.sqrt(shares * (1 - shares) / half.sum())).all()


def test_templates_of_a_model_are_as_popular_as_zipf_says_and_no_other_models():
    made = turns(MixWorkload(rate=80), 1)
    _, first = np.unique(made.session, return_index=True)
    assert (made.template // 20 == made.model).all()
    expected = np.arange(1, 21.0) ** -1.0
    expected /= expected.sum()
    seen = np.bincount(made.template[first] % 20, minlength=20) / len(first)
    assert (np.abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / len(first))).all()


@pytest.mark.parametrize(("shape", "tolerance"), [(4.0, 0.05), (0.87, 0.1), (0.02, 0.5)])
def test_renewals_keep_their_order_and_their_rate_however_bursty(shape, tolerance):
    each = [_renewals(np.random.default_rng(seed), 5.0, shape, 100.0) for seed in range(200)]
    assert all((np.diff(starts) >= 0).all() and starts.max(initial=0) < 100 for starts in each)
    assert np.mean([len(starts) for starts in each]) == pytest.approx(500, rel=tolerance)
    last = np.mean([(starts > 80).sum() for starts in each])
    assert last == pytest.approx(100, rel=tolerance)


def test_bursts_that_need_more_gaps_than_were_drawn_first_go_on_where_they_were():
    each = [_renewals(np.random.default_rng(seed), 5.0, 0.02, 0.2) for seed in range(300)]
    assert max(map(len, each)) > 40
    assert all((np.diff(starts) >= 0).all() for starts in each)


def test_turns_are_geometric_and_times_to_think_log_normal():
    made = turns(MixWorkload(mix="D", rate=0.5, duration_s=200_000), 1)
    settled = made.session < 0.95 * made.session.max()  # the last ones are cut
    counts = np.bincount(made.session[settled])
    counts = counts[counts > 0]
    assert counts.mean() == pytest.approx(3.5, abs=4 * counts.std() / np.sqrt(len(counts)))
    assert (counts == 1).mean() == pytest.approx(1 / 3.5, abs=4 / np.sqrt(len(counts)))
    order = np.lexsort((made.turn, made.session))
    gaps_s = np.diff(made.arrival_ns[order])[np.diff(made.session[order]) == 0] / 1e9
    assert np.median(gaps_s) == pytest.approx(40, rel=0.03)
    assert np.log(gaps_s).std() == pytest.approx(1.0, abs=0.02)


def test_a_fifth_of_the_turns_of_mix_a_come_after_five_minutes():
    made = turns(MixWorkload(mix="A", duration_s=100_000), 1)
    order = np.lexsort((made.turn, made.session))
    gaps_s = np.diff(made.arrival_ns[order])[np.diff(made.session[order]) == 0] / 1e9
    assert (gaps_s > 300).mean() == pytest.approx(0.2, abs=0.015)


def test_tenants_have_their_shares_and_one_session_is_of_one():
    made = turns(MixWorkload(tenants=True, duration_s=20_000), 1)
    whole = [made.tenant[made.session == session] for session in range(200)]
    assert all(len(set(tenants.tolist())) <= 1 for tenants in whole)
    share = np.bincount(made.tenant, minlength=50) / len(made.tenant)
    assert share[0] == pytest.approx(TENANT_SHARES[0], abs=0.06)
    assert share[1:10].sum() == pytest.approx(0.6, abs=0.1)
    assert set(turns(MixWorkload(), 1).tenant.tolist()) == {0}


def test_a_chain_grows_with_its_session_and_shares_its_template_with_others():
    made, drawn = chains(MixWorkload(), 1), turns(MixWorkload(), 1)
    shared = drawn.template_tokens // 64
    last = {}
    for index in range(1500):
        chain, session, template = made.chain(index), int(drawn.session[index]), int(drawn.template[index])
        assert len(chain) == (drawn.prompt_tokens[index] + drawn.output_tokens[index]) // 64
        before = last.get(session, [])
        assert chain[: len(before)] == before
        others = last.setdefault(("template", template), chain)
        common = min(int(shared[template]), len(chain), len(others))
        assert chain[:common] == others[:common]
        if chain is not others and last.get(session) is None:
            assert not set(chain[common:]) & set(others[common:])
        last[session] = chain


def test_all_chains_together_are_the_chains_one_by_one():
    made = chains(MixWorkload(duration_s=60), 1)
    names, ends = made.flat()
    expected = [made.chain(index) for index in range(len(made))]
    assert [part.tolist() for part in np.split(names, ends[:-1])] == expected
    assert made.unique_blocks() == len({block for chain in expected for block in chain})


def test_a_prompt_begins_with_the_prompt_before_it_and_room_for_its_answer():
    trace = draw(MixWorkload(mix="B", duration_s=200), 3, [f"m{index}" for index in range(5)])
    last = {}
    for index in range(len(trace)):
        request = trace.request(index)
        before = last.get(request.session)
        if before is not None:
            prompt = before.prompt_tokens
            assert request.prompt_tokens[: len(prompt)].tolist() == prompt.tolist()
            assert len(request.prompt_tokens) >= len(prompt) + before.max_output_tokens + 4
            assert (request.model, request.tenant) == (before.model, before.tenant)
        last[request.session] = request
    assert len(last) < len(trace) - 100


def test_sessions_of_one_template_share_it_and_no_more():
    trace = draw(MixWorkload(mix="D", duration_s=300), 3, [f"m{index}" for index in range(5)])
    first, second = np.flatnonzero((trace.prefix == trace.prefix[0]) & (trace.session >= 0))[[0, -1]]
    assert trace.session[first] != trace.session[second]
    length = len(trace.prefixes[trace.prefix[0]])
    one, other = trace.request(first).prompt_tokens, trace.request(second).prompt_tokens
    assert one[:length].tolist() == other[:length].tolist()
    assert one[length : length + 4].tolist() != other[length : length + 4].tolist()


def test_a_fleet_with_fewer_models_than_the_mix_is_refused_and_one_model_needs_no_popularity():
    with pytest.raises(BadSettings, match=r"workload.models is 5, but must be at most 2"):
        draw(MixWorkload(), 1, ["a", "b"])
    trace = draw(MixWorkload(model_zipf=None), 1, ["a", "b"])
    assert {trace.request(index).model for index in range(50)} == {"a"}


def test_tenants_of_a_trace_have_names():
    trace = draw(MixWorkload(model_zipf=None, tenants=True), 1, ["a"])
    assert trace.request(0).tenant == f"t{trace.tenant_of[0]}"
    assert draw(MixWorkload(model_zipf=None), 1, ["a"]).request(0).tenant == "default"


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "kind": ["synthetic"],
        "mix": ["E", "", None],
        "rate": [0, -1, NAN, INF, 1e9],
        "duration_s": [0, -1, NAN, INF, 1e9],
        "requests": [0, -1, 1.5, True],
        "models": [0, -1, 1.5, 10**6],
        "model_zipf": [-1, NAN, INF],
        "vocab": [0, 1, 2**31],
    }.items(),
)
def test_settings_that_make_no_mix_are_refused_by_key_and_value(key, values):
    for value in values:
        with pytest.raises(BadSettings) as refusal:
            MixWorkload(**{key: value})
        assert str(refusal.value).startswith(f"workload.{key} is {value!r}, but must be ")


def test_a_run_too_short_for_a_session_is_refused():
    with pytest.raises(BadSettings, match=r"duration_s is 0\.001, but must be long enough for a session"):
        turns(MixWorkload(duration_s=0.001), 1)


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_each_mix_has_a_file_of_its_name(mix):
    written = OmegaConf.load(CONF / f"mix_{mix.lower()}.yaml")
    assert (written.kind, written.mix, written.rate, written.duration_s) == ("mix", mix, 8.0, 1800.0)


@pytest.mark.slow
def test_a_million_requests_are_drawn_in_flat_memory():
    tracemalloc.start()
    made = chains(MixWorkload(rate=200, duration_s=5_200), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made) > 1_000_000
    assert peak / len(made) < 400
