"""Which models are in memory: loaded when they are asked for, unloaded when others need the room.

A request *holds* its model while it is served. Whoever asks for a model that is not there waits for the one load that
this causes; when it fails, each of them is told why. Weights have a budget: room is made by unloading models that
nobody holds, least recently used first. Where all are held, the one that was asked for least recently takes no more
requests after some patience and leaves when its last one has ended, so that no model waits forever behind busy ones.
"""

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from engine.clock import NS_PER_S, Clock, Signal, to_ns
from engine.errors import DeadlinePassed, LoadFailed, NoReplica
from engine.registry.health import Health
from engine.settings import LoadingSettings


class Host(Protocol):
    """Who loads and unloads in truth, and is told of each change."""

    def weights_bytes(self, key: str) -> int:
        """The memory that the weights of that model will take. Raises LoadFailed when nobody can tell."""

    async def load(self, key: str) -> None:
        """Bring the model up to where it serves, warmed. Raises LoadFailed and leaves nothing behind."""

    def unload(self, key: str) -> None:
        """Let the model go. Nobody holds it."""

    def moved(self, key: str, state: Health, cause: str) -> None:
        """The model is in another state now."""


@dataclass(slots=True)
class Residence:
    """A model and its place in memory: what it takes, who holds it, who waits for it.

    `asking` counts the callers who will hold it as soon as they can. `may_return`: a draining model leaves for
    others, and requests wait for it to come back; otherwise an operator sent it away, and they are refused.
    """

    key: str
    state: Health = Health.UNLOADED
    num_bytes: int = 0
    holders: int = 0
    asking: int = 0
    last_used_ns: int = 0
    is_pinned: bool = False
    may_return: bool = False
    waiting: list[Signal] = field(default_factory=list)
    emptied: list[Signal] = field(default_factory=list)
    error: LoadFailed | None = None
    failures: int = 0
    retry_ns: int = 0
    hold: "Hold" = field(init=False, repr=False)  # of everybody who holds it

    @property
    def is_idle(self) -> bool:
        """Whether it could go at once."""
        return self.state is Health.HEALTHY and not (self.holders or self.asking or self.is_pinned)


class Hold:
    """A model that stays in memory until this `with` block ends. All who hold it have the same one."""

    __slots__ = ("_lifecycle", "_residence")

    def __init__(self, lifecycle: "Lifecycle", residence: Residence) -> None:
        self._lifecycle = lifecycle
        self._residence = residence

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lifecycle.release(self._residence)


