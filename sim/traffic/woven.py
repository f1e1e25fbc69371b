"""One more session among the requests of a trace, turn by turn at given times: somebody whom a story follows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.clock import to_ns
from sim.traffic.trace import Lengths, Trace


def woven(trace: Trace, session: str, at_s: Sequence[float], user_tokens: int, output_tokens: int) -> Trace:
    """The trace with that session, whose turns come at these times and ask for what the first request asks for.

    Each turn says `user_tokens` more than the history of its session, and is answered with `output_tokens`. All
    other requests are what they were.
    """
    count = len(at_s)
    assert trace.block_ids is None, "a prompt made of named blocks has no place for others"
    assert trace.session is not None, "a trace without sessions has none more"
    number = int(trace.session.max()) + 1
    added = np.array([to_ns(each) for each in sorted(at_s)], np.int64)
    turns = np.arange(count, dtype=np.int32)
    arrival_ns = np.concatenate((trace.arrival_ns, added))
    rows = np.argsort(arrival_ns, kind="stable")
    place = np.empty(len(rows), np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)

    def column(values: Lengths | None, own: Lengths | int) -> Lengths | None:
        if values is None:
            return None
        whole: Lengths = np.concatenate((values, np.broadcast_to(np.asarray(own, values.dtype), count)))[rows]
        return whole

    def sure(values: Lengths, own: Lengths | int) -> Lengths:
        found = column(values, own)
        assert found is not None
        return found

    after = column(trace.after, -1)
    asked = 0 if trace.model_of is None else int(trace.model_of[0])
    return replace(
        trace,
        arrival_ns=arrival_ns[rows],
        prompt_tokens=sure(trace.prompt_tokens, turns * (user_tokens + output_tokens) + user_tokens),
        output_tokens=sure(trace.output_tokens, output_tokens),
        prefix=sure(trace.prefix, -1),
        session=sure(trace.session, number),
        session_names={**trace.session_names, number: session},
        model_of=column(trace.model_of, asked),
        tenant_of=column(trace.tenant_of, 0),
        priority_of=column(trace.priority_of, 0),
        after=None if after is None else np.where(after < 0, -1, place[after]).astype(np.int32),
        think_ns=None
        if trace.think_ns is None
        else np.concatenate((trace.think_ns, np.zeros(count, np.int64)))[rows],
    )
