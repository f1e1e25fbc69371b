"""Sessions: who served whom last, for a while; and a place for each session that survives a restart."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from engine.routing.seats import Seat

SLOTS = 4_096
MANY_SLOTS = 32_768
FEW = 64  # replicas for which SLOTS are enough: 64 slots each share evenly to some 12 %

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)

Numbers = npt.NDArray[np.uint64]


def digest_of(session: str) -> int:
    """64 bits of a name, the same in every process. JSON lets a name hold half a character."""
    return xxh3_64_intdigest(session.encode("utf-8", "surrogatepass"))


class Entry:
    """One session at one pool: its seat, until when, and how many of its requests are in service."""

    __slots__ = ("active", "expires_ns", "seat")

    def __init__(self, seat: Seat, expires_ns: int) -> None:
        self.seat = seat
        self.expires_ns = expires_ns
        self.active = 1


class Sessions:
    """The sessions of all pools, at most `capacity` of them: who was not heard of for longest goes first.

    An entry holds for `timeout_ns` after the last request of its session has begun or ended, and while one is in
    service. Two generations a pool: rotating them is all the expiry there is, so nothing is scanned, and what was
    silent for two timeouts is gone.
    """

    __slots__ = (
        "_capacity",
        "_count",
        "_rotate_ns",
        "num_hits",
        "num_misses",
        "num_moved",
        "tables",
        "timeout_ns",
    )

    def __init__(self, timeout_ns: int, capacity: int) -> None:
        self.timeout_ns = timeout_ns
        self._capacity = max(2, capacity)
        self._count = 0
        self._rotate_ns = 0
        self.tables: list[Table] = []
        self.num_hits = 0
        self.num_misses = 0
        self.num_moved = 0  # because their replica is not there any more

    def __len__(self) -> int:
        return sum(len(table.young) + len(table.old) for table in self.tables)

    def table(self) -> "Table":
        """The sessions of one more pool."""
        made = Table(self)
        self.tables.append(made)
        return made

    def drop(self, table: "Table") -> None:
        """That pool is gone."""
        self.tables.remove(table)

    def added(self, now_ns: int) -> None:
        """One more entry: rotate when there are too many, or when a timeout has passed."""
        self._count += 1
        if self._count > self._capacity // 2 or now_ns >= self._rotate_ns:
            for table in self.tables:
                table.old, table.young = table.young, {}
            self._count = 1
            self._rotate_ns = now_ns + self.timeout_ns


class Table:
    """The sessions of one pool."""

    __slots__ = ("_sessions", "old", "young")

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.young: dict[str, Entry] = {}
        self.old: dict[str, Entry] = {}

    def find(self, session: str, now_ns: int) -> Seat | None:
        """The seat of a session whose time has not run out and whose replica is there; it is used from now on."""
        sessions = self._sessions
        entry = self.young.get(session)
        if entry is None:
            entry = self.old.get(session)
            if entry is None:
                sessions.num_misses += 1
                return None
            del self.old[session]
            sessions.added(now_ns)
            self.young[session] = entry
        if entry.expires_ns <= now_ns and not entry.active:
            sessions.num_misses += 1
            return None
        seat = entry.seat
        if not seat.is_open:
            sessions.num_moved += 1
            return None
        entry.expires_ns = now_ns + sessions.timeout_ns
        entry.active += 1
        sessions.num_hits += 1
        return seat

    def peek(self, session: str, now_ns: int) -> Seat | None:
        """Who would be found; nothing changes."""
        entry = self.young.get(session) or self.old.get(session)
        if entry is None or not entry.seat.is_open or (entry.expires_ns <= now_ns and not entry.active):
            return None
        return entry.seat

    def bind(self, session: str, seat: Seat, now_ns: int) -> None:
        """From now on that session's requests go there; one of them is in service."""
        sessions = self._sessions
        entry = self.young.get(session)
        if entry is not None:
            entry.seat, entry.expires_ns = seat, now_ns + sessions.timeout_ns
            entry.active += 1
            return
        self.old.pop(session, None)
        sessions.added(now_ns)
        self.young[session] = Entry(seat, now_ns + sessions.timeout_ns)

    def ended(self, session: str, now_ns: int) -> None:
        """A request of that session has ended."""
        entry = self.young.get(session) or self.old.get(session)
        if entry is not None and entry.active:
            entry.active -= 1
            entry.expires_ns = now_ns + self._sessions.timeout_ns


class Slots:
    """Rendezvous hashing, tabled: each slot belongs to the seat with the greatest hash of slot and name.

    A seat that leaves gives its slots to the others and moves no other one; a seat that comes takes only its own. So
    a session keeps its seat over a restart, and over a change of the fleet unless its own seat went. (Thaler and
    Ravishankar, "Using name-based mappings to increase hit rates", 1998.)
    """

    __slots__ = ("_best", "_mask", "_owners", "_seats", "_slots")

    def __init__(self) -> None:
        self._seats: Sequence[Seat] = ()
        self._slots: list[Seat] = []
        self._mask = -1
        self._best: Numbers = np.zeros(0, dtype=np.uint64)
        self._owners: npt.NDArray[np.object_] = np.zeros(0, dtype=object)

    def seat_of(self, session: str, seats: Sequence[Seat]) -> Seat:
        """One of `seats`. O(1) as long as the list stays the same."""
        if seats is not self._seats:
            self._follow(seats)
        return self._slots[digest_of(session) & self._mask]

    def _follow(self, seats: Sequence[Seat]) -> None:
        """Take over a list that has changed: only the slots of those who left and of those who came are looked at."""
        size = SLOTS if len(seats) <= FEW else MANY_SLOTS
        before = {id(seat) for seat in self._seats}
        if size != self._mask + 1:
            self._mask, before = size - 1, set()
            self._best = np.zeros(size, dtype=np.uint64)
            self._owners = np.full(size, None, dtype=object)
        now = {id(seat) for seat in seats}
        orphans = [slot for slot, seat in enumerate(self._owners.tolist()) if id(seat) not in now]
        free = np.array(orphans, dtype=np.intp)
        self._best[free] = 0
        everywhere = np.arange(size)
        for seat in seats:
            self._claim(seat, free if id(seat) in before else everywhere)
        self._slots = self._owners.tolist()
        self._seats = seats

    def _claim(self, seat: Seat, places: npt.NDArray[np.intp]) -> None:
        """Give a seat those of some slots in which nobody's hash is greater."""
        score = _mixed(places.astype(np.uint64) ^ np.uint64(digest_of(seat.name)))
        greatest = score >= self._best[places]
        won = places[greatest]
        self._best[won] = score[greatest]
        self._owners[won] = seat


def _mixed(bits: Numbers) -> Numbers:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    bits = (bits ^ (bits >> _SHIFT_1)) * _MIX_1
    bits = (bits ^ (bits >> _SHIFT_2)) * _MIX_2
    return bits ^ (bits >> _SHIFT_3)
