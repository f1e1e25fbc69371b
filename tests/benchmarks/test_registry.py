"""What finding a model costs, and that it does not cost more when many are known."""

from dataclasses import replace

import pytest

from engine.registry import Registry

pytestmark = pytest.mark.benchmark(group="targeted")


@pytest.mark.parametrize("models", [10, 10_000])
def test_find(measure, settings, models):
    (model,) = settings().engine.fleet.models
    registry = Registry()
    for number in range(models):
        registry.add(replace(model, name=f"model-{number}"))
    wanted = f"model-{models // 2}"
    assert measure(lambda: registry.find(wanted), with_p99=True).name == wanted


def test_find_by_exact_version(measure, settings):
    (model,) = settings().engine.fleet.models
    registry = Registry()
    registry.add(model)
    wanted = f"{model.name}@{model.version}"
    assert measure(lambda: registry.find(wanted)) is model
