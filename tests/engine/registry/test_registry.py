"""Every model is found under every name it answers to."""

import pytest

from engine.errors import BadSettings, NotFound
from engine.registry import Registry
from engine.settings import Architecture, ModelSettings

SHAPE = Architecture(layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=8, vocab=16, context_tokens=32)


def model(name, version="1.0.0"):
    return ModelSettings(name=name, version=version, architecture=SHAPE, stand_in=SHAPE)


def registry_of(*models):
    registry = Registry()
    for each in models:
        registry.add(each)
    return registry


def test_a_model_is_found_by_its_name_and_by_its_exact_version():
    llama, phi = model("llama", "3.2.0"), model("phi", "4.0.0")
    registry = registry_of(llama, phi)
    assert registry.find("llama") is registry.find("llama@3.2.0") is llama
    assert registry.find("phi@4.0.0") is phi
    assert len(registry) == 2


@pytest.mark.parametrize("name", ["llama@3.1.0", "Llama", "", "llama ", "@", "llama@"])
def test_what_is_nearly_a_name_is_none(name):
    with pytest.raises(NotFound):
        registry_of(model("llama", "3.2.0")).find(name)


def test_a_second_model_of_the_same_name_is_refused_and_changes_nothing():
    registry = registry_of(model("llama"))
    with pytest.raises(BadSettings, match="two models are called 'llama'; a name must be unique"):
        registry.add(model("llama", "2.0.0"))
    with pytest.raises(NotFound):
        registry.find("llama@2.0.0")


def test_a_name_that_looks_like_another_s_version_is_refused():
    registry = registry_of(model("llama", "2.0.0"))
    with pytest.raises(BadSettings, match=r"two models are called 'llama@2\.0\.0'"):
        registry.add(model("llama@2.0.0"))
    assert len(registry) == 1


def test_an_unknown_name_is_answered_with_the_names_there_are():
    with pytest.raises(NotFound, match=r"^no model is called 'gpt'; known are llama, phi$"):
        registry_of(model("phi"), model("llama")).find("gpt")


def test_of_many_models_only_some_are_named():
    registry = registry_of(*[model(f"m{number:04}") for number in range(2000)])
    with pytest.raises(NotFound, match=r"known are m0000, m0001, .*, m0007 and 1992 more$") as caught:
        registry.find("x" * 5000)
    assert len(str(caught.value)) < 400
    assert registry.find("m1999@1.0.0").name == "m1999"
