from sim.gate.rows import FAIL, PASS, Row
from sim.gate.show import markdown, text


def test_regressions_are_all_listed_the_worst_first_and_passing_rows_folded_away(rows):
    said = text(rows, {"processor": "x", "A/A": "7.0% at most"})
    lines = said.splitlines()
    assert lines[0] == "GATE FAIL 2 of 5 (1 inconclusive, 1 warned)"
    places = [said.index(name) for name in ("C/route_b", "B/route_a", "C/route_a", "D/route_a/mean_us")]
    assert places == sorted(places)
    assert "B/quota_check" not in said
    assert "1 row passes; show=all shows them" in lines
    assert "    more instructions" in lines
    assert "    python -m sim.gate rows=B/route_a" in lines
    worst = next(line for line in lines if line.startswith("C/route_b"))
    assert " ".join(worst.split()) == "C/route_b 8 16 +100.00 % +90.0 to +110.0 % +50% FAIL"
    assert lines[-1].split() == ["A/A", "7.0%", "at", "most"]


def test_all_rows_are_shown_when_asked_for(rows):
    assert "B/quota_check" in text(rows, {}, everything=True)


def test_a_summary_folds_what_passes_and_escapes_what_would_break_its_table(rows):
    odd = Row(name="A/x|y", verdict=FAIL, base="<b>", head="c", note="two\nlines", command="python")
    said = markdown([*rows, odd], {"commit": "abc"}, 10_000)
    assert "## GATE FAIL 3 of 6 (1 inconclusive, 1 warned)" in said
    assert "<details><summary>1 row passes</summary>" in said
    assert r"| A/x\|y | &lt;b> | c |" in said
    assert "| two lines | `python` |" in said


def test_a_summary_stays_within_its_size_and_counts_what_it_leaves_out():
    many = [Row(name=f"A/{number:05}", verdict=FAIL, note="é" * 100) for number in range(2_000)]
    many.append(Row(name="A/good", verdict=PASS))
    said = markdown(many, {"commit": "abc"}, 50_000)
    assert len(said.encode()) <= 50_000
    left = int(next(line for line in said.splitlines() if "rows more" in line).split()[0])
    assert left == 2_000 - said.count("| FAIL |")
