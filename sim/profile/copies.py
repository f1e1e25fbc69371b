"""What moving KV takes, and what loading takes: measured on the same code that serves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from engine.cache.codec import Codec
from engine.cache.packing import TorchPacker
from engine.cache.stores import ExtentStore, Record, open_store
from engine.clock import NS_PER_S, stopwatch_ns
from engine.execution.profile_file import Copy
from engine.settings import ModelSettings
from sim.least_squares import relative
from sim.profile.rig import Rig

BLOCKS = (1, 4, 16, 64)
MOST_BYTES = 64 << 20
REPEATS = 5
NAME_BYTES = 16
ANY_ERROR = 1e9
CONTEXTS = (16, 64, 256, 1024)

Timed = tuple[int, int]
"""Bytes that were moved, and ns."""

Work = Callable[[], object]


def measured_copies(rig: Rig) -> dict[str, Copy]:
    """Each copy's latency and price a byte, by least squares of relative errors over sizes, medians of some."""
    block_bytes = rig.executor.kv_bytes_per_token * rig.block_tokens
    sizes = [count for count in BLOCKS if count * block_bytes <= MOST_BYTES] or [1]
    found = {"retire": line(_retired(rig)), "ram": line(_cloned(rig, sizes))}
    if rig.blocks(1)[0].device.type != "cpu":
        return found
    with TemporaryDirectory(prefix="modelyard-profile-") as folder:
        store = open_store(path=Path(folder))
        try:
            writes, reads = _stored(rig, sizes, store)
        finally:
            store.close()
    found |= {"ssd_write": line(writes), "ssd_read": line(reads)}
    for form in ("fp16", "int8"):
        packs, unpacks = _packed(rig, sizes, form)
        found |= {f"{form}_pack": line(packs), f"{form}_unpack": line(unpacks)}
    return found


def line(timed: Sequence[Timed]) -> Copy:
    """The straight line through what copies of some sizes took."""
    rows = np.array([(1.0, size) for size, _ in timed])
    latency_ns, ns_per_byte = relative(rows, np.array([max(1, took) for _, took in timed], dtype=np.float64))
    return Copy(latency_ns=float(latency_ns), ns_per_byte=float(ns_per_byte))


def load_seconds(model: ModelSettings, load: Callable[[ModelSettings, Path], Any]) -> dict[str, float]:
    """What loading takes: making weights up; where there are files, converting them, and mapping what was kept."""
    took = {}
    with TemporaryDirectory(prefix="modelyard-profile-") as folder:
        for name in ("made",) if model.path is None else ("cold", "mapped"):
            begun_ns = stopwatch_ns()
            executor = load(model, Path(folder))
            took[name] = (stopwatch_ns() - begun_ns) / NS_PER_S
            if executor.keep is not None:
                executor.keep()
    return took


def _retired(rig: Rig) -> list[Timed]:
    """What ending sequences takes whose blocks go to the cache."""
    bytes_per_token, longest = rig.executor.kv_bytes_per_token, rig.executor.context_tokens - 2
    timed = []
    for context in [each for each in CONTEXTS if each < longest] or [rig.block_tokens]:
        seen = [rig.copy_out(context + 1) for _ in range(REPEATS)]
        timed.append((seen[0][1] * bytes_per_token, median([took for took, _ in seen])))
    return timed


def _cloned(rig: Rig, sizes: Sequence[int]) -> list[Timed]:
    """Copying blocks within memory."""
    return _timed(rig, sizes, lambda blocks: lambda: [block.clone() for block in blocks])


def _packed(rig: Rig, sizes: Sequence[int], form: str) -> tuple[list[Timed], list[Timed]]:
    """Making blocks smaller, and whole again. Sizes are those of whole blocks."""
    codec = Codec(form, max_error=ANY_ERROR)

    def packs(blocks: Sequence[Any]) -> Work:
        return lambda: [codec.pack(block) for block in blocks]

    def unpacks(blocks: Sequence[Any]) -> Work:
        small = [codec.pack(block) for block in blocks]
        return lambda: [Codec.unpack(each) for each in small]

    return _timed(rig, sizes, packs), _timed(rig, sizes, unpacks)


def _stored(rig: Rig, sizes: Sequence[int], store: ExtentStore) -> tuple[list[Timed], list[Timed]]:
    """Writing extents of raw blocks to files, and reading them back, verified."""
    packer = TorchPacker()

    def records_of(blocks: Sequence[Any]) -> list[Record]:
        packed = [packer.pack(block, "raw", 0.0, 0.0) for block in blocks]
        return [
            packer.record(each, _key(n), bytes(NAME_BYTES), bytes(NAME_BYTES))
            for n, each in enumerate(packed)
        ]

    def writes(blocks: Sequence[Any]) -> Work:
        records = records_of(blocks)
        return lambda: store.write("profile", records)

    def reads(blocks: Sequence[Any]) -> Work:
        places, keys = store.write("profile", records_of(blocks)), [_key(n) for n in range(len(blocks))]
        return lambda: [packer.unpack(packer.packed(each)) for each in store.read(places, keys) if each]

    return _timed(rig, sizes, writes), _timed(rig, sizes, reads)


def _key(number: int) -> bytes:
    return number.to_bytes(NAME_BYTES, "little")


def _timed(rig: Rig, sizes: Sequence[int], work_on: Callable[[Sequence[Any]], Work]) -> list[Timed]:
    """The bytes of so many blocks, and the median of what the work on them takes."""
    timed = []
    for count in sizes:
        blocks = rig.blocks(count)
        work, took = work_on(blocks), []
        for _ in range(REPEATS):
            begun_ns = stopwatch_ns()
            work()
            took.append(stopwatch_ns() - begun_ns)
        timed.append((count * blocks[0].nbytes, median(took)))
    return timed


def median(values: Sequence[int]) -> int:
    return int(np.median(values))
