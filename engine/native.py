"""What a class tells the compiler of `python -m engine compile`, which reads the source. It does nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:
    Class = TypeVar("Class", bound=type[Any])

    def mypyc_attr(**_told: object) -> Callable[[Class], Class]:
        """`allow_interpreted_subclasses`: classes that are not compiled may inherit from this one."""
        return lambda cls: cls
