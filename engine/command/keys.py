"""Keys of clients and operators, made, listed and revoked in a file that the server reads."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.clock import unix_ns_of, utc_now
from engine.server.key_file import KeyEntry, add_key, expires_ns, read_keys, revoke_key

WIDTH = 160  # of the table where nobody looks at it in a terminal


def add(
    file: Path,
    tenant: str,
    *,
    name: str = "",
    admin: bool = False,
    models: Sequence[str] | None = None,
    max_priority: int | None = None,
    expires: str | None = None,
) -> int:
    """Make a key and print it, once and never again."""
    key, entry = add_key(
        file,
        tenant,
        created=_now(),
        name=name,
        admin=admin,
        models=models,
        max_priority=max_priority,
        expires=expires,
    )
    kind = "operator's key" if admin else "key"
    print(f"{kind} {entry.id} of tenant {tenant!r}; it is shown this once", file=sys.stderr)
    print(key)
    return 0


def show(file: Path) -> int:
    """Print whose keys there are and what each opens."""
    table = Table(
        "id", "tenant", "name", "opens", "models", "priority", "created", "expires", "state", box=SIMPLE
    )
    entries = read_keys(file)
    for entry in entries:
        table.add_row(*map(escape, _row(entry)))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    print(f"{len(entries)} keys in {file}")
    return 0


def revoke(identifier: str, file: Path) -> int:
    """Let a key open nothing any more. A server that runs sees it within a second."""
    entry = revoke_key(file, identifier)
    print(f"revoked {entry.id} of tenant {entry.tenant!r}")
    return 0


def _row(entry: KeyEntry) -> list[str]:
    end_ns = expires_ns(entry)
    is_over = end_ns is not None and end_ns <= unix_ns_of(_now())
    return [
        entry.id,
        entry.tenant,
        entry.name,
        "both doors" if entry.admin else "clients' door",
        "all" if entry.models is None else ", ".join(entry.models),
        "any" if entry.max_priority is None else f"up to {entry.max_priority}",
        entry.created,
        entry.expires or "never",
        "revoked" if entry.disabled else "expired" if is_over else "good",
    ]


def _now() -> str:
    return utc_now().isoformat(timespec="seconds")
