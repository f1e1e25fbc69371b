"""All stand-ins there are, made once: as Q8_0 in both formats, whole and in parts."""

import pytest

from engine.stand_ins import designs, make_stand_ins

BOTH = ("gguf", "safetensors")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-ins")
    make_stand_ins(folder, list(designs), formats=BOTH)
    return folder


@pytest.fixture(scope="session")
def made_in_parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    make_stand_ins(folder, list(designs), formats=BOTH, parts=3, max_shard_bytes=300_000)
    return folder
