"""A real redis server."""

import signal
import sys

import pytest

from engine.cache.stores import StoreFault, open_store
from engine.errors import BadSettings
from tests.engine.cache.stores.blocks import MODEL, record, same

TIMEOUT_S = 20.0  # a busy machine is no fault


def opened(url, timeout_s=TIMEOUT_S):
    return open_store(url=url, timeout_s=timeout_s)


@pytest.fixture
def client(redis_server):
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(redis_server[0]) as client:
        yield client


def test_blocks_come_back_from_redis_after_a_restart(redis_server, records):
    url, _ = redis_server
    store = opened(url)
    places = store.write(MODEL, records)
    store.close()
    again = opened(url)
    found = list(again.scan())
    assert [each.place for each in found] == places
    answers = again.read(places, [each.key for each in found])
    assert all(same(answer, wanted) for answer, wanted in zip(answers, records, strict=True))
    again.drop(places)
    again.close()
    last = opened(url)
    assert list(last.scan()) == []
    last.close()


def test_value_that_was_cut_or_evicted_is_a_miss(redis_server, client, records):
    store = opened(redis_server[0])
    places = store.write(MODEL, records)
    (key,) = client.keys()
    client.set(key, client.get(key)[:-1000])
    answers = store.read(places, [each.key for each in records])
    assert same(answers[0], records[0])
    assert answers[-1] is None
    client.delete(key)
    assert store.read(places[:1], [records[0].key]) == [None]
    assert store.counters.gone
    store.close()


def test_server_without_memory_says_that_it_is_full(redis_server, client):
    store = opened(redis_server[0])
    big = record(1, 4 << 20)
    places = store.write(MODEL, [big])
    with pytest.raises(StoreFault, match="no memory left") as caught:
        all(store.write(MODEL, [big]) for _ in range(20))
    assert caught.value.kind == "full"
    assert len(client.keys()) == store.counters.written_blocks
    assert same(store.read(places, [big.key])[0], big)
    store.close()


def test_another_writer_under_the_same_prefix_is_noticed(redis_server, records):
    store, other = opened(redis_server[0]), opened(redis_server[0])
    places = store.write(MODEL, records)
    with pytest.raises(StoreFault) as caught:
        other.write(MODEL, [record(9)])
    assert caught.value.kind == "taken"
    assert same(store.read(places[:1], [records[0].key])[0], records[0])
    store.close()
    other.close()


def test_damaged_value_is_kept_out_of_the_listing(redis_server, client, records):
    opened(redis_server[0]).write(MODEL, records)
    (key,) = client.keys()
    client.setrange(key, 0, b"x")
    store = opened(redis_server[0])
    assert list(store.scan()) == []
    assert client.keys() == [key + b".damaged"]
    store.close()


def test_server_that_was_killed_is_a_fault(redis_server, records):
    url, server = redis_server
    store = opened(url)
    places = store.write(MODEL, records)
    server.kill()
    server.wait()
    with pytest.raises(StoreFault) as caught:
        store.read(places, [each.key for each in records])
    assert caught.value.kind == "unreachable"
    store.close()


def test_server_that_hangs_is_a_timeout(redis_server, records):
    url, server = redis_server
    store = opened(url, timeout_s=0.5)
    places = store.write(MODEL, records)
    server.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreFault) as caught:
        store.read(places, [each.key for each in records])
    assert caught.value.kind == "timeout"
    store.close()


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(BadSettings, match=r"modelyard\[redis\]"):
        open_store(url="redis://127.0.0.1:1/0")
