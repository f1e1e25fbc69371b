"""What a store holds from an earlier life: the newest of each block, and of those the ones that can be reached."""

from collections.abc import Container, Iterable

from engine.cache.stores import ExtentStore, Found, StoreFault


def found_in(store: ExtentStore) -> list[Found]:
    """What a store holds from before, the newest of each block. A store that fails at this is taken for empty."""
    newest: dict[bytes, Found] = {}
    try:
        for found in store.scan():
            known = newest.get(found.key)
            if known is None or known.seq < found.seq:
                newest[found.key] = found
    except StoreFault:
        return []
    return list(newest.values())


def closed(found: Iterable[Found], is_known: Container[bytes]) -> list[Found]:
    """Those that can be reached from the start of their namespace, or from a block that is known; heads first."""
    children: dict[bytes, list[Found]] = {}
    starts: list[Found] = []
    for each in found:
        if each.parent == each.space or each.parent in is_known:
            starts.append(each)
        else:
            children.setdefault(each.parent, []).append(each)
    ordered, line = [], sorted(starts, key=lambda each: -each.seq)
    while line:
        each = line.pop()
        ordered.append(each)
        line += children.pop(each.key, [])
    return ordered
