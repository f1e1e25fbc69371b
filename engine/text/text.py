"""All that one model needs to take text and to give text: its tokenizer and its chat template."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.formats import Checkpoint
from engine.request import Tokens
from engine.text.chat import ChatTemplate, chat_template_of
from engine.text.detokenizer import Detokenizer, TextStream
from engine.text.loading import tokenizer_of
from engine.text.tokenizer import Tokenizer
from engine.text.tool_calls import CallFormat, format_of


@dataclass(slots=True)
class Text:
    """Text for one model. `calls`: how it writes tool calls, where it knows of tools."""

    tokenizer: Tokenizer
    chat: ChatTemplate
    calls: CallFormat | None = field(init=False)
    call_mark: int | None = field(
        init=False, default=None
    )  # the control token that begins calls, if one does
    _hidden: frozenset[int] = field(init=False)  # control tokens that are not written

    def __post_init__(self) -> None:
        self.calls = format_of(self.chat)
        if self.calls is not None:
            marks = [t for t in self.tokenizer.control if self.tokenizer.pieces[t] == self.calls.mark]
            self.call_mark = min(marks, default=None)
        self._hidden = self.tokenizer.control - {self.call_mark}

    def stream(self, stops: Sequence[str] = (), after: Sequence[int] | Tokens = ()) -> TextStream:
        """What turns the tokens of one answer to the prompt `after` into text, until a stop string is complete.

        The control token that begins calls is shown: who looks for them has to see it.
        """
        return TextStream(Detokenizer(self.tokenizer, after, hidden=self._hidden), stops)


def text_of(checkpoint: Checkpoint) -> Text:
    """Raises BadModel when the model's tokenizer or template is no good."""
    tokenizer = tokenizer_of(checkpoint)
    return Text(tokenizer, chat_template_of(checkpoint, tokenizer))
