"""Playing the scenario that a test file is about: test_failover.py plays failover."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest

from sim.config import read
from sim.play import play as play_settings

CALM = ("executor=roofline", "report=tables")

composed = cache(read)
"""Composing takes as long as a short run, and twins differ in the engine, not in their lines."""


@pytest.fixture
def play(request, tmp_path):
    """The scenario with these lines, on the roofline and with tables only unless they say otherwise."""
    scenario = request.path.stem.removeprefix("test_")

    def played(*lines):
        settings = composed((f"scenario={scenario}", *CALM, *lines))
        report = replace(settings.report, folder=str(tmp_path))
        return play_settings(replace(settings, engine=deepcopy(settings.engine), report=report))

    return played
