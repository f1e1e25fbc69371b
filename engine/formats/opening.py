"""The one door to model files: a path in, a checked `Checkpoint` out, whatever the format."""

import re
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import semver

from engine.errors import BadModel
from engine.formats.checkpoint import Checkpoint, TensorInfo
from engine.formats.families import Reading
from engine.formats.families_of_config import read_config_family
from engine.formats.families_of_gguf import read_gguf_family
from engine.formats.files import shown
from engine.formats.gguf import SPLIT_NAME, GgufArray, GgufHeader, read_split, read_strings
from engine.formats.hugging_face import CONFIG, Folder, read_folder
from engine.formats.required_tensors import check_tensors

DEFAULT_VERSION = "1.0.0"
MAX_NAME = 96
MAX_TAGS = 64
MAX_VERSION = 32

QUANTISATION_SUFFIX = re.compile(
    r"[-._](?:ud-)?(?:i?q\d+\w*|tq\d_\d|b?f16|fp?\d+|bf16|mxfp4\w*|nvfp4|gguf)$", re.IGNORECASE
)

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
    39: "NVFP4", 40: "Q1_0",
}  # fmt: skip


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at `path`: a GGUF file, the first part of a split one, or a Hugging Face folder.

    Reads headers, never weights: some ms, most of them for the vocabulary of a GGUF file. Raises BadModel, which says
    in a sentence what is wrong, and OSError for what the operating system refuses.
    """
    checkpoint = _from_folder(read_folder(path)) if path.is_dir() else _from_gguf(read_split(path))
    check_tensors(checkpoint)
    return checkpoint


def _from_gguf(header: GgufHeader) -> Checkpoint:
    metadata = header.metadata
    reading = read_gguf_family(header)
    return _checkpoint(
        reading,
        format="gguf",
        path=header.path,
        files=header.files,
        name=slug(_stem(header.path)) or slug(_word(metadata, "general.name")),
        version=as_version(_word(metadata, "general.version")),
        quantisation=_file_type(metadata) or commonest_kind(header.tensors.values()),
        licence=shown(_word(metadata, "general.license"), quoted=False) or None,
        tags=_tags(metadata.get("general.tags")),
        tensors=header.tensors,
        metadata=metadata,
    )


def _from_folder(folder: Folder) -> Checkpoint:
    config = folder.config
    reading = read_config_family(folder.path / CONFIG, config, folder.tensors)
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    given = _word(config, "_name_or_path").replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return _checkpoint(
        reading,
        format="safetensors",
        path=folder.path,
        files=folder.files,
        name=slug(given) or slug(folder.path.resolve().name),
        version=DEFAULT_VERSION,
        quantisation=slug(method) if isinstance(method, str) else commonest_kind(folder.tensors.values()),
        licence=folder.licence,
        tags=(),
        tensors=folder.tensors,
        metadata=config,
    )


def _checkpoint(
    reading: Reading, *, files: tuple[Path, ...], path: Path, name: str, **rest: Any
) -> Checkpoint:
    if not name:
        raise BadModel(path, "has no name: neither its metadata nor its file name has a letter or digit")
    return Checkpoint(
        path=path,
        files=files,
        name=name,
        architecture=reading.architecture,
        family=reading.family,
        shape=reading.shape,
        why_not=reading.why_not,
        context_tokens=reading.context_tokens,
        parameters=sum(prod(tensor.shape) for tensor in rest["tensors"].values()),
        size_bytes=sum(file.stat().st_size for file in files),
        **rest,
    )


def slug(text: str) -> str:
    """A name as it can stand in an address: lower case, letters, digits, dots, dashes and underscores."""
    dashed = re.sub(r"[\s-]+", "-", text[: MAX_NAME * 8].lower())
    return re.sub(r"[^a-z0-9._-]", "", dashed)[:MAX_NAME].strip("-._")


def as_version(text: str) -> str:
    """A version as semver has it ("v1.2" is 1.2.0); 1.0.0 for what is none."""
    plain = text.strip().lower().removeprefix("v")
    if len(plain) > MAX_VERSION:
        return DEFAULT_VERSION
    try:
        return str(semver.Version.parse(plain, optional_minor_and_patch=True))
    except ValueError:
        return DEFAULT_VERSION


def commonest_kind(tensors: Iterable[TensorInfo]) -> str:
    """The kind that most bytes of the weights have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.kind] += tensor.num_bytes
    return max(sizes, key=sizes.__getitem__, default="none")


def _word(metadata: dict[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def _file_type(metadata: dict[str, Any]) -> str | None:
    value = metadata.get("general.file_type")
    return FILE_TYPES.get(value) if type(value) is int else None


def _tags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, GgufArray) or value.kind != "STRING" or value.count > MAX_TAGS:
        return ()
    return tuple(shown(tag, quoted=False) for tag in read_strings(value))


def _stem(path: Path) -> str:
    """The file's name without what says its part, its format or its quantisation."""
    match = SPLIT_NAME.fullmatch(path.name)
    stem = match["stem"] if match else path.name.removesuffix(path.suffix)
    return QUANTISATION_SUFFIX.sub("", stem) or stem
