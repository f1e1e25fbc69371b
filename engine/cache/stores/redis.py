"""Extents as values of a redis server: memory that outlives the engine, on another machine or this one.

The server may evict values as it likes (`maxmemory-policy`): what is gone is a miss.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine.cache.stores.backend import Buffer
from engine.cache.stores.faults import StoreFault
from engine.errors import BadSettings

PREFIX = "modelyard:kv:"
ASIDE = ".damaged"
RETRIES = 1
FILE = re.compile(rb"[^/]+/[0-9a-f]{16}\.kv")
SCAN_COUNT = 1_000
MAX_VALUE_BYTES = 512 << 20  # the server's own limit


class RedisBackend:
    """One database of a server, or what in it begins with a prefix. One process owns it."""

    def __init__(self, url: str, prefix: str = PREFIX, *, timeout_s: float = 10.0) -> None:
        """No connection is made yet. Raises BadSettings without the extra, or for a url that is none of redis."""
        self._prefix = prefix.encode()
        self._client, self._errors = _client(url, timeout_s)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        value = b"".join(parts)
        if len(value) > MAX_VALUE_BYTES:
            raise StoreFault(
                "full", f"an extent of {len(value):,} bytes is more than redis holds in one value"
            )
        with self._told("written"):
            is_new = self._client.set(self._key(name), value, nx=True)
        if not is_new:
            raise StoreFault("taken", f"redis has {name} already: somebody else writes under this prefix")

    def get(self, name: str, offset: int, length: int) -> Buffer | None:
        if length <= 0:
            return b""
        with self._told("read"):
            data: bytes = self._client.getrange(self._key(name), offset, offset + length - 1)
        return data or None  # an extent that ends before `offset` is as good as none

    def delete(self, name: str) -> None:
        with self._told("deleted"):
            self._client.unlink(self._key(name))

    def set_aside(self, name: str) -> None:
        key = self._key(name)
        with self._told("set aside"):
            if self._client.exists(key):
                self._client.rename(key, key + ASIDE.encode())

    def names(self) -> Iterator[tuple[str, int]]:
        found = []
        with self._told("listed"):
            pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", self._prefix) + b"*"
            for key in set(self._client.scan_iter(match=pattern, count=SCAN_COUNT)):
                name = key[len(self._prefix) :]
                if FILE.fullmatch(name) and (size := self._client.strlen(key)):
                    found.append((name.decode(), size))
        return iter(sorted(found))

    def close(self) -> None:
        self._client.close()

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn what the library raises into a StoreFault."""
        theirs, where = self._errors, f"redis could not be {what}"
        try:
            yield
        except theirs.AuthenticationError as error:
            raise StoreFault("denied", f"{where}: the server refuses the password") from error
        except (theirs.NoPermissionError, theirs.ReadOnlyError) as error:
            raise StoreFault("denied", f"{where}: {error}") from error
        except theirs.TimeoutError as error:
            raise StoreFault("timeout", f"{where}: no answer in time") from error
        except theirs.ConnectionError as error:
            raise StoreFault("unreachable", f"{where}: {error}") from error
        except theirs.OutOfMemoryError as error:
            raise StoreFault("full", f"{where}: the server has no memory left") from error
        except (theirs.RedisError, OSError) as error:
            raise StoreFault("io", f"{where}: {error}") from error


def _client(url: str, timeout_s: float) -> tuple[Any, Any]:
    """A client whose patience is bounded, with connections for several threads, and the library's errors."""
    try:
        import redis  # noqa: PLC0415  the library is an extra
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415
    except ImportError as error:
        raise BadSettings("a tier behind redis:// needs redis: pip install 'modelyard[redis]'") from error
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), RETRIES),
        )
    except ValueError as error:
        raise BadSettings(f"url is not one of redis (redis://host:port/0): {error}") from error
    return client, redis.exceptions
