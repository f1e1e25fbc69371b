"""Class A: what must be equal. Counts and digests of small runs, and memory that operations leave behind."""

from collections.abc import Iterator, Sequence

from sim.gate.child import measured
from sim.gate.environment import digest_key
from sim.gate.kinds import Measured, command_of, share
from sim.gate.operations import OPERATIONS
from sim.gate.rows import FAIL, PASS, Figure, Row

RUNS = ("failover", "five_models")
FIGURES = ("events", "routed", "completed", "second_tries", "hit_tokens", "stored_bytes", "blocks", "digest")
KEPT = tuple(name for name, kind in OPERATIONS.items() if kind.make is not None)
LEAVE_RESULTS = ("cache_find", "registry_json")
"""Operations whose result is new each time: twice as much work leaves twice as much."""


class Exact:
    """A/RUN/FIGURE and A/kept/OPERATION."""

    letter = "A"
    file = "exact"
    attempts = 1
    failed_verdict = FAIL

    def names(self) -> list[str]:
        runs = [f"A/{run}/{figure}" for run in RUNS for figure in FIGURES]
        return [*runs, *(f"A/kept/{name}" for name in KEPT)]

    def doubles(self) -> list[str]:
        return [f"A/kept/{name}" for name in LEAVE_RESULTS]

    def key(self) -> str:
        return digest_key()

    def missing(self) -> str | None:
        return None

    def base(self, name: str, stored: Figure | None) -> Figure | None:
        return stored

    def measure(self, names: Sequence[str], doubled: Sequence[str]) -> Iterator[Measured]:
        wanted = set(names)
        runs = [run for run in RUNS if any(name.startswith(f"A/{run}/") for name in names)]
        if runs:
            for told in measured({"task": "runs", "names": runs}, plain=True):
                for figure in FIGURES:
                    name = f"A/{told['name']}/{figure}"
                    if name in wanted:
                        yield Measured(name, told[figure])
        kept = [name for name in KEPT if f"A/kept/{name}" in wanted]
        if kept:
            twice = [name.removeprefix("A/kept/") for name in doubled]
            for told in measured({"task": "kept", "names": kept, "doubled": twice}, plain=True):
                yield Measured(f"A/kept/{told['name']}", told["blocks"])

    def judge(self, base: Figure, head: Measured) -> Row:
        is_equal = base == head.value
        both = not isinstance(base, str) and not isinstance(head.value, str)
        return Row(
            name=head.name,
            verdict=PASS if is_equal else FAIL,
            base=base,
            head=head.value,
            delta=share(float(base), float(head.value)) if both else None,
            limit="equal",
            note="" if is_equal else "must be what it was; renew the baseline where the change is meant",
            command=command_of(head.name),
        )
