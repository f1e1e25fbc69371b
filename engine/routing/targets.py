"""Targets: what a name that a request asks for means, and who is asked when that cannot serve."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from engine.errors import BadSettings, EngineError, NotFound, OverQuota
from engine.settings import RoutingSettings

AUTO = "auto"
TAG = "tag:"
ANYBODY = "*"

TOO_LONG = "context_too_long"
OTHERS_MAY_SERVE = (
    "no_replica",
    "replica_lost",
    "load_failed",
    "bad_model",
    "generation_failed",
    "over_quota",
)
"""Reasons of a failure for which fallbacks are tried: another model may well answer."""


class Card(Protocol):
    """What is known of a model here."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def tags(self) -> Iterable[str]: ...
    @property
    def parameters(self) -> int: ...


class Targets:
    """Groups, tags and fallbacks by name. Models are looked up where they are known, through `find`."""

    def __init__(
        self,
        settings: RoutingSettings,
        find: Callable[[str], Card],
        tagged: Callable[[str], Iterable[Card]],
        fleet: Iterable[str],
        everybody: Callable[[], Iterable[Card]] = tuple,
    ) -> None:
        """`fleet` are the names of the models that "auto" means where no group is called that; without any, it
        means `everybody` who is known.

        Raises BadSettings for a group that is called like a model, or names one that nobody knows.
        """
        self._settings = settings
        self._find = find
        self._tagged = tagged
        self._everybody = everybody
        self._groups = dict(settings.groups)
        self._groups.setdefault(AUTO, list(dict.fromkeys(fleet)) or [ANYBODY])
        for group, members in settings.groups.items():
            self._check_group(group, members)
        for experiment in settings.experiments:
            self._check_known(f"routing.experiments.{experiment.name}.on", experiment.on)
            for arm in experiment.arms:
                self._check_known(f"routing.experiments.{experiment.name}.arms", arm.target)
        for key, ways in (
            ("fallbacks", settings.fallbacks),
            ("context_fallbacks", settings.context_fallbacks),
        ):
            for name in dict.fromkeys([*ways, *(each for several in ways.values() for each in several)]):
                self._check_known(f"routing.{key}", name)

    @property
    def named(self) -> Iterable[str]:
        """The groups of the settings, in their order; "auto" and tags mean several models without being named."""
        return self._settings.groups

    def is_group(self, name: str) -> bool:
        """Whether that name means several models."""
        return name in self._groups or name.startswith(TAG)

    def members(self, group: str) -> list[Card]:
        """The models of a group or a tag, in the order of the settings. Raises NotFound where there is none."""
        found: dict[str, Card] = {}
        for name in self._groups.get(group, [group]):
            for card in self._meant_by(name):
                found.setdefault(card.key, card)
        if not found:
            what = (
                f"has the tag {group.removeprefix(TAG)!r}"
                if group.startswith(TAG)
                else f"is in group {group!r}"
            )
            raise NotFound(f"no model {what}")
        return list(found.values())

    def _meant_by(self, name: str) -> Iterable[Card]:
        if name == ANYBODY:
            return self._everybody()
        return self._tagged(name.removeprefix(TAG)) if name.startswith(TAG) else [self._find(name)]

    def groups_of(self, card: Card) -> list[str]:
        """The groups and tags that mean this model too."""
        named = [group for group in self._groups if any(each.key == card.key for each in self._known(group))]
        return [*named, *(TAG + tag for tag in card.tags)]

    def _known(self, group: str) -> list[Card]:
        try:
            return self.members(group)
        except NotFound:
            return []  # of a tag that nobody has, or a model that has left

    def cheapest(self, group: str) -> list[Card]:
        """The models of a group, the smallest first; those of unknown size last."""
        return sorted(self.members(group), key=lambda card: (card.parameters == 0, card.parameters))

    def after(self, name: str, error: EngineError) -> list[str]:
        """Who is asked next when `name` has failed like that; nobody, where no other could do better."""
        settings = self._settings
        if error.reason == TOO_LONG:
            return self._way(settings.context_fallbacks, name)
        if isinstance(error, OverQuota) and not error.is_of_model:
            return []
        return self._way(settings.fallbacks, name) if error.reason in OTHERS_MAY_SERVE else []

    def walk(self, name: str) -> "Walk":
        """The names to try for a request, one after the other."""
        return Walk(self, name, self._settings.max_fallbacks)

    def _way(self, ways: dict[str, list[str]], name: str) -> list[str]:
        if name in ways:
            return ways[name]
        bare = name.partition("@")[0]
        return ways.get(bare, ways.get(ANYBODY, []))

    def _check_group(self, group: str, members: list[str]) -> None:
        try:
            card = self._find(group)
        except NotFound:
            pass
        else:
            raise BadSettings(
                f"routing.groups.{group} is called like the model {card.key}; choose another name"
            )
        for name in members:
            if not name.startswith(TAG):
                self._check_known(f"routing.groups.{group}", name, may_be_group=False)

    def _check_known(self, key: str, name: str, *, may_be_group: bool = True) -> None:
        if name == ANYBODY or (may_be_group and self.is_group(name)):
            return
        try:
            self._find(name)
        except NotFound as error:
            raise BadSettings(f"{key} names {name!r}, but {error}") from error


class Walk:
    """A request's way through its fallbacks: depth first, nobody twice, `most` fallbacks at most."""

    __slots__ = ("_left", "_line", "_seen", "_targets", "name")

    def __init__(self, targets: Targets, name: str, most: int) -> None:
        self.name = name
        self._targets = targets
        self._left = most
        self._line: Sequence[str] = ()
        self._seen: Sequence[str] = (name,)

    def fail(self, error: EngineError) -> bool:
        """The present name could not serve; whether there is another one to try, which is the present one then."""
        after = [name for name in self._targets.after(self.name, error) if name not in self._seen]
        line = [*after, *(name for name in self._line if name not in after)]
        if not line or not self._left:
            return False
        self._left -= 1
        self.name, *self._line = line
        self._seen = (*self._seen, self.name)
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)
