import asyncio
from itertools import pairwise

import numpy as np
import pytest

from engine.clock import WallClock
from engine.engine import Engine
from engine.settings import ExecutorSettings
from sim.fidelity.cases import CASES, at_once, faults, run_settings, traffic
from sim.fidelity.device import STRETCH_TURNS, Course, Door, HostCosts, Ledger, Spread
from sim.fidelity.factors import ByCount, ModelFactors, Scales
from sim.fidelity.server import WARM_UP_TOKENS, in_turns, warm_up
from sim.fidelity.simulated import simulate, without_stores
from sim.fidelity.steplog import Reading, StepLog
from sim.fidelity.track import Track

PHASES = (("arrival_ns", "first_token_ns"), ("first_token_ns", "finished_ns"))


def run_of(case="poisson70", host=None, seed=1, overrides=(), count=40, rate=20.0, track=None):
    case = CASES[case]
    run = run_settings(case, count, overrides)
    names = [model.name for model in run.engine.fleet.models]
    models = {name: ExecutorSettings(name="roofline") for name in names}
    trace = traffic(case, run, count, rate, run.seed)
    struck = faults(case, run, trace)
    return simulate(run.engine, trace, struck, models, host or HostCosts(), seed, track)


def played(*given, **settings):
    return run_of(*given, **settings).requests


def e2e_ns(requests):
    rows = requests.sort_values("request_id")
    return (rows["finished_ns"] - rows["arrival_ns"]).to_numpy(dtype=float)


def test_what_the_host_takes_for_each_step_is_in_every_answer():
    plain, slow = e2e_ns(played()), e2e_ns(played(host=HostCosts(step_ns=1e6)))
    assert (slow > plain).all()
    assert np.median(slow - plain) > 20e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "cost",
    [
        {"begin_ns": 3e6},
        {"after_ns": 3e6},
        {"arrive_ns": 3e6},
        {"leave_ns": 3e6},
        {"keep_ns": 3e4},
        {"wake_ns": 3e6},
    ],
)
def test_each_other_cost_of_the_host_makes_answers_later(cost):
    assert e2e_ns(played(host=HostCosts(**cost))).mean() > e2e_ns(played()).mean()


def test_a_request_that_comes_makes_the_turn_longer_that_is_under_way_and_no_other():
    alone = {"count": 20, "rate": 0.001, "overrides": ["health.enabled=false"]}
    host, slow = HostCosts(step_ns=5e6), HostCosts(step_ns=5e6, arrive_ns=2e6)
    resting, later = (e2e_ns(played(host=each, **alone)) for each in (host, slow))
    assert (resting == later).all()
    busy = {"count": 200, "rate": 0.5, "overrides": ["health.enabled=false"]}
    plain, longer = (played(host=each, **busy).sort_values("request_id") for each in (host, slow))
    later_ms = (longer["finished_ns"] - plain["finished_ns"]).to_numpy(float) / 1e6
    others = later_ms / 2  # that came while it was there
    whole = np.abs(others - np.rint(others)) < 0.001  # who is not is in another batch than before
    assert whole.mean() > 0.8
    assert 0.1 < (others[whole] > 0.5).mean() < 0.9


def test_what_a_beginner_leaves_to_do_is_in_the_turn_after_its_first():
    alone = {"count": 20, "rate": 0.001, "overrides": ["health.enabled=false"]}
    plain, after = played(**alone), played(host=HostCosts(after_ns=2e6), **alone)
    later_ns = (after["finished_ns"] - plain["finished_ns"]).to_numpy(float)
    in_time = (after["first_token_ns"] == plain["first_token_ns"]).to_numpy()
    assert in_time.mean() > 0.5  # the others have a prefill of several turns
    several = (plain["output_tokens"] > 1).to_numpy()
    assert set(later_ns[several].tolist()) == {2e6}
    assert not later_ns[~several & in_time].any()


