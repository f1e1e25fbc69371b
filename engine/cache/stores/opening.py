"""From the settings of a tier to its store."""

from pathlib import Path
from urllib.parse import urlsplit

from engine.cache.stores.backend import Backend
from engine.cache.stores.folder import FolderBackend
from engine.cache.stores.store import ExtentStore
from engine.errors import BadSettings


def open_store(
    *,
    path: Path | str | None = None,
    url: str | None = None,
    endpoint: str | None = None,
    timeout_s: float = 10.0,
    is_shared: bool = False,
) -> ExtentStore:
    """The store in a folder, or behind redis://host:port/0 or s3://bucket/prefix; one listing is made.

    `is_shared`: the folder is mounted from elsewhere, and other machines may touch its files.
    Raises BadSettings for what cannot be a store or is in use, StoreFault when the server does not answer.
    """
    if path is not None:
        return ExtentStore(FolderBackend(Path(path).expanduser(), is_shared=is_shared))
    return ExtentStore(_behind(url or "", endpoint, timeout_s))


def _behind(url: str, endpoint: str | None, timeout_s: float) -> Backend:
    parts = urlsplit(url)
    if parts.scheme in ("redis", "rediss"):
        from engine.cache.stores.redis import RedisBackend  # noqa: PLC0415  the library is an extra

        return RedisBackend(url, timeout_s=timeout_s)
    if parts.scheme == "s3" and parts.netloc:
        from engine.cache.stores.s3 import S3Backend  # noqa: PLC0415  the library is an extra

        return S3Backend(parts.netloc, parts.path, endpoint=endpoint, timeout_s=timeout_s)
    raise BadSettings(f"url is {url!r}, but must be redis://host:port/0 or s3://bucket/prefix")
