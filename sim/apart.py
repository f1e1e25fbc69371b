"""A function of many tasks in processes of their own: the same results in the same order, however many there are."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def apart(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """What a function of some module makes of each task, in their order.

    The first exception, KeyboardInterrupt too, ends those under way and is raised.
    """
    if workers <= 1 or len(tasks) <= 1:
        return [function(task) for task in tasks]
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = get_context("spawn")  # a fork would take along locks and threads in whatever state they are
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (threads,)) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for process in list(pool._processes.values()):  # noqa: SLF001  it would wait for what nobody wants
                process.terminate()
            raise


def _begin(threads: int) -> None:
    """A worker's first act: Ctrl-C is for who waits for it, and its threads must not fight those of the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
