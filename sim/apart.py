"""A function of many tasks in processes of their own: the same results in the same order, however many there are."""

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import current_process, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import ClassVar, TypeVar

from engine.errors import BadSettings

Task = TypeVar("Task")
Result = TypeVar("Result")
UNGUARDED = 78
"""The exit code of a worker that was about to begin what its script has begun."""


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

    The first exception, KeyboardInterrupt too, ends those under way and is raised. Raises BadSettings where workers
    import a script that begins this anew.
    """
    if workers <= 1 or len(tasks) <= 1:
        return [function(task) for task in tasks]
    with pool_of(min(workers, len(tasks))) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            check_guard(end(pool))
            raise


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Processes that share the cores among them. A fork would take along locks and threads in whatever state."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(workers, Undisturbed(), _begin, (threads,))


def end(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    """At once: by itself a pool would wait for runs that nobody wants. The processes, which have ended.

    It cancels what has not begun itself, because it stumbles over futures that others have cancelled.
    """
    processes = processes_of(pool)
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    return processes


def processes_of(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    """Those that it has begun; it forgets them when it is shut down."""
    return list((pool._processes or {}).values())  # noqa: SLF001


def leave_if_imported() -> None:
    """End a worker that comes to this while it imports the script of who has started it. For what starts workers.

    It would begin the same anew, with workers of its own, each of which would do so too.
    """
    if getattr(current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


def check_guard(ended: Iterable[BaseProcess]) -> None:
    """Raise BadSettings where one of these workers ended in `leave_if_imported`."""
    if any(process.exitcode == UNGUARDED for process in ended):
        raise BadSettings(
            "workers import the script that has started them: "
            "what it does must stand below a line if __name__ == '__main__', or be done with workers=1"
        )


def _begin(threads: int) -> None:
    """A worker's first act: Ctrl-C is for who waits for it, and its threads must not fight those of the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
