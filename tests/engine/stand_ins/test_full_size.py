import pytest

from engine.formats import open_checkpoint
from engine.stand_ins.full_size import REFERENCES, write_reference


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_reference(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("number", range(5))
def test_a_header_at_full_size_stretches_to_the_published_size(number, written):
    size = written[number].stat().st_size
    assert abs(size - REFERENCES[number].published_bytes) <= 5e6  # to the last digit that is published


def test_the_files_are_sparse(written):
    assert sum(path.stat().st_blocks * 512 for path in written) < 64e6


@pytest.mark.parametrize("number", range(5))
def test_our_reader_finds_the_true_shape(number, written):
    checkpoint, reference = open_checkpoint(written[number]), REFERENCES[number]
    assert checkpoint.family == reference.shape.family
    assert checkpoint.quantisation == ("Q4_K_M" if reference.mix else "Q8_0")
    found, wanted = checkpoint.shape, reference.shape
    assert checkpoint.parameters == wanted.parameters + (64 if reference.rope_factors else 0)
    for key in (
        "layers",
        "hidden",
        "heads",
        "kv_heads",
        "head_dim",
        "ffn",
        "vocab",
        "window_tokens",
        "rope_theta",
    ):
        assert getattr(found, key) == getattr(wanted, key), key
