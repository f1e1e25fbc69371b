"""All strategies, in a row: each answers one question, which of these replicas serves the request.

The router promises a list that is never empty, open and in stable order, and is a new list whenever it changes; a
strategy returns one of it. There is one instance a pool, so state in `__init__` is that pool's own. Up to `SCANNED`
candidates are looked at one by one; beyond that the best is kept up to date (heap), drawn (alias table), or found
among a few drawn ones, so that a thousand replicas cost hardly more than five.

A strategy that can say what each candidate would cost has `costs` too, and can be blended with others.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, isfinite
from typing import Final, Protocol

from engine.named import Named
from engine.request import Request
from engine.routing.prefixes import PrefixIndex
from engine.routing.seats import Seat, Tools, full_price
from engine.routing.sessions import Slots
from engine.settings import require

SCANNED: Final = 16
SAMPLED: Final = 4
COSTED: Final = 8  # of many candidates that a blend draws
CARED: Final = 8  # decisions between two looks at what changes slowly


class Strategy(Protocol):
    """Who serves. Synchronous, never blocks; reads the seats and changes only itself.

    One that has a method `eased(seat)` is told whenever a seat has less to do than before. One with a method
    `chosen(request, seat)` is told of each decision, whoever made it (a session may have).
    """

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        """One of `seats`."""


class Costed(Protocol):
    """A strategy that can be blended: the least cost is the best candidate."""

    def costs(self, request: Request, seats: Sequence[Seat], now_ns: int) -> list[float]:
        """What each of `seats` would cost, in any unit."""


strategy: Named[Strategy] = Named("strategy")


class Turn:
    """Whose turn it is in a list that may shrink and grow between two looks.

    The turn goes to whoever stands after the last one chosen, in the one order that all lists are parts of. A
    mere counter would favour some of them whenever a fallback is chosen from a shorter list.
    """

    __slots__ = ("_last", "_order", "place", "seen")

    def __init__(self) -> None:
        self._order: dict[str, int] = {}
        self._last = ""  # the name of the last one chosen, when `seen` was left
        self.seen: Sequence[Seat] = ()
        self.place = -1  # of the last one chosen, in `seen`

    def follow(self, seats: Sequence[Seat]) -> None:
        """Take over another list; `place` is then that of the last one before whose turn it is."""
        if 0 <= self.place < len(self.seen):
            self._last = self.seen[self.place].name
        order = self._order
        ranks = sorted([order.setdefault(seat.name, len(order)) for seat in seats])
        for seat, rank in zip(seats, ranks, strict=True):
            order[seat.name] = rank  # one that became known late may stand in the middle
        self.place = bisect(ranks, order.get(self._last, -1)) - 1
        self.seen = seats

    def state(self) -> object:
        """Where it stands: to go on from there with seats of the same names."""
        last = self.seen[self.place].name if 0 <= self.place < len(self.seen) else self._last
        return [list(self._order), last]

    def resume(self, seats: Sequence[Seat], state: object) -> None:
        """Go on from a state."""
        assert isinstance(state, list)
        names, self._last = state
        self._order = {name: rank for rank, name in enumerate(names)}
        self.seen, self.place = (), -1
        self.follow(seats)


class RoundRobin:
    """Each in turn."""

    def __init__(self, tools: Tools) -> None:
        self._turn = Turn()

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        turn = self._turn
        if seats is not turn.seen:
            turn.follow(seats)
        place = turn.place + 1
        if place >= len(seats):
            place = 0
        turn.place = place
        return seats[place]

    def state(self) -> object:
        return self._turn.state()

    def resume(self, seats: Sequence[Seat], state: object) -> None:
        self._turn.resume(seats, state)


class Random:
    """Any, with equal chances."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        return seats[int(self._tools.draw() * len(seats))]


