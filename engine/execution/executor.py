"""The executor: what turns a batch into tokens, and the only thing that differs between torch and a formula.

A replica's scheduler forms a `Batch`; the executor runs one step for it. What it knows of a sequence stands in
`Sequence`; the KV that it holds for a sequence is its own affair and is known to it by `Sequence.id`.
"""

from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from engine.clock import Clock, Signal
from engine.errors import EngineError
from engine.execution.grammar import Follower
from engine.named import Named
from engine.request import Logprobs, Sampling, Stream, Tokens
from engine.settings import HardwareSettings, ModelSettings

KVBlock = Any
"""Keys and values of `block_tokens` consecutive tokens: a tensor for torch, None where only sizes are known."""


@dataclass(slots=True, eq=False, init=False)
class Sequence:
    """One request inside a replica.

    `tokens` is what has to be in the KV before the next new token: the prompt, and after a lost replica or a
    preemption also what had already been generated. `prefix` holds the KV blocks of its first `cached_tokens` tokens,
    found in the cache; the executor copies them into its own memory whenever this sequence begins. `computed_tokens`
    counts the tokens whose KV the executor holds.
    """

    id: int
    tokens: Tokens
    given_tokens: int  # how many `tokens` are
    max_new_tokens: int
    stream: Stream
    done: Signal
    prefix: Listing[KVBlock]
    cached_tokens: int
    sampling: Sampling | None  # None: greedy
    seed: int
    stops: Callable[[int], bool] | None  # told of each new token; whether it ends the sequence
    preempted: Callable[[int], None] | None  # told how many tokens have to be computed anew
    answer: Callable[[int, int], list[int]] | None  # tokens from, so many, where they are foreseen
    follower: Follower | None  # what its grammar allows; None: it has none
    computed_tokens: int
    new_tokens: list[int]
    priority: int
    foreseen_tokens: int  # new ones besides, which nobody has looked at yet
    queued_ns: int
    started_ns: int | None
    rewound_tokens: int  # of `new_tokens`, those that a preemption has put into `tokens`
    kept: list[KVBlock]
    error: EngineError | None
    is_running: bool
    is_stopped: bool
    is_dropped: bool  # nobody waits for it any more
    joined: int  # its number among those who decode, where that is counted
    credited_steps: int  # up to which of its loop's steps what it has decoded is written here

    def __init__(
        self,
        id: int,  # noqa: A002  as the field is called
        tokens: Tokens,
        max_new_tokens: int,
        stream: Stream,
        done: Signal,
        prefix: Listing[KVBlock] = (),
        cached_tokens: int = 0,
        sampling: Sampling | None = None,
        seed: int = 0,
        stops: Callable[[int], bool] | None = None,
        preempted: Callable[[int], None] | None = None,
        *,
        computed_tokens: int = 0,
        new_tokens: Listing[int] = (),
    ) -> None:
        self.id = id
        self.tokens = tokens
        self.given_tokens = len(tokens)
        self.max_new_tokens = max_new_tokens
        self.stream = stream
        self.done = done
        self.prefix = prefix
        self.cached_tokens = cached_tokens
        self.sampling = sampling
        self.seed = seed
        self.stops = stops
        self.preempted = preempted
        self.computed_tokens = computed_tokens
        self.new_tokens = list(new_tokens)
        self.kept = []
        self.answer = self.follower = self.error = self.started_ns = None
        self.priority = self.foreseen_tokens = self.rewound_tokens = self.credited_steps = self.queued_ns = 0
        self.joined = -1
        self.is_running = self.is_stopped = self.is_dropped = False

    @property
    def is_prefilled(self) -> bool:
        return self.computed_tokens >= self.given_tokens

    @property
    def num_new(self) -> int:
        """The tokens that have been generated."""
        return len(self.new_tokens) + self.foreseen_tokens

    @property
    def is_finished(self) -> bool:
        return self.is_stopped or len(self.new_tokens) + self.foreseen_tokens >= self.max_new_tokens

    @property
    def has_ended(self) -> bool:
        return (
            self.is_dropped
            or self.is_stopped
            or len(self.new_tokens) + self.foreseen_tokens >= self.max_new_tokens
        )

    @property
    def num_tokens(self) -> int:
        """All tokens so far: the position of the next one."""
        return self.given_tokens + self.num_new - self.rewound_tokens

    def accept(self, token: int, now_ns: int, logprobs: Logprobs | None = None) -> None:
        """Take a new token; the stream gets it too, unless nobody waits for it any more."""
        self.new_tokens.append(token)
        if not self.is_dropped:
            self.stream.push(token, now_ns, logprobs)
            if self.stops is not None and self.stops(token):
                self.is_stopped = True

    def foresee(self, count: int, now_ns: int) -> None:
        """Take new tokens of which the last came now, and that `answer` will tell when somebody looks."""
        self.foreseen_tokens += count
        if self.is_dropped:
            return
        assert self.answer is not None
        self.stream.promise(count, now_ns, self.answer)
        if self.stops is not None and self.stops(self.stream.tokens[-1]):
            self.is_stopped = True

    def fail(self, error: EngineError) -> None:
        """Nothing more can be generated."""
        self.error = error
        self.is_stopped = True

    def rewind(self) -> None:
        """Begin anew, with all that has been generated as part of what has to be computed."""
        done, num_new = self.rewound_tokens, self.num_new
        generated = self.new_tokens[done:] if self.answer is None else self.answer(done, num_new - done)
        self.tokens = np.concatenate([self.tokens, np.asarray(generated, dtype=np.int32)])
        self.given_tokens = len(self.tokens)
        self.rewound_tokens = num_new
        self.computed_tokens = 0


