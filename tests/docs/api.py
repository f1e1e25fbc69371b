"""docs/api.md, made from the code and from what a running server says of itself.

python -m tests.docs.api > docs/api.md
"""

import ast
import json
import sys
from urllib.request import urlopen

from engine.server.openapi import ALWAYS
from tests.docs import source
from tests.engine.server.conftest import modelled, running

USUAL = tuple(map(str, ALWAYS))
PROBES = ("/health", "/ready", "/metrics", "/openapi.json")

SETTINGS = {
    "server": ("engine.server.settings", "ServerSettings"),
    "server.limits": ("engine.server.settings", "LimitsSettings"),
    "server.audit": ("engine.server.settings", "AuditSettings"),
    "server.log": ("engine.server.settings", "LogSettings"),
    "server.traces": ("engine.server.settings", "TraceSettings"),
    "server.jobs": ("engine.server.settings", "JobSettings"),
    "models": ("engine.settings", "LoadingSettings"),
    "fleet": ("engine.settings", "FleetSettings"),
    "fleet.models[]": ("engine.settings", "ModelSettings"),
    "fleet.models[].architecture": ("engine.settings", "Architecture"),
    "executor: torch": ("engine.execution.torch_executor", "TorchOptions"),
    "executor: transformers": ("engine.execution.transformers_executor", "TransformersOptions"),
    "executor: roofline": ("engine.execution.roofline", "RooflineOptions"),
    "executor: profile": ("engine.execution.profile", "ProfileOptions"),
    "executor: law": ("engine.execution.law", "LawOptions"),
    "hardware": ("engine.settings", "HardwareSettings"),
    "routing": ("engine.settings", "RoutingSettings"),
    "routing.experiments[]": ("engine.settings", "ExperimentSettings"),
    "routing.experiments[].arms[]": ("engine.settings", "ArmSettings"),
    "routing.experiments[].ramp[]": ("engine.settings", "RampStep"),
    "health": ("engine.settings", "HealthSettings"),
    "quotas": ("engine.settings", "QuotaSettings"),
    "quotas.limits[]": ("engine.settings", "AllowanceSettings"),
    "quotas.modes.NAME": ("engine.settings", "ModeSettings"),
    "cache": ("engine.settings", "CacheSettings"),
    "cache.TIER": ("engine.settings", "TierSettings"),
    "cache.limits[]": ("engine.settings", "LimitSettings"),
}

PYTHON = {
    "engine.engine": ["Engine"],
    "engine.request": None,
    "engine.clock": ["Clock", "Timer", "Signal", "WallClock"],
    "engine.errors": None,
    "engine.named": None,
    "engine.server.running": ["Server", "serve"],
    "engine.server.settings_file": ["Deployment", "deployment"],
    "engine.registry": "exported",
    "engine.routing": "exported",
    "engine.quotas": "exported",
    "engine.cache": "exported",
    "engine.execution": "exported",
    "engine.telemetry": "exported",
    "engine.text": "exported",
    "engine.formats": "exported",
    "engine.stand_ins": "exported",
}
"""Modules, and which of their names: None is all public ones."""

INTRODUCTION = """# API reference

Made from the code by `python -m tests.docs.api > docs/api.md`; a test compares. What can be done
with all of it stands in the [guide](guide/quick-start.md).

- [HTTP, for clients](#http-for-clients), [for operators](#http-for-operators), [bodies](#bodies)
- [Settings](#settings)
- [Python: the simulator](#python-the-simulator), [the engine](#python-the-engine)
"""


def page():
    """The whole of it."""
    with running(modelled()) as server:
        public, operators = described(server.url), described(server.admin_url)
    lines = [INTRODUCTION, *_http(public, operators), *_settings(), *_simulator(), *_engine()]
    return "\n".join(lines) + "\n"


def described(url):
    with urlopen(f"{url}/openapi.json") as answer:  # noqa: S310  loopback
        return json.load(answer)


# HTTP


def _http(public, operators):
    yield "## HTTP, for clients\n"
    yield (
        "The server's own description is `GET /openapi.json`, on both ports. Every answer that is an error is a\n"
        f"[Failure](#failure). Usual errors are {', '.join(USUAL)}.\n"
    )
    yield from _routes(public, lambda path: True)
    yield "\n| header of a generation | |\n|---|---|"
    for parameter in public["paths"]["/v1/chat/completions"]["post"]["parameters"]:
        yield f"| `{parameter['name']}` | {parameter['schema']['type']}: {parameter['description']} |"
    yield "\n## HTTP, for operators\n"
    yield f"On `server.admin_port`. {', '.join(f'`{path}`' for path in PROBES)} are there too.\n"
    yield from _routes(operators, lambda path: path not in PROBES)
    yield "\n## Bodies\n"
    yield "What clients and operators send, and what they are answered where it has a form of its own.\n"
    schemas = public["components"]["schemas"] | operators["components"]["schemas"]
    for name, schema in sorted(schemas.items()):
        yield from _schema(name, schema)


