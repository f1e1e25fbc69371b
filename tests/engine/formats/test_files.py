"""Files that nobody vouches for: only plain ones are opened, and none stays open."""

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from engine.errors import BadModel
from engine.formats import read_gguf
from engine.formats.files import opened, parse_json, pickled, read_at_most, shown
from engine.formats.safe_tensors import read_safetensors

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX special files")


@pytest.mark.parametrize("read", [read_gguf, read_safetensors])
def test_what_is_no_plain_file_is_refused_without_waiting_for_it(read, tmp_path):
    with pytest.raises(BadModel, match="is a folder, but must be a plain file"):
        read(tmp_path)
    with pytest.raises(BadModel, match="there is no such file"):
        read(tmp_path / "missing")
    with pytest.raises(BadModel, match="no file can be called that"):
        read(Path("a\0b"))


@needs_posix
@pytest.mark.parametrize("read", [read_gguf, read_safetensors])
def test_pipes_devices_and_sockets_are_refused_without_waiting_for_them(read, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadModel, match="is a named pipe"):
        read(tmp_path / "pipe")
    with pytest.raises(BadModel, match="is a device"):
        read(Path("/dev/zero"))
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind("socket")
        with pytest.raises(BadModel, match="is a socket"):
            read(tmp_path / "socket")


@needs_posix
def test_no_file_stays_open(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(BadModel):
            read_gguf(path)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(11))
    assert read_at_most(path, 11) == bytes(11)
    with pytest.raises(BadModel, match="has 11 bytes, but at most 10 are read"):
        read_at_most(path, 10)


def test_what_the_system_refuses_stays_its_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("engine.formats.files.os.open", refuse)
    with pytest.raises(PermissionError), opened(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[1]", "is a JSON list, but must be an object"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        (b'{"b": {"a": 1, "a": 2}}', "the key 'a' stands there twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no valid JSON"),
        (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\)"),
        (b'{"a": ', "is no valid JSON"),
        (b"", "is no valid JSON"),
    ],
)
def test_json_that_two_parsers_could_read_differently_is_refused(data, why):
    with pytest.raises(BadModel, match=why):
        parse_json(Path("config.json"), data, "it")


def test_archives_of_code_are_known_by_their_first_bytes():
    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    assert "pickle" in pickled(legacy)
    assert "zip" in pickled(b"PK\x03\x04")
    assert pickled(b"GGUF") is None
    assert pickled(b"\x80\x01") is None


def test_what_a_message_repeats_is_short_and_printable():
    assert shown("a\x1b[31mb") == repr("a\x1b[31mb")
    assert shown("a\x1b[31mb\n", quoted=False) == "a?[31mb?"
    assert len(shown("x" * 10**6)) < 100
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert len(shown(deep)) < 200
    assert len(shown(list(range(10**6)))) < 200
