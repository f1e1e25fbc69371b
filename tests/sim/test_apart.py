"""Tasks in processes of their own, and how they end before their time."""

import signal
import threading
import time

import pytest

from sim.apart import apart, pool_of


def slept(seconds):
    time.sleep(seconds)
    return seconds


def failed_or_slept(path):
    """Fails where there is no folder; a file that is written says that somebody waited to the end."""
    path.with_suffix(".begun").touch()
    time.sleep(20)
    path.touch()


def test_a_worker_is_deaf_to_ctrl_c_before_it_has_imported_anything():
    """What it was born with; its first act, to ignore the signal, comes after seconds of imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pool_of(1) as pool:
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.slow
def test_results_are_in_the_order_of_the_tasks():
    tasks = [0.2, 0.0, 0.1, 0.05]
    assert apart(slept, tasks, 2) == apart(slept, tasks, 1) == tasks


@pytest.mark.slow
def test_the_first_that_fails_ends_all_others_without_a_word(tmp_path, monkeypatch):
    """Ten wait behind it, and one is under way: the pool's own thread must not stumble over them."""
    said = []
    monkeypatch.setattr(threading, "excepthook", lambda given: said.append(given.exc_value))
    tasks = [tmp_path / "nowhere" / "0", *[tmp_path / str(number) for number in range(1, 12)]]
    for _ in range(3):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            apart(failed_or_slept, tasks, 2)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(30)
    assert said == []
    assert [path for path in tasks if path.exists()] == []
