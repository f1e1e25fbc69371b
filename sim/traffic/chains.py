"""Chains: requests as a cache sees them, each a chain of block names, without a token of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from sim.traffic.trace import Lengths, Times

Ids = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True, eq=False)
class Chains:
    """The requests of a run in order of arrival, as columns of equal length.

    A block's name is a number that stands for the block and for all before it. Request i brings a prompt of
    `prompt_tokens[i]`, of which the full blocks can be found in a cache, and leaves `chain(i)` behind: these
    blocks, then those that it fills besides. Names are kept as runs of consecutive numbers, `run_first` and
    `run_blocks`; the runs of request i end before `run_end[i]`. That is 68 bytes a request of two runs, however long
    its prompt is.
    """

    arrival_ns: Times
    model: Lengths
    tenant: Lengths
    session: Lengths
    turn: Lengths
    prompt_tokens: Lengths
    output_tokens: Lengths
    run_end: Ids
    run_first: Ids
    run_blocks: Lengths
    block_tokens: int
    models: Sequence[str]
    source: str
    dropped_rows: int = 0
    prompt_blocks: Lengths = field(init=False)

    def __post_init__(self) -> None:
        columns = (self.model, self.tenant, self.session, self.turn, self.prompt_tokens, self.output_tokens)
        assert len(self) > 0, "there are requests"
        assert all(len(column) == len(self) for column in (*columns, self.run_end)), (
            "columns are equally long"
        )
        assert self.run_end[-1] == len(self.run_first) == len(self.run_blocks), "each run is a request's"
        assert (np.diff(self.arrival_ns) >= 0).all(), "requests are in order of arrival"
        self.prompt_blocks = self.prompt_tokens // self.block_tokens

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def span_ns(self) -> int:
        """From time 0, the start of the run, to the last arrival."""
        return int(self.arrival_ns[-1])

    def chain(self, index: int) -> list[int]:
        """The blocks that a request leaves behind, from the head; its prompt's full ones first."""
        first = self.run_end[index - 1] if index else 0
        blocks: list[int] = []
        for run in range(first, self.run_end[index]):
            start = int(self.run_first[run])
            blocks.extend(range(start, start + int(self.run_blocks[run])))
        return blocks

    def flat(self) -> tuple[Ids, Ids]:
        """All chains one behind the other, and where each ends. 8 bytes a block: for those who look ahead."""
        ends = np.cumsum(self.run_blocks, dtype=np.int64)
        names = np.repeat(self.run_first - (ends - self.run_blocks), self.run_blocks)
        names += np.arange(len(names))
        return names, np.concatenate(([0], ends))[self.run_end]

    def unique_blocks(self) -> int:
        """How many different blocks there are: what an endless cache would hold."""
        order = np.argsort(self.run_first, kind="stable")
        first, end = self.run_first[order], (self.run_first + self.run_blocks)[order]
        covered = np.maximum.accumulate(np.concatenate(([0], end[:-1])))
        return int(np.maximum(0, end - np.maximum(first, covered)).sum())

    def summary(self) -> dict[str, float | int]:
        """Figures of the whole trace."""
        p50, p90, p99 = np.percentile(self.prompt_tokens, (50, 90, 99))
        return {
            "requests": len(self),
            "dropped_rows": self.dropped_rows,
            "span_s": self.span_ns / NS_PER_S,
            "unique_blocks": self.unique_blocks(),
            "prompt_tokens_mean": float(self.prompt_tokens.mean()),
            "prompt_tokens_p50": float(p50),
            "prompt_tokens_p90": float(p90),
            "prompt_tokens_p99": float(p99),
            "output_tokens_mean": float(self.output_tokens.mean()),
        }
