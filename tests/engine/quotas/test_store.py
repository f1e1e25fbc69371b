"""What is spent outlives the process, however it ends."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from engine.clock import to_ns
from engine.errors import BadSettings, OverQuota
from engine.quotas.store import Spent

HOUR_S = 3600
RULES = ({"model": "m", "hourly_tokens": 1000, "daily_tokens": 5000}, {"tenant": "*", "hourly_requests": 50})


@pytest.fixture
def life(make, tmp_path):
    """Another life of the same quotas, begun so many seconds after 1970."""

    def begun(epoch_s=0, *rules, **options):
        path = str(tmp_path / "spent.sqlite")
        return make(*(rules or RULES), state_file=path, epoch_ns=to_ns(epoch_s), **options)

    return begun


def used(quotas, tenant="t"):
    found = {}
    for book in quotas.ledger("m@1.0.0", tenant).books:
        for total in (book.tokens, book.requests):
            found |= {f"{window.kind}_{total.name}": window.used(total.spent) for window in total.windows}
    return found


def test_a_life_that_ends_well_leaves_exact_figures(life, ask):
    first = life(1000)
    for tokens in (100, 200, 37):
        ask(first, tokens).settle(tokens - 7)
    first.close()
    second = life(1500)
    assert used(second) == {"hourly_tokens": 316, "daily_tokens": 316, "hourly_requests": 3}
    second.close()


def test_an_hour_later_only_the_day_remembers(life, ask):
    first = life(1000)
    ask(first, 300).settle(300)
    first.close()
    assert used(life(1000 + HOUR_S)) == {"hourly_tokens": 0, "daily_tokens": 300, "hourly_requests": 0}


def test_a_life_that_is_cut_off_has_used_at_least_what_it_granted(life, ask):
    first = life(1000, lease=0.05)
    granted = 0
    for number in range(30):
        ask(first, 20, number=number).settle(20)
        granted += 20
        second = life(1100)  # as it would find the file now
        assert granted <= used(second)["hourly_tokens"] <= granted + 50 + 20
        assert number + 1 <= used(second)["hourly_requests"] <= number + 1 + 3
        second._file.close()


def test_a_new_hour_after_a_cut_is_not_forgotten(life, ask, clock):
    first = life(0)
    ask(first, 900).settle(900)
    clock.env.run(until=to_ns(HOUR_S + 1))
    ask(first, 700).settle(700)
    second = life(0)
    assert isinstance(ask(second, 400), OverQuota)
    assert 700 <= used(second)["hourly_tokens"] <= 1000


def test_twin_that_writes_only_at_the_end_grants_a_window_twice(life, ask):
    first = life(1000)
    for book in first.ledger("m@1.0.0", "t").books:
        book.lender = None
    ask(first, 1000).settle(1000)
    second = life(1100)
    assert not isinstance(ask(second, 1000), OverQuota)


def test_a_clock_that_went_back_between_two_lives_grants_nothing_twice(life, ask):
    first = life(5 * HOUR_S)
    ask(first, 1000).settle(1000)
    first.close()
    for earlier_s in (4 * HOUR_S, HOUR_S, 0):
        second = life(earlier_s)
        assert isinstance(ask(second, 1), OverQuota)
        second.close()
    third = life(6 * HOUR_S)
    assert ask(third, 1000).tokens == 1000


def test_a_sliding_window_is_remembered_as_used_just_now(life, ask):
    rule = {"model": "m", "hourly_tokens": 1000, "sliding": True}
    first = life(1000, rule)
    ask(first, 600).settle(600)
    first.close()
    second = life(1000 + 1800, rule)
    assert used(second)["hourly_tokens"] == 600
    assert isinstance(ask(second, 500), OverQuota)
    second.close()
    assert used(life(1000 + 3600 + 61, rule))["hourly_tokens"] == 0


CHILD = """
import sys
import numpy as np
from engine.quotas import Quotas
from engine.request import Request
from engine.settings import AllowanceSettings, QuotaSettings
from sim.world import SimClock

limits = [AllowanceSettings(model="m", hourly_tokens=100_000)]
quotas = Quotas(QuotaSettings(limits=limits, state_file=sys.argv[1], max_concurrent_requests=10**9), SimClock())
number = 0
while True:
    number += 1
    quotas.reserve(Request(number, "m", np.zeros(1, dtype=np.int32), 1, 0), "m@1.0.0", 7, 0).settle(7)
    print(number, flush=True)
