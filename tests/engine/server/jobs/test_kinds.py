"""What each kind of job does to a real engine, and what it is told and tells."""

import numpy as np
import pytest

from engine.errors import BadRequest
from engine.request import Request
from engine.server.jobs.kinds import kinds
from engine.settings import (
    GIB,
    AllowanceSettings,
    CacheSettings,
    ExecutorSettings,
    HealthSettings,
    LoadingSettings,
    QuotaSettings,
    TierSettings,
)


def run(yard, kind, seconds=30, **arguments):
    """A job to its end."""
    job = yard.do(yard.jobs.submit(kind, arguments))
    yard.pass_s(seconds)
    return yard.jobs.store.find(job.id)


def test_every_kind_has_a_sentence_and_checks_what_it_is_told(yard):
    for name in kinds.names():
        assert (kinds.find(name).__doc__ or "").partition("\n")[0].endswith(".")
        with pytest.raises(BadRequest, match=f"the arguments of {name} are no good|kind is 'batch'"):
            yard.do(yard.jobs.submit(name, {"wrong": 1}))
    assert yard.jobs.store.page() == []


def test_twin_of_a_batch_cannot_be_made_by_hand(yard):
    batch = yard.batch("a")
    with pytest.raises(BadRequest, match="kind is 'batch', but must be one of"):
        yard.do(yard.jobs.submit("batch", {"batch": batch}))


def test_a_rescan_without_a_folder_fails_at_once(yard):
    job = run(yard, "rescan")
    assert (job.state, job.attempts) == ("failed", 1)
    assert "models.folder is null" in job.error


