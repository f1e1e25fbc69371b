"""Python's garbage collector in a process that serves: a look at everything that is there stops all requests."""

import gc

GARBAGE_EVERY = 10_000
"""Objects more than before at which the garbage collector looks for rings. A request leaves none; with Python's 700,
a dozen requests at a time would have it look without end."""


def settle() -> None:
    """What is there by now stays, and is not looked at again; the rest seldom. For a process that begins to serve.

    A look at all that torch and its like bring takes 150 ms. Whoever serves anew calls it again.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_EVERY, *gc.get_threshold()[1:])
