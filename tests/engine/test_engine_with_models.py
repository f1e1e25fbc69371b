"""The whole engine with models from disk: text in and out, sampling, models that come, change and go."""

import json
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import simpy
import torch

from engine.engine import Engine
from engine.errors import BadRequest, LoadFailed, NotFound
from engine.registry import Health
from engine.request import Request, Sampling, Stream
from engine.settings import (
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HardwareSettings,
    LoadingSettings,
    QuotaSettings,
)
from engine.stand_ins import make_stand_ins
from engine.telemetry import Meter
from sim.world import SimClock
from tests.hostile_files import write_hostile

pytestmark = pytest.mark.torch

HARDWARE = HardwareSettings(
    name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
)
LLAMA, PHI, GEMMA = "llama-3.3-70b-instruct", "phi-4", "gemma-2-9b-it"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_stand_ins(folder)
    return folder


class World:
    """An engine over a models folder under a virtual clock; every model is loaded when it is asked for."""

    def __init__(self, folder, *, kv_capacity_tokens=100_000, **models):
        self.clock, self.events, self.meter = SimClock(), [], Meter()
        self.settings = EngineSettings(
            fleet=FleetSettings(models=[], replicas={}),
            executor=ExecutorSettings(
                name="torch", options={"kv_capacity_tokens": kv_capacity_tokens, "keep_converted": False}
            ),
            hardware=HARDWARE,
            quotas=QuotaSettings(enabled=False),
            models=LoadingSettings(folder=str(folder), **models),
        )
        self.engine = Engine(self.settings, self.clock, [self, self.meter])
        self.engine.start()
        self.ended, self.asked = {}, 0

    def emit(self, event):
        self.events.append(event)

    def ask(self, model, prompt="Hello there, my good friend", new=24, sampling=None, tokens=None):
        number, self.asked = self.asked, self.asked + 1
        stream = Stream()
        return (
            number,
            stream,
            self.clock.spawn(self._ask(number, stream, model, prompt, new, sampling, tokens)),
        )

    async def _ask(self, number, stream, model, prompt, new, sampling, tokens):
        try:
            if tokens is None:
                key = self.engine.registry.find(model).key
                with await self.engine.lifecycle.hold(key):
                    tokens = self.engine.fleet.homes[key].text.tokenizer.encode(prompt)
            request = Request(
                number, model, np.asarray(tokens, np.int32), new, self.clock.now_ns(), sampling=sampling
            )
            self.ended[number] = await self.engine.serve(request, stream)
        except (BadRequest, LoadFailed, NotFound) as error:
            self.ended[number] = error
        except simpy.Interrupt:
            self.ended[number] = "left"

    def run(self, seconds=60):
        self.clock.env.run(until=self.clock.now_ns() + round(seconds * 1e9))

    def answer(self, model, **how):
        number, stream, _ = self.ask(model, **how)
        self.run()
        return self.ended[number], stream

    def states(self):
        return {model.key: str(model.state) for model in self.engine.registry.all()}


