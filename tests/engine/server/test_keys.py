"""Keys: whom one belongs to, how a file of them is read, written and read again, and what is wrong with bad ones."""

import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import BadSettings
from engine.server.key_file import add_key, digest_of, read_keys, revoke_key
from engine.server.keys import MAX_KEY, Holder, Keyring, KeysChanged

SECOND_NS = 10**9
CREATED = "2026-11-26T10:00:00+00:00"
DIGEST = "ab" * 32


class Clock:
    """Two numbers in the place of time."""

    epoch_ns = 1_798_761_600 * SECOND_NS  # 2027-01-01

    def __init__(self):
        self.time_ns = 0

    def now_ns(self):
        return self.time_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.jsonl"


def make(path, tenant="acme", **about):
    return add_key(path, tenant, created=CREATED, **about)


def line(**about):
    return json.dumps({"id": "k1", "sha256": DIGEST, "tenant": "acme", **about})


def test_a_key_is_known_by_its_hash_alone(path, clock):
    key, entry = make(path, name="ci", models=["a", "b"], max_priority=2)
    assert key not in path.read_text()
    assert key.removeprefix("my-") not in path.read_text()
    holder = Keyring(path, clock).find(key)
    assert holder == Holder(
        id=entry.id, tenant="acme", name="ci", models=frozenset("ab"), max_priority=2, digest=digest_of(key)
    )
    assert digest_of(key).hex().startswith(entry.id)
    assert "digest" not in repr(holder)


def test_keys_are_of_256_bits_and_never_the_same(path):
    keys = [make(path)[0] for _ in range(50)]
    assert len(set(keys)) == 50
    assert all(re.fullmatch(r"my-[A-Za-z0-9_-]{43}", key) for key in keys)
    assert len(read_keys(path)) == 50


def test_only_its_owner_may_read_the_file(path):
    make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "presented",
    ["", "my-", "x" * 43, "my-" + "A" * 43, "ключ", "\ud800", "a\0b", "x" * (MAX_KEY + 1)],
    ids=["empty", "prefix", "bare", "unknown", "cyrillic", "half a character", "nul", "too long"],
)
def test_what_is_no_key_finds_nobody(path, clock, presented):
    key, _ = make(path)
    ring = Keyring(path, clock)
    assert ring.find(presented) is None
    assert ring.find(key + " ") is None
    assert ring.find(key[:-1]) is None
    assert ring.find(key) is not None


def test_a_hash_is_no_key(path, clock):
    _, entry = make(path)
    assert Keyring(path, clock).find(entry.sha256) is None


def test_what_is_too_long_is_not_hashed(path, clock, monkeypatch):
    make(path)
    ring = Keyring(path, clock)
    monkeypatch.setattr("engine.server.keys.digest_of", lambda key: pytest.fail("it was hashed"))
    assert ring.find("x" * (MAX_KEY + 1)) is None


def test_each_of_many_keys_finds_its_own_holder(path, clock):
    made = [(make(path, f"tenant {number}")[0], f"tenant {number}") for number in range(30)]
    ring = Keyring(path, clock)
    assert len(ring) == 30
    assert [ring.find(key).tenant for key, _ in made] == [tenant for _, tenant in made]


def test_what_the_dictionary_finds_is_compared_whole(path, clock):
    key, _ = make(path)
    ring = Keyring(path, clock)
    (holder,) = ring._holders.values()
    other = "my-" + "A" * 43
    ring._holders[digest_of(other)] = holder  # as if two digests were one to the dictionary
    assert ring.find(other) is None
    assert ring.find(key) is holder


def test_a_key_is_good_until_the_moment_it_expires(path, clock):
    key, _ = make(path, expires="2027-01-01T00:00:10Z")
    ring = Keyring(path, clock)
    clock.time_ns = 10 * SECOND_NS - 1
    assert ring.find(key).tenant == "acme"
    clock.time_ns = 10 * SECOND_NS
    assert ring.find(key) is None


