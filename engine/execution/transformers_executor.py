"""The transformers executor: architectures that our own decoder does not run, one sequence after the other.

It steps in where a model's header names a family that we do not know, and needs the extra `hf`. The model's own code
in the library runs the passes; code that comes with a model never does, and weights come from safetensors or GGUF,
never from a pickle. Slower than our decoder: nothing is batched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.clock import stopwatch_ns
from engine.errors import BadModel, LoadFailed
from engine.execution.digests import Digests
from engine.execution.executor import Batch, Chunk, KVBlock, Machine, Sequence, StepResult, executors
from engine.execution.sampling import Sampler, Wish
from engine.execution.torch_executor import (
    DTYPES,
    FIRST_GUESS_NS,
    WORTH_LEARNING_TOKENS,
    usable_device,
)
from engine.formats import Checkpoint, open_checkpoint
from engine.settings import ModelSettings, at_least, require

CACHE_ARGUMENTS = ("past_key_values", "cache_params")


@dataclass(slots=True, kw_only=True)
class TransformersOptions:
    """Where the passes run and in which numbers, as for the torch executor. Weights of int8 are its own affair: here
    they are float32.
    """

    device: str = "cpu"
    threads: int = 1
    kv_capacity_tokens: int = 131_072
    weights: str = "float32"

    def __post_init__(self) -> None:
        at_least("executor.threads", self.threads, 1)
        at_least("executor.kv_capacity_tokens", self.kv_capacity_tokens, 1)
        require("executor.weights", self.weights, self.weights in DTYPES, f"one of {', '.join(DTYPES)}")


@dataclass(slots=True)
class HostedModel:
    """A model of the library, and what trying it out has told of it.

    `is_plain`: all that it remembers of earlier tokens is keys and values of every one of them, so that a prompt may
    come in pieces. `keeps_blocks`: these have one shape in all layers, so that they fit into blocks.
    """

    model: Any
    weights_id: str
    context_tokens: int | None  # None: no limit that the model names
    cache_argument: str = CACHE_ARGUMENTS[0]
    takes_positions: bool = False
    takes_last_only: bool = False
    is_plain: bool = False
    keeps_blocks: bool = False
    vocab: int = 0
    kv_bytes_per_token: int = 1

    def new_cache(self) -> Any:
        from transformers import DynamicCache  # noqa: PLC0415  the library is an extra

        return DynamicCache() if self.is_plain else DynamicCache(config=self.model.config)

    def scores(self, tokens: Tensor, start: int, cache: Any) -> Tensor:
        """Logits (vocab) after the last of these tokens; the first stands at `start`, those before are in the cache.

        Positions are told wherever the model takes them: not all look into the cache (Bamba counts from 0 again).
        """
        known = {self.cache_argument: cache, "use_cache": True}
        if self.takes_positions:
            known["position_ids"] = torch.arange(start, start + len(tokens), device=tokens.device)[None]
        if self.takes_last_only:
            known["logits_to_keep"] = 1
        output = self.model(input_ids=tokens[None], **known)
        logits: Tensor = output.logits[0, -1]
        return logits.float()


@executors("transformers")
class TransformersExecutor:
    """Runs a model from disk with the code that the library has for it."""

    Options = TransformersOptions
    is_modelled = False
    follows_grammars = True
    keep = None  # nothing is converted

    def __init__(self, machine: Machine, options: TransformersOptions) -> None:
        """Raises BadSettings for a device that is not there, LoadFailed without the extra, BadModel for bad files."""
        self._device = usable_device(options.device)
        if torch.get_num_threads() != options.threads:
            torch.set_num_threads(options.threads)
        self._hosted = hosted = hosted_model(machine, options, self._device)
        self.weights_id = hosted.weights_id
        self.vocab = hosted.vocab
        self.keeps_blocks = hosted.keeps_blocks
        self.context_tokens = hosted.context_tokens or options.kv_capacity_tokens
        self.kv_capacity_tokens = options.kv_capacity_tokens
        self.kv_bytes_per_token = hosted.kv_bytes_per_token
        self.kv_value_bytes = float(DTYPES[options.weights].itemsize)
        self._prefill_token_ns = FIRST_GUESS_NS
        self._clock = machine.clock
        self._sampler = Sampler()
        self._wishes: dict[int, Wish] = {}  # of sequences that run, by id
        self._caches: dict[int, Any] = {}  # the same
        self._owed_ns = 0

    async def step(self, batch: Batch) -> StepResult:
        result, duration_ns = await self._clock.compute(lambda: self._forward(batch))
        if not batch.decodes and batch.num_tokens >= WORTH_LEARNING_TOKENS:
            self._prefill_token_ns += 0.2 * (duration_ns / batch.num_tokens - self._prefill_token_ns)
        owed_ns, self._owed_ns = self._owed_ns, 0
        await self._clock.sleep(owed_ns)
        result.duration_ns = duration_ns + owed_ns
        return result

    @torch.inference_mode()
    def retire(
        self, sequence: Sequence, first_block: int, last_block: int, block_tokens: int
    ) -> list[KVBlock]:
        clock_ns, begun_ns = self._clock.now_ns(), stopwatch_ns()
        cache, blocks = self._caches.get(sequence.id), []
        if cache is not None and self.keeps_blocks:
            blocks = [
                block_of(cache, number * block_tokens, (number + 1) * block_tokens)
                for number in range(first_block, last_block)
            ]
        self.release(sequence)
        self._wait_for_device()
        took_ns = stopwatch_ns() - begun_ns
        passed_ns = self._clock.now_ns() - clock_ns  # on a wall clock that is all of it: nothing is owed
        self._owed_ns += max(0, took_ns - passed_ns)
        return blocks

    def release(self, sequence: Sequence) -> None:
        self._wishes.pop(sequence.id, None)
        self._caches.pop(sequence.id, None)

    def prefill_ns(self, start: int, end: int) -> int:
        return round((end - start) * self._prefill_token_ns)

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: TransformersOptions) -> int:
        return checkpoint_of(model).parameters * DTYPES[options.weights].itemsize

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int | None:
        return None if model.architecture is None else model.architecture.vocab

    def reset(self) -> None:
        self._wishes.clear()
        self._caches.clear()
        self._owed_ns = 0

    @property
    def held_bytes(self) -> int:
        """The memory that keys and values take at present."""
        return sum(cache_bytes(cache) for cache in self._caches.values())

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> StepResult:
        """A pass for each sequence that decodes, one for each chunk, and one choice for all who get a token."""
        scores = [self._run(each, [each.new_tokens[-1]], each.computed_tokens) for each in batch.decodes]
        scores += [last for chunk in batch.chunks if (last := self._prefill(chunk)) is not None]
        ending = [chunk.sequence for chunk in batch.chunks if chunk.is_last]
        result = StepResult(0, [], [])
        tokens = self._choose(scores, [*batch.decodes, *ending], result) if scores else []
        self._wait_for_device()
        result.decode_tokens, first = tokens[: len(batch.decodes)], iter(tokens[len(batch.decodes) :])
        result.chunk_tokens = [next(first) if chunk.is_last else None for chunk in batch.chunks]
        return result

    def _prefill(self, chunk: Chunk) -> Tensor | None:
        """Logits after the prompt's last token; None before.

        What is not plain gets its prompt whole, when the last piece comes: many a recurrent layer starts from nothing
        whenever it sees more than one token, whatever its state.
        """
        sequence, start = chunk.sequence, chunk.sequence.computed_tokens
        end = start + chunk.num_tokens
        if not self._hosted.is_plain:
            if not chunk.is_last:
                return None
            start = 0
        scores = self._run(sequence, sequence.tokens[start:end].tolist(), start)
        return scores if chunk.is_last else None

    def _run(self, sequence: Sequence, tokens: list[int], start: int) -> Tensor:
        cache = self._caches.get(sequence.id)
        if cache is None:
            cache = self._caches[sequence.id] = self._new_cache(sequence)
        given = torch.tensor(tokens, dtype=torch.long, device=self._device)
        return self._hosted.scores(given, start, cache)[: self.vocab]

    def _choose(self, scores: list[Tensor], sequences: list[Sequence], result: StepResult) -> list[int]:
        """The next token of each sequence, whose logits stand in that order."""
        choices = self._sampler.choose(torch.stack(scores), [self._wish(each) for each in sequences])
        for sequence, choice in zip(sequences, choices, strict=True):
            if choice.logprobs is not None:
                result.logprobs[sequence.id] = choice.logprobs
            if choice.error is not None:
                result.errors[sequence.id] = choice.error
        return [choice.token for choice in choices]

    def _wish(self, sequence: Sequence) -> Wish:
        wish = self._wishes.get(sequence.id)
        if wish is None:
            wish = self._wishes[sequence.id] = Wish(sequence.sampling, sequence.seed, sequence)
        return wish

    def _new_cache(self, sequence: Sequence) -> Any:
        """What the model remembers of a sequence at its beginning: its cached prefix."""
        cache = self._hosted.new_cache()
        if sequence.prefix:
            prefix = torch.cat(list(sequence.prefix), dim=-2).to(self._device)
            for number, (keys, values) in enumerate(prefix):
                cache.update(keys[None], values[None], number)
        return cache

    def _wait_for_device(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def block_of(cache: Any, begin: int, end: int) -> Tensor:
    """A copy of the keys and values of tokens `begin` to `end` (exclusive): (layers, 2, G, tokens, D)."""
    pairs = [
        torch.stack([layer.keys[0, :, begin:end], layer.values[0, :, begin:end]]) for layer in cache.layers
    ]
    return torch.stack(pairs)


def cache_bytes(cache: Any) -> int:
    """The memory that the keys and values in a cache take."""
    tensors = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def checkpoint_of(model: ModelSettings) -> Checkpoint:
    """The files of a model. Raises LoadFailed when it has none, or none that can be read."""
    if model.path is None:
        raise LoadFailed(
            f"{model.name!r} has no path, but executor 'transformers' runs models from disk only"
        )
    try:
        return open_checkpoint(Path(model.path))
    except OSError as error:
        raise BadModel(model.path, f"cannot be read: {error.strerror or error}") from error


def hosted_model(machine: Machine, options: TransformersOptions, device: torch.device) -> HostedModel:
    """The model of a machine, shared by all replicas that run it."""
    key = f"transformers {machine.model.key} on {device}"
    if key not in machine.loaded:
        machine.loaded[key] = _load(machine.model, options, device)
    hosted = machine.loaded[key]
    assert isinstance(hosted, HostedModel)
    return hosted


def _load(model: ModelSettings, options: TransformersOptions, device: torch.device) -> HostedModel:
    checkpoint, dtype = checkpoint_of(model), DTYPES[options.weights]
    loaded = _from_files(checkpoint, dtype).to(device).eval()
    text_config = loaded.config.get_text_config(decoder=True)
    context_tokens = getattr(text_config, "max_position_embeddings", None) or checkpoint.context_tokens
    config = [path for path in (checkpoint.path / "config.json",) if path.exists()]
    digest = Digests(None).of_all([*config, *sorted(checkpoint.files)])
    weights_id = f"{digest} by transformers as {options.weights}"
    hosted = HostedModel(loaded, weights_id, context_tokens or None)
    try:
        _try_out(hosted, device)
    except Exception as error:  # what a model's own code raises knows no bounds
        raise BadModel(checkpoint.path, f"transformers cannot run it: {_sentence(error)}") from error
    return hosted


def _from_files(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The library's model with all its weights. Raises LoadFailed without the library, BadModel for bad files."""
    try:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415
    except ImportError as error:
        raise LoadFailed(
            f"{checkpoint.path}: {checkpoint.architecture!r} is not an architecture that our decoder runs, and "
            "transformers, which may, needs the extra 'hf': pip install 'modelyard[hf]'"
        ) from error
    folder, given = checkpoint.path, {}
    if checkpoint.format == "gguf":
        _check_gguf(checkpoint)
        folder, given = checkpoint.path.parent, {"gguf_file": checkpoint.path.name}
    safe = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        with _no_progress_bars():
            model, report = _with_some_attention(
                AutoModelForCausalLM, folder, dtype=dtype, output_loading_info=True, **safe, **given
            )
    except Exception as error:  # files may be no good in more ways than one could list
        raise BadModel(checkpoint.path, f"transformers cannot load it: {_sentence(error)}") from error
    for kind, what in (
        ("missing_keys", "is missing"),
        ("mismatched_keys", "has another shape than the model's"),
    ):
        if report.get(kind):
            name = min(str(key) for key in report[kind])
            raise BadModel(checkpoint.path, f"tensor {name} {what}: transformers would make its weights up")
    return model


