"""What the memory cannot hold goes down a tier, and is written there in int8: nearly twice as much of it fits. The
same requests with a lower tier that writes it as it is show what that is worth, and what it changes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from engine.settings import EngineSettings, at_least, require
from sim.checks import Check, all_completed, at_most, evidence, gains, no_worse
from sim.checks import at_least as least
from sim.runs import Run
from sim.scratch import is_real, temporary_stores
from sim.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

ANSWER = "answer_"
COARSER = 2 ** (1 / 8)
"""A scale may be so much larger than the largest number asks for: scales are told apart by eighths of a doubling."""
BLOCKS = 50  # that are looked at


@dataclass
class Settings:
    """What has to be gained, and what may be lost. `max_error` is relative, of a block."""

    name: str
    min_smaller: float
    min_blocks_down: int
    min_hits_gained: float
    max_slower: float
    max_error: float
    min_same_answers: float

    def __post_init__(self) -> None:
        at_least("scenario.min_smaller", self.min_smaller, 1)
        for name in ("min_hits_gained", "max_slower", "max_error", "min_same_answers"):
            share = getattr(self, name)
            require(f"scenario.{name}", share, 0 <= share <= 1, "from 0 to 1")


def scenery(engine: EngineSettings, _: Settings) -> AbstractContextManager[EngineSettings]:
    return temporary_stores(engine)


def script(stage: Stage, _: Settings) -> None:
    tiers = stage.engine.settings.cache.tiers
    require(
        "tiers", ", ".join(tiers), len(tiers) > 1, "two at least: blocks are made smaller on their way down"
    )
    if is_real(stage.engine.settings):
        stage.answers = {}


def measure(stage: Stage, _: Settings) -> dict[str, float]:
    """What int8 does to real blocks, and what was answered; nothing where no KV is made."""
    if not is_real(stage.engine.settings):
        return {}
    blocks = [block for block in stage.engine.cache.tiers[0].payloads.values() if hasattr(block, "dtype")]
    found = [errors_of(block) for block in blocks[:BLOCKS]]
    answers = {
        f"{ANSWER}{number}": float(crc32(repr(tokens).encode()))
        for number, tokens in sorted((stage.answers or {}).items())
    }
    if not found:
        return answers
    scales, relative = (max(values) for values in zip(*found, strict=True))
    return {
        "blocks": float(len(found)),
        "worst_error_scales": scales,
        "worst_error_relative": relative,
    } | answers


def errors_of(block: "Tensor") -> tuple[float, float]:
    """The largest error of one number of a block after int8, in scales, and the relative L2 error of the block.

    A scale is what one of 127 levels stands for: keys have one a channel, values one a token and head.
    """
    from engine.cache.codec import Codec  # noqa: PLC0415  it brings torch

    back = Codec.unpack(Codec("int8", max_error=1.0).pack(block)).float()
    block = block.float()
    worst = 0.0
    for half, dim in (
        (0, 2),
        (1, 3),
    ):  # of (layers, heads, tokens, width): keys over tokens, values over the width
        exact, missed = block[:, half], (back[:, half] - block[:, half]).abs()
        scale = (exact.abs().amax(dim, keepdim=True) * COARSER / 127).clamp_min(1e-30)
        worst = max(worst, float((missed / scale).max()))
    return worst, float((back - block).norm() / block.norm())


def checks(run: Run, s: Settings) -> Iterator[Check]:
    pairs = list(zip(run.beside.get("itself", []), run.beside.get("raw", []), strict=True))
    lowest, lower = list(run.manifest["cache"]["tiers"].items())[-1]
    went_down = run.manifest["cache"]["all"]["by_tier"][lowest]["demoted_blocks"]
    if went_down < s.min_blocks_down:
        pairs = []  # nothing that was made smaller could be found or not

    yield all_completed(run.whole)
    yield evidence("blocks that went down", went_down, s.min_blocks_down)
    yield least(
        "times that a block is smaller in the lower tier",
        lower["compression_ratio"],
        s.min_smaller,
        per_block(run),
        published="1.5 to 2",
    )
    hits = [(ours.whole.hit_ratio or 0.0) - (theirs.whole.hit_ratio or 0.0) for ours, theirs in pairs]
    yield gains("hit ratio above that of blocks as they are", hits, s.min_hits_gained, ratios(pairs))
    if run.is_modelled:  # measured times tell as much of what else the machine did
        sooner = [1 - float(ours.whole.ttft_s.mean() / theirs.whole.ttft_s.mean()) for ours, theirs in pairs]
        yield no_worse("part of the time to first token saved", sooner, s.max_slower)
    if "worst_error_scales" in run.measured:
        yield from of_real_blocks(run, pairs, s)


def of_real_blocks(run: Run, pairs: list[tuple[Run, Run]], s: Settings) -> Iterator[Check]:
    """What can be said only where blocks are tensors and answers are computed from them."""
    measured = run.measured
    note = f"n={measured['blocks']:.0f} blocks"
    name = "the worst error of a number, in steps of its scale"
    yield at_most(name, measured["worst_error_scales"], 0.5, note)
    yield at_most("the worst error of a block, relative", measured["worst_error_relative"], s.max_error, note)
    for ours, theirs in pairs[:1]:
        known = [name for name in ours.measured if name.startswith(ANSWER) and name in theirs.measured]
        same = sum(ours.measured[name] == theirs.measured[name] for name in known)
        share = same / len(known) if known else None
        yield least(
            "answers that are the same, token for token", share, s.min_same_answers, f"n={len(known)}"
        )


def per_block(run: Run) -> str:
    """What a block of the first model takes above and below."""
    model, said = next(iter(run.manifest["cache"]["models"].items()))
    sizes = said["block_bytes"]
    return f"{model.partition('@')[0]}: {sizes[-1] / 1e3:,.4g} kB a block instead of {sizes[0] / 1e3:,.4g} kB"


def ratios(pairs: list[tuple[Run, Run]]) -> str:
    """The hit ratios of both."""
    if not pairs:
        return ""
    ours, theirs = (
        np.mean([each.whole.hit_ratio or 0.0 for each in runs]) for runs in zip(*pairs, strict=True)
    )
    return f"{ours:.3f} instead of {theirs:.3f}"
