"""One file of every kind that wants to break, stall or take over whoever reads a models folder.

`write_hostile(folder)` fills the folder and returns {path: words that the reason must contain}. Loading one of the
pickles would create the file CANARY in the folder. `write_gguf`, `write_split` and `write_folder` write the good
models beside them.
"""

import json
import os
import pickle
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save_file

CANARY = "canary"

U8, I32, U32, STRING, ARRAY = 0, 5, 4, 8, 9
F32, Q4_0 = 0, 2
HUGE = 2**63

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 16,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}


LAYER = {
    "attn_norm": ("input_layernorm", (8,)),
    "attn_q": ("self_attn.q_proj", (8, 8)),
    "attn_k": ("self_attn.k_proj", (4, 8)),
    "attn_v": ("self_attn.v_proj", (4, 8)),
    "attn_output": ("self_attn.o_proj", (8, 8)),
    "ffn_norm": ("post_attention_layernorm", (8,)),
    "ffn_gate": ("mlp.gate_proj", (16, 8)),
    "ffn_up": ("mlp.up_proj", (16, 8)),
    "ffn_down": ("mlp.down_proj", (8, 16)),
}


class Bomb:
    """What a pickle holds that was made to be loaded by somebody else."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


def write_hostile(folder):
    """Fill `folder`, which exists, and return what each path in it must be refused for."""
    expected = {}
    for write in (gguf_files, split_files, safetensors_folders, pickles, odd_files, symlinks, odd_names):
        expected |= write(folder)
    return expected


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    """A key-value pair of a GGUF header; `value` is its bytes."""
    return text(key) + struct.pack("<I", kind) + value


def number(key, value, kind=U32):
    return pair(key, kind, struct.pack("<I", value))


def array(key, kind, length, data=b""):
    return pair(key, ARRAY, struct.pack("<IQ", kind, length) + data)


def tensor(name, dims, offset=0, kind=F32):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(pairs=(), tensors=(), *, version=3, n_pairs=None, n_tensors=None, data=b""):
    """A GGUF file of these parts, whose counts may lie. The architecture comes first: all are llamas."""
    pairs = [pair("general.architecture", STRING, text("llama")), *pairs]
    counts = (
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    header = b"GGUF" + struct.pack("<IQQ", *counts) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def gguf_files(folder):
    """Headers that lie about lengths, types, places and themselves."""
    row, space = tensor("token_embd.weight", (8,)), bytes(32)
    whole = gguf([number("llama.block_count", 1)], [row], data=space)
    bare = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, U8, HUGE)
    files = {
        "array-2-63.gguf": (bare, "array"),
        "array-of-strings.gguf": (gguf([array("tokens", STRING, 2**40)]), "array"),
        "array-nested.gguf": (gguf([array("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 50)]), "nested"),
        "array-unknown-type.gguf": (gguf([array("a", 99, 1, space)]), "type"),
        "value-unknown-type.gguf": (gguf([pair("a", 99, space)]), "type"),
        "n-tensors-2-63.gguf": (gguf(n_tensors=HUGE), "tensors"),
        "n-pairs-2-63.gguf": (gguf(n_pairs=HUGE), "keys"),
        "string-past-end.gguf": (gguf([pair("a", STRING, struct.pack("<Q", 2**40))]), "string"),
        "string-2-64.gguf": (gguf([pair("a", STRING, struct.pack("<Q", 2**64 - 1))]), "string"),
        "key-long.gguf": (gguf([number("k" * 70_000, 1)]), "key"),
        "key-past-end.gguf": (gguf([struct.pack("<Q", 2**40) + b"k"]), "key"),
        "keys-double.gguf": (gguf([number("a", 1), number("a", 2)]), "twice"),
        "tensors-double.gguf": (
            gguf([], [row, tensor("token_embd.weight", (8,), 32)], data=space * 2),
            "twice",
        ),
        "dims-overflow.gguf": (gguf([], [tensor("t", (2**42 + 1, 2**22))], data=space), "product 2^63"),
        "dims-zero.gguf": (gguf([], [tensor("t", (8, 0))], data=space), "shape [0, 8]"),
        "dims-five.gguf": (gguf([], [tensor("t", (1, 1, 1, 1, 8))], data=space), "5 dimensions"),
        "dims-none.gguf": (gguf([], [tensor("t", ())], data=space), "0 dimensions"),
        "one-gib.gguf": (gguf([], [tensor("t", (2**28,))]), "incomplete"),
        "tensor-type.gguf": (gguf([], [tensor("t", (8,), kind=2**32 - 1)], data=space), "type"),
        "tensor-half-block.gguf": (gguf([], [tensor("t", (8,), kind=Q4_0)], data=space), "block"),
        "offset-outside.gguf": (gguf([], [tensor("t", (8,), 2**40)], data=space), "incomplete"),
        "offset-odd.gguf": (gguf([], [tensor("t", (8,), 3)], data=space * 2), "multiple of 32"),
        "offset-overlap.gguf": (gguf([], [row, tensor("t", (8,))], data=space), "the one before it ends"),
        "alignment-0.gguf": (gguf([number("general.alignment", 0)]), "alignment"),
        "alignment-3.gguf": (gguf([number("general.alignment", 3)]), "alignment"),
        "alignment-2-30.gguf": (gguf([number("general.alignment", 2**30)]), "alignment"),
        "alignment-int32.gguf": (gguf([number("general.alignment", 32, I32)]), "alignment"),
        "alignment-text.gguf": (gguf([pair("general.alignment", STRING, text("32"))]), "alignment"),
        "version-1.gguf": (gguf(version=1), "version"),
        "version-4.gguf": (gguf(version=4), "version"),
        "big-endian.gguf": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        "empty.gguf": (b"", "is empty"),
        "short.gguf": (b"GGUF\x03", "bytes"),
        "cut-header.gguf": (whole[: len(whole) // 2], "ends inside"),
        "cut-weights.gguf": (whole[:-1], "incomplete"),
        "not-gguf.gguf": (b"<!DOCTYPE html><html><head><title>404 Not Found</title>", "GGUF"),
        "architecture-number.gguf": (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + number("general.architecture", 7) + space,
            "architecture",
        ),
    }
    return _written(folder, "gguf", files)


def split_files(folder):
    """Parts of split files whose others are not there."""
    files = {
        "no-second-00001-of-00003.gguf": (gguf(), "missing"),
        "no-second-00003-of-00003.gguf": (gguf(), None),
        "no-first-00002-of-00002.gguf": (gguf(), None),
        "too-far-00003-of-00002.gguf": (gguf(), None),
        "thousands-00001-of-99999.gguf": (gguf(), "missing"),
    }
    return _written(folder, "split", files) | {
        "split/no-first-00001-of-00002.gguf": "part 1 missing",
        "split/too-far-00001-of-00002.gguf": "part 3 of 2",
    }


def safetensors(header, data=b"", length=None):
    """A safetensors file; `header` is bytes or becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def safetensors_folders(folder):
    """Folders as Hugging Face has them, each with one thing wrong."""
    a, b = json.dumps(entry(0, 8)), json.dumps(entry(8, 16))
    weights = {
        "header-2-60": (safetensors({"t": entry(0, 8)}, bytes(8), length=2**60), "header"),
        "header-past-end": (safetensors({"t": entry(0, 8)}, length=4096), "header"),
        "header-not-json": (safetensors(b"{'t': 1}"), "JSON"),
        "header-deep": (safetensors(b'{"t":' + b"[" * 50_000), "too deeply"),
        "header-list": (safetensors([1, 2]), "does not begin with {"),
        "keys-double": (safetensors(f'{{"t":{a},"t":{b}}}'.encode(), bytes(16)), "twice"),
        "overlap": (safetensors({"s": entry(0, 8), "t": entry(4, 12)}, bytes(12)), "overlaps"),
        "gap": (safetensors({"s": entry(0, 8), "t": entry(16, 24)}, bytes(24)), "hole"),
        "past-end": (safetensors({"t": entry(0, 8)}, bytes(4)), "tensors end at"),
        "backwards": (safetensors({"t": entry(8, 0)}, bytes(8)), "begin and end"),
        "shape-lies": (safetensors({"t": entry(0, 8, (3,))}, bytes(8)), "needs 12"),
        "shape-negative": (safetensors({"t": entry(0, 8, (-1, -2))}, bytes(8)), "shape [-1, -2]"),
        "shape-overflow": (safetensors({"t": entry(0, 8, (2**42 + 1, 2**22))}, bytes(8)), "2^63"),
        "type-unknown": (safetensors({"t": entry(0, 8, dtype="X99")}, bytes(8)), "unknown dtype 'X99'"),
        "cut": (b"\x10\x00", "too few"),
        "empty": (b"", "is empty"),
        "pickled": (pickle.dumps(Bomb(folder / CANARY)), "pickle"),
        "zipped": (_zipped(folder, pickle.dumps(Bomb(folder / CANARY))), "pickle"),
    }
    for name, (data, _) in weights.items():
        _model(folder, name, data)
    whole = safetensors({"t": entry(0, 8)}, bytes(8))
    (folder / "outside.safetensors").write_bytes(whole)
    _model(folder, "index-outside", None, index={"t": "../../outside.safetensors"})
    _model(folder, "index-absolute", None, index={"t": "/etc/hostname"})
    _model(folder, "index-missing", None, index={"t": "model-00001-of-00002.safetensors"})
    _model(folder, "config-not-json", whole, config=b"{nothing")
    _model(folder, "config-deep", whole, config=b'{"a":' + b"[" * 50_000)
    _model(folder, "config-list", whole, config=b"[]")
    _model(folder, "config-alone", None)
    return {f"hf/{name}": words for name, (_, words) in weights.items()} | {
        "outside.safetensors": "without a config.json",
        "hf/index-outside": "plain name",
        "hf/index-absolute": "plain name",
        "hf/index-missing": "model-00001-of-00002.safetensors",
        "hf/config-not-json": "config.json",
        "hf/config-deep": "config.json",
        "hf/config-list": "config.json",
        "hf/config-alone": "without weights",
    }


