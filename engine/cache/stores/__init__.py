"""Where KV blocks lie outside of memory: folders, redis, S3. What is read is verified; a fault is a miss."""

from engine.cache.stores.backend import Backend, Buffer
from engine.cache.stores.extent import Record
from engine.cache.stores.faults import StoreFault
from engine.cache.stores.folder import FolderBackend
from engine.cache.stores.opening import open_store
from engine.cache.stores.store import Counters, ExtentStore, Found, Place

__all__ = [
    "Backend",
    "Buffer",
    "Counters",
    "ExtentStore",
    "FolderBackend",
    "Found",
    "Place",
    "Record",
    "StoreFault",
    "open_store",
]
