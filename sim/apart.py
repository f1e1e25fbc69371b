"""A function of many tasks in processes of their own: the same results in the same order, however many there are."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import ClassVar, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Worker(SpawnProcess):
    """A process that is deaf to Ctrl-C from its first moment on, and not only when it has imported what it needs."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # who starts it lets the signal through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Undisturbed(SpawnContext):
    """Where workers come from."""

    Process: ClassVar[type[Worker]] = Worker


def apart(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """What a function of some module makes of each task, in their order.

    The first exception, KeyboardInterrupt too, ends those under way and is raised.
    """
    if workers <= 1 or len(tasks) <= 1:
        return [function(task) for task in tasks]
    with pool_of(min(workers, len(tasks))) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            end(pool)
            raise


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Processes that share the cores among them. A fork would take along locks and threads in whatever state."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(workers, Undisturbed(), _begin, (threads,))


def end(pool: ProcessPoolExecutor) -> None:
    """At once: by itself a pool would wait for runs that nobody wants.

    It cancels what has not begun itself, because it stumbles over futures that others have cancelled.
    """
    processes = list(pool._processes.values())  # noqa: SLF001  forgotten when it is shut down
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _begin(threads: int) -> None:
    """A worker's first act: Ctrl-C is for who waits for it, and its threads must not fight those of the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
