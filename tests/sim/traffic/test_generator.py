"""Generated traffic: each concern is as it was set, and moves no other."""

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw
from sim.traffic.arrivals import ArrivalSettings, Flash
from sim.traffic.generator import ClassSettings, GeneratedWorkload, PrefixSettings, TenantSettings
from sim.traffic.lengths import LengthSettings
from sim.traffic.popularity import Rotation, Shift
from sim.traffic.sessions import SessionSettings

MODELS = ["a", "b", "c", "d"]


def made(seed=1, **settings):
    return draw(GeneratedWorkload(**{"requests": 5_000, **settings}), seed, MODELS)


def test_one_concern_moves_no_column_of_another():
    plain = made()
    longer = made(output=LengthSettings(median=300.0, sigma=0.5))
    assert np.array_equal(longer.arrival_ns, plain.arrival_ns)
    assert np.array_equal(longer.prompt_tokens, plain.prompt_tokens)
    assert not np.array_equal(longer.output_tokens, plain.output_tokens)
    bursty = made(arrivals=ArrivalSettings(family="gamma", cv=3.0))
    assert np.array_equal(bursty.output_tokens, plain.output_tokens)
    classes = made(classes=[ClassSettings(name="chat", share=1.0, priority=2)])
    assert np.array_equal(classes.arrival_ns, plain.arrival_ns)
    assert (classes.priority_of == 2).all()


def test_the_same_seed_is_the_same_traffic_and_another_is_not():
    assert np.array_equal(made(3).arrival_ns, made(3).arrival_ns)
    assert not np.array_equal(made(3).arrival_ns, made(4).arrival_ns)


def test_lengths_follow_their_law():
    trace = made(requests=50_000, prompt=LengthSettings(law="gamma", mean=500.0, cv=0.5, min=1, max=100_000))
    assert trace.prompt_tokens.mean() == pytest.approx(500, rel=0.02)
    assert trace.prompt_tokens.std() / trace.prompt_tokens.mean() == pytest.approx(0.5, rel=0.03)
    fixed = made(output=LengthSettings(law="fixed", tokens=64, max=2048))
    assert (fixed.output_tokens == 64).all()
    flat = made(requests=50_000, prompt=LengthSettings(law="uniform", min=10, max=20))
    assert np.unique(flat.prompt_tokens).tolist() == list(range(10, 21))


def test_models_are_asked_for_by_zipf_within_4_sigma():
    trace = made(requests=40_000, models=4, model_zipf=1.0)
    shares = np.bincount(trace.model_of) / len(trace)
    weights = 1 / np.arange(1, 5)
    weights /= weights.sum()
    assert np.abs(shares - weights).max() < 4 * np.sqrt(0.25 / len(trace))


def test_popularity_rotates_at_its_time():
    trace = made(requests=20_000, rate=10.0, models=4, model_zipf=2.0, rotate=[Rotation(at_s=1_000.0, by=1)])
    early = trace.arrival_ns < 1_000 * 10**9
    favourites = [np.bincount(trace.model_of[part], minlength=4).argmax() for part in (early, ~early)]
    assert favourites == [0, 1]


def test_sessions_that_start_after_a_shift_have_its_popularity_and_earlier_ones_keep_their_model():
    sessions = SessionSettings(mean_turns=3.0, think_median_s=5.0)
    asked = {"requests": 20_000, "rate": 10.0, "models": 3, "model_zipf": 0.0, "sessions": sessions}
    plain = made(**asked)
    shifts = [Shift(at_s=1_500.0, weights=[0, 1, 0]), Shift(at_s=1_000.0, weights=[8, 1, 1])]
    moved = made(**asked, model_shifts=shifts)
    starts = np.flatnonzero(plain.after < 0)
    at_s = plain.arrival_ns[starts] / 10**9
    early, late, last = at_s < 1_000, (at_s >= 1_000) & (at_s < 1_500), at_s >= 1_500
    assert (moved.model_of[starts][early] == plain.model_of[starts][early]).all()
    assert (moved.model_of[starts][late] == 0).mean() == pytest.approx(0.8, abs=0.04)
    assert (moved.model_of[starts][last] == 1).all()
    turns = np.flatnonzero(moved.after >= 0)
    assert (moved.model_of[turns] == moved.model_of[moved.after[turns]]).all()


def test_tenants_have_their_shares():
    trace = made(requests=30_000, tenants=TenantSettings(split=True))
    shares = np.sort(np.bincount(trace.tenant_of, minlength=50) / len(trace))[::-1]
    assert shares[0] == pytest.approx(0.3, abs=0.02)
    assert shares[1:10].sum() == pytest.approx(0.6, abs=0.02)
    named = made(tenants=TenantSettings(shares={"acme": 3.0, "other": 1.0}))
    assert named.tenants == ("acme", "other")
    assert np.bincount(named.tenant_of)[0] / len(named) == pytest.approx(0.75, abs=0.03)


def test_the_gaps_of_a_tenant_may_have_a_variation_of_their_own():
    tenants = TenantSettings(shares={"acme": 1.0, "other": 1.0}, cvs={"acme": 4.0})
    trace = made(requests=30_000, tenants=tenants)
    acme, other = (np.diff(trace.arrival_ns[trace.tenant_of == tenant]) for tenant in (0, 1))
    assert acme.std() / acme.mean() == pytest.approx(4.0, rel=0.15)
    assert other.std() / other.mean() == pytest.approx(1.0, rel=0.05)


