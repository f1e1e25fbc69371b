"""Making stand-ins: each is drawn, quantised and written aside, and gets its name when it is whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BadSettings, UnknownName
from engine.stand_ins.designs import REFERENCE, StandIn, designs
from engine.stand_ins.folder import folder_files
from engine.stand_ins.gguf_file import gguf_files
from engine.stand_ins.vocabulary import Training, train, vocabulary_of
from engine.stand_ins.weights import KINDS, stored_weights

FORMATS = ("gguf", "safetensors")
MAX_PARTS = 16  # no stand-in has so few tensors that a part would be empty
WEIGHTS = "model*.safetensors*"


def make_stand_ins(
    folder: Path,
    names: Sequence[str | StandIn] | None = None,
    *,
    kind: str = "Q8_0",
    formats: Sequence[str] = ("gguf",),
    parts: int = 1,
    max_shard_bytes: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write the stand-ins of these models (by default the five of the reference workload) into `folder`.

    Each becomes `NAME-KIND.gguf`, split into `parts`, or a folder NAME with safetensors of at most `max_shard_bytes`
    (unless one tensor is larger), or both; the answer is a path for each, of a split file the first part. Made again
    they are the same bytes; other files in `folder` stay as they are. A design of one's own may stand in the place of
    a name: `dataclasses.replace(designs["phi-4"], seed=7)` is another model of that name. `progress` is told of each
    that is done. Both formats of a model have one name, so that a registry serves one of them only.

    Raises UnknownName for a name that is not in `designs`, BadSettings for whatever else cannot be.
    """
    asked = REFERENCE if names is None else names
    chosen = [each if isinstance(each, StandIn) else _design(each) for each in asked]
    form = _Form(kind, tuple(formats), parts, max_shard_bytes)
    _make_folder(folder)
    training = train()
    written = []
    for stand_in in chosen:
        for path in _written(stand_in, folder, training, form):
            written.append(path)
            if progress is not None:
                progress(f"{path.name}: {stand_in.architecture.parameters:,} weights")
    return written


@dataclass(slots=True, frozen=True)
class _Form:
    """In what form stand-ins are written."""

    kind: str
    formats: tuple[str, ...]
    parts: int
    max_shard_bytes: int | None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadSettings(f"stand-ins cannot be stored as {self.kind!r}; choose from {', '.join(KINDS)}")
        if not self.formats or not set(self.formats) <= set(FORMATS):
            wrong = ", ".join(self.formats) or "none"
            raise BadSettings(f"formats of stand-ins are {wrong}, but must be some of {', '.join(FORMATS)}")
        if not 1 <= self.parts <= MAX_PARTS:
            raise BadSettings(f"stand-ins cannot be split into {self.parts} parts; choose 1 to {MAX_PARTS}")
        if self.max_shard_bytes is not None and self.max_shard_bytes < 1:
            raise BadSettings(f"max_shard_bytes is {self.max_shard_bytes}, but must be at least 1, or None")


def _design(name: str) -> StandIn:
    if name not in designs:
        raise UnknownName(f"no stand-in is called {name!r}; choose from {', '.join(designs)}")
    return designs[name]


def _written(stand_in: StandIn, folder: Path, training: Training, form: _Form) -> Iterator[Path]:
    vocabulary = vocabulary_of(stand_in, training)
    weights = stored_weights(stand_in, form.kind)
    if "gguf" in form.formats:
        files = gguf_files(stand_in, vocabulary, weights, form.parts)
        yield _write_gguf(folder, f"{stand_in.name}-{form.kind}", files)
    if "safetensors" in form.formats:
        contents = folder_files(stand_in, vocabulary, weights, form.max_shard_bytes)
        yield _write_folder(folder / stand_in.name, contents)


def _write_gguf(folder: Path, stem: str, files: Sequence[bytes]) -> Path:
    """The file, or the first of its parts, which comes last: without it the others are no model."""
    paths = [folder / f"{stem}.gguf"]
    if len(files) > 1:
        numbers = range(1, len(files) + 1)
        paths = [folder / f"{stem}-{number:05d}-of-{len(files):05d}.gguf" for number in numbers]
    for path, data in reversed(list(zip(paths, files, strict=True))):
        _write(path, data)
    return paths[0]


def _write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder, config.json last. Weights that an earlier making left in it are taken away."""
    _make_folder(folder)
    for name, data in files.items():
        _write(folder / name, data)
    for path in folder.glob(WEIGHTS):
        if path.name not in files:
            path.unlink()
    return folder


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadSettings(
            f"stand-ins cannot be written into {folder}: it, or what should hold it, is a file, but must be a folder"
        ) from error


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
