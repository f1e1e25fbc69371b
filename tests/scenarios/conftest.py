"""Playing the scenario that a test file is about: test_failover.py plays failover."""

import pytest

import sim

CALM = ("executor=roofline", "report=tables")


@pytest.fixture
def play(request, tmp_path):
    """The scenario with these lines, on the roofline and with tables only unless they say otherwise."""
    scenario = request.path.stem.removeprefix("test_")

    def played(*lines):
        return sim.run(scenario, [*CALM, f"report.folder={tmp_path}", *lines])

    return played
