"""A conversation with one model, in the terminal: the engine as it is, one replica, on the wall clock."""

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.clock import NS_PER_S, Clock, WallClock, utc_now
from engine.command.models import registry_of
from engine.engine import Engine
from engine.errors import BadModel, BadRequest, NotFound
from engine.formats import open_checkpoint
from engine.registry import Model
from engine.registry.discovery import discover
from engine.request import Request, Sampling, Stream
from engine.settings import THIS_MACHINE, EngineSettings, ExecutorSettings, FleetSettings
from engine.text import Text

Message = dict[str, str]


@dataclass(slots=True)
class Reply:
    """What became of one question."""

    text: str
    tokens: int
    cached_tokens: int
    ttft_s: float
    tokens_per_s: float
    finish_reason: str


class Conversation:
    """Messages back and forth with one model. Make it inside a running loop."""

    def __init__(self, engine: Engine, model: str, sampling: Sampling, max_output_tokens: int) -> None:
        self.messages: list[Message] = []
        self._engine = engine
        self._model = model
        self._sampling = sampling
        self._max_output_tokens = max_output_tokens
        self._num_asked = 0

    async def ask(self, question: str, show: Callable[[str], None]) -> Reply:
        """The model's answer, shown piece by piece as it comes. Raises an EngineError."""
        home, clock = await self._home(), self._engine.clock
        self.messages.append({"role": "user", "content": question})
        try:
            prompt = home.chat.encode(self.messages, home.tokenizer, strftime_now=today)
            request = Request(
                id=self._num_asked,
                model=self._model,
                prompt_tokens=np.asarray(prompt, dtype=np.int32),
                max_output_tokens=self._room(len(prompt)),
                arrival_ns=clock.now_ns(),
                session="chat",
                sampling=self._sampling,
            )
            self._num_asked += 1
            stream = Stream()
            stream.listener = shown_as_it_comes(stream, show)
            done = await self._engine.serve(request, stream)
        except BaseException:
            self.messages.pop()
            raise
        text = "".join(stream.text)
        self.messages.append({"role": "assistant", "content": text})
        first_ns, last_ns = stream.first_token_ns or 0, stream.last_token_ns or 0
        decode_s = (last_ns - first_ns) / NS_PER_S
        return Reply(
            text=text,
            tokens=len(done.tokens),
            cached_tokens=done.usage.cached_tokens,
            ttft_s=(first_ns - request.arrival_ns) / NS_PER_S,
            tokens_per_s=(len(done.tokens) - 1) / decode_s if decode_s else 0.0,
            finish_reason=done.finish_reason,
        )

    async def _home(self) -> Text:
        key = self._engine.registry.find(self._model).key
        with await self._engine.lifecycle.hold(key):
            text = self._engine.fleet.homes[key].text
        assert text is not None, "a model from disk has a tokenizer"
        return text

    def _room(self, prompt_tokens: int) -> int:
        """How long an answer may be. Raises BadRequest when the conversation has filled the context."""
        context = self._engine.fleet.homes[self._engine.registry.find(self._model).key].request_tokens
        if prompt_tokens >= context:
            raise BadRequest(
                f"the conversation has {prompt_tokens} tokens, but the model holds {context}; start a new one"
            )
        return min(self._max_output_tokens, context - prompt_tokens)


def today(form: str) -> str:
    """The date, for templates that tell it to the model."""
    return utc_now().strftime(form)


def shown_as_it_comes(stream: Stream, show: Callable[[str], None]) -> Callable[[], None]:
    """A listener that shows each piece of text once."""
    shown = 0

    def listen() -> None:
        nonlocal shown
        for piece in stream.text[shown:]:
            show(piece)
        shown = len(stream.text)

    return listen


def path_of(name: str, folder: Path) -> Path:
    """A file or a folder, or the model of `folder` that is called so. Raises NotFound."""
    path = Path(name)
    if path.exists() or not folder.is_dir():
        return path
    found = registry_of(discover(folder))
    try:
        return Path(found.find(name).path or name)
    except NotFound as error:
        raise NotFound(f"there is no file or folder {name!r}, and in {folder} {error}") from None


def engine_for(path: Path, options: dict[str, object], clock: Clock) -> tuple[Engine, str]:
    """An engine that has one model from disk, and the name of that model. Raises BadModel, BadSettings."""
    checkpoint = open_checkpoint(path)
    model = Model.from_checkpoint(checkpoint)
    if model.settings is None:
        raise BadModel(path, model.reason or "it cannot be run")
    settings = EngineSettings(
        fleet=FleetSettings(models=[model.settings], replicas={}),
        executor=ExecutorSettings(name="torch", options=options),
        hardware=THIS_MACHINE,
    )
    return Engine(settings, clock), model.key


async def talk(
    path: Path,
    questions: Sequence[str],
    *,
    options: dict[str, object],
    sampling: Sampling,
    max_output_tokens: int,
    ask: Callable[[], str | None],
) -> None:
    """Ask the questions, then those that `ask` brings until it brings None; print the answers as they come."""
    clock = WallClock()
    engine, model = engine_for(path, options, clock)
    engine.start()
    try:
        conversation = Conversation(engine, model, sampling, max_output_tokens)
        async for question in _all(questions, ask, clock):
            reply = await conversation.ask(question, _show)
            _show("\n")
            print(
                f"[{reply.tokens} tokens, {reply.cached_tokens} of the prompt cached, "
                f"first after {reply.ttft_s:.2f} s, then {reply.tokens_per_s:.0f} a second, {reply.finish_reason}]",
                file=sys.stderr,
            )
    finally:
        await clock.close()


async def _all(
    questions: Sequence[str], ask: Callable[[], str | None], clock: WallClock
) -> AsyncIterator[str]:
    for question in questions:
        yield question
    if not questions:
        while (typed := (await clock.compute(ask))[0]) is not None:
            if typed.strip():
                yield typed


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
