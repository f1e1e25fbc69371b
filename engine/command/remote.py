"""A server that runs, asked from a terminal: what it answers, or in a sentence why it does not."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from engine.errors import BadSettings, EngineError

ADMIN = "http://127.0.0.1:8001"
ADMIN_ENV = "MODELYARD_ADMIN"
KEY_ENV = "MODELYARD_ADMIN_KEY"
TIMEOUT_S = 30.0
OURS_TO_MEND = set(range(400, 500)) - {408, 429}
"""Statuses that will be the same the next time. The server may be too busy for others."""


class NoAnswer(EngineError):
    """The server is not there, or cannot answer."""

    reason = "no_answer"


@dataclass(frozen=True, slots=True)
class Door:
    """A port of a server, and the key that opens it."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S

    def asked(self, method: str, path: str, body: Any = None) -> Any:
        """What is answered there, as JSON. Raises NoAnswer, and BadSettings for what it says is wrong."""
        data = None if body is None else json.dumps(body).encode()
        text = self._answer(method, path, data)
        try:
            return json.loads(text)
        except ValueError as error:
            raise NoAnswer(f"{self.url} answers, but not as a Modelyard server does") from error

    def text(self, path: str) -> str:
        """What is answered there, as it is. Raises as `asked` does."""
        return self._answer("GET", path, None)

    def lines(self, path: str, body: Any) -> Iterator[str]:
        """The lines of an answer that comes bit by bit, each when it is there. Raises as `asked` does."""
        with self._opened("POST", path, json.dumps(body).encode()) as answer:
            for line in answer:
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    def _answer(self, method: str, path: str, data: bytes | None) -> str:
        with self._opened(method, path, data) as answer:
            raw: bytes = answer.read()
        return raw.decode("utf-8", "replace")

    @contextmanager
    def _opened(self, method: str, path: str, data: bytes | None) -> Iterator[Any]:
        headers = {"content-type": "application/json"} if data is not None else {}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        url = self.url.rstrip("/") + quote(path, safe="/?=&%@")
        request = Request(url, data, headers, method=method)  # noqa: S310  `address` has looked at its scheme
        try:
            with _opener().open(request, timeout=self.timeout_s) as answer:
                yield answer
        except HTTPError as error:
            why = _why(error)
            raise (BadSettings if error.code in OURS_TO_MEND else NoAnswer)(f"{self.url}: {why}") from error
        except (URLError, HTTPException, OSError) as error:
            raise NoAnswer(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from error


def add_door(command: argparse.ArgumentParser) -> None:
    """What a command line says of the server."""
    command.add_argument(
        "--admin", metavar="URL", help=f"the operators' port; default: {ADMIN_ENV}, or else {ADMIN}"
    )
    command.add_argument(
        "--key-env",
        metavar="NAME",
        help=f"the environment variable with an operator's key; default: {KEY_ENV}, where that is set",
    )


def door(chosen: argparse.Namespace, timeout_s: float = TIMEOUT_S) -> Door:
    """The server that a command line names. Raises BadSettings."""
    if chosen.admin is not None:
        url = address("--admin", chosen.admin)
    else:
        url = address(ADMIN_ENV, os.environ.get(ADMIN_ENV) or ADMIN)
    return Door(url, key_from(chosen.key_env, KEY_ENV), timeout_s)


def address(said_by: str, url: str) -> str:
    """Where a server is. Raises BadSettings."""
    if not url.startswith(("http://", "https://")):
        raise BadSettings(f"{said_by} is {url!r}, but must begin with http:// or https://")
    return url


def key_from(variable: str | None, otherwise: str) -> str | None:
    """The key in that environment variable, or in the other one if there is one. Raises BadSettings."""
    key = os.environ.get(variable or otherwise) or None
    if variable is not None and key is None:
        raise BadSettings(f"--key-env is {variable!r}, but no variable of that name holds a key")
    return key


class _NoRedirect(HTTPRedirectHandler):
    """A key goes to the server that was named, and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _opener() -> OpenerDirector:
    """No proxy either: operators' ports are near, and a key in a proxy's log is everybody's."""
    return build_opener(ProxyHandler({}), _NoRedirect)


def _why(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"answered {error.code}"
