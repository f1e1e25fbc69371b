"""The dashboard and the alert rules: well made, about metrics that there are, and found wherever the package is."""

import ast
import json
import re
import shutil
import subprocess
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse

import engine as package
from engine.command.boards import NotOurs, write_boards
from engine.engine import Engine
from engine.request import Request
from engine.settings import ArmSettings, ExperimentSettings
from engine.telemetry import (
    Ended,
    FellBack,
    HttpAnswered,
    Meter,
    ModeChanged,
    ModelMoved,
    OwnCounts,
    RouterChanged,
    StoreFailed,
)
from engine.telemetry.boards import NAMES, board

ROOT = Path(package.__file__).parent
DASHBOARD = json.loads(board("dashboard.json"))
RULES = [rule for group in yaml.safe_load(board("alerts.yaml"))["groups"] for rule in group["rules"]]
CASES = yaml.safe_load(board("alerts_test.yaml"))["tests"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
ROWS = [
    "Overview",
    "Routing",
    "Quotas and degradation",
    "Cache and tiers",
    "Models and health",
    "Server and loop lag",
    "Jobs",
]
EARLIER_SYSTEM = {"RoutingSlow", "CacheHitRatioLow", "QuotaNearlyUsed", "ModelUnhealthy", "QueueLong"}
OURS = re.compile(r"\b((?:vllm|modelyard):\w+|up)\b(?=[{\[ )]|$)")


def names_in(query):
    """The metrics that a query asks for."""
    return set(OURS.findall(query))


@cache
def declared():
    """The metrics that parts of the server count for a scrape, as their source has them."""
    found = set()
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py")]
    sources += [path.read_text(encoding="utf-8") for path in (ROOT / "telemetry").glob("*.py")]
    for source in [each for each in sources if '"modelyard:' in each]:
        for call in ast.walk(ast.parse(source)):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in (
                "Figure",
                "Distribution",
            ):
                continue
            name = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
            if not isinstance(name, str):
                continue
            if call.func.id == "Distribution":
                found |= {f"{name}_{part}" for part in ("bucket", "count", "sum")}
            else:
                gauge = any(each.arg == "is_gauge" for each in call.keywords)
                found.add(name if gauge else f"{name}_total")
    return found


def exposed(settings, clock):
    """The metrics of an engine that has served, and of a server around it."""
    settings.routing.time_every = 1
    settings.models.weights_gib = 8.0
    arms = [ArmSettings(name=name, target="llama", weight=0.5) for name in "ab"]
    settings.routing.experiments = [ExperimentSettings(name="e", on="llama", arms=arms)]
    meter = Meter()
    engine = Engine(settings, clock, [meter])
    meter.sources += [engine.figures, OwnCounts().figures]
    engine.start()
    prompt = np.arange(64, dtype=np.int32)
    clock.spawn(engine.serve(Request(1, "llama", prompt, 4, 0)))
    clock.env.run(until=10**9)
    for event in (
        Ended(1, 1, "t", None, "x", 0, 1, "rejected", "not_found", arm="e/a"),
        FellBack(1, 1, "a", "b", "no_replica"),
        RouterChanged(1, "a", "ejected", "too slow"),
        ModeChanged(1, "m", None, "normal", "warning", "soft limit"),
        StoreFailed(1, "ssd", "timeout"),
        HttpAnswered(1, "r", "GET", "/health", 200, 1, is_aborted=True),
        ModelMoved(1, "m", "unloaded", "loading", "asked for"),
        ModelMoved(2, "m", "loading", "healthy", "loaded"),
    ):
        meter.emit(event)
    families = list(parse(meter.exposition()))
    heads = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    return heads | {sample.name for family in families for sample in family.samples}


@pytest.fixture
def known(settings, clock):
    return exposed(settings, clock) | declared() | {"up"}


def test_every_query_of_the_dashboard_asks_for_metrics_that_there_are(known):
    for title, query in QUERIES:
        names = names_in(query)
        assert names, f"{title} asks for nothing of ours: {query}"
        assert names <= known, f"{title} asks for {names - known}"
    for variable in DASHBOARD["templating"]["list"][1:]:
        assert names_in(variable["definition"].replace(",", " ")) <= known


def test_every_alert_asks_for_metrics_that_there_are(known):
    for rule in RULES:
        names = names_in(rule["expr"])
        assert names, f"{rule['alert']} asks for nothing"
        assert names <= known, f"{rule['alert']} asks for {names - known}"


def test_a_metric_that_is_not_there_would_be_noticed(known):
    assert not names_in('sum(rate(modelyard:request_total{a=~"b"}[5m]))') <= known


def test_the_dashboard_has_its_rows_and_a_data_source_that_can_be_chosen():
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ROWS
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["templating"]["list"][0] == DASHBOARD["templating"]["list"][0] | {
        "type": "datasource",
        "query": "prometheus",
    }
    for panel in PANELS:
        assert panel["description"], panel["title"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_panels_have_numbers_and_places_of_their_own():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for one, other in combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, f"{one} and {other} overlap"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])


