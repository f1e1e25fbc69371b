"""Jobs run when it is their turn, end as they end, and go on in the next process where they were."""

import sqlite3

import pytest

from engine.clock import to_ns
from engine.errors import BadRequest, BadSettings, OverQuota, QueueFull
from engine.server.jobs.course import Later
from engine.server.jobs.database import Database
from engine.server.jobs.faults import NoSuchObject
from engine.server.jobs.runner import Lane
from engine.server.jobs.store import Schedule

HOUR_NS = to_ns(3600)


class Work:
    """A job that does its parts one by one, each once; what it has done outlives any process."""

    def __init__(self, parts=3, part_s=10.0):
        self.parts = parts
        self.part_s = part_s
        self.done = []
        self.begun = []
        self.faults = []

    async def __call__(self, job, course):
        self.begun.append(job.id)
        parts = job.arguments.get("parts", self.parts)
        for part in range(course.checkpoint or 0, parts):
            await course.pause(to_ns(self.part_s))
            if self.faults:
                raise self.faults.pop(0)
            self.done.append((job.id, part))
            await course.save(part + 1, parts, checkpoint=part + 1, note=f"part {part}")
        return {"parts": parts}


def test_a_job_runs_and_tells_how_far_it_is(lives):
    work = Work()
    life = lives(work).start()
    number = life.add(arguments={"parts": 3})
    life.pass_s(15)
    job = life.store.find(number)
    assert (job.state, job.done, job.total, job.note, job.attempts) == ("running", 1, 3, "part 0", 1)
    assert job.heartbeat_ns >= to_ns(10)
    life.pass_s(30)
    job = life.store.find(number)
    assert (job.state, job.result, job.done) == ("done", {"parts": 3}, 3)
    assert job.started_ns < to_ns(5) < to_ns(30) <= job.finished_ns
    assert life.runner.runs == {("work", "done"): 1}
    assert job.as_dict()["progress"] == {"done": 3, "total": 3, "note": "part 2"}


def test_a_job_of_a_process_that_was_cut_off_goes_on_behind_its_checkpoint(lives):
    work = Work(parts=4)
    first = lives(work).start()
    number = first.add()
    first.pass_s(25)
    assert work.done == [(number, 0), (number, 1)]
    first.cut_off()
    second = lives(work, at_s=100).start()
    second.pass_s(25)
    assert work.done == [(number, part) for part in range(4)], "no part twice, none left out"
    job = second.store.find(number)
    assert (job.state, job.life) == ("done", 2)


def test_twin_without_checkpoints_does_parts_twice(lives):
    work = Work(parts=4)
    first = lives(work).start()
    number = first.add()
    first.pass_s(25)
    with first.database.change() as database:
        database.execute("UPDATE jobs SET checkpoint = NULL")
    first.cut_off()
    lives(work, at_s=100).start().pass_s(45)
    assert work.done.count((number, 0)) == 2


def test_a_process_that_ends_well_leaves_jobs_at_their_last_save(lives):
    work = Work(parts=3)
    first = lives(work).start()
    number = first.add()
    first.pass_s(15)
    first.end()
    second = lives(work, at_s=50)
    job = second.store.find(number)
    assert (job.state, job.done, job.checkpoint) == ("queued", 1, 1)
    assert job.attempts == 0, "nothing was in vain"
    second.start().pass_s(25)
    assert work.done == [(number, 0), (number, 1), (number, 2)]


def test_a_job_that_ends_its_process_again_and_again_has_failed(lives):
    work = Work(part_s=1000)
    first = lives(work).start()
    number = first.add()
    first.pass_s(1)
    first.cut_off()
    for life in range(1, 3):
        again = lives(work, at_s=life * 10).start()
        again.pass_s(1)
        assert again.state(number) == "running"
        again.cut_off()
    last = lives(work, at_s=100).start()
    job = last.store.find(number)
    assert (job.state, job.error) == (
        "failed",
        "the process ended while it ran, 3 times without getting further",
    )


def test_one_that_gets_further_each_time_is_cut_off_as_often_as_you_like(lives):
    work = Work(parts=6)
    life = lives(work).start()
    number = life.add()
    for at in range(1, 6):
        life.pass_s(11)
        life.cut_off()
        life = lives(work, at_s=at * 20).start()
    life.pass_s(11)
    assert life.state(number) == "done"
    assert work.done == [(number, part) for part in range(6)]


def test_failures_are_tried_again_later_and_later_until_there_were_enough(lives):
    work = Work(parts=1, part_s=0.001)
    work.faults = [OSError("disk"), OverQuota("full", 1.0), ValueError("odd")]
    life = lives(work).start()
    number = life.add()
    life.pass_s(1)
    job = life.store.find(number)
    assert (job.state, job.error, job.attempts) == ("queued", "OSError: disk", 1)
    assert job.run_at_ns - job.queued_ns == to_ns(5 * 0.75)  # half of it is by chance
    life.pass_s(4)
    job = life.store.find(number)
    assert (job.state, job.error, job.attempts) == ("queued", "full", 2)
    assert job.run_at_ns - job.queued_ns == to_ns(10 * 0.75)
    life.pass_s(8)
    job = life.store.find(number)
    assert (job.state, job.error, job.attempts) == ("failed", "ValueError: odd", 3)
    assert life.runner.runs == {("work", "retried"): 2, ("work", "failed"): 1}


