"""Extents as objects of a bucket: S3, or anything that speaks as it does."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine.cache.stores.backend import Buffer
from engine.cache.stores.faults import StoreFault
from engine.errors import BadSettings

ATTEMPTS = 2
FILE = re.compile(r"[^/]+/[0-9a-f]{16}\.kv")
ASIDE = ".damaged"

MISSING = ("NoSuchKey", "404", "NotFound")
DENIED = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    "403",
)
BEYOND = ("InvalidRange", "416")
TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507")


class S3Backend:
    """A bucket, or what in it begins with a prefix. One process owns it.

    Who may use it is told where boto3 looks for it: the environment, its files, the machine's role. An operation
    is tried twice, each try within `timeout_s` of silence.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """No request is made yet. Raises BadSettings without the extra, or for an endpoint that is no address."""
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = _client(endpoint, region, timeout_s)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        body = b"".join(parts)
        with self._told("written"):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=body, IfNoneMatch="*")

    def get(self, name: str, offset: int, length: int) -> Buffer | None:
        if length <= 0:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"
        data: bytes | None = None
        with self._told("read"):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, Range=span)
                data = answer["Body"].read(length)
            except _client_error() as error:
                if _code(error) in BEYOND:
                    data = b""
                elif _code(error) not in MISSING:
                    raise
        return data

    def delete(self, name: str) -> None:
        with self._told("deleted"):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def set_aside(self, name: str) -> None:
        key = self._prefix + name
        with self._told("set aside"):
            source = {"Bucket": self._bucket, "Key": key}
            try:
                self._client.copy_object(Bucket=self._bucket, Key=key + ASIDE, CopySource=source)
            except _client_error() as error:
                if _code(error) not in MISSING:
                    raise
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def names(self) -> Iterator[tuple[str, int]]:
        found = []
        with self._told("listed"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for each in page.get("Contents", ()):
                    name = each["Key"][len(self._prefix) :]
                    if FILE.fullmatch(name):
                        found.append((name, int(each["Size"])))
        return iter(sorted(found))

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn what the library raises into a StoreFault that names the bucket."""
        from botocore import exceptions as theirs  # noqa: PLC0415  the library is an extra

        where = f"s3://{self._bucket}/{self._prefix} could not be {what}"
        try:
            yield
        except theirs.ClientError as error:
            code = _code(error)
            raise StoreFault(_kind(code), f"{where}: the server says {code}") from error
        except (theirs.NoCredentialsError, theirs.PartialCredentialsError) as error:
            raise StoreFault(
                "denied", f"{where}: no credentials were found where boto3 looks for them"
            ) from error
        except (theirs.ConnectTimeoutError, theirs.ReadTimeoutError) as error:
            raise StoreFault("timeout", f"{where}: no answer in time") from error
        except theirs.EndpointConnectionError as error:
            raise StoreFault("unreachable", f"{where}: the server cannot be reached") from error
        except (theirs.BotoCoreError, OSError) as error:
            raise StoreFault("io", f"{where}: {error}") from error


def _client(endpoint: str | None, region: str | None, timeout_s: float) -> Any:
    """A client whose patience is bounded, and that several threads may share."""
    try:
        import boto3  # noqa: PLC0415  the library is an extra
        from botocore.config import Config  # noqa: PLC0415
    except ImportError as error:
        raise BadSettings("a tier behind s3:// needs boto3: pip install 'modelyard[s3]'") from error
    session = boto3.session.Session()
    config = Config(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation="when_required",  # our own are verified on every read
        response_checksum_validation="when_required",
    )
    try:
        return session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or session.region_name or "us-east-1",
            config=config,
        )
    except ValueError as error:
        raise BadSettings(
            f"endpoint is {endpoint!r}, but must be the address of an S3 server: http(s)://host"
        ) from error


def _client_error() -> Any:
    from botocore.exceptions import ClientError  # noqa: PLC0415  the library is an extra

    return ClientError


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _kind(code: str) -> str:
    for kind, codes in (("denied", DENIED), ("taken", TAKEN), ("full", FULL)):
        if code in codes:
            return kind
    return "io"
