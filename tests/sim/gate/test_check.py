"""The order of things in a check, a renewal and a self-test, with figures that are given."""

from dataclasses import dataclass

import pytest

from engine.errors import BadSettings, UnknownName
from sim.gate import check as module
from sim.gate.baselines import Baselines
from sim.gate.check import CLASSES, Selection, check, selftest, update
from sim.gate.child import MeasuringFailed
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS


@dataclass
class Gate:
    """A gate of one class whose baseline of everything is 10."""

    kind: object
    selection: Selection

    def verdicts(self):
        return {row.name: row.verdict for row in check(self.selection)}


@pytest.fixture
def gate(planned, tmp_path):
    def made(figures, base=10, **options):
        kind = planned({name: list(values) for name, values in figures.items()}, **options)
        if base is not None:
            held = dict.fromkeys(figures, base)
            Baselines(tmp_path, kind.file).renew(kind.key(), held, set(figures), "a test")
        return Gate(kind, Selection(classes=("A",), baselines=tmp_path, known=(kind,)))

    return made


def test_what_is_measured_is_held_against_its_baseline(gate):
    assert gate({"A/same": [10], "A/more": [11], "A/less": [9]}).verdicts() == {
        "A/same": PASS,
        "A/less": PASS,
        "A/more": FAIL,
    }


@pytest.mark.parametrize(
    ("figures", "verdict", "turns"),
    [
        ([11, 10, 11], PASS, 2),
        ([11, 12, 10], PASS, 3),
        ([11, 12, 13], FAIL, 3),
        ([-1, -1, -1], INCONCLUSIVE, 3),
        ([-1, 10, 11], PASS, 2),
        ([11, -1, -1], FAIL, 3),
        ([-1, 11, -1], FAIL, 3),
    ],
)
def test_what_does_not_pass_is_measured_twice_more(gate, figures, verdict, turns):
    made = gate({"A/row": figures, "A/other": [10]})
    assert made.verdicts() == {"A/other": PASS, "A/row": verdict}
    assert made.kind.turns == turns


def test_without_a_baseline_nothing_passes(gate):
    (row,) = check(gate({"A/row": [10]}, base=None).selection)
    assert (row.verdict, row.head, row.note) == (INCONCLUSIVE, 10, "no baseline for here")


def test_a_row_without_a_baseline_and_a_baseline_without_a_row_are_both_told(gate, tmp_path):
    made = gate({"A/row": [10]})
    Baselines(tmp_path, "planned").renew("here", {"A/gone": 1}, {"A/gone"}, "another")
    notes = {row.name: (row.verdict, row.note) for row in check(made.selection)}
    assert notes["A/row"] == (INCONCLUSIVE, "no baseline of this row for here")
    assert notes["A/gone"][0] == INCONCLUSIVE
    assert "nothing measures it any more" in notes["A/gone"][1]


def test_a_class_that_cannot_be_measured_here_says_why(gate):
    (row,) = check(gate({"A/row": [10]}, missing="no valgrind").selection)
    assert (row.verdict, row.note) == (INCONCLUSIVE, "no valgrind")


def test_a_measurement_that_fails_is_told_for_each_row_that_is_left(gate):
    made = gate({"A/first": [10], "A/second": [MeasuringFailed("ended with code 1")], "A/third": [10]})
    found = {row.name: (row.verdict, row.note) for row in check(made.selection)}
    assert found == {
        "A/first": (PASS, ""),
        "A/second": (FAIL, "ended with code 1"),
        "A/third": (FAIL, "ended with code 1"),
    }


def test_a_row_that_is_left_out_without_a_word_does_not_pass_in_silence(gate):
    made = gate({"A/row": [10], "A/other": [10]})
    measure = made.kind.measure
    made.kind.measure = lambda names, doubled: measure([name for name in names if name != "A/row"], doubled)
    found = {row.name: (row.verdict, row.note) for row in check(made.selection)}
    assert found == {"A/other": (PASS, ""), "A/row": (FAIL, "the process that measures has left it out")}


def test_a_renewal_writes_what_it_measured_with_its_reason(gate, tmp_path):
    made = gate({"A/row": [12]})
    (row,) = update(made.selection, "prefixes are longer")
    assert (row.verdict, row.base, row.head) == (PASS, 10, 12)
    assert made.verdicts() == {"A/row": PASS}
    newest = Baselines(tmp_path, "planned")._read()["here"]["renewals"][0]
    assert newest["reason"] == "prefixes are longer"
    assert {"date", "commit", "dirty", "processor", "rows"} <= newest.keys()


def test_the_self_test_passes_a_gate_that_works(gate):
    tested = list(selftest(gate({"A/row": [10], "A/other": [4]}, base=None).selection, times=20))
    assert {row.verdict for row in tested} == {PASS}
    assert [row.name for row in tested if "doubled" not in row.name] == [
        "selftest/A/row, the same code",
        "selftest/A/other, the same code",
    ]
    assert sum(row.name.endswith(", doubled work") for row in tested) == 2
    assert sum(row.name.endswith(", beside doubled work") for row in tested) == 2


def test_the_self_test_fails_a_gate_that_is_blind(gate):
    made = gate({"A/row": [10]}, base=None)
    made.kind.judge = lambda base, head: module.Row(name=head.name, verdict=PASS)
    failed = [row.name for row in selftest(made.selection) if row.verdict == FAIL]
    assert failed == ["selftest/A/row, doubled work"]


def test_the_self_test_fails_a_gate_that_cries_wolf(gate):
    made = gate({"A/row": [10]}, base=None)
    made.kind.judge = lambda base, head: module.Row(name=head.name, verdict=FAIL)
    failed = [row.name for row in selftest(made.selection, times=3) if row.verdict == FAIL]
    assert failed == ["selftest/A/row, the same code"]


def test_rows_are_chosen_by_name_and_class():
    found = Selection(classes=("A", "C"), rows=("*/route_*", "A/kept/*"))
    assert [kind.letter for kind, _ in found.wanted()] == ["A", "C"]
    names = [name for _, each in found.wanted() for name in each]
    assert "C/route_least_loaded" in names
    assert "A/kept/registry_lookup" in names
    assert "C/quota_check" not in names


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"classes": ("E",)}, BadSettings, "classes is 'E', but must be some of A, B, C, D"),
        ({"rows": ("nothing",)}, UnknownName, "no row is called 'nothing'; choose from A/failover/events, "),
        (
            {"classes": ("B",), "rows": ("A/*",)},
            BadSettings,
            r"rows is 'A/\*', of which none is in classes=B",
        ),
    ],
)
def test_a_selection_of_nothing_is_refused(options, error, said):
    with pytest.raises(error, match=said):
        Selection(**options)


def test_every_row_has_a_name_of_its_own_under_its_class():
    names = [name for kind in CLASSES for name in kind.names()]
    assert len(set(names)) == len(names)
    assert all(name.startswith(f"{kind.letter}/") for kind in CLASSES for name in kind.names())


def test_the_repository_has_a_baseline_of_every_row_it_measures():
    for kind in CLASSES:
        if kind.file:
            baselines = Baselines(Selection().baselines, kind.file)
            held = baselines.keys()
            assert held
            for key in held:
                assert sorted(baselines.figures(key)) == sorted(kind.names()), key
