"""A module that is a command and a function at once: `python -m sim.compare` and `sim.compare(...)`."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def callable_as(name: str, function: Callable[..., Any]) -> None:
    """Let the module of that name be called as the function: once imported it hides a function of the same name."""
    sys.modules[name].__class__ = type("Command", (ModuleType,), {"__call__": staticmethod(function)})
