"""A point of the time series has each figure under its own name."""

from sim.config import read
from sim.points import Points
from sim.stage import Stage

BUSY = (
    *("scenario=steady", "executor=roofline", "fleet=reference_five", "hardware=h100", "workload=mix_b"),
    *(
        "workload.model_zipf=1",
        "workload.rate=60",
        "workload.requests=300",
        "fleet.max_batch=2",
        "tiers=five",
    ),
    *("tiers.gpu.gib=2", "tiers.ram.gib=3", "tiers.ssd.gib=4", "quotas.max_concurrent_requests=40"),
)


def test_each_figure_stands_under_its_own_name():
    run = read(BUSY)
    stage = Stage(run.engine, run.draw())
    stage.play(lambda _now_ns, ended, _events: ended >= 100)
    engine, router, cache, quotas = stage.engine, stage.engine.router, stage.engine.cache, stage.engine.quotas
    names, values = Points(engine).take()
    found = dict(zip(names, values, strict=True))
    for name, replica in engine.replicas.items():
        assert found[name, "preemptions"] == replica.num_preemptions
        assert found[name, "running"] == replica.num_running
        assert found[name, "waiting"] == replica.num_waiting
        assert found[name, "tokens_in_flight"] == router.tokens_in_flight(name)
        assert found[name, "is_healthy"] == engine.is_available(name) == 1
    assert any(replica.num_running != replica.num_waiting > 0 for replica in engine.replicas.values())
    assert found["models", "loaded"] == len(engine.fleet.homes) == 5
    assert found["models", "weights_bytes"] == engine.lifecycle.used_bytes
    assert found["cache", "bytes"] == sum(tier.used_bytes for tier in cache.tiers) > 0
    assert found["cache", "capacity_bytes"] == sum(tier.capacity_bytes for tier in cache.tiers)
    assert found["cache", "blocks"] == len(cache)
    for tier in cache.tiers:
        subject = f"tier {tier.name}"
        assert found[subject, "bytes"] == tier.used_bytes
        assert found[subject, "capacity_bytes"] == tier.capacity_bytes
        for holder in cache.holders:
            assert found[subject, f"bytes of {holder.key}"] == holder.held_bytes[tier.rank]
    assert found["quota", "in_service"] == quotas.in_service > 0
    assert found["quota", "waiting"] == quotas.num_waiting > 0
    assert found["quota", "limit"] == 40
    stage.close()
