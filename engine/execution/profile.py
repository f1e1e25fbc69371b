"""The profile executor: what a step took on a machine where it was measured, without the machine. No tensors."""

from collections.abc import Sequence as Listing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from engine.errors import BadSettings, LoadFailed
from engine.execution.executor import Batch, KVBlock, Machine, Sequence, executors
from engine.execution.modelled import Durations, Modelled
from engine.execution.profile_file import Profile, read_profile, require_same
from engine.execution.terms import NUM_FIXED, TERMS, Floats, counts, counts_of_prefill, parts_ahead
from engine.settings import Architecture, ModelSettings, at_least

SHIPPED = Path(__file__).parent / "profiles"
"""Where profiles lie that come with the package, each called like its model."""

GOLDEN, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = (1 << 64) - 1


@dataclass(slots=True, kw_only=True)
class ProfileOptions:
    """Which profile: a file, or a folder with a file MODEL.json for each model; None: those that come along.

    With `spread` each step differs from its mean as measured steps did. The host adds `overhead_us` to each step.
    `copies`: what copying KV out takes when a sequence ends is charged to the next step, as torch does it.
    `kv_capacity_tokens` None: as much KV as there was when it was measured.
    """

    path: str | None = None
    spread: bool = True
    overhead_us: float = 0.0
    copies: bool = True
    kv_capacity_tokens: int | None = None

    def __post_init__(self) -> None:
        at_least("executor.overhead_us", self.overhead_us, 0)
        if self.kv_capacity_tokens is not None:
            at_least("executor.kv_capacity_tokens", self.kv_capacity_tokens, 1)
        if self.path is not None and not Path(self.path).is_dir():
            read_profile(self.path)


@executors("profile")
class ProfileExecutor(Modelled):
    """A sum of terms with measured costs, times the ratio of some measured step to what was predicted of it.

    step = (sum of cost x count over `TERMS`) x ratio + overhead + what copying out since the last step took.
    Which ratio is a hash of seed, model, replica and the number of the step (SplitMix64: Steele, Lea, Flood, Fast
    splittable pseudorandom number generators, OOPSLA 2014): the same whether steps are foreseen or taken one by one.
    """

    Options = ProfileOptions

    def __init__(self, machine: Machine, options: ProfileOptions) -> None:
        """Raises BadSettings where there is no profile of this model as it is run here."""
        super().__init__(machine.clock)
        profile = profile_of(machine.model, options)
        self.vocab, self.context_tokens = profile.shape.vocab, profile.shape.context_tokens
        self.kv_capacity_tokens = options.kv_capacity_tokens or profile.kv_capacity_tokens
        self.kv_bytes_per_token = profile.kv_bytes_per_token
        self.kv_value_bytes = profile.kv_value_bytes
        self._costs = [profile.costs_ns.get(name, 0.0) for name in TERMS]
        self._prefill_ratios = _ratios(profile.prefill_ratios, spread=options.spread)
        self._decode_ratios = _ratios(profile.decode_ratios, spread=options.spread)
        self._prefill_mean = sum(profile.prefill_ratios) / len(profile.prefill_ratios)
        self._overhead_ns = options.overhead_us * 1_000
        retire = profile.copies.get("retire") if options.copies else None
        self._retire_ns = retire.latency_ns if retire is not None else 0.0
        self._retire_token_ns = retire.ns_per_byte * self.kv_bytes_per_token if retire is not None else 0.0
        self._owed_ns = 0.0
        name = f"{machine.model.key}/{machine.replica}/{machine.seed}"
        self._key = xxh3_64_intdigest(name.encode(errors="surrogatepass"))

    def duration_ns(self, batch: Batch) -> int:
        ratios = self._prefill_ratios if batch.chunks else self._decode_ratios
        ratio = float(ratios[self._word(self.num_steps) * len(ratios) >> 32])
        return max(1, round(self._sum(counts(batch)) * ratio + self._overhead_ns + self._owed_ns))

    def decode_ns(self, batch: Batch, steps: int) -> Durations:
        fixed, varying = parts_ahead(batch.decodes, steps)
        durations: Floats = np.full(steps, self._sum(fixed), dtype=np.float64)
        for cost, units in zip(self._costs[NUM_FIXED:], varying, strict=True):
            if cost:
                durations += cost * units  # in the same order as one by one: the same bits
        ratios = self._decode_ratios
        places = words(self._key, self.num_steps, steps) * np.uint64(len(ratios)) >> np.uint64(32)
        durations *= ratios[places.astype(np.int64)] if len(ratios) > 1 else ratios[0]
        durations += self._overhead_ns
        if self._owed_ns:
            durations[0] += self._owed_ns
        found: Durations = np.maximum(1, np.rint(durations)).astype(np.int64)
        return found

    def prefill_ns(self, start: int, end: int) -> int:
        return max(
            1, round(self._sum(counts_of_prefill(start, end)) * self._prefill_mean + self._overhead_ns)
        )

    def stepped(self, steps: int) -> None:
        self.num_steps += steps
        self._owed_ns = 0.0

    def retire(
        self, sequence: Sequence, first_block: int, last_block: int, block_tokens: int
    ) -> list[KVBlock]:
        self._owed_ns += self._retire_ns + (last_block - first_block) * block_tokens * self._retire_token_ns
        return super().retire(sequence, first_block, last_block, block_tokens)

    def reset(self) -> None:
        self._owed_ns = 0.0

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: ProfileOptions) -> int:
        try:
            return profile_of(model, options).weights_bytes
        except BadSettings as error:
            raise LoadFailed(str(error)) from error

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int:
        return run_shape(model).vocab

    def _sum(self, units: Listing[int]) -> float:
        """The costs of so many units of the first terms, or of all."""
        total = 0.0
        for cost, count in zip(self._costs, units, strict=False):
            total += cost * count
        return total

    def _word(self, number: int) -> int:
        """The 32 bits of chance that belong to the step of that number."""
        word = (self._key + (number + 1) * GOLDEN) & WORD
        word = ((word ^ word >> 30) * FIRST_FACTOR) & WORD
        word = ((word ^ word >> 27) * SECOND_FACTOR) & WORD
        return (word ^ word >> 31) >> 32


