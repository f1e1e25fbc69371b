"""Traffic of a pool: as many requests, as bursty, and with the lengths that its clients are said to have."""

from math import gamma, sqrt
from pathlib import Path

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.streams import stream
from sim.traffic import ServeGenWorkload, TraceWorkload, draw
from sim.traffic.describe import describe
from sim.traffic.pool import HEADER, Client
from sim.traffic.servegen import renewals

TRACES = Path(__file__).parents[4] / "shared" / "traces"
RATES = TRACES / "servegen_language_week1_client_rates.csv.gz"
HEAD = ",".join(HEADER) + "\n"
LENGTHS = (
    '{"model":"big","client_id":1,"window_start_s":0,"input_tokens":{"100":3,"200":1},"output_tokens":{"7":1}}\n'
    '{"model":"small","client_id":1,"window_start_s":0,"input_tokens":{"5":1,"0":1},"output_tokens":{"9":1}}\n'
)


def client(*windows, model="m"):
    """Windows of 600 s, one after the other: rate, family, shape; None has no rate."""
    made = Client(model=model, name="1")
    for number, window in enumerate(windows):
        if window is not None:
            made.start_s.append(600.0 * number)
            made.rate.append(window[0])
            made.cv.append(1.0)
            made.family.append(("Gamma", "Weibull").index(window[1]))
            made.shape.append(window[2])
    return made


def arrivals(seed, of, from_s=0.0, duration_s=600.0, pace=1.0):
    return renewals(of, 600.0, from_s, duration_s, stream(seed, "x"), pace)


@pytest.fixture
def pool(tmp_path):
    def write(
        rows="big,1,0,2,1,Gamma,0.8,1\nbig,2,0,1,1,Gamma,1,1\nsmall,1,0,4,1,Weibull,0.5,1\n", **settings
    ):
        (tmp_path / "rates.csv").write_text(HEAD + rows)
        (tmp_path / "lengths.jsonl").write_text(LENGTHS)
        return ServeGenWorkload(path=str(tmp_path / "rates.csv"), **{"duration_s": 600.0} | settings)

    return write


@pytest.mark.parametrize(
    ("family", "shape"), [("Gamma", 0.05), ("Gamma", 0.5), ("Gamma", 4.0), ("Weibull", 0.3), ("Weibull", 1.5)]
)
def test_a_client_has_its_rate_from_the_first_second_on_however_bursty(family, shape):
    of = client(*[(2.0, family, shape)] * 3)
    runs = [arrivals(seed, of, duration_s=1800.0) for seed in range(300)]
    counts = np.array([np.histogram(run, 18, (0, 1800))[0] for run in runs])
    error = counts.sum(1).std() / sqrt(len(runs))
    assert counts.sum(1).mean() == pytest.approx(3600, abs=4 * error)
    early = counts[:, 0].mean()
    assert early == pytest.approx(200, abs=4 * counts[:, 0].std() / sqrt(len(runs)))


@pytest.mark.parametrize(("family", "shape"), [("Gamma", 0.25), ("Weibull", 0.6)])
def test_gaps_vary_as_their_law_says_and_counts_are_not_forced(family, shape):
    of = client((50.0, family, shape))
    gaps = np.concatenate([np.diff(arrivals(seed, of)) for seed in range(20)])
    cv = shape**-0.5 if family == "Gamma" else sqrt(gamma(1 + 2 / shape) / gamma(1 + 1 / shape) ** 2 - 1)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    counts = np.array([len(arrivals(seed, of)) for seed in range(100)])
    assert counts.std() == pytest.approx(cv * sqrt(30_000), rel=0.35)


def test_windows_have_their_own_rates_and_those_without_bring_nothing():
    of = client((10.0, "Gamma", 1.0), None, (1.0, "Gamma", 1.0), (40.0, "Weibull", 1.0))
    counts, _ = np.histogram(arrivals(1, of, duration_s=2400.0), 4, (0, 2400))
    assert counts[1] == 0
    for found, expected in zip(counts[[0, 2, 3]], (6_000, 600, 24_000), strict=True):
        assert found == pytest.approx(expected, abs=4 * sqrt(expected))


def test_a_part_of_the_time_begins_anywhere_and_longer_traffic_begins_with_the_shorter():
    of = client(*[(5.0, "Gamma", 0.5)] * 4)
    short, long = (arrivals(3, of, 250.0, duration_s) for duration_s in (500.0, 1500.0))
    assert short.tolist() == long[: len(short)].tolist()
    assert short.max() < 500
    assert len(arrivals(3, of, 2400.0)) == 0


def test_requests_have_the_lengths_of_their_client_or_of_all_of_its_model(pool):
    trace = pool(rate_scale=10.0).as_it_is(1)
    names = [trace.tenants[index] for index in trace.tenant_of]
    of = {name: trace.prompt_tokens[[name == one for one in names]] for name in set(names)}
    assert set(of) == {"big/c1", "big/c2", "small/c1"}
    for name in ("big/c1", "big/c2"):  # nothing is known of the second one
        assert set(of[name].tolist()) == {100, 200}
        assert (of[name] == 100).mean() == pytest.approx(0.75, abs=0.03)
    assert set(of["small/c1"].tolist()) == {5}
    assert trace.dropped_rows == pytest.approx(12_000, rel=0.15)  # half of small's prompts are empty
    assert set(trace.models) == {"big", "small"}
    known = pool(only_known_lengths=True).as_it_is(1)
    assert "big/c2" not in known.tenants


