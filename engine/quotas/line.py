"""The line before a model: who waits for a place in its books, and who of them is next."""

from typing import TYPE_CHECKING

from engine.clock import NS_PER_S, Signal
from engine.quotas.books import Ledger
from engine.quotas.ranking import Ranking
from engine.request import Request

if TYPE_CHECKING:
    from engine.errors import BadRequest, OverQuota

KNOWN_FROM = 1_024  # tenants, before counters that mean nothing any more are looked for


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
        self.error: OverQuota | BadRequest | None = None


class Queue:
    """The waiting requests of one tenant and one priority: the earliest deadline first, then whoever came first."""

    __slots__ = ("backward", "forward")

    def __init__(self) -> None:
        self.forward: Ranking[Waiter] = Ranking()
        self.backward: Ranking[Waiter] = Ranking()  # for who is sent away first

    def add(self, waiter: Waiter, number: int) -> None:
        self.forward.put(waiter, (waiter.due_ns, number))
        self.backward.put(waiter, (-waiter.due_ns, -number))

    def drop(self, waiter: Waiter) -> None:
        self.forward.drop(waiter)
        self.backward.drop(waiter)


class Share:
    """A tenant that waits: its virtual token counter, and its queues by priority.

    It is `aside` while a limit of its own is in the way: others go on without it.
    """

    __slots__ = ("is_aside", "num", "queues", "served", "tenant", "weight")

    def __init__(self, tenant: str, served: float, weight: float) -> None:
        self.tenant = tenant
        self.served = served  # tokens by weight
        self.weight = weight
        self.queues: dict[int, Queue] = {}
        self.num = 0
        self.is_aside = False


class Band:
    """The waiting requests of one priority: the tenant that was served least is next (virtual token counter).

    A tenant that comes is lifted to the least counter of those who wait: silence saves nothing up. (Sheng et al.,
    "Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588.)
    """

    __slots__ = ("by_age", "tenants")

    def __init__(self) -> None:
        self.tenants: Ranking[str] = Ranking()  # those that are not aside
        self.by_age: Ranking[Waiter] = Ranking()


