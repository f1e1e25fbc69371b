"""Text in and out: a model's own tokenizer, its chat template, and text that comes token by token."""

from engine.text.chat import ChatTemplate, chat_template_of
from engine.text.detokenizer import Detokenizer, StopStrings, TextStream
from engine.text.letters import letters
from engine.text.loading import tokenizer_of
from engine.text.text import Text, text_of
from engine.text.tokenizer import Tokenizer
from engine.text.tool_calls import CallFormat, CallPart, CallReader, Said, call_id, has_tools

__all__ = [
    "CallFormat",
    "CallPart",
    "CallReader",
    "ChatTemplate",
    "Detokenizer",
    "Said",
    "StopStrings",
    "Text",
    "TextStream",
    "Tokenizer",
    "call_id",
    "chat_template_of",
    "has_tools",
    "letters",
    "text_of",
    "tokenizer_of",
]
