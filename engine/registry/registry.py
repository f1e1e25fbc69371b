"""The registry: every known model under every name it answers to, found in one look-up."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from engine.errors import BadSettings, NotFound
from engine.registry.discovery import Changes, Discovery, Found
from engine.registry.health import Health
from engine.registry.model import Model
from engine.registry.store import Remembered, Store
from engine.registry.versions import parse_range

SHOWN_NAMES = 5
SHOWN_LENGTH = 200
MAX_NAME = 512
MAX_RANGES = 4096  # remembered answers: whoever asks for many ranges must not fill the memory
LOOKED_THROUGH = 5000  # names that are compared to find near ones for a message


@dataclass(slots=True)
class _Versions:
    """All versions of one name, and the one that the bare name means: the newest serviceable one."""

    models: list[Model] = field(default_factory=list)  # newest first

    @property
    def newest(self) -> Model:
        return next((model for model in self.models if model.is_serviceable), self.models[0])


class Registry:
    """Models by name, alias, exact version (`name@1.2.3`) and range (`name@^1.2`).

    A name without a version and a range mean the newest version that matches and is serviceable; only where none
    is, the newest that matches, so that the caller learns its reason. Exact forms are one dictionary away; the answer
    to a range is remembered until a model of that name changes.
    """

    def __init__(self, store: Store | None = None) -> None:
        """With a `store`, use counts and operators' edits are those of earlier lives."""
        self._store = store
        self._remembered = store.load() if store is not None else {}
        self._models: dict[str, Model] = {}  # by key
        self._by_name: dict[str, Model] = {}  # every exact form: key, bare name, alias
        self._ranges: dict[str, Model] = {}  # as they were asked for
        self._versions: dict[str, _Versions] = {}
        self._aliases: dict[str, str] = {}
        self._by_tag: dict[str, set[str]] = {}
        self._by_family: dict[str, set[str]] = {}
        self._fixed: dict[str, str] = {}  # what never changes of a model's JSON
        self._files: dict[str, str] = {}  # where a discovered model lies, to its key

    # what is known

    def add(self, model: Model) -> None:
        """Make a model known. Raises BadSettings when its name and version are taken."""
        if model.key in self._models:
            raise BadSettings(f"two models are called {model.key!r}; a name and version must be unique")
        if model.name in self._aliases:
            raise BadSettings(
                f"{model.name!r} is a model and an alias of {self._aliases[model.name]!r}; rename one of them"
            )
        self._recall(model)
        self._models[model.key] = self._by_name[model.key] = model
        versions = self._versions.setdefault(model.name, _Versions())
        versions.models.append(model)
        versions.models.sort(key=lambda each: each.semver, reverse=True)
        for tag in model.tags:
            self._by_tag.setdefault(tag, set()).add(model.key)
        self._by_family.setdefault(model.family, set()).add(model.key)
        self._fixed[model.key] = json.dumps(model.fixed())[1:]
        for alias in model.aliases:
            self.alias(alias, model.key)
        self._refresh(model.name)

    def remove(self, key: str) -> Model:
        """Forget a model. Aliases that lead to it stay and lead nowhere. Raises NotFound."""
        model = self._models.get(key)
        if model is None:
            raise self._not_found(key)
        del self._models[key], self._by_name[key], self._fixed[key]
        versions = self._versions[model.name]
        versions.models.remove(model)
        for tag in model.tags:
            self._by_tag[tag].discard(key)
        self._by_family[model.family].discard(key)
        if not versions.models:
            del self._versions[model.name]
        self._refresh(model.name)
        return model

    def alias(self, name: str, target: str) -> None:
        """Let a name mean a model, a version or a range. Raises BadSettings for a name that is taken, or a circle."""
        taken = self._versions.get(name) is not None or name in self._models
        if taken or self._aliases.get(name, target) != target:
            owner = self._aliases.get(name, name)
            raise BadSettings(f"alias {name!r} of {target!r} is taken: it means {owner!r} already")
        seen, place = [name], target
        while place in self._aliases:
            seen.append(place)
            if place == name:
                break
            place = self._aliases[place]
        if place == name:
            raise BadSettings(f"aliases go in a circle: {' -> '.join([*seen, target][: len(seen) + 1])}")
        if "@" in name:
            raise BadSettings(f"alias {name!r} has an @, which stands before versions; choose a name without")
        self._aliases[name] = target
        self._refresh(name)

    def learn(self, found: Discovery) -> None:
        """Make everything known that was found in a folder, good or not."""
        for each in found.found:
            self._learn(each)

    def relearn(self, changes: Changes) -> tuple[list[Model], list[Model]]:
        """Take over what a rescan found; the models that are gone, and those that are new.

        A changed file is a model that is gone and one that is new.
        """
        gone = [self.remove(key) for key in self._keys_of((*changes.removed, *changes.changed))]
        new = [self._learn(each) for each in (*changes.changed, *changes.added)]
        return gone, new

    def _learn(self, found: Found) -> Model:
        if found.checkpoint is None:
            model = Model.broken(found.shown, found.reason or "it is no model")
        else:
            model = Model.from_checkpoint(found.checkpoint, found.reason)
        if model.key in self._models:  # a name may be taken by a model of the settings, too
            other = self._models[model.key]
            taken = f"its name {model.key} is taken by {other.file or 'a model of the settings'}"
            model = Model.broken(found.shown, model.reason or taken)
        if model.key in self._models:
            return self._models[model.key]
        self.add(model)
        self._files[found.path] = model.key
        return model

    def _keys_of(self, found: Iterable[Found]) -> list[str]:
        keys = [self._files.pop(each.path, None) for each in found]
        return [key for key in keys if key is not None]

    # who is asked for

    def find(self, name: str) -> Model:
        """The model of that name, alias, version or range. Raises NotFound with names that are near."""
        model = self._by_name.get(name)
        if model is None:
            model = self._ranges.get(name)
            if model is None:
                model = self._resolve(name)
        return model

    def __len__(self) -> int:
        return len(self._models)

    def all(self) -> list[Model]:
        """Every model, by key."""
        return [self._models[key] for key in sorted(self._models)]

    def with_tag(self, tag: str) -> list[Model]:
        """Every model with that tag, by key."""
        return [self._models[key] for key in sorted(self._by_tag.get(tag, ()))]

    def of_family(self, family: str) -> list[Model]:
        """Every model of that architecture, by key."""
        return [self._models[key] for key in sorted(self._by_family.get(family, ()))]

    def set_state(self, key: str, state: Health, reason: str | None = None) -> None:
        """A model is doing otherwise than before."""
        model = self._models[key]
        was_serviceable = model.is_serviceable
        model.state, model.reason = state, reason
        if model.is_serviceable is not was_serviceable:
            self._refresh(model.name)

    def used(self, model: Model, now_ns: int) -> None:
        """A request asks for it."""
        model.use_count += 1
        model.last_used_ns = now_ns

    # what people have said

    def edit(
        self,
        key: str,
        *,
        tags: tuple[str, ...] | None = None,
        aliases: tuple[str, ...] | None = None,
        is_pinned: bool | None = None,
    ) -> Model:
        """Change what an operator may change. With a store it is on disk when this returns. Raises NotFound."""
        model = self.find(key)
        if tags is not None:
            for tag in model.tags:
                self._by_tag[tag].discard(model.key)
            model.tags = tags
            for tag in tags:
                self._by_tag.setdefault(tag, set()).add(model.key)
        if aliases is not None:
            for alias in model.aliases:
                self._aliases.pop(alias, None)
                self._refresh(alias)
            for alias in aliases:
                self.alias(alias, model.key)
            model.aliases = aliases
        if is_pinned is not None:
            model.is_pinned = is_pinned
        if self._store is not None:
            self._store.write({model.key: _remember(model)})
        return model

    def flush(self, now_at: str) -> None:
        """Put the use counts of all models on disk. `now_at` is the UTC time for those used since the last flush."""
        if self._store is None:
            return
        for model in self._models.values():
            if model.last_used_ns is not None:
                model.last_used_at, model.last_used_ns = now_at, None
        self._store.write({model.key: _remember(model) for model in self._models.values() if model.use_count})

    def as_json(self) -> str:
        """All models as the OpenAI API lists them, with our fields beside. The id of a model is its name where that
        alone means it, otherwise name@version.
        """
        return '{"object": "list", "data": [' + ", ".join(map(self.model_json, self.all())) + "]}"

    def model_json(self, model: Model) -> str:
        """One model as the OpenAI API has it, with our fields beside."""
        known = json.dumps(
            {
                "id": model.name if self._by_name.get(model.name) is model else model.key,
                "state": str(model.state),
                "reason": model.reason,
                "tags": model.tags,
                "aliases": model.aliases,
                "pinned": model.is_pinned,
                "use_count": model.use_count,
                "last_used": model.last_used_at,
            }
        )
        return f"{known[:-1]}, {self._fixed[model.key]}"

    # inside

    def _recall(self, model: Model) -> None:
        """Give a model back what was known of it in an earlier life."""
        known = self._remembered.get(model.key)
        if known is not None:
            model.use_count, model.last_used_at = known.use_count, known.last_used_at
            if known.is_edited:
                model.tags, model.is_pinned = known.tags, known.is_pinned
                free = [
                    name for name in known.aliases if name not in self._aliases and name not in self._versions
                ]
                model.aliases = tuple(free)

    def _refresh(self, name: str) -> None:
        """What a name, its aliases and ranges mean may have changed."""
        names, place = [name], 0
        while place < len(names):  # aliases of aliases, too
            names += [
                alias for alias, target in self._aliases.items() if target.partition("@")[0] == names[place]
            ]
            place += 1
        for each in names:
            versions = self._versions.get(each)
            if versions is not None:
                self._by_name[each] = versions.newest
            else:
                self._by_name.pop(each, None)
        self._ranges = {
            asked: model for asked, model in self._ranges.items() if asked.partition("@")[0] not in names
        }

    def _resolve(self, name: str) -> Model:
        """Follow aliases and ranges, and remember where they lead."""
        if len(name) > MAX_NAME:
            raise self._not_found(name)
        place = name
        while (target := self._aliases.get(place)) is not None:
            place = target
            if place in self._by_name:
                break
        model = self._by_name.get(place) or self._newest_in(place)
        if model is None:
            raise self._not_found(name)
        if len(self._ranges) >= MAX_RANGES:
            self._ranges.pop(next(iter(self._ranges)))
        self._ranges[name] = model
        return model

    def _newest_in(self, name: str) -> Model | None:
        """The newest serviceable version in a range; without one, the newest in it."""
        bare, at, text = name.partition("@")
        if not at:
            return None
        for _ in range(len(self._aliases)):
            if bare not in self._aliases:
                break
            bare = self._aliases[bare].partition("@")[0]
        versions, asked = self._versions.get(bare), parse_range(text)
        if versions is None or asked is None:
            return None
        inside = [model for model in versions.models if model.semver in asked]
        return next((model for model in inside if model.is_serviceable), inside[0] if inside else None)

    def _not_found(self, name: str) -> NotFound:
        bare = name[:MAX_NAME].partition("@")[0]
        versions = self._versions.get(bare)
        shown = f"no model is called {name[:SHOWN_LENGTH]!r}"
        if versions is not None:
            known = ", ".join(model.version for model in versions.models[:SHOWN_NAMES])
            return NotFound(f"{shown}; the versions of {bare!r} are {known}")
        names = sorted([*self._versions, *self._aliases])
        near = (
            get_close_matches(bare[:SHOWN_LENGTH], names[:LOOKED_THROUGH], SHOWN_NAMES) or names[:SHOWN_NAMES]
        )
        more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
        return NotFound(f"{shown}; known are {', '.join(near)}{more}" if names else f"{shown}; none is known")


def _remember(model: Model) -> Remembered:
    return Remembered(
        use_count=model.use_count,
        last_used_at=model.last_used_at,
        is_edited=True,
        tags=model.tags,
        aliases=model.aliases,
        is_pinned=model.is_pinned,
    )
