"""The line before a model: who waits for a place in its books, and who of them is next."""

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from engine.clock import NS_PER_S, Signal
from engine.quotas.books import Ledger
from engine.request import Request

if TYPE_CHECKING:
    from engine.errors import OverQuota


class Waiter:
    """One request in the line. Whoever frees a place sets `grant`; whoever takes its own away, `error`."""

    __slots__ = (
        "arrival_ns",
        "due_ns",
        "error",
        "grant",
        "is_gone",
        "ledger",
        "priority",
        "request",
        "signal",
        "tokens",
    )

    def __init__(
        self,
        request: Request,
        ledger: Ledger,
        tokens: int,
        signal: Signal,
        now_ns: int,
        patience_ns: int,
    ) -> None:
        self.request = request
        self.ledger = ledger
        self.tokens = tokens
        self.signal = signal
        self.arrival_ns = now_ns
        self.priority = request.priority
        # whoever has no deadline, or a far one, has one for the order: others may go first, but not for ever
        self.due_ns = now_ns + patience_ns
        if request.deadline_ns is not None and request.deadline_ns < self.due_ns:
            self.due_ns = request.deadline_ns
        self.grant: object | None = None
        self.is_gone = False
        self.error: OverQuota | None = None


class Queue:
    """The waiting requests of one tenant in one band: the earliest deadline first, then whoever came first."""

    __slots__ = ("heap", "num", "served", "tenant")

    def __init__(self, tenant: str, served: float) -> None:
        self.tenant = tenant
        self.served = served  # the virtual token counter
        self.heap: list[tuple[int, int, int, Waiter]] = []
        self.num = 0

    def add(self, waiter: Waiter, number: int) -> None:
        heappush(self.heap, (waiter.due_ns, waiter.arrival_ns, number, waiter))
        self.num += 1

    def head(self) -> Waiter | None:
        heap = self.heap
        while heap and heap[0][3].is_gone:
            heappop(heap)
        return heap[0][3] if heap else None

    def last(self) -> Waiter:
        """Whoever would be served last of those who are there."""
        return max(entry for entry in self.heap if not entry[3].is_gone)[3]


class Band:
    """The waiting requests of one priority: the tenant that was served least is next (virtual token counter).

    A tenant that comes is lifted to the least counter of those who wait: silence saves nothing up. (Sheng et al.,
    "Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588.)
    """

    __slots__ = ("arrivals", "heap", "num", "priority", "queues")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.queues: dict[str, Queue] = {}
        self.heap: list[tuple[float, int, Queue]] = []
        self.arrivals: list[tuple[int, int, Waiter]] = []
        self.num = 0

    def oldest_ns(self, now_ns: int) -> int:
        """When the one that waits longest came."""
        arrivals = self.arrivals
        while arrivals and arrivals[0][2].is_gone:
            heappop(arrivals)
        return arrivals[0][0] if arrivals else now_ns


class Line:
    """All who wait for one model: bands by priority, of which the oldest waiter ages, in them fair shares by tenant.

    Everything is a heap whose entries of those who have left are dropped when they come up: O(log n) an operation.
    """

    __slots__ = ("_aging_ns", "_bands", "_number", "_of_tenant", "_weights", "num_waiting", "served")

    def __init__(self, aging_s: float, weights: dict[str, float]) -> None:
        self._aging_ns = aging_s * NS_PER_S
        self._weights = weights
        self._bands: dict[int, Band] = {}
        self._of_tenant: dict[str, int] = {}  # how many wait
        self._number = 0
        self.num_waiting = 0
        self.served: dict[
            str, float
        ] = {}  # tokens by weight, of tenants that wait or have waited since it was empty

    def add(self, waiter: Waiter) -> None:
        band = self._bands.get(waiter.priority)
        if band is None:
            band = self._bands[waiter.priority] = Band(waiter.priority)
        tenant = waiter.request.tenant
        self._number += 1
        if tenant not in self._of_tenant:
            active = [self.served[name] for name in self._of_tenant]
            self.served[tenant] = max(self.served.get(tenant, 0.0), min(active, default=0.0))
            self._of_tenant[tenant] = 0
        queue = band.queues.get(tenant)
        if queue is None:
            queue = band.queues[tenant] = Queue(tenant, self.served[tenant])
        if not queue.num:
            queue.served = self.served[tenant]
            heappush(band.heap, (queue.served, self._number, queue))
        queue.add(waiter, self._number)
        heappush(band.arrivals, (waiter.arrival_ns, self._number, waiter))
        band.num += 1
        self._of_tenant[tenant] += 1
        self.num_waiting += 1

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out, whyever."""
        if waiter.is_gone:
            return
        waiter.is_gone = True
        band, tenant = self._bands[waiter.priority], waiter.request.tenant
        queue = band.queues[tenant]
        queue.num -= 1
        band.num -= 1
        if not queue.num:
            del band.queues[tenant]
        if not band.num:
            del self._bands[waiter.priority]
        self._of_tenant[tenant] -= 1
        if not self._of_tenant[tenant]:
            del self._of_tenant[tenant]
        self.num_waiting -= 1
        if not self.num_waiting:
            self.served.clear()

    def charge(self, tenant: str, tokens: int) -> None:
        """Tokens were given to a tenant (negative: it gave some back). Only who waits is compared."""
        if tenant in self.served:
            self.served[tenant] += tokens / self._weights.get(tenant, 1.0)

    def next(self, now_ns: int, without: dict[str, None]) -> Waiter | None:
        """Who is next, of the tenants that are not in `without`; None when there is nobody."""
        for band in self._by_age(now_ns):
            aside: list[tuple[float, int, Queue]] = []
            found = self._first(band, without, aside)
            for entry in aside:
                heappush(band.heap, entry)
            if found is not None:
                return found
        return None

    def _first(
        self, band: Band, without: dict[str, None], aside: list[tuple[float, int, Queue]]
    ) -> Waiter | None:
        heap = band.heap
        while heap:
            served, number, queue = heap[0]
            if band.queues.get(queue.tenant) is not queue:
                heappop(heap)
                continue
            now_served = self.served[queue.tenant]
            if served != now_served:  # served since, or given back: its place is another one
                heappop(heap)
                heappush(heap, (now_served, number, queue))
                continue
            if queue.tenant in without:
                aside.append(heappop(heap))
                continue
            return queue.head()
        return None

    def _by_age(self, now_ns: int) -> list[Band]:
        """The bands, the one with the highest priority and age first: a step of priority is worth `aging_s`."""
        bands = list(self._bands.values())
        if len(bands) > 1:
            aging_ns = self._aging_ns
            bands.sort(
                key=lambda band: (
                    -(band.priority + (now_ns - band.oldest_ns(now_ns)) / aging_ns),
                    -band.priority,
                )
            )
        return bands

    def places_of(self, tenant: str) -> int:
        """How many requests of that tenant wait."""
        return self._of_tenant.get(tenant, 0)

    def fullest(self) -> str:
        """The tenant with the most waiting requests."""
        return max(self._of_tenant, key=lambda name: (self._of_tenant[name], name))

    def last_of(self, tenant: str) -> Waiter:
        """The waiter of a tenant that would be served last: of its lowest priority, the latest."""
        lowest = min(priority for priority, band in self._bands.items() if tenant in band.queues)
        return self._bands[lowest].queues[tenant].last()

    def waiters(self) -> list[Waiter]:
        """All of them, in no order that means anything."""
        return [entry[2] for band in self._bands.values() for entry in band.arrivals if not entry[2].is_gone]
