"""The torch executor: real forward passes on real KV, in measured time.

A sequence prefills into a buffer of its own. When it begins to decode, its KV moves into a rack: rows of one
length, filled from the front without gaps, so that a decode step reads all its sequences as one view and copies
nothing. Racks double in length (256, 512, ...) and a sequence moves on when it outgrows its row, so unequal lengths
share a step, at most half of a longer row idles, and memory follows what is in use, not what was asked for.
"""

from dataclasses import dataclass, field
from hashlib import sha256

import torch
from torch import Tensor

from engine.clock import stopwatch_ns
from engine.errors import BadSettings
from engine.execution.executor import Batch, Chunk, KVBlock, Machine, Sequence, StepResult, executors
from engine.execution.llama import Llama, Rows, seeded_weights
from engine.settings import Architecture, ModelSettings, at_least

SHORTEST_ROW_TOKENS = 256
MASKED_TOKENS = 512
"""Tokens of one pass under a mask. 16k tokens after one cached block: 3.6 s and 72 MiB; in one pass 7 s, 1.9 GiB."""


@dataclass(slots=True, kw_only=True)
class TorchOptions:
    """Where the passes run. `threads` is torch's own setting and holds for the whole process.

    One thread is the default: passes this small gain little from a second one, and leave it to the neighbours.
    """

    device: str = "cpu"
    threads: int = 1
    kv_capacity_tokens: int = 131_072

    def __post_init__(self) -> None:
        at_least("executor.threads", self.threads, 1)
        at_least("executor.kv_capacity_tokens", self.kv_capacity_tokens, 1)


