"""A tokenizer built from the arrays of a GGUF: tokens, their types, and merges or scores.

Two kinds are built. "gpt2" is byte-level BPE: merges in order, text cut into words by the pattern that
`tokenizer.ggml.pre` names. "llama" is the BPE of SentencePiece: no merges but scores; two neighbours join where
their join is a token, best score first, so each way to cut a token in two is a merge and the score its rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import BadModel
from engine.formats import Checkpoint
from engine.formats.gguf import GgufArray, read_array
from engine.text.tokenizer import MARK, SPACE, Tokenizer

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

ENDS_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""What ends an answer in the models that we know, whatever a file's eos_token_id says."""

# Tokens that files of older converters list as ordinary text to be matched whole.
TURN_MARKS = frozenset({*ENDS_OF_TURN, "<start_of_turn>"})

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CASELESS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CASELESS}|{_WORD}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}"
_GPT4O = rf"{_CASED[0]}{_CASELESS}?|{_CASED[1]}{_CASELESS}?|\p{{N}}{{1,3}}|{_CASED_REST}"


@dataclass(frozen=True, slots=True)
class Cut:
    """How text is cut into words before merging, and what else goes with a name in `tokenizer.ggml.pre`.

    `words` match the words; `digits`: each digit is cut off first. `whole`: a word that is a token is one, whatever
    the merges say (vocabularies that come from tiktoken). `bos`: texts begin with BOS unless the file says.
    """

    words: str
    digits: bool = False
    whole: bool = False
    bos: bool = False


_LLAMA3_CUT = Cut(_LLAMA3, whole=True, bos=True)
_SMOLLM_CUT = Cut(_GPT2, digits=True)

CUTS = {
    "default": Cut(_GPT2),
    "gpt-2": Cut(_GPT2),
    "phi-2": Cut(_GPT2),
    "jina-en": Cut(_GPT2),
    "mpt": Cut(_GPT2),
    "olmo": Cut(_GPT2),
    "dbrx": Cut(_LLAMA3),
    "smaug-bpe": Cut(_LLAMA3),
    "llama-bpe": _LLAMA3_CUT,
    "llama3": _LLAMA3_CUT,
    "llama-v3": _LLAMA3_CUT,
    "falcon3": _LLAMA3_CUT,
    "pixtral": _LLAMA3_CUT,
    "qwen2": Cut(_QWEN2),
    "stablelm2": Cut(_QWEN2),
    "deepseek-r1-qwen": Cut(_QWEN2),
    "smollm": _SMOLLM_CUT,
    "starcoder": _SMOLLM_CUT,
    "refact": _SMOLLM_CUT,
    "command-r": _SMOLLM_CUT,
    "codeshell": _SMOLLM_CUT,
    "exaone": _SMOLLM_CUT,
    "tekken": Cut(_TEKKEN, whole=True),
    "gpt-4o": Cut(_GPT4O),
    "llama4": Cut(_GPT4O, bos=True),
}


