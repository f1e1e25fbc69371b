"""What the source tells the compiler of `python -m engine compile`, which reads it. Without it, it does nothing.

A column is a `vec[i64]`: numbers side by side in memory, compiled, and a list in plain Python, where nothing is
faster. One that grows is another one afterwards (`extend`), so that nobody keeps a column that is somebody else's.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["append", "extend", "i64", "mypyc_attr", "vec"]

if TYPE_CHECKING:
    from librt.vecs import append, extend, vec
    from mypy_extensions import i64, mypyc_attr
else:
    Class = TypeVar("Class", bound=type[Any])

    vec, i64 = list, int

    def append(column: list[int], number: int) -> list[int]:
        """The column with one number more."""
        column.append(number)
        return column

    def extend(column: list[int], numbers: Iterable[int]) -> list[int]:
        """The column with those numbers at its end."""
        column += numbers
        return column

    def mypyc_attr(**_told: object) -> Callable[[Class], Class]:
        """`allow_interpreted_subclasses`: classes that are not compiled may inherit from this one."""
        return lambda cls: cls
