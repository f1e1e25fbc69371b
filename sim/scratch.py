"""Folders for the stores of a run that are there as long as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.execution import executors
from engine.settings import EngineSettings

STORED = ("ssd", "network")


def is_real(engine: EngineSettings) -> bool:
    """Whether there will be KV to store, and not only its size."""
    return not executors.find(engine.executor.name).is_modelled


@contextmanager
def temporary_stores(engine: EngineSettings) -> Iterator[EngineSettings]:
    """Where KV is real, tiers of files that say no place get a folder; a cloud without an address is left out."""
    if not is_real(engine):
        yield engine
        return
    cache = engine.cache
    with TemporaryDirectory(prefix="modelyard-") as folder:
        changed = {}
        for name in STORED:
            tier = getattr(cache, name)
            if tier is not None and tier.path is None and tier.url is None:
                place = Path(folder) / name
                place.mkdir()
                changed[name] = replace(tier, path=str(place))
        if cache.cloud is not None and cache.cloud.url is None:
            changed["cloud"] = None
        yield replace(engine, cache=replace(cache, **changed))
