import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sim.streams import stream

ROOT = Path(__file__).parents[2]
FIRST_RAW_OF_SEED_42 = {
    "arrivals": 6795022145387086528,
    "service": 17629543886722493928,
    "routing": 7532996772392160959,
}


@pytest.mark.parametrize(("name", "first"), FIRST_RAW_OF_SEED_42.items())
def test_a_stream_begins_with_its_published_anchor(name, first):
    assert stream(42, name).bit_generator.random_raw() == first


def test_streams_of_other_names_and_other_seeds_differ():
    drawn = [stream(seed, name).random(4).tolist() for seed in (1, 2) for name in ("arrivals", "service")]
    assert len({tuple(values) for values in drawn}) == 4


def test_two_streams_of_one_name_do_not_share_their_state():
    first, second = stream(7, "faults"), stream(7, "faults")
    first.random(1000)
    assert second.random() == stream(7, "faults").random()


def test_streams_are_not_correlated():
    a, b = stream(1, "arrivals").random(100_000), stream(1, "service").random(100_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(100_000)


def test_a_stream_is_the_same_in_another_process():
    code = "from sim.streams import stream; print(stream(42, 'arrivals').random(3).tolist())"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert said == {f"{stream(42, 'arrivals').random(3).tolist()}\n"}
