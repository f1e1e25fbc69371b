"""Continuous batching: who runs in the next step of a replica.

Requests join the running batch in the order in which they came, as soon as a sequence slot and KV for the
longest they can become are free, so that a running sequence never has to be thrown out. Each running sequence
decodes one token a step; what is left of the step's token budget goes to prefill, in chunks.
"""

from collections import deque

from engine.execution.executor import Batch, Chunk, Sequence


class Scheduler:
    """The waiting line and the running batch of one replica. Synchronous; O(1) a sequence and step."""

    def __init__(self, max_batch: int, step_tokens: int, kv_capacity_tokens: int) -> None:
        self.max_batch = max_batch
        self.step_tokens = step_tokens
        self.kv_capacity_tokens = kv_capacity_tokens
        self.kv_reserved_tokens = 0
        self.waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the line."""
        self.waiting.append(sequence)

    def add_first(self, sequence: Sequence) -> None:
        """Put a sequence before everybody who waits."""
        self.waiting.appendleft(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Nobody waits for this sequence any more; a running one leaves when its step has ended."""
        sequence.is_dropped = True
        if sequence.started_ns is None:
            self.waiting.remove(sequence)

    def next_batch(self, now_ns: int) -> Batch:
        """The work of the next step; empty when there is none."""
        self._admit(now_ns)
        batch = Batch(decodes=list(self._decoding))
        budget = self.step_tokens - len(batch.decodes)
        for sequence in self._prefilling:
            if budget <= 0:
                break
            chunk = Chunk(sequence, min(budget, len(sequence.tokens) - sequence.computed_tokens))
            budget -= chunk.num_tokens
            batch.chunks.append(chunk)
        return batch

    def settle(self) -> list[Sequence]:
        """After a step: move on who has finished its prefill; return who has finished or was dropped."""
        left = [each for each in (*self._decoding, *self._prefilling) if each.is_finished or each.is_dropped]
        if left:
            self._decoding = [each for each in self._decoding if not (each.is_finished or each.is_dropped)]
            self._prefilling = [
                each for each in self._prefilling if not (each.is_finished or each.is_dropped)
            ]
            self.kv_reserved_tokens -= sum(sequence.max_tokens for sequence in left)
        if self._prefilling and self._prefilling[0].is_prefilled:
            self._decoding += [each for each in self._prefilling if each.is_prefilled]
            self._prefilling = [each for each in self._prefilling if not each.is_prefilled]
        return left

    def clear(self) -> list[Sequence]:
        """Forget everything; return who was here."""
        here = [*self._decoding, *self._prefilling, *self.waiting]
        self.waiting.clear()
        self._prefilling, self._decoding = [], []
        self.kv_reserved_tokens = 0
        return here

    def _admit(self, now_ns: int) -> None:
        while self.waiting and self.num_running < self.max_batch:
            sequence = self.waiting[0]
            if self.kv_reserved_tokens + sequence.max_tokens > self.kv_capacity_tokens:
                break  # first come, first served: a smaller one behind it must not starve it
            self.waiting.popleft()
            self.kv_reserved_tokens += sequence.max_tokens
            sequence.started_ns = now_ns
            sequence.computed_tokens = sequence.cached_tokens
            self._prefilling.append(sequence)
