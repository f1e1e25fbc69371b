"""Class D: microseconds of this machine, beside figures that were published of other machines.

Only what misses one threefold blocks: another machine may be that much slower, and the published figures are of
compiled code. Beating one says something of this machine, whose name stands beside. Of a machine that is slower
still, for good or for a minute, nothing can be said where only that makes a miss: a plain loop beside it tells.
"""

from collections.abc import Iterator, Sequence

from sim.gate.child import measured
from sim.gate.environment import python_key
from sim.gate.kinds import Measured, command_of, share, undecided
from sim.gate.rows import FAIL, PASS, WARN, Figure, Row

ROOM = 3.0
TURN_NS = 70.0
"""A turn of the loop of `sim.gate.timing` on two quiet cores of an AMD EPYC, where all rows pass.

Of what was measured there: routing by `cache_aware` takes 1.2 to 1.35 us, and 17 to 19 turns.
"""
ROUTING = {"mean_us": 0.8, "p99_us": 3.2}
PUBLISHED: dict[str, dict[str, float]] = {
    "route_round_robin": ROUTING,
    "route_least_loaded": {**ROUTING, "per_s": 10_000},
    "route_cache_aware": ROUTING,
    "registry_lookup": {"mean_us": 1.0},
    "registry_json": {"mean_us": 1_000.0},
    "cache_lookup_hit": {"mean_us": 1.0},
    "cache_lookup_miss": {"mean_us": 1.0},
    "quota_check": {"mean_us": 2.1},
}
"""Of routing among five models, with us including the release; of a look-up; of a check; of 100 models as JSON."""
MORE_IS_BETTER = "per_s"


class Absolute:
    """D/OPERATION/FIGURE. There is nothing to renew: what a row is held against was published."""

    letter = "D"
    file = ""
    attempts = 3
    failed_verdict = FAIL

    def names(self) -> list[str]:
        return [f"D/{name}/{figure}" for name, figures in PUBLISHED.items() for figure in figures]

    def doubles(self) -> list[str]:
        return []

    def key(self) -> str:
        return python_key()

    def missing(self) -> str | None:
        return None

    def base(self, name: str, stored: Figure | None) -> Figure | None:
        _, operation, figure = name.split("/")
        return PUBLISHED[operation][figure]

    def measure(self, names: Sequence[str], doubled: Sequence[str]) -> Iterator[Measured]:
        operations = list(dict.fromkeys(name.split("/")[1] for name in names))
        twice = list(dict.fromkeys(name.split("/")[1] for name in doubled))
        wanted = set(names)
        for told in measured({"task": "absolute", "names": operations, "doubled": twice}, plain=False):
            figures = {**told, "per_s": 1e6 / max(told["mean_us"], 1e-6)}
            for figure in PUBLISHED[told["name"]]:
                name = f"D/{told['name']}/{figure}"
                if name in wanted:
                    digits = 0 if figure == MORE_IS_BETTER else 3
                    yield Measured(name, round(figures[figure], digits), {"turn_ns": told["turn_ns"]})

    def judge(self, base: Figure, head: Measured) -> Row:
        published, found = float(base), float(head.value)
        more_is_better = head.name.endswith(f"/{MORE_IS_BETTER}")
        times = published / max(found, 1e-9) if more_is_better else found / published
        verdict = FAIL if times > ROOM else WARN if times > 1 else PASS
        turn_ns = head.details.get("turn_ns", TURN_NS)
        if verdict == FAIL and times * TURN_NS / turn_ns <= ROOM:
            note = (
                f"a turn of a plain loop takes {turn_ns:.0f} ns here, and {TURN_NS:.0f} where this passes: the "
                "machine is too slow, or too busy, to say"
            )
            return undecided(head.name, note, base, head.value)
        bound = published / ROOM if more_is_better else published * ROOM
        return Row(
            name=head.name,
            verdict=verdict,
            base=base,
            head=head.value,
            delta=share(published, found),
            limit=f"{'>=' if more_is_better else '<='} {bound:,.4g}",
            note=""
            if verdict == PASS
            else "the base is a published figure of compiled code on another machine",
            command=command_of(head.name),
        )