def tokenizer_of_arrays(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer in a GGUF. Raises BadModel when its arrays contradict each other or are of another kind."""
    vocabulary = _Vocabulary(checkpoint)
    kind = vocabulary.text("model", "")
    if kind == "gpt2":
        return _byte_level(vocabulary)
    if kind == "llama":
        return _sentencepiece(vocabulary)
    raise vocabulary.bad(f"tokenizer {kind!r} is not one that we build; 'gpt2' and 'llama' are")


class _Vocabulary:
    """What a GGUF says about its tokenizer, checked."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.metadata = checkpoint.metadata
        self.tokens = self.strings("tokens")
        if not self.tokens:
            raise self.bad("it has no tokens (tokenizer.ggml.tokens)")
        self._check_size()
        self.types = self.numbers("token_type")
        self.ids: dict[str, int] = {}
        for token, piece in enumerate(self.tokens):
            self.ids.setdefault(piece, token)

    def bad(self, why: str) -> BadModel:
        return BadModel(self.checkpoint.path, why)

    def _check_size(self) -> None:
        shape = self.checkpoint.shape
        if shape is not None and len(self.tokens) > shape.vocab:
            raise self.bad(f"{len(self.tokens)} tokens, but embeddings for {shape.vocab} only")

    def _value(self, key: str) -> Any:
        value = self.metadata.get(key)
        return read_array(value) if isinstance(value, GgufArray) else value

    def strings(self, key: str) -> list[str]:
        value = self._value(f"tokenizer.ggml.{key}")
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.bad(f"tokenizer.ggml.{key} is no array of strings")
        return value

    def numbers(self, key: str) -> "np.ndarray[Any, Any] | None":
        """An array with one number a token, or None when the file has no such array."""
        value = self._value(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.shape != (len(self.tokens),):
            raise self.bad(
                f"tokenizer.ggml.{key} has {array.size} values, but must have a number for each of the "
                f"{len(self.tokens)} tokens"
            )
        return array

    def text(self, key: str, default: str) -> str:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        return value if isinstance(value, str) else default

    def chat_template(self) -> str | None:
        """The model's own; a very long one is left in the file as an array of one text."""
        template = self._value("tokenizer.chat_template")
        if isinstance(template, list) and len(template) == 1:
            template = template[0]
        return template if isinstance(template, str) else None

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, bool) else default

    def id_of(self, key: str) -> int | None:
        """The id that the file gives to a special token, inside the vocabulary."""
        value = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self.bad(
                f"tokenizer.ggml.{key}_token_id is {value!r}, but the tokens are 0 to {len(self.tokens) - 1}"
            )
        return value

    def of_type(self, *types: int) -> list[int]:
        if self.types is None:
            return []
        return [int(token) for token in np.flatnonzero(np.isin(self.types, types))]

    def control(self) -> list[int]:
        """What stands for no text: as the file marks it, and turn marks that it calls text."""
        control = set(self.of_type(CONTROL))
        control.update(token for token in self.of_type(USER_DEFINED) if _is_turn_mark(self.tokens[token]))
        for key in ("bos", "eos", "eot", "eom"):
            if (token := self.id_of(key)) is not None:
                control.add(token)
        return sorted(token for token in control if self._is_first(token))

    def user_defined(self) -> list[int]:
        """What is matched whole though it is text: runs of spaces, HTML tags, <think>."""
        return [
            token
            for token in self.of_type(USER_DEFINED)
            if self._is_first(token) and not _is_turn_mark(self.tokens[token])
        ]

    def _is_first(self, token: int) -> bool:
        piece = self.tokens[token]
        return piece != "" and self.ids[piece] == token

    def eos_ids(self, control: Sequence[int]) -> tuple[int, ...]:
        named = [self.id_of(key) for key in ("eos", "eot", "eom")]
        ends = [token for token in named if token is not None]
        known = set(control)
        ends += [self.ids[text] for text in ENDS_OF_TURN if self.ids.get(text) in known]
        return tuple(dict.fromkeys(ends))


def _is_turn_mark(piece: str) -> bool:
    return piece in TURN_MARKS or (piece.startswith("<|") and piece.endswith("|>"))


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415 - 60 ms, only when a model is loaded
    from tokenizers import decoders, models, normalizers  # noqa: PLC0415

    name = vocabulary.text("pre", "default")
    cut = CUTS.get(name, CUTS["default"])
    model = models.BPE(vocab=vocabulary.ids, merges=_merges(vocabulary), ignore_merges=cut.whole)
    backend = Backend(model)
    backend.normalizer = normalizers.Replace(MARK, "")
    backend.pre_tokenizer = _pre_tokenizer(cut)
    backend.decoder = decoders.ByteLevel()
    guess = f"the way it cuts words, {name!r}, is not known here; it is cut as GPT-2 does"
    return _finished(vocabulary, backend, bos=cut.bos, byte_level=True, note=None if name in CUTS else guess)


def _pre_tokenizer(cut: Cut) -> "PreTokenizer":
    from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415

    steps: list[PreTokenizer] = [
        pre_tokenizers.Split(Regex(cut.words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    if cut.digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence(steps)


def _merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """The merges of the file, each of two tokens whose join is one too."""
    ids = vocabulary.ids
    merges = []
    for line in vocabulary.strings("merges"):
        left, _, right = line.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise vocabulary.bad(f"merge {line!r} does not join two tokens to a third")
        merges.append((left, right))
    if not merges:
        raise vocabulary.bad("it has no merges (tokenizer.ggml.merges)")
    return merges


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415
    from tokenizers import decoders, models  # noqa: PLC0415

    unknown = vocabulary.id_of("unknown")
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=list(_implied_merges(vocabulary)),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=bool(vocabulary.of_type(BYTE)),
    )
    backend = Backend(model)
    prefix = vocabulary.flag("add_space_prefix", default=True)
    everywhere = vocabulary.checkpoint.architecture == "phi3"
    backend.normalizer = _normalizer(prefix_everywhere=prefix and everywhere)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _finished(
        vocabulary,
        backend,
        bos=True,
        byte_level=False,
        strips_space=prefix,
        prefixes_space=prefix and not everywhere,
    )


def _normalizer(*, prefix_everywhere: bool) -> "Normalizer":
    """Spaces as SentencePiece spells them, with one in front of everything between control tokens where asked for."""
    from tokenizers import normalizers  # noqa: PLC0415

    steps: list[Normalizer] = [normalizers.Replace(MARK, ""), normalizers.Replace(" ", SPACE)]
    if prefix_everywhere:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps)


def _implied_merges(vocabulary: _Vocabulary) -> Iterator[tuple[str, str]]:
    """Each way to cut a token into two, tokens with the best scores first, longer left halves first.

    Only ordinary tokens: a control token that could be merged from letters could be written by anyone.
    """
    scores = vocabulary.numbers("scores")
    if scores is None:
        raise vocabulary.bad("it has neither merges nor scores (tokenizer.ggml.scores)")
    mergeable = np.ones(len(scores), bool) if vocabulary.types is None else vocabulary.types == NORMAL
    if vocabulary.types is not None:
        mergeable |= vocabulary.types == UNUSED
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    pieces = [vocabulary.tokens[token] for token in order[mergeable[order]]]
    known = set(pieces)
    for piece in pieces:
        for middle in range(len(piece) - 1, 0, -1):
            if piece[:middle] in known and piece[middle:] in known:
                yield piece[:middle], piece[middle:]


def _finished(
    vocabulary: _Vocabulary,
    backend: "tokenizers.Tokenizer",
    *,
    bos: bool,
    byte_level: bool,
    strips_space: bool = False,
    prefixes_space: bool = False,
    note: str | None = None,
) -> Tokenizer:
    """With its special tokens, and BOS and EOS where they belong."""
    control, user_defined = vocabulary.control(), vocabulary.user_defined()
    _add_tokens(backend, vocabulary, control, user_defined)
    bos_id, eos_id = vocabulary.id_of("bos"), vocabulary.id_of("eos")
    _frame(
        backend,
        vocabulary,
        bos_id if vocabulary.flag("add_bos_token", default=bos) else None,
        eos_id if vocabulary.flag("add_eos_token", default=False) else None,
    )
    return Tokenizer(
        backend=backend,
        pieces=vocabulary.tokens,
        spelling="byte_level" if byte_level else "sentencepiece",
        control=frozenset(control),
        added=frozenset(control).union(user_defined),
        bos_id=bos_id,
        eos_ids=vocabulary.eos_ids(control),
        bos_token="" if bos_id is None else vocabulary.tokens[bos_id],
        eos_token="" if eos_id is None else vocabulary.tokens[eos_id],
        strips_space=strips_space,
        prefixes_space=prefixes_space,
        chat_template=vocabulary.chat_template(),
        note=note,
    )


def _add_tokens(
    backend: "tokenizers.Tokenizer",
    vocabulary: _Vocabulary,
    control: Sequence[int],
    user_defined: Sequence[int],
) -> None:
    """Phi-3's control tokens swallow the white space behind them; no GGUF says so."""
    from tokenizers import AddedToken  # noqa: PLC0415

    phi3 = vocabulary.checkpoint.architecture == "phi3" and vocabulary.text("model", "") == "llama"
    swallowing = [phi3 and vocabulary.tokens[token].startswith("<|") for token in control]
    backend.add_special_tokens(
        [
            AddedToken(
                vocabulary.tokens[token],
                normalized=False,
                special=True,
                rstrip=swallows and vocabulary.tokens[token] != "<|endoftext|>",
            )
            for token, swallows in zip(control, swallowing, strict=True)
        ]
    )
    backend.add_tokens(
        [AddedToken(vocabulary.tokens[token], normalized=False, special=False) for token in user_defined]
    )


def _frame(
    backend: "tokenizers.Tokenizer", vocabulary: _Vocabulary, bos_id: int | None, eos_id: int | None
) -> None:
    """Let each text begin and end with the tokens given."""
    from tokenizers import processors  # noqa: PLC0415

    frame = [(vocabulary.tokens[token], token) for token in (bos_id, eos_id) if token is not None]
    if not frame:
        return
    before = [] if bos_id is None else [vocabulary.tokens[bos_id]]
    behind = [] if eos_id is None else [vocabulary.tokens[eos_id]]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind], special_tokens=frame
    )
