"""Names in settings: of models and replicas that nobody has, each is a typo that would do nothing.

Tenants may be anybody: limits are written for all customers, and not all of them come in every trace.
"""

from collections.abc import Collection, Sequence

from engine.errors import UnknownName
from engine.settings import EngineSettings

BY_MODEL = {"proportional": "weights", "priority": "members", "dynamic": "floors"}
"""The option of an allocation that has models as its keys."""
EACH = "*"
MOST_TOLD = 20


def check_names(settings: EngineSettings) -> None:
    """Raise UnknownName for a model or a replica in weights, limits, floors or members that the fleet has not.

    Models are named with their version or without. Where `models.folder` is given, any may come.
    """
    if settings.models.folder is not None:
        return
    fleet = settings.fleet
    models = [model.name for model in fleet.models]
    keys = [model.key for model in fleet.models]
    known = {*models, *keys}
    for number, limit in enumerate(settings.quotas.limits):
        if limit.model not in (None, EACH):
            _check(f"quotas.limits[{number}].model", limit.model, known, f"{EACH}, {_told(models)}")
    for number, room in enumerate(settings.cache.limits):
        if room.model is not None:
            _check(f"tiers.limits[{number}].model", room.model, known, _told(models))
    option = BY_MODEL.get(settings.cache.allocation, "")
    for name in settings.cache.allocation_options.get(option) or ():
        _check_key(f"allocation.{option}", name, known, f"models of the fleet: {_told(models)}")
    others = [model.key for model in fleet.models if model.name not in fleet.replicas.values()]
    for name in settings.routing.weights:  # a model without a replica has one that is called like itself
        allowed = f"replicas of the fleet: {_told([*fleet.replicas, *others])}"
        _check_key("routing.weights", name, {*fleet.replicas, *keys}, allowed)


def _check(key: str, name: str | None, known: Collection[str], allowed: str) -> None:
    if name not in known:
        raise UnknownName(f"{key} is {name!r}, but must be one of {allowed}")


def _check_key(key: str, name: str, known: Collection[str], allowed: str) -> None:
    if name not in known:
        raise UnknownName(f"{key} names {name!r}, but may only name {allowed}")


def _told(names: Sequence[str]) -> str:
    """The names; the first of very many."""
    more = f" and {len(names) - MOST_TOLD:,} more" if len(names) > MOST_TOLD else ""
    return ", ".join(dict.fromkeys(names[:MOST_TOLD])) + more
