"""Class B: instructions an operation, which do not depend on who else uses the machine."""

from collections.abc import Iterator, Sequence

from sim.gate.environment import build_key
from sim.gate.kinds import Measured, command_of, share
from sim.gate.operations import OPERATIONS
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS, WARN, Figure, Row
from sim.gate.valgrind import instructions, missing

WARN_SHARE, FAIL_SHARE = 0.02, 0.05


class Counted:
    """B/OPERATION."""

    letter = "B"
    file = "counted"
    attempts = 1
    failed_verdict = INCONCLUSIVE

    def names(self) -> list[str]:
        return [f"B/{name}" for name in OPERATIONS]

    def doubles(self) -> list[str]:
        return self.names()

    def key(self) -> str:
        return build_key()

    def missing(self) -> str | None:
        return missing()

    def base(self, name: str, stored: Figure | None) -> Figure | None:
        return stored

    def measure(self, names: Sequence[str], doubled: Sequence[str]) -> Iterator[Measured]:
        bare = [name.removeprefix("B/") for name in names]
        twice = [name.removeprefix("B/") for name in doubled]
        for each in instructions(bare, doubled=twice):
            yield Measured(f"B/{each.name}", round(each.instructions))

    def judge(self, base: Figure, head: Measured) -> Row:
        more = share(float(base), float(head.value)) or 0.0
        verdict = FAIL if more > FAIL_SHARE else WARN if more > WARN_SHARE else PASS
        return Row(
            name=head.name,
            verdict=verdict,
            base=base,
            head=head.value,
            delta=more,
            limit=f"+{FAIL_SHARE:.0%}",
            note=_why(verdict, more),
            command=command_of(head.name),
        )


def _why(verdict: str, more: float) -> str:
    if verdict != PASS:
        return f"more instructions; +{WARN_SHARE:.0%} warns"
    return f"{-more:.1%} less: renew the baseline, so that it stays so" if more < -FAIL_SHARE else ""
