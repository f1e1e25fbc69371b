import json

import pytest

from sim.fidelity.compare import FAIL
from sim.fidelity.folder import FidelityFolder, read_cases
from sim.fidelity.pictures import CAPTIONS, by_load, errors, kind_of, save_all
from sim.fidelity.report import (
    UNTOLD,
    as_json,
    cell_rows,
    closing_lines,
    command,
    from_json,
    html,
    markdown,
    notes,
    percent,
    summary_rows,
    tables,
    verdict_of,
)
from sim.fidelity.settings import read


def test_without_a_finished_case_nothing_is_decided():
    assert verdict_of([]) == "inconclusive"
    assert closing_lines([]) == ["INCONCLUSIVE  0 cases"]
    assert "LLMServingSim" in markdown([], [], read([]))
    assert (percent(0.0123), percent(None)) == ("+1.23 %", "")


def test_a_planted_error_of_ten_percent_fails_the_case_and_is_the_worst_cell(make_case):
    good, bad = make_case("poisson50"), make_case("poisson70", factor=0.9)
    assert (good.verdict, bad.verdict, verdict_of([good, bad])) == ("pass", "fail", "fail")
    assert "FAIL  2 cases" in closing_lines([good, bad])[0]
    assert "of poisson70, -10.00 %" in closing_lines([good, bad])[-1]
    assert [row[-1] for row in summary_rows([good, bad])] == ["pass", "fail"]


def test_a_load_that_was_late_decides_nothing(make_case):
    late = make_case(factor=2.0, voids=["the load was late"])
    assert FAIL in [cell.verdict for cell in late.cells]
    assert late.verdict == "inconclusive"


def test_every_cell_stands_there_with_sign_absolute_error_floor_mark_and_limit(make_case):
    rows = cell_rows(make_case(factor=0.95, real_factor=1.04).cells)
    assert len(rows) == 13
    by_name = {row[0]: row for row in rows}
    _, real, simulated, off, error, floor, floors, spread, mark, limit, n, verdict, interval = by_name[
        "E2E p99, ms"
    ]
    assert float(simulated) - float(real) == pytest.approx(float(off), abs=0.002)
    assert off.startswith("-")
    assert error.startswith("-")
    assert (floor, mark, limit, n, verdict) == ("3.92 %", "4.00 %", "7.84 %", "400", "pass")
    assert float(floors) == pytest.approx(abs(float(error[:-2])) / 3.92, abs=0.1)
    assert " to " in interval
    assert spread == "3.65 %"  # the simulated runs are alike, the real ones are not
    assert by_name["throughput, /s"][-2] == "pass"


def test_how_fast_the_machine_was_is_said_where_somebody_measured(make_case):
    case = make_case()
    assert (
        "took 3.0 % of the time, runs took longer than their calibrations by +4.00 %, -3.00 %"
        in "\n".join(notes(case))
    )
    case.speeds = []
    assert "yardstick, which" not in "\n".join(notes(case))


def test_folders_of_before_there_was_a_yardstick_can_be_read(make_case):
    values = as_json(make_case())
    for name in ("yard_share", "speeds"):
        del values[name]
    for cell in values["cells"]:
        del cell["spread"]
    found = from_json(values)
    assert (found.yard_share, list(found.speeds)) == (0.0, [])
    assert {cell.spread for cell in found.cells} == {None}


def test_a_case_without_marks_is_shown_whole_and_held_against_nothing(make_case):
    case = make_case("poisson100", factor=3.0)
    assert case.verdict == "pass"
    assert {cell.verdict for cell in case.cells} == {"shown"}
    assert "+200.00 %" in "\n".join(tables([case]))


@pytest.mark.slow
def test_a_folder_holds_the_report_in_every_form_and_can_be_shown_again(make_case, tmp_path):
    cases = [make_case("poisson50"), make_case("poisson70", factor=0.9)]
    cases[0].points, cases[0].residuals = cases[0].points.iloc[:0], cases[0].residuals.iloc[:0]
    settings = read([f"folder={tmp_path}", "cases=poisson50,poisson70", "fleet.max_batch=8"])
    folder = FidelityFolder(settings)
    for case in reversed(cases):
        folder.keep(case)
    folder.write(cases)
    folder.publish()
    assert not folder.path.name.endswith(".partial")
    whole = json.loads((folder.path / "fidelity.json").read_text())
    assert (whole["verdict"], [case["name"] for case in whole["cases"]]) == (
        "fail",
        ["poisson50", "poisson70"],
    )
    page, text = (folder.path / "report.html").read_text(), (folder.path / "report.md").read_text()
    for said in ("TTFT p99, ms", "BLIS", "sim.fidelity rank", "-10.00 %", "is not told how fast"):
        assert said in page
        assert said in text
    names = [path.name for path in (folder.path / "plots").glob("*.png")]
    assert {kind_of(name) for name in names} == set(CAPTIONS)
    assert page.count("data:image/png;base64,") == text.count("](plots/") == len(names) == 6
    assert 'src="plots' not in page
    assert tables(read_cases(folder.path)) == tables(cases)
    assert read(command(settings).split()[3:]).overrides == ["fleet.max_batch=8"]


def test_errors_without_the_yardstick_stand_beside_and_are_judged_by_nobody(make_case):
    case = make_case(factor=1.2, real_factor=1.5)
    lines = tables([case])
    (row,) = [line for line in lines if line.startswith("| poisson70 | -19.2")]
    assert row.endswith("| 33.67 % | 40.00 % |")
    assert {cell.verdict for cell in case.untold} == {"shown"}
    assert from_json(as_json(case)).untold == case.untold
    before = as_json(case)
    del before["untold"]
    assert UNTOLD not in tables([from_json(before)])


def test_the_lines_at_an_error_are_two_spreads_to_both_sides(make_case):
    case = make_case(factor=1.2, real_factor=1.5)
    (mean,) = [cell for cell in case.cells if cell.name == "TTFT mean"]
    mean.spread = 0.07  # another than the floor
    for figure in (errors([case]), by_load([case])):
        lines = figure.axes[0].containers[0].lines[2][0]
        (_, low), (_, high) = lines.get_segments()[0]
        assert high - low == pytest.approx(400 * mean.spread)


def test_pictures_need_no_p99_and_no_single_requests(make_case, make_run, drawn, tmp_path):
    case = make_case(of=make_run(drawn(20.0, 60), drawn(3.0, 60, seed=2)))
    case.points, case.residuals = case.points.iloc[:0], case.residuals.iloc[:0]
    assert case.cells[3].real is None
    assert save_all([case], tmp_path / "plots") == ["errors.png", "floors.png", "by_load.png"]
    assert html([], [], read([]), tmp_path).startswith("<!DOCTYPE html>")
