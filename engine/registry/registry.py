"""The registry: every known model under every name it answers to, found in one look-up."""

import json
import os
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import count

from engine.errors import BadSettings, NotFound
from engine.registry.discovery import Changes, Discovery, Found
from engine.registry.health import Health
from engine.registry.model import SETTINGS, Model
from engine.registry.store import Edits, Remembered, Store
from engine.registry.versions import Range, parse_range

SHOWN_NAMES = 5
SHOWN_LENGTH = 200
MAX_NAME = 512
MAX_RANGES = 4096  # remembered answers: whoever asks for many ranges must not fill the memory
COMPARED_NAMES = 64  # for a message; 5,000 of them held up everybody for 0.2 s at every wrong name
COMPARED_LENGTH = 64


class Registry:
    """Models by name, alias, exact version (`name@1.2.3`) and range (`name@^1.2`, `name@>=1 <2`, `name@1.x`).

    A name without a version and a range mean the newest version that matches and is serviceable; only where none
    is, the newest that matches, so that the caller learns its reason. A pre-release is meant by a range that names
    one of the same version, and by a bare name that has nothing else. Names, aliases and exact versions are one
    dictionary away; the answer to a range is remembered until a model of that name changes.
    """

    def __init__(self, store: Store | None = None) -> None:
        """With a `store`, use counts and operators' edits are those of earlier lives."""
        self._store = store
        self._remembered = store.load() if store is not None else {}
        self._models: dict[str, Model] = {}  # by key
        self._versions: dict[str, list[Model]] = {}  # of a name, oldest first
        self._by_name: dict[str, Model] = {}  # every exact form: key, bare name, alias
        self._ranges: dict[str, Model] = {}  # as they were asked for, oldest answer first
        self._ranges_of: dict[str, set[str]] = {}  # the same by bare name or alias
        self._aliases: dict[str, str] = {}
        self._aliases_of: dict[str, set[str]] = {}  # of a bare name, or of another alias
        self._by_tag: dict[str, set[str]] = {}
        self._by_family: dict[str, set[str]] = {}
        self._fixed: dict[str, str] = {}  # what never changes of a model's JSON
        self._key_of_file: dict[str, str] = {}  # of models that were discovered
        self._file_of_key: dict[str, str] = {}
        self._gone: dict[str, Model] = {}  # removed, and used since the last flush
        self._names: list[str] | None = None  # names and aliases, sorted; made when a message needs them

    # what is known

    def add(self, model: Model) -> None:
        """Make a model known. Raises BadSettings, and changes nothing, when one of its names is taken."""
        self._check_free(model)
        self._recall(model)
        self._models[model.key] = self._by_name[model.key] = model
        insort(self._versions.setdefault(model.name, []), model, key=_age)
        self._index(self._by_family, [model.family], model.key)
        self._index(self._by_tag, model.tags, model.key)
        self._fixed[model.key] = json.dumps(model.fixed())[1:]
        for alias in model.aliases:
            self._link(alias, model.key)
        self._names = None
        self._refresh(model.name)

    def remove(self, key: str) -> Model:
        """Forget a model, and the aliases that are its own. Others that lead to it stay and lead nowhere.

        What operators said of it is kept for its return. Raises NotFound.
        """
        model = self._models.get(key)
        if model is None:
            raise self._not_found(key)
        self._keep(model)
        for alias in model.aliases:
            self._unlink(alias)
        del self._models[key], self._by_name[key], self._fixed[key]
        self._unindex(self._by_family, [model.family], key)
        self._unindex(self._by_tag, model.tags, key)
        self._key_of_file.pop(self._file_of_key.pop(key, ""), None)
        versions = self._versions[model.name]
        versions.remove(model)
        if not versions:
            del self._versions[model.name]
        self._names = None
        self._refresh(model.name)
        return model

    def replace(self, model: Model) -> Model:
        """Put a model in the place of the one with its name and version, which is returned. Counts and edits stay.

        Raises NotFound when there is none; BadSettings, and changes nothing, when an alias of the new one is taken.
        """
        old, path = self._models.get(model.key), self._file_of_key.get(model.key)
        if old is None:
            raise self._not_found(model.key)
        for alias in model.aliases:
            if alias not in old.aliases:
                self._check_alias(alias, model.key)
        self.remove(model.key)
        self.add(model)
        if path is not None:
            self._note_file(path, model.key)
        return old

    def alias(self, name: str, target: str) -> None:
        """Let a name mean a model, a version or a range, there or not. Asked for `alias@range`, both must fit.

        Raises BadSettings for a name that is taken, a circle, or a target that means nothing.
        """
        self._check_alias(name, target)
        self._link(name, target)

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

    # who is asked for

    def find(self, name: str) -> Model:
        """The model of that name, alias, version or range. Raises NotFound with names that are near."""
        model = self._by_name.get(name)
        if model is None:
            model = self._ranges.get(name)
            if model is None:
                model = self._resolve(name)
        return model

    def __contains__(self, key: str) -> bool:
        """Whether a model of that name@version is known."""
        return key in self._models

    def __len__(self) -> int:
        return len(self._models)

    def all(self) -> list[Model]:
        """Every model, by key."""
        return self._sorted(self._models)

    def with_tag(self, tag: str) -> list[Model]:
        """Every model with that tag, by key."""
        return self._sorted(self._by_tag.get(tag, ()))

    def of_family(self, family: str) -> list[Model]:
        """Every model of that architecture, by key."""
        return self._sorted(self._by_family.get(family, ()))

    def set_state(self, key: str, state: Health, reason: str | None = None) -> None:
        """A model is doing otherwise than before. Raises NotFound."""
        model = self._models.get(key)
        if model is None:
            raise self._not_found(key)
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
        name: str,
        *,
        tags: Sequence[str] | None = None,
        aliases: Sequence[str] | None = None,
        is_pinned: bool | None = None,
        note: str | None = None,
    ) -> Model:
        """Change what an operator may change. With a store it is on disk when this returns.

        Raises NotFound, and BadSettings when an alias is taken or the disk fails; nothing is changed then.
        """
        model = self.find(name)
        edits = Edits(
            tags=model.tags if tags is None else tuple(dict.fromkeys(tags)),
            aliases=model.aliases if aliases is None else tuple(dict.fromkeys(aliases)),
            is_pinned=model.is_pinned if is_pinned is None else is_pinned,
            note=model.note if note is None else note,
        )
        for alias in edits.aliases:
            self._check_alias(alias, model.key)
        if self._store is not None:
            self._store.edit(model.key, edits)
        self._unindex(self._by_tag, model.tags, model.key)
        self._index(self._by_tag, edits.tags, model.key)
        for alias in set(model.aliases).difference(edits.aliases):
            self._unlink(alias)
        for alias in edits.aliases:
            self._link(alias, model.key)
        _apply(model, edits)
        return model

    def flush(self, now_at: str) -> None:
        """Put the use counts that have changed on disk. `now_at` is the UTC time, for models used since the last
        flush: no other is known of them. Raises BadSettings when the disk fails; the next flush tries again.
        """
        used = [model for model in self._models.values() if model.use_count != model.flushed_count]
        used += self._gone.values()
        if self._store is not None:
            self._store.flush({model.key: (model.use_count, now_at) for model in used})
        for model in used:
            model.flushed_count, model.last_used_at = model.use_count, now_at
        for key in self._gone:
            self._remembered[key].last_used_at = now_at
        self._gone.clear()

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
                "reason": model.public_reason,
                "tags": model.tags,
                "aliases": model.aliases,
                "pinned": model.is_pinned,
                "note": model.note,
                "use_count": model.use_count,
                "last_used": model.last_used_at,
            }
        )
        return f"{known[:-1]}, {self._fixed[model.key]}"

    def check_integrity(self) -> None:
        """Assert what must always hold."""
        assert {key for key in self._by_name if "@" in key} == set(self._models)
        assert sum(map(len, self._versions.values())) == len(self._models)
        assert all(versions == sorted(versions, key=_age) for versions in self._versions.values())
        for name in (*self._versions, *self._aliases):
            assert self._by_name.get(name) is self._meant_by(name), "what a name means is up to date"
        for asked, model in self._ranges.items():
            assert self._meant_by(asked) is model, "what a range means is up to date"
        assert set(self._ranges) == {asked for each in self._ranges_of.values() for asked in each}
        assert len(self._ranges) <= MAX_RANGES

    # inside: taking in and letting go

    def _check_free(self, model: Model) -> None:
        if model.key in self._models:
            raise BadSettings(f"two models are called {model.key!r}; a name and version must be unique")
        if model.name in self._aliases:
            raise BadSettings(
                f"{model.name!r} is a model and an alias of {self._aliases[model.name]!r}; rename one of them"
            )
        for alias in model.aliases:
            self._check_alias(alias, model.key)
            if alias == model.name:
                raise BadSettings(f"alias {alias!r} of {model.key!r} is the name of that model itself")

    def _owner(self, model: Model) -> str | None:
        """Who has the name of a model already."""
        other = self._models.get(model.key)
        if other is not None:
            return other.file or f"the model {other.key!r} of the settings"
        target = self._aliases.get(model.name)
        return None if target is None else f"an alias of {target!r}"

    def _learn(self, found: Found) -> Model:
        """Add what was found. A name that is taken costs this file: it is listed, under a name of its own."""
        if found.checkpoint is None:
            model = Model.broken(found.shown, found.reason or "it is no model")
        else:
            model = Model.from_checkpoint(found.checkpoint, found.reason)
        owner = self._owner(model)
        if owner is not None and self._is_of_settings(model):
            model.settings = self._models[model.key].settings
            self.replace(model)
        elif owner is not None:
            reason = model.reason or f"its name {model.key} is taken by {owner}"
            names = (f"{found.shown} ({number})" if number > 1 else found.shown for number in count(1))
            cards = (Model.broken(found.shown, reason, name=name) for name in names)
            model = next(card for card in cards if self._owner(card) is None)
            self.add(model)
        else:
            self.add(model)
        self._note_file(found.path, model.key)
        return model

    def _is_of_settings(self, model: Model) -> bool:
        """Whether the settings name the very file that was found: then it is that model, and its header is read."""
        known = self._models.get(model.key)
        if known is None or known.format != SETTINGS or known.path is None or model.path is None:
            return False
        return os.path.realpath(known.path) == os.path.realpath(model.path)

    def _note_file(self, path: str, key: str) -> None:
        self._key_of_file[path], self._file_of_key[key] = key, path

    def _keys_of(self, found: Iterable[Found]) -> list[str]:
        keys = [self._key_of_file.get(each.path) for each in found]
        return [key for key in keys if key is not None]

    def _recall(self, model: Model) -> None:
        """Give a model back what was known of it earlier. Aliases that others have taken since are left out."""
        known = self._remembered.get(model.key)
        if known is None:
            return
        model.use_count = model.flushed_count = known.use_count
        model.last_used_at = known.last_used_at
        gone = self._gone.pop(model.key, None)
        if gone is not None:
            model.flushed_count = gone.flushed_count
        if known.edits is not None:
            _apply(model, known.edits)
            model.aliases = tuple(each for each in known.edits.aliases if self._is_free(each, model))

    def _is_free(self, alias: str, model: Model) -> bool:
        try:
            self._check_alias(alias, model.key)
        except BadSettings:
            return False
        return alias != model.name

    def _keep(self, model: Model) -> None:
        """Remember what a model that goes would have to be told when it comes back."""
        if model.use_count != model.flushed_count:
            self._gone[model.key] = model
        if model.use_count or model.is_edited:
            edits = None
            if model.is_edited:
                edits = Edits(
                    tags=model.tags, aliases=model.aliases, is_pinned=model.is_pinned, note=model.note
                )
            self._remembered[model.key] = Remembered(
                use_count=model.use_count, last_used_at=model.last_used_at, edits=edits
            )

    def _sorted(self, keys: Iterable[str]) -> list[Model]:
        return [self._models[key] for key in sorted(keys)]

    def _index(self, index: dict[str, set[str]], words: Iterable[str], key: str) -> None:
        for word in words:
            index.setdefault(word, set()).add(key)

    def _unindex(self, index: dict[str, set[str]], words: Iterable[str], key: str) -> None:
        for word in words:
            keys = index.get(word, set())
            keys.discard(key)
            if not keys:
                index.pop(word, None)

    # inside: what a name means

    def _check_alias(self, name: str, target: str) -> None:
        if not name or "@" in name:
            raise BadSettings(
                f"alias {name!r} must have at least one character and no @, which stands before versions"
            )
        owner = self._aliases.get(name, name if name in self._versions else target)
        if owner != target:
            raise BadSettings(f"alias {name!r} of {target!r} is taken: it means {owner!r} already")
        bare, at, text = target.partition("@")
        if not bare or (at and parse_range(text) is None):
            raise BadSettings(
                f"alias {name!r} means {target!r}, but must mean a name, or one with a version or range behind an @"
            )
        path = [name, bare]
        while path[-1] != name and path[-1] in self._aliases:
            path.append(self._aliases[path[-1]].partition("@")[0])
        if path[-1] == name:
            raise BadSettings(f"aliases go in a circle: {' -> '.join(path)}")

    def _link(self, name: str, target: str) -> None:
        self._aliases[name] = target
        self._aliases_of.setdefault(target.partition("@")[0], set()).add(name)
        self._names = None
        self._refresh(name)

    def _unlink(self, name: str) -> None:
        target = self._aliases.pop(name, None)
        if target is not None:
            self._unindex(self._aliases_of, [target.partition("@")[0]], name)
            self._names = None
            self._refresh(name)

    def _refresh(self, name: str) -> None:
        """What a name, its aliases and ranges mean may have changed."""
        for each in self._and_aliases(name):
            for asked in self._ranges_of.pop(each, ()):
                del self._ranges[asked]
            model = self._meant_by(each)
            if model is None:
                self._by_name.pop(each, None)
            else:
                self._by_name[each] = model

    def _and_aliases(self, name: str) -> Iterator[str]:
        """The name, its aliases, theirs, and so on: there are no circles."""
        waiting = [name]
        while waiting:
            each = waiting.pop()
            yield each
            waiting.extend(self._aliases_of.get(each, ()))

    def _resolve(self, asked: str) -> Model:
        """Find out what a range means, and remember it."""
        model = self._meant_by(asked)
        if model is None:
            raise self._not_found(asked)
        if len(self._ranges) >= MAX_RANGES:
            oldest = next(iter(self._ranges))
            del self._ranges[oldest]
            self._unindex(self._ranges_of, [oldest.partition("@")[0]], oldest)
        self._ranges[asked] = model
        self._ranges_of.setdefault(asked.partition("@")[0], set()).add(asked)
        return model

    def _meant_by(self, asked: str) -> Model | None:
        """Follow aliases to a model. Every range on the way has to fit."""
        ranges: list[Range] = []
        while True:
            exact = self._models.get(asked)
            if exact is not None and not ranges:
                return exact
            bare, at, text = asked.partition("@")
            if at:
                wanted = parse_range(text)
                if wanted is None:
                    return None
                ranges.append(wanted)
            if bare not in self._aliases:
                break
            asked = self._aliases[bare]
        versions = self._versions.get(bare, [])
        if ranges:
            inside = [model for model in versions if all(model.semver in each for each in ranges)]
        else:
            inside = [model for model in versions if not model.semver.prerelease] or versions
        return next(
            (model for model in reversed(inside) if model.is_serviceable), inside[-1] if inside else None
        )

    def _not_found(self, asked: str) -> NotFound:
        bare = asked[:MAX_NAME].partition("@")[0]
        shown = f"no model is called {asked[:SHOWN_LENGTH]!r}"
        if bare in self._aliases:
            shown += f"; {bare!r} is an alias of {self._aliases[bare]!r}"
        if bare in self._versions:
            known = ", ".join(model.version for model in self._versions[bare][: -SHOWN_NAMES - 1 : -1])
            return NotFound(f"{shown}; the newest versions of {bare!r} are {known}")
        if self._names is None:
            self._names = sorted([*self._versions, *self._aliases])
        if not self._names:
            return NotFound(f"{shown}; none is known")
        near = _near(bare, self._names)
        more = f" and {len(self._names) - len(near)} more" if len(self._names) > len(near) else ""
        return NotFound(f"{shown}; known are {', '.join(name[:SHOWN_LENGTH] for name in near)}{more}")


def _age(model: Model) -> tuple[object, str]:
    """Old before new; builds of one version, which semver does not tell apart, by their text."""
    return model.semver, model.version


def _near(asked: str, names: Sequence[str]) -> list[str]:
    """Names that look like the one that was asked for, of those that stand near it in the alphabet."""
    middle = bisect_left(names, asked)
    first = max(0, min(middle - COMPARED_NAMES // 2, len(names) - COMPARED_NAMES))
    compared = {name[:COMPARED_LENGTH]: name for name in names[first : first + COMPARED_NAMES]}
    close = get_close_matches(asked[:COMPARED_LENGTH], compared, SHOWN_NAMES)
    return [compared[name] for name in close] or list(names[:SHOWN_NAMES])


def _apply(model: Model, edits: Edits) -> None:
    model.tags, model.aliases = edits.tags, edits.aliases
    model.is_pinned, model.note, model.is_edited = edits.is_pinned, edits.note, True