def test_getting_further_makes_the_tries_begin_anew(lives):
    work = Work(parts=4, part_s=0.001)
    life = lives(work, max_attempts=2, retry_after_s=1.0).start()
    number = life.add()
    for _ in range(3):
        work.faults = [OSError("disk")]
        life.pass_s(1)
    life.pass_s(5)
    assert life.state(number) == "done"


@pytest.mark.parametrize("error", [BadRequest("wrong"), BadSettings("no folder")])
def test_what_is_wrong_is_not_tried_again(lives, error):
    work = Work(part_s=0.001)
    work.faults = [error]
    life = lives(work).start()
    number = life.add()
    life.pass_s(1)
    job = life.store.find(number)
    assert (job.state, job.error, job.attempts) == ("failed", str(error), 1)


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_where_it_saves(lives):
    work = Work()
    life = lives(work, workers=1).start()
    running, waiting = life.add(), life.add()
    life.pass_s(1)
    assert life.do(life.runner.cancel(waiting)).state == "cancelled"
    life.do(life.runner.cancel(running))
    life.pass_s(1)  # a pause ends, not only a part
    assert life.state(running) == "cancelled"
    assert work.done == []
    with pytest.raises(NoSuchObject, match="no job has the id 99"):
        life.do(life.runner.cancel(99))
    done = life.add(arguments={"parts": 0})
    life.pass_s(1)
    assert life.do(life.runner.cancel(done)).state == "done", "what is over stays as it is"


def test_a_cancelled_job_of_a_process_that_was_cut_off_does_not_come_back(lives):
    work = Work()
    first = lives(work).start()
    number = first.add()
    first.pass_s(1)
    first.store.cancel(number, first.runner.unix_ns())
    first.cut_off()
    second = lives(work, at_s=10).start()
    second.pass_s(60)
    assert second.state(number) == "cancelled"
    assert work.done == []


def test_kinds_and_workers_bound_how_many_run_and_those_aside_take_no_worker(lives):
    work = Work(parts=1)
    life = lives(work, workers=2).start()
    several = [life.add("work"), life.add("work"), life.add("twins"), life.add("twins")]
    aside = [life.add("batch"), life.add("batch"), life.add("batch")]
    life.pass_s(1)
    running = [number for number in several + aside if life.state(number) == "running"]
    assert running == [several[0], several[2], aside[0], aside[1]]
    life.pass_s(50)
    assert {life.state(number) for number in several + aside} == {"done"}


def test_the_highest_priority_goes_first_then_who_has_waited_longest(lives):
    work = Work(parts=1, part_s=1)
    life = lives(work, workers=1)
    low, first, second, high = (life.add(priority=each) for each in (-1, 0, 0, 5))
    life.start().pass_s(10)
    assert work.begun == [high, first, second, low]


def test_a_job_with_the_same_name_is_not_begun_twice(lives):
    life = lives(Work()).start()
    first = life.add(dedupe="warm_up")
    life.pass_s(1)
    assert life.add(dedupe="warm_up") == first
    life.pass_s(60)
    assert life.add(dedupe="warm_up") != first


def test_a_job_may_give_its_place_to_others_for_a_while(lives):
    calls = []

    async def perform(job, _course):
        calls.append(job.id)
        if calls == [1]:
            raise Later(to_ns(100))
        return {}

    life = lives(perform, workers=1).start()
    first, second = life.add(), life.add()
    life.pass_s(1)
    job = life.store.find(first)
    assert (job.state, job.attempts, job.error) == ("queued", 0, None)
    assert life.state(second) == "done"
    life.pass_s(100)
    assert calls == [first, second, first]


def test_no_more_wait_than_may(lives):
    life = lives(Work(), max_waiting=2)
    life.add(), life.add()
    with pytest.raises(QueueFull, match="2 jobs wait"):
        life.add()


# schedules


def every(seconds, kind="work", **options):
    return Schedule(name="often", kind=kind, arguments={"parts": 1}, every_ns=to_ns(seconds), **options)


def begun(life, schedule):
    life.store.declare([schedule], life.runner.unix_ns())
    return life.start()


def test_a_schedule_begins_a_job_each_time_it_is_due_and_keeps_its_beat(lives):
    work = Work(parts=1, part_s=1)
    life = begun(lives(work), every(60))
    life.pass_s(59)
    assert work.done == []
    life.pass_s(130)
    assert len(work.done) == 3
    started = [job.started_ns for job in life.store.page()]
    assert all(at_ns % to_ns(60) < to_ns(1) for at_ns in started), "no drift"


