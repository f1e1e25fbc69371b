"""A name that nobody has is a typo, and is told before anything runs."""

import pytest

from engine.errors import UnknownName
from sim.config import choices, read
from sim.play import play

STEADY = ["scenario=steady", "executor=roofline", "fleet=three_models", "report=tables", "tiers=ram"]
SHARED = ["workload=generated", "workload.requests=5", "workload.tenants.shares={ann: 1, bob: 2}"]

NO_SUCH_MODEL = [
    (
        "quotas.limits=[{model: '*', hourly_tokens: 9}, {model: model-x, hourly_tokens: 9}]",
        "quotas.limits[1].model is 'model-x', but must be one of *, model-a, model-b, model-c",
    ),
    (
        "tiers.limits=[{tier: ram, gib: 1, model: model-a}, {tier: ram, gib: 1, model: '*'}]",
        "tiers.limits[1].model is '*', but must be one of model-a, model-b, model-c",
    ),
    (
        "allocation=proportional +allocation.weights.model-x=2",
        "allocation.weights names 'model-x', but may only name models of the fleet: model-a, model-b, model-c",
    ),
    (
        "allocation=dynamic +allocation.floors.model-x=0.2",
        "allocation.floors names 'model-x', but may only name models of the fleet: model-a, ",
    ),
    (
        "allocation=priority +allocation.members.model-x=high",
        "allocation.members names 'model-x', but may only name models of the fleet: model-a, ",
    ),
    (
        "routing.weights={a: 1, x: 2}",
        "routing.weights names 'x', but may only name replicas of the fleet: a, b, c",
    ),
]


def lines(text):
    return text.split(" ") if " +" in text else [text]


@pytest.mark.parametrize(("text", "said"), NO_SUCH_MODEL)
def test_a_model_or_replica_that_the_fleet_has_not_is_refused_with_those_it_has(text, said):
    with pytest.raises(UnknownName) as caught:
        read([*STEADY, *lines(text)])
    assert said in str(caught.value)


@pytest.mark.parametrize(("text", "_said"), NO_SUCH_MODEL)
def test_the_same_settings_with_names_that_there_are_come_in_with_a_version_or_without(text, _said):
    for name in ("model-c", "model-c@1.0.0"):
        given = (
            text.replace("model-x", name)
            .replace("x: 2", "b: 2")
            .replace("1, model: '*'", f"1, model: {name}")
        )
        if "+" not in given or "@" not in given:  # which Hydra has in no key of a line
            read([*STEADY, *lines(given)])


def test_a_model_without_a_replica_may_have_a_weight_for_the_one_that_it_will_have():
    few = ["~fleet.replicas", "+fleet.replicas={a: model-a}"]
    read([*STEADY, *few, "routing.weights={a: 1, model-b@1.0.0: 2}"])
    with pytest.raises(UnknownName, match=r"replicas of the fleet: a, model-b@1\.0\.0, model-c@1\.0\.0$"):
        read([*STEADY, *few, "routing.weights={model-b: 1}"])


def test_any_model_may_come_out_of_a_folder(tmp_path):
    read([*STEADY, f"models.folder={tmp_path}", "quotas.limits=[{model: model-x, hourly_tokens: 9}]"])


@pytest.mark.parametrize(
    "text",
    [
        "quotas.limits=[{tenant: '*', hourly_tokens: 9}, {tenant: anna, hourly_tokens: 9}]",
        "tiers.limits=[{tier: ram, gib: 1, tenant: anna}]",
        "quotas.tenant_weights={ann: 1, anna: 2}",
    ],
)
def test_a_tenant_who_does_not_come_may_have_limits_all_the_same(text, tmp_path):
    assert len(play(read([*STEADY, *SHARED, text, f"report.folder={tmp_path}"])).requests) == 5


@pytest.mark.parametrize("scenario", choices("scenario"))
def test_scenarios_of_every_size_name_only_what_there_is(scenario):
    for size in read([f"scenario={scenario}", "executor=roofline"]).config["sizes"]:
        read([f"scenario={scenario}", f"size={size}"])
