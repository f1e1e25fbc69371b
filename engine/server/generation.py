"""One HTTP request for text: its choices through the engine, and what the client is told of them."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from engine.engine import Engine
from engine.errors import EngineError, OverQuota
from engine.request import Completion, Request, Stream
from engine.server.answers import (
    DONE,
    Call,
    ChatChoice,
    ChatWriter,
    Function,
    Head,
    TextChoice,
    TextWriter,
    Turn,
    Usage,
    Writer,
    chat_logprobs,
    failure_event,
    text_logprobs,
    usage_of,
    usage_of_one,
)
from engine.server.prompts import Prompt
from engine.server.tools import Reading, whole
from engine.text import Said, Text, TextStream


class Choice:
    """One answer of the several that a client may ask for."""

    name = ""  # of the answer that it is part of
    completion: Completion | None = None
    _told_pieces = 0
    _told_tokens = 0
    _told_characters = 0
    _reading: Reading | None = None
    _shown: TextStream | None = (
        None  # what its tokens read like, where somebody wants to know each one's place
    )
    _is_open = False
    _is_closed = False

    def __init__(self, index: int, prompt: Prompt, request: Request) -> None:
        self.index = index
        self.prompt = prompt
        self.request = request
        self.stream = Stream()
        sampling = request.sampling
        # nobody asks for more of it than text
        self.is_plain = prompt.reading is None and (sampling is None or sampling.logprobs is None)

    async def run(self, engine: Engine) -> None:
        """Let the engine answer. Raises an EngineError."""
        self.completion = await engine.serve(self.request, self.stream)

    @property
    def finish_reason(self) -> str:
        assert self.completion is not None, "it has been answered"
        reason = self.completion.finish_reason
        calls = self._reading is not None and self._reading.has_calls
        return "tool_calls" if calls and reason == "stop" else reason

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(self.stream.text)

    def news(self, writer: Writer) -> bytes:
        """The events of what has come since the last time."""
        stream, told = self.stream, b""
        if not self._is_open and (stream.num_tokens or self.completion is not None):
            self._is_open = True
            told = writer.opening(self.index)
        if pieces := stream.text[self._told_pieces :]:
            self._told_pieces += len(pieces)
            told += (
                writer.pieces(self.index, pieces) if self.is_plain else self._more_than_text(pieces, writer)
            )
        if self.completion is not None and not self._is_closed:
            self._is_closed = True
            said = [] if self._reading is None else self._reading.finish()
            told += b"".join(self._said(said, writer, self._logprobs_left(writer)))
            told += writer.finish(self.index, self.finish_reason)
        return told

    def _more_than_text(self, pieces: list[str], writer: Writer) -> bytes:
        """Events of these pieces, with log probabilities, or with the calls in them."""
        logprobs = self.logprobs(writer)
        events: list[bytes] = []
        for piece in pieces:
            if (reading := self.reading) is not None:
                events += self._said(reading.push(piece), writer, logprobs)
            else:
                events.append(writer.piece(self.index, piece, logprobs))
            logprobs = None
        return b"".join(events)

    def _logprobs_left(self, writer: Writer) -> dict[str, Any] | None:
        """Those of tokens at the end that have no text."""
        return self.logprobs(writer) if self._told_tokens < len(self.stream.logprobs) else None

    @property
    def reading(self) -> Reading | None:
        """What tells calls from text in it; None where no tools were offered."""
        prompt = self.prompt
        if self._reading is None and prompt.reading is not None and prompt.text is not None:
            self._reading = prompt.reading(prompt.text, f"{self.name}-{self.index}")
        return self._reading

    def turn(self) -> Turn:
        """All of it, as the assistant's turn."""
        reading = self.reading
        if reading is None:
            return Turn("assistant", self.text)
        said = [part for piece in self.stream.text for part in reading.push(piece)]
        content, calls = whole([*said, *reading.finish()])
        told = [Call(each.id or "", Function(each.name or "", each.arguments)) for each in calls]
        return Turn("assistant", content, tool_calls=told or None)

    def _said(self, said: list[Said], writer: Writer, logprobs: dict[str, Any] | None) -> Iterator[bytes]:
        """Events of what was said, text and calls in turn. The log probabilities go with the first."""
        for part in said:
            if isinstance(part, str):
                yield writer.piece(self.index, part, logprobs)
                logprobs = None
            else:
                yield writer.calls(self.index, part)
        if logprobs is not None:  # of tokens that are held back: nobody shall miss them
            yield writer.piece(self.index, "", logprobs)

    def logprobs(self, writer: Writer | None = None, *, of_chat: bool = True) -> dict[str, Any] | None:
        """Those of the tokens that have come since the last time; None where nobody wants them."""
        sampling, text = self.request.sampling, self.prompt.text
        if sampling is None or sampling.logprobs is None or text is None:
            return None
        begin, end = self._told_tokens, len(self.stream.logprobs)
        self._told_tokens = end
        if of_chat and not isinstance(writer, TextWriter):
            return chat_logprobs(text, self.stream, begin, end)
        return text_logprobs(text, self.stream, begin, end, self._places(text, begin, end))

    def _places(self, text: Text, begin: int, end: int) -> list[int]:
        """Where in the answer these tokens begin. One may be a part of a character only, or have no text."""
        if self._shown is None:
            self._shown = text.stream(after=self.request.prompt_tokens[-1:].tolist())
        places = []
        for token in self.stream.tokens[begin:end]:
            places.append(self._told_characters)
            self._told_characters += len(self._shown.push(token)[0])
        return places