class WeightedRandom:
    """Any, with chances as the weights: Vose's alias method, one draw and one comparison.

    (Vose, "A linear algorithm for generating random numbers with a given distribution", 1991.)
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._seen: Sequence[Seat] = ()
        self._keep: list[float] = []
        self._alias: list[int] = []

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        if seats is not self._seen:
            self._keep, self._alias = alias_table([seat.weight for seat in seats])
            self._seen = seats
        drawn = self._tools.draw() * len(seats)
        place = int(drawn)
        if drawn - place >= self._keep[place]:
            place = self._alias[place]
        return seats[place]


def alias_table(weights: Sequence[float]) -> tuple[list[float], list[int]]:
    """For each place the chance to stay there once drawn, and where to go otherwise. All equal where all are 0."""
    count, total = len(weights), sum(weights)
    scaled = [weight * count / total for weight in weights] if total > 0 else [1.0] * count
    keep, alias = [1.0] * count, list(range(count))
    small = [place for place, share in enumerate(scaled) if share < 1]
    large = [place for place, share in enumerate(scaled) if share >= 1]
    while small and large:
        less, more = small.pop(), large.pop()
        keep[less], alias[less] = scaled[less], more
        scaled[more] += scaled[less] - 1
        (small if scaled[more] < 1 else large).append(more)
    return keep, alias


class PowerOfTwo:
    """The less loaded of two drawn ones: nearly as even as the least loaded, for one draw. Exact for two."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        count = len(seats)
        drawn = self._tools.draw() * count
        place = int(drawn)
        one = seats[place]
        if count == 1:
            return one
        other_place = int((drawn - place) * (count - 1))
        other = seats[other_place if other_place < place else other_place + 1]
        return other if other.tokens_in_flight < one.tokens_in_flight else one


class LeastLoaded:
    """Whoever has the fewest tokens in flight; of equals the one chosen longest ago: an idle fleet shares evenly.

    `ties` random: of equals any. Beyond `SCANNED` candidates a heap finds it, in O(log n) and exactly.
    """

    def __init__(self, tools: Tools, ties: str = "in_turn") -> None:
        require("strategy.ties", ties, ties in ("in_turn", "random"), "in_turn or random")
        self._tools = tools
        self._turns = tools.turns
        self._at_random = ties == "random"
        self._heap = LoadHeap(tools)

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        if self._at_random:
            return self._any_of_the_least(seats)
        if len(seats) > SCANNED:
            return self._heap.least(seats)
        chosen = seats[0]
        least = chosen.tokens_in_flight
        for seat in seats:
            load = seat.tokens_in_flight
            if load <= least and (load < least or seat.turn < chosen.turn):
                chosen, least = seat, load
        turns = self._turns
        turns.last += 1
        chosen.turn = turns.last
        return chosen

    def eased(self, seat: Seat) -> None:
        self._heap.eased(seat)

    def costs(self, request: Request, seats: Sequence[Seat], now_ns: int) -> list[float]:
        return [seat.tokens_in_flight for seat in seats]

    def _any_of_the_least(self, seats: Sequence[Seat]) -> Seat:
        least = min([seat.tokens_in_flight for seat in seats])
        equals = [seat for seat in seats if seat.tokens_in_flight == least]
        return equals[int(self._tools.draw() * len(equals))]


PLACE_BITS = 20
TURN_BITS = 44
PLACES = (1 << PLACE_BITS) - 1


class LoadHeap:
    """The seats of a long list by (load, turn, place). Entries are integers: they compare in C.

    A seat's load may have grown since its entry was made; then it is mended when it comes to the top. When it has
    shrunk, the seat has said so and has a second, lower entry; the first one is dropped when it comes up.
    """

    def __init__(self, tools: Tools) -> None:
        self._turns = tools.turns
        self._seats: Sequence[Seat] = ()
        self._place_of: dict[str, int] = {}
        self._heap: list[int] = []
        self._entry: list[int] = []  # by place: the one entry that counts

    def least(self, seats: Sequence[Seat]) -> Seat:
        """The seat with the least load, of those the one that was chosen longest ago."""
        if seats is not self._seats or len(self._heap) > 4 * len(seats):
            self._build(seats)
        heap, entries, turns = self._heap, self._entry, self._turns
        while True:
            entry = heap[0]
            place = entry & PLACES
            if entry != entries[place]:
                heappop(heap)
                continue
            seat = seats[place]
            load = seat.tokens_in_flight
            if entry >> (TURN_BITS + PLACE_BITS) == load:
                turns.last += 1
                seat.turn = turns.last
                # behind its equals from now on; when its load is counted, it is mended again
                entries[place] = mended = (((load << TURN_BITS) | seat.turn) << PLACE_BITS) | place
                heapreplace(heap, mended)
                return seat
            entries[place] = mended = (((load << TURN_BITS) | seat.turn) << PLACE_BITS) | place
            heapreplace(heap, mended)

    def eased(self, seat: Seat) -> None:
        """Its load has become less."""
        place = self._place_of.get(seat.name, -1)
        if place >= 0:
            entry = (((seat.tokens_in_flight << TURN_BITS) | seat.turn) << PLACE_BITS) | place
            if entry < self._entry[place]:
                self._entry[place] = entry
                heappush(self._heap, entry)

    def _build(self, seats: Sequence[Seat]) -> None:
        self._entry = [
            (((seat.tokens_in_flight << TURN_BITS) | seat.turn) << PLACE_BITS) | place
            for place, seat in enumerate(seats)
        ]
        self._place_of = {seat.name: place for place, seat in enumerate(seats)}
        self._seats = seats
        self._heap = list(self._entry)
        heapify(self._heap)


