"""Seven architectures from files to tokens, through executor, scheduler and replica, beside `transformers`.

The oracle loads the safetensors folder of a stand-in; its GGUF holds the same numbers. Two tokens whose scores differ
by less than rounding may change places: `assert_same` lets that pass where the oracle's own scores show it.
"""

import warnings
from functools import cache

import numpy as np
import pytest
import torch

from engine.execution import Machine, Replica, Scheduler, Work
from engine.execution.torch_executor import TorchExecutor, TorchOptions
from engine.formats import open_checkpoint
from engine.request import Stream
from engine.settings import HardwareSettings, ModelSettings
from engine.stand_ins import designs, make_stand_ins
from sim.world import SimClock

pytestmark = pytest.mark.torch
pytest.importorskip("transformers", reason="the oracle is the extra hf")

NAMES = sorted(designs)
HARDWARE = HardwareSettings(
    name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
)
TIE = 1e-4  # of scores: float32 sums in another order differ by some 1e-5 here
PROMPT, NEW = 90, 40  # longer than the windows of the Gemmas, which are 64 and 32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> (GGUF file, folder)."""
    folder = tmp_path_factory.mktemp("models")
    ggufs = make_stand_ins(folder / "gguf", NAMES)
    folders = make_stand_ins(folder / "hf", NAMES, formats=("safetensors",))
    return dict(zip(NAMES, zip(ggufs, folders, strict=True), strict=True))


@pytest.fixture(scope="module")
def oracle(files):
    import transformers  # noqa: PLC0415  the oracle is an extra

    @cache
    def load(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transformers.AutoModelForCausalLM.from_pretrained(
                files[name][1], dtype=torch.float32, attn_implementation="eager", local_files_only=True
            ).eval()

    return load


class Served:
    """One replica of a model from disk under a virtual clock."""

    def __init__(self, path, *, kv_capacity_tokens=100_000, step_tokens=512):
        checkpoint = open_checkpoint(path)
        model = ModelSettings(name=checkpoint.name, architecture=checkpoint.shape, path=str(path))
        self.clock = SimClock()
        self.vocab = checkpoint.shape.vocab
        options = TorchOptions(keep_converted=False, kv_capacity_tokens=kv_capacity_tokens)
        self.executor = TorchExecutor(Machine(model, HARDWARE, self.clock, 32, 1), options)
        scheduler = Scheduler(32, step_tokens, kv_capacity_tokens)
        self.replica = Replica("a", "m", self.executor, scheduler, self.clock, 16)
        self.replica.start()

    def ask(self, tokens, new=NEW, prefix=(), after_steps=0):
        """A stream that will hold the answer, and a list that will hold what the replica says of it."""
        stream, answers = Stream(), []

        async def serve():
            while self.replica.num_steps < after_steps:
                await self.clock.sleep(100_000)
            work = Work(np.asarray(tokens, np.int32), new, list(prefix), 16 * len(prefix))
            answers.append(await self.replica.generate(work, stream))

        self.clock.spawn(serve())
        return stream, answers

    def run(self):
        self.clock.env.run()
        assert self.executor.held_bytes == 0


def prompt(vocab, length=PROMPT, seed=1):
    return np.random.default_rng(seed).integers(vocab // 2, size=length).tolist()


@torch.inference_mode()
def expected(model, tokens, new=NEW):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            do_sample=False, min_new_tokens=new, max_new_tokens=new, eos_token_id=model.config.vocab_size + 1,
        )  # fmt: skip
    return out[0, len(tokens) :].tolist()


@torch.inference_mode()
def assert_same(model, tokens, ours):
    """Each of our tokens is the oracle's best, up to the first place at which two scores are as good as equal.

    One pass over all of them gives what `generate` would choose at each place, in a tenth of the time.
    """
    scores = model(torch.tensor([[*tokens, *ours[:-1]]])).logits[0, len(tokens) - 1 :]
    theirs = scores.argmax(-1).tolist()
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
    if place is None:
        return
    gap = float(scores[place, theirs[place]] - scores[place, ours[place]])
    assert gap < TIE, f"token {place}: {ours[place]} instead of {theirs[place]}, {gap:.2e} behind it"


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_alone_from_either_format(files, oracle, name):
    answers = []
    for path in files[name]:
        served = Served(path)
        stream, _ = served.ask(prompt(served.vocab))
        served.run()
        answers.append(stream.tokens)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 5, "an answer that repeats itself shows little"
    assert_same(oracle(name), prompt(served.vocab), answers[0])


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_in_a_batch_that_changes_all_the_time(files, oracle, name):
    served = Served(files[name][0], step_tokens=48)
    prompts = [prompt(served.vocab, 20 + 17 * i, seed=i) for i in range(7)]
    streams = [served.ask(each, NEW - 3 * i, after_steps=5 * i)[0] for i, each in enumerate(prompts)]
    served.run()
    for each, stream in zip(prompts, streams, strict=True):
        assert_same(oracle(name), each, stream.tokens)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_with_a_cached_prefix(files, oracle, name):
    served = Served(files[name][0])
    first = prompt(served.vocab)
    _, answers = served.ask(first)
    served.run()
    tokens = [*first[:80], *prompt(served.vocab, 30, seed=5)]
    stream, again = served.ask(tokens, prefix=answers[0].blocks[:5])
    served.run()
    assert again[0].computed_tokens == len(tokens) + NEW - 1
    assert_same(oracle(name), tokens, stream.tokens)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_after_a_preemption(files, oracle, name):
    served = Served(files[name][0], kv_capacity_tokens=300)
    prompts = [prompt(served.vocab, 80, seed=i) for i in range(3)]
    streams = [served.ask(each, 60)[0] for each in prompts]
    served.run()
    assert served.replica.num_preemptions > 0
    for each, stream in zip(prompts, streams, strict=True):
        assert_same(oracle(name), each, stream.tokens)


def test_what_generate_says_passes_and_a_wrong_token_is_seen(oracle):
    tokens = prompt(512)
    wrong = expected(oracle("phi-4"), tokens)
    assert_same(oracle("phi-4"), tokens, wrong)
    wrong[7] += 1
    with pytest.raises(AssertionError, match="token 7"):
        assert_same(oracle("phi-4"), tokens, wrong)
