"""What is written stays, whatever happens to the process; what is not ours is left as it is."""

import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from engine.errors import BadSettings
from engine.registry import store as store_module
from engine.registry.store import Edits, Remembered, Store, _transaction

NOON = "2026-01-01T12:00:00Z"
LATER = "2026-01-01T13:00:00Z"
EDITS = Edits(tags=("a", "b"), aliases=("chat",), is_pinned=True, note="ours, 'quoted' \N{SNOWMAN}")

WRITER = """
import sys
from pathlib import Path
from engine.registry.store import Edits, Store
store = Store(Path(sys.argv[1]))
for number in range(1, 1_000_000):
    store.flush({f"m{model}@1.0.0": (number, "now") for model in range(20)})
    store.edit("edited@1.0.0", Edits(note=str(number)))
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "registry.db"


def execute(path, *statements):
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def test_a_new_store_knows_nothing(path):
    store = Store(path)
    assert store.load() == {}
    assert store.put_aside is None


def test_counts_and_edits_are_there_after_a_restart(path):
    store = Store(path)
    store.flush({"a@1.0.0": (3, NOON), "b@1.0.0": (1, None)})
    store.edit("a@1.0.0", EDITS)
    store.edit("c@1.0.0", EDITS)
    assert Store(path).load() == {
        "a@1.0.0": Remembered(use_count=3, last_used_at=NOON, edits=EDITS),
        "b@1.0.0": Remembered(use_count=1),
        "c@1.0.0": Remembered(edits=EDITS),
    }


def test_a_flush_leaves_edits_alone_and_an_edit_leaves_counts_alone(path):
    mine, theirs = Store(path), Store(path)
    mine.flush({"a@1.0.0": (3, NOON)})
    theirs.edit("a@1.0.0", EDITS)
    mine.flush({"a@1.0.0": (4, LATER)})
    assert mine.load()["a@1.0.0"] == Remembered(use_count=4, last_used_at=LATER, edits=EDITS)
    theirs.edit("a@1.0.0", Edits(note="new"))
    assert mine.load()["a@1.0.0"] == Remembered(use_count=4, last_used_at=LATER, edits=Edits(note="new"))


def test_a_write_is_whole_or_does_not_happen(path):
    store = Store(path)
    with pytest.raises(BadSettings, match=r"registry\.db: the registry's file cannot be written: NOT NULL"):
        store.flush({"a@1.0.0": (1, NOON), "b@1.0.0": (None, NOON)})
    assert store.load() == {}


def test_keys_are_data_and_never_sql(path):
    store = Store(path)
    key = "a'); DROP TABLE models; --@1.0.0"
    store.flush({key: (1, NOON)})
    store.edit(key, Edits(tags=(key,), note=key))
    assert store.load()[key].edits == Edits(tags=(key,), note=key)


@pytest.mark.parametrize("damage", ["head", "middle", "text"])
def test_a_damaged_file_is_put_aside_and_a_new_one_is_begun(path, damage):
    store = Store(path)
    store.flush({f"m{number}@1.0.0": (number, NOON) for number in range(5000)})
    whole = path.read_bytes()
    spoilt = {
        "head": b"\0" * 100 + whole[100:],
        "middle": whole[:8192] + b"\xff" * 65536 + whole[8192 + 65536 :],
        "text": b"# notes that somebody keeps\n" * 200,
    }[damage]
    path.write_bytes(spoilt)
    store = Store(path)
    assert store.load() == {}
    assert store.put_aside == path.with_name("registry.db.damaged-1")
    assert store.put_aside.read_bytes() == spoilt
    assert store.why_put_aside
    store.edit("a@1.0.0", EDITS)
    assert Store(path).load() == {"a@1.0.0": Remembered(edits=EDITS)}


def test_one_damaged_file_does_not_replace_another(path):
    Store(path)
    for number in (1, 2):
        path.write_bytes(b"no database " * 100)
        assert Store(path).put_aside.name == f"registry.db.damaged-{number}"


def test_the_database_of_another_program_is_refused_and_left_as_it_is(path):
    path.parent.mkdir()
    execute(path, "CREATE TABLE letters (text)", "INSERT INTO letters VALUES ('dear')")
    before = path.read_bytes()
    with pytest.raises(BadSettings, match="is the database of another program; choose another file"):
        Store(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_another_version_is_refused(path):
    Store(path)
    execute(path, "PRAGMA user_version = 7")
    with pytest.raises(BadSettings, match="has version 7, but this engine reads 1"):
        Store(path)


def test_a_place_that_can_be_no_file_is_refused(path):
    path.mkdir(parents=True)
    with pytest.raises(BadSettings, match="cannot be opened"):
        Store(path)
    path.rmdir()
    path.write_text("")
    with pytest.raises(BadSettings, match="cannot be made"):
        Store(path / "below" / "a.db")


def test_what_was_written_by_hand_and_is_no_json_is_told(path):
    store = Store(path)
    store.edit("a@1.0.0", EDITS)
    execute(path, "UPDATE models SET tags = 'a, b'")
    with pytest.raises(BadSettings, match="cannot be read"):
        store.load()


def test_another_process_that_writes_for_too_long_is_told(path, monkeypatch):
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_MS", 20)
    store = Store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BadSettings, match="cannot be written: database is locked"):
        store.edit("a@1.0.0", EDITS)
    assert store.load() == {}  # who writes does not hinder who reads
    other.execute("ROLLBACK")
    store.edit("a@1.0.0", EDITS)
    other.close()


def test_many_may_begin_and_write_at_the_same_time(tmp_path):
    for turn in range(4):
        path, errors, start = tmp_path / f"{turn}.db", [], threading.Barrier(8)
        writers = [threading.Thread(target=begin, args=(path, start, number, errors)) for number in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert errors == []
        counts = {key: each.use_count for key, each in Store(path).load().items()}
        assert counts == {f"m{number}@1.0.0": number for number in range(8)}


def begin(path, start, number, errors):
    """One of many that open the file and write to it when all are ready."""
    start.wait()
    try:
        Store(path).flush({f"m{number}@1.0.0": (number, NOON)})
    except BadSettings as error:
        errors.append(error)


def killed_after(path, acknowledged):
    """Let a process write until it has told of so many writes, kill it, and return the last it told of."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        told = 0
        for line in writer.stdout:
            told = int(line)
            if told >= acknowledged:
                writer.send_signal(signal.SIGKILL)
                break
        rest = writer.stdout.read().split()
    return int(rest[-1]) if rest else told


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_write_that_it_was_told_of(path):
    for acknowledged in (1, 2, 5, 13, 40):
        last = killed_after(path, acknowledged)
        store = Store(path)
        assert store.put_aside is None
        known = store.load()
        counts = {each.use_count for key, each in known.items() if key != "edited@1.0.0"}
        assert len(counts) == 1, "a flush is whole"
        assert counts <= {last, last + 1}
        assert int(known["edited@1.0.0"].edits.note) in (last, last + 1)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_begins_leaves_a_file_that_can_be_used(tmp_path):
    for number in range(6):
        path = tmp_path / f"{number}.db"
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.DEVNULL) as writer:
            while not path.exists():
                assert writer.poll() is None
            writer.send_signal(signal.SIGKILL)
        assert Store(path).put_aside is None


def test_a_full_disk_is_told_as_what_it_is(tmp_path):
    with closing(sqlite3.connect(tmp_path / "small.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError, match="full"), _transaction(database):
            database.execute("INSERT INTO t VALUES (?)", ("x" * 9_000,))
