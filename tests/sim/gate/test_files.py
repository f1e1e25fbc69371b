import json
from xml.etree import ElementTree as ET

import pytest

from engine.errors import BadSettings
from sim.gate.files import SUMMARY, junit, write
from sim.gate.rows import FAIL, Row


@pytest.fixture(autouse=True)
def no_summary(monkeypatch):
    monkeypatch.delenv(SUMMARY, raising=False)


def test_json_has_every_row_the_worst_first(rows, tmp_path):
    write(rows, {"commit": "abc"}, tmp_path / "new" / "out")
    told = json.loads((tmp_path / "new" / "out" / "gate.json").read_text())
    assert told["headline"] == "GATE FAIL 2 of 5 (1 inconclusive, 1 warned)"
    assert told["verdict"] == "fail"
    assert told["counts"] == {"fail": 2, "inconclusive": 1, "warn": 1, "pass": 1}
    assert [row["name"] for row in told["rows"]][:2] == ["C/route_b", "B/route_a"]
    assert told["rows"][0]["interval"] == [0.9, 1.1]
    assert told["environment"] == {"commit": "abc"}


def test_junit_has_a_case_for_each_row_and_a_message_for_each_failure(rows):
    suite = ET.fromstring(junit(rows)).find("testsuite")  # noqa: S314  written here
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "5",
        "failures": "2",
        "errors": "1",
    }
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == [row.name for row in rows]
    assert cases["B/quota_check"].get("classname") == "gate.B"
    assert list(cases["B/quota_check"]) == []
    failure = cases["C/route_b"].find("failure")
    assert failure.get("message") == (
        "FAIL; base 8, head 16 (+100.00 %); 95 % interval +90.0 to +110.0 %; limit +50%; "
        "python -m sim.gate rows=C/route_b"
    )
    assert "too busy" in cases["C/route_a"].find("error").get("message")


def test_what_xml_cannot_hold_is_replaced():
    told = junit([Row(name="A/\x00x", verdict=FAIL, note="\x1b[31m & <b>")])
    assert "&amp; &lt;b&gt;" in told
    assert ET.fromstring(told).find(".//testcase").get("name") == "A/?x"  # noqa: S314


def test_the_summary_of_a_step_is_added_to_what_is_there(rows, tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv(SUMMARY, str(path))
    write(rows, {}, tmp_path)
    assert path.read_text().startswith("before\n## GATE FAIL")


@pytest.mark.parametrize("where", ["a file", "a file/below"])
def test_a_folder_that_cannot_be_written_is_named(rows, tmp_path, where):
    (tmp_path / "a file").write_text("")
    with pytest.raises(BadSettings, match=f"out is '.*{where}', but nothing can be written there"):
        write(rows, {}, tmp_path / where)
