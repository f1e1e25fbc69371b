"""The OpenAPI 3.1 description of a port, made of the routes that it has and the structs that it reads and writes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from engine.request import MAX_BIAS, MAX_BIASES, MAX_LOGPROBS, MAX_PENALTY, MAX_TEMPERATURE
from engine.server import admin, described
from engine.server.answers import JSON, encode
from engine.server.bodies import ROLES, ChatBody, CompletionBody
from engine.server.client import Client
from engine.server.gate import Gate, Handler
from engine.server.jobs import routes as jobs
from engine.server.jobs.store import STATES
from engine.server.settings import LimitsSettings

PATH = "/openapi.json"
TEMPLATE = "#/components/schemas/{name}"
EVENTS, TEXT, BYTES, FORM = (
    "text/event-stream",
    "text/plain",
    "application/octet-stream",
    "multipart/form-data",
)
JSON_BODY = "application/json"

EVENT = {
    "type": "object",
    "description": "One event of the stream: readers of OpenAPI 3.1 take this schema for that of each.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}

ALWAYS = (400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 501, 503)
"""What any route may answer that asks for a key."""

GENERATING = (*ALWAYS, 500, 502, 504)
PROBES = (400, 405, 408, 431, 501, 503)

PHRASES = {
    400: "The request is no good; the message says which part of it, and what is allowed.",
    401: "No API key is given, or none that is known.",
    403: "The key is not for that.",
    404: "There is no such thing.",
    405: "Not with that method.",
    408: "The request did not come in time.",
    409: "Not in the state that it is in.",
    413: "The body is too large.",
    415: "The body is not JSON, or compressed.",
    416: "The file has no such part.",
    429: "A limit is reached; retry-after says when to come again.",
    431: "The headers are too many or too large.",
    500: "Something went wrong on our side.",
    501: "The body comes in a transfer coding that is not read.",
    502: "The replica died with the request in its hands.",
    503: "Nothing can serve that now.",
    504: "The deadline came first.",
    507: "The disk of the server is full.",
}

SESSION = ("x-session-id", "string", "Requests of one session go to the replica that served it before.")
PRIORITY = ("x-priority", "integer", "A larger one goes first; a key may have a highest one.")
DEADLINE = ("x-deadline-ms", "integer", "An answer that takes longer than this is given up.")
REQUEST_ID = ("x-request-id", "string", "A name for the request, which is answered and logged.")
TRACE = ("traceparent", "string", "The caller's trace, as W3C has it.")
OF_GENERATION = (SESSION, PRIORITY, DEADLINE, REQUEST_ID, TRACE)


@dataclass(frozen=True, slots=True)
class About:
    """What there is to say of a route: what it takes, and what it gives by content type."""

    summary: str
    gives: Any = None
    takes: Any = None
    kind: str = JSON_BODY  # of what it takes
    also: str | None = None  # another content type that it may give
    gives_kind: str = JSON_BODY
    headers: tuple[tuple[str, str, str], ...] = ()
    query: Mapping[str, Any] = field(default_factory=dict)
    statuses: tuple[int, ...] = ALWAYS
    may_be_empty: bool = False  # the body


def count(most: int, least: int = 1) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


AFTER = {"type": "string"}
ORDER = {"type": "string", "enum": ["desc", "asc"]}

ROUTES: dict[str, About] = {
    "POST /v1/chat/completions": About(
        "Answer a conversation, in one piece or token by token.",
        described.ChatCompletion,
        ChatBody,
        also=EVENTS,
        headers=OF_GENERATION,
        statuses=GENERATING,
    ),
    "POST /v1/completions": About(
        "Continue a text, in one piece or token by token.",
        described.Completion,
        CompletionBody,
        also=EVENTS,
        headers=OF_GENERATION,
        statuses=GENERATING,
    ),
    "GET /v1/models": About(
        "List the models and the named groups that the key may use.", described.ModelCards
    ),
    "GET /v1/models/{name}": About("Tell of one model, or of a group.", described.ModelCard),
    "GET /metrics": About(
        "All metrics, for Prometheus; of all tenants, so for an operator's key.", gives_kind=TEXT
    ),
    "GET /health": About("Whether the process answers.", described.Health, statuses=PROBES),
    "HEAD /health": About("Whether the process answers.", gives_kind="", statuses=PROBES),
    "GET /ready": About("Whether requests are welcome.", described.Readiness, statuses=PROBES),
    "HEAD /ready": About("Whether requests are welcome.", gives_kind="", statuses=PROBES),
    f"GET {PATH}": About("This description.", dict[str, Any]),
    "POST /v1/files": About(
        "Upload a file for a batch.", described.FileCard, described.Upload, FORM, statuses=(*ALWAYS, 507)
    ),
    "GET /v1/files": About(
        "List files.",
        described.FilePage,
        query={"limit": count(jobs.MAX_FILES), "after": AFTER, "order": ORDER, "purpose": {"type": "string"}},
    ),
    "GET /v1/files/{id}": About("Tell of one file.", described.FileCard),
    "DELETE /v1/files/{id}": About("Delete a file.", described.FileDeleted, statuses=(*ALWAYS, 409, 507)),
    "GET /v1/files/{id}/content": About("What stands in a file.", gives_kind=BYTES, statuses=(*ALWAYS, 416)),
    "POST /v1/batches": About(
        "Have the requests of a file answered when the fleet is idle.",
        described.BatchCard,
        jobs.NewBatch,
        statuses=(*ALWAYS, 409, 507),
    ),
    "GET /v1/batches": About(
        "List batches.", described.BatchPage, query={"limit": count(jobs.MAX_BATCHES), "after": AFTER}
    ),
    "GET /v1/batches/{id}": About("Tell of one batch.", described.BatchCard),
    "POST /v1/batches/{id}/cancel": About(
        "Cancel a batch.", described.BatchCard, statuses=(*ALWAYS, 409, 507)
    ),
    "GET /admin/status": About("All of it on one page.", dict[str, Any]),
    "GET /admin/models": About("Models, and what they have in memory.", dict[str, Any]),
    "POST /admin/models/{name}/load": About(
        "Bring a model into memory; answered when it is there.", described.Changed, statuses=GENERATING
    ),
    "POST /admin/models/{name}/unload": About(
        "Drain a model; answered when it has left.", described.Changed, statuses=GENERATING
    ),
    "POST /admin/models/{name}/drain": About("Drain a model; answered at once.", described.Changed),
    "PUT /admin/models/{name}/pin": About(
        "Keep a model in memory, or no more.", described.Changed, admin.Pinned, may_be_empty=True
    ),
    "POST /admin/models/{name}/pin": About(
        "Keep a model in memory, or no more.", described.Changed, admin.Pinned, may_be_empty=True
    ),
    "POST /admin/rescan": About("Look at the models folder again.", described.Changed),
    "POST /admin/replicas/{name}/drain": About("Give a replica no more requests.", described.Changed),
    "POST /admin/replicas/{name}/resume": About("Give a replica requests again.", described.Changed),
    "GET /admin/routing": About("Strategy, options, and each replica's place.", dict[str, Any]),
    "PUT /admin/routing/strategy": About("Let another strategy choose.", described.Changed, admin.Strategy),
    "POST /admin/explain": About(
        "Who would serve such a request now, and why.", dict[str, Any], admin.Explained
    ),
    "GET /admin/experiments": About("What came of each arm.", Any),
    "PUT /admin/experiments/{name}/weights": About(
        "Other shares of an experiment's arms.", described.Changed, admin.Weights
    ),
    "GET /admin/quotas": About("Rules, and what is used of them.", dict[str, Any]),
    "PUT /admin/quotas": About(
        "Other limits: those that are sent. What is spent stays spent.", described.Changed, dict[str, Any]
    ),
    "PUT /admin/mode": About("How far the service degrades.", described.Changed, admin.Mode),
    "GET /admin/cache": About("All figures of the cache.", dict[str, Any]),
    "GET /admin/jobs": About(
        "List jobs.",
        described.Listed,
        query={
            "state": {"type": "string", "enum": list(STATES)},
            "kind": {"type": "string"},
            "after": count((1 << 62) - 1),
            "limit": count(jobs.MAX_JOBS),
        },
    ),
    "POST /admin/jobs": About("Have a job done.", dict[str, Any], jobs.NewJob, statuses=(*ALWAYS, 409, 507)),
    "GET /admin/jobs/kinds": About("What jobs there are.", described.Listed),
    "GET /admin/jobs/schedules": About("Jobs that come again and again.", described.Listed),
    "PUT /admin/jobs/schedules/{name}": About(
        "Have a job done again and again.", dict[str, Any], jobs.NewSchedule, statuses=(*ALWAYS, 507)
    ),
    "GET /admin/jobs/{id}": About("Tell of one job.", dict[str, Any]),
    "POST /admin/jobs/{id}/cancel": About("Cancel a job.", dict[str, Any], statuses=(*ALWAYS, 409, 507)),
}


class Pages:
    """The description of a port, made when somebody asks for it first."""

    def __init__(
        self, title: str, version: str, keys: Iterable[str], limits: LimitsSettings, *, needs_key: bool
    ) -> None:
        self._title = title
        self._needs_key = needs_key
        self._version = version
        self._keys = [*keys, f"GET {PATH}"]
        self._limits = limits
        self._page: bytes | None = None

    async def show(self, client: Client) -> None:
        if self._page is None:
            page = description(
                self._title, self._version, self._keys, self._limits, needs_key=self._needs_key
            )
            self._page = encode(page)
        await client.answer(200, JSON, self._page)


def keys_of(hot: Mapping[tuple[str, str], Handler], cold: Iterable[BaseRoute]) -> list[str]:
    """Method and path of all routes, as the description names them."""
    found = [f"{method} {path}" for method, path in hot]
    for route in cold:
        assert isinstance(route, Route), "nothing else is served"
        path = _PLACE.sub(r"{\1}", route.path)
        found += [f"{method} {path}" for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


_PLACE = re.compile(r"\{(\w+):\w+\}")


def description(
    title: str, version: str, keys: Iterable[str], limits: LimitsSettings, *, needs_key: bool
) -> dict[str, Any]:
    """All of a port. A route of which nothing is said here is told by its name."""
    structs = _structs(keys)
    _, schemas = msgspec.json.schema_components(structs, ref_template=TEMPLATE)
    _bound(schemas, limits)
    paths: dict[str, dict[str, Any]] = {}
    for key in keys:
        method, _, path = key.partition(" ")
        about = ROUTES.get(key) or About(key)
        paths.setdefault(path, {})[method.lower()] = _operation(key, path, about)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if needs_key else [],
    }


def _structs(keys: Iterable[str]) -> list[Any]:
    """What the routes read and write that has a schema of its own."""
    found: dict[Any, None] = {described.Failure: None}
    for key in keys:
        about = ROUTES.get(key)
        for kind in (about.takes, about.gives) if about is not None else ():
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                found[kind] = None
    return list(found)


def _operation(key: str, path: str, about: About) -> dict[str, Any]:
    method, _, _ = key.partition(" ")
    told: dict[str, Any] = {
        "summary": about.summary,
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "parameters": [*_places(path), *_headers(about), *_query(about)],
        "responses": _answers(about, is_empty=method == "HEAD"),
    }
    if path in Gate.OPEN:
        told["security"] = []
    if about.takes is not None:
        told["requestBody"] = {
            "required": not about.may_be_empty,
            "content": {about.kind: {"schema": _schema(about.takes)}},
        }
    return told


def _places(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _headers(about: About) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "schema": {"type": kind}, "description": words}
        for name, kind, words in about.headers
    ]


def _query(about: About) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": schema} for name, schema in about.query.items()]


def _answers(about: About, *, is_empty: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if about.gives_kind == JSON_BODY:
        content[JSON_BODY] = {"schema": _schema(about.gives)}
    elif about.gives_kind:
        content[about.gives_kind] = {"schema": {"type": "string"}}
    if about.also is not None:
        content[about.also] = {"schema": EVENT}
    answers: dict[str, Any] = {
        "200": {"description": "It is done.", **({"content": content} if content else {})}
    }
    for status in sorted(set(about.statuses)):
        answers[str(status)] = {"description": PHRASES[status]}
        if not is_empty:
            fault = _schema(described.Failure)
            if status == 503 and about.gives is described.Readiness:  # noqa: PLR2004  as it is called everywhere
                fault = {"anyOf": [fault, _schema(described.Readiness)]}
            answers[str(status)]["content"] = {JSON_BODY: {"schema": fault}}
        if status in (429, 503):
            answers[str(status)]["headers"] = {
                "retry-after": {"schema": {"type": "string"}, "description": "In seconds."},
                "retry-after-ms": {"schema": {"type": "string"}, "description": "The same, exactly."},
            }
    return answers


def _schema(kind: Any) -> dict[str, Any]:
    if kind is Any or kind is None:
        return {}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {"$ref": TEMPLATE.format(name=kind.__name__)}
    return {"type": "object"}


def _bound(schemas: dict[str, Any], limits: LimitsSettings) -> None:
    """Put in what the structs do not say: bounds that are checked after parsing."""
    tokens: dict[str, Any] = {"minimum": 1}
    if limits.max_output_tokens is not None:
        tokens["maximum"] = limits.max_output_tokens
    penalty: dict[str, Any] = {"minimum": -MAX_PENALTY, "maximum": MAX_PENALTY}
    both: dict[str, dict[str, Any]] = {
        "temperature": {"minimum": 0, "maximum": MAX_TEMPERATURE},
        "top_p": {"exclusiveMinimum": 0, "maximum": 1},
        "min_p": {"minimum": 0, "maximum": 1},
        "repetition_penalty": {"exclusiveMinimum": 0},
        "n": {"minimum": 1, "maximum": limits.max_choices},
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "frequency_penalty": penalty,
        "presence_penalty": penalty,
        "logit_bias": {
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
        },
        "user": {"maxLength": limits.max_id_chars},
        "top_logprobs": {"minimum": 0, "maximum": min(limits.max_top_logprobs, MAX_LOGPROBS)},
        "messages": {"minItems": 1, "maxItems": limits.max_messages},
        "tools": {"maxItems": limits.max_tools},
    }
    for name in ("ChatBody", "CompletionBody"):
        for field_name, schema in schemas.get(name, {}).get("properties", {}).items():
            for variant in schema.get("anyOf", [schema]):
                if field_name == "stop" and variant["type"] != "null":
                    is_one = variant["type"] == "string"
                    variant.update({"minLength": 1} if is_one else {"maxItems": limits.max_stop})
                elif variant.get("type") != "null":
                    variant.update(both.get(field_name, {}))
    if "Upload" in schemas:  # what a file is cannot be said in JSON
        schemas["Upload"]["properties"]["file"] = {"contentMediaType": BYTES}
    if "Message" in schemas:
        schemas["Message"]["properties"]["role"]["enum"] = list(ROLES)
