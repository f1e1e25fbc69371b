"""A model on disk, as its headers describe it: what discovery lists, what tokenizers and weights are read from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.settings import Architecture


@dataclass(slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` is outermost first, as torch has it; `kind` is F32, Q4_K, BF16, ..."""

    name: str
    shape: tuple[int, ...]
    kind: str
    path: Path
    offset: int  # from the beginning of the file
    num_bytes: int


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A model on disk. Its headers have been read and checked, its weights have not been touched.

    `architecture` is the word in the file; `family` is what it really is (Mistral's GGUF files say "llama").
    `shape` is None for what our own decoder does not run; `why_not` then says why, in a sentence.
    `metadata` is a GGUF's key-value pairs (arrays not read: `GgufArray`) or the contents of config.json.
    `parameters` counts the elements of all tensors. `licence` is None when the files do not say.
    """

    format: Literal["gguf", "safetensors"]
    path: Path  # the first file, or the folder
    files: tuple[Path, ...]
    name: str
    version: str
    architecture: str
    family: str
    shape: Architecture | None
    why_not: str | None = None
    parameters: int
    quantisation: str
    size_bytes: int
    context_tokens: int
    licence: str | None
    tags: tuple[str, ...] = ()
    tensors: dict[str, TensorInfo] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