def pickles(folder):
    """The same bomb under every name that invites to load it."""
    bomb = pickle.dumps(Bomb(folder / CANARY))
    names = (
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "model.ckpt",
        "model.pkl",
        "model.gguf",
        "x.safetensors",
    )
    files = dict.fromkeys(names, (bomb, "pickle"))
    files["zipped.pt"] = files["zipped.gguf"] = (_zipped(folder, bomb), "pickle")
    files["old.pkl"] = (pickle.dumps(Bomb(folder / CANARY), protocol=0), "not read")
    return _written(folder, "pickled", files)


def odd_files(folder):
    """What is no file at all, under the name of one."""
    (folder / "odd").mkdir()
    os.mkfifo(folder / "odd" / "pipe.gguf")
    os.mkfifo(folder / "odd" / "pipe.bin")
    _model(folder, "pipe", None)
    os.mkfifo(folder / "hf" / "pipe" / "model.safetensors")
    (folder / "odd" / "device.gguf").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder / "odd")  # the name of a socket may have a hundred bytes
        try:
            server.bind("socket.gguf")
        finally:
            os.chdir(here)
    deep = folder.joinpath("deep", *["d"] * 20)
    deep.mkdir(parents=True)
    (deep / "model.gguf").write_bytes(gguf())
    return {
        "odd/pipe.gguf": "a named pipe",
        "odd/pipe.bin": "a named pipe",
        "odd/socket.gguf": "a socket",
        "odd/device.gguf": "outside the folder",
        "hf/pipe": "model.safetensors: is a named pipe",
        "/".join(["deep", *["d"] * 16]): "nested deeper than 16",
    }


