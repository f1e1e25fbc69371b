"""Small models as files: GGUF by the reference writer, folders by the safetensors library."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.formats.required_tensors import expected_tensors


@pytest.fixture
def write_gguf(tmp_path):
    """Writes metadata (after the architecture) and tensors, given by their shapes, as F32."""

    def write(architecture, metadata, shapes, name="model.gguf"):
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in metadata.items():
            add(writer, key, value)
        for tensor, shape in shapes.items():
            writer.add_tensor(tensor, np.zeros(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def add(writer, key, value):
    adders = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
    }
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, int) and value < 0:
        writer.add_int32(key, value)
    else:
        adders[type(value)](key, value)


@pytest.fixture
def write_folder(tmp_path):
    """Writes config.json and the tensors of a shape, in float16."""

    def write(config, shape, name="model", **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        shapes = {**dict(expected_tensors(shape, "safetensors")), **changes}
        tensors = {each: np.zeros(size, np.float16) for each, size in shapes.items() if size is not None}
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write
