"""What a step's time is made of: the terms of a cost model, counted from a batch by the sizes in it alone.

The torch executor decides which terms there are (`torch_executor.py`): KV that decodes lies in racks, rows of 256,
512, 1024, ... tokens; a rack is read up to its longest row; a sequence moves into a rack with its first decode and
into the next one when it fills its row; a chunk that begins after tokens that are there already needs a mask.
"""

from collections.abc import Sequence as Listing

import numpy as np
import numpy.typing as npt

from engine.execution.executor import Batch, Sequence

SHORTEST_ROW_TOKENS = 256
FIRST_TOKENS, LATE_TOKENS, FIRST_DECODES = (
    64,
    256,
    8,
)  # where straight lines bend: small products are slower a row

TERMS = {
    "step": "a step",
    "prefill_step": "a step with prefill",
    "chunk": "a chunk of prefill",
    "prefill_token": "a token of prefill",
    "prefill_first": "one of the first 64 of a chunk",
    "prefill_late": "one after the first 256 of a chunk",
    "prefill_pair": "a token of prefill by each token before it, and itself",
    "masked_chunk": "a chunk that does not begin its prompt",
    "masked_pair": "a token of such a chunk by each token up to the chunk's end",
    "begun": "a sequence that begins",
    "loaded_token": "a cached token of a sequence that begins",
    "decode_step": "a step that decodes",
    "chosen": "a token that is chosen",
    "decode": "a sequence that decodes",
    "decode_first": "one of the first 8 of them",
    "decode_several": "a step in which more than one decodes",
    "context_token": "a token of context of those that decode",
    "rack": "a rack of those that decode",
    "rack_token": "a place in a rack that is read",
    "moved": "a sequence that moves into a rack",
    "moved_token": "a place of the row that it moves into",
}
"""The terms by name, in the order in which they are added up: what one unit of each is."""

FIXED = list(TERMS)[: list(TERMS).index("context_token")]
NUM_FIXED = len(FIXED)
"""The first so many terms do not change from step to step while the same sequences decode."""

Floats = npt.NDArray[np.float64]


def row_tokens(context: int) -> int:
    """The length of the row in which a sequence decodes that has so many tokens of KV."""
    return max(SHORTEST_ROW_TOKENS, 1 << int(context).bit_length())


def moves(sequence: Sequence) -> bool:
    """Whether a sequence that decodes now changes its place."""
    context = sequence.computed_tokens
    return context == len(sequence.tokens) or fills_row(context)


def fills_row(context: int) -> bool:
    """Whether a row is full with so many tokens."""
    return context >= SHORTEST_ROW_TOKENS and not context & (context - 1)


def counts(batch: Batch) -> list[int]:
    """How many units of each term a step has, in the order of `TERMS`."""
    tokens = first = late = pairs = masked = masked_pairs = begun = loaded = chosen = 0
    for chunk in batch.chunks:
        sequence, new = chunk.sequence, chunk.num_tokens
        before = sequence.computed_tokens
        tokens += new
        first += min(new, FIRST_TOKENS)
        late += max(0, new - LATE_TOKENS)
        pairs += new * before + new * (new + 1) // 2
        if before:
            masked += 1
            masked_pairs += new * (before + new)
        if before == sequence.cached_tokens:
            begun += 1
            loaded += before
        chosen += chunk.is_last
    decodes = [each.computed_tokens for each in batch.decodes]
    moved = [row_tokens(each.computed_tokens) for each in batch.decodes if moves(each)]
    racks, places = racks_of(decodes)
    chunks, num = len(batch.chunks), len(decodes)
    return [
        1,
        int(chunks > 0),
        chunks,
        tokens,
        first,
        late,
        pairs,
        masked,
        masked_pairs,
        begun,
        loaded,
        int(num > 0),
        num + chosen,
        num,
        min(num, FIRST_DECODES),
        int(num > 1),
        sum(decodes) + num,
        racks,
        places,
        len(moved),
        sum(moved),
    ]


def racks_of(contexts: list[int]) -> tuple[int, int]:
    """How many racks hold sequences with so many tokens each, and how many places of them a decode step reads."""
    if not contexts:
        return 0, 0
    if max(contexts) < SHORTEST_ROW_TOKENS:
        return 1, len(contexts) * (max(contexts) + 1)
    racks: dict[int, tuple[int, int]] = {}
    for context in contexts:
        length = row_tokens(context)
        rows, longest = racks.get(length, (0, 0))
        racks[length] = rows + 1, max(longest, context)
    return len(racks), sum(rows * (longest + 1) for rows, longest in racks.values())


def counts_ahead(decodes: Listing[Sequence], steps: int) -> Floats:
    """The same for each of the next `steps` steps while these decode and nothing else happens: (terms, steps)."""
    fixed, varying = parts_ahead(decodes, steps)
    return np.concatenate([np.repeat(np.array(fixed, dtype=np.float64)[:, None], steps, axis=1), varying])


def parts_ahead(decodes: Listing[Sequence], steps: int) -> tuple[list[int], Floats]:
    """The same in two parts: the terms up to `NUM_FIXED`, alike in all steps, and the others, (terms, steps)."""
    contexts = [each.computed_tokens for each in decodes]
    num, held = len(contexts), sum(contexts)
    units = dict.fromkeys(FIXED, 0)
    units |= {"step": 1, "decode_step": 1, "chosen": num, "decode": num}
    units |= {"decode_first": min(num, FIRST_DECODES), "decode_several": int(num > 1)}
    found = np.zeros((len(TERMS) - NUM_FIXED, steps))
    context_tokens, racks, rack_tokens, moves_in, moved_tokens = found
    context_tokens[:] = np.arange(held + num, held + num * (steps + 1), num)
    moved = [row_tokens(each.computed_tokens) for each in decodes if moves(each)]
    begun = 0
    while begun < steps:  # up to where one of them fills its row
        num_racks, places = racks_of(contexts)
        ended = min(steps, begun + min([row_tokens(each) - each for each in contexts]))
        racks[begun:ended] = num_racks
        rack_tokens[begun:ended] = np.arange(places, places + num * (ended - begun), num)
        moves_in[begun], moved_tokens[begun] = len(moved), sum(moved)
        contexts = [each + ended - begun for each in contexts]
        moved = [row_tokens(each) for each in contexts if fills_row(each)]
        begun = ended
    return [*units.values()], found


def counts_of_prefill(start: int, end: int) -> list[int]:
    """A step that computes tokens `start` to `end` (exclusive) of a prompt in one chunk, and nothing else."""
    new = end - start
    units = dict.fromkeys(TERMS, 0)
    units |= {"step": 1, "prefill_step": 1, "chunk": 1, "begun": 1, "chosen": 1, "prefill_token": new}
    units |= {"prefill_first": min(new, FIRST_TOKENS), "prefill_late": max(0, new - LATE_TOKENS)}
    units["prefill_pair"] = new * start + new * (new + 1) // 2
    if start:
        units |= {"masked_chunk": 1, "masked_pair": new * end}
    return [*units.values()]
