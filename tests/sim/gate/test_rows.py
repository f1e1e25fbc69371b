import pytest

from sim.gate.rows import FAIL, INCONCLUSIVE, PASS, WARN, Row, headline, overall, worst_first


def of(*verdicts):
    return [Row(name=f"{number}", verdict=verdict) for number, verdict in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([PASS] * 3, "GATE PASS 3 of 3"),
        ([PASS, WARN], "GATE PASS 2 of 2 (1 warned)"),
        ([PASS] * 31 + [INCONCLUSIVE] + [FAIL] * 2, "GATE FAIL 2 of 34 (1 inconclusive)"),
        ([FAIL, WARN, INCONCLUSIVE], "GATE FAIL 1 of 3 (1 inconclusive, 1 warned)"),
        ([PASS, INCONCLUSIVE], "GATE INCONCLUSIVE 1 of 2"),
        ([], "GATE INCONCLUSIVE 0 of 0"),
    ],
)
def test_the_headline_counts_what_the_verdict_rests_on(verdicts, said):
    assert headline(of(*verdicts)) == said
    assert overall(of(*verdicts)) == said.split()[1].lower()


def test_the_worst_row_comes_first(rows):
    names = [row.name for row in worst_first(rows)]
    assert names == ["C/route_b", "B/route_a", "C/route_a", "D/route_a/mean_us", "B/quota_check"]