"""


def test_a_process_that_is_killed_has_spent_what_it_granted(tmp_path, make):
    path = tmp_path / "spent.sqlite"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(1500):
        line = child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    granted = 7 * int(([line, *child.stdout.readlines()][-1] or line).strip() or 1500)
    child.wait()
    child.stdout.close()
    quotas = make({"model": "m", "hourly_tokens": 100_000}, state_file=str(path))
    assert granted <= used(quotas)["hourly_tokens"] <= granted + 7 + 2100
    quotas.close()


def test_the_files_of_others_and_damaged_ones_are_refused(life, tmp_path):
    path = tmp_path / "spent.sqlite"
    path.write_bytes(b"no database at all, but long enough to look like one " * 40)
    with pytest.raises(BadSettings, match=r"quotas.state_file .* cannot be used"):
        life()
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE cats (name TEXT)")
    other.close()
    with pytest.raises(BadSettings, match="belongs to another program"):
        life()
    path.unlink()
    path.mkdir()
    with pytest.raises(BadSettings, match="cannot be used"):
        life()


BURST = {"model": "m", "requests_per_s": 1.0, "burst_requests": 10, "tokens_per_s": 10.0, "burst_tokens": 200}


def admitted(quotas, ask, at_s=0, tokens=10):
    answers = [ask(quotas, tokens, at_s=at_s, number=number) for number in range(20)]
    return sum(not isinstance(answer, OverQuota) for answer in answers)


def test_a_burst_is_not_repeated_in_the_next_life(life, ask):
    first = life(1000, BURST)
    assert admitted(first, ask) == 10
    first.close()
    second = life(1003, BURST)
    assert admitted(second, ask) == 3
    second.close()
    third = life(1000 + 3600, BURST)
    assert admitted(third, ask) == 10


def test_after_a_cut_bursts_begin_spent_and_fill_again(life, ask):
    assert admitted(life(1000, BURST), ask) == 10
    second = life(1001, BURST)
    assert admitted(second, ask) == 0
    assert admitted(second, ask, at_s=4) == 4
    assert admitted(second, ask, at_s=3600) == 10


def test_the_burst_of_a_clock_that_went_back_is_spent_and_no_more_than_that(life, ask):
    first = life(10**6, BURST)
    admitted(first, ask)
    first.close()
    second = life(1000, BURST)
    assert admitted(second, ask) == 0
    assert admitted(second, ask, at_s=10) == 10


def test_windows_that_are_long_over_leave_the_file(life, ask, tmp_path):
    first = life(1000, {"tenant": "*", "hourly_tokens": 100})
    for number in range(300):
        ask(first, 1, tenant=f"t{number}").settle(1)
    first.close()
    life(1000 + 100 * 24 * HOUR_S).close()
    with sqlite3.connect(tmp_path / "spent.sqlite") as file:
        assert file.execute("SELECT count(*) FROM windows WHERE tenant LIKE 't%'").fetchone() == (0,)
    file.close()


def test_a_file_that_cannot_be_written_stops_nobody_and_limits_hold_all_the_same(life, ask, tmp_path):
    quotas = life(1000, {"model": "m", "hourly_tokens": 100})
    with sqlite3.connect(tmp_path / "spent.sqlite") as other:
        other.execute("DROP TABLE windows")
    other.close()
    answers = [ask(quotas, 20, number=number) for number in range(8)]
    assert sum(not isinstance(answer, OverQuota) for answer in answers) == 5
    figures = {figure.name: figure.values for figure in quotas.figures()}
    assert figures["modelyard:quota_state_failures"][()] > 0
    quotas.check_integrity()
    quotas.close()


def test_an_end_that_cannot_be_written_down_is_an_end_and_counts_as_a_cut(life):
    first = life(1000)
    first._file._connection.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON windows BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
    )
    first.close()
    second = life(1001)
    assert second._file.was_cut
    second.close()
    assert not life(1002)._file.was_cut


def test_a_full_disk_is_told_as_what_it_is(life):
    file = life(1000)._file
    (pages,) = file._connection.execute("PRAGMA page_count").fetchone()
    file._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        file.put([Spent("m" * 9_000, None, "hourly_tokens", 1, 1, 1)])
    file.put([Spent("m", None, "hourly_tokens", 1, 1, 1)])
