"""What finding a model costs, and that it does not cost more when many are known."""

import json

import pytest

from engine.registry import Model, Registry

pytestmark = pytest.mark.benchmark(group="targeted")

FORMS = {"id": "model-{}", "version": "model-{}@1.1.0", "range": "model-{}@^1", "alias": "alias-{}"}


def registry_of(models):
    """So many models of two versions, each with an alias."""
    registry = Registry()
    for number in range(models // 2):
        for version in ("1.0.0", "1.1.0"):
            registry.add(
                Model(name=f"model-{number}", version=version, family="llama", tags=("chat", "small"))
            )
        registry.alias(f"alias-{number}", f"model-{number}")
    return registry


@pytest.mark.parametrize("models", [10, 10_000])
@pytest.mark.parametrize("form", FORMS)
def test_find(measure, form, models):
    registry = registry_of(models)
    wanted = FORMS[form].format(models // 4)
    model = measure(lambda: registry.find(wanted), with_p99=True)
    assert model.key == f"model-{models // 4}@1.1.0"


def test_find_a_range_for_the_first_time(measure):
    registry = registry_of(10_000)

    def find():
        registry._ranges.clear()
        registry._ranges_of.clear()
        return registry.find("model-7@^1")

    assert measure(find, calls=100).key == "model-7@1.1.0"


def test_used(measure):
    registry = registry_of(10)
    model = registry.find("model-0")
    measure(lambda: registry.used(model, 7))


def test_json_of_100_models(measure):
    registry = registry_of(100)
    answer = measure(registry.as_json, calls=10)
    assert len(json.loads(answer)["data"]) == 100