def test_a_rescan_tells_what_has_changed(yards, settings, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    settings.models = LoadingSettings(folder=str(models))
    yard = yards()
    (models / "broken.gguf").write_bytes(b"GGUF")
    job = run(yard, "rescan")
    assert job.result["added"] == 1
    assert job.result["added_files"] == ["broken.gguf"]
    assert run(yard, "rescan").result["added"] == 0


def test_a_health_sweep_asks_who_is_idle_and_its_word_counts(yard):
    yard.engine.health._settings = HealthSettings(fall=1, rise=1)
    yard.engine.replicas["b"].crash()
    yard.engine.replicas["c"].num_in_hand += 1
    job = run(yard, "health_sweep")
    assert job.result == {
        "replicas": {"a": "answered", "b": "failed", "c": "busy"},
        "failed": ["b"],
    }
    assert str(yard.engine.health.health("b")) == "unhealthy"
    assert (job.done, job.total) == (3, 3)


def test_a_sweep_that_was_cut_off_goes_on_with_the_others(yards):
    first = yards()
    first.engine.replicas["c"].probe = lambda _: first.clock.sleep(10**12)  # hangs
    first.do(first.jobs.submit("health_sweep", {}))
    first.pass_s(10)
    first.cut_off()
    second = yards(at_s=100)
    asked = []
    for name, replica in second.engine.replicas.items():
        probe = replica.probe
        replica.probe = lambda timeout_ns, name=name, probe=probe: asked.append(name) or probe(timeout_ns)
    second.pass_s(10)
    assert asked == ["c"]
    (job,) = second.jobs.store.page(kind="health_sweep")
    assert set(job.result["replicas"]) == set("abc")


def test_rebalancing_demotes_ahead_of_need(yards, settings):
    size = 16 * 2 * 16 * 8 * 64 * 2  # of a block
    settings.cache = CacheSettings(
        ram=TierSettings(gib=20 * size / GIB), ssd=TierSettings(gib=100 * size / GIB)
    )
    yard = yards()
    for number in range(4):
        prompt = np.random.default_rng(number).integers(1000, size=16 * 5, dtype=np.int32)
        yard.do(yard.engine.serve(Request(10**6 + number, "llama", prompt, 1, yard.clock.now_ns())))
    ram = yard.engine.cache.tiers[0]
    assert ram.capacity_bytes - ram.used_bytes < size
    job = run(yard, "cache_rebalance", free=0.3)
    assert job.result["demoted_blocks"] == {"ram": 6}
    assert job.result["free_bytes"]["ram"] >= 6 * size
    yard.engine.cache.check_integrity()


@pytest.mark.slow
@pytest.mark.torch
def test_scrubbing_finds_damage_at_a_modest_pace_and_goes_on_where_it_was(yards, settings, tmp_path):
    size = 4096
    settings.executor = ExecutorSettings(name="torch")
    ssd = TierSettings(gib=1.0, path=str(tmp_path / "ssd"))
    settings.cache = CacheSettings(ram=TierSettings(gib=12 * size / GIB), ssd=ssd, load="always")
    yard = yards()
    for number in range(4):
        prompt = np.random.default_rng(number).integers(64, size=160, dtype=np.int32)
        yard.do(yard.engine.serve(Request(10**6 + number, "llama", prompt, 2, yard.clock.now_ns())))
        yard.pass_s(1)
    begun_ns = yard.clock.now_ns()
    job = run(yard, "cache_scrub", bytes_per_s=size)
    whole = job.result["ssd"]
    assert whole["blocks"] >= 20
    assert (whole["bytes"], whole["damaged"]) == (whole["blocks"] * size, 0)
    assert job.finished_ns - begun_ns >= whole["blocks"] * 10**9
    for path in (tmp_path / "ssd").rglob("*.kv"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    job = run(yard, "cache_scrub")
    assert 0 < job.result["ssd"]["damaged"] <= whole["blocks"]
    yard.engine.cache.check_integrity()
    with pytest.raises(BadRequest, match="quick"):
        raise BadRequest(run(yard, "cache_scrub", tiers=["quick"]).error)


def test_scrubbing_where_nothing_is_stored_has_nothing_to_do(yard):
    assert run(yard, "cache_scrub").result == {}


def test_warming_up_loads_models_and_computes_prompts_once(yards, settings):
    settings.models = LoadingSettings(preload=False)
    yard = yards(warm_up=["llama"])
    assert not yard.engine.replicas
    yard.pass_s(60)
    assert set(yard.engine.replicas) == set("abc")
    messages = [{"role": "user", "content": "a long system prompt of many letters " * 5}]
    job = run(yard, "warm_up", tenant="acme", prompts=[{"model": "llama", "messages": messages}])
    assert (job.state, job.result) == ("done", {"done": ["prompt 0"]})
    assert yard.asked[0][1].tenant == "acme"
    batch = yard.batch(messages[0]["content"])
    yard.pass_s(10)
    assert yard.find(batch).used.cached_tokens > 100


def test_what_could_not_be_warmed_up_is_tried_again_alone(yard):
    job = run(yard, "warm_up", seconds=4, models=["llama", "nothing"])
    assert (job.state, job.checkpoint) == ("queued", ["llama"])
    assert "1 of 2 could not be warmed up; nothing: " in job.error
    yard.pass_s(60)
    assert yard.jobs.store.find(job.id).state == "failed"


def test_quotas_are_reset_for_whom_it_is_said(yards, settings, tmp_path):
    settings.quotas = QuotaSettings(
        limits=[AllowanceSettings(tenant="*", hourly_requests=3)], state_file=str(tmp_path / "spent.sqlite")
    )
    yard = yards()
    batch = yard.batch("a", "b", "c", "d", "e")
    yard.pass_s(5)
    assert yard.find(batch).completed == 3
    assert run(yard, "quota_reset", seconds=1, tenant="acme").result == {"books": 1}
    assert run(yard, "quota_reset", seconds=1, model="nothing").state == "failed"
    assert run(yard, "quota_save", seconds=1).result == {"file": str(tmp_path / "spent.sqlite")}
    book = yard.engine.quotas.ledger("llama@1.0.0", "acme").books[-1]
    assert book.headroom(yard.clock.now_ns()) == 1.0
    yard.engine.quotas.check_integrity()


def test_the_registry_s_counts_are_put_on_disk(yards, settings, tmp_path):
    settings.models = LoadingSettings(registry_file=str(tmp_path / "registry.sqlite"), flush_every_s=1e6)
    yard = yards()
    yard.batch("a", "b")
    yard.pass_s(5)
    assert run(yard, "registry_flush").state == "done"
    assert yard.engine.registry._store.load()["llama@1.0.0"].use_count == 2


def test_tidying_forgets_what_is_old_and_keeps_what_is_read(yards):
    yard = yards(keep_s=100.0)
    old = yard.batch("a")
    yard.pass_s(5)
    output = yard.find(old).output_file_id
    assert yard.jobs.files.find(output, "acme").expires_s == pytest.approx(yard.now_s() + 100, abs=6)
    yard.pass_s(200)
    job = run(yard, "tidy")
    assert job.result == {"files": 1, "batches": 1, "jobs": 1}
    assert not yard.jobs.files.path(output).exists()
    assert yard.jobs.batches.page("acme") == ([], False)


def test_what_the_settings_want_again_and_again_is_scheduled(yards):
    yard = yards(health_every_s=10.0, rebalance_every_s=20.0)
    yard.pass_s(41)
    ended = yard.jobs.runner.runs
    assert ended == {("health_sweep", "done"): 4, ("cache_rebalance", "done"): 2}
    assert [each.name for each in yard.jobs.store.schedules()] == [
        "cache_rebalance",
        "health_sweep",
        "tidy",
    ]
