"""A conversation with a model of a server that runs, in the terminal, over OpenAI's API."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.command.remote import Door, NoAnswer
from engine.request import Sampling

KEY_ENV = "MODELYARD_KEY"
TIMEOUT_S = 300.0  # without a single token


@dataclass(slots=True)
class RemoteConversation:
    """Messages back and forth with one model there."""

    server: Door
    model: str
    sampling: Sampling
    max_output_tokens: int
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, show: Callable[[str], None]) -> str:
        """Show the answer as it comes; what there is to say of it. Raises NoAnswer, BadSettings."""
        asked = {"role": "user", "content": question}
        text, reason = "", ""
        usage: dict[str, Any] = {}
        for chunk in self._chunks([*self.messages, asked]):
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                show(piece)
                text += piece
                reason = choice["finish_reason"] or reason
        if not reason:
            raise NoAnswer(f"{self.server.url} broke off in mid-answer")
        self.messages += [asked, {"role": "assistant", "content": text}]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        prompt = f"{cached} of {usage['prompt_tokens']} of the prompt cached"
        return f"{usage['completion_tokens']} tokens, {prompt}, {reason}"

    def _chunks(self, messages: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_output_tokens,
            "temperature": self.sampling.temperature,
            "seed": self.sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for line in self.server.lines("/v1/chat/completions", body):
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise NoAnswer(f"{self.server.url}: {chunk['error']['message']}")
            yield chunk


def talk(conversation: RemoteConversation, questions: Sequence[str], ask: Callable[[], str | None]) -> None:
    """Ask the questions, then those that `ask` brings until it brings None; print the answers as they come."""
    for question in questions or iter(ask, None):
        if question.strip():
            said = conversation.ask(question, _show)
            _show("\n")
            print(f"[{said}]", file=sys.stderr)


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