class Sampled:
    """A few candidates drawn from a long list, all of a short one."""

    def __init__(self, tools: Tools, most: int, drawn: int) -> None:
        self._tools = tools
        self._most = most
        self._drawn = drawn

    def of(self, seats: Sequence[Seat]) -> Sequence[Seat]:
        count = len(seats)
        if count <= self._most:
            return seats
        draw = self._tools.draw
        if self._drawn == SAMPLED:  # spelled out: half the time of a loop
            return (
                seats[int(draw() * count)],
                seats[int(draw() * count)],
                seats[int(draw() * count)],
                seats[int(draw() * count)],
            )
        return [seats[int(draw() * count)] for _ in range(self._drawn)]


class QuotaAware:
    """Whose model has the most headroom left, by its tightest limit; of its replicas the least loaded one.

    Every `CARED` decisions headroom is asked for again: that of the model chosen last, and of one more in turn. Of a
    model's many replicas a few drawn ones are compared.
    """

    def __init__(self, tools: Tools) -> None:
        self._headroom = tools.headroom
        self._sampled = Sampled(tools, SCANNED, SAMPLED)
        self._left = 0
        self._next = 0
        self._last: Seat | None = None
        self._seen: Sequence[Seat] = ()
        self._homes: list[list[Seat]] = []  # the seats of each model

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        self._left -= 1
        if self._left < 0 or seats is not self._seen:
            self._ask_again(seats)
        among = seats if len(seats) <= SCANNED else self._freest()
        chosen = among[0]
        most, least = chosen.room.left, chosen.tokens_in_flight
        for seat in among:
            left = seat.room.left
            if left >= most and (left > most or seat.tokens_in_flight < least):
                chosen, most, least = seat, left, seat.tokens_in_flight
        self._last = chosen
        return chosen

    def costs(self, request: Request, seats: Sequence[Seat], now_ns: int) -> list[float]:
        return [1.0 - self._headroom(seat.model) for seat in seats]

    def _freest(self) -> Sequence[Seat]:
        """Some seats of the model with the most headroom."""
        homes = self._homes
        best = homes[0]
        for home in homes:
            if home[0].room.left > best[0].room.left:
                best = home
        return self._sampled.of(best)

    def _ask_again(self, seats: Sequence[Seat]) -> None:
        self._left = CARED - 1
        if seats is not self._seen:
            self._seen = seats
            homes: dict[str, list[Seat]] = {}
            for seat in seats:
                homes.setdefault(seat.model, []).append(seat)
            self._homes = list(homes.values())
            for home in self._homes:
                home[0].room.left = self._headroom(home[0].model)
        last = self._last
        if last is not None:
            last.room.left = self._headroom(last.model)
        self._next += 1
        if self._next >= len(self._homes):
            self._next = 0
        seat = self._homes[self._next][0]
        seat.room.left = self._headroom(seat.model)


