"""Lengths from the file of a histogram: as often as their weights say, or refused with the line."""

import numpy as np
import pytest

from sim.traffic import BadTrace
from sim.traffic.lengths import LengthSettings


@pytest.fixture
def lengths(tmp_path):
    def made(content):
        path = tmp_path / "lengths.csv"
        path.write_bytes(content.encode())
        law = LengthSettings(law="histogram", file=str(path))
        law.check("workload.prompt")
        return law.draw(np.random.default_rng(1), 20_000)

    return made


@pytest.mark.parametrize(
    "content",
    [
        "tokens,weight\n7,1\n90,3\n",
        "\ufefftokens,weight\r\n7,1\r\n90,3\r\n",
        "tokens,weight\n7,1\n90,3\n\n\n",
        "tokens,weight\n90,1.5\n7,1\n90,1.5",
    ],
)
def test_a_file_of_lengths_is_drawn_from_as_its_weights_say(content, lengths):
    drawn = lengths(content)
    assert set(drawn.tolist()) == {7, 90}
    assert (drawn == 90).mean() == pytest.approx(0.75, abs=0.013)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("tokens,weight\n7,1\n\n90,3\n", "line 3 is '', but must be a whole number and a weight"),
        ("tokens,weight\n0,1\n", "line 2 is '0,1', but must be 1 to 10,000,000 tokens"),
        ("tokens,weight\n7,nan\n", "line 2 is '7,nan', but must be .* weight from 0"),
        ("tokens,weight\n7,0\n", "must have a weight above zero, but has none in 1 rows"),
        ("tokens,weight\n7,1e308\n90,1e308\n", "has weights that are inf together, but must"),
        ("weight,tokens\n1,7\n", "line 1 must be the header tokens,weight"),
        ("", "line 1 must be the header tokens,weight"),
    ],
)
def test_a_file_that_is_no_histogram_is_refused(content, why, lengths):
    with pytest.raises(BadTrace, match=why) as refusal:
        lengths(content)
    assert "lengths.csv" in str(refusal.value)
