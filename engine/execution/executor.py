"""The executor: what turns a batch into tokens, and the only thing that differs between torch and a formula.

A replica's scheduler forms a `Batch`; the executor runs one step for it. What it knows of a sequence stands in
`Sequence`; the KV that it holds for a sequence is its own affair and is known to it by `Sequence.id`.
"""

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from engine.clock import Clock, Signal
from engine.errors import EngineError
from engine.named import Named
from engine.request import Stream, Tokens
from engine.settings import HardwareSettings, ModelSettings

KVBlock = Any
"""Keys and values of `block_tokens` consecutive tokens: a tensor for torch, None where only sizes are known."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside a replica.

    `tokens` is what has to be in the KV before the first new token: the prompt, and after a lost replica also
    what it had already generated. `prefix` holds the KV blocks of its first `cached_tokens` tokens, found in
    the cache; the executor copies them into its own memory at this sequence's first step. `computed_tokens`
    counts the tokens whose KV the executor holds.
    """

    id: int
    tokens: Tokens
    max_new_tokens: int
    stream: Stream
    done: Signal
    prefix: Listing[KVBlock] = ()
    cached_tokens: int = 0
    computed_tokens: int = 0
    new_tokens: list[int] = field(default_factory=list)
    queued_ns: int = 0
    started_ns: int | None = None
    kept: list[KVBlock] = field(default_factory=list)
    error: EngineError | None = None
    is_dropped: bool = False  # nobody waits for it any more

    @property
    def is_prefilled(self) -> bool:
        return self.computed_tokens >= len(self.tokens)

    @property
    def is_finished(self) -> bool:
        return len(self.new_tokens) >= self.max_new_tokens

    @property
    def max_tokens(self) -> int:
        """The most KV that it can ever need, in tokens."""
        return len(self.tokens) + self.max_new_tokens

    def accept(self, token: int, now_ns: int) -> None:
        """Take a new token; the stream gets it too, unless nobody waits for it any more."""
        self.new_tokens.append(token)
        if not self.is_dropped:
            self.stream.push(token, now_ns)


@dataclass(slots=True)
class Chunk:
    """The next `num_tokens` tokens of a sequence's prefill, from `sequence.computed_tokens` on."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Whether the prefill ends with this chunk, so that the step yields the sequence's first token."""
        return self.sequence.computed_tokens + self.num_tokens >= len(self.sequence.tokens)


@dataclass(slots=True)
class Batch:
    """One step of a replica: chunks of prefill, and sequences that decode one token each."""

    chunks: list[Chunk] = field(default_factory=list)
    decodes: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(chunk.num_tokens for chunk in self.chunks)


@dataclass(slots=True)
class StepResult:
    """What a step took, and the token of each sequence that got one.

    `chunk_tokens[i]` belongs to `batch.chunks[i]` and is None unless that chunk ends its prefill;
    `decode_tokens[i]` belongs to `batch.decodes[i]`.
    """

    duration_ns: int
    chunk_tokens: list[int | None]
    decode_tokens: list[int]


class Executor(Protocol):
    """Runs the steps of one replica. Owns the KV of that replica's sequences.

    Greedy: the token of a position is a function of the model and of the tokens before it. A class that is
    registered has `Options` too: the dataclass of what can be set for this executor alone.
    """

    Options: ClassVar[type[Any]]
    vocab: int
    context_tokens: int
    kv_capacity_tokens: int
    kv_bytes_per_token: int

    async def step(self, batch: Batch) -> StepResult:
        """Run one step and return when its time is over, on the clock that the executor was made with.

        At a sequence's first chunk (`computed_tokens == cached_tokens`) its `prefix` is copied in first. A
        decode feeds `sequence.new_tokens[-1]`, whose position is `computed_tokens`. Does not change the
        sequences: the replica does, from the result. Never called concurrently. Raises ReplicaLost when the
        device is gone; the KV is then worth nothing.
        """

    def retire(
        self, sequence: Sequence, first_block: int, last_block: int, block_tokens: int
    ) -> list[KVBlock]:
        """Copy out the KV of blocks `first_block` to `last_block` (exclusive) and forget the sequence.

        A block spans `block_tokens` tokens; all of them have been computed. What the copy takes is charged to
        the next step. A sequence that never ran gives no blocks.
        """

    def reset(self) -> None:
        """Forget every sequence: the device came back empty."""


@dataclass(slots=True)
class Machine:
    """What an executor is made of: a model on some hardware under some clock.

    `loaded` is shared by all executors of one engine: replicas of one model find its weights there.
    """

    model: ModelSettings
    hardware: HardwareSettings
    clock: Clock
    max_batch: int
    seed: int
    loaded: dict[str, Any]


executors: Named[Executor] = Named(
    "executor",
    homes={
        "roofline": "engine.execution.roofline",
        "torch": "engine.execution.torch_executor",  # imports torch: only when it is asked for
    },
)
