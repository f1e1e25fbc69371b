"""Which requests a trace has, in one word: runs that met the same traffic have the same."""

from hashlib import sha256

import numpy as np

from sim.traffic.trace import Trace

COLUMNS = (
    "arrival_ns",
    "prompt_tokens",
    "output_tokens",
    "prefix",
    "model_of",
    "tenant_of",
    "session",
    "after",
    "think_ns",
    "priority_of",
    "block_ids",
    "block_end",
)


def fingerprint(trace: Trace) -> str:
    """SHA-256 over all that was drawn, as sixteen digits; names of models and tenants may differ. 30 ms a million."""
    hasher = sha256(f"{trace.seed}/{trace.vocab}/{trace.id_tokens}".encode())
    for name in COLUMNS:
        column = getattr(trace, name)
        hasher.update(name.encode() + b"\0")
        if column is not None:
            hasher.update(np.ascontiguousarray(column).tobytes())
    for template in trace.prefixes:
        hasher.update(np.ascontiguousarray(template).tobytes())
    return hasher.hexdigest()[:16]
