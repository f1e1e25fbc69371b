"""The torch executor: real forward passes on real KV, in measured time.

A sequence prefills into a buffer of its own. When it begins to decode, its KV moves into a rack: rows of one
length, filled from the front without gaps, so that a decode step reads all its sequences as one view and copies
nothing. Racks double in length (256, 512, ...) and a sequence moves on when it outgrows its row, so unequal lengths
share a step, at most half of a longer row idles, and memory follows what is in use, not what was asked for.
"""

from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from engine.clock import stopwatch_ns
from engine.errors import BadModel, BadSettings
from engine.execution.decoder import Decoder, Rows
from engine.execution.executor import Batch, Chunk, KVBlock, Machine, Sequence, StepResult, executors
from engine.execution.loading import load_weights
from engine.execution.sampling import Sampler, Wish
from engine.execution.weights import quantised, seeded_weights
from engine.formats import open_checkpoint
from engine.settings import Architecture, ModelSettings, at_least, require

SHORTEST_ROW_TOKENS = 256
FIRST_GUESS_NS = 1_000_000.0  # what a token of prefill takes, before one was seen
WORTH_LEARNING_TOKENS = 16
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}
CONVERTED_FOLDER = ".modelyard"


@dataclass(slots=True, kw_only=True)
class TorchOptions:
    """Where the passes run and in which numbers. `threads` is torch's own setting and holds for the whole process.

    One thread is the default: passes this small gain little from a second one, and leave it to the neighbours.
    `weights` are float32 (exact), bfloat16, float16, or int8: projections with one scale a row, the rest in float32.
    Converted weights of a GGUF file are kept beside it, in `.modelyard`, unless `keep_converted` is off; or in
    `converted_folder`.
    """

    device: str = "cpu"
    threads: int = 1
    kv_capacity_tokens: int = 131_072
    weights: str = "float32"
    keep_converted: bool = True
    converted_folder: str | None = None

    def __post_init__(self) -> None:
        at_least("executor.threads", self.threads, 1)
        at_least("executor.kv_capacity_tokens", self.kv_capacity_tokens, 1)
        require("executor.weights", self.weights, self.weights in DTYPES, f"one of {', '.join(DTYPES)}")


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
    """Runs a model from disk, or a stand-in with seeded weights where the model has no path."""

    Options = TorchOptions
    is_modelled = False
    follows_grammars = True
    keeps_blocks = True

    def __init__(self, machine: Machine, options: TorchOptions) -> None:
        """Raises BadSettings for a device that is not there, BadModel for weights that are no good."""
        self._device = usable_device(options.device)
        if torch.get_num_threads() != options.threads:
            torch.set_num_threads(options.threads)
        built = built_model(machine, options, self._device)
        self._model, self.weights_id, self.keep = built.model, built.weights_id, built.keep
        self._shape = shape = self._model.shape
        self._dtype = self._model.dtype
        self.vocab = shape.vocab
        self.context_tokens = shape.context_tokens
        self.kv_capacity_tokens = options.kv_capacity_tokens
        self.kv_value_bytes = float(self._dtype.itemsize)
        self.kv_bytes_per_token = shape.kv_values_per_token * self._dtype.itemsize
        self._prefill_token_ns = FIRST_GUESS_NS  # learned from steps that only prefill
        self._blocks_device = self._device if machine.keeps_on_device else torch.device("cpu")
        self._clock = machine.clock
        self._sampler = Sampler()
        self._wishes: dict[int, Wish] = {}  # of sequences that run, by id
        self._buffers: dict[int, Tensor] = {}  # of sequences that prefill, by id
        self._racks: dict[int, Rack] = {}  # of sequences that decode, by length
        self._homes: dict[int, int] = {}  # the rack's length of each of them, by id
        self._owed_ns = 0

    async def step(self, batch: Batch) -> StepResult:
        result, duration_ns = await self._clock.compute(lambda: self._forward(batch))
        if not batch.decodes and batch.num_tokens >= WORTH_LEARNING_TOKENS:
            self._prefill_token_ns += 0.2 * (duration_ns / batch.num_tokens - self._prefill_token_ns)
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
            blocks = [self._copied_out(kv[..., begin:end, :]) for begin, end in spans]
        self._forget(sequence)
        self._wait_for_device()
        took_ns = stopwatch_ns() - begun_ns
        passed_ns = self._clock.now_ns() - clock_ns  # on a wall clock that is all of it: nothing is owed
        self._owed_ns += max(0, took_ns - passed_ns)
        return blocks

    @torch.inference_mode()
    def release(self, sequence: Sequence) -> None:
        self._forget(sequence)

    def prefill_ns(self, start: int, end: int) -> int:
        return round((end - start) * self._prefill_token_ns)

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: TorchOptions) -> int:
        shape, size = shape_of(model), DTYPES[options.weights].itemsize
        if options.weights != "int8":
            return shape.parameters * size
        tables = shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)
        return tables * size + shape.parameters - tables

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int:
        return shape_of(model).vocab

    def reset(self) -> None:
        self._wishes.clear()
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
        """One pass for all who decode, one for each chunk of prefill, and one choice for all who get a token."""
        ending = [chunk.sequence for chunk in batch.chunks if chunk.is_last]
        hidden = [self._decode(batch.decodes)] if batch.decodes else []
        hidden += [last for chunk in batch.chunks if (last := self._prefill(chunk)) is not None]
        result = StepResult(0, [], [])
        tokens = self._choose(hidden, [*batch.decodes, *ending], result) if hidden else []
        self._wait_for_device()
        result.decode_tokens, first = tokens[: len(batch.decodes)], iter(tokens[len(batch.decodes) :])
        result.chunk_tokens = [next(first) if chunk.is_last else None for chunk in batch.chunks]
        return result

    def _choose(self, hidden: list[Tensor], sequences: list[Sequence], result: StepResult) -> list[int]:
        """The next token of each sequence, whose hidden states stand in that order."""
        logits = self._model.logits(torch.cat(hidden) if len(hidden) > 1 else hidden[0])
        choices = self._sampler.choose(logits, [self._wish(each) for each in sequences])
        for sequence, choice in zip(sequences, choices, strict=True):
            if choice.logprobs is not None:
                result.logprobs[sequence.id] = choice.logprobs
            if choice.error is not None:
                result.errors[sequence.id] = choice.error
        return [choice.token for choice in choices]

    def _prefill(self, chunk: Chunk) -> Tensor | None:
        """One chunk of one sequence; the hidden state (1, hidden) of its last token when that ends the prefill."""
        sequence, start, count = chunk.sequence, chunk.sequence.computed_tokens, chunk.num_tokens
        buffer = self._buffers.get(sequence.id)
        if buffer is None:
            buffer = self._buffers[sequence.id] = self._new_buffer(sequence)
        tokens = torch.tensor(sequence.tokens[start : start + count], device=self._device)
        hidden = self._model.prefill(tokens, buffer, start)
        return hidden[-1:] if chunk.is_last else None

    def _decode(self, sequences: list[Sequence]) -> Tensor:
        """Hidden states (B, hidden) of the latest token of each sequence, in one pass over all racks."""
        newcomers = [sequence for sequence in sequences if sequence.id not in self._homes]
        for sequence in (*self._in_racks(), *newcomers):
            if sequence.computed_tokens >= self._homes.get(sequence.id, 0):
                self._move_to_rack(sequence)
        in_order = self._in_racks()
        tokens = torch.tensor([sequence.new_tokens[-1] for sequence in in_order], device=self._device)
        hidden = self._model.decode(tokens, [self._rows(rack) for rack in self._racks.values()])
        places = {sequence.id: place for place, sequence in enumerate(in_order)}
        order = [places[sequence.id] for sequence in sequences]
        return hidden if order == list(range(len(in_order))) else hidden[order]

    def _in_racks(self) -> list[Sequence]:
        """Every sequence that decodes, in the order of the forward pass. One that pauses repeats its last token."""
        return [sequence for rack in self._racks.values() for sequence in rack.sequences]

    def _rows(self, rack: Rack) -> Rows:
        """What the forward pass needs of a rack, for the token that each of its sequences gets now."""
        lengths = [sequence.computed_tokens for sequence in rack.sequences]
        return Rows.of(rack.kv, lengths, self._shape.window_tokens)

    def _wish(self, sequence: Sequence) -> Wish:
        wish = self._wishes.get(sequence.id)
        if wish is None:
            wish = self._wishes[sequence.id] = Wish(sequence.sampling, sequence.seed, sequence)
        return wish

    def _wait_for_device(self) -> None:
        """A GPU works behind our back: what is measured must be its work, not the handing over of it."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def _copied_out(self, kv: Tensor) -> Tensor:
        """KV of a block on its own: on the device or in memory, pinned where there is a GPU, as the cache wants."""
        if self._blocks_device == self._device:
            return kv.clone(memory_format=torch.contiguous_format)
        block = torch.empty(kv.shape, dtype=kv.dtype, pin_memory=self._device.type == "cuda")
        return block.copy_(kv, non_blocking=True)

    def _new_buffer(self, sequence: Sequence) -> Tensor:
        """KV for the prefill of a sequence, its cached prefix copied in."""
        buffer = self._empty(len(sequence.tokens))
        if sequence.prefix:
            self._copy_in(sequence.prefix, buffer[..., : sequence.cached_tokens, :])
        return buffer

    def _copy_in(self, blocks: "Listing[Tensor]", kv: Tensor) -> None:
        """Lay blocks one after the other; from pinned memory the copies run behind one another without a wait."""
        if blocks[0].device == kv.device:
            torch.cat(list(blocks), dim=-2, out=kv)
            return
        start = 0
        for block in blocks:
            end = start + block.shape[-2]
            kv[..., start:end, :].copy_(block, non_blocking=True)
            start = end

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
        size = (shape.layers, 2, shape.kv_heads, length, shape.head_dim)
        return torch.empty(size, dtype=self._dtype, device=self._device)

    def _zeros(self, rows: int, length: int) -> Tensor:
        """KV of a rack. A mask does not hide a NaN that happens to lie in fresh memory: 0 x NaN is NaN."""
        shape = self._shape
        size = (rows, shape.layers, 2, shape.kv_heads, length, shape.head_dim)
        return torch.zeros(size, dtype=self._dtype, device=self._device)

    def _kv(self, sequence: Sequence) -> Tensor | None:
        """The KV of a sequence, (layers, 2, G, S, D), as a view; None when it never ran."""
        length = self._homes.get(sequence.id)
        if length is None:
            return self._buffers.get(sequence.id)
        rack = self._racks[length]
        return rack.kv[rack.sequences.index(sequence)]

    def _forget(self, sequence: Sequence) -> None:
        self._wishes.pop(sequence.id, None)
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


def shape_of(model: ModelSettings) -> Architecture:
    """The architecture that is run. Raises BadModel for one that our decoder does not know."""
    if model.path is None and model.stand_in is not None:
        return model.stand_in
    if model.architecture is None:
        raise BadModel(model.path or model.name, "its architecture is not one that our decoder runs")
    return model.architecture


@dataclass(slots=True)
class Built:
    """A model that can run. `weights_id` tells its weights from others; `keep` writes what was converted for it."""

    model: Decoder
    weights_id: str
    keep: Callable[[], object] | None = None


def built_model(machine: Machine, options: TorchOptions, device: torch.device) -> Built:
    """The model of a machine, shared by all replicas that run it."""
    key = f"torch {machine.model.key} on {device}"
    if key in machine.loaded:
        built = machine.loaded[key]
        assert isinstance(built, Built)
        return replace(built, keep=None)  # who built it sees to that
    built = machine.loaded[key] = _build(machine, options, device)
    return built


@torch.inference_mode()
def _build(machine: Machine, options: TorchOptions, device: torch.device) -> Built:
    model, in_int8 = machine.model, options.weights == "int8"
    if model.path is not None:
        path, dtype = Path(model.path), DTYPES[options.weights]
        folder = converted_folder(path, options)
        loaded = load_weights(open_checkpoint(path), device, dtype, folder, in_int8=in_int8)
        weights_id = f"{loaded.weights_hash} as {options.weights}"
        return Built(Decoder(loaded.shape, loaded.weights), weights_id, loaded.keep)
    shape, seed = shape_of(model), weights_seed(model, machine.seed)
    weights = seeded_weights(shape, seed, device)
    return Built(
        Decoder(shape, quantised(weights) if in_int8 else weights), f"seed {seed} as {options.weights}"
    )


def converted_folder(path: Path, options: TorchOptions) -> Path | None:
    """Where converted weights are kept; None: nowhere."""
    if not options.keep_converted:
        return None
    if options.converted_folder is not None:
        return Path(options.converted_folder)
    return path.parent / CONVERTED_FOLDER


def weights_seed(model: ModelSettings, seed: int) -> int:
    """The seed of a model's weights: another one for each model, version and run."""
    text = f"{model.name}@{model.version}/{seed}"
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1
