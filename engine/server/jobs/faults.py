"""What clients of jobs, files and batches may get wrong."""

from engine.errors import BadRequest, NotFound


class NoSuchObject(NotFound):
    """No such file, batch, job or schedule, or it is another tenant's."""

    reason = "no_such_object"
    code = "not_found"


class InUse(BadRequest):
    """It cannot be changed or deleted as long as something else needs it."""

    reason = "in_use"
    code = "in_use"


class NoSpace(BadRequest):
    """There is no room for more files, or for more batches."""

    reason = "storage_limit"
    code = "storage_limit_exceeded"
