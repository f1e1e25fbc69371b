"""The profile executor: steps foreseen, chance by number, files within bounds, the sum of its parts."""

import json
from dataclasses import asdict, replace
from hashlib import sha256

import numpy as np
import pytest

import sim
from engine.clock import Signal
from engine.engine import Engine
from engine.errors import BadSettings, LoadFailed
from engine.execution import Batch, Chunk, Machine, Sequence, executors
from engine.execution.profile import ProfileOptions, words
from engine.execution.profile_file import Copy, Profile, read_profile
from engine.execution.terms import TERMS
from engine.request import Request, Stream
from engine.settings import Architecture, ExecutorSettings, ModelSettings
from sim.config import read

SHAPE = Architecture(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=64, vocab=64, context_tokens=4096
)
COSTS = {name: 100.0 + 7.25 * number for number, name in enumerate(TERMS)}
RATIOS = [0.5, 0.9, 1.0, 1.1, 1.7]
ERRORS = dict.fromkeys(
    ("points", "mean_abs", "p50_abs", "p90_abs", "max_abs", "mean_signed", "lowest", "highest"), 0.01
)


def profile(**changes):
    made = Profile(
        model="llama",
        shape=SHAPE,
        weights="float32",
        weights_bytes=4000,
        kv_capacity_tokens=10_000,
        kv_value_bytes=4.0,
        kv_bytes_per_token=256,
        costs_ns=COSTS,
        prefill_ratios=RATIOS,
        decode_ratios=[0.25, *RATIOS],
        errors={"held_out": ERRORS, "fitted": ERRORS},
        copies={"retire": Copy(latency_ns=900.0, ns_per_byte=0.5)},
        load_s={"made": 0.25},
        machine={"id": "feed", "processor": "by hand", "cores": 2},
        measured={"seed": 1, "drift": 0.01},
        points=[[16, 32, 1, 1000.0, 1010.0, 1]],
    )
    return replace(made, **changes)


@pytest.fixture
def path(tmp_path):
    where = tmp_path / "llama.json"
    profile().save(where)
    return where


def make(clock, path, replica="a", seed=1, **options):
    model = ModelSettings(name="llama", architecture=None, stand_in=SHAPE)
    machine = Machine(model, None, clock, 8, seed, replica=replica)
    return executors.make("profile", machine, ProfileOptions(path=str(path), **options))


def sequence(prompt, computed=0, cached=0):
    tokens = np.zeros(prompt, dtype=np.int32)
    return Sequence(1, tokens, 9, Stream(), Signal(), cached_tokens=cached, computed_tokens=computed)


def test_a_profile_comes_back_from_its_file_as_it_went(path):
    assert read_profile(path) == profile()


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_steps_foreseen_are_to_the_nanosecond_those_taken_one_by_one(clock, path, seed, spread):
    chance = np.random.default_rng(seed)
    executor = make(clock, path, spread=spread, overhead_us=1.5)
    decodes = [sequence(int(chance.integers(1, 600))) for _ in range(7)]
    for each in decodes:
        each.computed_tokens = len(each.tokens) + int(chance.integers(0, 2))
    executor.stepped(int(chance.integers(0, 10_000)))
    executor.retire(sequence(64, 64), 0, 4, 16)
    foreseen = executor.decode_ns(Batch(decodes=decodes), 300).tolist()
    for number in range(300):
        assert executor.duration_ns(Batch(decodes=decodes)) == foreseen[number]
        executor.stepped(1)
        for each in decodes:
            each.computed_tokens += 1


def test_the_chance_of_a_step_is_its_number_and_nothing_else(clock, path):
    executor = make(clock, path)
    assert [executor._word(number) for number in range(50, 90)] == words(executor._key, 50, 40).tolist()
    drawn = words(executor._key, 0, 20_000) * np.uint64(5) >> np.uint64(32)
    assert np.bincount(drawn.astype(np.int64)) / 20_000 == pytest.approx([0.2] * 5, abs=0.01)
    others = [make(clock, path, replica="b"), make(clock, path, seed=2)]
    assert len({each._word(7) for each in (executor, *others)}) == 3


def test_a_mean_is_that_of_the_spread(clock, path):
    batch = Batch(decodes=[sequence(20, 30)])
    executor, mean = make(clock, path), make(clock, path, spread=False).duration_ns(batch)
    took = []
    for _ in range(20_000):
        took.append(executor.duration_ns(batch))
        executor.stepped(1)
    assert len(set(took)) == 6
    assert np.mean(took) == pytest.approx(mean, rel=0.01)


def test_what_leaves_is_charged_to_the_next_step_once(clock, path):
    executor, batch = make(clock, path, spread=False), Batch(decodes=[sequence(20, 30)])
    plain = executor.duration_ns(batch)
    executor.retire(sequence(64, 64), 0, 4, 16)
    assert executor.duration_ns(batch) == pytest.approx(plain + 900 + 64 * 256 * 0.5, abs=1)
    executor.stepped(1)
    assert executor.duration_ns(batch) == plain
    silent = make(clock, path, spread=False, copies=False)
    silent.retire(sequence(64, 64), 0, 4, 16)
    assert silent.duration_ns(batch) == plain


