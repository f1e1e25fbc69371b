"""Ask for things by name: strategies, eviction policies, executors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, Signature, signature
from types import FunctionType
from typing import Any, Generic, TypeVar, get_args, get_origin

from engine.errors import BadSettings, UnknownName

T = TypeVar("T")
Class = TypeVar("Class", bound=type[Any])


@dataclass(slots=True)
class Named(Generic[T]):
    """A table of classes by name: filled by decoration at import, read by `make`.

    `homes` names the modules of classes that are imported only when asked for, because they bring a heavy
    library with them; importing such a module decorates its class and so fills the table.
    """

    kind: str
    homes: dict[str, str] = field(default_factory=dict)
    classes: dict[str, type[T]] = field(default_factory=dict)

    def __call__(self, name: str) -> Callable[[Class], Class]:
        def register(cls: Class) -> Class:
            if name in self.classes:
                raise ValueError(f"{self.kind} {name!r} has two owners: {self.classes[name]} and {cls}")
            self.classes[name] = cls
            return cls

        return register

    def names(self) -> list[str]:
        """Every name that `find` answers to, sorted."""
        return sorted({**self.classes, **self.homes})

    def find(self, name: str) -> type[T]:
        """The class of that name. Raises UnknownName with the names there are."""
        if name not in self.classes and name in self.homes:
            import_module(self.homes[name])
        if name not in self.classes:
            known = ", ".join(self.names())
            raise UnknownName(f"no {self.kind} is called {name!r}; choose from {known}")
        return self.classes[name]

    def make(self, name: str, /, *arguments: object, **options: object) -> T:
        """A new instance of the class of that name.

        Raises UnknownName with the names there are, or BadSettings for options that it does not take.
        """
        cls = self.find(name)
        taken = _signature(cls)
        try:
            taken.bind(*arguments, **options)
        except TypeError as error:
            raise BadSettings(f"{self.kind} {name!r} does not take these options: {error}") from error
        for option, value in options.items():
            wanted = taken.parameters[option].annotation if option in taken.parameters else None
            if not _is_of(value, wanted):
                raise BadSettings(
                    f"{self.kind} {name!r} has {option} {value!r}, but it must be {_said(wanted)}"
                )
        return cls(*arguments, **options)


KINDS: dict[Any, str] = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
"""What an option may be, in words."""
SEVERAL: dict[Any, str] = {float: "numbers", int: "whole numbers", str: "text"}


def _said(wanted: Any) -> str:
    if wanted in KINDS:
        return KINDS[wanted]
    of_keys, of_values = (SEVERAL.get(each, "values") for each in get_args(wanted))
    return f"a map from {of_keys} to {of_values}"


def _is_of(value: object, wanted: Any) -> bool:
    """Whether a value is of a type; a class looks itself at what is none of the plain ones."""
    if get_origin(wanted) is dict:
        of_keys, of_values = get_args(wanted)
        return isinstance(value, dict) and all(
            _is_of(key, of_keys) and _is_of(each, of_values) for key, each in value.items()
        )
    if wanted not in KINDS:
        return True
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def _signature(cls: type[Any]) -> Signature:
    """What a class is called with.

    A compiled one may say that its parameters have no names; they have. It says nothing of their types; defaults do.
    """
    by_name, is_compiled = Parameter.POSITIONAL_OR_KEYWORD, not isinstance(cls.__init__, FunctionType)
    return Signature(
        [
            each.replace(kind=by_name, annotation=type(each.default))
            if each.kind is Parameter.POSITIONAL_ONLY or (is_compiled and each.kind is by_name)
            else each
            for each in signature(cls).parameters.values()
        ]
    )
