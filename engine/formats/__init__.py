"""Files of models, read within bounds: GGUF, safetensors and the folders of Hugging Face."""

from engine.formats.checkpoint import Checkpoint, TensorInfo

__all__ = ["Checkpoint", "TensorInfo"]
