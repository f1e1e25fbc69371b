"""Keys at the door: whose a presented key is, in about a microsecond, as the file of keys has it by now."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path

from engine.clock import NS_PER_S, Clock
from engine.errors import BadSettings
from engine.server.key_file import Stamp, digest_of, expires_ns, read_keys, stamp_of

MAX_KEY = 512
"""Characters of a key. What is longer is none, and is not hashed."""

LOOK_NS = NS_PER_S
"""How often a look is taken at whether the file has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whom a key belongs to, and what it opens. `models` None: all of them."""

    id: str
    tenant: str
    name: str = ""
    is_admin: bool = False
    models: frozenset[str] | None = None
    max_priority: int | None = None
    expires_ns: int | None = None  # of Unix time
    digest: bytes = field(default=b"", repr=False)

    def may_use(self, name: str) -> bool:
        """Whether it may ask for a model by that name: a name stands for all of its versions."""
        models = self.models
        return models is None or name in models or name.partition("@")[0] in models


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysChanged:
    """The file was read again: ids of keys that came, went, or are another's. With a `problem`, all is as before."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    problem: str | None = None


class Keyring:
    """The keys of a file. It is read again when it has changed; one that is no good then changes nothing.

    How long a look-up takes tells nothing of any key. What is looked up is the SHA-256 of what was presented, and
    nobody can choose what that begins with; so a dictionary does, and what it finds is still compared whole.
    """

    def __init__(
        self, path: Path, clock: Clock, on_change: Callable[[KeysChanged], None] | None = None
    ) -> None:
        """Raises BadSettings with file and line."""
        self._path = path
        self._clock = clock
        self._on_change = on_change
        self._stamp: Stamp | None = _stamp(path)
        self._holders = _read(path)
        self._look_ns = clock.now_ns() + LOOK_NS

    def __len__(self) -> int:
        """Keys that open something, those that have expired among them."""
        return len(self._holders)

    def find(self, presented: str) -> Holder | None:
        """Whose key that is; None for one that is not known, was revoked, or has expired."""
        now_ns = self._clock.now_ns()
        if now_ns >= self._look_ns:
            self._look(now_ns)
        if len(presented) > MAX_KEY:
            return None
        digest = digest_of(presented)
        holder = self._holders.get(digest)
        if holder is None or not compare_digest(holder.digest, digest):
            return None
        end_ns = holder.expires_ns
        return holder if end_ns is None or self._clock.epoch_ns + now_ns < end_ns else None

    def holder(self, key_id: str) -> Holder | None:
        """Whose key has that id, as long as it opens something: for what was begun with it and goes on without it."""
        found = next((each for each in self._holders.values() if each.id == key_id), None)
        if found is None or found.expires_ns is None:
            return found
        return found if self._clock.epoch_ns + self._clock.now_ns() < found.expires_ns else None

    def _look(self, now_ns: int) -> None:
        """Read the file again if it has changed. Takes a stat otherwise."""
        self._look_ns = now_ns + LOOK_NS
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        before = self._holders
        try:
            self._holders = _read(self._path)
        except BadSettings as error:
            self._tell(KeysChanged(problem=str(error)))
        else:
            self._tell(_difference(before, self._holders))

    def _tell(self, change: KeysChanged) -> None:
        if self._on_change is not None:
            self._on_change(change)


def _stamp(path: Path) -> Stamp | None:
    """Taken before the file is read: what changes in between is seen at the next look."""
    try:
        return stamp_of(path)
    except OSError:
        return None


def _read(path: Path) -> dict[bytes, Holder]:
    """Holders of all keys that were not revoked, by digest. Raises BadSettings."""
    holders = {}
    for entry in read_keys(path):
        if not entry.disabled:
            digest = bytes.fromhex(entry.sha256)
            holders[digest] = Holder(
                id=entry.id,
                tenant=entry.tenant,
                name=entry.name,
                is_admin=entry.admin,
                models=None if entry.models is None else frozenset(entry.models),
                max_priority=entry.max_priority,
                expires_ns=expires_ns(entry),
                digest=digest,
            )
    return holders


def _difference(before: dict[bytes, Holder], after: dict[bytes, Holder]) -> KeysChanged:
    old = {holder.id: holder for holder in before.values()}
    new = {holder.id: holder for holder in after.values()}
    return KeysChanged(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(each for each in new.keys() & old.keys() if new[each] != old[each])),
    )
