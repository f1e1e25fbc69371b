"""A file of settings in YAML: read within bounds, as plain values, each with the place where it stands.

No aliases: a few lines of them can stand for more than fits in memory. No key twice, of which one would be ignored.
Numbers are those of YAML 1.2 (1e6 is one), and dates stay text.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from engine.errors import BadSettings

MAX_BYTES = 64 << 10
MAX_DEPTH = 24

PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))
FLOAT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+")
TIME = "tag:yaml.org,2002:timestamp"


@dataclass(slots=True)
class Tree:
    """Values by name, and where each was said, by its full name ("server.port", "fleet.models[0].path")."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """What stands under a full name of dots; None where nothing does."""
        found: Any = self.values
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def put(self, name: str, value: Any, place: str) -> None:
        """Let a value stand there from now on. Raises BadSettings where something before it is no group."""
        *groups, last = name.split(".")
        group = self.values
        for depth, part in enumerate(groups, 1):
            if group.get(part) is None:
                group[part] = {}
            group = group[part]
            if not isinstance(group, dict):
                above = ".".join(groups[:depth])
                raise BadSettings(
                    f"{place}: {above} is {group!r}, and so has no setting {name.split('.')[depth]!r}"
                )
        group[last] = value
        self.places = {key: each for key, each in self.places.items() if not _is_within(key, name)}
        self.places[name] = place

    def take(self, name: str) -> Any:
        """What stands under a name at the top, which is gone then."""
        return self.values.pop(name)

    def place(self, name: str) -> str | None:
        """Where that was said, or what it is part of."""
        while name not in self.places:
            shorter = re.sub(r"(\.[^.\[\]]*|\[[^\[\]]*\])$", "", name)
            if shorter == name:
                return None
            name = shorter
        return self.places[name]


def read_yaml(path: Path) -> Tree:
    """The file as it is. Raises BadSettings with the line for what is no YAML, or more than is taken."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadSettings(f"the settings file {path} cannot be read: {_reason(error)}") from error
    if len(data) > MAX_BYTES:
        raise BadSettings(f"the settings file {path} is larger than {MAX_BYTES >> 10} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadSettings(f"{path}, line {line}: is not UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Tree:
    """Text as `read_yaml` takes it; `source` is what it is called."""
    tree = Tree()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = None if node is None else _values(loader, node, "", source, tree.places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        said = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise BadSettings(f"{source}{line}: {said}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise BadSettings(f"{source}: {' '.join(str(error).split())}") from error
    if values is not None and not isinstance(values, dict):
        raise BadSettings(
            f"{source} is {str(values)[:80]!r}, but must be settings by name, like server: {{port: 8000}}"
        )
    tree.values = values or {}
    return tree


def one_value(text: str, source: str) -> Any:
    """A single value, as it may stand behind a name. Raises BadSettings."""
    return parse_yaml(f"value: {text}", source).values["value"]


class _Loader(yaml.SafeLoader):
    """PyYAML's, which counts how deep it is and takes no aliases."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            _refuse(event, f"*{event.anchor} is an alias, but every value must be written where it belongs")
        if self.depth == MAX_DEPTH:
            _refuse(event, f"is nested deeper than {MAX_DEPTH} groups")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIME]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))


def _values(loader: _Loader, node: yaml.Node, name: str, source: str, places: dict[str, str]) -> Any:
    """A node as plain values; where each stands goes to `places`: a value with a name, where its name does."""
    places.setdefault(name, _place(source, node))
    if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
        found: dict[str, Any] = {}
        for key_node, each in node.value:
            key = _name(key_node)
            if key in found:
                _refuse(key_node, f"{_joined(name, key)} is given twice")
            places[_joined(name, key)] = _place(source, key_node)
            found[key] = _values(loader, each, _joined(name, key), source, places)
        return found
    if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
        return [_values(loader, each, f"{name}[{at}]", source, places) for at, each in enumerate(node.value)]
    if node.tag not in PLAIN:
        _refuse(node, f"{node.tag} is no kind of value that a setting has")
    return loader.construct_object(node)


def _name(node: yaml.Node) -> str:
    """A name as it is written: `on` is one here, and so is 1."""
    if not isinstance(node, yaml.ScalarNode) or node.value == "<<":
        _refuse(node, "a name must be text")
    return str(node.value)


def _place(source: str, node: yaml.Node) -> str:
    return f"{source}, line {node.start_mark.line + 1}"


def _refuse(what: Any, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=what.start_mark)


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _is_within(key: str, name: str) -> bool:
    return key == name or key.startswith((f"{name}.", f"{name}["))


def _reason(error: OSError) -> str:
    return (error.strerror or "input or output failed").lower()
