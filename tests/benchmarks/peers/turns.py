"""What every player does around its simulator. No library: it runs in the environment of each peer."""

import gc
import json
import os
import sys
from pathlib import Path
from time import process_time


def workload():
    """What is to be played: the file that the command names."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def by_turns(play):
    """Play once for each line that comes in, and tell what `play` returns as one line of JSON.

    One core, so that nobody is ahead by having more threads. What a peer prints goes where errors go.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for _ in sys.stdin:
        gc.collect()
        answers.write(json.dumps(play()) + "\n")
        answers.flush()


def timed(operation):
    """What it returns, and what it took of the processor's time in seconds, all threads together."""
    begun_s = process_time()
    result = operation()
    return result, process_time() - begun_s


def mean(values):
    return sum(values) / len(values)
