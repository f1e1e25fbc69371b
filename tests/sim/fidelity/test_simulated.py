import asyncio
from itertools import pairwise

import numpy as np
import pytest

from engine.clock import WallClock
from engine.engine import Engine
from engine.settings import ExecutorSettings
from sim.fidelity.cases import CASES, at_once, faults, run_settings, traffic
from sim.fidelity.device import HostCosts, Ledger, StepLog
from sim.fidelity.server import in_turns, warm_up
from sim.fidelity.simulated import simulate, without_stores


def played(case="poisson70", host=None, seed=1, overrides=(), count=60, rate=20.0):
    case = CASES[case]
    run = run_settings(case, count, overrides)
    names = [model.name for model in run.engine.fleet.models]
    models = {name: ExecutorSettings(name="roofline") for name in names}
    trace = traffic(case, run, count, rate, run.seed)
    struck = faults(case, run, trace)
    return simulate(run.engine, trace, struck, models, host or HostCosts(), seed).requests


def e2e_ns(requests):
    rows = requests.sort_values("request_id")
    return (rows["finished_ns"] - rows["arrival_ns"]).to_numpy(dtype=float)


def test_what_the_host_takes_for_each_step_is_in_every_answer():
    plain, slow = e2e_ns(played()), e2e_ns(played(host=HostCosts(step_ns=1e6)))
    assert (slow > plain).all()
    assert np.median(slow - plain) > 20e6


@pytest.mark.parametrize("cost", ["begin_ns", "retire_ns", "answer_ns"])
def test_each_other_cost_of_the_host_makes_answers_later(cost):
    assert e2e_ns(played(host=HostCosts(**{cost: 3e6}))).mean() > e2e_ns(played()).mean()


def test_an_answer_is_told_so_long_after_its_last_token_and_nothing_else_moves():
    plain, told = played(), played(host=HostCosts(answer_ns=5e6))
    assert (e2e_ns(told) - e2e_ns(plain)).tolist() == [5e6] * 60
    assert (told["first_token_ns"] == plain["first_token_ns"]).all()


def test_the_spread_of_steps_depends_on_the_seed_alone():
    spread = HostCosts(decode_ratios=np.array([0.5, 1.5]), prefill_ratios=np.array([0.8, 1.2]))
    one, same, other = (e2e_ns(played(host=spread, seed=seed)).tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert np.mean(one) == pytest.approx(e2e_ns(played()).mean(), rel=0.25)


def test_replicas_of_one_machine_take_turns():
    ledger = Ledger()
    assert [ledger.book(0, 10), ledger.book(3, 10), ledger.book(50, 10)] == [10, 20, 60]


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
    assert without_stores(cache).ssd.path is None
    assert without_stores(cache).ssd.gib == cache.ssd.gib
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
        models = list(run.engine.fleet.replicas.values())
        await asyncio.gather(*(warm_up(engine, models[:1]) for _ in range(6)))
        await clock.close()
        engine.close()

    asyncio.run(live())
    steps = sorted(log.steps, key=lambda step: step.begun_ns)
    assert all(step.ended_ns <= after.begun_ns for step, after in pairwise(steps))
    assert any(after.asked_ns < step.ended_ns for step, after in pairwise(steps))
    assert len(log.retired) >= 12
