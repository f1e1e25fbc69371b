"""The findings of a run: quiet where all is well, in order, and where people read them."""

import json
from dataclasses import asdict

import pytest

import sim
from sim.__main__ import show
from sim.detectors.finding import Finding, worst_first
from sim.report import markdown, slow_and_fast
from sim.runs import open_run

HEALTHY = {
    "chat": ["workload=chat", "workload.requests=800", "workload.rate=60"],
    "generated": ["workload=generated", "workload.requests=600", "workload.rate=9"],
    "bursts": [
        "workload=generated", "workload.requests=600", "workload.rate=9", "workload.arrivals.family=gamma",
        "workload.arrivals.cv=3",
    ],
    "mix A": ["workload=mix_a", "workload.requests=300", "tiers.ram.gib=8"],
    "mix B": ["workload=mix_b", "workload.requests=400", "tiers.ram.gib=8"],
    "mix C": ["workload=mix_c", "workload.requests=400", "tiers.ram.gib=8"],
    "mix D": ["workload=mix_d", "workload.requests=400", "tiers.ram.gib=8"],
}  # fmt: skip


@pytest.mark.slow
def test_a_healthy_run_has_none_and_says_so(played):
    assert played.findings == sim.findings(played) == []
    assert json.loads((played.path / "findings.json").read_text()) == []
    assert "nothing of that was found" in (played.path / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "strategies"), [(1, ("round_robin", "affinity")), (2, ("least_loaded", "random"))]
)
@pytest.mark.parametrize("number", range(len(HEALTHY)), ids=HEALTHY)
def test_nothing_is_said_of_healthy_runs(steady, number, seed, strategies):
    """Each load on two seeds, by a strategy that looks and one that does not, in turn."""
    lines, strategy = list(HEALTHY.values())[number], strategies[number % 2]
    run = steady(*lines, f"strategy={strategy}", f"seed={seed}")
    assert [finding.line() for finding in run.findings] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_outage_that_is_handled_is_no_finding(tmp_path, seed):
    lines = ["executor=roofline", "report=tables", f"seed={seed}", f"report.folder={tmp_path}"]
    assert sim.run("failover", lines).findings == []


def test_no_requests_have_no_findings(make_run):
    assert make_run().findings == []
    assert len(make_run().regret) == 0


def test_findings_are_kept_printed_and_reported(bare, capsys):
    run = bare("workload.requests=300", "workload.rate=1.5", "strategy.name=only_the_first")
    (finding,) = run.findings
    kept = json.loads((run.path / "findings.json").read_text())
    assert kept == [json.loads(json.dumps(asdict(finding)))]
    assert open_run(run.path).findings == run.findings
    show(run)
    assert f"look at  {finding.line()}" in capsys.readouterr().out
    text = markdown(run)
    assert "## What to look at" in text
    assert finding.says in text
    assert f"{100 * run.summary['regret_e2e_ratio']:.3g} % of the end-to-end time" in text
    assert "slowest 1 %" in text
    assert "slowest 1 %" in "".join(cell for row in slow_and_fast(run) for cell in row)


def test_the_worst_stands_first():
    def made(severity, subject):
        return Finding("herding", subject, severity, "all", 0.1, "why", 0.0, 1.0, 1, (1,), "says")

    shuffled = [made(0.2, "b"), made(0.5, "c"), made(0.2, "a")]
    assert [(one.severity, one.subject) for one in worst_first(shuffled)] == [
        (0.5, "c"),
        (0.2, "a"),
        (0.2, "b"),
    ]
