"""Python source as a reader of an API wants it: names, signatures, fields, first paragraphs."""

import ast
import inspect
import io
import re
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNITS = (
    ("_gib_per_s", "GiB/s"),
    ("_bytes_per_s", "bytes/s"),
    ("_tokens_per_s", "tokens/s"),
    ("_requests_per_s", "requests/s"),
    ("tokens_per_s", "tokens/s"),
    ("requests_per_s", "requests/s"),
    ("max_per_s", "lines/s"),
    ("gib_per_s", "GiB/s"),
    ("_ns", "ns"),
    ("_us", "us"),
    ("_ms", "ms"),
    ("_s", "s"),
    ("_bytes", "bytes"),
    ("_gib", "GiB"),
    ("gib", "GiB"),
    ("_tokens", "tokens"),
    ("flops", "FLOP/s"),
)
MAX_VALUE = 80


@dataclass
class Field:
    """A field of a dataclass or struct."""

    name: str
    type: str
    default: str
    unit: str
    remark: str


@dataclass
class Module:
    """A module's tree, its comments by line, and where its names come from."""

    name: str
    tree: ast.Module
    comments: dict[int, str]

    def find(self, name):
        """The node that defines a name, and the module in which that stands."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return self, node
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = (
                    each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
                )
                if any(each.id == name for each in names):
                    return self, node
            if isinstance(node, ast.ImportFrom) and node.module.startswith(("engine", "sim")):
                for each in node.names:
                    if (each.asname or each.name) == name:
                        return module(node.module).find(each.name)
        raise LookupError(f"{self.name} has no {name}")

    @property
    def exported(self):
        """What `__all__` names, in its order."""
        _, node = self.find("__all__")
        return ast.literal_eval(node.value)

    @property
    def public(self):
        """Classes and functions without an underscore, as they stand there."""
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        return [node.name for node in self.tree.body if isinstance(node, kinds) and node.name[0] != "_"]


@cache
def module(name):
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text("utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {
        token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT
    }
    return Module(name, ast.parse(text), comments)


def docstring(node):
    """The whole of it, its lines joined to paragraphs."""
    return [" ".join(part.split()) for part in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")]


def first_paragraph(node):
    return docstring(node)[0]


def is_decorated(node, name):
    return any(ast.unparse(each).partition("(")[0].endswith(name) for each in node.decorator_list)


def fields(home, node):
    """The fields of a dataclass or a struct, with what their comments say."""
    found = []
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or item.target.id.startswith("_"):
            continue
        remarks = [
            home.comments[line] for line in range(item.lineno, item.end_lineno + 1) if line in home.comments
        ]
        remarks = [remark for remark in remarks if not remark.startswith("noqa")]
        name = item.target.id
        found.append(
            Field(
                name,
                annotation(item.annotation),
                _default(item.value),
                unit(name),
                " ".join(remarks),
            )
        )
    return found


def _default(value):
    if value is None:
        return ""
    text = ast.unparse(value)
    made = re.fullmatch(r"field\(default_factory=(.*?)(, repr=False)?\)", text)
    if made is None:
        return _plain(text)
    text = made[1].removeprefix("lambda: ")
    return {"dict": "{}", "list": "[]"}.get(
        text, text if text.endswith(")") or text[0] == "[" else f"{text}()"
    )


def _plain(text):
    """Constants that are sums and powers, as numbers: 8 * MIB stays as it is, 1 << 18 does not."""
    try:
        return repr(eval(text, {"__builtins__": {}}))  # noqa: S307  of our own source, and no name is known to it
    except NameError:
        return text


def unit(name):
    return next((unit for suffix, unit in UNITS if name.endswith(suffix)), "")


def annotation(node):
    """A type, without the quotes that only Python needs."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def signature(node):
    """Its parameters, `self` left out, and what it gives."""
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    shown = [_parameter(arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if plain and plain[0].arg in ("self", "cls"):
        del shown[0]
    if args.vararg is not None:
        shown.append(f"*{_parameter(args.vararg, None)}")
    elif args.kwonlyargs:
        shown.append("*")
    shown += [_parameter(arg, given) for arg, given in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg is not None:
        shown.append(f"**{_parameter(args.kwarg, None)}")
    returned = "" if node.returns is None else f" -> {annotation(node.returns)}"
    return f"{node.name}({', '.join(shown)}){returned}"


def _parameter(arg, default):
    typed = "" if arg.annotation is None else f": {annotation(arg.annotation)}"
    return f"{arg.arg}{typed}" + ("" if default is None else f" = {ast.unparse(default)}")


def methods(node):
    """Public ones, properties apart, each with its signature and first paragraph."""
    properties, others = [], []
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name[0] != "_":
            said = first_paragraph(item)
            if is_decorated(item, "property") or is_decorated(item, "cached_property"):
                properties.append((f"{item.name}: {annotation(item.returns)}", said))
            elif not is_decorated(item, "setter"):
                prefix = "await " if isinstance(item, ast.AsyncFunctionDef) else ""
                others.append((f"{prefix}{signature(item)}", said))
    return properties, others


def constructor(node):
    """What a class is called with."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return signature(item).replace("__init__", node.name, 1).removesuffix(
                " -> None"
            ), first_paragraph(item)
    if is_decorated(node, "dataclass") or any("Struct" in ast.unparse(base) for base in node.bases):
        home = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        shown = [
            f"{item.target.id}: {annotation(item.annotation)}{' = ...' if item.value is not None else ''}"
            for item in home
            if not item.target.id.startswith("_")
        ]
        return f"{node.name}({', '.join(shown)})", ""
    return node.name, ""


def value(node):
    """What a constant is, cut off where it is long."""
    text = " ".join(ast.unparse(node.value).split()) if node.value is not None else ""
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."
