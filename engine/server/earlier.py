"""The earlier system's deployment file: its keys, and which of our settings each of them is."""

from typing import Any

from engine.errors import BadSettings
from engine.server.typed import unknown
from engine.server.yaml_file import Tree

NAMES = {
    "routing_strategy": "routing.strategy",
    "routing_config.strategy": "routing.strategy",
    "affinity_timeout_sec": "routing.session_timeout_s",
    "routing_config.affinity_timeout_sec": "routing.session_timeout_s",
    "allocation_strategy": "cache.allocation",
    "global_eviction_policy": "cache.eviction",
    "enable_health_checks": "health.enabled",
    "enable_quota_checks": "quotas.enabled",
}
QUOTAS = "per_model_quotas"
QUOTA_NAMES = {
    "hourly_token_limit": "hourly_tokens",
    "daily_token_limit": "daily_tokens",
    "hourly_request_limit": "hourly_requests",
    "daily_request_limit": "daily_requests",
    "max_concurrent_requests": "concurrent_requests",
}
WORDS = {
    "affinity_based": "affinity",
    "fair_share": "fair",
    "priority_based": "priority",
    "least_recently_used_model": "lru",
    "least_frequently_used_model": "lfu",
    "smallest_model_first": "smallest",
}
"""Its words for what has another name here."""

KEYS = (*dict.fromkeys(name.partition(".")[0] for name in NAMES), QUOTAS)


def meant(name: str, value: Any) -> tuple[str, Any]:
    """A setting of ours that one of that system's is, and its value; any other as it is."""
    if name not in NAMES:
        return name, value
    return NAMES[name], WORDS.get(value, value) if isinstance(value, str) else value


def translate(tree: Tree) -> None:
    """Put our settings in the place of that system's. Raises BadSettings where one thing is said twice."""
    said_by: dict[str, str] = {}
    for name, target in NAMES.items():
        value = tree.get(name)
        if value is None:
            continue
        other = said_by.get(target, target if tree.get(target) is not None else None)
        if other is not None:
            raise BadSettings(f"{name} and {other} say the same thing; keep one of them")
        said_by[target] = name
        tree.put(*meant(name, value), tree.place(name) or name)
    config = tree.values.get("routing_config")
    if config is not None:
        known = [name for name in NAMES if name.startswith("routing_config.")]
        if not isinstance(config, dict):
            raise BadSettings(f"routing_config is {config!r}, but must be a group of settings")
        for name in config:
            if f"routing_config.{name}" not in known:
                raise unknown(f"routing_config.{name}", known)
    quotas = tree.values.get(QUOTAS)
    if quotas is not None:
        _translate_quotas(tree, quotas)
    for key in KEYS:
        tree.values.pop(key, None)


def _translate_quotas(tree: Tree, quotas: Any) -> None:
    """One rule for each model by itself."""
    if not isinstance(quotas, dict):
        raise BadSettings(f"{QUOTAS} is {quotas!r}, but must be a group of limits")
    for name in quotas:
        if name not in QUOTA_NAMES:
            raise unknown(f"{QUOTAS}.{name}", [f"{QUOTAS}.{each}" for each in QUOTA_NAMES])
    if tree.get("quotas.limits") is not None:
        raise BadSettings(f"{QUOTAS} and quotas.limits say the same thing; keep one of them")
    given = {QUOTA_NAMES[name]: value for name, value in quotas.items() if value is not None}
    if given:
        tree.put("quotas.limits", [{"model": "*", **given}], tree.place(QUOTAS) or QUOTAS)
