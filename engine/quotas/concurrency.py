"""A limit on the requests of one model that are in service together, with a bounded first-come queue before it."""

from collections import deque
from typing import Self

from engine.clock import NS_PER_S, Clock, Signal
from engine.errors import DeadlinePassed, OverQuota
from engine.request import Request
from engine.settings import QuotaSettings

SERVICE_SMOOTHING = 0.1  # weight of the newest service time in the running mean behind retry_after
UNKNOWN_RETRY_AFTER_S = 1.0  # before anything was served there is nothing to go by


class _Turn:
    """A place in the queue. `is_granted` is set by whoever frees a slot; `has_left` by who gave up waiting."""

    __slots__ = ("has_left", "is_granted", "signal")

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.is_granted = False
        self.has_left = False


class _Lane:
    """One model's slots and queue."""

    __slots__ = ("in_service", "mean_service_ns", "num_waiting", "queue")

    def __init__(self) -> None:
        self.in_service = 0
        self.num_waiting = 0
        self.mean_service_ns = 0.0
        self.queue: deque[_Turn] = deque()


class Grant:
    """A slot, held until the `with` block ends; given back exactly once, however it ends."""

    __slots__ = ("_granted_ns", "_lane", "_quota")

    def __init__(self, quota: "ConcurrencyQuota", lane: _Lane, granted_ns: int) -> None:
        self._quota = quota
        self._lane: _Lane | None = lane
        self._granted_ns = granted_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the slot back; a second call changes nothing."""
        if self._lane is not None:
            lane, self._lane = self._lane, None
            self._quota.free(lane, self._granted_ns)


class ConcurrencyQuota:
    """At most `max_concurrent_requests` of a model in service; `queue_capacity` more wait their turn."""

    def __init__(self, settings: QuotaSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}

    @property
    def in_service(self) -> int:
        """Requests of all models that hold a slot."""
        return sum(lane.in_service for lane in self._lanes.values())

    @property
    def num_waiting(self) -> int:
        """Requests of all models that wait for a slot."""
        return sum(lane.num_waiting for lane in self._lanes.values())

    def reserve(self, model: str, now_ns: int) -> Grant | None:
        """A slot at once, or None when the request has to wait. Raises OverQuota when the queue is full too.

        Whoever waits comes first: no slot is given to a newcomer past the queue.
        """
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = _Lane()
        if not self._settings.enabled or lane.in_service < self._settings.max_concurrent_requests:
            lane.in_service += 1
            return Grant(self, lane, now_ns)
        if lane.num_waiting >= self._settings.queue_capacity:
            raise OverQuota(
                f"{model!r} has {lane.in_service} requests in service and {lane.num_waiting} waiting, the most that "
                f"its quota allows; try again in {self._retry_after_s(lane):.3f} s",
                retry_after_s=self._retry_after_s(lane),
            )
        return None

    async def admit(self, request: Request, model: str) -> Grant:
        """A slot, after waiting for it if need be. Raises OverQuota, or DeadlinePassed while it waits."""
        grant = self.reserve(model, self._clock.now_ns())
        if grant is None:
            grant = await self._wait(request, self._lanes[model])
        return grant

    def free(self, lane: _Lane, granted_ns: int) -> None:
        """A slot of `lane` is free: whoever has waited longest has it now, at this very moment."""
        now_ns = self._clock.now_ns()
        served_ns = now_ns - granted_ns
        lane.mean_service_ns += (
            SERVICE_SMOOTHING * (served_ns - lane.mean_service_ns) if lane.mean_service_ns else served_ns
        )
        while lane.queue:
            turn = lane.queue.popleft()
            if not turn.has_left:
                lane.num_waiting -= 1
                turn.is_granted = True
                turn.signal.set()
                return
        lane.in_service -= 1

    async def _wait(self, request: Request, lane: _Lane) -> Grant:
        turn = _Turn(self._clock.signal())
        lane.queue.append(turn)
        lane.num_waiting += 1
        timer = None
        if request.deadline_ns is not None:
            left_ns = max(0, request.deadline_ns - self._clock.now_ns())
            timer = self._clock.call_later(left_ns, turn.signal.set)
        try:
            await turn.signal.wait()
        except (
            BaseException
        ):  # the caller is gone: its place, or the slot that it has just got, goes to the next
            self._leave(turn, lane)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not turn.is_granted:
            self._leave(turn, lane)
            raise DeadlinePassed(f"request {request.id} waited for its turn until its deadline had passed")
        return Grant(self, lane, self._clock.now_ns())

    def _leave(self, turn: _Turn, lane: _Lane) -> None:
        if turn.is_granted:
            self.free(lane, self._clock.now_ns())
        else:
            turn.has_left = True
            lane.num_waiting -= 1

    def _retry_after_s(self, lane: _Lane) -> float:
        """When a slot and all places before it should have come free, at the mean service time seen so far."""
        if not lane.mean_service_ns:
            return UNKNOWN_RETRY_AFTER_S
        turns = (lane.num_waiting + 1) / self._settings.max_concurrent_requests
        return turns * lane.mean_service_ns / NS_PER_S