def test_a_machine_that_rested_is_slower_and_one_that_did_not_is_not():
    host = HostCosts(step_ns=5e6)
    slow = HostCosts(step_ns=5e6, wake_ns=4e6)
    alone = {"count": 1}
    assert (e2e_ns(played(host=slow, **alone)) - e2e_ns(played(host=host, **alone))).tolist() == [4e6]
    crowd = {"count": 40, "rate": 1e6}
    longer = played(host=slow, **crowd)["finished_ns"].max() - played(host=host, **crowd)["finished_ns"].max()
    assert longer == 4e6


def test_a_step_after_one_of_another_model_takes_what_it_was_seen_to_take():
    host, quiet = HostCosts(step_ns=1e6, switch_ns=2e6), ["health.enabled=false", "hardware=h200"]
    plain = HostCosts(step_ns=1e6)
    alone = {"count": 1, "overrides": quiet}  # a rest goes before it, and nobody else has a turn
    assert e2e_ns(played("five", host=host, **alone)) == e2e_ns(played("five", host=plain, **alone))
    crowd = {"count": 60, "rate": 1e6, "overrides": quiet}
    mixed, before = (played("five", host=each, **crowd) for each in (host, plain))
    switches, rest = divmod(mixed["finished_ns"].max() - before["finished_ns"].max(), 2_000_000)
    assert rest == 0
    assert switches > len(mixed)
    one, same = (played(host=each, **crowd) for each in (host, plain))  # there is one model only
    assert (one["finished_ns"] == same["finished_ns"]).all()


def test_steps_of_a_model_take_their_own_scale_by_what_they_do_and_by_what_was_before():
    alone = {"count": 20, "rate": 0.001, "overrides": ["health.enabled=false"]}
    name = run_settings(CASES["poisson70"], 1, []).engine.fleet.models[0].name
    plain = played(**alone)
    for scales in (Scales(3.0, 1.0, 1.0), Scales(1.0, 2.0, 9.0)):
        found = played(host=HostCosts(factors={name: ModelFactors(scales)}), **alone)
        for (begin, end), times in zip(PHASES, scales, strict=False):
            before, after = ((table[end] - table[begin]).to_numpy(float) for table in (plain, found))
            assert after == pytest.approx(before * times, rel=1e-5)
    crowd = {"count": 60, "rate": 1e6, "overrides": ["hardware=h200"]}
    names = [model.name for model in run_settings(CASES["five"], 1, []).engine.fleet.models]
    cold = HostCosts(factors=dict.fromkeys(names, ModelFactors(Scales(1.0, 1.0, 2.0))))
    longer, before = (played("five", host=host, **crowd)["finished_ns"].max() for host in (cold, None))
    assert longer > 1.1 * before


def test_steps_take_the_factors_of_their_size_their_age_and_as_many_as_decode():
    alone = {"count": 20, "rate": 0.001, "overrides": ["health.enabled=false"]}
    name = run_settings(CASES["poisson70"], 1, []).engine.fleet.models[0].name
    plain = played(**alone)
    sizes, ages, crowds = ByCount({0: 3.0}), ByCount({0: 7.0, 1: 1.0}), ByCount({1: 2.0, 2: 9.0})
    for factors, times in (
        ({"prefill_sizes": sizes}, (3.0, 1.0)),
        ({"decode_crowds": crowds}, (1.0, 2.0)),
        ({"prefill_sizes": sizes, "decode_crowds": crowds}, (3.0, 2.0)),
    ):
        found = played(host=HostCosts(factors={name: ModelFactors(**factors)}), **alone)
        for (begin, end), each in zip(PHASES, times, strict=True):
            before, after = ((table[end] - table[begin]).to_numpy(float) for table in (plain, found))
            assert after == pytest.approx(before * each, rel=1e-5)
    young = played(host=HostCosts(factors={name: ModelFactors(decode_ages=ages)}), **alone)
    decoding, longer = (
        (each["finished_ns"] - each["first_token_ns"]).to_numpy(float) for each in (plain, young)
    )
    steps = plain["output_tokens"].to_numpy(float) - 1
    some = steps > 0
    each_ns = decoding[some] / steps[some]
    assert (longer - decoding)[some] == pytest.approx(
        6 * each_ns, rel=0.05
    )  # the first one takes seven times as long


