"""The books: what a model, a tenant, or both together may use, and the one check that all of it costs.

A book keeps running totals, and for each the smallest value at which anything happens: a limit, a soft limit, a mode,
the mark on the disk. Below that, and before the next window begins, a request is admitted by comparing and adding.
Everything else is looked at when one of these is reached.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from operator import itemgetter

from engine.clock import NS_PER_S
from engine.quotas.windows import FRESH, SCALE_BITS, Burst, Window, gap_of, resumed
from engine.settings import DAY_S, MODES, AllowanceSettings, QuotaSettings

HOUR_NS = 3_600 * NS_PER_S
DAY_NS = DAY_S * NS_PER_S
UNBOUNDED = 1 << 62
EMERGENCY = MODES.index("emergency")
LIMITED = MODES.index("limited")
THROTTLED = MODES.index("throttled")
SEEN_NS = 10 * NS_PER_S  # how often a look is taken at the rate of admissions, in case it must be halved


@dataclass(slots=True)
class Crossing:
    """Use has passed a soft limit, upward. A name is None where the limit is for all of them together."""

    at_ns: int
    model: str | None
    tenant: str | None
    kind: str
    share: float
    used: int
    limit: int


@dataclass(slots=True)
class ModeChange:
    """A book works in another degradation mode."""

    at_ns: int
    model: str | None
    tenant: str | None
    before: str
    after: str
    cause: str


Observer = Callable[[Crossing | ModeChange], None]


class Total:
    """A running total of one resource in a book, and the windows that limit it.

    The total and its `ceiling`, the smallest at which anything happens, lie in the book itself: the check reads them
    there. `top` is the largest total that the limits allow now.
    """

    __slots__ = ("_book", "_is_tokens", "mark", "name", "top", "windows")

    def __init__(self, book: "Book", name: str) -> None:
        self._book = book
        self._is_tokens = name == "tokens"
        self.name = name
        self.top = UNBOUNDED
        self.mark = UNBOUNDED  # up to here it is on disk that it was used
        self.windows: list[Window] = []

    @property
    def spent(self) -> int:
        return self._book.spent_tokens if self._is_tokens else self._book.spent_requests


class Book:
    """The limits of a model, of a tenant, of both, or of all, and what is used of them."""

    __slots__ = (
        "arrival",
        "bursts_from",
        "ceiling_requests",
        "ceiling_tokens",
        "gap_ns",
        "gap_request",
        "gap_token",
        "has_bursts",
        "held_from",
        "held_tokens",
        "in_service",
        "is_paced",
        "is_special",
        "is_told",
        "lender",
        "max_held_tokens",
        "max_in_service",
        "mean_service_ns",
        "mode",
        "model",
        "more",
        "num_crossed",
        "observer",
        "operator_mode",
        "paced_ns",
        "promised",
        "quiet_since_ns",
        "rate_from",
        "requests",
        "settings",
        "since_ns",
        "since_number",
        "slack",
        "spent_requests",
        "spent_tokens",
        "tenant",
        "tokens",
        "turn_ns",
        "until_ns",
    )

    def __init__(
        self, model: str | None, tenant: str | None, settings: QuotaSettings, observer: Observer | None
    ) -> None:
        self.model = model
        self.tenant = tenant
        self.settings = settings
        self.observer = observer
        self.lender: Callable[[Book, Total, int], None] | None = None  # writes down what may be used
        self.spent_tokens = 0
        self.spent_requests = 0
        self.ceiling_tokens = UNBOUNDED
        self.ceiling_requests = UNBOUNDED
        self.tokens = Total(self, "tokens")
        self.requests = Total(self, "requests")
        self.turn_ns = UNBOUNDED  # when a window begins, or a mode may end
        self.until_ns = UNBOUNDED  # until then the short way of the check knows everything
        self.mean_service_ns = 0.0
        self.in_service = 0
        self.held_tokens = 0  # counted where there is a limit on them
        self.held_from = 0  # from the grant after that
        self.bursts_from = 0
        self.max_in_service = UNBOUNDED
        self.max_held_tokens = UNBOUNDED
        self.has_bursts = False
        self.is_special = False  # has limits that the short way knows nothing of
        self.arrival = 0  # of the first burst limit, spelled out: see Burst
        self.gap_request = 0
        self.gap_token = 0
        self.slack = UNBOUNDED << SCALE_BITS
        self.promised = 0
        self.more: Burst | None = None  # the second one
        self.mode = 0  # its place in MODES
        self.is_paced = False  # requests are let in one by one, at even distances
        self.operator_mode = -1
        self.quiet_since_ns = -1  # since when emergency has had no cause
        self.gap_ns = 0.0  # between two admissions, before they were paced
        self.rate_from = (0, 0, 0, 0)  # two moments, and the requests admitted until then
        self.paced_ns = 0  # no admission before, where admissions are paced
        self.num_crossed: dict[float, int] = {}
        self.is_told = False  # a soft limit was told, or a mode holds: something to take back
        self.since_number = 0  # of the grants until then, some window knows nothing
        self.since_ns = -UNBOUNDED  # of what was granted before, some window has begun anew

    # what it may use

    def allow(
        self, rule: AllowanceSettings, now_ns: int, offset_ns: int, day_offset_ns: int, num_granted: int
    ) -> None:
        """Take over limits, the first ones or others: what is spent stays spent.

        Of the first so many grants nothing comes back into bursts, which had other measures, nor into windows that
        are new; and where tokens in service were not counted, they are from here on.
        """
        for total in (self.tokens, self.requests):
            before = {window.kind: window for window in total.windows}
            total.windows = []
            for kind, length_ns, offset in (("hourly", HOUR_NS, offset_ns), ("daily", DAY_NS, day_offset_ns)):
                limit = getattr(rule, f"{kind}_{total.name}")
                if limit is None:
                    continue
                window = before.get(kind)
                if window is None or (window.span > 0) != rule.sliding:
                    used = 0 if window is None else window.used(total.spent)
                    window = Window(kind, limit, length_ns, offset, sliding=rule.sliding)
                    window.begin(now_ns, total.spent, used, num_granted)
                    self.since_number = num_granted
                elif window.limit != limit:
                    window.promised = window.promised_at = (
                        0  # who was told to come back was told of another limit
                    )
                window.limit, window.before = limit, window.used(total.spent)
                total.windows.append(window)
        self.max_in_service = _or_none(rule.concurrent_requests)
        self.max_held_tokens = _or_none(rule.concurrent_tokens)
        self._allow_bursts(rule, now_ns)
        self.bursts_from = num_granted
        was_special = self.is_special
        self.is_special = self.more is not None or self.max_held_tokens < UNBOUNDED
        if self.is_special and not was_special:
            self.held_tokens, self.held_from = 0, num_granted
        self.roll(now_ns)

    def _allow_bursts(self, rule: AllowanceSettings, now_ns: int) -> None:
        """One burst limit is spelled out in this book, of requests if there is one; what was used stays used."""
        first, more = (self.arrival, self.promised, self.gap_request or self.gap_token), self.more
        requests = first if self.gap_request else FRESH
        tokens = (
            first if self.gap_token else FRESH if more is None else (more.arrival, more.promised, more.gap)
        )
        self.gap_request = self.gap_token = self.arrival = self.promised = 0
        self.slack, self.more = UNBOUNDED << SCALE_BITS, None
        if rule.requests_per_s is not None and rule.burst_requests is not None:
            self.gap_request = gap_of(rule.requests_per_s)
            self.slack = rule.burst_requests * self.gap_request
            self.arrival, self.promised = resumed(requests, self.gap_request, now_ns)
            if rule.tokens_per_s is not None and rule.burst_tokens is not None:
                self.more = more = Burst(rule.tokens_per_s, rule.burst_tokens)
                more.arrival, more.promised = resumed(tokens, more.gap, now_ns)
        elif rule.tokens_per_s is not None and rule.burst_tokens is not None:
            self.gap_token = gap_of(rule.tokens_per_s)
            self.slack = rule.burst_tokens * self.gap_token
            self.arrival, self.promised = resumed(tokens, self.gap_token, now_ns)
        self.has_bursts = self.slack < UNBOUNDED << SCALE_BITS

    def roll(self, now_ns: int) -> None:
        """Begin the windows that have begun by now, end the modes that have ended, and find anew what may be used."""
        calm_ns = self._calm_ns(self.mode, now_ns)
        turn_ns = UNBOUNDED
        for total in (self.tokens, self.requests):
            for window in total.windows:
                if window.roll(now_ns, total.spent):
                    self._rearm(window, total)
                    if self.lender is not None:
                        total.mark = total.spent  # nothing of the new window is on disk
                turn_ns = min(turn_ns, window.end_ns)
                self.since_ns = max(self.since_ns, window.end_ns - window.part_ns)
        self.turn_ns = turn_ns
        self.settle_down(now_ns, calm_ns)
        self._look(now_ns)
        self.set_ceilings()

    def forgive(self, num_granted: int, now_ns: int) -> None:
        """Windows and bursts as if nothing had been used; who is in service stays so, and settles for nothing.

        A mode that use has brought about ends with it, an operator's does not.
        """
        self.roll(now_ns)
        for total in (self.tokens, self.requests):
            for window in total.windows:
                window.forgive(total.spent, num_granted)
        self.since_number = self.bursts_from = num_granted
        self.arrival = self.promised = 0
        if self.more is not None:
            self.more.arrival = self.more.promised = 0
        self.settle_down(now_ns)
        self.set_ceilings()
        self._look(now_ns)

    def begin_lease(self) -> None:
        """From here on, what will be used is written down before: the next request asks for it."""
        if self.lender is not None:
            for total in (self.tokens, self.requests):
                total.mark = total.spent if total.windows else UNBOUNDED
            self.set_ceilings()

    def _look(self, now_ns: int) -> None:
        """See how fast requests come, and until when the short way will do."""
        self._note_rate(now_ns)
        is_watched = self.is_special or self.is_paced
        self.until_ns = -UNBOUNDED if is_watched else min(self.turn_ns, now_ns + SEEN_NS)

    def set_ceilings(self) -> None:
        """Find the smallest totals at which anything happens."""
        shares = self.settings.soft_limits
        at = self._next_mode_at()
        self.is_told = self.mode > 0
        for total in (self.tokens, self.requests):
            top, ceiling = UNBOUNDED, total.mark
            for window in total.windows:
                base = total.spent - window.used(total.spent)
                top = min(top, base + window.limit)
                self.is_told |= window.passed > 0
                if window.passed < len(shares):
                    ceiling = min(ceiling, base + _threshold(shares[window.passed], window.limit) - 1)
                if at is not None:
                    ceiling = min(ceiling, base + _threshold(at, window.limit) - 1)
            total.top = top
            if total is self.tokens:
                self.ceiling_tokens = min(top, ceiling)
            else:
                self.ceiling_requests = min(top, ceiling)

    # is there room

    def has_room(self, tokens: int, now_ns: int) -> bool:
        """The long way of the check: see whether a limit was reached, or only a mark or a moment."""
        if now_ns >= self.turn_ns:
            self.roll(now_ns)
        elif now_ns >= self.until_ns:
            self._look(now_ns)
        if (
            self.spent_tokens + tokens > self.tokens.top
            or self.spent_requests >= self.requests.top
            or self.in_service >= self.max_in_service
            or self.held_tokens + tokens > self.max_held_tokens
        ):
            return False
        if not self.fits_bursts(tokens, now_ns):
            return False
        if self.is_paced and now_ns < self.paced_ns:
            return False
        if self.lender is not None:
            for total, amount in ((self.tokens, tokens), (self.requests, 1)):
                if total.spent + amount > total.mark:
                    self.lender(self, total, amount)
        return True

    def fits_bursts(self, tokens: int, now_ns: int) -> bool:
        now = now_ns << SCALE_BITS
        if max(self.arrival, now) + self.gap_request + tokens * self.gap_token - now > self.slack:
            return False
        return self.more is None or self.more.fits(tokens, now_ns)

    def places(self, tokens: int) -> tuple[int, int]:
        """Where the last request, of so many tokens, stands in the lines of the bursts."""
        first = self.arrival - self.gap_request - tokens * self.gap_token
        return first, self.more.arrival - tokens * self.more.gap if self.more is not None else 0

    def refund_bursts(
        self, places: tuple[int, int], tokens: int, used: int, now_ns: int, *, was_served: bool
    ) -> None:
        """Of what was taken there, only `used` tokens were needed, and no request if it was not served.

        What has drained since does not come back: it would drain a second time for those who came later.
        """
        now = now_ns << SCALE_BITS
        place, other = places
        end = place + self.gap_request + tokens * self.gap_token
        needed = place + (self.gap_request if was_served else 0) + used * self.gap_token
        self.arrival -= max(0, end - max(needed, now))
        if self.more is not None:
            self.more.refund(other, tokens, used, now_ns)

    def bursts(self) -> list[tuple[str, int, int]]:
        """Of each burst limit its name, its theoretical arrival time, and by how much that may lie ahead."""
        found = []
        if self.has_bursts:
            found.append(("burst_requests" if self.gap_request else "burst_tokens", self.arrival, self.slack))
        if self.more is not None:
            found.append(("burst_tokens", self.more.arrival, self.more.slack))
        return found

    def resume_burst(self, name: str, arrival: int) -> None:
        """Go on where a burst limit had stood in an earlier life."""
        if self.more is not None and name == "burst_tokens":
            self.more.arrival = max(self.more.arrival, arrival)
        else:
            self.arrival = max(self.arrival, arrival)

    def never(self, tokens: int, requests: int = 1) -> str | None:
        """The limit that so many tokens, of requests that come together, can never keep; None where there is none."""
        for total, amount in ((self.tokens, tokens), (self.requests, requests)):
            for window in total.windows:
                if amount > window.limit:
                    return f"{window.kind}_{total.name} is {window.limit}"
        if self.gap_token and tokens * self.gap_token > self.slack:
            return f"burst_tokens is {self.slack // self.gap_token}"
        if self.gap_request and requests * self.gap_request > self.slack:
            return f"burst_requests is {self.slack // self.gap_request}"
        if self.more is not None and tokens > self.more.depth:
            return f"burst_tokens is {self.more.depth}"
        is_held = requests == 1 and tokens > self.max_held_tokens  # of several, one may wait for the other
        return f"concurrent_tokens is {self.max_held_tokens}" if is_held else None

    def blocked(self, tokens: int, now_ns: int) -> tuple[str, int | None]:
        """Which limit is in the way, and until when; None: until somebody leaves. ("", now) where there is none."""
        reason, until_ns = self._blocked_for_a_time(tokens, now_ns)
        if reason:
            return reason, until_ns
        if self.in_service >= self.max_in_service:
            return "concurrent_requests", None
        if self.held_tokens + tokens > self.max_held_tokens:
            return "concurrent_tokens", None
        return "", now_ns

    def _blocked_for_a_time(self, tokens: int, now_ns: int) -> tuple[str, int]:
        """Of the limits that time lifts, the last: windows, bursts, the pace of a mode."""
        found = [("", now_ns), (MODES[self.mode], self.next_ns(now_ns))]
        for total, amount in ((self.tokens, tokens), (self.requests, 1)):
            found += [
                (f"{window.kind}_{total.name}", window.free_ns(amount, total.spent))
                for window in total.windows
                if window.used(total.spent) + amount > window.limit
            ]
        found.append(
            ("tokens_per_s" if self.gap_token else "requests_per_s", self._burst_free_ns(tokens, now_ns))
        )
        if self.more is not None and not self.more.fits(tokens, now_ns):
            found.append(("tokens_per_s", self.more.free_ns(tokens)))
        reason, until_ns = max(found, key=itemgetter(1))
        return (reason, until_ns) if until_ns > now_ns else ("", now_ns)

    def _burst_free_ns(self, tokens: int, now_ns: int) -> int:
        """When the first burst limit has room for so many tokens; now, if it has."""
        end = max(self.arrival, now_ns << SCALE_BITS) + self.gap_request + tokens * self.gap_token
        return max(now_ns, -(-(end - self.slack) >> SCALE_BITS))

    def promise_ns(self, tokens: int, now_ns: int) -> int:
        """When a client that is refused now should come back, behind those who were told before."""
        when_ns = self.next_ns(now_ns)
        for total, amount in ((self.tokens, tokens), (self.requests, 1)):
            for window in total.windows:
                if window.used(total.spent) + amount > window.limit:
                    when_ns = max(when_ns, window.promise_ns(amount, total.spent, now_ns))
        cost = self.gap_request + tokens * self.gap_token
        if max(self.arrival, now_ns << SCALE_BITS) + cost - (now_ns << SCALE_BITS) > self.slack:
            self.promised = max(self.promised, self.arrival, now_ns << SCALE_BITS) + cost
            when_ns = max(when_ns, -(-(self.promised - self.slack) >> SCALE_BITS))
        if self.more is not None and not self.more.fits(tokens, now_ns):
            when_ns = max(when_ns, self.more.promise_ns(tokens, now_ns))
        return when_ns

    # what is taken and given back

    def refund_tokens(self, amount: int, granted_ns: int, number: int, now_ns: int) -> None:
        """So many tokens that were granted at that time were not used."""
        self.spent_tokens -= amount
        if granted_ns < self.since_ns or number <= self.since_number or self.is_told:
            self._refund(self.tokens, amount, granted_ns, number, now_ns)

    def take_back(self, granted_ns: int, number: int, now_ns: int) -> None:
        """A request counts as never made. It is in service all the same, until it has ended."""
        self.spent_requests -= 1
        if granted_ns < self.since_ns or number <= self.since_number or self.is_told:
            self._refund(self.requests, 1, granted_ns, number, now_ns)

    def _refund(self, total: Total, amount: int, granted_ns: int, number: int, now_ns: int) -> None:
        """What is less now, in windows and modes. Else ceilings, which are totals, stand where they stood."""
        for window in total.windows:
            window.refund(granted_ns, amount, is_older=number <= window.from_number)
            self._rearm(window, total)
        self.settle_down(now_ns)
        self.set_ceilings()

    def share(self) -> float:
        """The largest used share of its windows."""
        most = 0.0
        for total in (self.tokens, self.requests):
            for window in total.windows:
                most = max(most, window.used(total.spent) / window.limit)
        return most

    def headroom(self, now_ns: int) -> float:
        """The smallest remaining share of all of its limits, from 0 to 1."""
        if now_ns >= self.turn_ns:
            self.roll(now_ns)
        left = 1.0 - self.share()
        if self.max_in_service < UNBOUNDED:
            left = min(left, 1.0 - self.in_service / self.max_in_service)
        if self.max_held_tokens < UNBOUNDED:
            left = min(left, 1.0 - self.held_tokens / self.max_held_tokens)
        now = now_ns << SCALE_BITS
        left = min(left, 1.0 - max(0, self.arrival - now) / self.slack)
        if self.more is not None:
            left = min(left, 1.0 - max(0, self.more.arrival - now) / self.more.slack)
        return max(0.0, left)

    # soft limits and modes

    def passed(self, tokens: int, now_ns: int) -> None:
        """A request was entered by the long way: count what the short one does not know, and look at marks."""
        if self.is_special:
            self.held_tokens += tokens
            if self.more is not None:
                self.more.take(tokens, now_ns)
        if self.is_paced:
            self.paced_ns = max(self.paced_ns, now_ns) + self._pace_ns(now_ns)
        if self.spent_tokens > self.ceiling_tokens or self.spent_requests > self.ceiling_requests:
            self.look_again(now_ns)

    def look_again(self, now_ns: int) -> None:
        """Tell of soft limits that are passed, and step up modes."""
        shares = self.settings.soft_limits
        for total in (self.tokens, self.requests):
            for window in total.windows:
                used = window.used(total.spent)
                while window.passed < len(shares) and used >= _threshold(shares[window.passed], window.limit):
                    share = shares[window.passed]
                    window.passed += 1
                    self.num_crossed[share] = self.num_crossed.get(share, 0) + 1
                    if self.observer is not None:
                        kind = f"{window.kind}_{total.name}"
                        crossing = Crossing(now_ns, self.model, self.tenant, kind, share, used, window.limit)
                        self.observer(crossing)
        self._note_rate(now_ns)
        share = self.share()
        while (at := self._next_mode_at()) is not None and share >= at:
            self._move(self._next_mode(), f"{share:.0%} of a limit is used", now_ns)
        self.set_ceilings()

    def set_mode(self, mode: int, cause: str, now_ns: int) -> None:
        """An operator's word: it holds until it is taken back (-1)."""
        self.operator_mode = mode
        if mode >= 0:
            self._move(mode, cause, now_ns)
        else:
            while self.mode and not self._holds(self.mode):
                self._move(self._mode_before(self.mode), cause, now_ns)
        self.set_ceilings()

    def settle_down(self, now_ns: int, calm_ns: int = UNBOUNDED) -> None:
        """Step down while use has fallen far enough below where a mode begins; `calm_ns`: since when, if not now."""
        if self.operator_mode >= 0:
            return
        while self.mode:
            if self._holds(self.mode):
                self.quiet_since_ns = -1
                return
            if self.mode == EMERGENCY:
                if self.quiet_since_ns < 0:
                    self.quiet_since_ns = min(calm_ns, now_ns)
                ends_ns = self.quiet_since_ns + self._quiet_ns
                if now_ns < ends_ns:
                    self.turn_ns = min(self.turn_ns, ends_ns)
                    self.until_ns = min(self.until_ns, ends_ns)
                    return
            self._move(self._mode_before(self.mode), f"{self.share():.0%} of the limits is used", now_ns)

    @property
    def _quiet_ns(self) -> int:
        return round(self.settings.quiet_s * NS_PER_S)

    def _holds(self, mode: int) -> bool:
        """Whether use is not yet far enough below where a mode begins."""
        at = self.settings.modes[MODES[mode]].at
        if at is None:
            return False
        share = at - self.settings.hysteresis
        return any(
            window.used(total.spent) > _below(share, window.limit)
            for total in (self.tokens, self.requests)
            for window in total.windows
        )

    def _calm_ns(self, mode: int, now_ns: int) -> int:
        """When use will be far enough below where a mode begins, if nothing more is used."""
        at = self.settings.modes[MODES[mode]].at if mode else None
        calm_ns = -UNBOUNDED
        if at is not None:
            for total in (self.tokens, self.requests):
                for window in total.windows:
                    most = _below(at - self.settings.hysteresis, window.limit)
                    if window.used(total.spent) > most:
                        calm_ns = max(calm_ns, window.free_ns(window.limit - most, total.spent))
        return calm_ns if calm_ns > -UNBOUNDED else now_ns

    def refuses(self, priority: int) -> bool:
        """Whether the mode has no place for requests of this priority."""
        return self.mode > 0 and self._is_too_low(self.mode, priority)

    def _is_too_low(self, mode: int, priority: int) -> bool:
        least = self.settings.modes[MODES[mode]].min_priority
        return least is not None and priority < least

    def accepts_ns(self, priority: int, now_ns: int) -> int:
        """When there will be a mode with a place for this priority. Nobody knows that of an operator's."""
        if self.operator_mode >= 0:
            return now_ns + max(self._quiet_ns, NS_PER_S)
        mode, accepts_ns = self.mode, now_ns + 1
        while mode and self._is_too_low(mode, priority):
            calm_ns = self._calm_ns(mode, now_ns)
            if mode == EMERGENCY:
                calm_ns = (self.quiet_since_ns if self.quiet_since_ns >= 0 else calm_ns) + self._quiet_ns
            accepts_ns = max(accepts_ns, calm_ns)
            mode = self._mode_before(mode)
        return accepts_ns

    def _mode_before(self, after: int) -> int:
        for mode in range(after - 1, 0, -1):
            if self.settings.modes[MODES[mode]].at is not None:
                return mode
        return 0

    def _next_mode(self) -> int:
        for mode in range(self.mode + 1, len(MODES)):
            if self.settings.modes[MODES[mode]].at is not None:
                return mode
        return 0

    def _next_mode_at(self) -> float | None:
        if self.operator_mode >= 0:
            return None
        mode = self._next_mode()
        return self.settings.modes[MODES[mode]].at if mode else None

    def _move(self, mode: int, cause: str, now_ns: int) -> None:
        if mode == self.mode:
            return
        before, self.mode = self.mode, mode
        self.is_paced = THROTTLED <= mode < EMERGENCY
        if before < THROTTLED <= mode:
            since_ns, requests = self.rate_from[:2]
            self.gap_ns = (now_ns - since_ns) / max(1, self.requests.spent - requests)
            self.paced_ns = now_ns + self._pace_ns(now_ns)
        self.until_ns = -UNBOUNDED  # how far the short way goes is another matter now
        self.quiet_since_ns = -1
        if self.observer is not None:
            change = ModeChange(now_ns, self.model, self.tenant, MODES[before], MODES[mode], cause)
            self.observer(change)

    def _rearm(self, window: Window, total: Total) -> None:
        """Soft limits that use has fallen well below may be told again."""
        shares, used = self.settings.soft_limits, window.used(total.spent)
        hysteresis = self.settings.hysteresis
        while window.passed and used <= _below(shares[window.passed - 1] - hysteresis, window.limit):
            window.passed -= 1

    # pacing

    def next_ns(self, now_ns: int) -> int:
        """The earliest admission that pacing allows."""
        return self.paced_ns if self.is_paced and self.paced_ns > now_ns else now_ns

    def _note_rate(self, now_ns: int) -> None:
        """Remember how many were admitted until when: the rate is seen between two such moments, a second apart."""
        _, _, latest_ns, requests = self.rate_from
        if self.mode < THROTTLED and now_ns - latest_ns >= NS_PER_S:
            self.rate_from = (latest_ns, requests, now_ns, self.requests.spent)

    def _pace_ns(self, now_ns: int) -> int:
        """Throttled: half of the rate before. Limited: what is left of a limit, evenly over the time left of it."""
        if self.mode == THROTTLED:
            return round(2 * self.gap_ns)
        longest = 2 * self.gap_ns
        for total, each in ((self.tokens, self._mean_tokens()), (self.requests, 1.0)):
            for window in total.windows:
                left = max(1.0, (window.limit - window.used(total.spent)) / each)
                longest = max(longest, (window.end_ns - now_ns) / left)
        return round(longest)

    def _mean_tokens(self) -> float:
        """Of the requests so far."""
        return max(1.0, self.tokens.spent / max(1, self.requests.spent))


