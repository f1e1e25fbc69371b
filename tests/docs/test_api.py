"""docs/api.md says what the code says."""

from pathlib import Path

from tests.docs import source
from tests.docs.api import SETTINGS, page

API = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_reference_is_what_the_code_says():
    assert API.read_text("utf-8") == page(), "make it anew: python -m tests.docs.api > docs/api.md"


def test_every_class_of_settings_stands_in_it():
    told = set(SETTINGS.values())
    for name in ("engine.settings", "engine.server.settings"):
        there = {(name, each) for each in source.module(name).public if each[0].isupper()}
        assert (
            there - told - {("engine.settings", "ExecutorSettings"), ("engine.settings", "EngineSettings")}
            == set()
        )
