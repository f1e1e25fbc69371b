"""Files of models, read within bounds: GGUF, safetensors and the folders of Hugging Face."""

from engine.formats.checkpoint import Checkpoint, TensorInfo
from engine.formats.gguf import (
    GgufArray,
    GgufHeader,
    read_array,
    read_gguf,
    read_numbers,
    read_split,
    read_strings,
)
from engine.formats.opening import open_checkpoint

__all__ = [
    "Checkpoint",
    "GgufArray",
    "GgufHeader",
    "TensorInfo",
    "open_checkpoint",
    "read_array",
    "read_gguf",
    "read_numbers",
    "read_split",
    "read_strings",
]
