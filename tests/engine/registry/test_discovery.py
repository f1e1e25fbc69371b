"""A models folder is read as it is: what is good is found, what is not is listed with its reason, nothing is run."""

import json
import os
import pickle
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from engine.errors import BadModel, BadSettings
from engine.registry import discovery
from engine.registry.discovery import Found, discover, printable, rescan
from engine.stand_ins import make_stand_ins
from tests.hostile_files import (
    CANARY,
    CONFIG,
    odd_files,
    symlinks,
    write_folder,
    write_gguf,
    write_hostile,
    write_split,
)

NOBODY = 65534


def reasons(found):
    return {each.path: each.reason for each in found.found}


def paths(found):
    return [each.path for each in found]


@pytest.fixture
def opened(monkeypatch):
    """The names of what was opened since it was last cleared."""
    names, real = [], discovery.open_checkpoint

    def counting(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(discovery, "open_checkpoint", counting)
    return names


def test_files_and_folders_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path):
    write_gguf(tmp_path / "z.gguf", "z")
    write_gguf(tmp_path / "b" / "c" / "y.GGUF", "y")
    write_folder(tmp_path / "a" / "folder")
    found = discover(tmp_path)
    assert reasons(found) == {"a/folder": None, "b/c/y.GGUF": None, "z.gguf": None}
    assert [each.checkpoint.format for each in found.found] == ["safetensors", "gguf", "gguf"]
    assert found.found[2].checkpoint.name == "z"
    assert found.healthy == list(found.found)


def test_a_models_folder_that_is_itself_a_model_is_found_as_a_dot(tmp_path):
    write_folder(tmp_path / "model")
    found = discover(tmp_path / "model")
    assert reasons(found) == {".": None}


def test_an_empty_folder_holds_nothing_and_one_that_is_not_there_is_a_setting_to_mend(tmp_path):
    assert discover(tmp_path).found == ()
    for wrong in (tmp_path / "nowhere", write_gguf(tmp_path / "a.gguf")):
        with pytest.raises(BadSettings, match=r"models folder is '.*', but must be a folder that exists"):
            discover(wrong)


def test_hidden_names_downloads_and_files_of_other_kinds_are_passed_over(tmp_path):
    good = write_gguf(tmp_path / "a.gguf").read_bytes()
    for name in (
        "._a.gguf",
        "b.gguf.part",
        "b.gguf.TMP",
        "b.download",
        "b.gguf.incomplete",
        "README.md",
        "a",
    ):
        (tmp_path / name).write_bytes(good)
    write_gguf(tmp_path / ".cache" / "c.gguf")
    write_gguf(tmp_path / "d.TMP" / "d.gguf")
    assert reasons(discover(tmp_path)) == {"a.gguf": None}


def test_a_config_json_beside_gguf_files_is_no_model_of_its_own(tmp_path):
    write_gguf(tmp_path / "a.gguf")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert reasons(discover(tmp_path)) == {"a.gguf": None}


