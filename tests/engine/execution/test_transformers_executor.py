"""The transformers executor: the tokens of the library's own `generate`, for models that keep KV and for others."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch

from engine.errors import BadModel, BadSettings, GenerationFailed, LoadFailed
from engine.execution import Batch, Chunk, Machine, Replica, Scheduler, Sequence, executors
from engine.execution.replica import Work
from engine.execution.transformers_executor import TransformersExecutor, TransformersOptions
from engine.request import Sampling, Stream
from engine.settings import HardwareSettings, ModelSettings
from engine.stand_ins import make_stand_ins
from sim.world import SimClock

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("default"),
]  # the library's warnings are its own affair

HARDWARE = HardwareSettings(
    name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
)
TOKENS = {"vocab_size": 160, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
GROUPED = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512}
CONFIGS = {
    "neox": ("GPTNeoXConfig", {**SIZES, "max_position_embeddings": 512}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "windows": ("GptOssConfig", {**GROUPED, "head_dim": 16, "num_local_experts": 4, "sliding_window": 10}),
    "latent": (
        "DeepseekV3Config",
        {**GROUPED, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
         "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
         "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 2},
    ),
    "recurrent": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}),
    "hybrid": (
        "BambaConfig",
        {**GROUPED, "attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8},
    ),
}  # fmt: skip
PLAIN = ("neox", "gpt2", "windows")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The model of a name and the folder that it is saved in, made when first asked for."""
    made = {}

    def of(name):
        if name not in made:
            kind, options = CONFIGS[name]
            torch.manual_seed(1)
            model = transformers.AutoModelForCausalLM.from_config(
                getattr(transformers, kind)(**TOKENS, **options), dtype=torch.float32
            ).eval()
            for key, tensor in model.state_dict().items():
                if "norm" not in key and tensor.dim() > 1:
                    tensor.normal_(0, 0.5 if "emb" in key or "wte" in key else 1.5 * tensor.shape[-1] ** -0.5)
            folder = tmp_path_factory.mktemp(name) / "model"
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return of


@pytest.fixture
def clock():
    clock = SimClock()
    yield clock
    clock.close()


def executor_of(clock, path, **options):
    model = ModelSettings(name="tiny", architecture=None, path=str(path))
    return TransformersExecutor(Machine(model, HARDWARE, clock, 8, 1), TransformersOptions(**options))


@pytest.fixture
def executor(clock, saved):
    return executor_of(clock, saved("neox")[1])


def prompt(length=60, seed=0):
    return np.random.default_rng(seed).integers(3, 160, size=length, dtype=np.int32)


def sequence(clock, number, tokens, count, prefix=(), sampling=None, seed=0):
    cached = 16 * len(prefix)
    return Sequence(
        number,
        tokens,
        count,
        Stream(),
        clock.signal(),
        prefix,
        cached,
        sampling,
        seed,
        computed_tokens=cached,
    )


def step(clock, executor, chunks=(), decodes=()):
    """One step, its results applied as a replica would."""
    batch, results = Batch([Chunk(*each) for each in chunks], list(decodes)), []

    async def keep():
        results.append(await executor.step(batch))

    clock.env.run(until=clock.spawn(keep()))
    for each, token in zip(decodes, results[0].decode_tokens, strict=True):
        each.computed_tokens += 1
        each.accept(token, 0)
    for chunk, token in zip(batch.chunks, results[0].chunk_tokens, strict=True):
        assert (token is not None) == chunk.is_last
        chunk.sequence.computed_tokens += chunk.num_tokens
        if token is not None:
            chunk.sequence.accept(token, 0)
    return results[0]


def generate(clock, executor, each, chunk_tokens=10_000):
    while not each.is_prefilled:
        step(clock, executor, [(each, min(len(each.tokens) - each.computed_tokens, chunk_tokens))])
    while not each.is_finished:
        step(clock, executor, decodes=[each])
    return each.new_tokens


