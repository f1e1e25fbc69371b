"""A load generator for the benchmarks of the server: JSON in as an argument, JSON out. About 20 us a request.

`requests` are sent over `connections` that are kept open, each as soon as the one before it on its connection is
answered; with a `rate`, each at its time, whether or not the others have been answered, and what it waits for a free
connection counts.
"""

import asyncio
import json
import sys
from collections import deque
from time import perf_counter, process_time

import uvloop

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
LENGTH = b"content-length: "
MARK = b"data: "
END = b"0\r\n\r\n"


def request(number, *, tokens, is_stream):
    """One of a thousand prompts, and of a thousand conversations."""
    body = {"model": "llama", "prompt": f"{number % 1000} times hello, and how are you today?"}
    body |= {"max_tokens": tokens, "stream": is_stream}
    data = json.dumps(body).encode()
    return HEAD % len(data) + b"x-session-id: s%d\r\n\r\n" % (number % 1000) + data


class Connection(asyncio.Protocol):
    """Sends one request at a time and tells when it is answered."""

    def __init__(self, load):
        self.load = load
        self.data = b""
        self.left = None  # bytes of the body that are to come; None: the head is
        self.sent_s = 0.0

    def connection_made(self, transport):
        self.transport = transport
        self.load.is_free(self)

    def connection_lost(self, exc):
        if not self.load.is_over:
            self.load.done.set_exception(exc or ConnectionResetError("the server has closed a connection"))

    def send(self, data, at_s):
        self.sent_s = at_s
        self.transport.write(data)

    def data_received(self, data):
        if self.load.is_stream:
            data = self.data + data  # the last bytes before, which may be the beginning of a mark
            self.load.chunks += data.count(MARK)
            self.data = data[1 - len(MARK) :]
            if data.endswith(END):
                self.data = b""
                self.load.answered(self)
            return
        if self.left is None:
            self.data += data
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self.data.startswith(b"HTTP/1.1 200"):
                self.load.done.set_exception(RuntimeError(self.data.decode()))
                return
            begin = self.data.index(LENGTH) + len(LENGTH)
            length = int(self.data[begin : self.data.index(b"\r\n", begin)])
            self.left, self.data = length - (len(self.data) - end - 4), b""
        else:
            self.left -= len(data)
        if self.left == 0:
            self.left = None
            self.load.answered(self)


class Load:
    """All connections, and what is still to be sent."""

    def __init__(self, *, requests, tokens, is_stream, rate):
        self.num_left = self.num_open = requests
        self.is_stream = is_stream
        self.rate = rate
        self.bodies = [request(number, tokens=tokens, is_stream=is_stream) for number in range(1000)]
        self.waits_s = []
        self.chunks = 0
        self.free = deque()
        self.due = deque()
        self.is_over = False
        self.done = asyncio.get_running_loop().create_future()

    def is_free(self, connection):
        if self.due:
            connection.send(self.bodies[self.num_left % 1000], self.due.popleft())
        elif self.rate or not self.num_left:
            self.free.append(connection)
        else:
            self.num_left -= 1
            connection.send(self.bodies[self.num_left % 1000], perf_counter())

    def answered(self, connection):
        self.waits_s.append(perf_counter() - connection.sent_s)
        self.num_open -= 1
        if not self.num_open:
            self.is_over = True
            if not self.done.done():
                self.done.set_result(None)
            return
        self.is_free(connection)

    async def pace(self):
        begun_s, total = perf_counter(), self.num_left
        while self.num_left:
            due = min(total, int((perf_counter() - begun_s) * self.rate))
            for number in range(total - self.num_left, due):
                self.num_left -= 1
                self.due.append(begun_s + (number + 1) / self.rate)
            while self.due and self.free:
                self.is_free(self.free.popleft())
            await asyncio.sleep(0.0005)


async def ask(*, port, connections, requests, tokens=1, is_stream=False, rate=None):
    load = Load(requests=requests, tokens=tokens, is_stream=is_stream, rate=rate)
    loop = asyncio.get_running_loop()
    begun_s, worked_s = perf_counter(), process_time()
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
    pacing = loop.create_task(load.pace()) if rate else None
    await load.done
    seconds, waits_s = perf_counter() - begun_s, sorted(load.waits_s)
    if pacing is not None:
        await pacing
    return {
        "seconds": seconds,
        "rate": requests / seconds,
        "chunks": load.chunks,
        "p50_ms": waits_s[len(waits_s) // 2] * 1e3,
        "p99_ms": waits_s[len(waits_s) * 99 // 100] * 1e3,
        "own_us": (process_time() - worked_s) / requests * 1e6,
    }


sys.stdout.write(json.dumps(uvloop.run(ask(**json.loads(sys.argv[1])))))
