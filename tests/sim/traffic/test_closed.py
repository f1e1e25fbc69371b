"""A closed loop: each user waits for the answer before he thinks, and theory knows how much that brings."""

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw
from sim.traffic.closed import ClosedWorkload


def test_each_user_has_one_request_at_a_time():
    trace = draw(ClosedWorkload(users=3, requests=100), 1, ["m"])
    heads = np.flatnonzero(trace.after < 0)
    assert len(heads) == 3
    followers = trace.after[trace.after >= 0]
    assert len(np.unique(followers)) == len(followers) == 97
    assert (trace.after < np.arange(100)).all()


def throughput(users, think_s, service_s=1.0):
    """Mean value analysis of one exponential server and users who think (Reiser and Lavenberg, 1980)."""
    length = rate = 0.0
    for number in range(1, users + 1):
        sojourn_s = service_s * (1 + length)
        rate = number / (sojourn_s + think_s)
        length = rate * sojourn_s
    return rate


@pytest.mark.slow
@pytest.mark.parametrize(("users", "think_s"), [(5, 4.0), (20, 10.0)])
def test_a_closed_network_brings_what_mean_value_analysis_says(users, think_s):
    lines = ["scenario=queue", "workload=closed", f"workload.users={users}", f"workload.think_s={think_s}"]
    run = read([*lines, "workload.requests=12000", "routing.decision_log=0"])
    stage = Stage(run.engine, draw(run.workload, run.seed, [run.engine.fleet.models[0].name]), 1e6)
    stage.play()
    rows = stage.recorder.requests()
    stage.close()
    ends_ns = np.sort(rows["finished_ns"].to_numpy(dtype=np.int64))[1_000:-200]
    found = (len(ends_ns) - 1) / ((ends_ns[-1] - ends_ns[0]) / 1e9)
    assert found == pytest.approx(throughput(users, think_s), rel=0.04)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"users": 0}, "workload.users is 0"),
        ({"think": "never"}, "workload.think is 'never', but must be one of"),
        ({"think": "lognormal"}, "workload.think_sigma is None"),
        ({"think_sigma": 1.0}, "null, since think is exponential"),
        ({"think_s": 1e9}, "a run ends in a year"),
    ],
)
def test_what_is_no_loop_is_refused(settings, told):
    with pytest.raises(BadSettings, match=told):
        ClosedWorkload(**settings)