def test_a_pickle_beside_good_weights_is_listed_and_harms_nobody(tmp_path):
    write_folder(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    found = reasons(discover(tmp_path))
    assert found.pop("m") is None
    assert "pickle" in found.pop("m/pytorch_model.bin")
    assert not found


def test_what_is_named_like_a_pickle_is_told_by_its_content(tmp_path):
    write_gguf(tmp_path / "a.gguf").rename(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(b"numbers")
    found = reasons(discover(tmp_path))
    assert found == {
        "a.bin": "is a GGUF file, but its name does not end in .gguf",
        "b.bin": discovery.NOT_READ,
    }


def test_the_parts_of_a_split_file_are_one_model(tmp_path):
    parts = write_split(tmp_path)
    (found,) = discover(tmp_path).found
    assert (found.path, found.reason) == ("s-00001-of-00002.gguf", None)
    assert found.checkpoint.files == tuple(parts)
    assert [stamp.name for stamp in found.stamp] == [part.name for part in parts]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_split_file_has_one_path_whichever_part_is_missing_and_is_mended_when_it_comes(tmp_path, missing):
    part = write_split(tmp_path)[missing]
    part.rename(tmp_path.parent / part.name)
    found = discover(tmp_path)
    why = f"is an incomplete split file of 2: part {missing + 1} missing"
    assert reasons(found) == {"s-00001-of-00002.gguf": why}
    (tmp_path.parent / part.name).rename(part)
    changes = rescan(found)
    assert [each.reason for each in changes.changed] == [None]
    assert changes.added == changes.removed == changes.unchanged == ()


def test_every_hostile_file_is_listed_with_its_reason_and_the_good_ones_beside_are_found(
    tmp_path,
):
    folder = tmp_path / "models"
    good = {"a.gguf", "gguf/fine.gguf", "hf/good", "zz.gguf"}
    folder.mkdir()
    expected = write_hostile(folder)
    for path in good:
        write = write_gguf if path.endswith(".gguf") else write_folder
        write(folder / path, path)
    found = discover(folder)
    assert {each.path for each in found.healthy} == good
    listed = {each.path: each.reason for each in found.unhealthy}
    assert listed.keys() == expected.keys()
    unlike = {path: why for path, why in listed.items() if expected[path].lower() not in why.lower()}
    assert not unlike
    assert all(printable(why) == why and len(why) <= discovery.MAX_REASON for why in listed.values())
    assert str(tmp_path) not in "".join(listed.values())
    assert not (folder / CANARY).exists()
    changes = rescan(found)
    assert len(changes.unchanged) == len(found.found)


def test_the_pickles_are_real_ones(tmp_path):
    (tmp_path / "models").mkdir()
    write_hostile(tmp_path / "models")
    pickle.loads((tmp_path / "models" / "pickled" / "model.pt").read_bytes())  # noqa: S301 - to see it go off
    assert (tmp_path / "models" / CANARY).exists()


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path):
    whole = write_gguf(tmp_path / "good.gguf").read_bytes()
    cuts = range(1, len(whole), 11)
    for cut in cuts:
        (tmp_path / f"{cut}.gguf").write_bytes(whole[:cut])
    found = discover(tmp_path)
    assert paths(found.healthy) == ["good.gguf"]
    assert len(found.unhealthy) == len(cuts)


def test_what_is_no_file_or_lies_elsewhere_is_refused_without_being_opened(tmp_path, opened):
    folder = tmp_path / "models"
    folder.mkdir()
    expected = odd_files(folder) | symlinks(folder)
    found = reasons(discover(folder))
    assert found.keys() == expected.keys()
    assert [path for path, why in found.items() if expected[path] not in why] == []
    assert opened == []


def test_no_file_of_a_hostile_folder_takes_much_memory(tmp_path):
    expected = write_hostile(tmp_path)
    discover(tmp_path)  # what is imported and cached at the first look is not a file's
    peaks = {}
    for path in expected:
        if (tmp_path / path).is_file():
            alone = tmp_path.parent / "alone"
            alone.mkdir()
            shutil.copy(tmp_path / path, alone)
            peaks[path] = peak_bytes(alone)
            shutil.rmtree(alone)
        elif path.startswith("hf/"):
            peaks[path] = peak_bytes(tmp_path / path)
    assert max(peaks.values()) < 16 * 2**20, max(peaks, key=peaks.get)


def peak_bytes(folder):
    tracemalloc.start()
    try:
        discover(folder)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_name_is_shown_without_what_a_terminal_would_obey(tmp_path):
    raw = os.fsdecode(b"\x1b[31m\xff\n.gguf")
    (tmp_path / raw).touch()
    (found,) = discover(tmp_path).found
    assert found.path == raw
    assert found.shown == r"\x1b[31m\udcff\n.gguf"
    assert printable("Größe 4, ok") == "Größe 4, ok"


@pytest.fixture
def powerless():
    """A folder of somebody who may not read everything, even where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        discover(write_gguf(folder / "first.gguf").parent)  # nobody may not import what is still missing
        (folder / "first.gguf").unlink()
        if os.geteuid() != 0:
            yield folder
            return
        folder.chmod(0o755)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)


def test_what_may_not_be_read_is_listed_and_found_as_soon_as_it_may(powerless):
    as_owner(lambda: write_gguf(powerless / "a.gguf", "a").chmod(0))
    as_owner(lambda: write_gguf(powerless / "closed" / "b.gguf", "b").parent.chmod(0))
    found = discover(powerless)
    assert reasons(found) == dict.fromkeys(["a.gguf", "closed"], "cannot be read: permission denied")
    as_owner(lambda: ((powerless / "a.gguf").chmod(0o644), (powerless / "closed").chmod(0o755)))
    changes = rescan(found)
    assert (paths(changes.changed), paths(changes.added), paths(changes.removed)) == (
        ["a.gguf"],
        ["closed/b.gguf"],
        ["closed"],
    )
    assert not changes.discovery.unhealthy


def as_owner(act):
    """Do something as root where the tests run as root."""
    user = os.geteuid()
    is_root = os.getuid() == 0
    if is_root:
        os.seteuid(0)
    try:
        act()
    finally:
        if is_root:
            os.seteuid(user)


def test_symlinks_inside_the_folder_are_good(tmp_path):
    blob = write_gguf(tmp_path / ".blobs" / "abc")
    (tmp_path / "a.gguf").symlink_to(blob)
    write_folder(tmp_path / "real")
    (tmp_path / "latest").symlink_to("real")
    assert reasons(discover(tmp_path)) == {"a.gguf": None, "real": None}


def test_the_models_folder_may_be_a_symlink_itself(tmp_path):
    write_gguf(tmp_path / "real" / "a.gguf")
    (tmp_path / "link").symlink_to("real")
    found = discover(tmp_path / "link")
    assert reasons(found) == {"a.gguf": None}
    assert rescan(found).unchanged == found.found
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(write_gguf(tmp_path / "next" / "b.gguf").parent)
    assert (paths(rescan(found).added), paths(rescan(found).removed)) == (["b.gguf"], ["a.gguf"])


def test_of_two_models_with_one_name_and_version_the_second_is_told_who_has_it(tmp_path):
    write_gguf(tmp_path / "b" / "same.gguf")
    write_gguf(tmp_path / "c" / "same.gguf")
    write_gguf(tmp_path / "d" / "same.gguf", version="2.0.0")
    found = discover(tmp_path)
    why = "b/same.gguf is called same@1.0.0 too, and comes first"
    assert reasons(found) == {"b/same.gguf": None, "c/same.gguf": why, "d/same.gguf": None}


def test_another_quantisation_is_a_version_of_the_same_model(tmp_path):
    make_stand_ins(tmp_path, ["phi-4"], kind="Q4_0")
    make_stand_ins(tmp_path, ["phi-4"], kind="Q8_0")
    found = discover(tmp_path)
    named = [(each.checkpoint.name, each.checkpoint.version) for each in found.found]
    assert named == [("phi-4", "1.0.0"), ("phi-4", "1.0.0+Q8-0")]
    assert not found.unhealthy
    (tmp_path / found.found[0].path).unlink()
    (left,) = rescan(found).discovery.found
    assert (left.checkpoint.version, left.is_healthy) == ("1.0.0", True)


def test_the_second_of_two_takes_the_name_when_the_first_goes_without_being_opened(tmp_path, opened):
    write_gguf(tmp_path / "a" / "same.gguf")
    write_gguf(tmp_path / "b" / "same.gguf")
    found = discover(tmp_path)
    (tmp_path / "a" / "same.gguf").unlink()
    opened.clear()
    changes = rescan(found)
    assert (paths(changes.changed), paths(changes.removed)) == (["b/same.gguf"], ["a/same.gguf"])
    assert changes.changed[0].is_healthy
    assert not opened
    assert not found.found[1].is_healthy  # what was told before still says what it said


@pytest.mark.parametrize("name", ["a/a.gguf", "z/z.gguf"])
def test_a_file_that_grows_while_the_folder_is_read_is_still_being_written(tmp_path, monkeypatch, name):
    real = discovery.open_checkpoint

    def growing(path):
        if path.name == "a.gguf":
            with (tmp_path / name).open("ab") as file:
                file.write(bytes(8))
        return real(path)

    for each in "az":
        write_gguf(tmp_path / each / f"{each}.gguf", each)
    monkeypatch.setattr(discovery, "open_checkpoint", growing)
    found = discover(tmp_path)
    assert reasons(found) == {"a/a.gguf": None, "z/z.gguf": None} | {name: discovery.WRITTEN}
    monkeypatch.setattr(discovery, "open_checkpoint", real)
    assert [(each.path, each.reason) for each in rescan(found).changed] == [(name, None)]


def test_a_file_that_goes_while_it_is_read_has_vanished(tmp_path, monkeypatch):
    real = discovery.open_checkpoint
    monkeypatch.setattr(discovery, "open_checkpoint", lambda path: (path.unlink(), real(path)))
    write_gguf(tmp_path / "a.gguf")
    found = discover(tmp_path)
    assert reasons(found) == {"a.gguf": discovery.VANISHED}
    assert paths(rescan(found).removed) == ["a.gguf"]


@pytest.mark.parametrize(
    "fault", [RecursionError("deep"), MemoryError(), ValueError("\x1b[31m"), OSError(5, "I/O")]
)
def test_a_fault_of_a_reader_costs_its_file_and_no_other(tmp_path, monkeypatch, fault):
    real = discovery.open_checkpoint

    def failing(path):
        if path.name == "a.gguf":
            raise fault
        return real(path)

    monkeypatch.setattr(discovery, "open_checkpoint", failing)
    write_gguf(tmp_path / "a.gguf", "a")
    write_gguf(tmp_path / "b.gguf", "b")
    found = discover(tmp_path)
    bad, good = found.found
    assert "read" in bad.reason
    assert "\x1b" not in bad.reason
    assert good.is_healthy


def test_a_reason_of_any_length_is_cut(tmp_path, monkeypatch):
    def failing(path):
        raise BadModel(path, "x" * 10**6)

    monkeypatch.setattr(discovery, "open_checkpoint", failing)
    write_gguf(tmp_path / "a.gguf")
    assert len(discover(tmp_path).found[0].reason) == discovery.MAX_REASON


def test_too_many_names_end_the_walk_in_a_place_that_the_names_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(discovery, "MAX_ENTRIES", 10)
    write_gguf(tmp_path / "a" / "a.gguf")
    for number in range(10):
        write_gguf(tmp_path / "b" / f"{number}.gguf")
    write_gguf(tmp_path / "c" / "c.gguf")
    found = reasons(discover(tmp_path))
    assert found.keys() == {"a/a.gguf", "b"}
    assert found["b"].startswith("the models folder has more than 10 names")


def test_folders_are_looked_into_down_to_a_depth(tmp_path):
    write_gguf(tmp_path.joinpath(*"d" * 16, "a.gguf"), "a")
    write_gguf(tmp_path.joinpath(*"e" * 17, "b.gguf"), "b")
    found = reasons(discover(tmp_path))
    assert found.pop("/".join([*"d" * 16, "a.gguf"])) is None
    assert list(found) == ["/".join("e" * 17)]


def test_the_order_is_that_of_the_names_not_of_the_file_system(tmp_path, monkeypatch):
    for name in "cadb":
        write_gguf(tmp_path / name / "same.gguf")
    listed = discover(tmp_path)
    real = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = list(real(path))[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert discover(tmp_path) == listed
    assert paths(listed.healthy) == ["a/same.gguf"]


def test_a_rescan_of_an_unchanged_folder_opens_nothing(tmp_path, opened):
    for number in range(20):
        write_gguf(tmp_path / f"{number}.gguf", f"m{number}")
    (tmp_path / "bad.gguf").write_bytes(b"bad")
    found = discover(tmp_path)
    assert len(opened) == 21
    opened.clear()
    changes = rescan(found)
    assert not opened
    assert changes.unchanged == found.found == changes.discovery.found
    assert changes.added == changes.changed == changes.removed == ()


def test_a_rescan_tells_what_came_what_changed_and_what_went(tmp_path, opened):
    for name in ("goes", "moves", "replaced", "stays"):
        write_gguf(tmp_path / f"{name}.gguf", name)
    (tmp_path / "mended.gguf").touch()
    found = discover(tmp_path)
    (tmp_path / "goes.gguf").unlink()
    (tmp_path / "moves.gguf").rename(tmp_path / "moved.gguf")
    write_gguf(tmp_path / "new", "replaced").replace(tmp_path / "replaced.gguf")
    write_gguf(tmp_path / "mended.gguf", "mended")
    write_gguf(tmp_path / "comes.gguf", "comes")
    opened.clear()
    changes = rescan(found)
    assert paths(changes.added) == ["comes.gguf", "moved.gguf"]
    assert paths(changes.changed) == ["mended.gguf", "replaced.gguf"]
    assert paths(changes.removed) == ["goes.gguf", "moves.gguf"]
    assert paths(changes.unchanged) == ["stays.gguf"]
    assert not changes.discovery.unhealthy
    assert sorted(opened) == ["comes.gguf", "mended.gguf", "moved.gguf", "replaced.gguf"]


def test_a_stamp_is_what_the_file_system_says_of_a_file(tmp_path):
    status = write_gguf(tmp_path / "a.gguf").stat()
    ((stamp,),) = [each.stamp for each in discover(tmp_path).found]
    assert (stamp.name, stamp.size_bytes, stamp.inode) == ("a.gguf", status.st_size, status.st_ino)
    assert (stamp.mtime_ns, stamp.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


def test_new_weights_under_an_old_size_and_time_are_seen(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    found = discover(tmp_path)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x3f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert paths(rescan(found).changed) == ["a.gguf"]


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "chat_template.jinja", "model.safetensors", "config.json"]
)
def test_a_folder_changes_with_each_file_that_its_model_is_made_of(tmp_path, name):
    path = write_folder(tmp_path / "m") / name
    found = discover(tmp_path)
    (tmp_path / "m" / "README.md").write_text("Nothing that counts.")
    assert paths(rescan(found).unchanged) == ["m"]
    path.write_bytes(path.read_bytes() + b" " if path.exists() else b"{}")
    assert paths(rescan(found).changed) == ["m"]


def test_a_models_folder_that_goes_is_an_error_and_not_a_fleet_without_models(tmp_path):
    write_gguf(tmp_path / "models" / "a.gguf")
    found = discover(tmp_path / "models")
    (tmp_path / "models").rename(tmp_path / "away")
    with pytest.raises(BadSettings, match="must be a folder that exists"):
        rescan(found)


def test_something_found_is_healthy_when_nothing_speaks_against_it():
    assert Found("a.gguf").is_healthy
    assert not Found("a.gguf", reason="empty").is_healthy
