"""Text in and out: a model's own tokenizer, its chat template, and text that comes token by token."""

from engine.text.chat import ChatTemplate, chat_template_of
from engine.text.detokenizer import Detokenizer, StopStrings, TextStream
from engine.text.letters import letters
from engine.text.loading import tokenizer_of
from engine.text.text import Text, text_of
from engine.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "StopStrings",
    "Text",
    "TextStream",
    "Tokenizer",
    "chat_template_of",
    "letters",
    "text_of",
    "tokenizer_of",
]