def test_one_request_in_an_idle_system_costs_exactly_the_sum_of_its_parts(clock, settings, path):
    model = ModelSettings(name="llama", architecture=None, stand_in=SHAPE)
    fleet = replace(settings.fleet, models=[model], replicas={"a": "llama"}, step_tokens=512)
    executor = ExecutorSettings(name="profile", options={"path": str(path), "spread": False})
    engine = Engine(
        replace(settings, fleet=fleet, executor=executor, health=replace(settings.health, enabled=False)),
        clock,
    )
    engine.start()
    stream = Stream()
    request = Request(1, "llama", np.ones(700, dtype=np.int32), 4, 0)
    clock.env.run(until=clock.spawn(engine.serve(request, stream)))

    def cost(**units):
        return sum(COSTS[name] * count for name, count in units.items())

    prefill = {"step": 1, "prefill_step": 1, "chunk": 1}
    first = cost(
        **prefill, begun=1, prefill_token=512, prefill_pair=512 * 513 // 2, prefill_first=64, prefill_late=256
    )
    pairs = 188 * 512 + 188 * 189 // 2
    last = cost(
        **prefill,
        prefill_first=64,
        prefill_token=188,
        prefill_pair=pairs,
        masked_chunk=1,
        masked_pair=188 * 700,
        chosen=1,
    )
    decode = {"step": 1, "decode_step": 1, "chosen": 1, "decode": 1, "decode_first": 1, "rack": 1}
    decodes = [cost(**decode, context_token=each, rack_token=each) for each in (701, 702, 703)]
    decodes[0] += cost(moved=1, moved_token=1024)
    prefill_mean, decode_mean = sum(RATIOS) / 5, (0.25 + sum(RATIOS)) / 6
    parts = [round(each * prefill_mean) for each in (first, last)] + [
        round(each * decode_mean) for each in decodes
    ]
    assert stream.first_token_ns == sum(parts[:2])
    assert stream.last_token_ns == clock.now_ns() == sum(parts)


def test_leaps_and_single_steps_give_the_same_requests(tmp_path):
    lines = [
        "executor=profile",
        "workload.requests=100",
        "report=tables",
        f"report.folder={tmp_path}",
    ]
    tables = []
    for fast in ("true", "false"):
        run = sim.run("failover", [*lines, f"fleet.fast_forward={fast}"])
        tables.append(sha256(run.requests.to_csv().encode()).hexdigest())
    assert tables[0] == tables[1]


def test_the_default_model_has_a_profile_that_comes_along(clock):
    model = read(["scenario=failover", "executor=profile"]).engine.fleet.models[0]
    executor = executors.make("profile", Machine(model, None, clock, 8, 1), ProfileOptions())
    assert executor.duration_ns(Batch([Chunk(sequence(100), 100)])) > 100_000
    assert 0 < executor.prefill_ns(0, 100) < executor.prefill_ns(0, 200)
    assert executors.find("profile").weights_bytes(model, ProfileOptions()) == 4 * model.stand_in.parameters


def test_a_model_without_a_profile_is_refused(clock, tmp_path):
    model = ModelSettings(name="phi", architecture=None, stand_in=SHAPE)
    for options in (ProfileOptions(), ProfileOptions(path=str(tmp_path))):
        with pytest.raises(
            BadSettings, match=r"no profile of 'phi' comes .* python -m sim\.profile model=phi"
        ):
            executors.make("profile", Machine(model, None, clock, 8, 1), options)
        with pytest.raises(LoadFailed, match="no profile of 'phi' comes"):  # what whoever asks for it is told
            executors.find("profile").weights_bytes(model, options)


def test_a_profile_of_another_architecture_is_refused(clock, path):
    model = ModelSettings(name="llama", architecture=None, stand_in=replace(SHAPE, layers=3))
    wanted = r"llama\.json: model\.architecture\.layers is 2, but must be 3 as 'llama' has it"
    with pytest.raises(BadSettings, match=wanted):
        executors.make("profile", Machine(model, None, clock, 8, 1), ProfileOptions(path=str(path)))


def test_a_model_that_nobody_knows_the_shape_of_is_refused(clock, path):
    model = ModelSettings(name="llama", architecture=None)
    with pytest.raises(BadSettings, match="'llama' is not run by our own decoder"):
        executors.make("profile", Machine(model, None, clock, 8, 1), ProfileOptions(path=str(path)))


def changed(key, value):
    """The file with something else at a key of keys; a value of `...` takes the key away."""

    def change(content):
        *outer, last = key
        part = content
        for name in outer:
            part = part[name]
        if value is ...:
            del part[last]
        else:
            part[last] = value
        return json.dumps(content)

    return change