@pytest.mark.parametrize("keep_bursts", [False, True])
@pytest.mark.parametrize("wanted", [0.5, 3.0, 7.5])
def test_models_have_the_rates_that_were_asked_for_in_expectation(wanted, keep_bursts, pool):
    counts = [len(pool(rates={"big": wanted}, keep_bursts=keep_bursts).as_it_is(seed)) for seed in range(30)]
    assert np.mean(counts) == pytest.approx(600 * wanted, abs=4 * np.std(counts) / sqrt(30))
    assert np.std(counts) > 0.5 * sqrt(600 * wanted)


def test_what_is_left_by_chance_is_less_bursty_than_clients_that_go_slower(pool):
    rows = "big,1,0,100,20,Gamma,0.01,1\n"
    thinned, slower = (
        describe(pool(rows, rates={"big": 1.0}, keep_bursts=keep).as_it_is(4)).arrivals.gap_cv
        for keep in (False, True)
    )
    assert thinned < 4 < slower


def test_another_model_or_client_changes_no_other(pool):
    rows = "big,1,0,2,1,Gamma,0.8,1\n"
    alone = pool(rows).as_it_is(1)
    more = pool(rows + "small,1,0,4,1,Weibull,0.5,1\nbig,9,600,4,1,Gamma,1,1\n").as_it_is(1)
    of_big = more.tenant_of == more.tenants.index("big/c1")
    assert more.arrival_ns[of_big].tolist() == alone.arrival_ns.tolist()
    assert more.prompt_tokens[of_big].tolist() == alone.prompt_tokens.tolist()


def test_models_are_those_of_the_fleet_in_the_order_that_was_given(pool):
    trace = draw(pool(model_zipf=0.0, models=["small", "big"]), 1, ["a", "b"])
    request = trace.request(0)
    assert request.model == ("a" if request.tenant.startswith("small") else "b")
    assert {draw(pool(), 1, ["a"]).request(index).model for index in range(20)} == {"a"}
    with pytest.raises(BadSettings, match=r"workload\.models is 2, but must be at most 1"):
        draw(pool(model_zipf=0.0), 1, ["a"])


def test_a_pool_is_a_trace_as_well(pool):
    path = pool().path
    trace = draw(TraceWorkload(path=path, until_s=600.0, rate_scale=0.5, requests=500), 1, ["a"])
    assert trace.arrival_ns.tolist() == draw(pool(rate_scale=0.5, requests=500), 1, ["a"]).arrival_ns.tolist()
    with pytest.raises(BadSettings, match=r"workload\.wait is True, but must be as it is without"):
        draw(TraceWorkload(path=path, wait=True), 1, ["a"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rates": {"huge": 1.0}}, r"workload\.rates is 'huge', but must be one of the pool's: big, small"),
        ({"models": ["huge"]}, r"workload\.models is 'huge', but must be one of the pool's: big, small"),
        ({"lengths": "nowhere"}, r"workload\.lengths is 'nowhere', but must be a readable file"),
        ({"models": ["big", "big"]}, "each once"),
        ({"rates": {"big": -1.0}}, r"workload\.rates\.big is -1\.0"),
        ({"rates": {"big": float("nan")}}, r"workload\.rates\.big is nan"),
        ({"rates": {"big": 1e9}}, "at most 3000: 1000 times what the pool has then"),
        ({"rates": {"big": 1.0}, "from_s": 600.0}, "such that big has clients with a rate"),
        ({"from_s": 600.0}, "such that .* has a request in the 600 s after it"),
        ({"duration_s": 0.0}, r"workload\.duration_s is 0\.0"),
        ({"rate_scale": 0.0}, r"workload\.rate_scale is 0\.0"),
        ({"time_scale": float("inf")}, r"workload\.time_scale is inf"),
    ],
)
def test_what_makes_no_traffic_is_refused(settings, told, pool):
    with pytest.raises(BadSettings, match=told):
        draw(pool(**settings), 1, ["a", "b"])


def test_the_published_clients_make_traffic_like_that_which_was_drawn_from_them():
    composite = TRACES / "multimodel_5_30min_composite.csv.gz"
    if not RATES.exists():
        pytest.skip("the published traces are not here")
    asked = ServeGenWorkload(
        path=str(RATES),
        from_s=2 * 86_400 + 20 * 3600.0,
        rates={"m-small": 1.5, "m-mid": 2.5, "m-large": 0.7},
        keep_bursts=True,
        only_known_lengths=True,
    )
    ours = describe(asked.as_it_is(1))
    others = describe(
        TraceWorkload(path=str(composite), rename_models={"azure-conv": None, "azure-code": None}).as_it_is(1)
    )
    assert ours.requests == pytest.approx(1800 * 4.7, rel=0.25)
    assert ours.input.p90 == pytest.approx(others.input.p90, rel=0.05)
    assert ours.output.p50 == pytest.approx(others.output.p50, abs=4)
    assert ours.arrivals.dispersions[10] == pytest.approx(others.arrivals.dispersions[10], rel=0.5)
    assert ours.tenants.names[0] == others.tenants.names[0] == "m-mid/c60"
    assert ours.tenants.zipf == pytest.approx(others.tenants.zipf, abs=0.3)
