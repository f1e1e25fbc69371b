"""A limit on the requests of one model that are in service together, with a bounded first-come queue before it."""

from collections import OrderedDict
from typing import Self

from engine.clock import NS_PER_S, Clock, Signal
from engine.errors import DeadlinePassed, OverQuota
from engine.request import Request
from engine.settings import QuotaSettings

SERVICE_SMOOTHING = 0.1  # weight of the newest service time in the running mean behind retry_after
UNKNOWN_RETRY_AFTER_S = 1.0  # before anything was served there is nothing to go by


class _Turn:
    """A place in the queue. `is_granted` is set by whoever frees a slot."""

    __slots__ = ("is_granted", "signal")

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.is_granted = False


class _Lane:
    """One model's slots and queue."""

    __slots__ = ("in_service", "mean_service_ns", "queue")

    def __init__(self) -> None:
        self.in_service = 0
        self.mean_service_ns = 0.0
        self.queue: OrderedDict[_Turn, None] = OrderedDict()  # by arrival; left in O(1) from anywhere


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
        return sum(len(lane.queue) for lane in self._lanes.values())

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
        if len(lane.queue) >= self._settings.queue_capacity:
            raise OverQuota(
                f"{model!r} has {lane.in_service} requests in service and {len(lane.queue)} waiting, the most that "
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
        """The service of a request, granted at `granted_ns`, has ended: its slot goes on."""
        served_ns = self._clock.now_ns() - granted_ns
        lane.mean_service_ns += (
            SERVICE_SMOOTHING * (served_ns - lane.mean_service_ns) if lane.mean_service_ns else served_ns
        )
        self._pass_on(lane)

    def _pass_on(self, lane: _Lane) -> None:
        """A slot of `lane` is free: whoever has waited longest has it now, at this very moment."""
        if lane.queue:
            turn, _ = lane.queue.popitem(last=False)
            turn.is_granted = True
            turn.signal.set()
        else:
            lane.in_service -= 1

    async def _wait(self, request: Request, lane: _Lane) -> Grant:
        turn = _Turn(self._clock.signal())
        lane.queue[turn] = None
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
            self._pass_on(lane)  # nothing was served, so the mean service time learns nothing
        else:
            del lane.queue[turn]

    def _retry_after_s(self, lane: _Lane) -> float:
        """When a slot and all places before it should have come free, at the mean service time seen so far."""
        if not lane.mean_service_ns:
            return UNKNOWN_RETRY_AFTER_S
        turns = (len(lane.queue) + 1) / self._settings.max_concurrent_requests
        return turns * lane.mean_service_ns / NS_PER_S
