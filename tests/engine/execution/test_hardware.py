"""Every machine of which there is a datasheet runs the five models where they fit, and says so where they do not."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

import conf
from engine.errors import BadSettings
from engine.execution import Batch, Chunk, Machine, Sequence, executors
from engine.request import Stream
from engine.settings import HardwareSettings
from sim.config import read, typed

FOLDER = Path(conf.__file__).parent / "hardware"
MACHINES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PARAMETERS = {  # of the safetensors index of each on Hugging Face
    "Llama-3.3-70B-Instruct": 70_553_706_496,
    "Qwen2.5-72B-Instruct": 72_706_203_648,
    "phi-4": 14_659_507_200,
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "gemma-2-9b-it": 9_241_705_984,
}
PROMPT, OUTPUT = 512, 128


@cache
def five():
    return read(["scenario=steady", "fleet=reference_five", "executor=roofline"]).engine


def hardware_of(machine):
    return typed(HardwareSettings, yaml.safe_load((FOLDER / f"{machine}.yaml").read_text()), "hardware")


def sequence(computed):
    tokens = np.zeros(PROMPT, dtype=np.int32)
    return Sequence(1, tokens, OUTPUT, Stream(), None, computed_tokens=computed)


def test_the_machines_that_are_wanted_are_there():
    wanted = {"a100", "h100", "h200", "b200", "l4", "rtx_4090", "mi300x", "m2_ultra", "epyc_9654"}
    assert wanted <= set(MACHINES)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_five_models_run_where_they_fit_and_are_refused_where_not(machine, clock):
    hardware, options = hardware_of(machine), executors.find("roofline").Options(**five().executor.options)
    for model in five().fleet.models:
        shape, made_on = model.architecture, Machine(model, hardware, clock, 32, 1)
        left = hardware.memory_bytes - shape.parameters * model.weight_bytes
        if left < (PROMPT + OUTPUT) * shape.kv_values_per_token * model.kv_bytes:
            with pytest.raises(
                BadSettings, match=rf"{model.name} weighs .* leaves no room for KV in the .* of "
            ):
                executors.make("roofline", made_on, options)
            continue
        executor = executors.make("roofline", made_on, options)
        assert executor.kv_capacity_tokens >= PROMPT + OUTPUT
        prefill_ns = executor.duration_ns(Batch([Chunk(sequence(0), PROMPT)]))
        decode_ns = executor.duration_ns(Batch(decodes=[sequence(PROMPT)]))
        # reading the weights once, and two operations a weight and token, as the datasheet has them
        read_s = shape.parameters * model.weight_bytes / hardware.memory_bytes_per_s
        work_s = 2 * PROMPT * shape.parameters / hardware.flops
        assert 1.2 < decode_ns / 1e9 / read_s < 2
        assert max(2 * work_s, 1.25 * read_s) < prefill_ns / 1e9 < 4 * (work_s + read_s)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_five_models_have_as_many_parameters_as_published(name):
    (model,) = (each for each in five().fleet.models if each.name == name)
    assert model.architecture.parameters == PARAMETERS[name]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_says_where_its_figures_come_from(machine):
    hardware = hardware_of(machine)
    assert len(hardware.source) > 20
    assert 1e12 < hardware.flops < 1e16
    assert hardware.link_bytes_per_s < hardware.memory_bytes_per_s