@dataclass(slots=True, init=False)
class Chunk:
    """The next `num_tokens` tokens of a sequence's prefill, from `sequence.computed_tokens` on."""

    sequence: Sequence
    num_tokens: int

    def __init__(self, sequence: Sequence, num_tokens: int) -> None:
        self.sequence = sequence
        self.num_tokens = num_tokens

    @property
    def is_last(self) -> bool:
        """Whether the prefill ends with this chunk, so that the step yields the sequence's first token."""
        return self.sequence.computed_tokens + self.num_tokens >= self.sequence.given_tokens


@dataclass(slots=True, init=False)
class Batch:
    """One step of a replica: chunks of prefill, and sequences that decode one token each.

    The KV of those that are `preempted` is to be released before the step. `held_tokens`: what those who decode hold
    by now, all together, where somebody counts it.
    """

    chunks: list[Chunk]
    decodes: list[Sequence]
    preempted: list[Sequence]
    held_tokens: int | None

    def __init__(
        self,
        chunks: list[Chunk] | None = None,
        decodes: list[Sequence] | None = None,
        preempted: list[Sequence] | None = None,
        held_tokens: int | None = None,
    ) -> None:
        self.chunks = [] if chunks is None else chunks
        self.decodes = [] if decodes is None else decodes
        self.preempted = [] if preempted is None else preempted
        self.held_tokens = held_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(chunk.num_tokens for chunk in self.chunks)

    def context_tokens(self) -> int:
        """What those who decode hold before this step, all together."""
        held = self.held_tokens
        return sum([each.computed_tokens for each in self.decodes]) if held is None else held


@dataclass(slots=True)
class StepResult:
    """What a step took, and the token of each sequence that got one.

    `chunk_tokens[i]` belongs to `batch.chunks[i]` and is None unless that chunk ends its prefill;
    `decode_tokens[i]` belongs to `batch.decodes[i]`. `logprobs` has those that were asked for, `errors` the
    sequences for which no token could be chosen (what stands in their place means nothing), both by sequence id.
    """

    duration_ns: int
    chunk_tokens: list[int | None]
    decode_tokens: list[int]
    logprobs: dict[int, Logprobs] = field(default_factory=dict)
    errors: dict[int, EngineError] = field(default_factory=dict)


class Executor(Protocol):
    """Runs the steps of one replica. Owns the KV of that replica's sequences.

    The token of a position is a function of the model, of the tokens before it, and of the sequence's `sampling` and
    `seed`. A class that is registered has `Options` too: the dataclass of what can be set for this executor alone.
    One that `is_modelled` has no weights: making it takes no time, and what loading would take is for others to say.
    One that `follows_grammars` looks at `sequence.follower` before it chooses a token.
    """

    Options: ClassVar[type[Any]]
    is_modelled: ClassVar[bool]
    follows_grammars: ClassVar[bool]
    keeps_blocks: bool  # whether it can give KV out and take it back
    weights_id: str  # another one for other weights
    keep: Callable[[], object] | None  # writes what loading has converted to the disk; for a quiet moment
    vocab: int
    context_tokens: int
    kv_capacity_tokens: int
    kv_bytes_per_token: int
    kv_value_bytes: float  # of one number in it

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

    def release(self, sequence: Sequence) -> None:
        """Forget the sequence and its KV. Harmless for one that never ran."""

    def prefill_ns(self, start: int, end: int) -> int:
        """About what computing the KV of tokens `start` to `end` (exclusive) takes, those before them being there.

        For decisions, not for the clock: load or compute, and which block is dearest to lose.
        """

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: Any) -> int:
        """The memory that the weights of a model will take here. Raises LoadFailed when that cannot be told."""

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int | None:
        """The size of the vocabulary that it will have here; None when only loading tells."""

    def reset(self) -> None:
        """Forget every sequence: the device came back empty."""


@dataclass(slots=True)
class Machine:
    """What an executor is made of: a model on some hardware under some clock.

    `loaded` is shared by the replicas of one model: they find its weights there. `keeps_on_device`: KV blocks that
    are kept stay in the device's memory, and do not cross the link.
    """

    model: ModelSettings
    hardware: HardwareSettings
    clock: Clock
    max_batch: int
    seed: int
    loaded: dict[str, Any] = field(default_factory=dict)
    keeps_on_device: bool = False
    replica: str = ""


executors: Named[Executor] = Named(
    "executor",
    homes={
        "law": "engine.execution.law",
        "profile": "engine.execution.profile",
        "roofline": "engine.execution.roofline",
        "torch": "engine.execution.torch_executor",  # imports torch: only when it is asked for
        "transformers": "engine.execution.transformers_executor",  # the same, and needs the extra `hf`
    },
)
