"""Several kinds of traffic at once: each part is what it is alone, and a fit tells them apart again."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from engine.errors import BadSettings
from sim.config import read, typed
from sim.stage import Stage
from sim.traffic import MergedWorkload, TraceWorkload, draw
from sim.traffic.arrivals import ArrivalSettings, Flash
from sim.traffic.describe import describe
from sim.traffic.fit import Fit, PartsFit, fit_by_model, written
from sim.traffic.generator import GeneratedWorkload, PrefixSettings, TenantSettings
from sim.traffic.lengths import LengthSettings
from sim.traffic.merged import of_model
from sim.traffic.sessions import SessionSettings

COMPOSITE = Path(__file__).parents[4] / "shared" / "traces" / "multimodel_5_30min_composite.csv.gz"


def part(rate, **settings):
    return GeneratedWorkload(**{"rate": rate, "requests": None, "duration_s": 600.0} | settings)


CHAT = part(
    4.0,
    sessions=SessionSettings(mean_turns=3.0, think_median_s=10.0),
    prefixes=PrefixSettings(count=3),
    arrivals=ArrivalSettings(family="gamma", shape=0.87),
)
CODE = part(
    6.0,
    prompt=LengthSettings(median=1100.0, sigma=1.0, min=1, max=7437),
    output=LengthSettings(median=16.0, sigma=0.8, min=1, max=2000),
    arrivals=ArrivalSettings(family="gamma", shape=0.3),
)


def merged(seed=1, fleet=("chat", "code"), parts=None, **settings):
    return draw(MergedWorkload(parts=parts or {"chat": CHAT, "code": CODE}, **settings), seed, list(fleet))


def test_more_parts_than_the_fleet_has_models_are_told_by_name():
    with pytest.raises(
        BadSettings, match=r"at most 1: the models of the fleet, a; asked for are chat, code$"
    ):
        merged(fleet=["a"])


@pytest.mark.parametrize("seed", range(3))
def test_each_part_is_what_it_is_without_the_others(seed):
    both = merged(seed)
    alone = merged(seed, ["chat"], {"chat": CHAT})
    found = of_model(both, 0)
    assert (np.diff(both.arrival_ns) >= 0).all()
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "prefix", "after", "think_ns"):
        assert np.array_equal(getattr(found, name), getattr(alone, name)), name
    assert np.unique(found.session).size == np.unique(alone.session).size
    code = both.session[both.model_of == 1]
    assert len(np.unique(code)) == len(code)
    assert not set(code.tolist()) & set(found.session.tolist())


def test_turns_come_after_those_of_their_own_session():
    trace = merged()
    turns = np.flatnonzero(trace.after >= 0)
    assert len(turns) > 500
    assert (trace.session[turns] == trace.session[trace.after[turns]]).all()
    assert (trace.model_of[turns] == 0).all()
    assert (trace.prefix[trace.model_of == 1] == -1).all()


def test_parts_ask_for_the_models_that_are_called_like_them():
    trace = merged(fleet=["code", "other", "chat"])
    assert {trace.models[index] for index in trace.model_of[trace.prompt_tokens > 20_000]} <= {"code", "chat"}
    assert trace.request(int(np.argmax(trace.after >= 0))).model == "chat"
    by_place = merged(fleet=["x", "y"])
    assert by_place.request(int(np.argmax(by_place.after >= 0))).model == "x"
    assert {merged(fleet=["x"], model_zipf=None).request(index).model for index in range(50)} == {"x"}
    with pytest.raises(BadSettings, match=r"workload\.models is 2, but must be at most 1"):
        merged(fleet=["x"])


def test_parts_without_tenants_are_one_where_others_have_some():
    assert merged().tenants == ()
    trace = merged(
        parts={"chat": CHAT, "code": part(2.0, tenants=TenantSettings(shares={"a": 1.0, "b": 1.0}))}
    )
    assert trace.tenants == ("chat", "a", "b")
    assert (trace.tenant_of[trace.model_of == 0] == 0).all()


def test_merged_traffic_is_played():
    run = read(["scenario=steady", "executor=roofline", "workload=merged", "workload.requests=60"])
    stage = Stage(run.engine, draw(run.workload, 1, [run.engine.fleet.models[0].name]))
    stage.play()
    stage.close()
    assert len(stage.recorder) == 60


def spread(**settings):
    parts = {
        "calm": part(3.0, tenants=TenantSettings(shares={"x": 0.5, "y": 0.5}), model_zipf=0.0, models=2),
        "wild": part(5.0, tenants=TenantSettings(shares={"z": 1.0}), model_zipf=2.0, models=3, **settings),
    }
    return MergedWorkload(parts=parts)


def test_parts_may_each_be_spread_over_all_models():
    trace = draw(spread(), 1, ["a", "b", "c"])
    assert trace.models == ("a", "b", "c")
    wild = np.array(trace.tenants)[trace.tenant_of] == "z"
    calm = np.bincount(trace.model_of[~wild], minlength=3) / (~wild).sum()
    assert calm.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.05)
    weights = np.arange(1, 4) ** -2.0
    shares = np.bincount(trace.model_of[wild], minlength=3) / wild.sum()
    assert shares.tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=0.05)


def test_a_part_that_is_spread_moves_no_other_when_it_grows():
    flash = ArrivalSettings(flashes=[Flash(at_s=100.0, for_s=100.0, times=9.0)])
    plain, crowded = (draw(each, 1, ["a", "b", "c"]) for each in (spread(), spread(arrivals=flash)))
    assert len(crowded) > 1.5 * len(plain)
    rows = []
    for trace in (plain, crowded):
        calm = np.array(trace.tenants)[trace.tenant_of] != "z"
        rows.append((trace.arrival_ns[calm], trace.model_of[calm], trace.prompt_tokens[calm]))
    for before, after in zip(*rows, strict=True):
        assert np.array_equal(before, after)


def test_requests_may_ask_for_other_names_than_those_of_the_fleet():
    names = ["auto", "chat@^1.0"]
    trace = merged(names=names, model_zipf=None)
    assert trace.asked_for == tuple(names)
    expected = merged(model_zipf=0.0)
    assert np.array_equal(trace.model_of, expected.model_of)
    assert {trace.request(index).model for index in range(100)} == set(names)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"parts": {}}, r"workload\.parts is 0"),
        (
            {"parts": {"a": CODE, "b": part(1.0, model_zipf=1.0)}},
            r"workload\.parts\.b\.model_zipf is 1\.0, but must be null",
        ),
        (
            {"parts": {"a": part(1.0, model_zipf=1.0), "b": CODE}},
            r"workload\.parts\.b\.model_zipf is None, but must be given",
        ),
        ({"parts": {"a": CODE}, "names": ["auto"]}, r"workload\.model_zipf is 0\.0, but must be null"),
        (
            {"parts": {"a": CODE, "b": CODE}, "names": ["auto"], "model_zipf": None},
            r"workload\.names is 1, but must be at least 2",
        ),
        ({"parts": {"a": CODE}, "requests": 0}, r"workload\.requests is 0"),
        ({"parts": {"a": CODE}, "vocab": 1}, r"workload\.vocab is 1"),
    ],
)
def test_what_is_no_traffic_is_refused(settings, told):
    with pytest.raises(BadSettings, match=told):
        MergedWorkload(**settings)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fit_tells_models_of_other_lengths_apart(seed):
    trace = merged(seed, model_zipf=0.0)
    found = fit_by_model(trace)
    assert isinstance(found, PartsFit)
    chat, code = (found.workload.parts[name] for name in ("chat", "code"))
    assert code.arrivals.shape == pytest.approx(0.3, abs=0.04)
    assert code.prompt.median == pytest.approx(1100, rel=0.1)
    assert code.sessions.mean_turns == 1
    assert chat.sessions.mean_turns == pytest.approx(3.0, rel=0.1)
    assert chat.prefixes.count == 3
    text = written(found, "a trace")
    assert asdict(typed(MergedWorkload, yaml.safe_load(text), "workload")) == asdict(found.workload)


@pytest.mark.parametrize("seed", range(4))
def test_models_that_are_alike_have_one_generator(seed):
    trace = draw(GeneratedWorkload(requests=6000, models=3, model_zipf=1.0), seed, ["a", "b", "c"])
    assert isinstance(fit_by_model(trace), Fit)


def test_the_published_composite_is_regenerated_alike():
    if not COMPOSITE.exists():
        pytest.skip("the published traces are not here")
    trace = TraceWorkload(path=str(COMPOSITE)).as_it_is(1)
    original = describe(trace)
    again = describe(draw(fit_by_model(trace).workload, 5, list(trace.models)))
    assert again.arrivals.rate == pytest.approx(original.arrivals.rate, rel=0.08)
    assert again.arrivals.gap_cv == pytest.approx(original.arrivals.gap_cv, rel=0.15)
    for window_s in (10, 60):
        expected = original.arrivals.dispersions[window_s]
        assert again.arrivals.dispersions[window_s] == pytest.approx(expected, rel=0.4)
    assert again.models.shares == pytest.approx(original.models.shares, abs=0.04)
    assert again.rank_correlation == pytest.approx(original.rank_correlation, abs=0.05)
    for column in ("input", "output"):
        one, other = getattr(original, column), getattr(again, column)
        assert (other.mean, other.p90) == pytest.approx((one.mean, one.p90), rel=0.1)
