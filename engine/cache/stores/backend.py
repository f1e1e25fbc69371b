"""Where extents lie: a flat space of named objects, each of which is there as a whole or not at all."""

from collections.abc import Iterator, Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes, or whatever else can be seen as a memoryview."""


class Backend(Protocol):
    """A folder, a redis database or a bucket. Blocking calls, safe from several threads at once.

    A name is `<folder>/<file>`, both safe as file names. Every method raises StoreFault for what the place answers,
    within the time limit that it was made with.
    """

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Publish the parts, one after the other, under that name: all of them, or nothing when it raises.

        Where a network is between, a timeout leaves open whether the object came into being; it is whole then.
        """

    def get(self, name: str, offset: int, length: int) -> Buffer | None:
        """Bytes from `offset` on: `length` of them, or fewer where the object ends. None: there is no such object."""

    def delete(self, name: str) -> None:
        """No such object from now on; nothing happens when there was none."""

    def set_aside(self, name: str) -> None:
        """Keep the object for whoever wants to look at it, under a name that `names` does not tell."""

    def names(self) -> Iterator[tuple[str, int]]:
        """All objects, sorted, with their sizes in bytes. What does not look like ours is left out."""

    def close(self) -> None:
        """Let go of the place."""
