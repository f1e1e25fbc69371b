"""How often a model is in memory: the theory against a plain count, and what is read from a run's tables."""

from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest

from sim.residency import found_in_memory, loads_s, lru_hit_ratio, sent_away_busy
from sim.traffic.popularity import chosen, zipf_weights

S = 1_000_000_000


def counted(models, exponent, resident, count=60_000):
    """The same by an LRU list and draws."""
    line, hits = OrderedDict(), 0
    for model in chosen(np.random.default_rng(7), count, zipf_weights(models, exponent)).tolist():
        hits += model in line
        line[model] = None
        line.move_to_end(model)
        if len(line) > resident:
            line.popitem(last=False)
    return hits / count


@pytest.mark.parametrize(("models", "exponent", "resident"), [(20, 1.8, 3), (20, 1.8, 10), (5, 1.0, 2)])
def test_theory_is_what_a_list_and_draws_make(models, exponent, resident):
    assert lru_hit_ratio(models, exponent, resident) == pytest.approx(
        counted(models, exponent, resident), abs=0.01
    )


def test_what_is_known_of_the_ends():
    chances = zipf_weights(20, 1.8) / zipf_weights(20, 1.8).sum()
    assert lru_hit_ratio(20, 1.8, 1) == pytest.approx(float((chances**2).sum()), abs=1e-4)
    assert lru_hit_ratio(5, 1.0, 5) == 1.0
    published = {1: 0.352, 2: 0.566, 3: 0.692, 5: 0.816, 10: 0.930}
    assert [lru_hit_ratio(20, 1.8, k) for k in published] == pytest.approx(
        list(published.values()), abs=0.005
    )


def moves(*rows):
    table = pd.DataFrame(rows, columns=["at_ns", "subject", "detail"])
    return table.assign(kind="model_state_changed", at_ns=table["at_ns"] * S)


def asked(*rows):
    table = pd.DataFrame(rows, columns=["arrival_ns", "model", "loaded_ns", "finished_ns"])
    times = ["arrival_ns", "loaded_ns", "finished_ns"]
    table[times] = table[times] * S
    return table.assign(request_id=range(len(table)), outcome="completed")


MOVES = moves(
    (0, "a", "loading"), (3, "a", "healthy"), (8, "a", "unloaded"), (8, "b", "loading"), (10, "b", "healthy"),
    (20, "a", "loading"), (21, "a", "healthy"),
)  # fmt: skip


def test_who_finds_a_model_on_its_way_does_not_load_it():
    rows = asked((0, "a", 3, 4), (1, "a", 3, 5), (8, "b", 10, 12), (9, "b", 10, 13), (20, "a", 21, 22))
    assert found_in_memory(rows, MOVES).tolist() == [0, 1, 0, 1, 0]


def test_loads_are_numbered_by_model():
    found = loads_s(MOVES)
    assert found[["model", "number", "took_s"]].to_numpy().tolist() == [
        ["a", 0, 3.0],
        ["a", 1, 1.0],
        ["b", 0, 2.0],
    ]


@pytest.mark.parametrize(("end_s", "times"), [(8, 0), (9, 1)])
def test_who_is_served_when_a_model_leaves_is_seen(end_s, times):
    assert sent_away_busy(asked((3, "a", 3, 4), (4, "a", 4, end_s)), MOVES) == times


def test_who_ends_with_its_model_was_cut_off():
    rows = asked((3, "a", 3, 8))
    assert sent_away_busy(rows, MOVES) == 0
    assert sent_away_busy(rows.assign(outcome="failed"), MOVES) == 1
