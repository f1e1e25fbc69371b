"""Blocks of which every byte is known."""

from hashlib import blake2b

from engine.cache.stores import Record

MODEL = "org/Model-1.5:2.0"


def record(number, num_bytes=1000, space=b"s" * 16):
    """A block of which every byte follows from its number."""
    name = number.to_bytes(8, "little")
    key = blake2b(name, digest_size=16).digest()
    data = blake2b(name, digest_size=64).digest() * (num_bytes // 64 + 1)
    return Record(key, b"p" * 16, space, "int8", "bfloat16", (2, 2, 4, 16, 8), 0.25, data[:num_bytes])


def same(found, wanted):
    """Whether a block came back as it was written."""
    names = ("key", "parent", "space", "form", "dtype", "shape", "error")
    return bytes(found.data) == bytes(wanted.data) and all(
        getattr(found, name) == getattr(wanted, name) for name in names
    )
