"""The registry: every known model under every name it answers to, found in one look-up."""

from engine.errors import BadSettings, NotFound
from engine.settings import ModelSettings

SHOWN_NAMES = 8


class Registry:
    """Models by id (`name`) and by exact version (`name@1.2.3`)."""

    def __init__(self) -> None:
        self._models: dict[str, ModelSettings] = {}
        self._by_name: dict[str, ModelSettings] = {}

    def add(self, model: ModelSettings) -> None:
        """Make a model known. Raises BadSettings when one of its names is taken."""
        names = (model.name, f"{model.name}@{model.version}")
        for name in names:
            if name in self._by_name:
                raise BadSettings(f"two models are called {name!r}; a name must be unique in the fleet")
        for name in names:
            self._by_name[name] = model
        self._models[model.name] = model

    def find(self, name: str) -> ModelSettings:
        """The model of that name, O(1). Raises NotFound with some of the names there are."""
        try:
            return self._by_name[name]
        except KeyError:
            shown = ", ".join(sorted(self._models)[:SHOWN_NAMES])
            more = f" and {len(self) - SHOWN_NAMES} more" if len(self) > SHOWN_NAMES else ""
            raise NotFound(f"no model is called {name[:200]!r}; known are {shown}{more}") from None

    def __len__(self) -> int:
        return len(self._models)
