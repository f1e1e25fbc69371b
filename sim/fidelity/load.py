"""The load: a process of its own that sends each request at its intended time, whatever becomes of the others.

One thread sends and another listens, so that neither waits for the other: a client that does both in one loop is a
queue of its own, and puts its delays into every latency that it reports (arXiv 2605.24217).
"""

import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Event, Thread
from typing import Any

import numpy as np
import pandas as pd

from engine.clock import stopwatch_ns
from sim.fidelity.server import settle_in
from sim.fidelity.wire import FIRST, frame, packed
from sim.traffic import Trace

HEAD_START_NS = 200_000_000  # between the handshake and time zero
SPIN_NS = 300_000  # before the intended time, the sender stops sleeping and looks at the clock


@dataclass(slots=True)
class Sent:
    """What the client saw, in ns from the start of the load; a row a request."""

    intended_ns: list[int]
    sent_ns: list[int]
    first_ns: list[int]
    last_ns: list[int]

    def table(self) -> pd.DataFrame:
        """These times; what did not happen is missing."""
        columns: dict[str, Any] = {
            name: pd.array([value if value >= 0 else None for value in getattr(self, name)], dtype="Int64")
            for name in ("intended_ns", "sent_ns", "first_ns", "last_ns")
        }
        return pd.DataFrame({"request_id": np.arange(len(self.sent_ns)), **columns})


def send_loads(pipe: Connection, cores: list[int]) -> None:
    """The process: for each trace and port that come, a load and its table, until None comes."""
    settle_in(cores)
    while (job := pipe.recv()) is not None:
        trace, port = job
        pipe.send(send(trace, port))


def send(trace: Trace, port: int) -> pd.DataFrame:
    """Send the requests of a trace to that port of this machine; what the client saw of it."""
    frames = [frame(trace.request(number)) for number in range(len(trace))]  # drawn before, not on the way
    intended_ns = trace.arrival_ns.tolist()
    missing = [-1] * len(trace)
    sent = Sent(intended_ns, missing.copy(), missing.copy(), missing.copy())
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start_ns = stopwatch_ns() + HEAD_START_NS
        line.sendall(packed({"start_ns": start_ns}))
        listener = Thread(target=listen, args=(line, start_ns, sent))
        listener.start()
        for number, data in enumerate(frames):
            wait_until(start_ns + intended_ns[number])
            sent.sent_ns[number] = stopwatch_ns() - start_ns
            line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        listener.join()
    return sent.table()


def wait_until(at_ns: int) -> None:
    """Sleep, then look at the clock until it is time: a sleep alone ends late."""
    left_ns = at_ns - stopwatch_ns()
    if left_ns > SPIN_NS:
        Event().wait((left_ns - SPIN_NS) / 1e9)
    while stopwatch_ns() < at_ns:
        pass


def listen(line: socket.socket, start_ns: int, sent: Sent) -> None:
    """Note when news come, until the server has no more."""
    with line.makefile("rb") as lines:
        for text in lines:
            now_ns = stopwatch_ns() - start_ns
            kind, number, *_ = text.decode().split()
            (sent.first_ns if kind == FIRST else sent.last_ns)[int(number)] = now_ns
