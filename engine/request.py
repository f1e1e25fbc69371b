"""What a caller asks for and what the caller gets: the values that travel down the path of a request."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


@dataclass(slots=True)
class Request:
    """One generation, as it arrives at the router.

    `prompt_tokens` is a one-dimensional int32 array, at least one token long. `deadline_ns` and `arrival_ns`
    are times of the engine's clock. A larger `priority` goes first.
    """

    id: int
    model: str
    prompt_tokens: Tokens
    max_output_tokens: int
    arrival_ns: int
    tenant: str = "default"
    session: str | None = None
    priority: int = 0
    deadline_ns: int | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_tokens)

    @property
    def max_tokens(self) -> int:
        """The most tokens that this request can ever occupy, prompt and output."""
        return len(self.prompt_tokens) + self.max_output_tokens


@dataclass(slots=True)
class Stream:
    """The tokens of one answer, as they come. A retry carries on after the last of them.

    The caller may hand in a stream of its own and watch it; the engine only appends.
    """

    tokens: list[int] = field(default_factory=list)
    first_token_ns: int | None = None
    last_token_ns: int | None = None

    def push(self, token: int, now_ns: int) -> None:
        if self.first_token_ns is None:
            self.first_token_ns = now_ns
        self.last_token_ns = now_ns
        self.tokens.append(token)


@dataclass(slots=True)
class Usage:
    """What an answer cost, in tokens; `cached_tokens` of the prompt were not prefilled anew."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class Completion:
    """A request that was served: by whom, at which attempt (1 is the first), with which tokens."""

    request_id: int
    model: str
    replica: str
    attempts: int
    tokens: list[int]
    usage: Usage
    finished_ns: int
