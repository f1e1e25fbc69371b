"""What can go wrong, as one tree. A message is one sentence: the thing, its value, what would be right.

EngineError
├── BadSettings            the engine or a run cannot start like this; raised before any work begins
│   └── UnknownName        no strategy, policy, executor or scenario is called that
├── BadRequest        400  the caller asked for something impossible
│   └── TooLong       400  the request does not fit the model's context
├── NotFound          404  no such model
├── OverQuota         429  a limit is reached; carries retry_after_s
├── GenerationFailed  500  the model gave nothing that a token could be chosen from
├── ReplicaLost       502  a replica died with the request in its hands
├── NoReplica         503  nothing healthy can serve the model
├── LoadFailed        503  the model could not be loaded
│   └── BadModel      503  because its files are no good
└── DeadlinePassed    504  the deadline came first
"""

from typing import ClassVar


class EngineError(Exception):
    """Anything that the engine refuses or fails to do.

    `status` is the HTTP status of the answer, `outcome` the terminal outcome and `reason` the stable word
    that stands in the requests table and in metrics.
    """

    status: ClassVar[int] = 500
    outcome: ClassVar[str] = "failed"
    reason: ClassVar[str] = "engine_error"


class BadSettings(EngineError):
    """The engine or a run cannot start like this."""

    reason = "bad_settings"


class UnknownName(BadSettings):
    """Nothing of this kind has that name."""

    reason = "unknown_name"


class BadRequest(EngineError):
    """The caller asked for something impossible."""

    status = 400
    outcome = "rejected"
    reason = "bad_request"


class TooLong(BadRequest):
    """The request does not fit the model's context."""

    reason = "context_too_long"


class NotFound(EngineError):
    """No such model."""

    status = 404
    outcome = "rejected"
    reason = "not_found"


class OverQuota(EngineError):
    """A limit is reached; `retry_after_s` is when trying again makes sense."""

    status = 429
    outcome = "rejected"
    reason = "over_quota"

    def __init__(
        self, message: str, retry_after_s: float, *, limit: str = "", is_of_model: bool = True
    ) -> None:
        """`limit` is the one that was reached; `is_of_model`: another model may have room for this tenant."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limit = limit
        self.is_of_model = is_of_model


class GenerationFailed(EngineError):
    """The model gave nothing that a token could be chosen from."""

    reason = "generation_failed"


class ReplicaLost(EngineError):
    """A replica died with the request in its hands."""

    status = 502
    reason = "replica_lost"


class NoReplica(EngineError):
    """Nothing healthy can serve the model."""

    status = 503
    reason = "no_replica"


class LoadFailed(EngineError):
    """The model could not be loaded."""

    status = 503
    reason = "load_failed"


class BadModel(LoadFailed):
    """The files of a model are no good. The message names the file and what is wrong with it."""

    reason = "bad_model"

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.why = why


class DeadlinePassed(EngineError):
    """The deadline came first."""

    status = 504
    outcome = "timed_out"
    reason = "deadline_passed"