class LatencyBased:
    """Who answers soonest: smoothed time to first token, times the requests that it has in flight and this one.

    A replica that was never seen counts as quick as the quickest, so that it is tried, but not by a whole burst. A
    share `exploration` of decisions goes to any; what was seen long ago fades toward the quickest, by half in
    `half_life_s`, so that a replica that was slow once is tried again. (Peak EWMA, as in Finagle, with exploration.)
    """

    def __init__(self, tools: Tools, exploration: float = 0.01, half_life_s: float = 30.0) -> None:
        require(
            "strategy.exploration", exploration, 0 <= exploration <= 1 / CARED, f"from 0 to {1 / CARED:g}"
        )
        require("strategy.half_life_s", half_life_s, half_life_s > 0, "above 0")
        self._tools = tools
        self._exploration = exploration * CARED
        self._half_life_ns = half_life_s * 1e9
        self._sampled = Sampled(tools, SCANNED, SAMPLED)
        self._left = 0
        self._next = 0
        self._quickest_ns = 1.0

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        self._left -= 1
        if self._left < 0:
            self.look(seats, now_ns)
            drawn = self._tools.draw()
            if drawn < self._exploration:
                return seats[int(drawn / self._exploration * len(seats))]
        if len(seats) > SCANNED:
            seats = self._sampled.of(seats)
        least = inf
        chosen = seats[0]
        for seat in seats:
            cost = seat.latency_ns * (seat.requests_in_flight + 1)
            if cost < least:
                least, chosen = cost, seat
        return chosen

    def costs(self, request: Request, seats: Sequence[Seat], now_ns: int) -> list[float]:
        return [seat.latency_ns * (seat.requests_in_flight + 1) for seat in seats]

    def state(self) -> object:
        return [self._left, self._next, self._quickest_ns]

    def resume(self, seats: Sequence[Seat], state: object) -> None:
        assert isinstance(state, list)
        self._left, self._next, self._quickest_ns = state

    def look(self, seats: Sequence[Seat], now_ns: int) -> None:
        """Look after one seat: let what was seen long ago fade. The quickest rises slowly, until one is quicker."""
        self._left = CARED - 1
        self._next += 1
        if self._next >= len(seats):
            self._next = 0
        seat = seats[self._next]
        quickest_ns = self._quickest_ns
        if not seat.num_observed:
            seat.latency_ns = quickest_ns
        elif seat.latency_ns < quickest_ns or quickest_ns <= 1.0:
            self._quickest_ns = seat.latency_ns
        else:
            self._quickest_ns = quickest_ns + (seat.latency_ns - quickest_ns) / (16 * len(seats))
            if now_ns - seat.observed_ns > self._half_life_ns:
                seat.latency_ns = quickest_ns + (seat.latency_ns - quickest_ns) / 2
                seat.observed_ns += int(self._half_life_ns)


class Affinity:
    """The same replica for the same session, by rendezvous hash; the least loaded where there is no session.

    The router's session table goes first: this is who a session meets when it is new, or after a restart.
    """

    def __init__(self, tools: Tools) -> None:
        self._slots = Slots()
        self._others = LeastLoaded(tools)

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        if request.session is None:
            return self._others.pick(request, seats, now_ns)
        return self._slots.seat_of(request.session, seats)

    def eased(self, seat: Seat) -> None:
        self._others.eased(seat)


class Matches:
    """Who holds how much of a request's prefix: the deepest holders, and any other seat on demand."""

    def __init__(self, tools: Tools) -> None:
        self.index = PrefixIndex(tools.index_blocks)
        self.seen: Sequence[Seat] = ()
        self.all_bits = 0
        self.are_alike = False  # one holder serves all seats: its blocks are everywhere, or nowhere
        self._sampled = Sampled(tools, SCANNED, SAMPLED)
        self.bits: dict[str, int] = {}  # by holder, for ever: a bit is never another one's
        self.of_bit: dict[int, list[Seat]] = {}

    def follow(self, seats: Sequence[Seat]) -> None:
        """Take over a list of seats: each has the bit of its holder, and each holder its seats."""
        self.of_bit = {}
        for seat in seats:
            self.of_bit.setdefault(self.bit(seat), []).append(seat)
        self.seen = seats
        self.all_bits = sum(self.of_bit)
        self.are_alike = len(self.of_bit) == 1

    def bit(self, seat: Seat) -> int:
        bit = self.bits.get(seat.holder, 0)
        if not bit:
            bit = self.bits[seat.holder] = 1 << len(self.bits)
        return bit

    def least_of(self, seats: Sequence[Seat]) -> Seat:
        """The least loaded of one holder's seats; of many, of some."""
        best = seats[0]
        for seat in self._sampled.of(seats):
            if seat.tokens_in_flight < best.tokens_in_flight:
                best = seat
        return best