def test_templates_are_shared_by_the_sessions_that_have_one():
    trace = made(prefixes=PrefixSettings(count=3, share=0.5, tokens=LengthSettings(law="fixed", tokens=128)))
    assert (trace.prefix >= 0).mean() == pytest.approx(0.5, abs=0.03)
    first, second = np.flatnonzero(trace.prefix == 0)[:2]
    prompts = [trace.prompt(int(index))[:128] for index in (first, second)]
    assert np.array_equal(*prompts)


def test_a_turn_has_all_that_was_said_before_it():
    trace = made(requests=2_000, sessions=SessionSettings(mean_turns=4.0))
    turns = np.flatnonzero(trace.after >= 0)
    before = trace.after[turns]
    assert len(turns) > 1_000
    assert (before < turns).all()
    assert (trace.session[turns] == trace.session[before]).all()
    said = trace.prompt_tokens[before] + trace.output_tokens[before]
    assert (trace.prompt_tokens[turns] > said).all()
    assert (trace.think_ns[turns] > 0).all()


def test_a_session_waits_for_its_answer_and_then_thinks():
    run = read(["scenario=steady", "executor=roofline", "workload=generated", "workload.requests=150"])
    run.workload = replace(run.workload, sessions=SessionSettings(mean_turns=5.0, think_median_s=2.0))
    trace = draw(run.workload, 1, [run.engine.fleet.models[0].name])
    stage = Stage(run.engine, trace)
    stage.play()
    rows = stage.recorder.requests().sort_values("request_id").set_index("request_id")
    stage.close()
    for turn in np.flatnonzero(trace.after >= 0):
        answered_ns = rows["finished_ns"][int(trace.after[turn])]
        assert rows["arrival_ns"][turn] == answered_ns + trace.think_ns[turn]


def test_a_run_may_be_as_long_as_a_time():
    trace = made(requests=None, duration_s=100.0, rate=20.0)
    assert len(trace) == pytest.approx(2_000, abs=4 * np.sqrt(2_000))
    assert trace.arrival_ns.max() < 100 * 10**9


CROWD = ArrivalSettings(flashes=[Flash(at_s=1.0, for_s=10.0, times=1e12)])
LULL = ArrivalSettings(flashes=[Flash(at_s=0.0, for_s=1e9, times=1e-9)])
SHORT_BURSTS = ArrivalSettings(family="onoff", on_s=0.001, off_s=0.001)
LARGE_BURSTS = ArrivalSettings(family="onoff", on_s=0.001, off_s=1e9)
LONG = LengthSettings(law="fixed", tokens=10_000_000)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"requests": None, "duration_s": 60.0, "arrivals": CROWD},
            "workload.rate is 8.0, .* at most 100,000,000 req",
        ),
        (
            {"arrivals": LULL},
            "workload.rate is 8.0, but must be large enough, .* for a request within a year",
        ),
        (
            {"rate": 1e-4, "arrivals": SHORT_BURSTS},
            "arrivals.on_s is 0.001, but must be long enough for at most",
        ),
        ({"arrivals": LARGE_BURSTS}, r"arrivals.off_s is 1000000000.0, but must be short enough for at most"),
        ({"prefixes": PrefixSettings(count=100, tokens=LONG)}, "count is 100, .* at most 250,000,000 tokens"),
        (
            {"prefixes": PrefixSettings(count=10_000), "models": 200, "model_zipf": 1.0},
            "count is 10000, but must be so few that all models together have at most 1,000,000",
        ),
    ],
)
def test_traffic_that_is_more_than_memory_should_hold_is_refused(settings, told):
    with pytest.raises(BadSettings, match=told):
        draw(GeneratedWorkload(**settings), 1, ["m"])


def test_requests_are_drawn_until_there_are_enough_and_no_longer():
    both = made(requests=2_000, duration_s=1e7, rate=1e5)
    assert len(both) == 2_000
    assert np.array_equal(both.arrival_ns, made(requests=2_000, rate=1e5).arrival_ns)
    assert len(made(requests=2_000, duration_s=100.0, rate=10.0)) == pytest.approx(1_000, abs=130)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 0.0}, "workload.rate is 0.0, but must be above 0"),
        ({"rate": float("inf")}, "workload.rate is inf"),
        ({"requests": None}, "workload.requests is None, but must be given, or else duration_s"),
        ({"requests": 0}, "workload.requests is 0"),
        ({"prompt": LengthSettings(law="cats")}, "workload.prompt.law is 'cats'"),
        ({"prompt": LengthSettings(law="fixed")}, "workload.prompt.tokens is None"),
        ({"tenants": TenantSettings(split=True, shares={"a": 1.0})}, "null, since split is on"),
        (
            {"tenants": TenantSettings(split=True, cvs={"acme": 1.0})},
            "tenants.cvs is 'acme', but must be the name of",
        ),
        (
            {"tenants": TenantSettings(split=True, cvs={"t1": 0.0})},
            "tenants.cvs.t1 is 0.0, but must be above 0",
        ),
        ({"classes": [ClassSettings(name="x", share=0.0)]}, "with a share above zero"),
        ({"models": 0}, "workload.models is 0"),
        ({"model_weights": [1.0]}, "model_weights is .*, but must be empty, since model_zipf is null"),
        ({"model_zipf": 0.0, "model_weights": [1.0]}, "model_weights is .*, but must be one for each of 5"),
        (
            {"models": 2, "model_zipf": 0.0, "model_shifts": [Shift(at_s=1.0, weights=[1.0, -1.0])]},
            r"workload.model_shifts\[0\].weights is .*, but must be a finite number, at least 0",
        ),
        ({"sessions": SessionSettings(mean_turns=0.5)}, "workload.sessions.mean_turns is 0.5"),
    ],
)
def test_what_is_no_traffic_is_refused(settings, told):
    with pytest.raises(BadSettings, match=told):
        GeneratedWorkload(**settings)