def test_a_restart_neither_skips_nor_doubles_what_is_due(lives):
    work = Work(parts=1, part_s=1)
    first = begun(lives(work), every(60))
    first.pass_s(50)
    first.cut_off()
    second = begun(lives(work, at_s=55), every(60))
    second.pass_s(4)
    assert work.done == []
    second.pass_s(4)
    assert len(work.done) == 1
    second.end()
    third = begun(lives(work, at_s=65), every(60))
    third.pass_s(50)
    assert len(work.done) == 1
    third.pass_s(10)
    assert len(work.done) == 2


def test_what_was_missed_is_made_up_for_once(lives):
    work = Work(parts=1, part_s=1)
    begun(lives(work), every(60)).cut_off()
    later = begun(lives(work, at_s=6_000), every(60))
    later.pass_s(10)
    assert len(work.done) == 1
    later.pass_s(60)
    assert len(work.done) == 2


def test_a_job_that_still_runs_is_not_begun_again_and_that_is_counted(lives):
    work = Work(parts=1, part_s=150)
    life = begun(lives(work), every(60))
    life.pass_s(200)
    (schedule,) = life.store.schedules()
    assert (len(work.begun), schedule.skipped) == (1, 2)
    life.pass_s(60)
    assert len(work.begun) == 2


def test_a_clock_that_goes_back_makes_nobody_wait_longer_and_nothing_twice(lives):
    work = Work(parts=1, part_s=1)
    first = begun(lives(work, at_s=4_000), every(60))
    first.pass_s(62)
    assert len(work.done) == 1
    waiting = first.add(delay_ns=to_ns(30))
    first.end()
    second = begun(lives(work, at_s=400), every(60))  # an hour earlier
    second.pass_s(29)
    assert len(work.done) == 1
    second.pass_s(3)
    assert work.done[1][0] == waiting
    second.pass_s(30)
    assert len(work.done) == 3


def test_what_an_operator_says_of_a_schedule_goes_before_the_settings(lives):
    work = Work(parts=1, part_s=1)
    first = begun(lives(work), every(60))
    first.store.put(every(10, is_edited=True), first.runner.unix_ns())
    first.runner.call()
    first.end()
    second = begun(lives(work, at_s=2), every(60))
    second.pass_s(20)
    assert len(work.done) == 2
    second.store.put(every(10, is_edited=True, is_on=False), second.runner.unix_ns())
    second.end()
    third = begun(lives(work, at_s=30), every(60))
    third.pass_s(100)
    assert len(work.done) == 2


def test_a_schedule_that_the_settings_no_longer_have_is_gone(lives):
    first = begun(lives(Work()), every(60))
    first.cut_off()
    second = lives(Work(), at_s=1)
    second.store.declare([], second.runner.unix_ns())
    assert second.store.schedules() == []


# the database


def test_a_database_that_fails_for_a_while_loses_nothing(lives, monkeypatch):
    work = Work(parts=1, part_s=1)
    life = lives(work).start()
    number = life.add()
    life.pass_s(0.5)
    turn = life.store.turn

    def broken(*_, **__):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(life.store, "turn", broken)
    life.pass_s(10)
    assert life.state(number) == "running"
    assert life.runner.num_faults > 0
    monkeypatch.setattr(life.store, "turn", turn)
    life.pass_s(10)
    assert (life.state(number), work.done) == ("done", [(number, 0)])


def test_what_was_over_long_ago_is_forgotten(lives):
    life = lives(Work(parts=0), lanes={"work": Lane(at_once=10)}, workers=10).start()
    several = [life.add() for _ in range(5)]
    life.pass_s(10)
    late = life.add()
    life.pass_s(1)
    assert life.store.prune(to_ns(9)) == 5
    assert [job.id for job in life.store.page()] == [late]
    assert late > max(several), "an id is never used again"


def test_pages_of_jobs_go_back_in_time(lives):
    life = lives(Work(parts=0)).start()
    several = [life.add("work" if number % 2 else "twins") for number in range(6)]
    life.pass_s(5)
    assert [job.id for job in life.store.page(limit=2)] == several[:-3:-1]
    assert [job.id for job in life.store.page(limit=2, after=several[-2])] == [several[3], several[2]]
    assert [job.id for job in life.store.page(kind="twins", state="done")] == several[-2::-2]
    assert life.store.count() == {("work", "done"): 3, ("twins", "done"): 3}


def test_a_folder_is_one_process_s(lives, folder):
    life = lives(Work())
    with pytest.raises(BadSettings, match=f"jobs.folder {folder} is in use by another server"):
        Database(folder)
    life.cut_off()
    Database(folder).close()


def test_a_database_of_somebody_else_is_left_alone(folder):
    folder.mkdir()
    with sqlite3.connect(folder / "jobs.sqlite") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(BadSettings, match="belongs to another program"):
        Database(folder)
    (folder / "jobs.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(BadSettings, match="cannot be used: file is not a database; move it away"):
        Database(folder)


def test_without_a_folder_nothing_is_left_behind():
    database = Database(None)
    folder = database.folder
    assert (folder / "jobs.sqlite").exists()
    database.close()
    assert not folder.exists()
