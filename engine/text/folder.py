"""A tokenizer from the files of Hugging Face: tokenizer.json and the small files beside it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import BadModel
from engine.formats import Checkpoint
from engine.text.arrays import ENDS_OF_TURN
from engine.text.tokenizer import MARK, SPACE, Spelling, Tokenizer

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_SMALL_BYTES = 8 * 2**20
MAX_TOKENS = 2**22


def tokenizer_of_folder(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer in a folder. Raises BadModel when tokenizer.json is missing, too large or not one we can use."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    path = folder / "tokenizer.json"
    backend = _backend(path)
    config = _small_file(folder / "tokenizer_config.json")
    added = backend.get_added_tokens_decoder()
    control = frozenset(token for token, entry in added.items() if entry.special)
    pieces = _pieces(path, backend, checkpoint)
    spelling, strips_space = _spelling(path, backend)
    bos_token, eos_token = _token_text(config.get("bos_token")), _token_text(config.get("eos_token"))
    return Tokenizer(
        backend=_with_marks(backend),
        pieces=pieces,
        spelling=spelling,
        control=control,
        added=frozenset(added),
        bos_id=backend.token_to_id(bos_token) if bos_token else None,
        eos_ids=_eos_ids(folder, checkpoint, backend, eos_token, control, len(pieces)),
        bos_token=bos_token,
        eos_token=eos_token,
        strips_space=strips_space,
        chat_template=_chat_template(folder, config),
    )


def _backend(path: Path) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415 - 60 ms, only when a model is loaded

    text = _text(path, MAX_TOKENIZER_BYTES)
    if text is None:
        raise BadModel(path, "no such file; without it the model has no tokenizer")
    try:
        return Backend.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise BadModel(path, f"is no tokenizer ({error})") from error


def _text(path: Path, limit: int) -> str | None:
    """A file's text; None when there is no such file."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > limit:
        raise BadModel(path, f"has {size} bytes, but at most {limit} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadModel(path, f"is not UTF-8 ({error})") from error


def _small_file(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one when there is no such file."""
    text = _text(path, MAX_SMALL_BYTES)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadModel(path, f"is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadModel(path, "is JSON, but no object")
    return value


def _pieces(path: Path, backend: "tokenizers.Tokenizer", checkpoint: Checkpoint) -> list[str]:
    """The tokens by id; ids that nothing has are empty."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    limit = MAX_TOKENS if checkpoint.shape is None else checkpoint.shape.vocab
    highest = max(vocabulary.values(), default=-1)
    if not 0 <= highest < limit:
        raise BadModel(path, f"its highest token is {highest}, but must be from 0 to {limit - 1}")
    pieces = [""] * (highest + 1)
    for piece, token in vocabulary.items():
        pieces[token] = piece
    return pieces


def _spelling(path: Path, backend: "tokenizers.Tokenizer") -> tuple[Spelling, bool]:
    """How tokens are spelled, and whether the first loses a space, from the way that the file decodes them."""
    decoder = None if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return "byte_level", False
    if "Metaspace" in kinds:
        return "sentencepiece", steps[kinds.index("Metaspace")].get("prepend_scheme") != "never"
    if any(kind == "Replace" and step.get("content") == " " for kind, step in zip(kinds, steps, strict=True)):
        return "sentencepiece", any(step.get("type") == "Strip" and step.get("start") for step in steps)
    raise BadModel(
        path, f"decoder {' + '.join(map(str, kinds))!r} is not one that we have; byte-level and {SPACE} are"
    )


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for each in decoder["decoders"] for step in _steps(each)]
    return [decoder]


def _with_marks(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """Control tokens are looked for before the text is normalised, marks are taken out by normalising it."""
    from tokenizers import AddedToken, normalizers  # noqa: PLC0415

    added = backend.get_added_tokens_decoder().values()
    backend.add_special_tokens(
        [
            AddedToken(
                entry.content,
                single_word=entry.single_word,
                lstrip=entry.lstrip,
                rstrip=entry.rstrip,
                normalized=False,
                special=True,
            )
            for entry in added
            if entry.special and entry.normalized
        ]
    )
    unmark = normalizers.Replace(MARK, "")
    own = backend.normalizer
    backend.normalizer = unmark if own is None else normalizers.Sequence([unmark, own])
    return backend


def _token_text(value: Any) -> str:
    """A special token as tokenizer_config.json gives it: its text, or an object with its text."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _eos_ids(
    folder: Path,
    checkpoint: Checkpoint,
    backend: "tokenizers.Tokenizer",
    eos_token: str,
    control: frozenset[int],
    size: int,
) -> tuple[int, ...]:
    generation = _small_file(folder / "generation_config.json")
    ends: list[int] = []
    for config in (generation, checkpoint.metadata):
        value = config.get("eos_token_id")
        ends += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
    known = [backend.token_to_id(text) for text in (eos_token, *ENDS_OF_TURN)]
    ends += [token for token in known if token in control]
    return tuple(dict.fromkeys(token for token in ends if 0 <= token < size))


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """A file of its own goes first; of several named ones, "default"."""
    text = _text(folder / "chat_template.jinja", MAX_SMALL_BYTES)
    if text is not None:
        return text
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
