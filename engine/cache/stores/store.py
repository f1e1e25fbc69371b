"""The store of a tier: KV blocks written in extents, read back one by one, and never believed unread.

A place is a small number: which extent, and which block in it. Whatever is found there is served only if it is the
block that was asked for, with the bytes that were written; otherwise it is a miss and counted. In memory a block
costs about nine bytes.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock
from typing import NamedTuple

from engine.cache.stores.backend import Backend
from engine.cache.stores.extent import (
    HEAD,
    Damaged,
    Head,
    Record,
    laid_out,
    model_digest,
    read_block,
    read_index,
    read_start,
)
from engine.cache.stores.faults import StoreFault

Place = int
"""Which extent, times MAX_BLOCKS, and which block of it."""

INDEX_BITS = 16
INDEX_MASK = (1 << INDEX_BITS) - 1
SEQ_DIGITS = 16  # of a file's name, hexadecimal
MAX_SEQ = 1 << 47  # a place fits into 64 bits

FIRST_READ_BYTES = 64 << 10  # of an extent of which nothing is known: the index of 330 blocks
MAX_RUN_BYTES = 64 << 20  # of neighbouring blocks that are read in one go
MAX_ASIDE = 8  # damaged extents that are kept for whoever wants to look at them
FAULTS_TO_SUSPECT = 3

PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
MAX_FOLDER_CHARACTERS = 160
KEPT_CHARACTERS = 100
DIGEST_BYTES = 16


class Found(NamedTuple):
    """A block that a store holds from an earlier life, as its index tells. Reading it may still be a miss."""

    model: str
    key: bytes
    parent: bytes
    space: bytes
    num_bytes: int
    form: str
    error: float
    place: Place
    seq: int


@dataclass(slots=True)
class Counters:
    """What a store has done since it was opened, in blocks and their bytes, and what it holds.

    `corrupt`: blocks that were not what was written there; `gone`: blocks whose extent was not there any more;
    `damaged_extents`: those of which not even the index could be used, as far as opening the store went through
    them. `live_bytes` and `dead_bytes` are of blocks in extents that are there; `file_bytes` is what these take.
    """

    written_blocks: int = 0
    written_bytes: int = 0
    read_blocks: int = 0
    read_bytes: int = 0
    dropped_blocks: int = 0
    corrupt: int = 0
    gone: int = 0
    damaged_extents: int = 0
    set_aside: int = 0
    compacted_extents: int = 0
    live_bytes: int = 0
    dead_bytes: int = 0
    file_bytes: int = 0
    faults: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class Extent:
    """What is remembered of an extent. `offsets` of the heads, the last one is its size; `alive` by block."""

    seq: int
    model: str
    offsets: "array[int]"
    alive: bytearray
    num_alive: int
    live_bytes: int
    is_damaged: bool = False

    @property
    def num_bytes(self) -> int:
        return self.offsets[-1]

    @property
    def name(self) -> str:
        return f"{folder_name(self.model)}/{file_name(self.seq)}"

    def span(self, index: int) -> int:
        """Bytes of a block as it lies there, without its head: up to 63 more than it has."""
        return self.offsets[index + 1] - self.offsets[index] - HEAD.size

    @property
    def all_bytes(self) -> int:
        """Of all blocks, dead or alive."""
        return self.offsets[-1] - self.offsets[0] - len(self.alive) * HEAD.size


class ExtentStore:
    """Blocks in extents behind one backend. Blocking calls, from as many threads as you like.

    Raises StoreFault when the place itself fails; `is_suspect` after some faults in a row, until something works.
    A store sees the extents of earlier processes only through `scan`.
    """

    def __init__(self, backend: Backend) -> None:
        """Look which extents are there; one listing. Raises StoreFault."""
        self.backend = backend
        self.counters = Counters()
        self._lock = Lock()  # around what is remembered, never around reading or writing
        self._extents: dict[int, Extent] = {}
        self._faults_in_a_row = 0
        self._seen: set[bytes] = set()  # keys that the scan has told
        self._leftovers: list[Extent] = []  # out of the books, but not deleted yet
        with self._watched():
            self._unseen = dict(backend.names())
        self._next_seq = 1 + max((number_of(name) for name in self._unseen), default=0)

    @property
    def is_suspect(self) -> bool:
        """Whether the last few operations failed, all of them."""
        return self._faults_in_a_row >= FAULTS_TO_SUSPECT

    def write(self, model: str, records: Sequence[Record]) -> list[Place]:
        """Write blocks of one model together; where each is. When it raises StoreFault, none of them is visible.

        Raises ValueError for records that no extent can hold (see `laid_out`).
        """
        if not records:
            return []
        with self._lock:
            seq = self._next_seq
            self._next_seq += 1
        parts, offsets = laid_out(model, seq, records)
        with self._watched():
            self.backend.put(f"{folder_name(model)}/{file_name(seq)}", parts)
        with self._lock:
            extent = self._remember(seq, model, offsets)
            self.counters.written_blocks += len(records)
            self.counters.written_bytes += extent.live_bytes
        return [seq << INDEX_BITS | index for index in range(len(records))]

    def read(self, places: Sequence[Place], keys: Sequence[bytes]) -> list[Record | None]:
        """The blocks of these names at these places, verified; None for what is damaged, dropped or gone.

        Neighbours are read together, so that blocks written in order come back in one request.
        """
        records: list[Record | None] = [None] * len(places)
        for extent, wanted in self._by_extent(places):
            for run in runs(extent, wanted):
                self._read_run(extent, run, keys, records)
        return records

    def drop(self, places: Sequence[Place]) -> None:
        """Forget blocks. An extent is deleted with its last one; until then they are dead bytes."""
        emptied = []
        with self._lock:
            for place in places:
                extent = self._extents.get(place >> INDEX_BITS)
                if extent is not None and self._bury(extent, place & INDEX_MASK):
                    self.counters.dropped_blocks += 1
                    if not extent.num_alive:
                        emptied.append(self._forget(extent))
        self._remove(emptied)

    def compact(self, min_dead: float = 0.5, max_bytes: int = 64 << 20) -> Mapping[Place, Place]:
        """Write what lives in extents of which at least `min_dead` is dead once more; from where to where it went.

        At most `max_bytes` of extents are looked at in one call, the emptiest first. The old places stay good until
        they are dropped, which is the caller's part: take over the new ones, then `drop` the old ones, and drop the
        new place of what was dropped meanwhile. A crash in between leaves blocks twice; `scan` tells the newer ones.
        """
        moved: dict[Place, Place] = {}
        for model, extents in self._worn(min_dead, max_bytes):
            with self._lock:
                places = [
                    extent.seq << INDEX_BITS | index
                    for extent in extents
                    for index, alive in enumerate(extent.alive)
                    if alive
                ][: INDEX_MASK + 1]
            found = [(place, record) for place, record in self._read_all(places) if record is not None]
            new = self.write(model, [record for _, record in found])
            moved.update((place, to) for (place, _), to in zip(found, new, strict=True))
            with self._lock:
                self.counters.compacted_extents += len(extents)
        return moved

    def scan(self) -> Iterator[Found]:
        """All blocks that earlier processes left here, the newest extents first; a key comes once.

        To be listed before anything is written: what is written later is not compared with what is found here.
        Reads the index of each extent and no block. One whose index is damaged is set aside and counted. What is
        not listed to the end stays unknown. Raises StoreFault; the next call goes on where this one ended.
        """
        for name in sorted(self._unseen, key=number_of, reverse=True):
            with self._lock:
                num_bytes = self._unseen.pop(name, None)
            if num_bytes is None:
                continue
            try:
                model, heads = self._index(name, num_bytes)
            except Damaged:
                with self._lock:
                    self.counters.damaged_extents += 1
                self._set_aside(name)
            except StoreFault:
                with self._lock:
                    self._unseen[name] = num_bytes
                raise
            else:
                yield from self._adopt(model, heads, num_bytes)
        self._seen.clear()

    def models(self) -> list[str]:
        """The models of which there are blocks, as far as extents were written or scanned."""
        with self._lock:
            return sorted({extent.model for extent in self._extents.values()})

    def drop_model(self, model: str) -> None:
        """Delete all extents of a model, those included that were never scanned."""
        folder = folder_name(model) + "/"
        with self._lock:
            names = [name for name in self._unseen if name.startswith(folder)]
            for name in names:
                del self._unseen[name]
            names += [
                self._forget(extent).name for extent in list(self._extents.values()) if extent.model == model
            ]
        with self._watched():
            for name in names:
                self.backend.delete(name)

    def close(self) -> None:
        """Let go of the place. The extents stay."""
        self.backend.close()

    def check_integrity(self) -> None:
        """Raise AssertionError if what is remembered contradicts itself."""
        with self._lock:
            extents, counters = list(self._extents.values()), self.counters
            for extent in extents:
                spans = [extent.span(index) for index, alive in enumerate(extent.alive) if alive]
                assert extent.num_alive == len(spans) > 0, extent
                assert extent.live_bytes == sum(spans), extent
                assert extent.seq < self._next_seq, extent
            assert counters.live_bytes == sum(extent.live_bytes for extent in extents)
            assert counters.live_bytes + counters.dead_bytes == sum(extent.all_bytes for extent in extents)
            assert counters.file_bytes == sum(extent.num_bytes for extent in extents)

    def _by_extent(self, places: Sequence[Place]) -> list[tuple[Extent, list[tuple[int, int]]]]:
        """What is wanted of each extent: (block, where in the answer), in the order in which they lie there."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for position, place in enumerate(places):
            wanted.setdefault(place >> INDEX_BITS, []).append((place & INDEX_MASK, position))
        found = []
        with self._lock:
            for seq, blocks in wanted.items():
                extent = self._extents.get(seq)
                if extent is not None:
                    alive = extent.alive
                    found.append(
                        (extent, sorted(each for each in blocks if each[0] < len(alive) and alive[each[0]]))
                    )
        return found

    def _read_run(
        self,
        extent: Extent,
        run: Sequence[tuple[int, int]],
        keys: Sequence[bytes],
        records: list[Record | None],
    ) -> None:
        """Read neighbouring blocks and put those that are good into the answer."""
        begin = extent.offsets[run[0][0]]
        length = extent.offsets[run[-1][0] + 1] - begin
        with self._watched():
            data = self.backend.get(extent.name, begin, length)
        if data is None:
            self._lost(extent)
            return
        view, digest, good_bytes = memoryview(data).cast("B"), model_digest(extent.model), 0
        damaged = []
        for index, position in run:
            at, end = extent.offsets[index], extent.offsets[index + 1]
            try:
                record = read_block(
                    view, at - begin, end - begin, keys[position], digest, extent.seq, index, at
                )
            except Damaged:
                damaged.append(index)
                continue
            records[position] = record
            good_bytes += len(record.data)
        with self._lock:
            self.counters.read_blocks += len(run) - len(damaged)
            self.counters.read_bytes += good_bytes
        self._quarantine(extent, damaged)

    def _read_all(self, places: Sequence[Place]) -> Iterator[tuple[Place, Record | None]]:
        """Blocks by what the index says their names are: to write them anew."""
        for extent, wanted in self._by_extent(places):
            try:
                _, heads = self._index(extent.name, extent.num_bytes)
            except Damaged:
                self._quarantine(extent, [index for index, _ in wanted])
                continue
            at = [extent.seq << INDEX_BITS | index for index, _ in wanted]
            yield from zip(at, self.read(at, [heads[index].key for index, _ in wanted]), strict=True)

    def _worn(self, min_dead: float, max_bytes: int) -> list[tuple[str, list[Extent]]]:
        """Extents that are mostly dead, by model, as many as may be looked at."""
        with self._lock:
            worn = [
                extent
                for extent in self._extents.values()
                if extent.live_bytes <= extent.all_bytes * (1 - min_dead)
                and extent.num_alive < len(extent.alive)
            ]
        worn.sort(key=lambda extent: (extent.live_bytes / extent.all_bytes, extent.seq))
        chosen: dict[str, list[Extent]] = {}
        for extent in worn:
            max_bytes -= extent.num_bytes
            if max_bytes < 0 and chosen:
                break
            chosen.setdefault(extent.model, []).append(extent)
        return list(chosen.items())

    def _index(self, name: str, num_bytes: int) -> tuple[str, list[Head]]:
        """What an extent says of itself, all of it checked. Raises Damaged and StoreFault."""
        with self._watched():
            data = self.backend.get(name, 0, min(FIRST_READ_BYTES, num_bytes))
        if data is None:
            raise Damaged("gone")
        start = read_start(data, number_of(name), num_bytes)
        if len(data) < start.blocks_at:
            with self._watched():
                data = self.backend.get(name, 0, start.blocks_at)
            if data is None:
                raise Damaged("gone")
            start = read_start(data, number_of(name), num_bytes)
        model, heads = read_index(data, start)
        if name != f"{folder_name(model)}/{file_name(start.seq)}":
            raise Damaged("of another model")
        return model, heads

    def _adopt(self, model: str, heads: list[Head], num_bytes: int) -> Iterator[Found]:
        """Remember an extent that was found, without the blocks that a newer one has too."""
        seq, seen = heads[0].seq, self._seen
        with self._lock:
            extent = self._remember(seq, model, [*(head.offset for head in heads), num_bytes])
            old = [head.index for head in heads if head.key in seen]
            for index in old:
                self._bury(extent, index)
            emptied = [] if extent.num_alive else [self._forget(extent)]
        self._remove(emptied)
        for head in heads:
            if head.key not in seen:
                seen.add(head.key)
                place = seq << INDEX_BITS | head.index
                yield Found(
                    model, head.key, head.parent, head.space, head.length, head.form, head.error, place, seq
                )

    def _remember(self, seq: int, model: str, offsets: Sequence[int]) -> Extent:
        number = len(offsets) - 1
        extent = Extent(seq, model, array("Q", offsets), bytearray(b"\1" * number), number, 0)
        extent.live_bytes = extent.all_bytes
        self._extents[seq] = extent
        self.counters.live_bytes += extent.live_bytes
        self.counters.file_bytes += extent.num_bytes
        return extent

    def _bury(self, extent: Extent, index: int) -> bool:
        """A block is dead from now on; False: it was, or there is none."""
        if index >= len(extent.alive) or not extent.alive[index]:
            return False
        extent.alive[index] = 0
        extent.num_alive -= 1
        span = extent.span(index)
        extent.live_bytes -= span
        self.counters.live_bytes -= span
        self.counters.dead_bytes += span
        return True

    def _forget(self, extent: Extent) -> Extent:
        """Out of the books; its file is still there."""
        if self._extents.pop(extent.seq, None) is not None:
            self.counters.live_bytes -= extent.live_bytes
            self.counters.dead_bytes -= extent.all_bytes - extent.live_bytes
            self.counters.file_bytes -= extent.num_bytes
        return extent

    def _lost(self, extent: Extent) -> None:
        """The extent is not there any more: none of its blocks is."""
        with self._lock:
            if extent.seq in self._extents:
                self.counters.gone += extent.num_alive
                self._forget(extent)

    def _quarantine(self, extent: Extent, indexes: Sequence[int]) -> None:
        """Blocks that were found damaged are never read again; their extent is kept when its last block goes."""
        if not indexes:
            return
        with self._lock:
            extent.is_damaged = True
            self.counters.corrupt += sum(self._bury(extent, index) for index in indexes)
            emptied = [self._forget(extent)] if not extent.num_alive and extent.seq in self._extents else []
        with suppress(StoreFault):  # it was counted, and what was asked for is another thing
            self._remove(emptied)

    def _remove(self, extents: Sequence[Extent]) -> None:
        """Delete, or set aside, what is out of the books. What remains to be done after a fault is done next time."""
        with self._lock:
            todo, self._leftovers = self._leftovers + list(extents), []
        try:
            while todo:
                if todo[-1].is_damaged:
                    self._set_aside(todo[-1].name)
                else:
                    with self._watched():
                        self.backend.delete(todo[-1].name)
                todo.pop()
        finally:
            with self._lock:
                self._leftovers += todo

    def _set_aside(self, name: str) -> None:
        """Keep a damaged object out of the way, unless there are enough of them."""
        with self._lock:
            is_kept = self.counters.set_aside < MAX_ASIDE
            self.counters.set_aside += is_kept
        with self._watched():
            (self.backend.set_aside if is_kept else self.backend.delete)(name)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Count the faults of what is done in it."""
        try:
            yield
        except StoreFault as fault:
            with self._lock:
                self.counters.faults[fault.kind] += 1
                self._faults_in_a_row += 1
            raise
        self._faults_in_a_row = 0


def runs(extent: Extent, wanted: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Neighbouring blocks together, as many as are read in one go."""
    run: list[tuple[int, int]] = []
    for each in wanted:
        if run and (
            each[0] > run[-1][0] + 1
            or extent.offsets[each[0] + 1] - extent.offsets[run[0][0]] > MAX_RUN_BYTES
        ):
            yield run
            run = []
        run.append(each)
    if run:
        yield run


def folder_name(model: str) -> str:
    """What a model's folder is called: no two models share one, and any name is safe as a file's."""
    text = "".join(
        each
        if each in PLAIN or (each == "." and position)
        else "".join(f"%{byte:02x}" for byte in encoded(each))
        for position, each in enumerate(model)
    )
    if 0 < len(text) <= MAX_FOLDER_CHARACTERS:
        return text
    digest = blake2b(encoded(model), digest_size=DIGEST_BYTES).hexdigest()
    return f"{text[:KEPT_CHARACTERS]}~{digest}"


def file_name(seq: int) -> str:
    return f"{seq:0{SEQ_DIGITS}x}.kv"


def number_of(name: str) -> int:
    """The number of the extent with that name."""
    return int(name.rpartition("/")[2][:SEQ_DIGITS], 16)


def encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