def test_a_client_sees_what_is_on_the_way_and_the_engine_does_not():
    plain = run_of()
    host = HostCosts(in_ns=np.array([2e6]), first_ns=np.array([3e6]), end_ns=np.array([5e6]))
    told = run_of(host=host)
    later = told.requests["first_token_ns"] - plain.requests["first_token_ns"]
    assert later.to_numpy() == pytest.approx(2e6, abs=1e3)  # steps are rounded to whole ns
    later = told.seen["first_token_ns"] - plain.seen["first_token_ns"]
    assert later.to_numpy() == pytest.approx(5e6, abs=1e3)
    assert e2e_ns(told.seen) - e2e_ns(plain.seen) == pytest.approx(7e6, abs=1e3)
    assert (told.seen["arrival_ns"] == plain.requests["arrival_ns"]).all()


def test_on_one_line_nobody_overtakes():
    host, load = HostCosts(in_ns=np.array([0.0, 3e9])), {"count": 200, "rate": 0.5}
    told = run_of(host=host, **load)
    let_in = told.requests.sort_values("request_id")["arrival_ns"].to_numpy()
    assert (np.diff(let_in) >= 0).all()
    waits = let_in - told.seen.sort_values("request_id")["arrival_ns"].to_numpy()
    assert (waits >= 0).all()
    assert 0.1 < (waits > 0).mean() < 0.9
    assert (np.diff(let_in) == 0).any()


def test_who_comes_shortly_before_the_end_of_a_turn_is_let_in_after_it_and_waits_for_the_next():
    # a turn of 5 ms; one in five comes in its last millisecond, and then waits for another one
    host, load = HostCosts(step_ns=5e6), {"count": 300, "rate": 4.0}
    plain = run_of(host=host, **load).seen
    host.door = Door(
        [0.0] * 20 + [1e6] * 60 + [1.1e6] * 60, [1.0] * 80 + [0.0] * 60, [True] * 80 + [False] * 60
    )
    behind = run_of(host=host, **load).seen
    later_ns = (behind["first_token_ns"] - plain["first_token_ns"]).mean()
    assert 0.2e6 < later_ns < 2e6


def test_a_door_lets_in_before_the_end_of_the_turn_or_after_it():
    random = np.random.default_rng(1)
    door = Door([100.0, 200.0, 5_000.0], [30.0, 50.0, 400.0], [True, False, False])
    assert {door.opens_ns(1_000, 1_150, random) for _ in range(50)} == {1_180, 1_050, 1_149}
    assert Door().opens_ns(1_000, 1_150, random) == 1_000


def test_a_turn_is_under_way_until_it_ends():
    ledger = Ledger()
    ends = [ledger.turn(0, 10).ends_ns, ledger.turn(0, 10).ends_ns, ledger.book(0, 5)]
    assert ends == [10, 20, 25]
    assert [ledger.turn_ends_ns(at) for at in (0, 9, 10, 19, 20, 30)] == [10, 10, 20, 20, 20, 30]


def test_a_turn_that_is_lengthened_ends_later_and_so_do_those_behind_it():
    ledger = Ledger()
    first, second = ledger.turn(0, 10), ledger.turn(0, 10)
    ledger.lengthen(4, 3)
    assert (first.ends_ns, second.ends_ns, ledger.free_ns) == (13, 23, 23)
    ledger.lengthen(13, 2)  # the first one is over
    assert (first.ends_ns, second.ends_ns, ledger.free_ns) == (13, 25, 25)
    ledger.lengthen(25, 9)  # nobody has a turn
    assert (second.ends_ns, ledger.free_ns) == (25, 25)