class Lifecycle:
    """The memory for weights and who is in it. Decisions are synchronous; only a load and the wait for it take time.

    A residence is `healthy` here while its model is in memory; how well its replicas do is the monitor's affair.
    """

    def __init__(self, settings: LoadingSettings, clock: Clock, host: Host) -> None:
        self._settings = settings
        self._clock = clock
        self._host = host
        self._residences: dict[str, Residence] = {}
        self._queue: deque[Residence] = deque()  # who waits for room, in order
        self._room: Signal | None = None
        self.budget_bytes = settings.budget_bytes
        self.used_bytes = 0

    def add_loaded(self, key: str) -> None:
        """A model that is in memory from the start. Raises LoadFailed when the budget does not hold it."""
        residence = self._residence(key)
        residence.num_bytes = self._host.weights_bytes(key)
        if self._lacks(residence.num_bytes):
            raise LoadFailed(
                f"{key} needs {_gib(residence.num_bytes)} for its weights, of which {_gib(self.used_bytes)} "
                f"of {_gib(self.budget_bytes)} are taken by those before it; raise models.weights_gib"
            )
        self.used_bytes += residence.num_bytes
        residence.state = Health.HEALTHY

    def state(self, key: str) -> Health:
        """Unloaded, loading, healthy (in memory), draining, or unhealthy (the last load failed)."""
        residence = self._residences.get(key)
        return residence.state if residence is not None else Health.UNLOADED

    def loaded(self) -> list[str]:
        """The models in memory, least recently used first."""
        there = [each for each in self._residences.values() if each.state is Health.HEALTHY]
        return [each.key for each in sorted(there, key=_by_use)]

    def hold_at_once(self, key: str) -> Hold | None:
        """As `hold`, for a model that is in memory; None for another one. Most requests need no more."""
        residence = self._residences.get(key)
        if residence is None or residence.state is not Health.HEALTHY:
            return None
        residence.holders += 1
        residence.last_used_ns = self._clock.now_ns()
        return residence.hold

    async def hold(self, key: str, deadline_ns: int | None = None) -> Hold:
        """Wait until the model is in memory and keep it there.

        Raises LoadFailed when it cannot be loaded, NoReplica while an operator drains it, DeadlinePassed.
        """
        residence = self._residence(key)
        if residence.state is not Health.HEALTHY:
            await self._ready(residence, deadline_ns)
        residence.holders += 1
        residence.last_used_ns = self._clock.now_ns()
        return residence.hold

    def release(self, residence: Residence) -> None:
        """One holder less."""
        residence.holders -= 1
        residence.last_used_ns = self._clock.now_ns()
        if not residence.holders:
            _tell(residence.emptied)
            self._look_for_room()

    async def load(self, key: str) -> None:
        """Bring a model into memory, for an operator: an earlier failure does not delay it."""
        residence = self._residence(key)
        residence.retry_ns = 0
        with await self.hold(key):
            pass

    async def unload(self, key: str, *, may_return: bool = False) -> None:
        """Drain a model: it takes no more requests, and leaves when those that hold it have ended.

        With `may_return` who asks for it meanwhile waits for its next load, and is not refused.
        """
        residence = self._residence(key)
        if residence.state is Health.LOADING:
            await self._wait(residence.waiting, None)
        if residence.state is Health.HEALTHY:
            residence.may_return = may_return
            self._move(residence, Health.DRAINING, "asked to leave")
            await self._empty(residence)

    def pin(self, key: str, *, pinned: bool = True) -> None:
        """Never unload this model to make room, or do so again."""
        self._residence(key).is_pinned = pinned
        self._look_for_room()

    def forget(self, key: str) -> None:
        """A model that is gone from the registry and was unloaded before."""
        residence = self._residences.get(key)
        if residence is not None and residence.state in (Health.UNLOADED, Health.UNHEALTHY):
            del self._residences[key]

    def check_integrity(self) -> None:
        """Assert what must always hold."""
        there = (Health.LOADING, Health.HEALTHY, Health.DRAINING)
        taken = [each for each in self._residences.values() if each.num_bytes]
        assert self.used_bytes == sum(each.num_bytes for each in taken)
        assert all(each.state in there for each in taken), "only who is in memory takes some of it"
        assert all(each.holders >= 0 for each in self._residences.values())
        assert self.budget_bytes is None or self.used_bytes <= self.budget_bytes

    async def _ready(self, residence: Residence, deadline_ns: int | None) -> None:
        """See to it that the model comes, and wait until it is there."""
        residence.asking += 1
        try:
            while residence.state is not Health.HEALTHY:
                if residence.state is Health.DRAINING and not residence.may_return:
                    raise NoReplica(f"{residence.key} is being drained and takes no requests")
                if residence.state in (Health.UNLOADED, Health.UNHEALTHY):
                    self._begin(residence)
                await self._wait(residence.waiting, deadline_ns, residence.key)
                if residence.state is Health.UNHEALTHY:
                    raise self._refusal(residence, str(residence.error)) from residence.error
        finally:
            residence.asking -= 1

    def _begin(self, residence: Residence) -> None:
        """Let the one load of a model begin. It does not end with the caller who caused it."""
        wait_ns = residence.retry_ns - self._clock.now_ns()
        if residence.error is not None and wait_ns > 0:
            raise self._refusal(
                residence, f"{residence.error}; the next try is in {wait_ns / NS_PER_S:.1f} s"
            )
        self._move(residence, Health.LOADING, "asked for")
        self._clock.spawn(self._bring(residence))

    def _refusal(self, residence: Residence, message: str) -> LoadFailed:
        """What a caller is told of a load that failed: also when the next one may be tried."""
        error = LoadFailed(message)
        error.model = residence.key
        error.retry_after_s = max(0, residence.retry_ns - self._clock.now_ns()) / NS_PER_S
        return error

    async def _bring(self, residence: Residence) -> None:
        try:
            residence.error = None
            await self._reserve(residence)
            await self._host.load(residence.key)
        except LoadFailed as error:
            self._failed(residence, error)
        except BaseException as error:
            self._failed(residence, LoadFailed(f"{residence.key} could not be loaded: {error!r}"))
            raise
        else:
            residence.failures = 0
            residence.last_used_ns = self._clock.now_ns()
            self._move(residence, Health.HEALTHY, "loaded")
        finally:
            _tell(residence.waiting)

    def _failed(self, residence: Residence, error: LoadFailed) -> None:
        self._free(residence)
        settings = self._settings
        delay_s = min(settings.retry_after_s * 2**residence.failures, settings.max_retry_after_s)
        residence.failures = min(residence.failures + 1, 32)
        residence.retry_ns = self._clock.now_ns() + to_ns(delay_s)
        residence.error = error
        self._move(residence, Health.UNHEALTHY, str(error))

    async def _reserve(self, residence: Residence) -> None:
        """Wait until the budget holds the weights of this model, and take that much of it."""
        needed = self._host.weights_bytes(residence.key)
        self._queue.append(residence)
        patience_ns = self._clock.now_ns() + to_ns(self._settings.patience_s)
        try:
            while self._queue[0] is not residence or not self._make_room(needed):
                self._check_it_can_ever_fit(residence.key, needed)
                if self._queue[0] is residence and self._clock.now_ns() >= patience_ns:
                    self._send_one_away()
                await self._wait_for_room(patience_ns)
            self.used_bytes += needed
            residence.num_bytes = needed
        finally:
            self._queue.remove(residence)
            self._look_for_room()

    def _check_it_can_ever_fit(self, key: str, needed: int) -> None:
        budget = self.budget_bytes or 0
        if needed > budget:
            raise LoadFailed(
                f"{key} needs {_gib(needed)} for its weights, more than the whole budget of {_gib(budget)}; "
                "raise models.weights_gib or choose a smaller model"
            )
        pinned = sum(each.num_bytes for each in self._residences.values() if each.is_pinned)
        if needed + pinned > budget:
            raise LoadFailed(
                f"{key} needs {_gib(needed)} for its weights, but pinned models take {_gib(pinned)} of "
                f"{_gib(budget)}; unpin one, or raise models.weights_gib"
            )

    def _make_room(self, needed: int) -> bool:
        """Unload idle models, least recently used first, if that makes enough room; whether there is enough."""
        if not self._lacks(needed):
            return True
        idle = sorted([each for each in self._residences.values() if each.is_idle], key=_by_use)
        if self._lacks(needed - sum(each.num_bytes for each in idle)):
            return False
        for residence in idle:
            if not self._lacks(needed):
                break
            self._leave(residence, "others need the room")
        return True

    def _send_one_away(self) -> None:
        """Let the busy model that was used least recently take no more requests, unless one is leaving already."""
        residences = self._residences.values()
        if any(each.state is Health.DRAINING for each in residences):
            return
        busy = [each for each in residences if each.state is Health.HEALTHY and not each.is_pinned]
        if busy:
            leaving = min(busy, key=_by_use)
            leaving.may_return = True
            self._move(leaving, Health.DRAINING, "others need the room")
            self._clock.spawn(self._empty(leaving))

    async def _empty(self, residence: Residence) -> None:
        """Wait until nobody holds a draining model, and let it go."""
        while residence.holders:
            await self._wait(residence.emptied, None)
        if residence.state is Health.DRAINING:
            self._leave(residence, "drained")
            _tell(residence.waiting)

    def _leave(self, residence: Residence, cause: str) -> None:
        self._host.unload(residence.key)
        self._free(residence)
        self._move(residence, Health.UNLOADED, cause)

    def _free(self, residence: Residence) -> None:
        self.used_bytes -= residence.num_bytes
        residence.num_bytes = 0
        self._look_for_room()

    def _lacks(self, needed: int) -> bool:
        return self.budget_bytes is not None and self.used_bytes + needed > self.budget_bytes

    async def _wait_for_room(self, patience_ns: int) -> None:
        """Until something has changed, or the patience is over."""
        if self._room is None:
            self._room = self._clock.signal()
        left_ns = patience_ns - self._clock.now_ns()
        timer = self._clock.call_later(left_ns, self._look_for_room) if left_ns > 0 else None
        await self._room.wait()
        if timer is not None:
            timer.cancel()

    def _look_for_room(self) -> None:
        if self._room is not None:
            room, self._room = self._room, None
            room.set()

    async def _wait(self, line: list[Signal], deadline_ns: int | None, key: str = "") -> None:
        """Stand in a line until it is told, or until the deadline: then DeadlinePassed."""
        signal = self._clock.signal()
        line.append(signal)
        timer = None
        if deadline_ns is not None:
            left_ns = max(0, deadline_ns - self._clock.now_ns())
            timer = self._clock.call_later(left_ns, partial(_give_up, line, signal))
        try:
            await signal.wait()
        finally:
            if timer is not None:
                timer.cancel()
        if deadline_ns is not None and self._clock.now_ns() >= deadline_ns:
            raise DeadlinePassed(f"the deadline passed while {key} was being loaded")

    def _move(self, residence: Residence, state: Health, cause: str) -> None:
        residence.state = state
        self._host.moved(residence.key, state, cause)

    def _residence(self, key: str) -> Residence:
        residence = self._residences.get(key)
        if residence is None:
            residence = self._residences[key] = Residence(key)
            residence.hold = Hold(self, residence)
        return residence


def _by_use(residence: Residence) -> tuple[int, str]:
    return residence.last_used_ns, residence.key


def _tell(line: list[Signal]) -> None:
    """All who stand in the line may go on."""
    here = line[:]
    line.clear()
    for signal in here:
        signal.set()


def _give_up(line: list[Signal], signal: Signal) -> None:
    if signal in line:
        line.remove(signal)
        signal.set()


def _gib(num_bytes: int | None) -> str:
    return "no limit" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"
