"""Progress of a run in virtual time, on standard error."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from engine.clock import NS_PER_S
from sim.traffic import Trace


class Progress:
    """A bar over the virtual span of a trace; shown on a terminal, silent elsewhere."""

    def __init__(self, trace: Trace, *, shown: bool) -> None:
        self._stopped = False
        self._span_ns = max(1, trace.span_ns)
        self._count = len(trace)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not shown,
        )
        self._task = self._bar.add_task("", total=self._span_ns)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stop(self) -> None:
        """Let the run end at its next look."""
        self._stopped = True

    def advance(self, now_ns: int, ended: int, events: int) -> bool:
        """Show where the run is; whether it is to stop."""
        text = f"{now_ns / NS_PER_S:7.1f} s virtual, {ended}/{self._count} requests"
        self._bar.update(self._task, completed=min(now_ns, self._span_ns), description=text)
        return self._stopped
