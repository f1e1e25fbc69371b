"""Files of tenants: what batches read and write. Names are never paths: a file lies under an id that we have made.

The ids are 128 random bits: whoever has not been told one does not guess it. Whoever has been told another tenant's
finds nothing there all the same.
"""

import os
import re
import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from engine.server.jobs.database import Database
from engine.server.jobs.faults import InUse, NoSpace, NoSuchObject

BATCH, BATCH_OUTPUT = "batch", "batch_output"
MAX_NAME = 255
UNSAFE = re.compile(r"[^\w .()+,@=-]")
ID_BYTES = 16
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
UNFINISHED = ".part"
EXPIRED_AT_ONCE = 500


@dataclass(slots=True)
class File:
    """A file as it is known, its times in unix seconds."""

    number: int
    id: str
    tenant: str
    name: str
    purpose: str
    num_bytes: int
    created_s: int
    expires_s: int | None

    def as_dict(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_s,
            "expires_at": self.expires_s,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


def safe_name(name: str) -> str:
    """What is left of a file's name: its last part, of letters, digits and a few signs."""
    last = re.split(r"[/\\]", name)[-1]
    return UNSAFE.sub("_", last).strip(" .")[:MAX_NAME] or "file"


def new_id(kind: str) -> str:
    """A name that nobody guesses."""
    return f"{kind}{secrets.token_hex(ID_BYTES)}"


class Upload:
    """A file that is coming in: written aside until it is whole. Its room is kept for it from the beginning."""

    def __init__(self, files: "Files", tenant: str, room_bytes: int) -> None:
        self.tenant = tenant
        self.id = new_id("file-")
        self.num_bytes = 0
        self._files = files
        self._room_bytes = room_bytes
        self._path = files.path(self.id).with_suffix(UNFINISHED)
        self._number = os.open(self._path, CREATE, 0o600)

    def write(self, data: bytes) -> None:
        """Raises NoSpace, OSError."""
        if self.num_bytes + len(data) > self._room_bytes:
            raise NoSpace(f"the file is larger than the {self._room_bytes} bytes that there is room for")
        view = memoryview(data)
        while view:
            view = view[os.write(self._number, view) :]
        self.num_bytes += len(data)

    def publish(self, name: str, purpose: str, now_s: int, expires_s: int | None) -> File:
        """It is whole: whoever may can see it from now on."""
        os.fsync(self._number)
        self._path.rename(self._files.path(self.id))
        try:
            return self._files.add(self.id, self.tenant, name, purpose, self.num_bytes, now_s, expires_s)
        except BaseException:
            self._files.path(self.id).unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Let go of it; what is not published is gone."""
        try:
            os.close(self._number)
            self._path.unlink(missing_ok=True)
        finally:
            self._files.release(self.tenant, self._room_bytes)


class Files:
    """The table of files and the folder in which they lie. Blocking calls, for worker threads."""

    def __init__(
        self, database: Database, *, max_bytes: int, max_tenant_bytes: int, max_tenant_files: int
    ) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._max_tenant_bytes = max_tenant_bytes
        self._max_tenant_files = max_tenant_files
        self._lock = Lock()
        self._coming: Counter[str] = Counter()  # room that is kept for uploads, by tenant
        self.num_bytes = 0
        self._recount()

    def path(self, file_id: str) -> Path:
        """Where a file lies whose id we have made."""
        return self._database.files / file_id

    def begin(self, tenant: str, num_bytes: int, *, is_known: bool = True) -> Upload:
        """A new file of that tenant, of at most so many bytes. Raises NoSpace.

        Where it is not known how many there will be, it gets as much of that as there is room for.
        """
        with self._lock:
            room = self._room_bytes(tenant)
            if room <= 0 or (is_known and num_bytes > room):
                raise NoSpace(
                    f"the file has {num_bytes} bytes, but {max(0, room)} are left for this tenant; delete some"
                )
            room = min(room, num_bytes)
            upload = Upload(self, tenant, room)
            self._coming[tenant] += room
        return upload

    def release(self, tenant: str, num_bytes: int) -> None:
        """An upload is over. For `Upload`, which calls it once."""
        with self._lock:
            self._coming[tenant] -= num_bytes
            if not self._coming[tenant]:
                del self._coming[tenant]

    def _room_bytes(self, tenant: str) -> int:
        read = self._database.read
        number, used = read(
            "SELECT count(*), coalesce(sum(num_bytes), 0) FROM files WHERE tenant = ?", (tenant,)
        )[0]
        if number >= self._max_tenant_files:
            raise NoSpace(f"this tenant has {number} files, as many as it may; delete some")
        (all_bytes,) = read("SELECT coalesce(sum(num_bytes), 0) FROM files")[0]
        of_tenant = self._max_tenant_bytes - used - self._coming[tenant]
        return int(min(of_tenant, self._max_bytes - all_bytes - self._coming.total()))

    def add(
        self,
        file_id: str,
        tenant: str,
        name: str,
        purpose: str,
        num_bytes: int,
        now_s: int,
        expires_s: int | None,
    ) -> File:
        """A file that lies there already."""
        with self._database.change() as database:
            database.execute(
                "INSERT INTO files (id, tenant, name, purpose, num_bytes, created_s, expires_s) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET num_bytes = excluded.num_bytes",
                (file_id, tenant, safe_name(name), purpose, num_bytes, now_s, expires_s),
            )
            row = database.execute("SELECT * FROM files WHERE id = ?", (file_id,)).fetchone()
        self._recount()
        return File(*row)

    def find(self, file_id: str, tenant: str) -> File:
        """Raises NoSuchObject, for another tenant's too."""
        rows = self._database.read("SELECT * FROM files WHERE id = ? AND tenant = ?", (file_id, tenant))
        if not rows:
            raise no_file(file_id)
        return File(*rows[0])

    def page(
        self,
        tenant: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 100,
        is_descending: bool = True,
    ) -> tuple[list[File], bool]:
        """Files of a tenant behind `after` in that order, and whether there are more. Raises NoSuchObject."""
        order, compared = ("DESC", "<") if is_descending else ("ASC", ">")
        conditions, values = ["tenant = ?"], [tenant]
        wanted: list[Any] = [*values]
        if purpose is not None:
            conditions.append("purpose = ?")
            wanted.append(purpose)
        if after is not None:
            conditions.append(f"number {compared} ?")
            wanted.append(self.find(after, tenant).number)
        where = " AND ".join(conditions)
        rows = self._database.read(
            f"SELECT * FROM files WHERE {where} ORDER BY number {order} LIMIT ?",  # noqa: S608  only our own words
            [*wanted, limit + 1],
        )
        return [File(*row) for row in rows[:limit]], len(rows) > limit

    def delete(self, file_id: str, tenant: str) -> None:
        """Raises NoSuchObject, or InUse while a batch reads it."""
        with self._database.change() as database:
            row = database.execute(
                "SELECT id FROM batches WHERE NOT is_over AND input = ? AND tenant = ?", (file_id, tenant)
            ).fetchone()
            if row is not None:
                raise InUse(
                    f"file {file_id!r} is read by batch {row[0]!r}, which is not over; cancel that first"
                )
            deleted = database.execute(
                "DELETE FROM files WHERE id = ? AND tenant = ?", (file_id, tenant)
            ).rowcount
        if not deleted:
            raise no_file(file_id)
        self.path(file_id).unlink(missing_ok=True)
        self._recount()

    def expire(self, now_s: int) -> int:
        """Delete what has expired and is read by no batch, some at a time; how many."""
        with self._database.change() as database:
            rows = database.execute(
                "SELECT id FROM files WHERE expires_s <= ? AND id NOT IN "
                "(SELECT input FROM batches WHERE NOT is_over) LIMIT ?",
                (now_s, EXPIRED_AT_ONCE),
            ).fetchall()
            database.executemany("DELETE FROM files WHERE id = ?", [(row[0],) for row in rows])
        for row in rows:
            self.path(row[0]).unlink(missing_ok=True)
        self._recount()
        return len(rows)

    def _recount(self) -> None:
        (self.num_bytes,) = self._database.read("SELECT coalesce(sum(num_bytes), 0) FROM files")[0]

    def sweep(self, kept: set[str]) -> int:
        """Remove what belongs to nothing: uploads that an earlier process did not finish; how many. `kept` stay."""
        known = kept.union(row[0] for row in self._database.read("SELECT id FROM files"))
        gone = [path for path in self._database.files.iterdir() if path.name not in known]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)


def no_file(file_id: str) -> NoSuchObject:
    error = NoSuchObject(f"no file has the id {file_id[:MAX_NAME]!r}")
    error.param = "file_id"
    return error