def test_a_revoked_key_opens_nothing_and_keeps_its_line(path, clock):
    key, entry = make(path)
    other, _ = make(path, "other")
    assert revoke_key(path, entry.id).disabled
    ring = Keyring(path, clock)
    assert ring.find(key) is None
    assert ring.find(other).tenant == "other"
    assert [each.disabled for each in read_keys(path)] == [True, False]
    with pytest.raises(BadSettings, match=f"has no key of id 'nobody'; it has {entry.id}, "):
        revoke_key(path, "nobody")


def test_a_name_stands_for_all_versions_of_a_model():
    holder = Holder(id="k", tenant="t", models=frozenset({"phi-4", "llama@2.0.0"}))
    assert holder.may_use("phi-4")
    assert holder.may_use("phi-4@1.2.3")
    assert holder.may_use("llama@2.0.0")
    assert not holder.may_use("llama")
    assert not holder.may_use("llama@1.0.0")
    assert not holder.may_use("auto")
    assert Holder(id="k", tenant="t").may_use("auto")


# the file changes


def test_a_file_that_changes_is_read_again_within_a_second(path, clock):
    told = []
    key, entry = make(path)
    ring = Keyring(path, clock, told.append)
    later, added = make(path, "later")
    revoke_key(path, entry.id)
    clock.time_ns = SECOND_NS - 1
    assert ring.find(later) is None
    assert ring.find(key) is not None
    clock.time_ns = SECOND_NS
    assert ring.find(later).tenant == "later"
    assert ring.find(key) is None
    assert told == [KeysChanged(added=(added.id,), removed=(entry.id,))]


def test_a_file_that_stays_as_it_is_is_looked_at_once_a_second_and_not_read(path, clock, monkeypatch):
    key, _ = make(path)
    ring = Keyring(path, clock)
    looks = []
    monkeypatch.setattr("engine.server.keys._read", lambda path: pytest.fail("it was read again"))
    monkeypatch.setattr("engine.server.keys._stamp", lambda path: looks.append(path) or ring._stamp)
    for step in range(30):
        clock.time_ns = step * SECOND_NS // 10
        assert ring.find(key) is not None
    assert len(looks) == 2


@pytest.mark.parametrize("harm", ["{", "", None], ids=["broken", "another", "gone"])
def test_a_file_that_breaks_changes_nothing_and_is_told_once(path, clock, harm):
    told = []
    key, _ = make(path)
    good = path.read_bytes()
    ring = Keyring(path, clock, told.append)
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(good + (harm or line(id="bad", sha256="no")).encode())
    for second in range(1, 5):
        clock.time_ns = second * SECOND_NS
        assert ring.find(key).tenant == "acme"
    assert [change.problem is not None for change in told] == [True]
    assert str(path) in told[0].problem
    later, _ = make(path, "later") if harm is None else (None, path.write_bytes(good))
    clock.time_ns = 9 * SECOND_NS
    assert (ring.find(key) is None) == (harm is None)
    assert told[-1].problem is None
    assert later is None or ring.find(later).tenant == "later"


def test_a_key_that_becomes_another_tenants_is_told(path, clock):
    told = []
    key, entry = make(path)
    ring = Keyring(path, clock, told.append)
    path.write_text(path.read_text().replace("acme", "globex!"))
    clock.time_ns = SECOND_NS
    assert ring.find(key).tenant == "globex!"
    assert told == [KeysChanged(changed=(entry.id,))]