class CacheAware:
    """The tokens that are left to prefill where this request's own prefix lies, against the tokens in flight there.

    The cost of a seat is `prefill_weight` times the prompt tokens that it has to compute, and what it has in flight.
    A block saves as much of its prefill as loading it from its tier leaves over. Compared are those who hold the
    longest prefix, and the least loaded of all with what it has: so a full replica loses its share of hits before
    others idle, and nobody is chosen for an empty cache alone.
    """

    def __init__(self, tools: Tools, prefill_weight: float = 1.0) -> None:
        require("strategy.prefill_weight", prefill_weight, prefill_weight >= 0, "0 or more")
        self._price = tools.price
        self._weight = prefill_weight * tools.block_tokens
        self._matches = Matches(tools)
        self._others = LeastLoaded(tools)

    def pick(  # noqa: C901, PLR0911, PLR0912  one look after the other: a call for each would cost a third more
        self, request: Request, seats: Sequence[Seat], now_ns: int
    ) -> Seat:
        matches = self._matches
        if seats is not matches.seen:
            matches.follow(seats)
        least = self._others.pick(request, seats, now_ns)
        keys = request.prefix_keys
        if not keys or matches.are_alike:
            return least
        index = matches.index
        young, old = index.young, index.old
        depth = len(keys) if keys[-1] in young else index.match(keys)
        if not depth:
            return least
        key = keys[depth - 1]
        mask = (young.get(key, 0) | old.get(key, 0)) & matches.all_bits
        if not mask:  # who holds the longest prefix is not among these
            depth = index.depth_of(keys, matches.all_bits, depth)
            if not depth:
                return least
            mask = index.holders(keys[depth - 1]) & matches.all_bits
        bit = matches.bits[least.holder]
        price, weight = self._price, self._weight
        saved = weight * depth
        is_full = price is full_price
        chosen, best = least, float(least.tokens_in_flight)
        floor = best - saved
        if mask & bit:
            if is_full:
                return least  # nobody has less to do, nor more of the prefix
            best -= weight * price(least, request, depth)
            if best <= floor:
                return least
            mask ^= bit
        looked = 0
        while mask and looked < SAMPLED:
            lowest = mask & -mask
            mask ^= lowest
            holders = matches.of_bit[lowest]
            seat = holders[0] if len(holders) == 1 else matches.least_of(holders)
            cost = seat.tokens_in_flight - saved
            if cost < best and not is_full:  # it may save less than that, never more
                cost = seat.tokens_in_flight - weight * price(seat, request, depth)
            if cost < best:
                chosen, best = seat, cost
                if best <= floor:
                    return chosen
            looked += 1
        key = keys[0]
        if chosen is not least and (young.get(key, 0) | old.get(key, 0)) & bit:
            own = index.depth_of(keys, bit, depth)  # what the least loaded has of it may yet make up for it
            if least.tokens_in_flight - weight * price(least, request, own) <= best:
                return least
        return chosen

    def chosen(self, request: Request, seat: Seat) -> None:
        keys, matches = request.prefix_keys, self._matches
        if keys:  # also of the only one that is open: others may come back
            bit = matches.bits.get(seat.holder) or matches.bit(seat)
            if not matches.index.young.get(keys[-1], 0) & bit:
                matches.index.record(keys, bit)

    def holds(self, keys: Sequence[bytes], seat: Seat) -> None:
        """That seat has this prefix, or will soon."""
        self._matches.index.record(keys, self._matches.bit(seat))

    def eased(self, seat: Seat) -> None:
        self._others.eased(seat)

    def keepers(self, request: Request, seats: Sequence[Seat]) -> list[Seat]:
        """Up to `SAMPLED` of those who hold the longest prefix; of seats that share a cache the least loaded."""
        matches, keys = self._matches, request.prefix_keys
        if seats is not matches.seen:
            matches.follow(seats)
        if not keys or matches.are_alike:
            return []
        index = matches.index
        found: list[Seat] = []
        depth = index.depth_of(keys, matches.all_bits, index.match(keys))
        mask = index.holders(keys[depth - 1]) & matches.all_bits if depth else 0
        while mask and len(found) < SAMPLED:
            lowest = mask & -mask
            mask ^= lowest
            found.append(matches.least_of(matches.of_bit[lowest]))
        return found

    def costs(self, request: Request, seats: Sequence[Seat], now_ns: int) -> list[float]:
        _, saved = self.depths(request, seats)
        return [
            seat.tokens_in_flight - self._weight * blocks for seat, blocks in zip(seats, saved, strict=True)
        ]

    def depths(self, request: Request, seats: Sequence[Seat]) -> tuple[list[int], list[float]]:
        """The blocks of the prefix that lie at each of `seats`, and the blocks of prefill that they save."""
        keys, matches = request.prefix_keys, self._matches
        depth = matches.index.match(keys) if keys else 0
        if not depth:
            return [0] * len(seats), [0.0] * len(seats)
        index = matches.index
        first, last = index.holders(keys[0]), index.holders(keys[depth - 1])
        found = []
        for seat in seats:
            bit = matches.bit(seat)
            if last & bit:
                found.append(depth)
            else:
                found.append(index.depth_of(keys, bit, depth) if first & bit else 0)
        price = self._price
        return found, [
            price(seat, request, own) if own else 0.0 for seat, own in zip(seats, found, strict=True)
        ]


