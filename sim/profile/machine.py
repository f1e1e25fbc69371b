"""The machine's fingerprint: what a profile holds for. No names of hosts or people."""

import os
import platform
from hashlib import sha256
from importlib.metadata import version

import torch

from engine.execution.profile_file import MAX_TEXT, Scalar
from sim.machine import processor

ID_LENGTH = 16


def fingerprint(device: str) -> dict[str, Scalar]:
    """Processor, memory, device and the software that counts; `id` is a hash of all of it."""
    found: dict[str, Scalar] = {
        "processor": processor()[:MAX_TEXT],
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": memory_gib(),
        "device": device_name(device)[:MAX_TEXT],
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "blas": blas(),
    }
    text = "\n".join(f"{name}={value}" for name, value in found.items())
    return {"id": sha256(text.encode()).hexdigest()[:ID_LENGTH], **found}


def memory_gib() -> float | None:
    """The machine's memory, in tenths of a GiB; None where nobody tells."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def device_name(device: str) -> str:
    """What runs the passes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    return device


def blas() -> str:
    """Which library multiplies matrices on the processor."""
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return "mkl" if has_mkl else "another one"
