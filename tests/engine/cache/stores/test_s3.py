"""A bucket on a real server that checks signatures."""

import os
import signal

import pytest

from engine.cache.stores import ExtentStore, StoreFault, open_store
from engine.cache.stores.s3 import S3Backend
from engine.errors import BadSettings
from tests.engine.cache.stores.blocks import MODEL, record, same

TIMEOUT_S = 20.0  # a busy machine is no fault


def opened(address, timeout_s=TIMEOUT_S):
    return open_store(url="s3://kv/some/where", endpoint=address, timeout_s=timeout_s)


def exchange(store, change):
    """What somebody else does to the only object: other bytes instead, or none at all."""
    client = store.backend._client
    (listed,) = client.list_objects_v2(Bucket="kv", Prefix="some/where/")["Contents"]
    where = {"Bucket": "kv", "Key": listed["Key"]}
    data = change(client.get_object(**where)["Body"].read())
    client.delete_object(**where)
    if data is not None:
        client.put_object(**where, Body=data)


def test_blocks_come_back_from_a_bucket_after_a_restart(s3_server, records):
    address, bucket, _ = s3_server
    store = opened(address)
    places = store.write(MODEL, records)
    store.close()
    again = opened(address)
    found = list(again.scan())
    assert [each.place for each in found] == places
    answers = again.read(places, [each.key for each in found])
    assert all(same(answer, wanted) for answer, wanted in zip(answers, records, strict=True))
    assert [path.parent.parent for path in bucket.rglob("*.kv")] == [bucket / "some" / "where"]
    again.drop(places)
    assert list(opened(address).scan()) == []


def test_wrong_key_is_told(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(
        StoreFault, match=r"s3://kv/some/where/ could not be listed: the server says \w+"
    ) as caught:
        opened(s3_server[0])
    assert caught.value.kind == "denied"


def test_missing_credentials_are_told(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StoreFault, match="no credentials") as caught:
        opened(s3_server[0])
    assert caught.value.kind == "denied"


def test_object_that_was_truncated_behind_our_back_is_a_miss(s3_server, records):
    address, _, _ = s3_server
    store = opened(address)
    places = store.write(MODEL, records)
    exchange(store, lambda data: data[:-1000])
    answers = store.read(places, [each.key for each in records])
    assert same(answers[0], records[0])
    assert answers[-1] is None
    assert store.counters.corrupt > 0


def test_object_that_was_deleted_behind_our_back_is_a_miss(s3_server, records):
    address, _, _ = s3_server
    store = opened(address)
    places = store.write(MODEL, records)
    exchange(store, lambda data: None)
    assert store.read(places, [each.key for each in records]) == [None] * len(records)
    assert store.counters.gone == len(records)


def test_damaged_object_is_kept_out_of_the_listing(s3_server, records):
    address, bucket, _ = s3_server
    before = opened(address)
    before.write(MODEL, records)
    exchange(before, lambda data: b"x" + data[1:])
    store = opened(address)
    assert list(store.scan()) == []
    assert store.counters.damaged_extents == store.counters.set_aside == 1
    assert [path.suffix for path in bucket.rglob("*") if path.is_file()] == [".damaged"]


def test_server_that_was_killed_is_a_fault_in_time(s3_server, records):
    address, _, server = s3_server
    store = opened(address)
    places = store.write(MODEL, records)
    server.kill()
    server.wait()
    for number in range(3):
        with pytest.raises(StoreFault) as caught:
            store.read(places[:1], [records[0].key])
        assert caught.value.kind == "unreachable"
        assert store.is_suspect == (number == 2)
    with pytest.raises(StoreFault):
        store.write(MODEL, [record(9)])
    assert store.counters.faults == {"unreachable": 4}


@pytest.mark.slow
def test_server_that_hangs_is_a_timeout(s3_server, records):
    address, _, server = s3_server
    opened(address).write(MODEL, records)
    store = ExtentStore(S3Backend("kv", "some/where", endpoint=address, timeout_s=1.0))
    server.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)  # on a busy machine it may answer once more before it stops
    with pytest.raises(StoreFault) as caught:
        store.write(MODEL, [record(9)])
    assert caught.value.kind == "timeout"


def test_bucket_that_is_not_there_is_told(s3_server):
    with pytest.raises(StoreFault, match="NoSuchBucket"):
        ExtentStore(S3Backend("nobody", endpoint=s3_server[0], timeout_s=TIMEOUT_S))


@pytest.mark.parametrize("url", ["s3:///prefix", "http://host/x", "", "kv"])
def test_url_that_is_none_of_a_store_is_refused(url):
    with pytest.raises(BadSettings, match=r"must be redis://host:port/0 or s3://bucket/prefix"):
        open_store(url=url)


def test_endpoint_that_is_no_address_is_refused():
    with pytest.raises(BadSettings, match="endpoint is 'nowhere'"):
        S3Backend("kv", endpoint="nowhere")


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(BadSettings, match=r"modelyard\[s3\]"):
        open_store(url="s3://kv/x")