class Cost:
    """The least expected time: to the first token, and for the tokens after it, in nanoseconds.

    A prompt token takes what the executor's cost model says, an output token what was seen of late. To be prefilled
    are the tokens that no cached block saves; in front of them is what the replica has in flight, as if it were
    prefill: a bound from below where others decode. (NVIDIA's KV router and llm-d's scorers count this in blocks.)
    Of many candidates some are compared: drawn ones, and those who hold most of the prefix.
    """

    def __init__(self, tools: Tools) -> None:
        self._cache = CacheAware(tools)
        self._sampled = Sampled(tools, SCANNED, SAMPLED)
        self._tokens = tools.block_tokens

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        among = self._sampled.of(seats) if len(seats) > SCANNED else seats
        if request.prefix_keys:
            if among is not seats:
                among = [*among, *self._cache.keepers(request, seats)]
            costs = self.costs(request, among, now_ns)
            return among[costs.index(min(costs))]
        prompt, output = request.num_prompt_tokens, request.max_output_tokens
        chosen, least = among[0], inf
        for seat in among:
            cost = seat.prefill_ns * (prompt + seat.tokens_in_flight) + seat.token_ns * output
            if cost < least:
                chosen, least = seat, cost
        return chosen

    def costs(self, request: Request, seats: Sequence[Seat], now_ns: int) -> list[float]:
        prompt, output = request.num_prompt_tokens, request.max_output_tokens
        if not request.prefix_keys:
            return [
                seat.prefill_ns * (prompt + seat.tokens_in_flight) + seat.token_ns * output for seat in seats
            ]
        _, saved = self._cache.depths(request, seats)
        return [
            seat.prefill_ns * (prompt - blocks * self._tokens + seat.tokens_in_flight)
            + seat.token_ns * output
            for seat, blocks in zip(seats, saved, strict=True)
        ]

    def keepers(self, request: Request, seats: Sequence[Seat]) -> list[Seat]:
        """Up to `SAMPLED` of those who hold the longest prefix."""
        return self._cache.keepers(request, seats)

    def chosen(self, request: Request, seat: Seat) -> None:
        self._cache.chosen(request, seat)

    def holds(self, keys: Sequence[bytes], seat: Seat) -> None:
        """That seat has this prefix, or will soon."""
        self._cache.holds(keys, seat)

    def depths(self, request: Request, seats: Sequence[Seat]) -> tuple[list[int], list[float]]:
        """The blocks of the prefix that lie at each of `seats`, and the blocks of prefill that they save."""
        return self._cache.depths(request, seats)


