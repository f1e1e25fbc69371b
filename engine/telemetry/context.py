"""Trace context: whose trace a request belongs to (W3C), and names for the traces of those that bring none."""

import re
from dataclasses import dataclass
from hashlib import blake2b

WORD = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
"""Odd, so that the multiples of it are all different: span after span of one trace."""

TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
MAX_TRACEPARENT = 512
MAX_STATE = 512
STATE = re.compile(r"[\x20-\x7e]*")
SAMPLED = 1


@dataclass(slots=True, frozen=True)
class TraceContext:
    """The trace that a request belongs to, in hexadecimal; `is_sampled` None: nobody has decided yet."""

    trace_id: str
    parent_span_id: str = ""
    is_sampled: bool | None = None
    state: str = ""


def parse_traceparent(header: str, state: str = "") -> TraceContext | None:
    """What a `traceparent` and its `tracestate` say; None where it is not to be trusted, as W3C has it.

    A later version than ours is read as far as we know it. A state that is damaged or too long is left out alone.
    """
    match = TRACEPARENT.fullmatch(header) if len(header) <= MAX_TRACEPARENT else None
    if match is None:
        return None
    version, trace_id, parent, flags, more = match.groups()
    if (version == "00" and more) or not int(trace_id, 16) or not int(parent, 16):
        return None
    return TraceContext(trace_id, parent, bool(int(flags, 16) & SAMPLED), fit_state(state))


def fit_state(state: str) -> str:
    """A `tracestate` that may be handed on; empty where it is not fit for that."""
    return state if len(state) <= MAX_STATE and STATE.fullmatch(state) else ""


class TraceIds:
    """Names of traces and spans: a hash of the request's number, keyed by a run's seed and the clock's zero.

    On a virtual clock the same seed gives the same names. On the wall clock no two starts do, whatever their seed.
    Everybody who knows the number of a request gets the same name, and nobody has to remember it.
    """

    __slots__ = ("_key", "_num_new")

    def __init__(self, seed: int, epoch_ns: int) -> None:
        self._num_new = 0
        self._key = blake2b(f"{seed}/{epoch_ns}".encode(), digest_size=32).digest()

    def of(self, request_id: int) -> tuple[int, int]:
        """The trace and the first span of a request; neither is 0."""
        digest = blake2b(b"%d" % request_id, key=self._key, digest_size=24).digest()
        return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1

    def context(self, traceparent: str | None, state: str | None = None) -> TraceContext:
        """The trace of whoever comes with that header; a new one for who has none, or none that can be read."""
        given = parse_traceparent(traceparent, state or "") if traceparent else None
        if given is not None:
            return given
        self._num_new += 1
        return TraceContext(f"{self.of(-self._num_new)[0]:032x}")  # requests have numbers from 0


def following(span_id: int, number: int) -> int:
    """The name of a span's child with that number, from 1."""
    return (span_id + number * STEP) & WORD or STEP


def pseudonym(session: str) -> str:
    """What stands for a session's name in logs and traces: the same for the same name, and not to be read.

    Names are the clients' to choose, and may be those of people. It tells turns of a conversation together; whoever
    has a list of names can still find out which one it is.
    """
    return blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8, person=b"session").hexdigest()
