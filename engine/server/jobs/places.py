"""Places for requests of all batches together: first come, first served, so that batches take turns."""

from collections import deque

from engine.clock import Clock, Signal


class Places:
    """So many at a time."""

    def __init__(self, number: int, clock: Clock) -> None:
        self._free = number
        self._clock = clock
        self._line: deque[Signal] = deque()

    async def take(self) -> None:
        """Wait for a place. It has to be given back."""
        if self._free and not self._line:
            self._free -= 1
            return
        signal = self._clock.signal()
        self._line.append(signal)
        try:
            await signal.wait()
        except BaseException:  # the caller is gone: the next one has its place
            if signal.is_set:
                self.give_back()
            else:
                self._line.remove(signal)
            raise

    def give_back(self) -> None:
        """One place more for whoever has waited longest."""
        if self._line:
            self._line.popleft().set()
        else:
            self._free += 1