HOSTILE = {
    "another version": (changed(["version"], 2), r"version is 2, but must be 1"),
    "a version that is a truth": (changed(["version"], True), r"version is True"),
    "another format": (changed(["format"], "x"), r"format is 'x', but must be 'modelyard profile'"),
    "other units": (changed(["units", "costs"], "us"), r"units is .*, but must be"),
    "a key that nobody knows": (changed(["extra"], 1), r"no key extra"),
    "a key inside that nobody knows": (changed(["spread", "other"], [1]), r"no key spread\.other"),
    "a cost below zero": (
        changed(["costs_ns", "step"], -1),
        r"costs_ns\.step is -1, but must be a number from 0",
    ),
    "a cost that is text": (changed(["costs_ns", "step"], "1"), r"costs_ns\.step is '1'"),
    "a cost that is a truth": (changed(["costs_ns", "step"], True), r"costs_ns\.step is True"),
    "a cost of eleven days": (changed(["costs_ns", "step"], 1e16), r"costs_ns\.step is 1e\+16"),
    "a term that nobody knows": (
        changed(["costs_ns", "love"], 1),
        r"costs_ns is 'love', but must be of step",
    ),
    "no costs": (changed(["costs_ns"], {"step": 0}), r"costs_ns is .*, but must be with at least one"),
    "costs missing": (changed(["costs_ns"], ...), r"costs_ns is missing"),
    "an empty pool": (
        changed(["spread", "decode"], []),
        r"spread\.decode is '0 entries', but must be a list of 1",
    ),
    "a huge pool": (changed(["spread", "decode"], [1] * 2000), r"'2000 entries'"),
    "a ratio of zero": (changed(["spread", "decode"], [0, 1]), r"spread\.decode is 0, but must be above 0"),
    "ratios in disorder": (changed(["spread", "prefill"], [2, 1]), r"spread\.prefill is \[2, 1\]"),
    "a shape without layers": (
        changed(["model", "architecture", "layers"], ...),
        r"architecture is incomplete",
    ),
    "a shape of half layers": (
        changed(["model", "architecture", "layers"], 1.5),
        r"architecture\.layers is 1\.5",
    ),
    "a shape that cannot be": (
        changed(["model", "architecture", "heads"], 3),
        r"architecture: architecture\.heads",
    ),
    "a shape with other keys": (changed(["model", "architecture", "x"], 3), r"architecture is 'x'"),
    "no KV": (changed(["memory", "kv_capacity_tokens"], 0), r"memory\.kv_capacity_tokens is 0"),
    "an object as a name": (changed(["model", "name"], {}), r"model\.name is \{\}"),
    "control characters": (changed(["machine", "processor"], "\x1b[2J"), r"machine\.processor is "),
    "a copy that nobody knows": (changed(["copies", "tape"], {}), r"copies is 'tape'"),
    "a copy in arrears": (
        changed(["copies", "retire", "latency_ns"], -1),
        r"copies\.retire\.latency_ns is -1",
    ),
    "errors that are not told": (changed(["errors", "held_out"], ...), r"errors is \['fitted'\]"),
    "points of another kind": (changed(["points", "rows"], [[1]]), r"points\.rows is \[1\]"),
    "a list": (lambda _: "[]", r"a profile is a JSON list, but must be an object"),
    "not JSON": (lambda _: "{", r"no valid JSON"),
    "NaN": (lambda content: json.dumps(content).replace("100.0", "NaN"), r"NaN is not a number"),
    "infinity by digits": (
        lambda content: json.dumps(content).replace("100.0", "1e999"),
        r"costs_ns\.step is inf",
    ),
    "a key twice": (lambda content: '{"format": 1, ' + json.dumps(content)[1:], r"stands there twice"),
    "very deep": (lambda _: "[" * 100_000, r"nested too deeply|no valid JSON"),
    "very large": (lambda _: " " * (1 << 21), r"has 2,097,152 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_good_is_refused_with_what_is_wrong(path, name):
    change, wanted = HOSTILE[name]
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(BadSettings, match=wanted) as refused:
        ProfileOptions(path=str(path))
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert "\x1b" not in str(refused.value)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(BadSettings, match=r"none\.json: there is no such file"):
        ProfileOptions(path=str(tmp_path / "none.json"))
    with pytest.raises(BadSettings, match="must be a plain file"):
        ProfileOptions(path="/dev/null")


@pytest.mark.parametrize(("option", "value"), [("overhead_us", -1), ("kv_capacity_tokens", 0)])
def test_an_option_out_of_bounds_is_named(option, value):
    with pytest.raises(BadSettings, match=f"executor.{option} is {value}, but must be at least"):
        ProfileOptions(**{option: value})


def test_every_field_of_an_architecture_can_be_written_and_read(tmp_path):
    shape = replace(
        SHAPE, rope_factors=[1.0, 2.0, 3.0, 4.0], rope_local_theta=10.0, rotary_dim=8, attention_scale=0.5
    )
    profile(shape=shape).save(tmp_path / "full.json")
    assert asdict(read_profile(tmp_path / "full.json").shape) == asdict(shape)
