"""What our decoder, batching and loading are worth beside `transformers`, in one process and interleaved.

Each figure is a ratio of the best rounds of two sides; both have two torch threads. What needs SmolLM2 wants a folder
that has it in MODELYARD_REAL_MODELS (`python -m engine fetch smollm2`).
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch

from engine.execution import Machine, Replica, Scheduler, Work
from engine.execution.torch_executor import TorchExecutor, TorchOptions
from engine.execution.weights import product
from engine.formats import open_checkpoint
from engine.request import Stream
from engine.settings import HardwareSettings, ModelSettings
from engine.stand_ins import make_stand_ins
from sim.world import SimClock

transformers = pytest.importorskip("transformers", reason="the other side is the extra hf")

pytestmark = [pytest.mark.benchmark(group="inference"), pytest.mark.torch]

THREADS, ROUNDS, TRIES, KV_TOKENS = 2, 2, 3, 100_000
NEW = 40
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
HARDWARE = HardwareSettings(
    name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
)

READY = """
import resource, sys, time
import numpy as np, torch
from pathlib import Path
torch.set_num_threads(2)
from engine.execution import Batch, Chunk, Machine, Sequence  # noqa
begun = time.perf_counter()
if sys.argv[1] == "ours":
    from engine.execution.torch_executor import TorchExecutor, TorchOptions
    from engine.formats import open_checkpoint
    from engine.request import Stream
    from engine.settings import HardwareSettings, ModelSettings
    from engine.text import text_of
    from sim.world import SimClock
    path = Path(sys.argv[2])
    checkpoint = open_checkpoint(path)
    text = text_of(checkpoint)
    model = ModelSettings(name="m", architecture=checkpoint.shape, path=str(path))
    sizes = {"flops": 1, "memory_bytes": 1, "memory_bytes_per_s": 1, "link_bytes_per_s": 1}
    hardware = HardwareSettings(name="x", source="none", **sizes)
    clock = SimClock()
    options = TorchOptions(threads=2, converted_folder=sys.argv[3])
    executor = TorchExecutor(Machine(model, hardware, clock, 1, 1), options)
    tokens = np.asarray(text.tokenizer.encode("The capital of France is"), np.int32)
    sequence = Sequence(1, tokens, 2, Stream(), clock.signal())
    executor._forward(Batch([Chunk(sequence, len(tokens))]))
    print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if executor.keep is not None:
        executor.keep()
else:
    import transformers
    folder, file = Path(sys.argv[2]).parent, Path(sys.argv[2]).name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    with torch.inference_mode():
        model(torch.tensor([tokenizer("The capital of France is")["input_ids"]]))
    print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


class Ours:
    """One replica of a model from disk, as the engine has it."""

    def __init__(self, path, weights="float32"):
        checkpoint = open_checkpoint(path)
        model = ModelSettings(name=checkpoint.name, architecture=checkpoint.shape, path=str(path))
        options = TorchOptions(
            threads=THREADS, weights=weights, kv_capacity_tokens=KV_TOKENS, keep_converted=False
        )
        self.clock = SimClock()
        executor = TorchExecutor(Machine(model, HARDWARE, self.clock, 32, 1), options)
        self.replica = Replica("a", "m", executor, Scheduler(32, 512, KV_TOKENS), self.clock, KV_TOKENS)
        self.replica.start()

    def __call__(self, prompts, new):
        """Seconds for all of these requests, which come together."""
        begun = perf_counter()
        for prompt in prompts:
            self.clock.spawn(self.replica.generate(Work(prompt, new), Stream()))
        self.clock.env.run()
        return perf_counter() - begun


class Theirs:
    """`generate` of a model of the library, greedy."""

    def __init__(self, folder, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, **options
            ).eval()

    @torch.inference_mode()
    def __call__(self, prompts, new):
        """Seconds for one static batch."""
        tokens = torch.from_numpy(np.stack(prompts)).long()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begun = perf_counter()
            self.model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0,
                min_new_tokens=new, max_new_tokens=new,
            )  # fmt: skip
        return perf_counter() - begun

    def one_by_one(self, prompts, new):
        return sum(self([prompt], new) for prompt in prompts)


def best_decode(*sides, new=17):
    """Seconds of decode alone, of each (side, prompts): what many tokens take beyond one, each at its best.

    The least of differences would be that of the round in which somebody else slowed the one token down.
    """
    calls = [lambda side=side, prompts=prompts, new=count: side(prompts, new)
             for side, prompts in sides for count in (new, 1)]  # fmt: skip
    seconds = best(*calls)
    return [many - one for many, one in zip(seconds[::2], seconds[1::2], strict=True)]


def prompts_of(vocab, length, count):
    return [np.random.default_rng(seed).integers(vocab, size=length, dtype=np.int32) for seed in range(count)]


def best(*sides, rounds=ROUNDS):
    """The least seconds of each side over rounds in which all take turns: the rest is what others add."""
    turns = [[side() for side in sides] for _ in range(rounds)]
    return [min(times) for times in zip(*turns, strict=True)]


@pytest.fixture(scope="module")
def smollm2():
    folder = os.environ.get("MODELYARD_REAL_MODELS")
    if not folder or not Path(folder, SMOLLM2).exists():
        pytest.skip(f"MODELYARD_REAL_MODELS names no folder with {SMOLLM2}")
    return Path(folder, SMOLLM2)


@pytest.fixture(scope="module")
def smollm2_of_transformers(smollm2):
    return Theirs(smollm2.parent, gguf_file=smollm2.name)