class Out(Protocol):
    """Where the events of a streamed answer go."""

    def model_of(self, choice: Choice) -> str:
        """What the client is told of who serves it."""

    def word(self, error: EngineError) -> None:
        """Have it say what it says as a client may read it."""

    async def begin(self, choice: Choice) -> None:
        """Send status and headers: the first token of some choice is there."""

    async def write(self, data: bytes) -> None:
        """Send some events. Returns when the client has room for more."""

    def put(self, news: Callable[[], bytes]) -> bool:
        """Send the events that `news` gives, if the client has room for them now; False: it is not asked."""

    @property
    def is_gone(self) -> bool:
        """Whether the client has left."""

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Have it told when the client leaves."""


class Generation:
    """All choices of one HTTP request, and how they are to be told. `name` is that of its answer."""

    __slots__ = ("_is_chat", "_num_prompts", "_writer", "choices", "created", "is_stream", "name")

    def __init__(
        self,
        choices: Sequence[Choice],
        num_prompts: int,
        name: str,
        created: int,
        *,
        is_chat: bool,
        is_stream: bool,
    ) -> None:
        self.choices = choices
        self.name = name
        self.created = created  # in seconds of Unix time
        self.is_stream = is_stream
        for choice in choices:
            choice.name = name
        self._num_prompts = num_prompts
        self._is_chat = is_chat
        self._writer: Writer | None = None  # once something has come

    async def run(self, engine: Engine) -> None:
        """Let the engine answer all of them. Raises the first EngineError, the others are cancelled then.

        Where limits refuse several, the one that is to wait longest: before that not all of them fit.
        """
        if len(self.choices) == 1:
            (choice,) = self.choices
            choice.completion = await engine.serve(choice.request, choice.stream)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for choice in self.choices:
                    group.create_task(choice.run(engine))
        except BaseExceptionGroup as several:
            raise max(several.exceptions, key=_wait_s) from None

    async def stream(self, engine: Engine, out: Out, pacer: "Pacer", head: Head) -> None:
        """Send what comes as it comes, until all has come or the client has left.

        Raises an EngineError when not even a first token came.
        """
        work = asyncio.create_task(self.run(engine))

        def tell_at_once() -> bool:
            """Send what has come in the middle of an answer, as most of it does; False: that takes a `_tell`."""
            return self._writer is not None and not work.done() and out.put(self._news)

        wake = Wake(tell_at_once, pacer)
        out.when_gone(wake.hurry)
        for choice in self.choices:
            choice.stream.listener = wake.set
        work.add_done_callback(wake.hurry)
        pacer.join()
        try:
            await wake.wait()
            while not await self._tell(work, out, head):
                await wake.wait()
        finally:
            pacer.leave()
            for choice in self.choices:
                choice.stream.listener = None
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # seen: whoever has left is told nothing of it, and nobody else has to be

    async def _tell(self, work: "asyncio.Task[None]", out: Out, head: Head) -> bool:
        """Send what has come since the last time; whether that was the last of it."""
        error = _error_of(work)
        if out.is_gone:
            return True
        if self._writer is None:
            first = next((each for each in self.choices if each.stream.num_tokens), None)
            if first is None:
                if error is not None:
                    raise error
                return False
            self._writer = self._writer_for(head.by(out.model_of(first)))
            await out.begin(first)
        data = self._news()
        is_over = True
        if error is not None:
            out.word(error)
            data += failure_event(error) + DONE
        elif work.done() and all(choice.completion is not None for choice in self.choices):
            data += (self._writer.usage(self.usage()) if head.tells_usage else b"") + DONE
        else:
            is_over = False
        if data:
            await out.write(data)
        return is_over

    def _news(self) -> bytes:
        writer = self._writer
        assert writer is not None, "something has come"
        if len(self.choices) == 1:
            return self.choices[0].news(writer)
        return b"".join([choice.news(writer) for choice in self.choices])

    def usage(self) -> Usage:
        """What it cost."""
        if len(self.choices) == 1 and (only := self.choices[0].completion) is not None:
            return usage_of_one(only.usage)
        return usage_of(
            [each.completion for each in self.choices if each.completion is not None], self._num_prompts
        )

    def whole(self) -> list[Any]:
        """The choices of an answer in one piece."""
        if len(self.choices) == 1:
            return [self._whole(self.choices[0])]
        return [self._whole(choice) for choice in self.choices]

    def _whole(self, choice: Choice) -> ChatChoice | TextChoice:
        if choice.is_plain:
            text, reason = "".join(choice.stream.text), choice.finish_reason
            if self._is_chat:
                return ChatChoice(choice.index, Turn("assistant", text), reason)
            return TextChoice(choice.index, text, reason)
        logprobs = choice.logprobs(of_chat=self._is_chat)
        if not self._is_chat:
            return TextChoice(choice.index, choice.text, choice.finish_reason, logprobs)
        turn = choice.turn()
        return ChatChoice(choice.index, turn, choice.finish_reason, logprobs)

    def _writer_for(self, head: Head) -> Writer:
        return ChatWriter(head) if self._is_chat else TextWriter(head)


def _wait_s(error: BaseException) -> float:
    return error.retry_after_s if isinstance(error, OverQuota) else 0.0


def _error_of(work: "asyncio.Task[None]") -> EngineError | None:
    """What the work failed with, if it did. Anything but an EngineError is a defect, and is raised."""
    if not work.done() or work.cancelled() or (error := work.exception()) is None:
        return None
    if not isinstance(error, EngineError):
        raise error
    return error


PACE_S = 0.002
"""Tokens that come closer together than this go out in one write; the first one never waits, nor does the end."""

MOST_PACE_S = 0.016
WRITES_PER_S = 8_000
"""Where many streams have so much to tell that they would write more often than that, each tells less often."""

TICK_S = 0.001
"""How often somebody looks whose time has come: the timers of an event loop are no finer."""


class Pacer:
    """Has many streams tell their news, each at most once in `pace_s`: with one timer for all of them."""

    def __init__(self) -> None:
        self.pace_s = PACE_S
        self._num_streams = 0
        self._loop = asyncio.get_running_loop()
        self._soon: list[Wake] = []
        self._later: list[Wake] = []

    def join(self) -> None:
        """One stream more."""
        self._num_streams += 1
        self._keep_pace()

    def leave(self) -> None:
        """One stream less."""
        self._num_streams -= 1
        self._keep_pace()

    def _keep_pace(self) -> None:
        self.pace_s = min(MOST_PACE_S, max(PACE_S, self._num_streams / WRITES_PER_S))

    def now_s(self) -> float:
        """The loop's time."""
        return self._loop.time()

    def add(self, wake: "Wake") -> None:
        """Have it tell when it is time, but not in this turn of the loop: in the next, all of a token is there."""
        if wake.next_s > self._loop.time():
            if not self._later:
                self._loop.call_later(TICK_S, self._look)
            self._later.append(wake)
        else:
            if not self._soon:
                self._loop.call_soon(self._tell)
            self._soon.append(wake)

    def _tell(self) -> None:
        soon, self._soon = self._soon, []
        now_s = self._loop.time()
        for wake in soon:
            wake.tell(now_s)

    def _look(self) -> None:
        """Have those tell whose time has come."""
        now_s = self._loop.time()
        late_s = now_s + TICK_S / 2
        due, self._later = (
            [wake for wake in self._later if wake.next_s <= late_s],
            [wake for wake in self._later if wake.next_s > late_s],
        )
        if self._later:
            self._loop.call_later(TICK_S, self._look)
        for wake in due:
            wake.tell(now_s)


