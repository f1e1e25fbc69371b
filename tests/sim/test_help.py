"""What `--help` prints is laid out by hand: no width of a terminal breaks its lines elsewhere."""

from importlib import import_module

import pytest

OF_CONSOLES = [
    "advise.command",
    "compare",
    "fidelity.__main__",
    "regret",
    "replay.__main__",
    "replicate",
    "report.__main__",
    "scorecard.__main__",
    "sweep",
]


@pytest.mark.parametrize("name", OF_CONSOLES)
def test_help_is_printed_as_it_is_written(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    module = import_module(f"sim.{name}")
    assert module.main(["--help"]) == 0
    assert module.USAGE.strip() in capsys.readouterr().out
