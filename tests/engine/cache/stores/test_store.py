"""Blocks in extents: what is read is what was written, and the books agree with the files."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as some

from engine.cache.stores import ExtentStore, FolderBackend, StoreFault
from engine.cache.stores.store import MAX_ASIDE, file_name, folder_name
from tests.engine.cache.stores.blocks import MODEL, record, same


def keys_of(records):
    return [each.key for each in records]


def files_of(store):
    return sorted(store.backend.path.rglob("*.kv"))


def test_blocks_come_back_in_any_order(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    other = store.write("another", [record(50)])
    order = [3, 0, 5, 1]
    answers = store.read(
        [*(places[each] for each in order), *other], [*(records[each].key for each in order), record(50).key]
    )
    wanted = [*(records[each] for each in order), record(50)]
    assert all(same(answer, each) for answer, each in zip(answers, wanted, strict=True))
    assert store.counters.read_blocks == 5
    assert store.counters.read_bytes == sum(len(each.data) for each in wanted)
    assert max(places) < 1 << 63


def test_neighbours_are_read_in_one_request(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    asked = []
    get = store.backend.get
    store.backend.get = lambda *span: asked.append(span) or get(*span)
    store.read(places, keys_of(records))
    assert len(asked) == 1
    store.read([places[0], places[2]], [records[0].key, records[2].key])
    assert len(asked) == 3


def test_block_is_given_only_to_who_knows_its_name(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    assert store.read([places[0]], [records[1].key]) == [None]
    assert store.counters.corrupt == 1


def test_restart_finds_everything_and_goes_on_counting(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    store.write("another", [record(9)])
    again = open_folder()
    found = {each.key: each for each in again.scan()}
    assert found.keys() == {*keys_of(records), record(9).key}
    first = found[records[0].key]
    assert first == (MODEL, records[0].key, b"p" * 16, b"s" * 16, 1000, "int8", 0.25, places[0], 1)
    assert found[record(9).key].model == "another"
    assert again.models() == sorted([MODEL, "another"])
    (newer,) = again.write(MODEL, [record(10)])
    assert newer >> 16 == 3
    again.check_integrity()


def test_newest_of_two_wins_and_the_older_is_dead(open_folder, records):
    store = open_folder()
    store.write(MODEL, records)
    (newer,) = store.write(MODEL, [records[0]])
    again = open_folder()
    found = {each.key: each.place for each in again.scan()}
    assert len(found) == len(records)
    assert found[records[0].key] == newer
    assert again.counters.dead_bytes == 1024
    again.check_integrity()


def test_extent_goes_with_its_last_block(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    store.drop(places[:-1])
    store.drop(places[:-1])  # twice is once
    assert len(files_of(store)) == 1
    assert store.counters.dropped_blocks == len(records) - 1
    assert store.counters.dead_bytes > store.counters.live_bytes
    assert store.read(places[:1], [records[0].key]) == [None]
    store.check_integrity()
    store.drop(places)
    assert files_of(store) == []
    assert store.counters.dead_bytes == store.counters.live_bytes == store.counters.file_bytes == 0
    store.check_integrity()


def test_compacting_moves_what_lives_and_frees_the_rest(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    full = store.write(MODEL, [record(number) for number in range(20, 25)])
    store.drop(places[1:])
    moved = store.compact()
    assert list(moved) == places[:1]
    before = store.read([*moved, *moved.values()], [records[0].key] * 2)
    assert all(same(answer, records[0]) for answer in before)
    store.drop(list(moved))
    assert len(files_of(store)) == 2
    assert store.counters.dead_bytes == 0
    assert same(store.read(list(moved.values()), [records[0].key])[0], records[0])
    assert store.read(full, keys_of(record(number) for number in range(20, 25)))
    assert store.compact() == {}
    store.check_integrity()


def test_compacting_that_was_cut_off_loses_and_doubles_nothing(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    store.drop(places[3:])
    moved = store.compact(min_dead=0.1)
    again = open_folder()  # before anybody dropped the old places
    found = {each.key: each.place for each in again.scan()}
    assert [found[key] for key in keys_of(records[:3])] == list(moved.values())
    assert len(files_of(again)) == 2
    again.check_integrity()


def test_compacting_is_bounded(open_folder):
    store = open_folder()
    for number in range(4):
        places = store.write(MODEL, [record(100 + 2 * number), record(101 + 2 * number)])
        store.drop(places[:1])
    assert len(store.compact(max_bytes=1)) == 1
    assert len(store.compact(max_bytes=8_000)) == 2


def test_compacting_leaves_damaged_blocks_behind(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    store.drop(places[2:])
    (path,) = files_of(store)
    data = bytearray(path.read_bytes())
    data[data.index(records[0].data) + 5] ^= 1
    path.write_bytes(data)
    assert list(store.compact()) == places[1:2]
    assert store.counters.corrupt == 1


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda data: b"", 6),
        (lambda data: data[: len(data) // 2], 6),
        (lambda data: b"\0" * len(data), 6),
        (lambda data: data + b"more", 6),
        (lambda data: b"PK\x03\x04" + data[4:], 6),
        (lambda data: data[:-70] + b"\xff" + data[-69:], 0),
    ],
)
def test_restart_with_a_damaged_extent(open_folder, records, damage, lost):
    """Damage in the index costs the extent; damage in a block is found when it is read."""
    store = open_folder()
    store.write(MODEL, records)
    store.write(MODEL, [record(9)])
    path = files_of(store)[0]
    path.write_bytes(damage(path.read_bytes()))
    again = open_folder()
    found = list(again.scan())
    assert len(found) == 1 + len(records) - lost
    assert again.counters.damaged_extents == (lost > 0)
    answers = again.read([each.place for each in found], [each.key for each in found])
    good = [answer for answer in answers if answer is not None]
    assert len(good) == len(found) - (lost == 0)
    wanted = {each.key: each for each in [*records, record(9)]}
    assert all(same(answer, wanted[answer.key]) for answer in good)
    assert len(list(path.parent.glob("*.damaged"))) == (lost > 0)
    again.check_integrity()


def test_file_of_another_model_or_number_under_the_right_name_is_refused(open_folder, records, tmp_path):
    store = open_folder()
    store.write(MODEL, records)
    store.write(MODEL, [record(10)])
    other = ExtentStore(FolderBackend(tmp_path / "other"))
    other.write("another", records)
    other.close()
    first, second = files_of(store)
    files_of(other)[0].rename(first)  # another model, the same number
    second.rename(second.parent / file_name(3))  # another number
    again = open_folder()
    assert list(again.scan()) == []
    assert again.counters.damaged_extents == 2


def test_blocks_of_another_model_at_the_right_place_are_refused(open_folder, records, tmp_path):
    store = open_folder()
    places = store.write(MODEL, records)
    other = ExtentStore(FolderBackend(tmp_path / "other"))
    other.write("another", records)
    other.close()
    files_of(other)[0].rename(files_of(store)[0])
    assert store.read(places, keys_of(records)) == [None] * len(records)
    assert store.counters.corrupt == len(records)


def test_damaged_block_is_read_once(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    (path,) = files_of(store)
    data = bytearray(path.read_bytes())
    data[data.index(records[0].data)] ^= 0x80
    path.write_bytes(data)
    for _ in range(3):
        answers = store.read(places, keys_of(records))
        assert answers[0] is None
        assert all(same(answer, wanted) for answer, wanted in zip(answers[1:], records[1:], strict=True))
    assert store.counters.corrupt == 1
    store.check_integrity()
    store.drop(places)
    assert [path.suffix for path in path.parent.iterdir()] == [".damaged"]


def test_few_damaged_extents_are_kept(open_folder):
    store = open_folder()
    for number in range(MAX_ASIDE + 3):
        store.write(MODEL, [record(number)])
    for path in files_of(store):
        path.write_bytes(b"")
    again = open_folder()
    assert list(again.scan()) == []
    assert again.counters.set_aside == MAX_ASIDE
    assert len(list(again.backend.path.rglob("*.damaged"))) == MAX_ASIDE
    assert files_of(again) == []


def test_file_that_is_gone_is_a_miss_for_all_its_blocks(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    files_of(store)[0].unlink()
    assert store.read(places, keys_of(records)) == [None] * len(records)
    assert store.counters.gone == len(records)
    assert store.counters.file_bytes == 0
    store.check_integrity()


def test_model_is_dropped_alone_scanned_or_not(open_folder, records):
    store = open_folder()
    store.write(MODEL, records)
    store.write("another", [record(9)])
    again = open_folder()
    again.drop_model(MODEL)
    assert [each.model for each in again.scan()] == ["another"]
    again.drop_model("another")
    assert files_of(again) == []
    assert again.models() == []
    again.check_integrity()


def test_places_of_nobody_are_misses(open_folder, records):
    store = open_folder()
    places = store.write(MODEL, records)
    strange = [0, 99 << 16, places[-1] + 1, places[0] + 60_000]
    assert store.read(strange, [records[0].key] * 4) == [None] * 4
    store.drop(strange)
    store.check_integrity()


def test_threads_share_a_store(open_folder):
    store = open_folder()
    wrong = []

    def work(start):
        for number in range(start, start + 40, 4):
            written = [record(each, 3000) for each in range(number, number + 4)]
            places = store.write(f"model {start % 3}", written)
            answers = store.read(places, keys_of(written))
            wrong.extend(1 for pair in zip(answers, written, strict=True) if not same(*pair))
            store.drop(places[::2])

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.counters.written_blocks == 160
    store.check_integrity()


def test_large_index_is_read_in_two_steps(open_folder):
    many = [record(number, 1) for number in range(500)]
    open_folder().write(MODEL, many)
    found = list(open_folder().scan())
    assert [each.key for each in found] == keys_of(many)


def test_scan_goes_on_after_a_fault(open_folder):
    store = open_folder()
    for number in range(4):
        store.write(MODEL, [record(number), record(100)])
    again = open_folder()
    get, calls = again.backend.get, []

    def failing(*span):
        calls.append(span)
        if len(calls) == 3:
            raise StoreFault("io", "the device is gone")
        return get(*span)

    again.backend.get = failing
    found = []
    with pytest.raises(StoreFault):
        found.extend(each.key for each in again.scan())
    found.extend(each.key for each in again.scan())
    assert sorted(found) == sorted(keys_of([*map(record, range(4)), record(100)]))


@given(some.lists(some.text(), min_size=2, max_size=2, unique=True))
def test_models_never_share_a_folder(models):
    first, second = map(folder_name, models)
    assert first != second
    for name in (first, second):
        assert 0 < len(name) < 200
        assert "/" not in name
        assert not name.startswith(".")
        assert name.isascii()
        assert name.isprintable()


@pytest.mark.parametrize("model", ["", ".", "..", "a/b", "~x", "%41", "x" * 1000, "\ud800", "Ä" * 90])
def test_folder_of_a_strange_model_is_safe_and_comes_back(open_folder, model):
    store = open_folder()
    (place,) = store.write(model, [record(1)])
    (path,) = files_of(store)
    assert path.parent.parent == store.backend.path
    assert same(store.read([place], [record(1).key])[0], record(1))
    assert [each.model for each in open_folder().scan()] == [model]


def test_nothing_written_is_nothing(open_folder):
    store = open_folder()
    assert store.write(MODEL, []) == []
    assert isinstance(store, ExtentStore)
    assert files_of(store) == []
