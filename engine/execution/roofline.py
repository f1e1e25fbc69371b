"""The roofline executor: what a step would take on an accelerator, from its datasheet alone. No tensors."""

from dataclasses import dataclass

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from engine.execution.executor import Batch, KVBlock, Machine, Sequence, executors
from engine.execution.modelled import TICK_BITS, TICKS_PER_NS, Even, times
from engine.settings import Architecture, ModelSettings, at_least, require

ENDLESS = 1 << 40  # steps


@dataclass(slots=True, kw_only=True)
class RooflineOptions:
    """How much of the datasheet is reached, and what the host adds to each step.

    The defaults are the usual range of published serving measurements, not a fit: dense matrix products of
    prefill reach about half of the peak, streaming reads about four fifths, and a step costs the host some
    hundred microseconds. `kv_share` of the memory that the weights leave free holds KV.
    """

    compute_efficiency: float = 0.5
    memory_efficiency: float = 0.8
    overhead_us: float = 200.0
    kv_share: float = 0.9

    def __post_init__(self) -> None:
        for name in ("compute_efficiency", "memory_efficiency", "kv_share"):
            value = getattr(self, name)
            require(f"executor.{name}", value, 0 < value <= 1, "above 0 and at most 1")
        at_least("executor.overhead_us", self.overhead_us, 0)


class RooflineExecutor(Even):
    """max(compute, memory) + overhead (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009).

    compute = (2 P t + 4 L H D sum(t_i c_i)) / (FLOP/s x efficiency): two operations a weight and token (Kaplan et
    al., Scaling Laws for Neural Language Models, arXiv 2001.08361, section 2.1; here of all weights), and for each of
    the t_i new tokens of a sequence two products of H D numbers with each of its c_i keys and values in L layers
    (c_i: the mean context of these tokens).
    memory = (weights + KV read and written) / (bytes/s x efficiency): the weights once a step, the KV of each
    sequence once.
    KV that comes from the cache or goes there crosses the link: bytes / link bandwidth, added to the step; not where
    the cache's hottest tier is the device's own memory.
    """

    Options = RooflineOptions

    def __init__(self, machine: Machine, options: RooflineOptions) -> None:
        """Raises BadSettings when the weights leave no room for KV on this hardware."""
        super().__init__(machine.clock)
        model, hardware = machine.model, machine.hardware
        shape = shape_of(model)
        self.vocab = shape.vocab
        self.context_tokens = shape.context_tokens
        self.kv_bytes_per_token = max(1, round(shape.kv_values_per_token * model.kv_bytes))
        self.kv_value_bytes = model.kv_bytes
        weights_bytes = self.weights_bytes(model, options)
        free_bytes = (hardware.memory_bytes - weights_bytes) * options.kv_share
        self.kv_capacity_tokens = int(free_bytes // self.kv_bytes_per_token)
        if self.kv_capacity_tokens < 1:
            raise BadSettings(
                f"{model.name} weighs {weights_bytes / 1e9:.1f} GB and leaves no room for KV in the "
                f"{hardware.memory_bytes / 1e9:.1f} GB of {hardware.name}; choose larger hardware or a smaller model"
            )
        ticks_per_flop = NS_PER_S * TICKS_PER_NS / (hardware.flops * options.compute_efficiency)
        ticks_per_byte = NS_PER_S * TICKS_PER_NS / (hardware.memory_bytes_per_s * options.memory_efficiency)
        crossing_bytes = 0 if machine.keeps_on_device else self.kv_bytes_per_token
        # in whole ticks, so that sums are exact
        self._token = round(2 * shape.parameters * ticks_per_flop)
        self._pair = round(4 * shape.layers * shape.heads * shape.head_dim * ticks_per_flop)
        self._weights = round(weights_bytes * ticks_per_byte)
        self._kv_token = round(self.kv_bytes_per_token * ticks_per_byte)
        self._link_token = round(crossing_bytes * NS_PER_S * TICKS_PER_NS / hardware.link_bytes_per_s)
        self._overhead = round(options.overhead_us * 1_000 * TICKS_PER_NS)
        self._owed = 0

    def ticks(self, batch: Batch) -> int:
        """What the step will take. See the formula of the class."""
        tokens = len(batch.decodes)
        pairs = kv_tokens = batch.context_tokens() + tokens
        loaded_tokens = 0
        for chunk in batch.chunks:
            before, new = chunk.sequence.computed_tokens, chunk.num_tokens
            tokens += new
            pairs += new * before + new * (new + 1) // 2
            kv_tokens += before + new
            if before == chunk.sequence.cached_tokens:
                loaded_tokens += before
        compute = times(tokens, self._token) + times(pairs, self._pair)
        memory = self._weights + times(kv_tokens, self._kv_token)
        longer = compute if compute > memory else memory  # noqa: FURB136  max() costs eight times as much
        return longer + times(loaded_tokens, self._link_token) + self._owed + self._overhead

    def ramp(self, batch: Batch) -> tuple[int, int, int, int]:
        tokens = len(batch.decodes)
        context = batch.context_tokens() + tokens
        compute, compute_growth = (
            times(tokens, self._token) + times(context, self._pair),
            times(tokens, self._pair),
        )
        memory, memory_growth = self._weights + times(context, self._kv_token), times(tokens, self._kv_token)
        steps = ENDLESS
        if compute > memory:
            if memory_growth > compute_growth:  # the steps before the other line is the longer one
                steps = (compute - memory) // (memory_growth - compute_growth) + 1
            return self._owed, compute + self._overhead, compute_growth, steps
        if compute_growth > memory_growth:
            steps = (memory - compute) // (compute_growth - memory_growth) + 1
        return self._owed, memory + self._overhead, memory_growth, steps

    def stepped(self, steps: int) -> None:
        self.num_steps += steps
        self._owed = 0

    def retire(
        self, sequence: Sequence, first_block: int, last_block: int, block_tokens: int
    ) -> list[KVBlock]:
        self._owed += (last_block - first_block) * block_tokens * self._link_token
        return [None] * (last_block - first_block)

    def prefill_ns(self, start: int, end: int) -> int:
        new = end - start
        compute = new * self._token + (new * start + new * (new + 1) // 2) * self._pair
        memory = self._weights + end * self._kv_token
        return max(compute, memory) + self._overhead >> TICK_BITS

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: RooflineOptions) -> int:
        return round(shape_of(model).parameters * model.weight_bytes)

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int:
        return shape_of(model).vocab

    def reset(self) -> None:
        self._owed = 0


executors("roofline")(RooflineExecutor)


def shape_of(model: ModelSettings) -> Architecture:
    """The full-size architecture. Raises BadSettings for a model of which it is not known."""
    if model.architecture is None:
        raise BadSettings(
            f"the architecture of {model.name!r} is not known, so that no formula tells its times"
        )
    return model.architecture