def _with_some_attention(maker: Any, folder: Path, **given: Any) -> Any:
    """The model with an attention of torch's own, whatever its files ask for: they may name code to be fetched."""
    try:
        return maker.from_pretrained(folder, attn_implementation="sdpa", **given)
    except ValueError:  # not every model has it
        return maker.from_pretrained(folder, attn_implementation="eager", **given)


def _check_gguf(checkpoint: Checkpoint) -> None:
    """Raises BadModel for what the library reads, but not right."""
    if len(checkpoint.files) > 1:
        raise BadModel(
            checkpoint.path, f"is split into {len(checkpoint.files)} files, which transformers does not read"
        )
    if "rope_freqs.weight" in checkpoint.tensors:
        raise BadModel(checkpoint.path, "has rope_freqs.weight, which transformers leaves out")


def _try_out(hosted: HostedModel, device: torch.device) -> None:
    """Run two tokens, and note what the model is like."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer  # noqa: PLC0415

    accepted = signature(hosted.model.forward).parameters
    names = [name for name in CACHE_ARGUMENTS if name in accepted]
    if not names:
        raise NotImplementedError("it has no cache that it could be given")
    hosted.cache_argument = names[0]
    hosted.takes_positions = "position_ids" in accepted
    hosted.takes_last_only = "logits_to_keep" in accepted
    layers = DynamicCache(config=hosted.model.config).layers
    hosted.is_plain = all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)
    cache, sizes = hosted.new_cache(), []
    with torch.inference_mode():
        for start in range(2):
            logits = hosted.scores(torch.zeros(1, dtype=torch.long, device=device), start, cache)
            sizes.append(cache_bytes(cache))
    hosted.vocab = min(len(logits), hosted.model.get_input_embeddings().num_embeddings)
    hosted.kv_bytes_per_token = max(1, sizes[1] - sizes[0])
    if hosted.is_plain:
        shapes = {tuple(tensor.shape) for layer in cache.layers for tensor in (layer.keys, layer.values)}
        hosted.keeps_blocks = len(shapes) == 1 and len(shapes.pop()) == 4  # noqa: PLR2004  (1, G, tokens, D)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging  # noqa: PLC0415

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _sentence(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
