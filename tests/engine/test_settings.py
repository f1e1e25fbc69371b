"""Settings check themselves: key, value and what is allowed, in one sentence."""

import re
from math import inf, nan

import pytest

from engine.errors import BadSettings
from engine.settings import (
    Architecture,
    CacheSettings,
    EngineSettings,
    FleetSettings,
    HardwareSettings,
    HealthSettings,
    LimitSettings,
    ModelSettings,
    QuotaSettings,
    RoutingSettings,
    TierSettings,
)

SHAPE = {
    "layers": 16,
    "hidden": 2048,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 64,
    "ffn": 8192,
    "vocab": 128_256,
    "context_tokens": 131_072,
}
LLAMA = Architecture(**SHAPE)
MODEL = {"name": "llama", "architecture": LLAMA, "stand_in": LLAMA}
FLEET = {"models": [ModelSettings(**MODEL)], "replicas": {"a": "llama"}}
L4 = {
    "name": "L4",
    "flops": 121e12,
    "memory_bytes": 24e9,
    "memory_bytes_per_s": 300e9,
    "link_bytes_per_s": 32e9,
    "source": "datasheet",
}
PATHS = {
    Architecture: ("architecture.", SHAPE),
    ModelSettings: ("fleet.models.llama.", MODEL),
    FleetSettings: ("fleet.", FLEET),
    HardwareSettings: ("hardware.", L4),
    RoutingSettings: ("routing.", {}),
    HealthSettings: ("health.", {}),
    QuotaSettings: ("quotas.", {}),
    CacheSettings: ("tiers.", {}),
}

BOUNDS = [
    *[(Architecture, name, 0, "at least 1") for name in SHAPE],
    (Architecture, "heads", 30, "a multiple of kv_heads"),
    (Architecture, "head_dim", 63, "even: RoPE turns pairs"),
    (Architecture, "rope_theta", nan, "above 0"),
    (Architecture, "norm_eps", 0, "above 0"),
    (ModelSettings, "weight_bytes", 0, "above 0"),
    (ModelSettings, "kv_bytes", -1, "above 0"),
    (FleetSettings, "max_batch", 0, "at least 1"),
    (FleetSettings, "step_tokens", 31, "at least fleet.max_batch (32)"),
    (FleetSettings, "step_tokens", inf, "at least fleet.max_batch (32)"),
    *[
        (HardwareSettings, name, 0, "above 0")
        for name in ("flops", "memory_bytes", "memory_bytes_per_s", "link_bytes_per_s")
    ],
    (HardwareSettings, "flops", inf, "above 0"),
    (RoutingSettings, "max_attempts", 0, "at least 1"),
    (HealthSettings, "probe_every_s", 0, "above 0"),
    (HealthSettings, "probe_timeout_s", nan, "above 0"),
    (HealthSettings, "probe_every_s", 1e300, "at most 3,153,600,000 seconds, a century"),
    (HealthSettings, "fall", 0, "at least 1"),
    (HealthSettings, "rise", 0, "at least 1"),
    (QuotaSettings, "max_concurrent_requests", 0, "at least 1"),
    (QuotaSettings, "queue_capacity", -1, "at least 0"),
    (CacheSettings, "block_tokens", 0, "at least 1"),
    (CacheSettings, "load", "maybe", "one of cheaper, always, never"),
    (CacheSettings, "headroom", 1.0, "from 0 to below 1"),
]


@pytest.mark.parametrize(("cls", "name", "value", "allowed"), BOUNDS)
def test_a_value_out_of_bounds_is_named_with_what_is_allowed(cls, name, value, allowed):
    prefix, valid = PATHS[cls]
    cls(**valid)
    message = re.escape(f"{prefix}{name} is {value!r}, but must be {allowed}")
    with pytest.raises(BadSettings, match=f"^{message}"):
        cls(**{**valid, name: value})


def test_a_number_that_no_float_holds_is_a_number():
    assert QuotaSettings(max_concurrent_requests=10**400).max_concurrent_requests == 10**400


def test_a_replica_of_an_unknown_model_is_named_with_the_models_there_are():
    with pytest.raises(BadSettings, match=r"^fleet\.replicas\.b is 'gpt', but must be one of llama$"):
        FleetSettings(**{**FLEET, "replicas": {"a": "llama", "b": "gpt"}})


def test_a_negative_seed_is_refused(settings):
    with pytest.raises(BadSettings, match="seed is -1, but must be at least 0"):
        EngineSettings(fleet=settings.fleet, executor=settings.executor, hardware=settings.hardware, seed=-1)


def test_a_cache_that_is_on_has_a_tier():
    with pytest.raises(
        BadSettings, match=r"^tiers is \{\}, but must be given: at least one of gpu, ram, ssd"
    ):
        CacheSettings(ram=None)
    CacheSettings(ram=None, enabled=False)


TIER_BOUNDS = [
    ("ssd", "gib", -1, "at least 0"),
    ("ssd", "gib_per_s", 0, "above 0"),
    ("ssd", "concurrency", 0, "at least 1"),
    ("ssd", "form", "int4", "one of raw, fp16, int8"),
    ("ssd", "write", "often", "one of back, through, second_use"),
    ("ssd", "url", "redis://here", "null"),
    ("ram", "path", "/kv", "null: this tier is memory"),
    ("cloud", "path", "/kv", "null: this tier has a url"),
    ("cloud", "url", "http://here", "s3://..., or null"),
    ("network", "url", "s3://here", "redis://..., or null"),
]


@pytest.mark.parametrize(("tier", "name", "value", "allowed"), TIER_BOUNDS)
def test_a_tier_that_cannot_be_is_named_with_what_is_allowed(tier, name, value, allowed):
    message = re.escape(f"tiers.{tier}.{name} is {value!r}, but must be {allowed}")
    with pytest.raises(BadSettings, match=f"^{message}"):
        CacheSettings(**{tier: TierSettings(**{"gib": 1, name: value})})


def test_a_limit_needs_somebody_and_a_tier_that_is_there():
    with pytest.raises(
        BadSettings, match=r"tiers.limits.model is None, but must be given, or tenant must be"
    ):
        LimitSettings(tier="ram", gib=1)
    with pytest.raises(
        BadSettings, match=r"tiers.limits\[0\].tier is 'ssd', but must be a tier that is given"
    ):
        CacheSettings(limits=[LimitSettings(tier="ssd", gib=1, model="llama")])


def test_values_on_their_bounds_are_allowed():
    QuotaSettings(max_concurrent_requests=1, queue_capacity=0)
    CacheSettings(block_tokens=1, ram=TierSettings(gib=0))
    FleetSettings(**FLEET, max_batch=32, step_tokens=32)
    assert HealthSettings(fall=1, rise=1).enabled


def test_llama_3_2_1b_has_as_many_parameters_as_its_card_says():
    assert LLAMA.parameters == 1_235_814_400
    assert LLAMA.kv_values_per_token == 2 * 16 * 8 * 64


def test_embeddings_of_their_own_count_twice():
    untied = Architecture(**SHAPE, tied_embeddings=False)
    assert untied.parameters - LLAMA.parameters == 128_256 * 2048
