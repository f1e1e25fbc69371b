"""Watching a models folder: a tick whenever something in it may have changed, so that it is scanned again."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import BadSettings
from engine.registry.discovery import is_passed_over

if TYPE_CHECKING:
    from watchfiles import Change

DEBOUNCE_MS = 1_600  # what happens within that time is one batch
STEP_MS = 50  # a batch ends earlier when nothing more came for so long
LOOK_UP_MS = 250  # how late the first tick, and the end, may be


class Stop(Protocol):
    """What ends the watching, from another thread: a threading.Event is one."""

    def is_set(self) -> bool: ...


def watch(folder: Path, stop: Stop) -> Iterator[None]:
    """Yield once as soon as every later change will be noticed, then after each batch of changes, until `stop`.

    A caller that scans at each tick therefore misses nothing. Blocks in between, so it runs in a thread of its own.
    Hidden names and downloads under way do not wake it. Raises BadSettings at once when there is no such folder or
    watchfiles is not installed.
    """
    try:
        import watchfiles  # noqa: PLC0415 - an optional library
    except ImportError:
        raise BadSettings(
            "watching a models folder needs watchfiles: pip install 'modelyard[watch]'"
        ) from None
    if not folder.is_dir():
        raise BadSettings(f"models folder is {str(folder)!r}, but must be a folder that exists")
    root = folder.resolve()

    def matters(_change: "Change", path: str) -> bool:
        return not any(is_passed_over(part) for part in Path(path).relative_to(root).parts)

    batches = watchfiles.watch(
        root,
        watch_filter=matters,
        debounce=DEBOUNCE_MS,
        step=STEP_MS,
        stop_event=stop,
        rust_timeout=LOOK_UP_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    return _ticks(batches)


def _ticks(batches: Iterator[set[tuple["Change", str]]]) -> Iterator[None]:
    """The first batch, empty or not, says that the watching has begun; empty ones after it say nothing."""
    has_begun = False
    for batch in batches:
        if batch or not has_begun:
            has_begun = True
            yield
