"""The way between a tier and the machine's memory: who is on it, who waits, and what it is expected to take."""

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from engine.cache.tier import ENDLESS
from engine.clock import NS_PER_S, Clock, to_ns
from engine.settings import GIB, TierSettings

if TYPE_CHECKING:
    from collections.abc import Callable

GIB_BYTES: Final = 1_073_741_824.0
SECOND_NS: Final = 1e9
HALF: Final = 0.5
"""Of our own and of floats: compiled, these are numbers, where those of other files have to be looked for."""

ALPHA: Final = 0.2
"""The weight of the latest transfer in what is expected of the next one."""


class Way:
    """So many transfers at a time, reads before writes.

    `expected_ns` is learned from what transfers took; before the first one it is what the settings say. `drawn_ns`
    says what a read takes, by its bytes, where that is drawn instead of modelled.
    """

    def __init__(self, settings: TierSettings, clock: Clock) -> None:
        self.settings = settings
        # as they are now: a device may become slower than its settings
        self.latency_s = float(settings.latency_s)
        self.gib_per_s = float(settings.gib_per_s)
        self.concurrency = settings.concurrency
        self.drawn_ns: Callable[[int], float] | None = None
        self.queue_bytes = int(settings.queue_gib * GIB)
        self.queued_bytes = 0  # of writes, waiting or under way
        self.reading_bytes = 0
        self.busy = 0
        self.read_bytes = 0
        self.written_bytes = 0
        self.waited_ns = 0
        self.num_reads = 0
        self.num_writes = 0
        self._clock = clock
        self._latency_ns = float(to_ns(settings.latency_s))
        self._ns_per_byte = NS_PER_S / (settings.gib_per_s * GIB)
        self.reads: deque[Any] = deque()  # who waits for a turn
        self.writes: deque[Any] = deque()

    def modelled_ns(self, size_bytes: int) -> int:
        """What a transfer takes by the settings: latency_s + bytes / gib_per_s."""
        ns = (self.latency_s + size_bytes / (self.gib_per_s * GIB_BYTES)) * SECOND_NS
        whole = int(ns)  # and then as `round` does, which would have to be called
        rest = ns - whole
        return whole + 1 if rest > HALF or (rest == HALF and whole & 1) else whole

    def read_ns(self, size_bytes: int) -> int:
        """What a read takes that begins now."""
        return self.modelled_ns(size_bytes) if self.drawn_ns is None else round(self.drawn_ns(size_bytes))

    def room_bytes(self) -> int:
        """How much more may wait to be written: anything where nothing does."""
        queued_bytes = self.queued_bytes
        return self.queue_bytes - queued_bytes if queued_bytes else ENDLESS

    def expected_ns(self, size_bytes: int) -> float:
        """What a read that is asked for now will take, those that wait before it included."""
        waiting = self.reading_bytes / self.concurrency
        return self._latency_ns + (waiting + size_bytes) * self._ns_per_byte

    def learn(self, size_bytes: int, took_ns: int) -> None:
        """A transfer took so long. Its latency is taken for known unless it was shorter than that."""
        self._latency_ns = min(self._latency_ns, float(took_ns))
        if size_bytes:
            seen = (took_ns - self._latency_ns) / size_bytes
            self._ns_per_byte += ALPHA * (seen - self._ns_per_byte)

    async def enter(self, *, is_read: bool) -> None:
        """Wait for one's turn."""
        if self.busy < self.concurrency:
            self.busy += 1
            return
        begun_ns, signal = self._clock.now_ns(), self._clock.signal()
        (self.reads if is_read else self.writes).append(signal.set)
        await signal.wait()
        self.waited_ns += self._clock.now_ns() - begun_ns

    def leave(self) -> None:
        """Let the next one go: a read if there is one."""
        line = self.reads or self.writes
        if line:
            line.popleft()()
        else:
            self.busy -= 1
