"""Runs of which the detectors should, or should not, have something to say."""

import pytest

import sim
from engine.routing import strategy

TABLES = ["report=tables", "executor=roofline", "scenario.max_not_completed=100000"]


@strategy("only_the_first")
class OnlyTheFirst:
    """Bad on purpose: whoever is listed first gets everything."""

    def __init__(self, tools):
        pass

    def pick(self, request, seats, now_ns):
        return seats[0]


@pytest.fixture
def steady(tmp_path):
    """Play plain traffic with these settings."""

    def play(*lines):
        return sim.run("steady", [*TABLES, *lines, f"report.folder={tmp_path}"])

    return play


@pytest.fixture
def bare(tmp_path):
    """Play the bare system, four replicas with one place each at 80 % load, with these settings."""

    def play(*lines):
        rest = [
            "fleet.replicas=4",
            "workload.rate=3.2",
            "routing.decision_log=1.0",
            "scenario.max_errors=1e9",
        ]
        return sim.run("queue", [*rest, "report=tables", *lines, f"report.folder={tmp_path}"])

    return play
