"""What the server answers, as structs that describe it and are never made: for the OpenAPI description alone."""

from typing import Any, Literal

import msgspec

from engine.server.answers import ChatChoice, TextChoice, Usage


class ChatCompletion(msgspec.Struct):
    """A whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None


class Completion(msgspec.Struct):
    """A whole continuation of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str | None


class Fault(msgspec.Struct):
    """What went wrong: in words, and by a stable `code`; `param` is the field that is to blame."""

    message: str
    type: str
    param: str | None
    code: str


class Failure(msgspec.Struct):
    """Any answer that is an error."""

    error: Fault


class ModelCard(msgspec.Struct):
    """A model that may be asked for. There is more in it of what is known of the model; of a group, its `members`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: str


class ModelCards(msgspec.Struct):
    """All models, and named groups of models, that the key may use."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """Whether requests are welcome."""

    status: Literal["ready", "not_ready", "draining"]
    replicas: int
    replicas_available: int


class FileCard(msgspec.Struct):
    """A file of a batch."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str


class FilePage(msgspec.Struct):
    """Some files, the newest first unless asked otherwise."""

    object: Literal["list"]
    data: list[FileCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


class BatchCard(msgspec.Struct):
    """A batch, and how far it is."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int


class BatchPage(msgspec.Struct):
    """Some batches, the newest first."""

    object: Literal["list"]
    data: list[BatchCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Upload(msgspec.Struct):
    """The form of an upload."""

    file: bytes
    purpose: Literal["batch"]


class Changed(msgspec.Struct):
    """What an operator has changed, as it stands in the audit log."""

    action: str
    subject: str
    before: Any
    after: Any


class Listed(msgspec.Struct):
    """Several of a kind."""

    object: Literal["list"]
    data: list[dict[str, Any]]