def test_targets_of_a_panel_are_told_apart():
    for panel in PANELS:
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), panel["title"]


def test_each_alert_says_how_bad_it_is_and_what_to_do():
    guide = (ROOT.parent / "docs" / "observability.md").read_text(encoding="utf-8")
    headings = {line.strip("# ").lower() for line in guide.splitlines() if line.startswith("#")}
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    assert set(names) >= EARLIER_SYSTEM
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/observability.md", rule["alert"]
        assert anchor == rule["alert"].lower(), rule["alert"]
        assert anchor in headings, f"docs/observability.md says nothing of {rule['alert']}"


@pytest.mark.parametrize("name", [rule["alert"] for rule in RULES])
def test_each_alert_is_seen_firing_and_seen_silent(name):
    expected = [
        bool(check["exp_alerts"]) for case in CASES for check in case["alert_rule_test"]
        if check["alertname"] == name
    ]  # fmt: skip
    assert set(expected) == {True, False}


def promtool(folder, *arguments):
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: Debian's package prometheus has it")
    done = subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_rules_and_configuration(tmp_path):
    write_boards(tmp_path)
    code, told = promtool(tmp_path, "check", "config", "prometheus.yaml")  # the rules with it
    assert code == 0, told
    assert f"{len(RULES)} rules found" in told


@pytest.mark.slow
def test_promtool_sees_each_alert_fire_when_it_should_and_only_then(tmp_path):
    write_boards(tmp_path)
    code, told = promtool(tmp_path, "test", "rules", "alerts_test.yaml")
    assert code == 0, told


def test_promtool_notices_a_rule_that_is_wrong(tmp_path):
    write_boards(tmp_path)
    rules, cases = tmp_path / "alerts.yaml", tmp_path / "alerts_test.yaml"
    told = yaml.safe_load(cases.read_text())
    told["tests"] = [case for case in told["tests"] if case["name"].startswith("EmergencyMode ")]
    cases.write_text(yaml.safe_dump(told))
    assert promtool(tmp_path, "test", "rules", cases.name)[0] == 0
    right, wrong = "(modelyard:quota_degradation_mode) >= 4", "(modelyard:quota_degradation_mode) >= 3"
    assert right in rules.read_text()
    rules.write_text(rules.read_text().replace(right, wrong))
    code, said = promtool(tmp_path, "test", "rules", cases.name)
    assert code == 1
    assert "alertname: EmergencyMode" in said


def test_files_that_somebody_changed_are_not_overwritten_unasked(tmp_path):
    folder = tmp_path / "deep" / "er"
    assert [path.name for path in write_boards(folder)] == list(NAMES)
    assert write_boards(folder), "the same again is no change"
    (folder / "alerts.yaml").write_text("mine")
    (folder / "prometheus.yaml").unlink()
    with pytest.raises(NotOurs, match=r"alerts\.yaml is there already and has been changed; give --force"):
        write_boards(folder)
    assert not (folder / "prometheus.yaml").exists(), "nothing is written before all of it may be"
    write_boards(folder, force=True)
    assert (folder / "alerts.yaml").read_text() == board("alerts.yaml")
