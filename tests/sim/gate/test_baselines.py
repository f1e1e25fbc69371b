import json

import pytest

from engine.errors import BadSettings
from sim.gate.baselines import MOST_RENEWALS, Baselines


@pytest.fixture
def baselines(tmp_path):
    return Baselines(tmp_path / "new", "counted")


def test_figures_are_kept_by_what_they_hold_for(baselines):
    baselines.renew("here", {"B/a": 1, "B/b": 2}, {"B/a", "B/b"}, "first")
    baselines.renew("there", {"B/a": 7}, {"B/a", "B/b"}, "another machine")
    baselines.renew("here", {"B/a": 3}, {"B/a", "B/b"}, "a is larger")
    assert baselines.figures("here") == {"B/a": 3, "B/b": 2}
    assert baselines.figures("there") == {"B/a": 7}
    assert baselines.figures("nowhere") is None
    assert baselines.keys() == ["here", "there"]


def test_a_row_that_is_gone_loses_its_baseline(baselines):
    baselines.renew("here", {"B/a": 1, "B/gone": 2}, {"B/a", "B/gone"}, "first")
    baselines.renew("here", {"B/a": 1}, {"B/a"}, "without the other")
    assert baselines.figures("here") == {"B/a": 1}


def test_the_latest_reasons_are_kept(baselines):
    for number in range(MOST_RENEWALS + 3):
        baselines.renew("here", {"B/a": number}, {"B/a"}, f"reason {number}")
    renewals = json.loads(baselines.path.read_text())["baselines"]["here"]["renewals"]
    assert [each["reason"] for each in renewals][:2] == [
        f"reason {MOST_RENEWALS + 2}",
        f"reason {MOST_RENEWALS + 1}",
    ]
    assert len(renewals) == MOST_RENEWALS


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 2, "baselines": {}}',
        '{"version": 1}',
        '{"version": 1, "baselines": {"here": 5}}',
        '{"version": 1, "baselines": {"here": {"figures": []}}}',
    ],
)
def test_a_file_that_is_broken_is_refused_and_not_taken_for_an_empty_one(baselines, content):
    baselines.folder.mkdir()
    baselines.path.write_text(content)
    with pytest.raises(BadSettings, match=r"counted\.json"):
        baselines.figures("here")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "exact.json.partial").mkdir()
    with pytest.raises(BadSettings, match="but nothing can be written there"):
        Baselines(tmp_path, "exact").renew("here", {"A/a": 1}, {"A/a"}, "why")
