"""The audit log: who changed what, from what to what, and who was refused. A line of JSON for each fact.

No key, no prompt and no completion is in it: what is called like one is left out, and what looks like a key is too.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from engine.clock import Clock, utc_text
from engine.errors import BadSettings
from engine.figures import Figure
from engine.server.settings import MIB, AuditSettings
from engine.telemetry import Ended, Event, HttpAnswered, ModeChanged, RouterChanged
from engine.telemetry.files import RotatingFile
from engine.telemetry.redaction import HIDDEN, clean

SYSTEM = "system"
"""Who it was, where nobody asked for it."""

NOBODY = "nobody"
"""Who it was, where no key is known."""

PRIVATE = frozenset(
    (
        *("authorization", "api_key", "cookie", "headers", "password", "secret", "token"),
        *("completion", "content", "input", "messages", "output", "prompt", "text"),
    )
)

REFUSED = (401, 403, 408, 413, 429, 431, 503)
"""Statuses of HTTP that mean: not you, not like this, or not now. The others are mistakes of whoever asked."""


class AuditLog:
    """A file of facts about operators and refusals. A full disk stops nobody; what it costs is counted."""

    def __init__(
        self, path: Path, clock: Clock, *, max_bytes: int = 64 * MIB, keep: int = 10, sync: bool = False
    ) -> None:
        """Raises BadSettings for a file that cannot be written, or that another server writes."""
        self._clock = clock
        self._lock = _alone_with(path)
        self._file = RotatingFile(path, max_bytes, keep, key="server.audit.file", sync=sync)
        self.num_written = 0
        self.num_lost = 0

    def write(
        self,
        who: str,
        action: str,
        subject: str,
        *,
        before: object = None,
        after: object = None,
        outcome: str = "done",
        request_id: str | int | None = None,
        remote: str | None = None,
        at_ns: int | None = None,
    ) -> bool:
        """Put down a fact: `who` (the id of a key, "system", "nobody") did what to whom. Whether it was written.

        `at_ns` is on the engine's clock; now, if it is not given.
        """
        now_ns = self._clock.now_ns() if at_ns is None else at_ns
        fact = {
            "time": utc_text(self._clock.epoch_ns + now_ns),
            "who": clean(who),
            "action": action,
            "subject": clean(subject),
            "before": None if before is None else clean(_public(before)),
            "after": None if after is None else clean(_public(after)),
            "outcome": clean(outcome),
            "request_id": clean(request_id),
            "remote": remote,
        }
        lost = self._file.write([_line(fact)])
        self.num_lost += lost
        self.num_written += 1 - lost
        return not lost

    def figures(self) -> Iterator[Figure]:
        """How many facts were put down, and how many could not be."""
        yield Figure("modelyard:audit_facts", "Put down.", (), {(): float(self.num_written)})
        yield Figure("modelyard:audit_failures", "Lost: the disk refused.", (), {(): float(self.num_lost)})

    def close(self) -> None:
        """Let go of the file. A second call changes nothing."""
        self._file.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def open_audit(settings: AuditSettings, clock: Clock) -> AuditLog | None:
    """The audit log that the settings ask for. Raises BadSettings."""
    if settings.file is None:
        return None
    return AuditLog(
        Path(settings.file), clock, max_bytes=settings.max_bytes, keep=settings.keep, sync=settings.sync
    )


class AuditSink:
    """Puts down what the engine and the door tell: every refusal, and every mode or replica that changed by itself.

    A refusal by the engine knows its tenant and model, and has the engine's number of the request; one at the door
    knows key and address, and has the number that the client was told.
    """

    kinds: ClassVar[frozenset[type[Event]]] = frozenset({Ended, HttpAnswered, ModeChanged, RouterChanged})

    def __init__(self, audit: AuditLog) -> None:
        self._write = audit.write

    def emit(self, event: Event) -> None:
        if isinstance(event, HttpAnswered):
            if event.status in REFUSED:
                self._refused_at_the_door(event)
        elif isinstance(event, Ended):
            if event.outcome == "rejected":
                self._refused(event)
        elif isinstance(event, ModeChanged):
            self._write(
                event.cause if event.cause.startswith("operator") else SYSTEM,
                "mode.changed",
                _scope(event.model, event.tenant),
                before=event.before,
                after={"mode": event.after, "cause": event.cause},
                at_ns=event.at_ns,
            )
        elif isinstance(event, RouterChanged):
            after = {"state": event.change, "cause": event.cause}
            self._write(SYSTEM, "router.changed", event.subject, after=after, at_ns=event.at_ns)

    def _refused(self, event: Ended) -> None:
        self._write(
            f"tenant {event.tenant}",
            "request.refused",
            event.model or event.model_requested,
            after={"tokens": event.prompt_tokens, "priority": event.priority},
            outcome=event.reason or event.outcome,
            request_id=event.request_id,
            at_ns=event.at_ns,
        )

    def _refused_at_the_door(self, event: HttpAnswered) -> None:
        self._write(
            event.key_id or NOBODY,
            "http.refused",
            f"{event.method} {event.route or 'no route'}",
            after={"status": event.status, "tenant": event.tenant, "request": event.request_id},
            outcome=event.error or str(event.status),
            request_id=event.http_id,
            remote=event.client,
            at_ns=event.at_ns,
        )


def _public(value: object) -> object:
    """A value without what is called like a key, a prompt or a completion."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {
            name: HIDDEN if str(name).lower() in PRIVATE else _public(each) for name, each in value.items()
        }
    return [_public(each) for each in value] if isinstance(value, list | tuple) else value


def _line(fact: object) -> bytes:
    try:
        return msgspec.json.encode(fact, enc_hook=str) + b"\n"
    except UnicodeEncodeError:  # half a character, from a client
        return json.dumps(fact, default=str).encode() + b"\n"


def _scope(model: str | None, tenant: str | None) -> str:
    """What a mode is of."""
    parts = [f"model {model}" if model is not None else "", f"tenant {tenant}" if tenant is not None else ""]
    return ", ".join(part for part in parts if part) or "the service"


def _alone_with(path: Path) -> int:
    """Lock the file for this process, until the number is closed; what a crash has cut short gets its newline.

    Two that rotate one file would each move the other's lines. Raises BadSettings.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mend(path)
        except OSError:
            os.close(number)
            raise
    except BlockingIOError as error:
        raise BadSettings(
            f"server.audit.file is {str(path)!r}, but another server writes it; each needs a file of its own"
        ) from error
    except OSError as error:
        raise BadSettings(
            f"server.audit.file is {str(path)!r}, but cannot be written: {error.strerror}"
        ) from error
    return number


def _mend(path: Path) -> None:
    """End a last line that has no end, so that the next one is whole. Raises OSError."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