# what is wrong with it


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "is no key: Input data was truncated"),
        ("[]", "is no key: Expected `object`, got `array`"),
        ("my-AAAA", "is no key: JSON is malformed"),
        ('{"id": "a"}', "missing required field `sha256`"),
        (line(sha256="zz" * 32), "sha256 is 'zzzz"),
        (line(sha256="AB" * 32), "must be 64 digits from 0 to 9 and a to f"),
        (line(sha256="ab" * 31), "must be 64 digits"),
        (line(id=""), "id is '', but must be 1 to 64 letters"),
        (line(id="a b"), "id is 'a b'"),
        (line(tenant=""), "tenant is '', but must be a name that can be printed"),
        (line(tenant="a\nb"), r"tenant is 'a\nb'"),
        (line(tenant="x" * 257), "tenant is 'xxx"),
        (line(models=[]), "models is [], but must be names of models, or null for all"),
        (line(models="a"), "Expected `array | null`, got `str` - at `$.models`"),
        (line(admin="yes"), "Expected `bool`, got `str` - at `$.admin`"),
        (line(admin=1), "Expected `bool`, got `int` - at `$.admin`"),
        (line(max_priority=1.5), "Expected `int | null`, got `float`"),
        (line(expires="soon"), "expires is 'soon', but must be a date like 2027-01-01"),
        (line(expires=5), "Expected `str | null`, got `int` - at `$.expires`"),
        (line(is_admin=True), "Object contains unknown field `is_admin`"),
        ('{"id": "\udcff"}', "is no key: "),
    ],
    ids=range(21),
)
def test_a_bad_line_is_refused_at_the_start_with_its_number(path, clock, bad, words):
    make(path)
    path.write_bytes(path.read_bytes() + b"\n" + bad.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadSettings, match=re.escape(f"{path}, line 3 ")) as refused:
        Keyring(path, clock)
    assert words in str(refused.value)


@pytest.mark.parametrize("what", ["id", "sha256"])
def test_two_keys_that_are_one_are_refused(path, what):
    other = {"sha256": "cd" * 32} if what == "id" else {"id": "k2"}
    path.write_text(f"{line()}\n{line(**other)}\n")
    with pytest.raises(BadSettings, match=rf"line 2: its {what} .* is that of line 1 too"):
        read_keys(path)


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda path: None, "cannot be read: no such file"),
        (lambda path: path.mkdir(), "is no file"),
        (os.mkfifo, "is no file"),
        (lambda path: (path.write_text(line()), path.chmod(0o602)), "anybody may write to"),
    ],
    ids=["missing", "folder", "pipe", "writable"],
)
def test_what_is_no_file_of_keys_is_refused(path, clock, make_it, words):
    make_it(path)
    with pytest.raises(BadSettings, match=words):
        Keyring(path, clock)


def test_a_file_that_is_too_large_is_not_read(path, clock, monkeypatch):
    monkeypatch.setattr("engine.server.key_file.MAX_FILE_BYTES", 1 << 20)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BadSettings, match="larger than 1 MiB"):
        Keyring(path, clock)


def test_a_file_without_keys_lets_nobody_in(path, clock):
    path.touch()
    assert len(Keyring(path, clock)) == 0
    assert Keyring(path, clock).find("") is None


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"tenant": ""}, "tenant is ''"),
        ({"models": [""]}, "models is \\[''\\]"),
        ({"expires": "2027-13-01"}, "expires is '2027-13-01'"),
        ({"name": "a\x1b[31m"}, "name is"),
    ],
    ids=range(4),
)
def test_a_key_that_no_file_could_hold_is_not_made(path, about, words):
    with pytest.raises(BadSettings, match=f"no such key can be made: {words}"):
        make(path, **about)
    assert not path.exists()


def test_a_broken_file_is_not_written_over(path):
    path.write_text("mine")
    with pytest.raises(BadSettings, match="line 1 is no key"):
        make(path)
    assert path.read_text() == "mine"


def test_keys_that_are_made_at_the_same_time_are_all_kept(path):
    with ThreadPoolExecutor(4) as several:
        made = list(several.map(lambda number: make(path, f"tenant {number}"), range(40)))
    assert {entry.id for _, entry in made} == {entry.id for entry in read_keys(path)}


def test_a_link_stays_a_link_and_what_it_leads_to_changes(path, clock):
    real = path.parent / "real.jsonl"
    real.touch()
    path.symlink_to(real)
    key, _ = make(path)
    assert path.is_symlink()
    assert Keyring(real, clock).find(key).tenant == "acme"


def test_what_a_crash_left_beside_the_file_is_in_nobodys_way(path):
    path.with_name(f".{path.name}.partial").write_text("half a li")
    make(path)
    assert len(read_keys(path)) == 1
    assert list(path.parent.iterdir()) == [path]