class Line:
    """All who wait for one model: bands by priority, of which the oldest waiter ages, in them fair shares by tenant.

    A step of priority is worth `aging_s` of waiting. All age alike, so the order of bands changes only when somebody
    comes or goes. Everything is a ranking: O(log n) an operation, however many wait.
    """

    __slots__ = (
        "_aging_ns",
        "_aside",
        "_bands",
        "_by_number",
        "_by_served",
        "_first",
        "_forget_at",
        "_number",
        "_served",
        "_shares",
        "_weights",
        "num_waiting",
    )

    def __init__(self, aging_s: float, weights: dict[str, float]) -> None:
        self._aging_ns = round(aging_s * NS_PER_S)
        self._weights = weights
        self._number = 0
        self._bands: dict[int, Band] = {}
        self._shares: dict[str, Share] = {}
        self._served: dict[str, float] = {}  # of tenants that have waited since the line was empty
        self._forget_at = KNOWN_FROM
        self._first: Ranking[int] = Ranking()  # bands in which somebody is not aside
        self._by_served: Ranking[str] = Ranking()
        self._by_number: Ranking[str] = Ranking()
        self._aside: Ranking[str] = Ranking()  # those whom time will bring back
        self.num_waiting = 0

    def update(self, aging_s: float, weights: dict[str, float]) -> None:
        """Other settings from now on; what was given stays given. Everybody may have room again."""
        self._aging_ns = round(aging_s * NS_PER_S)
        self._weights = weights
        for tenant, share in self._shares.items():
            share.weight = weights.get(tenant, 1.0)
            self.call_back(tenant)
        for priority in self._bands:
            self._place(priority)

    # who comes and goes

    def add(self, waiter: Waiter) -> None:
        """Take somebody in."""
        share = self._share(waiter.request.tenant)
        band = self._bands.get(waiter.priority)
        if band is None:
            band = self._bands[waiter.priority] = Band()
        queue = share.queues.get(waiter.priority)
        if queue is None:
            queue = share.queues[waiter.priority] = Queue()
        self._number += 1
        queue.add(waiter, self._number)
        band.by_age.put(waiter, self._number)
        self.num_waiting += 1
        self._count(share, 1)
        self.call_back(share.tenant)
        self._rank(share, waiter.priority)

    def _share(self, tenant: str) -> Share:
        share = self._shares.get(tenant)
        if share is None:
            served = max(self._served.get(tenant, 0.0), self._least_served())
            share = self._shares[tenant] = Share(tenant, served, self._weights.get(tenant, 1.0))
            self._by_served.put(tenant, served)
            self._served[tenant] = served
            if len(self._served) > self._forget_at:
                self._forget()
        return share

    def _least_served(self) -> float:
        least = self._by_served.least()
        return 0.0 if least is None else self._shares[least].served

    def _forget(self) -> None:
        """Tenants that have gone, and would be lifted to the others if they came back."""
        least = self._least_served()
        self._served = {
            tenant: served
            for tenant, served in self._served.items()
            if tenant in self._shares or served > least
        }
        self._forget_at = max(KNOWN_FROM, 2 * len(self._served))

    def leave(self, waiter: Waiter) -> None:
        """Take somebody out, whyever."""
        waiter.is_gone = True
        tenant, priority = waiter.request.tenant, waiter.priority
        share, band = self._shares[tenant], self._bands[priority]
        share.queues[priority].drop(waiter)
        band.by_age.drop(waiter)
        self.num_waiting -= 1
        self._count(share, -1)
        if not len(share.queues[priority].forward):
            del share.queues[priority]
            band.tenants.drop(tenant)
        self.call_back(tenant)  # whoever is behind may have room
        self._place(priority)
        if not len(band.by_age):
            del self._bands[priority]
        if not share.num:
            self._by_served.drop(tenant)
            del self._shares[tenant]
        if not self.num_waiting:
            self._served.clear()

    def _count(self, share: Share, more: int) -> None:
        share.num += more
        if share.num:
            self._by_number.put(share.tenant, -share.num)
        else:
            self._by_number.drop(share.tenant)

    # who is next

    def next(self) -> Waiter | None:
        """Who is next of those who are not aside; None where nobody is."""
        priority = self._first.least()
        if priority is None:
            return None
        tenant = self._bands[priority].tenants.least()
        assert tenant is not None
        return self._shares[tenant].queues[priority].forward.least()

    def charge(self, tenant: str, tokens: int) -> None:
        """Tokens were given to a tenant (negative: it gave some back). Only those who wait are compared."""
        share = self._shares.get(tenant)
        if share is not None:
            share.served += tokens / share.weight
            self._served[tenant] = share.served
            self._by_served.put(tenant, share.served)
            for priority in share.queues:
                self._rank(share, priority)
        elif tenant in self._served:
            self._served[tenant] += tokens / self._weights.get(tenant, 1.0)

    def _rank(self, share: Share, priority: int) -> None:
        if not share.is_aside:
            self._bands[priority].tenants.put(share.tenant, share.served)
            self._place(priority)

    def _place(self, priority: int) -> None:
        """A band among the others, by its oldest waiter; not at all while all of its tenants are aside."""
        band = self._bands[priority]
        oldest = band.by_age.least()
        if oldest is None or not len(band.tenants):
            self._first.drop(priority)
        else:
            self._first.put(priority, (oldest.arrival_ns - priority * self._aging_ns, -priority))

    def set_aside(self, tenant: str, until_ns: int | None) -> None:
        """A limit of its own is in a tenant's way, until then; None: until one of its requests has ended."""
        share = self._shares[tenant]
        share.is_aside = True
        if until_ns is not None:
            self._aside.put(tenant, until_ns)
        for priority in share.queues:
            self._bands[priority].tenants.drop(tenant)
            self._place(priority)

    def call_back(self, tenant: str) -> None:
        """A tenant may have room again."""
        share = self._shares[tenant]
        if share.is_aside:
            share.is_aside = False
            self._aside.drop(tenant)
            for priority in share.queues:
                self._rank(share, priority)

    def call_back_all(self) -> None:
        """Limits have changed."""
        for tenant in self._shares:
            self.call_back(tenant)

    def call_back_due(self, now_ns: int) -> None:
        """Those whose time has come."""
        while (tenant := self._aside.least()) is not None and self._aside.rank_of(tenant) <= now_ns:
            self.call_back(tenant)

    def back_ns(self) -> int | None:
        """When time brings back the first of those who are aside."""
        tenant = self._aside.least()
        return None if tenant is None else int(self._aside.rank_of(tenant))

    # who has how much of it

    def places_of(self, tenant: str) -> int:
        """How many requests of that tenant wait."""
        share = self._shares.get(tenant)
        return 0 if share is None else share.num

    def fullest(self) -> str | None:
        """The tenant with the most waiting requests."""
        return self._by_number.least()

    def last_of(self, tenant: str) -> Waiter:
        """The waiter of a tenant that would be served last: of its lowest priority, the latest."""
        queues = self._shares[tenant].queues
        last = queues[min(queues)].backward.least()
        assert last is not None
        return last

    def waiters(self) -> list[Waiter]:
        """All of them, in no order that means anything."""
        return [waiter for band in self._bands.values() for waiter in band.by_age]