def _routes(description, wanted):
    yield "| route | does | takes | answers | errors |\n|---|---|---|---|---|"
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if not wanted(path):
                continue
            query = [f"`?{each['name']}`" for each in operation["parameters"] if each["in"] == "query"]
            sent = [_content(operation.get("requestBody", {})), *query]
            given = _content(operation["responses"]["200"])
            errors = [status for status in operation["responses"] if status != "200"]
            usual = all(status in errors for status in USUAL)
            said = ", ".join(
                ["as usual"] * usual + [each for each in errors if not usual or each not in USUAL]
            )
            takes = ", ".join(filter(None, sent))
            yield f"| `{method.upper()} {path}` | {operation['summary']} | {takes} | {given} | {said} |"


def _content(part):
    """What a body is, by content type."""
    kinds = part.get("content", {})
    return " or ".join(
        _type(each["schema"]) if kind in ("application/json", "multipart/form-data") else f"`{kind}`"
        for kind, each in kinds.items()
    )


def _schema(name, schema):
    yield f"### {name}\n"
    if "description" in schema:
        yield " ".join(schema["description"].split()) + "\n"
    if not schema.get("properties"):
        return
    required = schema.get("required", ())
    yield "| field | type | default |\n|---|---|---|"
    for field, kind in schema["properties"].items():
        default = "" if field in required else f"`{json.dumps(kind.get('default'))}`"
        yield f"| `{field}` | {_type(kind)} | {default} |"
    yield ""


def _type(schema):
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(each)}`" for each in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        kind = f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    return kind + _bounds(schema)


def _bounds(schema):
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "minItems": "{} or more",
        "maxItems": "up to {}",
        "minLength": "{} characters or more",
        "maxLength": "up to {} characters",
        "maxProperties": "up to {} keys",
    }
    said = [form.format(schema[key]) for key, form in words.items() if key in schema]
    return f" ({', '.join(said)})" if said else ""


# settings


def _settings():
    yield "\n## Settings\n"
    yield (
        "Names as they stand in a [settings file](server.md) and on a command line; `[]` is each of a list.\n"
        "Units are in the names. `executor` is a name, or a group with `name` and the options of that executor.\n"
    )
    for key, (module_name, name) in SETTINGS.items():
        home, node = source.module(module_name).find(name)
        yield f"### `{key}`\n"
        yield from (f"{paragraph}\n" for paragraph in source.docstring(node) if paragraph)
        yield "| setting | type | default | unit | |\n|---|---|---|---|---|"
        for each in source.fields(home, node):
            default = f"`{each.default}`" if each.default else "none: has to be said"
            kind = each.type.replace("|", "\\|")
            yield f"| `{each.name}` | `{kind}` | {default} | {each.unit} | {each.remark} |"
        yield ""


# Python


def _simulator():
    yield "## Python: the simulator\n"
    home = source.module("sim")
    yield f"`import sim`. {source.first_paragraph(home.tree)}\n"
    _, homes = home.find("_HOMES")
    where = ast.literal_eval(homes.value)
    for name in home.exported:
        yield from _entry(name, source.module(where[name]).find(name))


def _engine():
    yield "## Python: the engine\n"
    yield f"{source.first_paragraph(source.module('engine').tree)} Modules that have other names may move.\n"
    for module_name, names in PYTHON.items():
        home = source.module(module_name)
        yield f"### `{module_name}`\n"
        yield f"{source.first_paragraph(home.tree)}\n"
        wanted = home.public if names is None else home.exported if names == "exported" else names
        for name in wanted:
            yield from _entry(name, home.find(name))


def _entry(name, found):
    """A class, a function or a constant."""
    _, node = found
    if isinstance(node, ast.ClassDef):
        yield from _class(node)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        prefix = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
        yield f"#### `{prefix}{source.signature(node)}`\n"
        yield f"{source.first_paragraph(node)}\n"
    else:
        yield f"#### `{name} = {source.value(node)}`\n"


def _class(node):
    called, said = source.constructor(node)
    bases = [
        ast.unparse(base) for base in node.bases if ast.unparse(base) not in ("Generic[T]", "msgspec.Struct")
    ]
    of = f" ({', '.join(bases)})" if bases else ""
    yield f"#### class `{called}`{of}\n"
    yield " ".join(filter(None, (source.first_paragraph(node), said))) + "\n"
    properties, others = source.methods(node)
    for shown, words in [*properties, *others]:
        yield f"- `{shown}`" + (f": {words}" if words else "")
    if properties or others:
        yield ""


if __name__ == "__main__":
    sys.stdout.write(page())
