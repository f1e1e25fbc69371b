"""What can go wrong, as one tree. A message is one sentence: the thing, its value, what would be right.

EngineError
├── BadSettings            the engine or a run cannot start like this; raised before any work begins
│   └── UnknownName        no strategy, policy, executor or scenario is called that
├── BadRequest        400  the caller asked for something impossible
│   └── TooLong       400  the request does not fit the model's context
├── NotFound          404  no such model
├── Unauthorised      401  no key, or none that is known
├── Forbidden         403  the key is not for that
├── TooLarge          413  the body is larger than is read
├── OverQuota         429  a limit is reached; carries retry_after_s
├── GenerationFailed  500  the model gave nothing that a token could be chosen from
├── ReplicaLost       502  a replica died with the request in its hands
├── NoReplica         503  nothing healthy can serve the model
├── QueueFull         503  the lines of all replicas of the model are full
├── LoadFailed        503  the model could not be loaded
│   └── BadModel      503  because its files are no good
└── DeadlinePassed    504  the deadline came first
"""

from math import ceil
from typing import Any, ClassVar, NamedTuple


class EngineError(Exception):
    """Anything that the engine refuses or fails to do.

    `status` is the HTTP status of the answer, `outcome` the terminal outcome and `reason` the stable word
    that stands in the requests table and in metrics. `type` and `code` are what OpenAI's clients read.
    """

    status: ClassVar[int] = 500
    outcome: ClassVar[str] = "failed"
    reason: ClassVar[str] = "engine_error"
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    param: str | None = None  # of the request, that is to blame
    retry_after_s: float | None = None


class BadSettings(EngineError):
    """The engine or a run cannot start like this."""

    reason = "bad_settings"


class UnknownName(BadSettings):
    """Nothing of this kind has that name."""

    reason = "unknown_name"


class BadRequest(EngineError):
    """The caller asked for something impossible: with that `param`, where it is one."""

    status = 400
    outcome = "rejected"
    reason = "bad_request"
    type = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TooLong(BadRequest):
    """The request does not fit the model's context."""

    reason = "context_too_long"
    code = "context_length_exceeded"


class NotFound(EngineError):
    """No such model."""

    status = 404
    outcome = "rejected"
    reason = "not_found"
    type = "invalid_request_error"
    code = "model_not_found"


class Unauthorised(EngineError):
    """No key, or none that is known."""

    status = 401
    outcome = "rejected"
    reason = "invalid_api_key"
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(EngineError):
    """The key is not for that."""

    status = 403
    outcome = "rejected"
    reason = "forbidden"
    type = "invalid_request_error"
    code = "forbidden"


class TooLarge(EngineError):
    """The body is larger than is read."""

    status = 413
    outcome = "rejected"
    reason = "too_large"
    type = "invalid_request_error"
    code = "request_too_large"


class OverQuota(EngineError):
    """A limit is reached; `retry_after_s` is when trying again makes sense."""

    status = 429
    outcome = "rejected"
    reason = "over_quota"
    type = "rate_limit_exceeded"
    code = "rate_limit_exceeded"
    retry_after_s: float

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
    """Nothing healthy can serve the model. Where nobody knows when something can, a second is worth a try."""

    status = 503
    reason = "no_replica"
    code = "no_replica"
    retry_after_s = 1.0


class QueueFull(EngineError):
    """Every replica of the model has as many waiting as it may; one leaves as soon as somebody has been served."""

    status = 503
    outcome = "rejected"
    reason = "queue_full"
    code = "queue_full"
    retry_after_s = 1.0


class LoadFailed(EngineError):
    """The model could not be loaded: which one, where that is known by its key."""

    status = 503
    reason = "load_failed"
    model: str | None = None


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


class Answer(NamedTuple):
    """An error as OpenAI's clients expect it: status, headers, and the JSON of the body."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def openai_answer(error: EngineError) -> Answer:
    """What a client is told. `retry-after` is in whole seconds, as HTTP has it, and exact in milliseconds beside."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(ceil(error.retry_after_s * 1000))
    code = error.code or error.reason
    body = {"error": {"message": str(error), "type": error.type, "param": error.param, "code": code}}
    return Answer(error.status, headers, body)
