"""The small fleets and their traffic that are played: made by hand, so that no default moves a baseline."""

from engine.settings import (
    Architecture,
    CacheSettings,
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HardwareSettings,
    ModelSettings,
    QuotaSettings,
    RoutingSettings,
    TierSettings,
)
from sim.traffic import Trace, draw
from sim.traffic.mixes import MixWorkload
from sim.traffic.synthetic import SyntheticWorkload

MODEL = "llama-3.2-1b"
MODELS = tuple(f"model-{letter}" for letter in "abcde")
SEED = 7
A100 = HardwareSettings(
    name="A100",
    flops=312e12,
    memory_bytes=80e9,
    memory_bytes_per_s=2_039e9,
    link_bytes_per_s=32e9,
    source="NVIDIA A100 Tensor Core GPU datasheet",
)
ROOFLINE = {"compute_efficiency": 0.5, "memory_efficiency": 0.8, "overhead_us": 200, "kv_share": 0.9}


def architecture(layers: int) -> Architecture:
    """Llama 3.2 1B has 16 layers; more of them make a larger model."""
    return Architecture(
        layers=layers,
        hidden=2_048,
        heads=32,
        kv_heads=8,
        head_dim=64,
        ffn=8_192,
        vocab=128_256,
        context_tokens=131_072,
    )


def three_replicas() -> EngineSettings:
    """Three replicas of a model of 1B on an A100, as the roofline has it, one tier and one quota."""
    return EngineSettings(
        fleet=FleetSettings(
            models=[ModelSettings(name=MODEL, architecture=architecture(16))],
            replicas=dict.fromkeys("abc", MODEL),
        ),
        executor=ExecutorSettings(name="roofline", options=dict(ROOFLINE)),
        hardware=A100,
        routing=RoutingSettings(strategy="least_loaded", decision_log=1.0),
        quotas=QuotaSettings(max_concurrent_requests=256),
        cache=CacheSettings(ram=TierSettings(gib=0.25)),
        seed=SEED,
    )


def five_models() -> EngineSettings:
    """Five models of different size behind one cache of three tiers that are soon full, routed by prefix."""
    models = [
        ModelSettings(name=name, architecture=architecture(8 * rank)) for rank, name in enumerate(MODELS, 1)
    ]
    return EngineSettings(
        fleet=FleetSettings(models=models, replicas={name: name for name in MODELS}),
        executor=ExecutorSettings(name="roofline", options=dict(ROOFLINE)),
        hardware=A100,
        routing=RoutingSettings(strategy="cache_aware", decision_log=1.0),
        quotas=QuotaSettings(max_concurrent_requests=64),
        cache=CacheSettings(
            gpu=TierSettings(gib=0.5, gib_per_s=25.0, concurrency=2),
            ram=TierSettings(gib=1.0, gib_per_s=50.0, concurrency=4),
            ssd=TierSettings(gib=2.0, gib_per_s=1.2, latency_s=1e-4, concurrency=4, form="fp16"),
            allocation="dynamic",
        ),
        seed=SEED,
    )


def prompts(requests: int) -> Trace:
    """Prompts that share one of eight prefixes, at a rate that keeps some ten in service."""
    workload = SyntheticWorkload(
        requests=requests,
        rate=20.0,
        prompt_median_tokens=128.0,
        prompt_sigma=0.6,
        prompt_min_tokens=16,
        prompt_max_tokens=512,
        output_median_tokens=64.0,
        output_sigma=0.6,
        output_min_tokens=4,
        output_max_tokens=256,
        prefixes=8,
    )
    return workload.draw(SEED, MODEL)


def conversations(requests: int) -> Trace:
    """Conversations with five models by Zipf's law, of fifty tenants, who wait for the answer before they go on."""
    workload = MixWorkload(requests=requests, model_zipf=1.0, tenants=True)
    return draw(workload, SEED, list(MODELS))
