"""A disk that is full: clients are told so, nothing is half there, and what was there goes on with some room."""

import errno
import sqlite3
from contextlib import contextmanager

import openai
import pytest

from engine.errors import BadSettings
from engine.server.disk import DiskFull, is_full
from engine.server.jobs import batch_run, files, lines
from engine.server.jobs.database import Database
from engine.server.settings import JobSettings, LogSettings, ServerSettings
from tests.engine.server.conftest import modelled

FULL = OSError(errno.ENOSPC, "No space left on device")
WINDOW = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
LARGE = {f"k{number}": "v" * 512 for number in range(16)}
"""Metadata that takes pages of its own in the database."""


@pytest.fixture
def server(serving, tmp_path):
    settings = ServerSettings(
        port=0,
        admin_port=0,
        log=LogSettings(level="off"),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), batch_check_every_s=0.02),
    )
    with serving(modelled(), settings) as found:
        yield found


@contextmanager
def no_room(database):
    """The jobs' database may not grow by a single page: SQLite says of that what it says of a full disk."""
    with database._lock:
        (pages,) = database._connection.execute("PRAGMA page_count").fetchone()
        database._connection.execute(f"PRAGMA max_page_count = {pages}")
    yield
    with database._lock:
        database._connection.execute("PRAGMA max_page_count = 1073741823")


def refuse_at(monkeypatch, module, name):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr(module.os, name, full)


def assert_full(error):
    assert (error.status_code, error.type, error.code) == (507, "server_error", "insufficient_storage")
    assert "the server's disk is full" in error.message


@pytest.mark.parametrize("name", ["open", "write", "fsync"])
def test_an_upload_that_finds_no_room_says_so_and_leaves_nothing(server, monkeypatch, name):
    client, folder = server.openai(), server.server.jobs.files._database.files
    kept = client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    with monkeypatch.context() as patch:
        refuse_at(patch, files, name)
        with pytest.raises(openai.InternalServerError) as told:
            client.files.create(file=("in.jsonl", b"x" * 3_000_000), purpose="batch")
    assert_full(told.value)
    assert [path.name for path in folder.iterdir()] == [kept.id]
    assert [each.id for each in client.files.list()] == [kept.id]
    assert not server.server.jobs.files._coming
    assert client.files.content(kept.id).read() == b"{}"
    assert client.files.create(file=("in.jsonl", b"x" * 3_000_000), purpose="batch").bytes == 3_000_000


def test_an_upload_that_the_database_has_no_room_for_is_not_half_there(server, monkeypatch):
    client, jobs = server.openai(), server.server.jobs
    monkeypatch.setattr(files, "safe_name", lambda name: name * 1_000)
    with no_room(jobs._database), pytest.raises(openai.InternalServerError) as told:
        client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    assert_full(told.value)
    assert list(jobs.files._database.files.iterdir()) == []
    assert client.files.create(file=("in.jsonl", b"{}"), purpose="batch").bytes == 2


def test_batches_and_jobs_that_find_no_room_are_not_there_and_what_was_there_stays(server, request_line):
    client, operator = server.openai(), server.admin()
    file = client.files.create(file=("in.jsonl", request_line("a", tokens=2)), purpose="batch")
    warm_up = {"kind": "warm_up", "arguments": {"prompts": [{"model": "llama", "prompt": "x" * 9_000}]}}
    with no_room(server.server.jobs._database):
        with pytest.raises(openai.InternalServerError) as told:
            client.batches.create(input_file_id=file.id, metadata=LARGE, **WINDOW)
        assert_full(told.value)
        answer = operator.post("/admin/jobs", json=warm_up)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
        answer = operator.put("/admin/jobs/schedules/warm", json={**warm_up, "every_s": 3600})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
        assert [each.id for each in client.files.list()] == [file.id]
    assert list(client.batches.list()) == []
    assert operator.get("/admin/jobs").json()["data"] == []
    assert client.batches.create(input_file_id=file.id, metadata=LARGE, **WINDOW).metadata == LARGE


def test_a_batch_that_meets_a_full_disk_waits_for_room_however_long_that_takes(yards, monkeypatch):
    yard = yards(max_attempts=2, batch_concurrency=1)
    pwrite = lines.os.pwrite
    has_room = []

    def written(number, data, offset):
        if len(yard.asked) > 2 and not has_room:
            raise FULL
        return pwrite(number, data, offset)

    monkeypatch.setattr(lines.os, "pwrite", written)
    batch = yard.batch("a", "b", "c", "d")
    yard.pass_s(600)
    job = yard.jobs.store.find(yard.find(batch).job)
    assert (yard.status(batch), job.state) == ("in_progress", "queued")
    assert "No space left" in job.error
    has_room.append(True)
    yard.pass_s(60)
    assert (yard.status(batch), yard.find(batch).completed) == ("completed", 4)
    assert sorted(each["custom_id"] for each in yard.output(batch)) == ["a", "b", "c", "d"]


def test_a_batch_whose_database_is_full_lets_go_of_its_files_and_goes_on_later(yards, monkeypatch):
    yard = yards(max_attempts=2)
    opened = []
    outputs_of = batch_run.Outputs

    def kept(*arguments):
        opened.append(outputs_of(*arguments))
        return opened[-1]

    def full(*_):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(batch_run, "Outputs", kept)
    with monkeypatch.context() as patch:
        patch.setattr(batch_run, "_counted", full)
        batch = yard.batch("a", "b")
        yard.pass_s(100)
    assert len(opened) > 2
    assert {each.output._number for each in opened} == {-1}
    yard.pass_s(60)
    assert (yard.status(batch), yard.find(batch).completed) == ("completed", 2)


def test_a_batch_is_cancelled_with_its_job_or_not_at_all(yards, monkeypatch):
    yard = yards(batches_at_once=1)
    yard.is_idle = False
    yard.batch("a")
    waiting = yard.batch("b")
    yard.pass_s(1)
    move = batch_run.Batch.move

    def full(*_):
        raise FULL

    monkeypatch.setattr(batch_run.Batch, "move", full)
    with pytest.raises(OSError, match="No space left"):
        yard.do(yard.jobs.cancel_batch(waiting, "acme"))
    monkeypatch.setattr(batch_run.Batch, "move", move)
    assert yard.status(waiting) == "validating"
    assert yard.jobs.store.find(yard.find(waiting).job).state == "queued"
    assert yard.do(yard.jobs.cancel_batch(waiting, "acme")).status == "cancelled"


def test_a_change_that_is_too_large_for_the_database_says_that_it_is_full(yard):
    database = yard.jobs._database
    with no_room(database), pytest.raises(sqlite3.OperationalError, match="full") as told:
        yard.batch("a", metadata=LARGE)
    assert is_full(told.value)
    assert not database._connection.in_transaction


def test_a_folder_on_a_full_disk_is_not_to_be_begun_anew(folder, monkeypatch):
    """All of its jobs are there."""
    Database(folder).close()

    def full(_):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(Database, "_begin", full)
    with pytest.raises(BadSettings, match="cannot be used: database or disk is full; make room there"):
        Database(folder)


def test_whatever_follows_from_a_full_disk_says_so():
    settings = BadSettings("the registry's file cannot be written")
    assert not is_full(settings)
    settings.__cause__ = FULL
    assert is_full(settings)
    assert is_full(DiskFull())
    assert not is_full(OSError(errno.EIO, "Input/output error"))
    assert not is_full(sqlite3.OperationalError("no such table"))
    assert not is_full(None)