class Ledger:
    """The books that a tenant's requests to a model are entered in, and the check over all of them at once."""

    __slots__ = ("blocked_by", "books", "has_bursts", "model", "name", "tenant")

    def __init__(self, model: str, name: str, tenant: str, books: list[Book]) -> None:
        self.model = model
        self.name = name
        self.tenant = tenant
        self.books = books
        self.has_bursts = any(book.has_bursts or book.is_special for book in books)
        self.blocked_by: Book | None = None

    def places(self, tokens: int) -> list[tuple[int, int]]:
        """Where the last request stands in the lines of the bursts of its books, for a refund."""
        return [book.places(tokens) for book in self.books]

    def reserve(self, tokens: int, now_ns: int) -> bool:
        """Enter a request in all books, or in none. O(books), and nothing is allocated.

        `blocked_by` is then the book that has no room.
        """
        careful = 0
        now = now_ns << SCALE_BITS
        for book in self.books:
            spent = book.spent_tokens + tokens
            requests = book.spent_requests + 1
            in_service = book.in_service
            arrival = book.arrival
            if arrival < now:  # noqa: PLR1730  max() costs 60 ns more
                arrival = now
            arrival += book.gap_request + tokens * book.gap_token
            if (
                now_ns >= book.until_ns
                or spent > book.ceiling_tokens
                or requests > book.ceiling_requests
                or in_service >= book.max_in_service
                or arrival - now > book.slack
            ):
                if not book.has_room(tokens, now_ns):
                    self.blocked_by = book
                    self._undo(book, tokens)
                    return False
                careful += 1
            book.spent_tokens = spent
            book.spent_requests = requests
            book.in_service = in_service + 1
            book.arrival = arrival
        if careful:
            for book in self.books:
                book.passed(tokens, now_ns)
        return True

    def release(self) -> None:
        """A request that was entered has ended: its place is another one's."""
        for book in self.books:
            book.in_service -= 1

    def _undo(self, until: Book, tokens: int) -> None:
        """A later book has no room: those before it have let nobody in."""
        for book in self.books:
            if book is until:
                return
            book.spent_tokens -= tokens
            book.spent_requests -= 1
            book.in_service -= 1
            book.arrival -= book.gap_request + tokens * book.gap_token


def _threshold(share: float, limit: int) -> int:
    """The use at which a share of a limit is reached."""
    return max(1, ceil(share * limit - 1e-9))


def _below(share: float, limit: int) -> int:
    """The largest use that is less than a share of a limit; nothing at all is, however small the share."""
    return max(0, ceil(share * limit - 1e-9) - 1)


def _or_none(limit: int | None) -> int:
    return UNBOUNDED if limit is None else limit