@pytest.fixture(scope="module")
def smollm2_of_ours(smollm2):
    return Ours(smollm2)


@pytest.fixture(scope="module")
def decoded(smollm2, smollm2_of_ours, smollm2_of_transformers):
    """Seconds of decode of 16 tokens, by side: all of them take turns. What looks broken is measured again."""
    one, eight = prompts_of(40_000, 128, 8)[:1], prompts_of(40_000, 128, 8)
    sides = {
        "one": (smollm2_of_ours, one),
        "one in int8": (Ours(smollm2, "int8"), one),
        "eight": (smollm2_of_ours, eight),
        "their one": (smollm2_of_transformers, one),
        "their eight": (smollm2_of_transformers, eight),
    }
    for _ in range(TRIES):
        found = dict(zip(sides, best_decode(*sides.values()), strict=True))
        if all(ratio >= least for ratio, _, least in ratios_of(found)):
            break
    return found


def ratios_of(seconds):
    """Theirs over ours of one request, eight one by one, eight in a batch; each with its goal, and what is broken."""
    one, eight = seconds["their one"] / seconds["one"], 8 * seconds["their one"] / seconds["eight"]
    return (one, 1.1, 1.0), (eight, 3.5, 3), (seconds["their eight"] / seconds["eight"], 1, 0.85)


def holds(ratio, goal, least):
    """The goal is told beside the figure. Only what is broken fails: shared cores give one stand-in 5.7 to 7.9."""
    assert ratio >= least, f"{ratio:.2f}, but the goal is {goal}, and below {least} something is broken"


def test_sixteen_requests_on_a_stand_in(report, tmp_path):
    (path,) = make_stand_ins(tmp_path, ["Llama-3.3-70B-Instruct"], formats=("safetensors",))
    ours, theirs, prompts = Ours(path), Theirs(path), prompts_of(256, 256, 16)
    together, one_by_one, static = best(
        lambda: ours(prompts, NEW),
        lambda: 8 * theirs.one_by_one(prompts[:2], NEW),  # each costs the same, and they cost the most
        lambda: theirs(prompts, NEW),
        rounds=3,
    )
    report(
        tokens_per_s=16 * NEW / together,
        times_one_by_one=one_by_one / together,
        goal_times_one_by_one=6,
        times_static_batch=static / together,
        goal_times_static_batch=0.9,
    )
    holds(one_by_one / together, 6, 4)
    holds(static / together, 0.9, 0.65)


def test_decode_of_smollm2(report, decoded):
    one, one_by_one, static_batch = ratios_of(decoded)
    report(
        tokens_per_s_of_one=16 / decoded["one"],
        tokens_per_s_of_eight=128 / decoded["eight"],
        one_times_generate=one[0],
        goal_one_times_generate=one[1],
        eight_times_one_by_one=one_by_one[0],
        goal_eight_times_one_by_one=one_by_one[1],
        eight_times_static_batch=static_batch[0],
        goal_eight_times_static_batch=static_batch[1],
    )
    for each in (one, one_by_one, static_batch):
        holds(*each)


def test_prefill_of_smollm2(report, smollm2_of_ours, smollm2_of_transformers):
    prompt = prompts_of(40_000, 512, 1)
    ours, theirs = best(lambda: smollm2_of_ours(prompt, 1), lambda: smollm2_of_transformers(prompt, 1))
    report(tokens_per_s=512 / ours, times_transformers=theirs / ours, goal=1)
    holds(theirs / ours, 1, 0.85)


def test_int8_decode_of_smollm2(report, decoded):
    small, full, theirs = (decoded[side] for side in ("one in int8", "one", "their one"))
    report(tokens_per_s=16 / small, times_float32=full / small, goal=1.8, times_transformers=theirs / small)
    holds(full / small, 1.8, 0.85)  # a core that others want evens them out


@torch.inference_mode()
def test_prompts_of_new_lengths_beside_known_ones(report):
    """Products of all lengths once, and again: each length had a program of its own, which took 0.6 to 0.9 more."""
    lengths = np.random.default_rng(3).permutation(np.arange(130, 386, 2)).tolist()
    ratios = []
    for outs in range(1_000, 1_050, 10):  # each time the first for this matrix
        matrix, rows = torch.randn(outs, 576), torch.randn(max(lengths), 576)
        first_s, *again_s = (seconds_of(lengths, rows, matrix) for _ in range(4))
        ratios.append(first_s / min(again_s))
    report(first_beside_again=float(np.median(ratios)), least=min(ratios))
    assert min(ratios) < 1.5


def seconds_of(lengths, rows, matrix):
    begun = perf_counter()
    for length in lengths:
        product(rows[:length], matrix)
    return perf_counter() - begun


def ready(who, path, folder):
    """Seconds from torch imported to the first prefill done, and the peak of memory in MiB, in a fresh process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", READY, who, str(path), str(folder)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    seconds, mib = done.stdout.split()[-2:]
    return float(seconds), float(mib)


def test_smollm2_is_ready_soon_and_sooner_the_second_time(report, smollm2, tmp_path):
    first_s, first_mib = ready("ours", smollm2, tmp_path)
    again_s, again_mib = min(ready("ours", smollm2, tmp_path) for _ in range(2))
    theirs_s, theirs_mib = ready("transformers", smollm2, tmp_path)
    report(
        first_s=first_s,
        again_s=again_s,
        transformers_s=theirs_s,
        peak_mib=first_mib,
        peak_mib_again=again_mib,
        peak_mib_of_transformers=theirs_mib,
    )
    holds(theirs_s / first_s, 3, 2)
    holds(first_s / again_s, 2, 1.5)