class Blend:
    """Several strategies at once: their costs, each spread over 0 to 1 among the candidates, in a weighted sum.

    Beyond `SCANNED` candidates it looks at `COSTED` drawn ones, and at those who hold most of the prefix.
    """

    def __init__(self, tools: Tools, terms: Sequence[tuple[float, str, Strategy]]) -> None:
        self.terms = list(terms)
        self._sampled = Sampled(tools, SCANNED, COSTED)
        self._place = 0
        self._told = [part.chosen for _, _, part in self.terms if hasattr(part, "chosen")]
        self._lookers = [part.look for _, _, part in self.terms if hasattr(part, "look")]
        self._keepers = [part.keepers for _, _, part in self.terms if hasattr(part, "keepers")]

    def pick(self, request: Request, seats: Sequence[Seat], now_ns: int) -> Seat:
        for look in self._lookers:
            look(seats, now_ns)
        among = self._sampled.of(seats)
        if among is not seats:
            among = [*among, *(seat for keepers in self._keepers for seat in keepers(request, seats))]
        costs = self.costs(request, among, now_ns)
        self._place += 1
        count = len(among)
        start = self._place % count  # among equals each in turn
        best, least = start, costs[start]
        for place in range(start + 1 - count, start):
            if costs[place] < least:
                best, least = place, costs[place]
        return among[best]

    def chosen(self, request: Request, seat: Seat) -> None:
        for tell in self._told:
            tell(request, seat)

    def state(self) -> object:
        return [self._place, [part.state() if hasattr(part, "state") else None for _, _, part in self.terms]]

    def resume(self, seats: Sequence[Seat], state: object) -> None:
        assert isinstance(state, list)
        self._place, states = state
        for (_, _, part), each in zip(self.terms, states, strict=True):
            if each is not None and hasattr(part, "resume"):
                part.resume(seats, each)

    def costs(self, request: Request, seats: Sequence[Seat], now_ns: int) -> list[float]:
        total = [0.0] * len(seats)
        for weight, _, part in self.terms:
            costs = part.costs(request, seats, now_ns)  # type: ignore[attr-defined]
            low = min(costs)
            span = max(costs) - low
            if span > 0:
                scale = weight / span
                total = [sum_ + (cost - low) * scale for sum_, cost in zip(total, costs, strict=True)]
        return total


for _name, _cls in (
    ("round_robin", RoundRobin),
    ("random", Random),
    ("weighted_random", WeightedRandom),
    ("power_of_two", PowerOfTwo),
    ("least_loaded", LeastLoaded),
    ("quota_aware", QuotaAware),
    ("latency_based", LatencyBased),
    ("affinity", Affinity),
    ("cache_aware", CacheAware),
    ("cost", Cost),
):
    strategy(_name)(_cls)


def make_strategy(name: str, tools: Tools, options: Mapping[str, object]) -> Strategy:
    """The strategy of that name, or the blend that it spells: "0.6 cache_aware + 0.3 least_loaded".

    `options` of a blend are those of its parts, by their names. Raises UnknownName or BadSettings.
    """
    if "+" not in name and " " not in name.strip():
        return strategy.make(name, tools, **options)
    terms = []
    parts = [part.split() for part in name.split("+")]
    for part in parts:
        allowed = 'one name, or a sum like "0.6 cache_aware + 0.4 least_loaded"'
        require("strategy", name, len(part) == 2, allowed)  # noqa: PLR2004  weight and name
        weight = _number(part[0])
        allowed = "made of weights above 0"
        require("strategy", name, weight is not None and isfinite(weight) and weight > 0, allowed)
        assert weight is not None
        made = strategy.make(part[1], tools, **_options_of(part[1], options))
        can = hasattr(made, "costs")
        costed = [each for each in strategy.names() if hasattr(strategy.find(each), "costs")]
        require("strategy", name, can, f"made of strategies that give costs: {', '.join(costed)}")
        terms.append((weight, part[1], made))
    unused = [key for key in options if key not in [part[1] for part in parts]]
    require("strategy", name, not unused, f"given options by its parts' names, not {', '.join(unused)}")
    return Blend(tools, terms)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _options_of(part: str, options: Mapping[str, object]) -> dict[str, object]:
    found = options.get(part, {})
    require(f"strategy.{part}", found, isinstance(found, Mapping), "a map from options to values")
    assert isinstance(found, Mapping)
    return dict(found)
