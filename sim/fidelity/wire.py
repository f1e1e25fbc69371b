"""What the two processes of a live run say to each other: requests there, news of their tokens back.

A frame is two little-endian lengths, a JSON object of the first, and the prompt's tokens (int32) of the second.
News are lines: `F 7` says that request 7 has its first token, `E 7 completed` how it ended.
"""

import json
from struct import Struct
from typing import Any

import numpy as np

from engine.request import Request, Tokens

HEAD = Struct("<II")
FIRST, END = "F", "E"


def frame(request: Request) -> bytes:
    """A request as it is sent. When it arrives is for the receiver to say."""
    tokens = np.asarray(request.prompt_tokens, dtype="<i4").tobytes()
    columns = {
        "id": request.id,
        "model": request.model,
        "tenant": request.tenant,
        "session": request.session,
        "max_output_tokens": request.max_output_tokens,
        "priority": request.priority,
        "vocab": request.vocab,
    }
    return packed(columns, tokens)


def packed(columns: dict[str, Any], tokens: bytes = b"") -> bytes:
    """Any object as a frame."""
    text = json.dumps(columns).encode()
    return HEAD.pack(len(text), len(tokens)) + text + tokens


def request_of(columns: dict[str, Any], tokens: bytes, arrival_ns: int) -> Request:
    """The request that came in a frame."""
    prompt: Tokens = np.frombuffer(tokens, dtype="<i4").astype(np.int32)
    return Request(prompt_tokens=prompt, arrival_ns=arrival_ns, **columns)


def news(kind: str, request_id: int, outcome: str = "") -> bytes:
    """A line of news."""
    return f"{kind} {request_id} {outcome}\n".encode()
