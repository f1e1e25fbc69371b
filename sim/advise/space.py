"""What may be chosen, and what each choice costs an hour: known without a single simulation."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import BadSettings
from engine.settings import TIERS
from sim.advise.settings import Prices
from sim.config import RunSettings, choices, read
from sim.plan import Combination, Plan, planned

MOST_PRICED = 2_000
"""Combinations that are composed to know what they cost."""

POLICIES = {
    "strategy": ("cache_aware", "least_loaded", "round_robin"),
    "allocation": ("shared", "fair", "dynamic"),
    "eviction": ("lru", "gdsf", "s3fifo"),
}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of each tier's size."""

COSTLY = ("tiers", "fleet", "scenario", "size", "hardware")
"""Settings that may change what is paid for."""


@dataclass(slots=True)
class Space:
    """All candidates, by number, with what each costs."""

    plan: Plan
    base: RunSettings
    combinations: list[Combination]
    costs: list[float]

    def __len__(self) -> int:
        return len(self.combinations)

    def lines(self, number: int) -> tuple[str, ...]:
        return self.plan.lines(self.combinations[number])


def space_of(lines: Sequence[str], prices: Prices) -> Space:
    """The candidates that a command line leaves open. Raises BadSettings, before anything runs."""
    for line in lines:
        if line.startswith("seed=") and len(planned([line]).seeds) > 1:
            raise BadSettings(f"{line!r} names several seeds, but must name the first; seeds=3 says how many")
    seed = [line for line in lines if line.startswith("seed=")]
    given = planned([line for line in lines if not line.startswith("seed=")])
    base = read([*given.fixed, *_firsts(given.swept), *seed])
    plan = planned([*(line for line in lines if not line.startswith("seed=")), *_open(given, base)])
    plan = Plan(plan.swept, plan.fixed, [base.seed])
    if not plan.swept:
        raise BadSettings(
            "nothing is left to choose; give a setting several values, as in tiers.ram.gib=1,2,4"
        )
    _check_each(plan)
    combinations = plan.combinations
    return Space(plan, base, combinations, _costs(plan, combinations, prices))


def cost_of(settings: RunSettings, prices: Prices, hardware: str | None = None) -> float:
    """What an hour of it costs: an accelerator for each replica, and the GiB of each tier of the cache."""
    cache = settings.engine.cache
    tiers = cache.tiers if cache.enabled else {}
    memory = sum(tier.gib * float(getattr(prices, name)) for name, tier in tiers.items())
    return len(settings.engine.fleet.replicas) * prices.of(hardware) + memory


def is_number(text: str) -> bool:
    """Whether a value has a place among others of its setting."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _firsts(swept: dict[str, list[str]]) -> list[str]:
    return [f"{name}={values[0]}" for name, values in swept.items()]


def _open(given: Plan, base: RunSettings) -> list[str]:
    """Lines of what the command line says nothing of: policies, and a few sizes of each tier there is."""
    named = {line.partition("=")[0].lstrip("+~") for line in given.fixed} | set(given.swept)
    lines = [f"{name}={','.join(values)}" for name, values in POLICIES.items() if name not in named]
    cache = base.engine.cache
    if not cache.enabled or named & {"tiers.enabled"}:
        return [line for line in lines if line.startswith("strategy=")]
    sizes = {f"tiers.{name}.gib": cache.tiers[name].gib for name in TIERS if name in cache.tiers}
    if "tiers" not in given.swept:  # sizes of tiers that some of them lack
        lines += [
            f"{name}={','.join(f'{gib * factor:g}' for factor in FACTORS)}"
            for name, gib in sizes.items()
            if name not in named and gib > 0
        ]
    return lines


def _check_each(plan: Plan) -> None:
    """Read each value once, beside the first values of the others. Raises BadSettings for one that is no good."""
    for name, values in plan.swept.items():
        for group in (name,):
            known = choices(group)
            wrong = [value for value in values if known and value not in known]
            if wrong:
                raise BadSettings(f"no {group} is called {wrong[0]!r}; choose from {', '.join(known)}")
        if name.startswith(COSTLY) or choices(name):
            continue  # read below, or a file of that name
        for value in values[1:]:
            read(
                plan.lines(
                    {other: (value if other == name else all_[0]) for other, all_ in plan.swept.items()}
                )
            )


def _costs(plan: Plan, combinations: Sequence[Combination], prices: Prices) -> list[float]:
    """Each different one is composed once: policies and traffic cost nothing."""
    _check_prices(plan, prices)
    priced = [name for name in plan.swept if name.startswith(COSTLY)]
    known: dict[tuple[str, ...], float] = {}
    for each in combinations:
        key = tuple(each[name] for name in priced)
        if key not in known:
            if len(known) == MOST_PRICED:
                raise BadSettings(
                    f"there are more than {MOST_PRICED:,} sizes to choose from; name fewer of them"
                )
            lines = plan.lines(each)
            known[key] = cost_of(read(lines), prices, _hardware_of(lines))
    return [known[tuple(each[name] for name in priced)] for each in combinations]


def _hardware_of(lines: Sequence[str]) -> str | None:
    """What the lines choose; None where they leave it as it is."""
    chosen = [line.partition("=")[2] for line in lines if line.startswith("hardware=")]
    return chosen[-1] if chosen else None


def _check_prices(plan: Plan, prices: Prices) -> None:
    """Raises BadSettings where accelerators that differ would cost the same, or one is priced that nobody chooses."""
    swept = plan.swept.get("hardware", [])
    without = [name for name in swept if name not in prices.hardware]
    if len(swept) > 1 and without and prices.accelerator is None:
        raise BadSettings(
            f"hardware is {', '.join(swept)}, but {without[0]} has no price; give one as in price.{without[0]}=1.5, "
            "or price.accelerator= for whatever has none of its own"
        )
    chosen: Sequence[str | None] = swept or [_hardware_of(plan.fixed)]
    unknown = [name for name in prices.hardware if name not in chosen]
    if unknown:
        raise BadSettings(
            f"price.{unknown[0]} is {prices.hardware[unknown[0]]:g}, but no candidate runs on {unknown[0]}; "
            f"choose it as in hardware={unknown[0]}"
        )