@dataclass(slots=True)
class Rack:
    """KV rows of `length` tokens: (rows, layers, 2, G, length, D). Row i belongs to `sequences[i]`."""

    kv: Tensor
    sequences: list[Sequence] = field(default_factory=list)

    def add(self, sequence: Sequence, kv: Tensor) -> None:
        """Copy in the KV of a sequence, (layers, 2, G, S, D) with S at most `length`."""
        row = len(self.sequences)
        if row == len(self.kv):
            self._make_room()
        self.kv[row, :, :, :, : kv.shape[-2]] = kv
        self.sequences.append(sequence)

    def remove(self, row: int) -> None:
        """Free a row; the last one moves into the gap."""
        last = self.sequences.pop()
        if row < len(self.sequences):
            self.kv[row] = self.kv[len(self.sequences)]
            self.sequences[row] = last
        if 0 < 2 * len(self.sequences) < len(self.kv):
            self._make_room()

    def _make_room(self) -> None:
        """Rows for those who are here and half as many more."""
        count = len(self.sequences)
        kv = self.kv.new_zeros((count + count // 2 + 1, *self.kv.shape[1:]))
        kv[:count] = self.kv[:count]
        self.kv = kv


@executors("torch")
class TorchExecutor:
    """Runs the stand-in of a model with seeded weights, greedily. float32."""

    Options = TorchOptions

    def __init__(self, machine: Machine, options: TorchOptions) -> None:
        """Raises BadSettings for a device that is not there."""
        self._shape = shape = machine.model.stand_in
        self._device = usable_device(options.device)
        if torch.get_num_threads() != options.threads:
            torch.set_num_threads(options.threads)
        self.vocab = shape.vocab
        self.context_tokens = shape.context_tokens
        self.kv_capacity_tokens = options.kv_capacity_tokens
        self.kv_bytes_per_token = shape.kv_values_per_token * torch.float32.itemsize
        self._clock = machine.clock
        self._model = loaded_model(machine, self._device)
        self._buffers: dict[int, Tensor] = {}  # of sequences that prefill, by id
        self._racks: dict[int, Rack] = {}  # of sequences that decode, by length
        self._homes: dict[int, int] = {}  # the rack's length of each of them, by id
        self._owed_ns = 0

    async def step(self, batch: Batch) -> StepResult:
        result, duration_ns = await self._clock.compute(lambda: self._forward(batch))
        owed_ns, self._owed_ns = self._owed_ns, 0
        await self._clock.sleep(owed_ns)
        result.duration_ns = duration_ns + owed_ns
        return result

    @torch.inference_mode()
    def retire(
        self, sequence: Sequence, first_block: int, last_block: int, block_tokens: int
    ) -> list[KVBlock]:
        clock_ns, begun_ns = self._clock.now_ns(), stopwatch_ns()
        kv = self._kv(sequence)
        blocks = []
        if kv is not None:
            spans = [
                (number * block_tokens, (number + 1) * block_tokens)
                for number in range(first_block, last_block)
            ]
            blocks = [
                kv[..., begin:end, :].clone(memory_format=torch.contiguous_format) for begin, end in spans
            ]
        self._forget(sequence)
        self._wait_for_device()
        took_ns = stopwatch_ns() - begun_ns
        passed_ns = self._clock.now_ns() - clock_ns  # on a wall clock that is all of it: nothing is owed
        self._owed_ns += max(0, took_ns - passed_ns)
        return blocks

    def reset(self) -> None:
        self._buffers.clear()
        self._racks.clear()
        self._homes.clear()
        self._owed_ns = 0

    @property
    def held_bytes(self) -> int:
        """The memory that KV takes at present, idle parts of buffers and rows included."""
        tensors = [*self._buffers.values(), *(rack.kv for rack in self._racks.values())]
        return sum(tensor.nbytes for tensor in tensors)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> StepResult:
        decode_tokens = self._decode(batch.decodes) if batch.decodes else []
        chunk_tokens = [self._prefill(chunk) for chunk in batch.chunks]
        self._wait_for_device()
        return StepResult(0, chunk_tokens, decode_tokens)

    def _prefill(self, chunk: Chunk) -> int | None:
        """One chunk of one sequence; its first token when that ends the prefill."""
        sequence, start, count = chunk.sequence, chunk.sequence.computed_tokens, chunk.num_tokens
        buffer = self._buffers.get(sequence.id)
        if buffer is None:
            buffer = self._buffers[sequence.id] = self._new_buffer(sequence)
        tokens = torch.tensor(sequence.tokens[start : start + count], device=self._device)
        for part in torch.split(tokens, MASKED_TOKENS if start else count):
            hidden = self._model.prefill(part, buffer, start)
            start += len(part)
        return int(self._model.logits(hidden[-1]).argmax()) if chunk.is_last else None

    def _decode(self, sequences: list[Sequence]) -> list[int]:
        """One token for each sequence, in one forward pass over all racks."""
        newcomers = [sequence for sequence in sequences if sequence.id not in self._homes]
        for sequence in (*self._in_racks(), *newcomers):
            if sequence.computed_tokens >= self._homes.get(sequence.id, 0):
                self._move_to_rack(sequence)
        in_order = self._in_racks()
        tokens = torch.tensor([sequence.new_tokens[-1] for sequence in in_order], device=self._device)
        hidden = self._model.decode(tokens, [self._rows(rack) for rack in self._racks.values()])
        chosen = self._model.logits(hidden).argmax(dim=-1).tolist()
        by_id = {sequence.id: token for sequence, token in zip(in_order, chosen, strict=True)}
        return [by_id[sequence.id] for sequence in sequences]

    def _in_racks(self) -> list[Sequence]:
        """Every sequence that decodes, in the order of the forward pass. One that pauses repeats its last token."""
        return [sequence for rack in self._racks.values() for sequence in rack.sequences]

    def _rows(self, rack: Rack) -> Rows:
        """What the forward pass needs of a rack, for the token that each of its sequences gets now."""
        lengths = [sequence.computed_tokens for sequence in rack.sequences]
        positions = torch.tensor(lengths, device=self._device)
        longest = max(lengths) + 1
        is_free = torch.arange(longest, device=self._device) > positions[:, None]
        mask = torch.where(is_free, -torch.inf, 0.0)
        index = torch.arange(len(lengths), device=self._device)
        return Rows(rack.kv, positions, index, mask[:, None, None], longest)

    def _wait_for_device(self) -> None:
        """A GPU works behind our back: what is measured must be its work, not the handing over of it."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def _new_buffer(self, sequence: Sequence) -> Tensor:
        """KV for the prefill of a sequence, its cached prefix copied in."""
        buffer = self._empty(len(sequence.tokens))
        if sequence.prefix:
            torch.cat(list(sequence.prefix), dim=-2, out=buffer[..., : sequence.cached_tokens, :])
        return buffer

    def _move_to_rack(self, sequence: Sequence) -> None:
        """Out of the buffer or the row that it has filled, into a row where the next token fits too."""
        kv, length = self._kv(sequence), SHORTEST_ROW_TOKENS
        assert kv is not None
        while length <= sequence.computed_tokens:
            length *= 2
        rack = self._racks.get(length)
        if rack is None:
            rack = self._racks[length] = Rack(self._zeros(1, length))
        rack.add(sequence, kv)
        self._forget(sequence)  # only now: another row may move to where `kv` was
        self._homes[sequence.id] = length

    def _empty(self, length: int) -> Tensor:
        """KV of one sequence that is written before it is read."""
        shape = self._shape
        return torch.empty((shape.layers, 2, shape.kv_heads, length, shape.head_dim), device=self._device)

    def _zeros(self, rows: int, length: int) -> Tensor:
        """KV of a rack. A mask does not hide a NaN that happens to lie in fresh memory: 0 x NaN is NaN."""
        shape = self._shape
        return torch.zeros(
            (rows, shape.layers, 2, shape.kv_heads, length, shape.head_dim), device=self._device
        )

    def _kv(self, sequence: Sequence) -> Tensor | None:
        """The KV of a sequence, (layers, 2, G, S, D), as a view; None when it never ran."""
        length = self._homes.get(sequence.id)
        if length is None:
            return self._buffers.get(sequence.id)
        rack = self._racks[length]
        return rack.kv[rack.sequences.index(sequence)]

    def _forget(self, sequence: Sequence) -> None:
        self._buffers.pop(sequence.id, None)
        length = self._homes.pop(sequence.id, None)
        if length is not None:
            rack = self._racks[length]
            rack.remove(rack.sequences.index(sequence))
            if not rack.sequences:
                del self._racks[length]


def usable_device(name: str) -> torch.device:
    """The torch device of that name. Raises BadSettings when this machine or this torch does not have it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" makes tensors too, but nothing can be read from them
    except (RuntimeError, AssertionError, ImportError) as error:
        raise BadSettings(
            f"executor.device is {name!r}, but must be a device of this machine and this build of torch, such as cpu"
        ) from error
    return device


def loaded_model(machine: Machine, device: torch.device) -> Llama:
    """The model of a machine, its weights shared with all machines of the engine that run it."""
    model = machine.model
    key = f"torch {model.name}@{model.version} on {device}"
    if key not in machine.loaded:
        machine.loaded[key] = _build(model.stand_in, weights_seed(model, machine.seed), device)
    built = machine.loaded[key]
    assert isinstance(built, Llama)
    return built


def weights_seed(model: ModelSettings, seed: int) -> int:
    """The seed of a model's weights: another one for each model, version and run."""
    text = f"{model.name}@{model.version}/{seed}"
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


@torch.inference_mode()
def _build(shape: Architecture, seed: int, device: torch.device) -> Llama:
    return Llama(shape, seeded_weights(shape, seed, device))
