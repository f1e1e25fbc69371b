"""What is looked at of an engine again and again: a point of each time series, and what each of them is called."""

from collections.abc import Iterable

from engine.engine import Engine
from engine.native import append, vec

Name = tuple[str, str]
"""Whose series it is, and what of it: a replica's `running`, a tier's `bytes`."""

OF_A_REPLICA = ("preemptions", "running", "waiting", "tokens_in_flight", "is_healthy")
OF_MODELS = ("loaded", "weights_bytes")
OF_THE_CACHE = ("bytes", "capacity_bytes", "blocks")
OF_THE_QUOTA = ("in_service", "waiting", "limit")


class Points:
    """Looks at one engine. Names are put together anew only when others are there than the last time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._who: tuple[object, ...] = ()
        self._names: tuple[Name, ...] = ()

    def take(self) -> tuple[tuple[Name, ...], vec[float]]:
        """The names of all series and their values now, in the same order."""
        engine = self._engine
        router, cache, quotas, values = engine.router, engine.cache, engine.quotas, vec[float]()
        for name, replica in engine.replicas.items():
            values = append(values, float(replica.num_preemptions))
            values = append(values, float(replica.num_running))
            values = append(values, float(replica.num_waiting))
            values = append(values, float(router.tokens_in_flight(name)))
            values = append(values, 1.0 if engine.is_available(name) else 0.0)
        values = append(values, float(len(engine.fleet.homes)))
        values = append(values, float(engine.lifecycle.used_bytes))
        values = append(values, float(cache.used_bytes))
        values = append(values, float(cache.capacity_bytes))
        values = append(values, float(len(cache)))
        for tier in cache.tiers:
            rank = tier.rank
            values = append(values, float(tier.used_bytes))
            values = append(values, float(tier.capacity_bytes))
            for holder in cache.holders:
                values = append(values, float(holder.held_bytes[rank]))
        most = engine.settings.quotas.max_concurrent_requests
        values = append(values, float(quotas.in_service))
        values = append(values, float(quotas.num_waiting))
        values = append(values, float(most))
        used = quotas.used_ratios()
        for share in used.values():
            values = append(values, share)
        who = (*engine.replicas, len(cache.holders), *used)
        if who != self._who:
            self._who, self._names = who, tuple(self._called(used))
        return self._names, values

    def _called(self, limits: Iterable[tuple[str, ...]]) -> list[Name]:
        """The names of all series, in the order in which `take` has their values."""
        cache = self._engine.cache
        names = [(name, metric) for name in self._engine.replicas for metric in OF_A_REPLICA]
        names += [("models", metric) for metric in OF_MODELS]
        names += [("cache", metric) for metric in OF_THE_CACHE]
        for tier in cache.tiers:
            metrics = ["bytes", "capacity_bytes", *[f"bytes of {holder.key}" for holder in cache.holders]]
            names += [(f"tier {tier.name}", metric) for metric in metrics]
        names += [("quota", metric) for metric in OF_THE_QUOTA]
        for model, tenant, kind in limits:
            names.append((f"quota of {' and '.join(filter(None, (model, tenant)))}", kind))
        return names
