"""The same requests through the server on the wall clock and through the simulation: the same decisions, one by one.

A request comes when the one before it, and what the cache moves on its account, is over: on the wall clock by waiting
for that, in the simulation because arrivals are far apart. What depends on time as such is out of the way. Windows of
quotas slide, so that nothing comes back within the hour; bursts fill by less than a request meanwhile; nobody probes,
no replica warms up, no session and no mode runs out of time. Strategies that choose by latencies that were measured
(`latency_based`, `cost`) may well choose otherwise on another machine, and are not held against themselves here.
"""

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from engine.cache import carrier
from engine.formats import open_checkpoint
from engine.registry import Model
from engine.settings import (
    THIS_MACHINE,
    AllowanceSettings,
    Architecture,
    ArmSettings,
    CacheSettings,
    EngineSettings,
    ExecutorSettings,
    ExperimentSettings,
    FleetSettings,
    HardwareSettings,
    HealthSettings,
    ModelSettings,
    ModeSettings,
    QuotaSettings,
    RoutingSettings,
    TierSettings,
)
from engine.stand_ins import make_stand_ins
from engine.telemetry import FellBack, ModeChanged, PrefixFound, SoftLimitPassed
from sim.metrics import TIERS
from sim.recorder import Recorder
from sim.stage import Stage
from sim.traffic import Trace

REQUESTS = 500
APART_NS = 500_000_000
NAMES = ("llama", "mistral", "phi", "auto")
TENANTS = ("small", "middle", "large", "free")
REQUEST_COLUMNS = [
    "tenant", "session", "model_requested", "model", "replica", "arm", "priority", "attempts", "prompt_tokens",
    "output_tokens", *(f"cached_tokens_{tier}" for tier in TIERS), "outcome", "reason",
]  # fmt: skip
DECISION_COLUMNS = ["request_id", "attempt", "strategy", "chosen", "candidates", "loads", "pool", "reason"]