def words(key: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """The 32 bits of chance of steps `first` to `first + count` (exclusive), each in 64."""
    numbers = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    found = np.uint64(key) + numbers * np.uint64(GOLDEN)
    found = (found ^ found >> np.uint64(30)) * np.uint64(FIRST_FACTOR)
    found = (found ^ found >> np.uint64(27)) * np.uint64(SECOND_FACTOR)
    return (found ^ found >> np.uint64(31)) >> np.uint64(32)


def profile_of(model: ModelSettings, options: ProfileOptions) -> Profile:
    """The profile of a model as it is run here. Raises BadSettings where there is none, or it is one of another."""
    folder = SHIPPED if options.path is None else Path(options.path)
    path = folder / f"{model.name}.json" if folder.is_dir() else folder
    if path is not folder and (Path(model.name).name != model.name or not path.is_file()):
        what = "with this package" if options.path is None else f"in {folder}"
        raise BadSettings(
            f"no profile of {model.name!r} comes {what}; measure one with python -m sim.profile "
            f"model={model.name} out=FILE, and give it with executor.path=FILE"
        )
    profile = read_profile(path)
    require_same(path, profile.shape, run_shape(model), model.name)
    return profile


def run_shape(model: ModelSettings) -> Architecture:
    """What torch runs of a model: its stand-in where it has no files."""
    shape = model.stand_in if model.path is None and model.stand_in is not None else model.architecture
    if shape is None:
        raise BadSettings(f"{model.name!r} is not run by our own decoder, so that no profile tells its times")
    return shape


def _ratios(pool: Listing[float], *, spread: bool) -> Floats:
    return np.array(pool if spread else [sum(pool) / len(pool)], dtype=np.float64)
