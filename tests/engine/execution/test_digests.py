"""Digests that are remembered: believed while nothing has touched the file, computed again otherwise."""

import json
import os
from hashlib import sha256

import pytest

from engine.execution import digests
from engine.execution.digests import Digests, written_aside


@pytest.fixture
def settled(monkeypatch):
    """As if the files were written long ago."""
    monkeypatch.setattr(digests, "SETTLED_NS", 0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def kept(tmp_path):
    return Digests(tmp_path / "notes")


def rewrite_notes(kept, **changes):
    for note in kept.folder.glob("*.json"):
        note.write_text(json.dumps(json.loads(note.read_text()) | changes))


def test_the_digest_of_one_file_is_its_sha256(file):
    assert Digests(None).of_all([file]) == sha256(b"one").hexdigest()


def test_the_digest_of_several_files_knows_where_one_ends(tmp_path):
    found = set()
    for number, contents in enumerate([("ab", "c"), ("a", "bc"), ("c", "ab")]):
        paths = [tmp_path / f"{number}-{part}" for part in range(2)]
        for path, text in zip(paths, contents, strict=True):
            path.write_text(text)
        found.add(Digests(None).of_all(paths))
    assert len(found) == 3


@pytest.mark.usefixtures("settled")
def test_a_note_is_believed_while_the_file_is_untouched(file, kept):
    kept.of(file)
    rewrite_notes(kept, sha256="as noted")
    assert kept.of(file) == "as noted"


@pytest.mark.usefixtures("settled")
def test_a_changed_file_of_the_same_size_is_read_again(file, kept):
    kept.of(file)
    about = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert kept.of(file) == sha256(b"two").hexdigest()


def test_a_file_that_was_written_just_now_gets_no_note(file, kept):
    assert kept.of(file) == sha256(b"one").hexdigest()
    assert not list(kept.folder.iterdir())


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("note", ["", "[]", "null", '{"stamp": 1}', "[" * 10_000, "\xff", '{"sha256": 1'])
def test_a_note_that_is_none_is_not_believed(note, file, kept):
    kept.of(file)
    for path in kept.folder.glob("*.json"):
        path.write_text(note, encoding="latin-1")
    assert kept.of(file) == sha256(b"one").hexdigest()


@pytest.mark.usefixtures("settled")
def test_a_folder_that_takes_no_notes_is_no_error(file):
    assert Digests(file).of(file) == sha256(b"one").hexdigest()


def test_a_file_without_a_note_is_not_vouched_for(file, kept):
    assert not kept.vouches_for(file)
    assert not Digests(None).vouches_for(file)


def test_a_file_is_vouched_for_until_its_contents_change(file, kept):
    kept.vouch(file, sha256(b"one").hexdigest())
    assert kept.vouches_for(file)
    os.utime(file, (1, 1))
    assert kept.vouches_for(file)
    file.write_bytes(b"two")
    assert not kept.vouches_for(file)
    assert not kept.vouches_for(file)  # the wrong contents have not become the right ones


def test_what_is_written_aside_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with written_aside(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(KeyError), written_aside(path) as file:  # noqa: PT012 - the block is what fails
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"whole"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