class Wake:
    """Has the news of one stream told, however often it is heard of in between, and at the pacer's pace at most.

    Told by `tell_at_once`, straight from the loop; where that says False, by the one who waits, who is woken then.
    """

    __slots__ = ("_is_expected", "_is_set", "_is_urgent", "_pacer", "_tell_at_once", "_waiter", "next_s")

    def __init__(self, tell_at_once: Callable[[], bool], pacer: Pacer) -> None:
        self.next_s = 0.0  # not before
        self._tell_at_once = tell_at_once
        self._pacer = pacer
        self._is_set = False
        self._is_urgent = False
        self._is_expected = False  # by the pacer
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """There is news: now, or when it is time for the next."""
        self._is_set = True
        if not self._is_expected and self._waiter is not None:
            self._is_expected = True
            self._pacer.add(self)

    def hurry(self, *_: object) -> None:
        """There is news that nobody should wait for."""
        self._is_set = self._is_urgent = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Return when there is news that is not told yet."""
        is_due = self._is_set and (self._is_urgent or self.next_s <= self._pacer.now_s())
        if not is_due:
            self._waiter = asyncio.get_running_loop().create_future()
            if self._is_set:
                self.set()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_told(self._pacer.now_s())

    def tell(self, now_s: float) -> None:
        """It is time."""
        self._is_expected = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        try:
            if self._tell_at_once():
                self._is_told(now_s)
            else:
                waiter.set_result(None)
        except Exception as error:  # noqa: BLE001  a defect is the business of whoever waits
            waiter.set_exception(error)

    def _is_told(self, now_s: float) -> None:
        self._is_set = self._is_urgent = False
        self.next_s = now_s + self._pacer.pace_s
