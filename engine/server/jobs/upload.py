"""An upload as it comes: a form whose one file goes to disk piece by piece, however large it is."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from engine.errors import BadRequest, EngineError, TooLarge
from engine.server.bodies import refused
from engine.server.client import check_type
from engine.server.jobs.files import BATCH, Upload
from engine.server.settings import LimitsSettings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 16
MAX_FIELD_BYTES = 1 << 10
FORM_BYTES = 64 << 10  # that a form may have beside its file
WRITTEN_AT_ONCE = 1 << 20
MIN_EXPIRY_S, MAX_EXPIRY_S = 3_600, 2_592_000

AFTER_ANCHOR, AFTER_SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FIELDS = ("purpose", AFTER_ANCHOR, AFTER_SECONDS)

SILENT = logging.Logger("forms", logging.CRITICAL + 1)  # noqa: LOG001  in no tree: nobody may turn it on
"""The parser's: all that it would write to the terminal for a bad form stands in the error that it raises."""


class TooSlow(EngineError):
    """The upload has stopped coming."""

    status = 408
    outcome = "rejected"
    reason = "body_timeout"
    type = "invalid_request_error"
    code = "request_timeout"


class Form:
    """A form of which at most one part is a file. What of that has come and was not taken yet is in `pending`."""

    def __init__(self, content_type: str) -> None:
        """Raises BadRequest for what is no form."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise BadRequest(f"content-type is {content_type[:100]!r}, but must be multipart/form-data")
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self.pending = bytearray()
        self.is_whole = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._name: str | None = None  # of the field that is coming; None: it is the file
        self._field = bytearray()
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begins,
            "on_part_data": self._part_data,
            "on_part_end": self._part_ends,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_end": self._ends,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise BadRequest(f"the form cannot be read: {error}") from error
        self._parser.logger = SILENT

    def write(self, data: bytes) -> None:
        """The next piece. Raises BadRequest."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest(f"the form cannot be read: {error}") from error

    def _part_begins(self) -> None:
        self._disposition = b""
        self._field.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            if name != "file" or self.file_name is not None:
                raise BadRequest(f"the form has a file called {name!r}, but must have one, called file")
            self.file_name = options[b"filename"].decode("utf-8", "replace")
            self._name = None
            return
        if name not in FIELDS or len(self.fields) >= MAX_FIELDS:
            raise refused(
                name or "name", f"the form has a field {name!r}, but takes file, {', '.join(FIELDS)}"
            )
        self._name = name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self.pending += data[start:end]
            return
        self._field += data[start:end]
        if len(self._field) > MAX_FIELD_BYTES:
            raise refused(
                self._name, f"{self._name} has more than {MAX_FIELD_BYTES} bytes, the most that is read"
            )

    def _part_ends(self) -> None:
        if self._name is not None:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _ends(self) -> None:
        self.is_whole = True

    def check(self) -> None:
        """Raise BadRequest for a form that is not what an upload has to be."""
        if not self.is_whole:
            raise BadRequest("the form ends before its last boundary")
        if self.file_name is None:
            raise refused("file", "the form has no file, but must have one, called file")
        purpose = self.fields.get("purpose")
        if purpose != BATCH:
            raise refused("purpose", f"purpose is {purpose!r}, but must be {BATCH!r}")
        self.expires_after_s()

    def expires_after_s(self) -> int | None:
        """What the client says of how long the file is to be kept. Raises BadRequest."""
        seconds = self.fields.get(AFTER_SECONDS)
        if seconds is None:
            return None
        return expiry_s(AFTER_ANCHOR, self.fields.get(AFTER_ANCHOR), AFTER_SECONDS, seconds)


def expiry_s(anchor_name: str, anchor: object, name: str, seconds: object) -> int:
    """How long a file is kept, as clients say it. Raises BadRequest."""
    if anchor != "created_at":
        raise refused(anchor_name, f"{anchor_name} is {anchor!r}, but must be 'created_at'")
    text = str(seconds)
    is_short = len(text) <= len(str(MAX_EXPIRY_S)) and text.isascii() and text.isdigit()
    if not is_short or not MIN_EXPIRY_S <= int(text) <= MAX_EXPIRY_S:
        raise refused(name, f"{name} is {text[:32]!r}, but must be from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}")
    return int(text)


def told_bytes(request: Request, max_file_bytes: int) -> int | None:
    """How long the body is said to be. Raises TooLarge."""
    told = request.headers.get("content-length", "")
    if not told.isdigit():
        return None
    if int(told) > max_file_bytes + FORM_BYTES:
        raise too_large(max_file_bytes)
    return int(told)


def too_large(max_file_bytes: int) -> TooLarge:
    return TooLarge(f"the file is larger than {max_file_bytes} bytes, the most that is taken")


async def pieces(request: Request, timeout_s: float) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TooSlow when nothing comes for so long, and BadRequest when its end does not."""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow(
                f"nothing of the body has come for {timeout_s:g} s, the most that is waited"
            ) from None
        except ClientDisconnect:
            raise BadRequest("the client has left before the body had come") from None
        yield piece


async def take_in(
    request: Request,
    form: Form,
    upload: Upload,
    *,
    max_file_bytes: int,
    timeout_s: float,
) -> None:
    """Let a form come in, its file going to disk. Raises BadRequest, NoSpace, TooLarge, TooSlow, OSError."""
    coming = pieces(request, timeout_s)
    total = 0
    async for piece in coming:
        total += len(piece)
        form.write(piece)
        if upload.num_bytes + len(form.pending) > max_file_bytes or total > max_file_bytes + FORM_BYTES:
            raise too_large(max_file_bytes)
        if len(form.pending) >= WRITTEN_AT_ONCE:
            await write_out(form, upload)
    await write_out(form, upload)
    form.check()


async def write_out(form: Form, upload: Upload) -> None:
    """What has come goes to disk, in a worker thread."""
    data = bytes(form.pending)
    form.pending.clear()
    if data:
        await asyncio.to_thread(upload.write, data)


async def body_of(request: Request, limits: LimitsSettings) -> bytes:
    """The whole of a small body, which is JSON or nothing. Raises TooLarge, TooSlow, NotJson, BadRequest."""
    parts, left = [], limits.max_body_bytes
    async for piece in pieces(request, limits.body_timeout_s):
        left -= len(piece)
        if left < 0:
            raise TooLarge(f"the body is larger than {limits.max_body_bytes} bytes, the most that is read")
        parts.append(piece)
    whole = b"".join(parts)
    if whole:
        headers = dict(request.headers.raw)
        check_type(headers.get(b"content-type", b""), headers.get(b"content-encoding"))
    return whole
