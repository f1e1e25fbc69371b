"""A table of the scorecard, and the page that they make."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of ready text under their heads; `note` says what was measured, and on what."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str

    def markdown(self) -> str:
        """The table as a section."""
        lines = (self.heads, tuple("---" for _ in self.heads), *self.rows)
        drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{self.note}\n\n{drawn}"


def page(tables: Sequence[Table], where: str, command: str) -> str:
    """All tables as one Markdown page; `where`: the machine, and what ran on it."""
    head = (
        "# Scorecard\n\n"
        "Figures that an earlier system, written in Zig, published, beside ours. Its workload and its machine are "
        "not known: what ours rests on stands above each table. Made by\n\n"
        f"```bash\n{command}\n```\n\non {where}."
    )
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"
