"""A profile for people: its terms, how far off it is, where it was measured, and the settings that it suggests."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engine.clock import NS_PER_S
from engine.execution.profile_file import Profile
from engine.execution.terms import TERMS
from engine.settings import GIB

GOAL = 0.03
RESTLESS = 0.1
PARTS = {
    "held_out": "held out of the fit",
    "held_out_prefill": "  of these with prefill",
    "held_out_decode": "  of these without",
    "fitted": "fitted",
}
FORMS = {"raw": 1.0, "fp16": 0.5, "int8": 0.25}
"""How large a block is in each form, as a share of float32."""


def show(profile: Profile, console: Console) -> None:
    """Print it."""
    console.print(
        f"{profile.model}: {profile.weights}, {profile.shape.parameters:,} weights", highlight=False
    )
    console.print(f"machine   {_listed(profile.machine)}", highlight=False)
    console.print(f"measured  {_listed(profile.measured)}", highlight=False)
    console.print(costs_table(profile))
    console.print(errors_table(profile))
    console.print(spread_table(profile))
    console.print(copies_table(profile))
    console.print("what a simulation may take from it:", highlight=False)
    for line in suggestions(profile):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    for line in warnings(profile):
        console.print(f"[yellow]{line}[/yellow]", highlight=False)


def _listed(values: dict[str, str | int | float | bool | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def costs_table(profile: Profile) -> Table:
    table = Table("term", "us", "what it is", box=SIMPLE_HEAD, title="what a step takes is the sum of")
    table.columns[1].justify = "right"
    for name, cost in profile.costs_ns.items():
        if cost:
            table.add_row(name, f"{cost / 1e3:.4g}", TERMS[name])
    return table


def errors_table(profile: Profile) -> Table:
    title = "predicted / measured - 1, in %"
    table = Table(
        "points", "number", "mean |e|", "p50 |e|", "p90 |e|", "max |e|", "mean e", "from", "to", title=title
    )
    table.box = SIMPLE_HEAD
    for column in table.columns[1:]:
        column.justify = "right"
    names = ("mean_abs", "p50_abs", "p90_abs", "max_abs", "mean_signed", "lowest", "highest")
    for part, found in profile.errors.items():
        figures = (f"{100 * found[name]:.2f}" for name in names)
        table.add_row(PARTS.get(part, part), f"{found['points']:.0f}", *figures)
    return table


def spread_table(profile: Profile) -> Table:
    table = Table("steps", "mean", "p1", "p50", "p90", "p99", title="measured / predicted, of single steps")
    table.box = SIMPLE_HEAD
    for name, pool in ("with prefill", profile.prefill_ratios), ("without", profile.decode_ratios):
        places = [pool[min(len(pool) - 1, int(share * len(pool)))] for share in (0.01, 0.5, 0.9, 0.99)]
        table.add_row(name, *(f"{value:.3f}" for value in (sum(pool) / len(pool), *places)))
    return table


def copies_table(profile: Profile) -> Table:
    table = Table("copy", "latency, us", "GiB/s", title="moving KV", box=SIMPLE_HEAD)
    for name, copy in profile.copies.items():
        speed = NS_PER_S / copy.ns_per_byte / GIB if copy.ns_per_byte else float("inf")
        table.add_row(name, f"{copy.latency_ns / 1e3:.1f}", f"{speed:.3g}")
    return table


def suggestions(profile: Profile) -> Iterator[str]:
    """Settings of the cache and of loading, as this machine has them: lines for the command of a run."""
    copies = profile.copies
    if "ssd_read" in copies:
        yield f"tiers.ssd.latency_s={copies['ssd_read'].latency_ns / NS_PER_S:.3g}"
        for form, share in FORMS.items():
            unpacking = copies[f"{form}_unpack"].ns_per_byte if form != "raw" else 0.0
            # a byte of the smaller form is 1 / share bytes of the block
            ns_per_byte = copies["ssd_read"].ns_per_byte + unpacking / share
            if ns_per_byte:
                yield f"tiers.ssd.gib_per_s={NS_PER_S / ns_per_byte / GIB:.3g}   where tiers.ssd.form={form}"
    if "ram" in copies and copies["ram"].ns_per_byte:
        yield f"tiers.ram.gib_per_s={NS_PER_S / copies['ram'].ns_per_byte / GIB:.3g}"
    cold = profile.load_s.get("cold", profile.load_s.get("made"))
    if cold is not None:
        yield f"models.cold_median_s={cold:.3g} models.cold_p90_s={cold:.3g}"
        yield f"models.warm_s={profile.load_s.get('mapped', cold):.3g}"


def warnings(profile: Profile) -> Iterator[str]:
    """What speaks against believing it."""
    error, drift = profile.errors["held_out"]["mean_abs"], profile.measured.get("drift")
    noise = profile.measured.get("noise")
    if error > GOAL and isinstance(noise, float):
        yield f"points that were held out are {error:.1%} off in the mean, and themselves sure to {noise:.1%}"
    if isinstance(drift, float) and drift > RESTLESS:
        low, high = 1 - drift / 2, 1 + drift / 2
        yield f"one and the same step took between {low:.0%} and {high:.0%}: others used the machine meanwhile"
