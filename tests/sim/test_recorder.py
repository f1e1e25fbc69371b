"""The requests table in memory: columns, missing values, and the digest."""

import pandas as pd
import pytest

from engine.telemetry import Ended, Routed
from sim.recorder import COLUMNS, MISSING, Numbers, Recorder, row_of


def ended(request_id, **values):
    facts = {
        "tenant": "t",
        "session": None,
        "model_requested": "m",
        "arrival_ns": 5,
        "prompt_tokens": 3,
        "outcome": "completed",
    }
    return Ended(at_ns=9, request_id=request_id, **{**facts, **values})


def recorded(*events):
    recorder = Recorder()
    for event in events:
        recorder.emit(event)
    return recorder


def test_columns_are_those_of_the_design_in_its_order():
    names = [name for name, _, _ in COLUMNS]
    assert names == list(recorded().requests().columns)
    assert names[:9] == [
        "request_id",
        "tenant",
        "session",
        "model_requested",
        "model",
        "replica",
        "arm",
        "priority",
        "attempts",
    ]
    assert names[-2:] == ["outcome", "reason"]


def test_what_did_not_happen_is_missing_and_not_zero():
    table = recorded(ended(1, replica="a", first_token_ns=7), ended(2)).requests()
    assert table["first_token_ns"].tolist() == [7, pd.NA]
    assert table["replica"].isna().tolist() == [False, True]
    assert table["finished_ns"].tolist() == [9, 9]
    assert str(table["arrival_ns"].dtype) == "Int64"


def test_a_priority_below_zero_is_one_like_any_other():
    table = recorded(ended(1, priority=-1), ended(2), ended(3, priority=7)).requests()
    assert table["priority"].tolist() == [-1, 0, 7]
    assert list(table.columns).index("priority") == 7


def test_digest_depends_on_the_rows_and_not_on_the_order_of_their_ends():
    one, two = ended(1, replica="a"), ended(2, replica="b")
    assert recorded(one, two).digest() == recorded(two, one).digest()
    assert recorded(one, two).digest() != recorded(one, ended(2, replica="c")).digest()
    assert recorded(one).digest() != recorded(one, two).digest()


@pytest.mark.parametrize("change", [{"tenant": "u"}, {"reason": "r"}, {"attempts": 2}, {"first_token_ns": 6}])
def test_every_kind_of_column_counts_for_the_digest(change):
    assert recorded(ended(1)).digest() != recorded(ended(1, **change)).digest()


def test_no_word_and_an_empty_word_differ():
    assert recorded(ended(1, reason=None)).digest() != recorded(ended(1, reason="")).digest()


def test_decisions_keep_the_candidates_and_their_loads():
    routed = Routed(4, 1, 1, "round_robin", "b", ("a", "b"), (10, 0), "llama", "strategy", "llama@1.0.0")
    table = recorded(routed).decisions()
    assert table.loc[0].to_dict() == {
        "at_ns": 4,
        "request_id": 1,
        "attempt": 1,
        "strategy": "round_robin",
        "chosen": "b",
        "candidates": "a,b",
        "loads": "10,0",
        "pool": "llama",
        "reason": "strategy",
        "model": "llama@1.0.0",
    }


def test_a_row_has_the_source_of_each_column_in_order():
    named = Ended(**{name: name for name in Ended.names()})
    assert list(row_of(named)) == [source for _, source, _ in COLUMNS]


def test_a_recorder_without_events_gives_empty_tables():
    recorder = recorded()
    assert recorder.requests().empty
    assert recorder.decisions().empty
    assert recorder.timeseries().empty
    assert len(recorder.digest()) == 64


def test_a_column_is_as_wide_as_its_largest_value_and_keeps_all_of_them():
    column, expected, widths = Numbers(), [], []
    for values in ([3, None], [127, -1], [128], [0] * 9, [40_000, 2**31 - 1], [2**31], [-(2**40), 2**62]):
        column.extend(values)
        expected += [MISSING if value is None else value for value in values]
        widths.append(column.data.itemsize)
        assert column.values().tolist() == column.view().tolist() == expected
    assert widths == [1, 1, 2, 2, 4, 8, 8]
    with pytest.raises(OverflowError):
        column.extend([2**63])
    assert column.values().tolist() == expected