SHAPE = {"layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 64, "vocab": 50_000}
A_BLOCK_IN_10_US = HardwareSettings(
    name="a block of 16 tokens in about 10 us",
    flops=2e13,
    memory_bytes=24e9,
    memory_bytes_per_s=1e15,
    link_bytes_per_s=1e15,
    source="none: so quick that five hundred requests take seconds, and slow enough to be worth a cache",
)
BLOCK_GIB = 2048 / 2**30


class Facts:
    """A sink: what is told besides ends and choices, without the times."""

    kinds = frozenset({PrefixFound, ModeChanged, SoftLimitPassed, FellBack})

    def __init__(self):
        self.told = []

    def emit(self, event):
        fact = event.as_dict()
        self.told.append({name: value for name, value in fact.items() if not name.endswith("_ns")})


@dataclass
class Side:
    """What one side has decided, in the order of the requests."""

    recorder: Recorder = field(default_factory=Recorder)
    facts: Facts = field(default_factory=Facts)

    @property
    def requests(self):
        table = self.recorder.requests().set_index("request_id").sort_index()
        return table[REQUEST_COLUMNS].astype(object).where(table[REQUEST_COLUMNS].notna(), None)

    @property
    def decisions(self):
        return self.recorder.decisions()[DECISION_COLUMNS]


def first_difference(ours, theirs, what):
    """The first of several dictionaries that differs, in words; None where there is none."""
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        unlike = [name for name in one | other if one.get(name) != other.get(name)]
        if unlike:
            told = [f"  {name}: {one.get(name)!r} live, {other.get(name)!r} simulated" for name in unlike]
            alike = ", ".join(f"{name} {one[name]}" for name in one if name not in unlike)
            return "\n".join([f"{what} {number} differs ({alike}):", *told])
    if len(ours) != len(theirs):
        return f"{len(ours)} {what}s live, {len(theirs)} simulated"
    return None


def rows(table):
    return table.to_dict("records")


def equal(live, simulated):
    """Fail with the first difference of requests, choices, and everything else that was told."""
    for difference in (
        first_difference(rows(live.requests), rows(simulated.requests), "request"),
        first_difference(rows(live.decisions), rows(simulated.decisions), "choice"),
        first_difference(live.facts.told, simulated.facts.told, "fact"),
    ):
        if difference is not None:
            pytest.fail(difference, pytrace=False)


def simulated(settings, trace):
    side = Side()
    stage = Stage(settings, trace, sample_every_s=3_600.0)
    stage.engine.telemetry.add(side.facts)
    try:
        stage.play()
        side.recorder = stage.recorder
    finally:
        stage.close()
    return side


def live(serving, settings, trace, **sent):
    """All of it over HTTP, and what clients were told is what was decided."""
    side = Side()
    with serving(settings, sinks=(side.recorder, side.facts)) as running:
        http = running.http()
        for number in range(len(trace)):
            answered = http.post("/v1/completions", **asked(trace.request(number), sent))
            running.call(quiet, running.server.engine)
            check_answer(answered, side)
        running.call(running.server.engine.quotas.check_integrity)
        running.call(running.server.engine.cache.check_integrity)
    return side


def asked(request, sent):
    """A request as a client sends it: its prompt in tokens, so that both sides read the same."""
    headers = {"x-priority": str(request.priority)}
    if request.session is not None:
        headers["x-session-id"] = request.session
    prompt, most = np.asarray(request.prompt_tokens).tolist(), request.max_output_tokens
    body = {"model": request.model, "prompt": prompt, "max_tokens": most, "user": request.tenant, **sent}
    return {"json": body, "headers": headers}


async def quiet(engine):
    """Wait until nothing is served or moved any more."""
    while engine.quotas.in_service or any(
        way.busy or way.queued_bytes or way.reading_bytes for way in engine.carrier.ways
    ):
        await engine.clock.sleep(200_000)


def check_answer(answered, side):
    """The status, replica and cached tokens of an answer are those of its end in the table."""
    end = {name: column.values()[-1] for name, column in side.recorder.columns.items()}
    completed = end["outcome"] == "completed"
    assert (answered.status_code == 200) == completed, (answered.status_code, answered.text, end)
    if not completed:
        statuses = {"over_quota": 429, "context_too_long": 400}
        assert answered.status_code == statuses[end["reason"]], (answered.text, end)
        return
    usage = answered.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == sum(
        max(0, end[f"cached_tokens_{tier}"]) for tier in TIERS
    )
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
        end["prompt_tokens"],
        end["output_tokens"],
    )
    assert answered.headers["x-modelyard-replica"] == end["replica"]
    assert answered.headers["x-modelyard-model"] == end["model"]


