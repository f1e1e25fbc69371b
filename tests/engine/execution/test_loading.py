"""Weights from disk: those of every family and format are the ones that were saved, and a kept file never lies."""

import os
import warnings
from copy import deepcopy
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file

from engine.errors import BadModel, LoadFailed
from engine.execution import loading, slab
from engine.execution.decoder import Decoder
from engine.execution.loading import load_weights
from engine.execution.slab import Layout
from engine.execution.weights import Int8Matrix, quantised
from engine.formats import open_checkpoint
from engine.settings import Architecture
from engine.stand_ins import make_stand_ins

if find_spec("transformers") is None:
    pytest.skip("transformers, the oracle, is not installed", allow_module_level=True)

from tests.engine.execution.oracles import FAMILIES, greedy, model_of

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
PROMPT = [5, 17, 99, 3, 42, 42, 120, 7, 81, 33, 150, 64, 9, 11, 28, 77, 101, 140]

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_BLOCK = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def save_folder(family, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_of(family).save_pretrained(path, **options)
    return path


def gguf_name(name, family):
    stem, _, kind = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{kind}"
    _, _, number, part = stem.split(".", 3)
    names = BLOCK | GEMMA_BLOCK if "gemma" in family else BLOCK
    return f"blk.{number}.{names[part]}.{kind}"


def gguf_tensors(family):
    """The tensors of the tiny model as converters write them: llama's q and k permuted, Gemma's norms plus 1."""
    model = model_of(family)
    heads = {"q": model.config.num_attention_heads, "k": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        letter = name.removesuffix("_proj.weight")[-1]
        if family in ("llama", "mistral") and "self_attn" in name and letter in heads:
            halves = values.reshape(heads[letter], 2, -1, values.shape[-1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if "gemma" in family and "norm" in name:
            values = values + np.float32(1)
        yield gguf_name(name, family), values


def save_gguf(family, path, kind="F32", more=()):
    """A GGUF file of the tiny model, with `more` tensors."""
    config = model_of(family).config
    writer = GGUFWriter(path, "llama" if family == "mistral" else family)
    writer.add_name(f"tiny {family}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if family == "phi3":
        writer.add_rope_dimension_count(head_dim // 2)
    stored = GGMLQuantizationType[kind]
    for name, values in [*gguf_tensors(family), *more]:
        raw = GGMLQuantizationType.F32 if values.ndim == 1 else stored
        writer.add_tensor(name, quantize(np.ascontiguousarray(values), raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path, folder=None, dtype=torch.float32, **options):
    return load_weights(open_checkpoint(path), CPU, dtype, folder, **options)


def flat(weights):
    """All tensors by name; those of an int8 matrix as two."""
    owners = {"": weights} | {f"layers.{number}.": layer for number, layer in enumerate(weights.layers)}
    found = {}
    for prefix, owner in owners.items():
        for field in fields(owner):
            value = getattr(owner, field.name)
            if isinstance(value, Int8Matrix):
                found |= {
                    f"{prefix}{field.name}.weight": value.weight,
                    f"{prefix}{field.name}.scales": value.scales,
                }
            elif isinstance(value, torch.Tensor):
                found[prefix + field.name] = value
    return found


def assert_same(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@torch.inference_mode()
def continued(loaded, prompt, count):
    """The greedy answer of our decoder."""
    shape, decoder = loaded.shape, Decoder(loaded.shape, loaded.weights)
    kv = torch.zeros(shape.layers, 2, shape.kv_heads, len(prompt) + count, shape.head_dim)
    tokens, start = list(prompt), 0
    while len(tokens) < len(prompt) + count:
        hidden = decoder.prefill(torch.tensor(tokens[start:]), kv, start)
        start = len(tokens)
        tokens.append(decoder.logits(hidden[-1:]).argmax().item())
    return tokens[len(prompt) :]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More only wait for each other at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gguf(tmp_path):
    return save_gguf("llama", tmp_path / "tiny.gguf")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


def kept_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family_answers_like_transformers(family, tmp_path):
    loaded = load(save_folder(family, tmp_path / family))
    assert continued(loaded, PROMPT, 24) == greedy(model_of(family), PROMPT, 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_of_every_family_holds_the_weights_of_the_folder(family, tmp_path):
    from_folder = load(save_folder(family, tmp_path / family))
    from_gguf = load(save_gguf(family, tmp_path / f"{family}.gguf"))
    assert_same(from_gguf.weights, from_folder.weights)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_numbers_of_every_kind_are_those_that_gguf_reads(kind, tmp_path):
    loaded = load(save_gguf("llama", tmp_path / "tiny.gguf", kind))
    down = model_of("llama").state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    stored = GGMLQuantizationType[kind]
    expected = dequantize(quantize(down, stored), stored).astype(np.float32)
    assert np.array_equal(loaded.weights.layers[1].down.numpy(), expected)


def test_rows_of_quantised_queries_and_keys_are_put_back_where_hugging_face_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "CHUNK_WEIGHTS", 1)  # a head at a time
    loaded = load(save_gguf("llama", tmp_path / "tiny.gguf", "Q8_0"))
    state, stored = model_of("llama").state_dict(), GGMLQuantizationType.Q8_0
    rows = [state[f"model.layers.2.self_attn.{letter}_proj.weight"].numpy() for letter in "qkv"]
    expected = np.concatenate([dequantize(quantize(each, stored), stored) for each in rows])
    assert np.array_equal(loaded.weights.layers[2].qkv.numpy(), expected)


def test_chunks_of_any_size_give_the_same_weights(gguf, monkeypatch):
    whole = load(gguf).weights
    monkeypatch.setattr(loading, "CHUNK_WEIGHTS", 700)
    assert_same(load(gguf).weights, whole)


def test_shards_hold_what_the_single_file_holds(tmp_path):
    one = load(save_folder("qwen3", tmp_path / "one"))
    many = load(save_folder("qwen3", tmp_path / "many", max_shard_size="40KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_same(one.weights, many.weights)


def test_parts_of_a_split_file_hold_what_the_whole_holds(tmp_path):
    (whole,) = make_stand_ins(tmp_path / "whole", ["Llama-3.3-70B-Instruct"])
    (first,) = make_stand_ins(tmp_path / "parts", ["Llama-3.3-70B-Instruct"], parts=3)
    assert_same(load(whole).weights, load(first).weights)


def test_the_rotary_factors_of_a_gguf_file_come_from_its_tensor(tmp_path):
    expected = load(save_folder("llama", tmp_path / "llama")).shape.rope_factors
    factors = np.array(expected, np.float32)
    path = save_gguf("llama", tmp_path / "tiny.gguf", more=[("rope_freqs.weight", factors)])
    assert load(path).shape.rope_factors == pytest.approx(expected)
    assert max(expected) > 1


def test_rotary_factors_that_cannot_be_are_the_fault_of_the_file(tmp_path):
    factors = np.zeros(8, np.float32)
    path = save_gguf("llama", tmp_path / "tiny.gguf", more=[("rope_freqs.weight", factors)])
    with pytest.raises(BadModel, match=r"rope_freqs\.weight has numbers that are not above 0"):
        load(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_type_gets_each_number_rounded_once(dtype, tmp_path):
    path = save_folder("gemma3", tmp_path / "gemma3")
    exact, narrow = flat(load(path).weights), flat(load(path, dtype=dtype).weights)
    for name, tensor in exact.items():
        assert torch.equal(tensor.to(dtype), narrow[name]), name


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_int8_is_what_the_whole_weights_become_in_int8(family, tmp_path):
    path = save_folder(family, tmp_path / family)
    with torch.inference_mode():  # as executors load
        assert_same(load(path, in_int8=True).weights, quantised(load(path).weights))


def test_tied_embeddings_are_one_matrix_in_memory_and_in_the_kept_file(tmp_path, folder):
    path = save_gguf("qwen2", tmp_path / "tied.gguf")
    for _ in range(2):
        loaded = load(path, folder)
        assert loaded.weights.head is loaded.weights.embedding
        assert loaded.num_bytes == loaded.shape.parameters * 4
        if loaded.keep:
            assert loaded.keep()
    assert loaded.is_mapped


def test_a_kept_file_is_mapped_and_holds_the_same_bits(gguf, folder):
    first = load(gguf, folder)
    assert not first.is_mapped
    assert first.keep()
    second = load(gguf, folder)
    assert second.is_mapped
    assert second.keep is None
    assert second.weights_hash == first.weights_hash
    assert_same(first.weights, second.weights)
    assert str(kept_file(folder)) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"in_int8": True}], ids=["bfloat16", "int8"])
def test_each_way_to_hold_numbers_has_a_kept_file_of_its_own(options, gguf, folder):
    exact, narrow = load(gguf, folder), load(gguf, folder, **options)
    assert exact.keep()
    assert narrow.keep()
    assert len(list(folder.glob("*.safetensors"))) == 2
    again = load(gguf, folder, **options)
    assert again.is_mapped
    assert_same(again.weights, narrow.weights)


def test_other_readers_of_safetensors_read_a_kept_file(gguf, folder):
    loaded = load(gguf, folder, in_int8=True)
    loaded.keep()
    found = load_file(kept_file(folder))
    assert torch.equal(found["layers.1.qkv"], loaded.weights.layers[1].qkv.weight)
    assert torch.equal(found["norm"], loaded.weights.norm)
    assert kept_file(folder).read_bytes()[0] % 64 == 56  # the block begins at a multiple of 64


def test_without_a_folder_and_for_plain_safetensors_nothing_is_kept(gguf, folder, tmp_path):
    assert load(gguf).keep is None
    path = save_folder("llama", tmp_path / "llama")
    assert load(path, folder).keep is None
    assert load(path, folder, in_int8=True).keep is not None


def damaged(data, where):
    """The bytes of a kept file with one of them changed, or cut, or with more behind."""
    length = int.from_bytes(data[:8], "little")
    at = {
        "length": 0,
        "header": 20,
        "last of the header": 7 + length,
        "first": 8 + length,
        "last": len(data) - 1,
    }
    if where in at:
        return data[: at[where]] + bytes([data[at[where]] ^ 1]) + data[at[where] + 1 :]
    return {"cut": data[:-1], "cut in the header": data[:100], "empty": b"", "longer": data + b"\0"}[where]


@pytest.mark.parametrize(
    "where",
    [
        "length",
        "header",
        "last of the header",
        "first",
        "last",
        "cut",
        "cut in the header",
        "empty",
        "longer",
    ],
)
def test_a_kept_file_that_was_touched_is_made_anew(where, gguf, folder):
    first = load(gguf, folder)
    first.keep()
    path = kept_file(folder)
    path.write_bytes(damaged(path.read_bytes(), where))
    second = load(gguf, folder)
    assert not second.is_mapped
    assert_same(second.weights, first.weights)
    assert second.keep()
    assert load(gguf, folder).is_mapped


def test_a_kept_file_that_was_copied_is_checked_and_used(gguf, folder):
    first = load(gguf, folder)
    first.keep()
    path = kept_file(folder)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)  # another inode, other times
    second = load(gguf, folder)
    assert second.is_mapped
    assert_same(second.weights, first.weights)


def test_a_kept_file_without_its_note_is_not_used(gguf, folder):
    load(gguf, folder).keep()
    for note in folder.glob("*.json"):
        note.write_text("[" * 10_000)
    assert not load(gguf, folder).is_mapped


def test_a_kept_file_in_another_format_is_not_used(gguf, folder, monkeypatch):
    load(gguf, folder).keep()
    monkeypatch.setattr(slab, "FORMAT", "another")
    assert not load(gguf, folder).is_mapped


def test_one_changed_byte_in_the_source_is_another_model(gguf, folder):
    first = load(gguf, folder)
    first.keep()
    data = bytearray(gguf.read_bytes())
    data[-200] ^= 1
    gguf.write_bytes(data)
    second = load(gguf, folder)
    assert second.weights_hash != first.weights_hash
    assert not second.is_mapped
    assert (
        sum(
            not torch.equal(a, b)
            for a, b in zip(flat(first.weights).values(), flat(second.weights).values(), strict=True)
        )
        == 1
    )


def test_the_hash_of_a_folder_covers_its_configuration(tmp_path):
    path = save_folder("llama", tmp_path / "llama")
    first = load(path).weights_hash
    config = path / "config.json"
    config.write_text(config.read_text().replace("5000.0", "6000.0"))
    assert load(path).weights_hash != first


def test_where_nothing_can_be_kept_loading_goes_on(gguf, tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    loaded = load(gguf, place)
    assert not loaded.keep()
    assert place.read_text() == "in the way"
    assert_same(loaded.weights, load(gguf).weights)


def test_a_disk_that_fills_up_leaves_nothing_behind(gguf, folder, monkeypatch):
    loaded = load(gguf, folder)
    size = loaded.num_bytes // 2

    def full(header, block):
        yield memoryview(header)
        yield block[:size].numpy().data
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slab, "_pieces", full)
    assert not loaded.keep()
    assert not list(folder.iterdir())


def test_two_who_keep_the_same_at_once_do_no_harm(gguf, folder):
    loads = [load(gguf, folder) for _ in range(4)]
    threads = [Thread(target=each.keep) for each in loads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(gguf, folder).is_mapped
    assert_same(load(gguf, folder).weights, loads[0].weights)
    assert not list(folder.glob(".*.tmp"))


def test_what_a_process_left_that_died_while_keeping_is_removed_in_time(gguf, folder):
    folder.mkdir()
    old, new = folder / ".dead.tmp", folder / ".alive.tmp"
    for path in old, new:
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    load(gguf, folder).keep()
    assert not old.exists()
    assert new.exists()


def test_a_tensor_that_is_missing_is_named(gguf):
    checkpoint = open_checkpoint(gguf)
    del checkpoint.tensors["blk.1.attn_k.weight"]
    with pytest.raises(
        BadModel, match=r"tiny\.gguf: has no tensor blk\.1\.attn_k\.weight, which should be \[32, 64\]"
    ):
        load_weights(checkpoint, CPU)


def test_a_tensor_of_another_shape_is_named(gguf):
    checkpoint = open_checkpoint(gguf)
    checkpoint.tensors["blk.1.attn_k.weight"].shape = (32, 32)
    with pytest.raises(
        BadModel, match=r"tensor blk\.1\.attn_k\.weight is \[32, 32\], but should be \[32, 64\]"
    ):
        load_weights(checkpoint, CPU)


def test_a_file_that_became_shorter_is_no_good(gguf):
    checkpoint = open_checkpoint(gguf)
    os.truncate(gguf, gguf.stat().st_size - 3000)
    with pytest.raises(BadModel, match="is cut off: the file has become shorter"):
        load_weights(checkpoint, CPU)


def test_a_file_that_went_away_is_a_failed_load(gguf):
    checkpoint = open_checkpoint(gguf)
    gguf.unlink()
    with pytest.raises(LoadFailed, match="cannot be read"):
        load_weights(checkpoint, CPU)


@pytest.mark.parametrize("kind", ["Q8_K", "Q1_0", "I8"])
def test_a_kind_that_nobody_dequantises_is_named(kind, gguf):
    checkpoint = open_checkpoint(gguf)
    checkpoint.tensors["blk.2.ffn_up.weight"].kind = kind
    with pytest.raises(
        BadModel, match=rf"tensor blk\.2\.ffn_up\.weight is quantised as {kind}, which cannot be read"
    ):
        load_weights(checkpoint, CPU)


def test_numbers_of_another_type_in_safetensors_are_named(tmp_path):
    checkpoint = open_checkpoint(save_folder("llama", tmp_path / "llama"))
    checkpoint.tensors["model.norm.weight"].kind = "F64"
    with pytest.raises(
        BadModel, match=r"tensor model\.norm\.weight is F64, but weights are read from F32, F16, BF16"
    ):
        load_weights(checkpoint, CPU)


def test_an_architecture_that_is_not_run_says_so(gguf):
    checkpoint = open_checkpoint(gguf)
    checkpoint.shape, checkpoint.why_not = None, "it is a mixture"
    with pytest.raises(BadModel, match="it is a mixture"):
        load_weights(checkpoint, CPU)


def test_more_memory_than_there_is_is_a_failed_load():
    with pytest.raises(LoadFailed, match="need 4,611,686,018,427,387,904 bytes, which cpu does not have"):
        slab.new_block(2**62, CPU)


def test_every_tensor_lies_where_its_numbers_can_be_read_in_place():
    shape = Architecture(
        layers=2, hidden=7, heads=1, kv_heads=1, head_dim=2, ffn=5, vocab=3, context_tokens=8, qk_norm=True
    )
    layout = Layout.of(shape, torch.float32, in_int8=True)
    end = 0
    for place in layout.places.values():
        assert place.begin == end
        assert place.begin % place.dtype.itemsize == 0
        end = place.end
    assert end == layout.num_bytes


def test_one_is_added_to_a_norm_of_gemma_before_it_is_rounded(tmp_path):
    model = deepcopy(model_of("gemma2")).to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "narrow")
    norm = load(tmp_path / "narrow").weights.norm
    assert torch.equal(norm, model.model.norm.weight.detach().float() + 1)


def test_rotary_factors_of_the_tensor_and_of_the_metadata_both_divide(tmp_path):
    factors = np.full(8, 3, np.float32)
    path = save_gguf("llama", tmp_path / "tiny.gguf", more=[("rope_freqs.weight", factors)])
    checkpoint = open_checkpoint(path)
    checkpoint.shape.rope_factors = [2.0] * 8
    assert load_weights(checkpoint, CPU).shape.rope_factors == [6.0] * 8
