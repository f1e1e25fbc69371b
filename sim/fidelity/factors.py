"""How much longer steps take than a cost model says: by their model, by their size, and by what was before them."""

from dataclasses import dataclass, field
from typing import NamedTuple

from sim.fidelity.steplog import Shape


class Scales(NamedTuple):
    """How many times as long as its cost model says a model's steps take, by what they do and by what was before.

    A step that only decodes reads all weights once. After a step of its own model they are in the processor's caches,
    as far as these reach; after one of another model that one's are, and they come from memory.
    """

    prefill: float = 1.0
    decode: float = 1.0
    cold_decode: float = 1.0  # after a step of another model


AS_MODELLED = Scales()


class Before(NamedTuple):
    """What a step finds: whose step was before it, what that left to do, and for how long the caches are its own."""

    is_switch: bool  # the step before was another model's
    decoded: int  # steps of this model in a row before it that only decoded
    began: int = 0  # sequences whose first step was the one before


@dataclass(slots=True)
class Line:
    """The steps of a machine, one after the other."""

    model: str = ""
    decoded: int = 0
    began: int = 0

    def step(self, model: str, shape: Shape) -> Before:
        """Take the next one; what it finds. Of the first one nobody knows, so it is a switch."""
        is_switch = model != self.model
        before = Before(is_switch, 0 if is_switch else self.decoded, self.began)
        self.model, self.began = model, shape.beginners
        self.decoded = 0 if shape.has_prefill else before.decoded + 1
        return before


FINE = 8
"""Counts up to here are told apart one by one."""


def class_of(count: int) -> int:
    """The class of a count, in their order: 0, 1, ... 8, 9 to 15, 16 to 31, 32 to 63, ..."""
    return count if count <= FINE else FINE + count.bit_length() - FINE.bit_length() + 1


@dataclass(slots=True)
class ByCount:
    """Factors by the class of a count, which do not change: what was found once is remembered."""

    factors: dict[int, float] = field(default_factory=dict)
    _found: dict[int, float] = field(default_factory=dict, repr=False, compare=False)  # by count

    def factor(self, count: int) -> float:
        """That of a count: of the nearest class that is known."""
        found = self._found.get(count)
        if found is None:
            own = class_of(count)
            nearest = min(self.factors, key=lambda each: (abs(each - own), each), default=None)
            found = self._found[count] = 1.0 if nearest is None else self.factors[nearest]
        return found


@dataclass(slots=True)
class ModelFactors:
    """How many times as long as its cost model says a model's steps take: the product of those that a step has.

    A cost model is measured step by step, each by itself. In traffic a short chunk of prefill takes longer than it
    says and a long one less; the first steps after a prefill take longer, since that has filled the processor's
    caches; and a crowd makes other errors of it than a few do.
    """

    scales: Scales = AS_MODELLED
    prefill_sizes: ByCount = field(default_factory=ByCount)  # by the tokens of a chunk, in the step's mean
    decode_ages: ByCount = field(default_factory=ByCount)  # by `Before.decoded`, where it is no switch
    decode_crowds: ByCount = field(default_factory=ByCount)  # by how many decode, in steps that only decode

    def of(self, shape: Shape, before: Before) -> float:
        """That of a step."""
        if shape.has_prefill:
            return self.scales.prefill * self.prefill_sizes.factor(shape.chunk_tokens)
        crowd = self.decode_crowds.factor(len(shape.decodes))
        if before.is_switch:
            return self.scales.cold_decode * crowd
        return self.scales.decode * self.decode_ages.factor(before.decoded) * crowd