def symlinks(folder):
    """Symlinks that leave the folder, lead nowhere or lead in circles."""
    links, outside = folder / "links", folder.parent / f"{folder.name}-outside"
    links.mkdir()
    outside.mkdir()
    (outside / "secret.gguf").write_bytes(gguf())
    targets = {
        "absolute.gguf": ("/etc/hostname", "outside the folder"),
        "dots.gguf": (f"../../{outside.name}/secret.gguf", "outside the folder"),
        "folder": (outside, "outside the folder"),
        "broken.gguf": ("nowhere.gguf", "broken symlink"),
        "itself.gguf": ("itself.gguf", "symlink"),
        "circle": ("..", "loop"),
        "here": (".", "loop"),
    }
    for name, (target, _) in targets.items():
        (links / name).symlink_to(target)
    _model(folder, "leaves", None)
    (folder / "hf" / "leaves" / "model.safetensors").symlink_to(outside / "secret.gguf")
    return {f"links/{name}": words for name, (_, words) in targets.items()} | {
        "hf/leaves": "model.safetensors: is a symlink to a path outside the folder"
    }


def odd_names(folder):
    """Names that would write on a terminal, in a log or over another line."""
    names = (
        b"two\nlines.gguf",
        b"\x1b[2J\x1b[31mred.gguf",
        b"not-utf8-\xff\xfe.gguf",
        "right\u202eleft.gguf".encode(),
    )
    files = {os.fsdecode(name): (b"", "is empty") for name in names}
    return _written(folder, "names", files)


def _written(folder, inside, files):
    """Write {name: (bytes, words)} into a folder of `folder`; words of None: not told about by itself."""
    (folder / inside).mkdir()
    for name, (data, _) in files.items():
        (folder / inside / name).write_bytes(data)
    return {f"{inside}/{name}": words for name, (_, words) in files.items() if words is not None}


def _model(folder, name, weights, *, config=None, index=None):
    """A folder hf/`name` with a config.json, and with weights or an index of them if there are any."""
    path = folder / "hf" / name
    path.mkdir(parents=True)
    (path / "config.json").write_bytes(config or json.dumps(CONFIG).encode())
    if weights is not None:
        (path / "model.safetensors").write_bytes(weights)
    if index is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _zipped(folder, data):
    """The pickle as torch.save wraps it."""
    path = folder / "zipped"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    wrapped = path.read_bytes()
    path.unlink()
    return wrapped


def write_gguf(path, name="small", version="1.0.0"):
    """A llama of one layer, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(GGUFWriter(path, "llama"), name, version)
    return path


def write_split(folder, name="s"):
    """The same in two parts; their paths."""
    _write(GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=6), name, "1.0.0")
    return sorted(folder.glob(f"{name}-*.gguf"))


def _write(writer, name, version):
    writer.add_name(name)
    writer.add_version(version)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"t{number}" for number in range(16)])
    shapes = {"token_embd": (16, 8), "output_norm": (8,)}
    shapes |= {f"blk.0.{tensor}": shape for tensor, (_, shape) in LAYER.items()}
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(path, name="folder"):
    """The same as a Hugging Face folder."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG | {"_name_or_path": name}))
    shapes = {"model.embed_tokens": (16, 8), "model.norm": (8,), "lm_head": (16, 8)}
    shapes |= {f"model.layers.0.{tensor}": shape for tensor, shape in LAYER.values()}
    tensors = {f"{tensor}.weight": np.zeros(shape, np.float32) for tensor, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return path
