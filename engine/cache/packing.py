"""Between payloads and stores: tensors in, records out, and back. Imports torch: only where there are tensors."""

import torch
from torch import Tensor

from engine.cache.codec import FORMS, Codec, Packed
from engine.cache.stores import Record

Payload = Tensor | Packed


class TorchPacker:
    """Packs what the torch executors make. A block that stays in memory as it is made is not packed at all.

    `device` is where the hottest tier's blocks lie.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)

    def pack(self, payload: Payload, form: str, max_error: float, error: float) -> Packed:
        """The block in that form or a more exact one; what is packed already stays, unless it would get smaller."""
        if isinstance(payload, Packed):
            if FORMS.index(payload.form) >= FORMS.index(form):
                return payload
            error = max(error, payload.error)
            payload = Codec.unpack(payload)
        return Codec(form, max_error).pack(payload, error)

    def keep(self, payload: Payload, form: str, max_error: float, error: float) -> Payload:
        """The block as a tier in memory holds it: a tensor where nothing is to be made smaller."""
        if form == "raw" and isinstance(payload, Tensor):
            if payload.device.type == "cpu":
                return payload
            pinned = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
            return pinned.copy_(payload)
        return self.pack(payload, form, max_error, error)

    def unpack(self, payload: Payload) -> Tensor:
        """The block as the executor takes it, where the hottest tier is."""
        tensor = Codec.unpack(payload) if isinstance(payload, Packed) else payload
        return tensor.to(self._device, non_blocking=True)

    def record(self, packed: Packed, key: bytes, parent: bytes, space: bytes) -> Record:
        return Record(key, parent, space, packed.form, packed.dtype, packed.shape, packed.error, packed.data)

    def packed(self, record: Record) -> Packed:
        return Packed(record.form, record.dtype, record.shape, record.error, memoryview(record.data))

    def num_bytes(self, payload: Payload) -> int:
        return len(payload.data) if isinstance(payload, Packed) else payload.nbytes

    def error(self, payload: Payload) -> float:
        return payload.error if isinstance(payload, Packed) else 0.0