def test_the_spread_of_steps_depends_on_the_seed_alone():
    spread = HostCosts(
        decode_spread=Spread([1.0, 2.0], [0.5, 1.5]), prefill_spread=Spread([1.0, 2.0], [0.8, 1.2])
    )
    one, same, other = (e2e_ns(played(host=spread, seed=seed)).tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert np.mean(one) == pytest.approx(e2e_ns(played()).mean(), rel=0.25)


def test_a_course_goes_through_stretches_of_what_was_and_does_so_evenly():
    turns = [number / 1_000 for number in range(1_000)]
    course, again = (Course(turns, np.random.default_rng(1)) for _ in range(2))
    first, second = ([course.next() for _ in turns] for _ in range(2))
    assert sorted(first) == sorted(second) == turns
    assert first != second
    assert [again.next() for _ in turns] == first
    in_order = np.isclose(np.diff(first + second), 0.001).mean()
    assert in_order >= 1 - 1 / STRETCH_TURNS
    alone = Course([], np.random.default_rng(1))
    assert np.mean([alone.next() for _ in range(1_000)]) == pytest.approx(0.5, abs=0.05)


def test_slow_turns_in_spells_make_answers_that_differ_more():
    spread = Spread([1.0, 2.0], [0.5, 1.5])
    found = {}
    for name, ranks in (("spells", [0.0] * 80 + [0.9] * 80), ("in turn", [0.0, 0.9] * 80)):
        requests = played(host=HostCosts(decode_spread=spread, ranks=ranks), count=80)
        several = requests[requests["output_tokens"] > 8]
        tpot = (several["finished_ns"] - several["first_token_ns"]) / (several["output_tokens"] - 1)
        found[name] = (tpot.std() / tpot.mean(), tpot.mean())
    assert found["spells"][0] > 2 * found["in turn"][0]
    assert found["spells"][1] == pytest.approx(found["in turn"][1], rel=0.3)


def test_a_prefix_from_files_takes_what_it_took_in_the_calibration_and_turns_wait_for_it():
    waits = np.array([7e6, 9e6])
    calm = {"count": 300, "rate": 5.0}
    requests = played("conversations", host=HostCosts(tier_ns=waits), **calm)
    rows = requests[requests["cached_tokens_ssd"] > 0]
    took = (rows["queued_ns"] - rows["tried_ns"]).tolist()
    assert set(waits) <= set(took)
    assert min(filter(None, took)) == waits.min()  # nothing at all where it was not written yet
    crowd = {"count": 300, "rate": 60.0}
    more = played("conversations", host=HostCosts(tier_ns=waits, read_ns=20e6), **crowd)
    assert (
        e2e_ns(more).mean() > e2e_ns(played("conversations", host=HostCosts(tier_ns=waits), **crowd)).mean()
    )


def test_replicas_of_one_machine_take_turns():
    ledger = Ledger()
    assert [ledger.book(0, 10), ledger.book(3, 10), ledger.book(50, 10)] == [10, 20, 60]


def test_turns_take_so_many_times_as_long_as_the_track_says_at_their_time():
    alone = {"count": 40, "rate": 0.001, "overrides": ["health.enabled=false"]}
    host = HostCosts(step_ns=5e6, leave_ns=1e6, wake_ns=2e6, begin_ns=1e6)
    plain = played(**alone, host=host).sort_values("request_id")
    half_ns = int(plain["arrival_ns"].iloc[20]) - 1
    slow = played(**alone, host=host, track=Track([half_ns], [1.0, 1.5])).sort_values("request_id")
    ratios = e2e_ns(slow) / e2e_ns(plain)
    assert (ratios[:20] == 1.0).all()
    assert ratios[20:] == pytest.approx(1.5, rel=1e-5)


def test_what_who_comes_and_who_leaves_takes_is_at_the_pace_of_the_track():
    crowd = {"count": 40, "rate": 1e6, "overrides": ["health.enabled=false"]}
    slow = Track([], [2.0])
    for costs in (HostCosts(scale=0.0, leave_ns=5e6), HostCosts(scale=0.0, keep_ns=1e5)):
        took, longer = (played(**crowd, host=costs, track=each)["finished_ns"].max() for each in (None, slow))
        assert longer / took == pytest.approx(2.0, rel=0.02)
    first = [
        played(**crowd, host=HostCosts(step_ns=1e6, arrive_ns=arrive_ns), track=track)["first_token_ns"].min()
        for arrive_ns, track in ((0.0, None), (2e6, None), (0.0, slow), (2e6, slow))
    ]
    assert first[3] - first[2] == 2 * (first[1] - first[0]) > 20e6


def test_the_yardstick_takes_the_machine_and_lets_nobody_in_meanwhile():
    takes = [Reading(at * 50_000_000, 0, 20_000_000, 2_000_000) for at in range(60_000)]
    load = {"count": 60, "rate": 0.03, "overrides": ["health.enabled=false"]}
    plain, beside = (run_of(**load, track=track).requests for track in (None, Track(readings=takes)))
    later_ns = e2e_ns(beside) - e2e_ns(plain)
    assert later_ns.mean() > 4e6
    meanwhile, otherwise = ((each["tried_ns"] % 50_000_000 < 20_000_000).mean() for each in (beside, plain))
    assert 0.3 < otherwise < 0.5
    assert meanwhile < 0.05  # the yardstick has yet to wait for the end of a turn
    dearer = e2e_ns(run_of(**load, host=HostCosts(yard_ns=2e6), track=Track(readings=takes)).requests)
    assert dearer.mean() > e2e_ns(beside).mean()


def test_three_replicas_are_no_faster_than_the_one_machine_that_they_share():
    burst = {}
    for replicas in (1, 3):
        case = CASES["poisson70"]
        overrides = [f"fleet.replicas={replicas}", "fleet.max_batch=4"]
        run = run_settings(case, 40, overrides)
        name = run.engine.fleet.models[0].name
        trace = at_once(traffic(case, run, 40, 10.0, run.seed))
        models = {name: ExecutorSettings(name="roofline")}
        burst[replicas] = (
            simulate(run.engine, trace, [], models, HostCosts(), 1).requests["finished_ns"].max()
        )
    assert burst[3] > 0.8 * burst[1]


def test_a_failover_is_simulated_with_nothing_lost():
    requests = played("failover", count=120)
    assert (requests["outcome"] == "completed").all()
    assert set(requests["replica"]) == {"a", "b", "c"}


def test_tiers_of_the_simulated_side_have_nothing_behind_them(tmp_path):
    cache = run_settings(CASES["conversations"], 1, [f"tiers.ssd.path={tmp_path}"]).engine.cache
    slow = without_stores(cache, HostCosts(tier_ns=np.array([1e6, 3e6])))
    assert (slow.ssd.path, slow.ssd.gib, slow.ssd.latency_s) == (None, cache.ssd.gib, 0.002)
    assert without_stores(cache, HostCosts()).ssd.latency_s == cache.ssd.latency_s
    requests = played("conversations", count=300)
    assert requests["cached_tokens_ssd"].sum() > 0


@pytest.mark.torch
def test_live_replicas_compute_one_at_a_time_and_every_step_is_noted():
    run = run_settings(CASES["failover"], 1, [])
    log = StepLog()

    async def live():
        clock = WallClock()
        engine = Engine(in_turns(run.engine, log), clock)
        engine.start()
        await asyncio.gather(*(warm_up([replica]) for replica in engine.replicas.values()))
        await clock.close()
        engine.close()

    asyncio.run(live())
    steps = sorted(log.steps, key=lambda step: step.begun_ns)
    assert all(step.ended_ns <= after.begun_ns for step, after in pairwise(steps))
    assert any(after.asked_ns < step.ended_ns for step, after in pairwise(steps))
    assert len(log.left) == 3 * len(WARM_UP_TOKENS)
