"""Continuous batching: who runs in the next step of a replica.

Requests join the running batch in the order in which they came, as soon as a sequence slot and KV for what they bring
are free. Each running sequence decodes one token a step; what is left of the step's token budget goes to prefill, in
chunks. Sequences grow: when the KV no longer holds the next token of all of them, the one that began last gives its
KV back and waits at the head of the line, to be computed anew from its prompt and what it had generated. So the KV is
full when there is work for it, and nobody's oldest request ever waits for a younger one.
"""

from collections import deque
from typing import Final

from engine.execution.executor import Batch, Chunk, Sequence
from engine.execution.lines import PriorityLine, WaitingLine

GROWTH_TOKENS: Final = 16
"""KV that is left to each running sequence when another one joins: without it, who joins is thrown out again soon."""

NOBODY: list[Sequence] = []


def nothing() -> None:
    """What is called where there is nothing to do."""


class Scheduler:
    """The waiting line and the running batch of one replica. Synchronous; O(1) a sequence and step.

    `kv_used_tokens` counts what the running sequences hold, the chunks of prefill that are still to come included.
    """

    def __init__(
        self,
        max_batch: int,
        step_tokens: int,
        kv_capacity_tokens: int,
        *,
        by_priority: bool = False,
        queue_capacity: int | None = None,
    ) -> None:
        """`queue_capacity`: how many may wait; None is no bound."""
        self.max_batch = max_batch
        self.step_tokens = step_tokens
        self.kv_capacity_tokens = kv_capacity_tokens
        self.kv_used_tokens = 0
        self.queue_capacity = queue_capacity
        self.waiting: WaitingLine = PriorityLine() if by_priority else deque()
        self.decoding: list[Sequence] = []  # in the order in which they began; to look at, not to change
        self.before_preempting = nothing  # writes down what has been decoded by now
        self._prefilling: list[Sequence] = []
        self._decodes = Batch()

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self.decoding)

    @property
    def is_full(self) -> bool:
        """Whether nobody can join before somebody leaves."""
        return len(self._prefilling) + len(self.decoding) >= self.max_batch

    @property
    def takes_more(self) -> bool:
        """Whether there is a place for one more, in the batch or in the line."""
        capacity = self.queue_capacity
        return capacity is None or self.num_running + len(self.waiting) < self.max_batch + capacity

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the line."""
        self.waiting.append(sequence)

    def add_first(self, sequence: Sequence) -> None:
        """Put a sequence before everybody who waits."""
        self.waiting.appendleft(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Nobody waits for this sequence any more; a running one leaves when its step has ended."""
        sequence.is_dropped = True
        if not sequence.is_running:
            self.waiting.remove(sequence)

    def next_batch(self, now_ns: int) -> Batch:
        """The work of the next step; empty when there is none. `preempted` have lost their KV and wait again.

        It is good until the next one is asked for.
        """
        decoding, preempted = self.decoding, NOBODY
        used = self.kv_used_tokens + len(decoding)
        if used > self.kv_capacity_tokens:
            self.before_preempting()
            preempted = self._make_room()
        else:
            self.kv_used_tokens = used
        if self.waiting:
            self._admit(now_ns)
        if not self._prefilling and not preempted:  # most steps: no object is made for them
            batch = self._decodes
            batch.decodes, batch.held_tokens = decoding, None
            return batch
        batch = Batch([], decoding, preempted)
        budget = self.step_tokens - len(decoding)
        for sequence in self._prefilling:
            if budget <= 0:
                break
            chunk = Chunk(sequence, min(budget, sequence.given_tokens - sequence.computed_tokens))
            budget -= chunk.num_tokens
            batch.chunks.append(chunk)
        return batch

    def join(self, now_ns: int) -> list[Sequence]:
        """Let everybody in who fits, with the prefill done at once; who they are."""
        self._admit(now_ns)
        joined, self._prefilling = self._prefilling, []
        for sequence in joined:
            sequence.computed_tokens = sequence.given_tokens
        self.decoding += joined
        return joined

    def suspend(self, sequence: Sequence) -> None:
        """Take a sequence that `join` has let in out of the batch; it waits at the head of its equals."""
        self.decoding.remove(sequence)
        self._give_back(sequence)
        self.waiting.appendleft(sequence)

    def settle(self) -> list[Sequence]:
        """After a step: move on who has finished its prefill; return who has finished or was dropped."""
        left = [each for each in self.decoding if each.has_ended]
        if left:
            self.decoding = [each for each in self.decoding if not each.has_ended]
            for sequence in left:
                self._give_back(sequence)
        return left + self.settle_prefill() if self._prefilling else left

    def settle_prefill(self) -> list[Sequence]:
        """The same of those who prefill alone."""
        left: list[Sequence] = []
        still: list[Sequence] = []
        done: list[Sequence] = []
        for each in self._prefilling:
            if each.has_ended:
                self._give_back(each)
                left.append(each)
            elif each.computed_tokens >= each.given_tokens:
                done.append(each)
            else:
                still.append(each)
        self._prefilling = still
        if done:
            self.decoding = self.decoding + done
        return left

    def leave(self, left: list[Sequence]) -> None:
        """These have decoded all that they shall, as somebody knows who has counted."""
        decoding = self.decoding
        for sequence in left:
            decoding.remove(sequence)
            self._give_back(sequence)

    def clear(self) -> list[Sequence]:
        """Forget everything; return who was here."""
        here = [*self.decoding, *self._prefilling, *self.waiting]
        self.waiting.clear()
        self._prefilling, self.decoding = [], []
        self.kv_used_tokens = 0
        return here

    def _make_room(self) -> list[Sequence]:
        """Take KV for one more token of each sequence that decodes, from those that began last if need be."""
        preempted: list[Sequence] = []
        while self.kv_used_tokens + len(self.decoding) > self.kv_capacity_tokens:
            running = self._prefilling or self.decoding  # who prefills began after all who decode
            victim = running.pop()
            self._give_back(victim)
            victim.rewind()
            self.waiting.appendleft(victim)
            preempted.append(victim)
        self.kv_used_tokens += len(self.decoding)
        return preempted

    def _admit(self, now_ns: int) -> None:
        waiting, num_running = self.waiting, len(self._prefilling) + len(self.decoding)
        while waiting and num_running < self.max_batch:
            sequence = waiting[0]
            num_tokens = needed = sequence.given_tokens
            if num_running:
                needed += GROWTH_TOKENS * (num_running + 1)
            if self.kv_used_tokens + needed > self.kv_capacity_tokens:
                break  # first come, first served: a smaller one behind it must not starve it
            waiting.popleft()
            num_running += 1
            self.kv_used_tokens += num_tokens
            sequence.is_running = True
            if sequence.started_ns is None:
                sequence.started_ns = now_ns
            sequence.computed_tokens = sequence.cached_tokens
            self._prefilling.append(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        given, computed = sequence.given_tokens, sequence.computed_tokens
        self.kv_used_tokens -= computed if computed > given else given  # noqa: FURB136  max() takes longer than all else
        sequence.is_running = False