@pytest.fixture
def new_world():
    worlds = []

    def make(*arguments, **options):
        worlds.append(World(*arguments, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.clock.close()


@pytest.fixture
def world(made, new_world):
    return new_world(made)


def test_every_model_of_the_folder_serves_when_it_is_asked_for(world):
    for model in world.engine.registry.all():
        done, stream = world.answer(model.name, sampling=Sampling(ignore_eos=True))
        assert (done.model, done.replica, done.finish_reason) == (model.key, model.key, "length")
        assert len(done.tokens) == 24
        home = world.engine.fleet.homes[model.key]
        assert "".join(stream.text) == home.text.tokenizer.decode(done.tokens)
    assert set(world.states().values()) == {"healthy"}


def test_a_stop_string_ends_the_answer_wherever_tokens_are_cut(world):
    done, stream = world.answer(PHI, sampling=Sampling(ignore_eos=True))
    text = "".join(stream.text)
    stop = text[6:11]
    again, shorter = world.answer(PHI, sampling=Sampling(ignore_eos=True, stop=(stop,)))
    assert "".join(shorter.text) == text[: text.index(stop)]
    assert again.finish_reason == "stop"
    assert again.tokens == done.tokens[: len(again.tokens)]
    assert len(again.tokens) < len(done.tokens)


def test_a_stop_token_and_the_end_of_text_end_the_answer(world):
    done, _ = world.answer(PHI, sampling=Sampling(ignore_eos=True))
    third = done.tokens[5]
    place = done.tokens.index(third)
    again, _ = world.answer(PHI, sampling=Sampling(ignore_eos=True, stop_tokens=(third,)))
    assert (again.tokens, again.finish_reason) == (done.tokens[: place + 1], "stop")
    home = world.engine.fleet.homes["phi-4@1.0.0"]
    home.text.tokenizer.eos_ids = (third,)
    again, _ = world.answer(PHI, sampling=Sampling())
    assert (again.tokens, again.finish_reason) == (done.tokens[: place + 1], "stop")


def test_log_probabilities_come_with_every_token(world):
    done, stream = world.answer(LLAMA, sampling=Sampling(ignore_eos=True, logprobs=3))
    assert len(stream.logprobs) == len(done.tokens)
    for token, logprobs in zip(done.tokens, stream.logprobs, strict=True):
        assert logprobs.top[0] == (token, logprobs.chosen)
        values = [value for _, value in logprobs.top]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3


SAMPLED = Sampling(
    temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=7, ignore_eos=True
)


def test_a_seed_gives_one_answer_alone_in_a_batch_and_after_a_preemption(made, new_world):
    alone, _ = new_world(made).answer(PHI, new=60, sampling=SAMPLED)
    other, _ = new_world(made).answer(
        PHI, new=60, sampling=Sampling(temperature=0.9, seed=8, ignore_eos=True)
    )
    assert alone.tokens != other.tokens
    busy = new_world(made, kv_capacity_tokens=200)
    for number in range(4):
        busy.ask(PHI, prompt=f"{number} other people want this and that", new=60, sampling=Sampling())
    last, _, _ = busy.ask(PHI, new=60, sampling=SAMPLED)
    busy.run()
    assert any(event.kind == "request_preempted" and event.request_id == last for event in busy.events)
    assert 'vllm:num_preemptions_total{replica="phi-4@1.0.0"}' in busy.meter.exposition()
    assert busy.ended[last].tokens == alone.tokens


def test_a_caller_who_leaves_frees_his_kv_within_a_step(world):
    world.answer(GEMMA, new=1)
    replica = world.engine.replicas["gemma-2-9b-it@1.0.0"]
    number, stream, process = world.ask(GEMMA, new=500, sampling=Sampling(ignore_eos=True))
    while len(stream.tokens) < 10:
        world.clock.env.step()
    steps = replica.num_steps
    process.interrupt()
    while replica.num_running:
        world.clock.env.step()
    assert world.ended[number] == "left"
    assert replica.num_steps <= steps + 1
    assert replica._loop._executor.held_bytes == replica._scheduler.kv_used_tokens == replica.num_running == 0
    assert not world.engine.cache.pins


def test_a_stop_string_needs_a_tokenizer(settings, clock):
    engine = Engine(settings, clock)
    engine.start()
    errors = []

    async def ask():
        request = Request(0, "llama", np.zeros(4, np.int32), 4, 0, sampling=Sampling(stop=("x",)))
        try:
            await engine.serve(request)
        except BadRequest as error:
            errors.append(str(error))

    clock.env.run(until=clock.spawn(ask()))
    assert errors == ["stop is ('x',), but 'llama@1.0.0' has no tokenizer to find it with"]


def test_files_that_are_no_good_are_known_with_their_reason_and_harm_nobody(made, tmp_path, new_world):
    shutil.copytree(made, tmp_path / "models")
    write_hostile(tmp_path / "models")
    world = new_world(tmp_path / "models")
    bad = [model for model in world.engine.registry.all() if model.settings is None]
    assert len(bad) > 50
    for model in bad[::10]:
        error, _ = world.answer(model.key, tokens=[1, 2, 3])
        assert isinstance(error, LoadFailed)
        assert model.reason in str(error)
    done, _ = world.answer(PHI)
    assert done.model == "phi-4@1.0.0"


def test_weights_that_are_cut_off_after_the_scan_fail_for_each_who_waits(made, tmp_path, new_world):
    shutil.copytree(made, tmp_path / "models")
    world = new_world(tmp_path / "models")
    (path,) = (tmp_path / "models").glob("phi-4*")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    asked = [world.ask(PHI, tokens=[1, 2, 3])[0] for _ in range(5)]
    world.run()
    assert all(isinstance(world.ended[number], LoadFailed) for number in asked)
    assert all("phi-4-Q8_0.gguf" in str(world.ended[number]) for number in asked)
    assert world.states()["phi-4@1.0.0"] == "unhealthy"
    done, _ = world.answer(GEMMA)
    assert done.model == "gemma-2-9b-it@1.0.0"


@pytest.mark.slow
def test_a_budget_lets_models_come_and_go(made, new_world):
    sizes = new_world(made)
    for model in sizes.engine.registry.all():
        sizes.answer(model.name, new=2)
    largest = max(each.num_bytes for each in sizes.engine.lifecycle._residences.values())
    world = new_world(made, weights_gib=1.5 * largest / 2**30)
    for name in (LLAMA, PHI, GEMMA, LLAMA, PHI):
        done, _ = world.answer(name, new=2)
        assert done.model.startswith(name)
        world.engine.lifecycle.check_integrity()
    assert "unloaded" in world.states().values()
    assert len(world.engine.replicas) == list(world.states().values()).count("healthy")


def test_a_prefix_outlives_the_unloading_of_its_model_but_not_a_change_of_its_weights(
    made, tmp_path, new_world
):
    shutil.copytree(made, tmp_path / "models")
    world, tokens = new_world(tmp_path / "models"), list(range(64))
    first, _ = world.answer(PHI, tokens=tokens)
    world.clock.spawn(world.engine.lifecycle.unload("phi-4@1.0.0"))
    world.run(1)
    assert world.states()["phi-4@1.0.0"] == "unloaded"
    again, _ = world.answer(PHI, tokens=tokens)
    assert (again.usage.cached_tokens, again.tokens) == (48, first.tokens)
    (path,) = (tmp_path / "models").glob("phi-4*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    world.clock.spawn(world.engine.rescan())
    world.run(1)
    other, _ = world.answer(PHI, tokens=tokens)
    assert other.usage.cached_tokens == 0


def test_a_rescan_finds_models_that_came_and_lets_those_go_that_are_gone(made, tmp_path, new_world):
    folder = tmp_path / "models"
    shutil.copytree(made, folder)
    (phi,) = folder.glob("phi-4*")
    moved = tmp_path / phi.name
    phi.rename(moved)
    world = new_world(folder, rescan_every_s=10)
    error, _ = world.answer(PHI, tokens=[1])
    assert isinstance(error, NotFound)
    moved.rename(phi)
    world.run(15)
    done, _ = world.answer(PHI, tokens=[1], new=3)
    assert done.model == "phi-4@1.0.0"
    phi.unlink()
    world.run(15)
    assert "phi-4@1.0.0" not in world.engine.registry
    assert "phi-4@1.0.0" not in world.engine.replicas
    assert world.engine.lifecycle.state("phi-4@1.0.0") is Health.UNLOADED
    error, _ = world.answer(PHI, tokens=[1])
    assert isinstance(error, NotFound)


def test_use_counts_and_pins_outlive_the_process(made, tmp_path, new_world):
    file = str(tmp_path / "registry.sqlite")
    world = new_world(made, registry_file=file, flush_every_s=5)
    for _ in range(3):
        world.answer(PHI, tokens=[1], new=2)
    world.engine.pin(PHI)
    world.run(10)
    listed = json.loads(new_world(made, registry_file=file).engine.registry.as_json())["data"]
    phi = next(each for each in listed if each["id"] == "phi-4")
    assert (phi["use_count"], phi["pinned"]) == (3, True)
    assert phi["last_used"] is not None


def use_count_of(file):
    with closing(sqlite3.connect(file)) as database:
        return database.execute("SELECT sum(use_count) FROM models").fetchone()[0]


def test_use_counts_that_the_disk_has_refused_for_a_while_are_written_later(made, tmp_path, new_world):
    file = tmp_path / "registry.sqlite"
    world = new_world(made, registry_file=str(file), flush_every_s=50)
    with closing(sqlite3.connect(file, isolation_level=None)) as another:
        another.execute("BEGIN IMMEDIATE")  # as who makes a backup does
        world.answer(PHI, tokens=[1], new=2)  # two seconds of waiting for the file, in vain
        another.execute("ROLLBACK")
    (failures,) = [each for each in world.engine.figures() if each.name == "modelyard:registry_failures"]
    assert failures.values == {(): 1.0}
    world.run()
    assert use_count_of(file) == 1


def test_an_engine_that_ends_leaves_no_use_count_behind(made, tmp_path, new_world):
    file = tmp_path / "registry.sqlite"
    world = new_world(made, registry_file=str(file), flush_every_s=3600)
    world.answer(PHI, tokens=[1], new=2)
    world.clock.close()
    world.engine.close()
    assert use_count_of(file) == 1


def test_threads_of_torch_are_as_the_options_say(world):
    world.answer(PHI, tokens=[1], new=1)
    assert torch.get_num_threads() == 1
