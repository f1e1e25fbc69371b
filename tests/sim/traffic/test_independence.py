"""What nobody uses changes nothing: a model without traffic, a tenant without requests, another concern's draws."""

from dataclasses import replace

import numpy as np
import pytest

from sim.config import choices, read
from sim.stage import Stage
from sim.traffic import TraceWorkload, draw
from sim.traffic.arrivals import ArrivalSettings
from sim.traffic.generator import GeneratedWorkload, PrefixSettings, TenantSettings
from sim.traffic.sessions import SessionSettings

FIVE = ["scenario=steady", "fleet=reference_five", "hardware=a100", "executor=roofline"]
MIX = ["workload=mix_b", "workload.model_zipf=1.0", "workload.requests=80"]
FEW = ("random", "cache_aware")  # of the strategies: one that draws, and one that remembers
MODELS = ["a", "b", "c"]
COLUMNS = (
    "arrival_ns",
    "prompt_tokens",
    "output_tokens",
    "prefix",
    "session",
    "after",
    "think_ns",
    "tenant_of",
    "model_of",
)


def digest_of(run):
    stage = Stage(run.engine, draw(run.workload, run.seed, [model.name for model in run.engine.fleet.models]))
    stage.play()
    stage.close()
    assert len(stage.recorder) == 80
    return stage.recorder.digest()


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in choices("strategy")],
)
def test_a_sixth_model_without_traffic_leaves_the_digest_of_five_as_it_is(strategy):
    run = read([*FIVE, *MIX, f"strategy={strategy}", "tiers=five"])
    alone = digest_of(run)
    fleet = run.engine.fleet
    fleet.models.append(replace(fleet.models[-1], name="idle"))
    fleet.replicas |= {"idle_1": "idle", "idle_2": "idle"}
    assert digest_of(run) == alone
    assert digest_of(replace(run, seed=run.seed + 1)) != alone


def drawn(seed=1, fleet=MODELS, **settings):
    return draw(
        GeneratedWorkload(**{"requests": 3000, "model_zipf": 1.0, "models": 3} | settings), seed, fleet
    )


def differing(one, other):
    return {
        name
        for name in COLUMNS
        if getattr(one, name) is not None and not np.array_equal(getattr(one, name), getattr(other, name))
    }


@pytest.mark.parametrize("seed", range(5))
def test_a_model_of_weight_zero_moves_no_draw(seed):
    asked = {
        "sessions": SessionSettings(mean_turns=3.0),
        "prefixes": PrefixSettings(count=4),
        "model_weights": [1.0, 2.0, 1.0],
    }
    alone = drawn(seed, **asked)
    more = drawn(seed, [*MODELS, "d"], **asked | {"models": 4, "model_weights": [1.0, 2.0, 1.0, 0.0]})
    assert differing(alone, more) == set()
    assert [alone.prompt(index).tolist() for index in range(50)] == [
        more.prompt(index).tolist() for index in range(50)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cv_median", [None, 2.0])
def test_a_tenant_without_requests_moves_no_draw_wherever_it_is_listed(seed, cv_median):
    shares = {"big": 3.0, "small": 1.0}
    alone = drawn(seed, tenants=TenantSettings(shares=shares, cv_median=cv_median))
    last = drawn(seed, tenants=TenantSettings(shares=shares | {"idle": 0.0}, cv_median=cv_median))
    first = drawn(seed, tenants=TenantSettings(shares={"idle": 0.0} | shares, cv_median=cv_median))
    assert differing(alone, last) == set()
    assert differing(alone, first) == {"tenant_of"}  # numbers of the same names
    names = [[each.tenants[index] for index in each.tenant_of] for each in (alone, first)]
    assert names[0] == names[1]


@pytest.mark.parametrize("seed", range(3))
def test_every_concern_moves_its_own_column_and_what_follows_from_it(seed):
    sessions = SessionSettings(mean_turns=3.0)
    plain = drawn(seed, sessions=sessions)
    slower = drawn(seed, sessions=replace(sessions, think_median_s=41.0))
    assert "output_tokens" not in differing(plain, drawn(seed, sessions=sessions, model_zipf=0.5))
    assert differing(plain, drawn(seed, sessions=sessions, model_zipf=0.5)) == {"model_of"}
    assert differing(plain, drawn(seed, sessions=sessions, prefixes=PrefixSettings(count=2))) == {
        "prompt_tokens",
        "prefix",
    }
    assert differing(plain, drawn(seed, arrivals=ArrivalSettings(), sessions=sessions)) == set()
    starts = np.flatnonzero(plain.after < 0)[:100]
    assert plain.arrival_ns[starts[0]] == slower.arrival_ns[np.flatnonzero(slower.after < 0)[0]]


def test_a_row_that_is_left_out_moves_the_tokens_of_no_block(tmp_path):
    path = tmp_path / "trace.csv"
    header = "timestamp_s,model,tenant,input_tokens,output_tokens\n"
    path.write_text(header + "".join(f"{number},m{number % 2},t,{number + 1},5\n" for number in range(200)))
    whole = draw(TraceWorkload(path=str(path), model_zipf=0.0), 1, ["m0", "m1", "m2"])
    part = draw(
        TraceWorkload(path=str(path), model_zipf=0.0, rename_models={"m1": None}), 1, ["m0", "m1", "m2"]
    )
    of_one = whole.model_of == 0
    assert part.prompt_tokens.tolist() == whole.prompt_tokens[of_one].tolist()
    assert part.arrival_ns.tolist() == whole.arrival_ns[of_one].tolist()
    assert part.request(0).model == "m0"