@torch.inference_mode()
def greedy(model, tokens, count):
    """What `generate` answers, without its prompt."""
    given, end = torch.tensor(tokens.tolist())[None], {"min_new_tokens": count, "max_new_tokens": count}
    out = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, eos_token_id=-1, **end
    )
    return out[0, len(tokens) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_are_those_of_generate_whole_or_in_pieces(clock, saved, name):
    model, folder = saved(name)
    expected, executor = greedy(model, prompt(), 20), executor_of(clock, folder)
    assert len(set(expected)) > 5
    assert generate(clock, executor, sequence(clock, 1, prompt(), 20)) == expected
    assert generate(clock, executor, sequence(clock, 2, prompt(), 20), chunk_tokens=7) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_are_given_where_all_that_is_kept_is_keys_and_values_of_one_shape(clock, saved, name):
    executor = executor_of(clock, saved(name)[1])
    assert executor.keeps_blocks == (name in PLAIN)
    each = sequence(clock, 1, prompt(), 4)
    generate(clock, executor, each)
    blocks = executor.retire(each, 1, 3, 16)
    assert len(blocks) == (2 if name in PLAIN else 0)
    assert all(block.nbytes == 16 * executor.kv_bytes_per_token for block in blocks)
    assert executor.held_bytes == 0


@pytest.mark.parametrize("name", PLAIN)
def test_a_prefix_of_blocks_changes_no_token(clock, saved, name):
    executor = executor_of(clock, saved(name)[1])
    first = sequence(clock, 1, prompt(), 20)
    expected = generate(clock, executor, first)
    blocks = executor.retire(first, 0, 4, 16)
    assert blocks[0].shape[:2] == (len(blocks[0]), 2)
    assert generate(clock, executor, sequence(clock, 2, prompt(), 20, blocks[:3]), 5) == expected
    wrong = [block + 0.5 for block in blocks[:3]]  # what is in a prefix is what is read
    assert generate(clock, executor, sequence(clock, 3, prompt(), 20, wrong)) != expected


def test_what_the_model_is_like_is_found_out(executor, clock, saved):
    assert (executor.vocab, executor.context_tokens) == (160, 512)
    assert executor.kv_bytes_per_token == 4 * 2 * 64 * 4
    assert executors.find("transformers") is TransformersExecutor
    other, coarse = (
        executor_of(clock, saved("gpt2")[1]),
        executor_of(clock, saved("neox")[1], weights="bfloat16"),
    )
    again = executor_of(clock, saved("neox")[1])
    assert again.weights_id == executor.weights_id
    assert len({executor.weights_id, other.weights_id, coarse.weights_id}) == 3
    assert coarse.kv_bytes_per_token == executor.kv_bytes_per_token // 2
    model = ModelSettings(name="tiny", architecture=None, path=str(saved("gpt2")[1]))
    parameters = saved("gpt2")[0].num_parameters()
    assert TransformersExecutor.weights_bytes(model, TransformersOptions(weights="float16")) == 2 * parameters
    assert TransformersExecutor.vocab_of(model) is None


def test_company_changes_no_token_and_each_gets_what_its_sampling_says(clock, executor):
    wild = Sampling(temperature=1.0, top_p=0.9, logprobs=2)

    def fresh():
        return [
            sequence(clock, n, prompt(20 + n, n), 8, sampling=[None, wild][n % 2], seed=n) for n in range(4)
        ]

    expected = [generate(clock, executor, each) for each in fresh()]
    executor.reset()
    many = fresh()
    first = step(clock, executor, [(each, len(each.tokens)) for each in many])
    assert sorted(first.logprobs) == [1, 3]
    while not many[0].is_finished:
        result = step(clock, executor, decodes=many[::-1])
        assert [len(result.logprobs[n].top) for n in (1, 3)] == [2, 2]
    assert [each.new_tokens for each in many] == expected
    assert expected[1] != greedy_of(clock, executor, 1)


def greedy_of(clock, executor, number):
    return generate(clock, executor, sequence(clock, 100 + number, prompt(20 + number, number), 8))


def test_a_sequence_that_gave_way_goes_on_where_it_was(clock, executor):
    wild = Sampling(temperature=1.5)
    expected = generate(clock, executor, sequence(clock, 1, prompt(), 12, sampling=wild, seed=5))
    each = sequence(clock, 2, prompt(), 12, sampling=wild, seed=5)
    step(clock, executor, [(each, 60)])
    for _ in range(4):
        step(clock, executor, decodes=[each])
    executor.release(each)
    each.rewind()
    assert generate(clock, executor, each, chunk_tokens=9) == expected


def test_scores_that_are_no_numbers_end_one_sequence_only(clock, executor):
    with torch.no_grad():
        executor._hosted.model.get_input_embeddings().weight[2] = torch.nan
    good, bad = sequence(clock, 1, prompt(), 1), sequence(clock, 2, np.array([2], dtype=np.int32), 1)
    result = step(clock, executor, [(bad, 1), (good, 60)])
    assert [type(error) for error in result.errors.values()] == [GenerationFailed]
    assert list(result.errors) == [2]


def test_requests_through_a_replica_get_the_tokens_that_they_get_alone(clock, saved):
    executor = executor_of(clock, saved("windows")[1])
    replica, streams = Replica("a", "tiny", executor, Scheduler(3, 16, 200), clock, 16), []
    replica.start()
    answers = []

    async def ask(number):
        streams.append(Stream())
        work = Work(prompt(30 + 5 * number, number), 6)
        answers.append((number, await replica.generate(work, streams[number])))

    asked = [clock.spawn(ask(number)) for number in range(5)]
    clock.env.run(until=clock.env.all_of(asked))
    assert executor.held_bytes == 0
    for number, stream in enumerate(streams):
        assert stream.tokens == greedy(saved("windows")[0], prompt(30 + 5 * number, number), 6)
    assert {len(answer.blocks) for _, answer in answers} == {2, 3}


def test_measured_time_passes_on_the_clock_and_copies_are_owed_once(clock, executor):
    each = sequence(clock, 1, prompt(64), 2)
    result = step(clock, executor, [(each, 64)])
    assert clock.now_ns() == result.duration_ns > 0
    executor.retire(each, 0, 4, 16)
    owed_ns, before_ns = executor._owed_ns, clock.now_ns()
    assert owed_ns > 0
    result = step(clock, executor, [(sequence(clock, 2, prompt(8), 1), 8)])
    assert clock.now_ns() - before_ns == result.duration_ns > owed_ns
    assert executor._owed_ns == 0


def test_a_sequence_that_never_ran_leaves_nothing(clock, executor):
    each = sequence(clock, 1, prompt(), 1)
    executor.release(each)
    assert executor.retire(each, 0, 0, 16) == []
    executor.reset()
    assert executor._owed_ns == 0


def test_a_gguf_file_gives_the_tokens_of_its_folder(clock, tmp_path):
    make_stand_ins(tmp_path, ["Qwen3-0.6B"], formats=("gguf", "safetensors"))
    (file,) = tmp_path.glob("*.gguf")
    (folder,) = (path.parent for path in tmp_path.glob("*/config.json"))
    tokens = [
        generate(clock, executor_of(clock, path), sequence(clock, 1, prompt(), 8)) for path in (file, folder)
    ]
    assert tokens[0] == tokens[1]
    assert transformers.utils.logging.is_progress_bar_enabled()


# files that are no good


def changed(saved, tmp_path, change):
    """A copy of a folder with `change(config)` written into its config.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved("gpt2")[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_weights_that_are_missing_are_not_made_up(clock, saved, tmp_path):
    folder = changed(saved, tmp_path, lambda config: config.update(n_layer=4))
    with pytest.raises(BadModel, match=r"tensor transformer\.h\.3\.\S+ is missing: transformers would make"):
        executor_of(clock, folder)


def test_code_that_comes_with_a_model_is_never_run(clock, saved, tmp_path):
    def change(config):
        config["model_type"] = "mine"
        config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}

    folder = changed(saved, tmp_path, change)
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BadModel, match="transformers cannot load it"):
        executor_of(clock, folder)
    assert not (tmp_path / "ran").exists()


def test_pickles_are_never_read(clock, saved, tmp_path):
    folder = changed(saved, tmp_path, lambda config: config.update(n_layer=3))
    (folder / "model.safetensors").unlink()
    torch.save(saved("gpt2")[0].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BadModel, match=str(folder)):
        executor_of(clock, folder)


def test_an_attention_that_would_be_fetched_is_not_taken(clock, saved, tmp_path):
    folder = changed(saved, tmp_path, lambda config: config.update(attn_implementation="somebody/kernel"))
    assert executor_of(clock, folder)._hosted.model.config._attn_implementation == "sdpa"


def test_a_model_without_a_cache_is_refused(clock, tmp_path):
    config = transformers.RwkvConfig(**TOKENS, hidden_size=64, num_hidden_layers=2, context_length=64)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "rwkv")
    with pytest.raises(BadModel, match="transformers cannot run it: it has no cache that it could be given"):
        executor_of(clock, tmp_path / "rwkv")


def test_without_the_extra_the_message_says_how_to_get_it(clock, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        LoadFailed, match=r"'gpt2' is not .* needs the extra 'hf': pip install 'modelyard\[hf\]'"
    ):
        executor_of(clock, saved("gpt2")[1])


def test_a_model_without_files_is_refused(clock, tmp_path):
    with pytest.raises(LoadFailed, match="'tiny' has no path"):
        TransformersExecutor.weights_bytes(
            ModelSettings(name="tiny", architecture=None), TransformersOptions()
        )
    with pytest.raises(BadModel, match="nowhere"):
        executor_of(clock, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "executor.threads is 0"),
        ({"kv_capacity_tokens": 0}, "executor.kv_capacity_tokens is 0"),
        ({"weights": "int3"}, "executor.weights is 'int3', but must be one of float32"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadSettings, match=message):
        TransformersOptions(**options)
