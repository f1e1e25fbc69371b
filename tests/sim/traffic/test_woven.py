"""One more session in a trace: its turns are there, and all others are what they were."""

from itertools import pairwise

import numpy as np
import pytest

from sim.config import read
from sim.traffic import draw
from sim.traffic.woven import woven

LINES = ["scenario=affinity", "workload.parts.chat.requests=80", "beside.seeds=0"]


@pytest.fixture(scope="module")
def plain():
    return draw(read(LINES).workload, 3, ["model-a"])


def rows_of(trace, name):
    return [index for index in range(len(trace)) if trace.request(index).session == name]


def test_its_turns_come_at_their_times_each_with_what_was_said_before(plain):
    made = woven(plain, "ann", [30.0, 10.0, 20.5], 64, 16)
    rows = rows_of(made, "ann")
    assert [made.arrival_ns[row] / 1e9 for row in rows] == [10.0, 20.5, 30.0]
    assert [made.prompt_tokens[row] for row in rows] == [64, 144, 224]
    prompts = [made.prompt(row) for row in rows]
    for before, after in pairwise(prompts):
        assert np.array_equal(after[: len(before)], before)
    assert {made.request(row).model for row in rows} == {"auto"}


def test_all_others_are_what_they_were(plain):
    made = woven(plain, "ann", [5.0, 6.0], 64, 16)
    others = [row for row in range(len(made)) if made.request(row).session != "ann"]
    assert len(others) == len(plain)
    place = {row: index for index, row in enumerate(others)}
    for index, row in enumerate(others):
        was, now = plain.request(index), made.request(row)
        assert (now.session, now.model, now.tenant) == (was.session, was.model, was.tenant)
        assert (now.arrival_ns, now.max_output_tokens) == (was.arrival_ns, was.max_output_tokens)
        assert np.array_equal(made.prompt(row), plain.prompt(index))
        assert made.think_ns[row] == plain.think_ns[index]
        assert place.get(int(made.after[row]), -1) == plain.after[index]


def test_a_named_session_is_not_another_ones_number(plain):
    made = woven(plain, "ann", [1.0], 8, 8)
    assert len(rows_of(made, "ann")) == 1
    assert (np.diff(made.arrival_ns) >= 0).all()
