"""All that one model needs to take text and to give text: its tokenizer and its chat template."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.formats import Checkpoint
from engine.text.chat import ChatTemplate, chat_template_of
from engine.text.detokenizer import Detokenizer, TextStream
from engine.text.loading import tokenizer_of
from engine.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Text:
    """Text for one model."""

    tokenizer: Tokenizer
    chat: ChatTemplate

    def stream(self, stops: Sequence[str] = (), after: Sequence[int] = ()) -> TextStream:
        """What turns the tokens of one answer to the prompt `after` into text, until a stop string is complete."""
        return TextStream(Detokenizer(self.tokenizer, after), stops)


def text_of(checkpoint: Checkpoint) -> Text:
    """Raises BadModel when the model's tokenizer or template is no good."""
    tokenizer = tokenizer_of(checkpoint)
    return Text(tokenizer, chat_template_of(checkpoint, tokenizer))
