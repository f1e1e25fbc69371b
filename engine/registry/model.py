"""A model as the registry knows it: what its files say of it, how it is doing, and what people have said about it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semver import Version

from engine.errors import BadSettings
from engine.formats import Checkpoint
from engine.registry.health import Health
from engine.settings import ModelSettings

SERVICEABLE = (Health.HEALTHY, Health.DEGRADED, Health.LOADING, Health.UNLOADED)
"""States in which a model is worth asking for: it serves, or will when it is asked for."""

OWNER = "modelyard"
"""Of every model, in the words of OpenAI's API."""

SETTINGS = "settings"
"""The format of a model that a configuration describes."""


@dataclass(slots=True, kw_only=True, eq=False)
class Model:
    """One version of a model.

    `settings` is what executors need of it; None for a file that is no good, of which `reason` then says why.
    `path` is for our own eyes; `file` is what others may see. `last_used_at` is a UTC time that survives a restart,
    `last_used_ns` the engine's clock in this life. `flushed_count` is the use count that is on disk. `is_edited`: an
    operator has changed tags, aliases, pin or note, which then stand over what the files say.
    """

    name: str
    version: str = "1.0.0"
    settings: ModelSettings | None = None
    architecture: str = ""
    family: str = ""
    parameters: int = 0
    quantisation: str = ""
    size_bytes: int = 0
    context_tokens: int = 0
    licence: str | None = None
    format: str = ""
    path: str | None = None
    file: str | None = None
    created_s: int = 0
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    state: Health = Health.UNLOADED
    reason: str | None = None
    is_pinned: bool = False
    note: str = ""
    is_edited: bool = False
    use_count: int = 0
    flushed_count: int = 0
    last_used_ns: int | None = None
    last_used_at: str | None = None
    semver: Version = field(init=False, repr=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Raises BadSettings for a version that is none, and for a name that would look like another's version."""
        if not self.name or "@" in self.name:
            raise BadSettings(
                f"the name of a model is {self.name!r}, but must have at least one character and no @, which stands "
                "before versions"
            )
        try:
            self.semver = Version.parse(self.version)
        except ValueError:
            raise BadSettings(
                f"the version of model {self.name!r} is {self.version!r}, but must be one like 1.2.3 (semver.org)"
            ) from None
        self.key = f"{self.name}@{self.version}"

    @property
    def is_serviceable(self) -> bool:
        """Whether it is worth asking for."""
        return self.state in SERVICEABLE

    @classmethod
    def from_settings(cls, settings: ModelSettings) -> "Model":
        """A model that a configuration describes."""
        shape = settings.architecture
        return cls(
            name=settings.name,
            version=settings.version,
            settings=settings,
            architecture=shape.family if shape else "",
            family=shape.family if shape else "",
            parameters=shape.parameters if shape else 0,
            size_bytes=round(shape.parameters * settings.weight_bytes) if shape else 0,
            context_tokens=shape.context_tokens if shape else 0,
            path=settings.path,
            format=SETTINGS,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, reason: str | None = None) -> "Model":
        """A model on disk. With a `reason` it is listed and not served: its name may be taken, for one.

        An architecture that our decoder does not run is left to a library where that reads such a folder.
        """
        settings = None
        if reason is None and checkpoint.shape is None and checkpoint.format == "gguf":
            reason = checkpoint.why_not
        if reason is None:
            settings = ModelSettings(
                name=checkpoint.name,
                version=checkpoint.version,
                architecture=checkpoint.shape,
                path=str(checkpoint.path),
                weight_bytes=checkpoint.size_bytes / max(1, checkpoint.parameters),
            )
        return cls(
            name=checkpoint.name,
            version=checkpoint.version,
            settings=settings,
            architecture=checkpoint.architecture,
            family=checkpoint.family,
            parameters=checkpoint.parameters,
            quantisation=checkpoint.quantisation,
            size_bytes=checkpoint.size_bytes,
            context_tokens=checkpoint.context_tokens,
            licence=checkpoint.licence,
            format=checkpoint.format,
            path=str(checkpoint.path),
            file=checkpoint.path.name,
            created_s=_modified_s(checkpoint.path),
            tags=checkpoint.tags,
            state=Health.UNLOADED if reason is None else Health.UNHEALTHY,
            reason=reason,
        )

    @classmethod
    def broken(cls, file: str, reason: str, *, name: str | None = None) -> "Model":
        """A file that should be a model and is none. It is called like the file, with _ for @."""
        return cls(name=(name or file).replace("@", "_"), file=file, state=Health.UNHEALTHY, reason=reason)

    @property
    def public_reason(self) -> str | None:
        """Why it is unhealthy, for clients."""
        return None if self.reason is None else self.public(self.reason)

    def public(self, text: str) -> str:
        """What is said of it, for clients: its files without the folder of this machine that they lie in."""
        folder = "." if self.path is None else str(Path(self.path).parent)
        return text if folder in (".", "/") else text.replace(f"{folder}/", "")

    def fixed(self) -> dict[str, Any]:
        """What does not change while it is known, for clients. No path of this machine is in it."""
        return {
            "object": "model",
            "created": self.created_s,
            "owned_by": OWNER,
            "max_model_len": self.context_tokens,
            "version": self.version,
            "architecture": self.architecture,
            "family": self.family,
            "parameters": self.parameters,
            "quantization": self.quantisation,
            "size_bytes": self.size_bytes,
            "context_tokens": self.context_tokens,
            "format": self.format,
            "file": self.file,
            "licence": self.licence,
        }


def _modified_s(path: Path) -> int:
    """When a file was last changed, in seconds of Unix time; 0 for one that has gone since it was read."""
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0
