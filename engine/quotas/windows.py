"""How much was used lately: in the hour or day that runs, or in every interval of that length; and bursts."""

from collections import deque
from math import ceil

from engine.clock import NS_PER_S

PARTS = 60  # of a sliding window: used counts as up to one part longer than it is, never shorter
SCALE_BITS = 10  # times of bursts are kept in 1/1024 ns, so that a gap of 1.3 ns is not rounded to 2


class Window:
    """One limit over time on a running total of use.

    Use within the window is the total less what it was when the window began. A fixed window begins at its hour or
    day. A sliding one is made of parts: those of the last `PARTS` and the present one count, so that the limit holds
    in every interval of its length. `marks` are (part, the total before its first use), the oldest first.
    """

    __slots__ = (
        "before",
        "end_ns",
        "from_number",
        "index",
        "kind",
        "length_ns",
        "limit",
        "marks",
        "offset_ns",
        "part_ns",
        "passed",
        "promised",
        "promised_at",
        "span",
    )

    def __init__(self, kind: str, limit: int, length_ns: int, offset_ns: int, *, sliding: bool) -> None:
        self.kind = kind
        self.limit = limit
        self.length_ns = length_ns
        self.offset_ns = offset_ns
        self.span = PARTS if sliding else 0
        self.part_ns = length_ns // PARTS if sliding else length_ns
        self.index = -(1 << 60)
        self.end_ns = -(1 << 60)
        self.marks: deque[list[int]] = deque()
        self.before = 0  # used when the limit was set: it may be more than that
        self.from_number = 0  # from the grant after that on it counts
        self.passed = 0  # soft limits that are told already
        self.promised = 0  # to those who were told when to come back
        self.promised_at = 0

    def begin(self, now_ns: int, total: int, used: int, number: int) -> None:
        """Count from the grant after that on; what was used before counts as used just now."""
        self.roll(now_ns, total - used)
        self.from_number = number

    def forgive(self, total: int, number: int) -> None:
        """Nothing is used any more; what the grants up to that one give back later counts no more than they do."""
        self.marks.clear()
        self.marks.append([self.index, total])
        self.from_number = number
        self.before = self.passed = self.promised = self.promised_at = 0

    def part_of(self, now_ns: int) -> int:
        """The part, or the window if it is fixed, that a time lies in."""
        return (now_ns + self.offset_ns) // self.part_ns

    def roll(self, now_ns: int, total: int) -> bool:
        """Move on to the present part, never back; whether it has changed."""
        index = self.part_of(now_ns)
        if index <= self.index:
            return False
        self.index = index
        marks = self.marks
        while marks and marks[0][0] < index - self.span:
            marks.popleft()
        marks.append([index, total])
        self.end_ns = (index + 1) * self.part_ns - self.offset_ns
        return True

    def latest(self, total: int) -> int:
        """The latest part in which something was used; the present one where nothing was."""
        after = total
        for index, before in reversed(self.marks):
            if after > before:
                return index
            after = before
        return self.index

    def used(self, total: int) -> int:
        return total - self.marks[0][1] if self.marks else 0

    def refund(self, granted_ns: int, amount: int, *, is_older: bool = False) -> None:
        """Something granted at that time is taken back from the total: windows begun since then keep their use.

        So does this one, if it is older than what is counted here.
        """
        part = self.part_of(granted_ns)
        for mark in self.marks:
            if is_older or mark[0] > part:
                mark[1] -= amount

    def free_ns(self, amount: int, total: int) -> int:
        """When so much more will fit, if nobody else comes. `amount` is at most the limit."""
        if not self.span:
            return self.end_ns
        needed = self.used(total) + amount - self.limit
        marks = self.marks
        for place, (index, before) in enumerate(marks):
            after = marks[place + 1][1] if place + 1 < len(marks) else total
            needed -= after - before
            if needed <= 0:
                return (index + self.span + 1) * self.part_ns - self.offset_ns
        return self.end_ns

    def promise_ns(self, amount: int, total: int, now_ns: int) -> int:
        """When so much will fit behind those who were told before to come back."""
        free_ns = self.free_ns(amount, total)
        if self.promised_at < free_ns:
            self.promised_at, self.promised = free_ns, 0
        if self.promised + amount > self.limit:
            self.promised_at, self.promised = self.promised_at + self.part_ns * (self.span + 1), 0
        self.promised += amount
        return self.promised_at


def gap_of(per_s: float) -> int:
    """The time of one unit at a rate, rounded up: never more pass than are allowed."""
    return ceil((NS_PER_S << SCALE_BITS) / per_s)


Standing = tuple[int, int, int]
"""Of a burst limit the arrival of its next unit, the latest that was promised, and the gap between two of them."""

FRESH: Standing = (0, 0, 0)


def resumed(before: Standing, gap: int, now_ns: int) -> tuple[int, int]:
    """Arrival and promise of a burst limit that has another gap from now on: what was used stays used.

    Where units come faster, as many of them are used as before: the time that they would have taken says nothing any
    more. Where they come slower, that time is kept, and nobody waits longer for what was in order.
    """
    arrival, promised, gap_before = before
    if gap >= gap_before:
        return arrival, promised
    now = now_ns << SCALE_BITS
    return _sooner(arrival, now, gap, gap_before), _sooner(promised, now, gap, gap_before)


def _sooner(time: int, now: int, gap: int, gap_before: int) -> int:
    return now - (now - time) * gap // gap_before if time > now else time


class Burst:
    """A rate that may be exceeded for a moment: the generic cell rate algorithm (ITU-T I.371).

    `arrival` is the theoretical arrival time of the next unit. Something of `cost` units is in order when that lies
    at most `depth` units ahead afterwards: in every interval at most depth + rate x length units pass.
    """

    __slots__ = ("arrival", "depth", "gap", "promised", "slack")

    def __init__(self, per_s: float, depth: int) -> None:
        self.gap = gap_of(per_s)
        self.depth = depth
        self.slack = depth * self.gap
        self.arrival = 0
        self.promised = 0

    def fits(self, cost: int, now_ns: int) -> bool:
        now = now_ns << SCALE_BITS
        arrival = self.arrival
        return (max(now, arrival)) + cost * self.gap - now <= self.slack

    def take(self, cost: int, now_ns: int) -> int:
        """Let so much pass; its place in the line of units, for a refund."""
        now = now_ns << SCALE_BITS
        place = self.arrival
        place = max(place, now)
        self.arrival = place + cost * self.gap
        return place

    def refund(self, place: int, cost: int, used: int, now_ns: int) -> None:
        """Of what was taken at that place only `used` was needed: the rest comes back, less what time has lifted.

        What has drained since would drain a second time from those who came later.
        """
        unused_from = max(place + used * self.gap, now_ns << SCALE_BITS)
        self.arrival -= max(0, place + cost * self.gap - unused_from)

    def free_ns(self, cost: int) -> int:
        """When so much will be in order, if nobody else comes."""
        return -(-(self.arrival + cost * self.gap - self.slack) >> SCALE_BITS)

    def promise_ns(self, cost: int, now_ns: int) -> int:
        """When so much will be in order behind those who were told before to come back."""
        self.promised = max(self.promised, self.arrival, now_ns << SCALE_BITS) + cost * self.gap
        return -(-(self.promised - self.slack) >> SCALE_BITS)
