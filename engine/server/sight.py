"""What one can see of a server: its metrics, its log, its traces, its audit log; opened and closed together."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from engine.clock import Clock
from engine.server.audit import AuditSink, open_audit
from engine.server.settings import ServerSettings
from engine.telemetry import Meter, OwnCounts, Sink, render
from engine.telemetry.context import TraceIds
from engine.telemetry.exposition import Family
from engine.telemetry.logs import install_logging, log_sink
from engine.telemetry.traces import trace_sink

logger = logging.getLogger("modelyard.server")

LOGGERS = (logger.name, "engine", "uvicorn.error", "opentelemetry")
"""Whose words go into the log, beside the events."""


class Sight:
    """All that looks on. `sinks` are for the engine; what is switched off is not among them."""

    def __init__(self, settings: ServerSettings, clock: Clock, seed: int, sinks: Sequence[Sink] = ()) -> None:
        """Raises BadSettings for what cannot be written to."""
        log, traces = settings.log, settings.traces
        self.meter, self.counts = Meter(), OwnCounts()
        self.ids = TraceIds(seed, clock.epoch_ns)
        self.audit = open_audit(settings.audit, clock)
        self.log = log_sink(
            clock,
            file=log.file,
            level=log.level,
            content=log.content,
            requests=log.requests,
            max_per_s=log.max_per_s,
            max_bytes=log.max_bytes,
            keep=log.keep,
        )
        self.traces = trace_sink(
            clock,
            self.ids,
            endpoint=traces.endpoint,
            file=traces.file,
            sample=traces.sample,
            keep_errors=traces.keep_errors,
            keep_slower_s=traces.keep_slower_s,
            content=traces.content,
            headers=traces.headers,
            service_name=traces.service_name,
            timeout_s=traces.timeout_s,
            max_waiting=traces.max_waiting,
            server=(settings.host, settings.port),
        )
        self.sinks: list[Sink] = [self.meter, *sinks]
        self.sinks += [sink for sink in (self.log, self.traces) if sink is not None]
        if self.audit is not None:
            self.sinks.append(AuditSink(self.audit))
        self._undo: list[Callable[[], None]] = []

    def watch(self, *sources: Callable[[], Iterable[Family]]) -> None:
        """Scrape these too."""
        own = [each.figures for each in (self.log, self.traces, self.audit) if each is not None]
        self.meter.sources += [*sources, self.counts.figures, *own]

    def start(self) -> None:
        """Write from now on."""
        if self.log is not None:
            self.log.start()
            self._undo += [install_logging(self.log, name) for name in LOGGERS]
        if self.traces is not None:
            self.traces.start()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """What a scrape gets that accepts this, and its content type."""
        return render(self.meter, accept)

    def reopen(self) -> None:
        """Go on in new files: somebody has moved the old ones away."""
        for each in (self.log, self.traces):
            if each is not None:
                each.reopen()

    async def close(self) -> None:
        """Write and send what is left."""
        for undo in self._undo:
            undo()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)
        if self.log is not None:
            self.log.close()
        if self.audit is not None:
            self.audit.close()