def traffic(count=REQUESTS, names=NAMES, vocab=50_000, most=500, seed=7, *, too_long=3_900):
    """Conversations of a few turns, many of which begin with one of three templates; some prompts fit nowhere."""
    draw = np.random.default_rng(seed)
    sessions = draw.integers(0, count // 3, count).astype(np.int32)
    model_of = draw.integers(0, len(names), count // 3 + 1).astype(np.int32)[sessions]
    tenant_of = draw.choice(len(TENANTS), count // 3 + 1, p=[0.2, 0.3, 0.3, 0.2]).astype(np.int32)[sessions]
    prefix_of = draw.integers(-1, 3, count // 3 + 1).astype(np.int32)[sessions]
    lengths = dict(enumerate(draw.integers(40, 200, count // 3 + 1).tolist()))
    prompts = np.zeros(count, np.int32)
    outputs = draw.integers(1, 12, count).astype(np.int32)
    for number, session in enumerate(sessions.tolist()):
        prompts[number] = min(lengths[session], most)
        lengths[session] += int(outputs[number]) + int(draw.integers(4, 60))
    if too_long:
        where = draw.choice(count, count // 30, replace=False)
        prompts[where], outputs[where] = too_long, 300
    return Trace(
        arrival_ns=np.arange(count, dtype=np.int64) * APART_NS,
        prompt_tokens=prompts,
        output_tokens=outputs,
        prefix=prefix_of,
        prefixes=[draw.integers(0, vocab, size, dtype=np.int32) for size in (64, 96, 160)],
        model=names[0],
        models=tuple(names),
        model_of=model_of,
        tenants=TENANTS,
        tenant_of=tenant_of,
        session=sessions,
        priority_of=draw.integers(0, 3, count).astype(np.int32),
        vocab=vocab,
        seed=seed,
        source="made for this test",
    )


def five_tiers(load="cheaper"):
    """Tiers of a few prompts each. Where `cheaper` is asked: ssd is, cloud never, network for long prefixes."""

    def tier(blocks, gib_per_s=64.0, latency_us=0.0):
        return TierSettings(gib=blocks * BLOCK_GIB, gib_per_s=gib_per_s, latency_s=latency_us / 1e6)

    return CacheSettings(
        gpu=tier(60),
        ram=tier(80),
        ssd=tier(160, 1.0),
        network=tier(240, 0.3, 30.0),
        cloud=tier(600, 0.1, 200.0),
        load=load,
    )


def quotas():
    """Windows that slide, bursts that do not fill again, and modes that come with use and stay."""
    return QuotaSettings(
        limits=[
            AllowanceSettings(tenant="*", hourly_tokens=40_000, sliding=True),
            AllowanceSettings(tenant="small", hourly_tokens=9_000, sliding=True),
            AllowanceSettings(tenant="free", requests_per_s=1e-6, burst_requests=50),
            AllowanceSettings(model="phi", hourly_requests=60, sliding=True),
            AllowanceSettings(model="llama", tenant="large", daily_tokens=30_000, sliding=True),
        ],
        modes={
            "warning": ModeSettings(at=0.5, max_output_tokens=4),
            "emergency": ModeSettings(at=0.8, min_priority=1),
        },
        quiet_s=0.0,
        max_wait_s=0.0,
        cached_token_cost=0.5,
    )


def modelled(strategy="cache_aware", **changed):
    shapes = {
        name: Architecture(**SHAPE, hidden=64, context_tokens=context)
        for name, context in (("llama", 4096), ("mistral", 4096), ("phi", 2048))
    }
    return EngineSettings(
        fleet=FleetSettings(
            models=[ModelSettings(name=name, architecture=shape) for name, shape in shapes.items()],
            replicas={"a": "llama", "b": "llama", "c": "mistral", "d": "mistral", "e": "phi"},
            letters=True,
            step_tokens=256,
        ),
        executor=ExecutorSettings(name="roofline", options={"overhead_us": 1.0}),
        hardware=A_BLOCK_IN_10_US,
        routing=routing(strategy),
        health=HealthSettings(probes=False),
        quotas=changed.pop("quotas", None) or quotas(),
        cache=changed.pop("cache", None) or five_tiers(),
        **changed,
    )


def routing(strategy, **changed):
    return RoutingSettings(
        strategy=strategy,
        decision_log=1.0,
        slow_start_s=0.0,
        session_timeout_s=3_600.0,
        weights={"a": 3.0, "b": 1.0},
        fallbacks={"phi": ["mistral"]},
        experiments=[
            ExperimentSettings(
                name="half",
                on="mistral",
                arms=[
                    ArmSettings(name="old", target="mistral", weight=0.5),
                    ArmSettings(name="new", target="llama", weight=0.5),
                ],
            )
        ],
        **changed,
    )


@pytest.fixture
def patient(monkeypatch):
    """Nobody gives up on a block that comes, however long the machine is busy with something else."""
    monkeypatch.setattr(carrier, "MIN_PATIENCE_NS", carrier.LONG_PATIENCE_NS)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_five_hundred_requests_are_decided_alike(serving):
    trace = traffic()
    there = live(serving, modelled(), trace)
    equal(there, simulated(modelled(), trace))
    told_of_everything(there.requests, there.facts.told)


def told_of_everything(requests, told):
    """The case is one where something is decided: of each kind of decision there is a fair number."""
    reasons = requests["reason"].value_counts()
    assert reasons["over_quota"] > 20
    assert reasons["context_too_long"] > 4
    for tier in ("gpu", "ram", "ssd", "network"):
        assert (requests[f"cached_tokens_{tier}"].astype("float") > 0).sum() > 5, tier
    assert (requests["model_requested"] != requests["model"].str.partition("@")[0]).sum() > 100
    assert requests["arm"].value_counts().min() > 20
    assert requests["replica"].value_counts().min() > 20
    assert {fact["event"] for fact in told} == {each.kind for each in Facts.kinds}
    assert sum(fact.get("recomputed_tokens", 0) > 0 for fact in told) > 5
    assert {fact["after"] for fact in told if fact["event"] == "mode_changed"} == {"warning", "emergency"}


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("strategy", "changed"),
    [
        ("round_robin", {}),
        ("random", {}),
        ("weighted_random", {}),
        ("power_of_two", {}),
        ("least_loaded", {"cache": five_tiers(load="always")}),
        ("quota_aware", {"cache": five_tiers(load="never")}),
        ("affinity", {}),
        ("0.6 cache_aware + 0.4 least_loaded", {}),
        ("0.5 quota_aware + 0.5 cache_aware", {"quotas": QuotaSettings(enabled=False)}),
    ],
)
def test_other_strategies_decide_alike(serving, strategy, changed):
    trace, settings = traffic(200, seed=11), modelled(strategy, **changed)
    without_sessions = replace(settings, routing=routing(strategy, sessions=False))
    equal(live(serving, without_sessions, trace), simulated(without_sessions, trace))


def test_what_differs_is_told_with_both_sides():
    trace = traffic(40)
    one = simulated(modelled("round_robin"), trace)
    with pytest.raises(pytest.fail.Exception) as told:
        equal(one, simulated(modelled("random"), trace))
    assert re.match(
        r"request \d+ differs \(tenant .*\):\n  replica: '\w' live, '\w' simulated", str(told.value)
    )
    equal(one, simulated(modelled("round_robin"), trace))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Two small models on disk, which torch runs."""
    folder = tmp_path_factory.mktemp("models")
    paths = make_stand_ins(folder, ["Mistral-7B-Instruct-v0.3", "phi-4"], formats=("safetensors",))
    return [Model.from_checkpoint(open_checkpoint(path)).settings for path in paths]


def computed(models, folder, strategy="cache_aware"):
    """Real passes, and a tier of files behind the one in memory."""
    first, second = (model.name for model in models)
    limits = [
        AllowanceSettings(tenant="*", hourly_tokens=3_000, sliding=True),
        AllowanceSettings(tenant="small", hourly_requests=4, sliding=True),
    ]
    return EngineSettings(
        fleet=FleetSettings(models=models, replicas={"a": first, "b": first, "c": second}),
        executor=ExecutorSettings(name="torch"),
        hardware=THIS_MACHINE,
        routing=RoutingSettings(
            strategy=strategy, decision_log=1.0, slow_start_s=0.0, session_timeout_s=3_600.0
        ),
        health=HealthSettings(probes=False),
        quotas=QuotaSettings(limits=limits, max_wait_s=0.0),
        cache=CacheSettings(
            ram=TierSettings(gib=1e-3), ssd=TierSettings(gib=0.05, path=str(folder)), load="always"
        ),
    )


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.usefixtures("patient")
def test_real_passes_are_decided_alike_live_and_on_the_virtual_clock(serving, stand_ins, tmp_path):
    """Hardware in the loop: the simulation runs the same passes, and the time that they took passes on its clock."""
    names = [*(model.name for model in stand_ins), "auto"]
    trace = traffic(60, names, vocab=600, most=300, too_long=0)
    trace.arrival_ns *= 100
    there = live(serving, computed(stand_ins, tmp_path / "live"), trace, temperature=0, ignore_eos=True)
    equal(there, simulated(computed(stand_ins, tmp_path / "simulated"), trace))
    requests = there.requests
    assert (requests["reason"] == "over_quota").sum() > 3
    for tier in ("ram", "ssd"):
        assert (requests[f"cached_tokens_{tier}"].astype(float) > 0).sum() > 3, tier
    assert set(requests["replica"].dropna()) == {"a", "b", "c"}
