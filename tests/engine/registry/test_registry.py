"""Every model is found under every name it answers to, and each name means the newest model that is worth asking."""

import json
import os
from dataclasses import replace

import pytest

from engine.errors import BadSettings, NotFound
from engine.registry import Health, Model, Registry, Store, discover, rescan
from engine.registry.registry import COMPARED_NAMES, MAX_RANGES
from engine.settings import Architecture, ModelSettings
from tests.hostile_files import write_gguf

SHAPE = Architecture(layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=8, vocab=16, context_tokens=32)
NOON = "2026-01-01T12:00:00Z"


def registry_of(*keys, **fields):
    """A registry of models that are called `name@version`."""
    registry = Registry()
    for key in keys:
        name, _, version = key.partition("@")
        registry.add(Model(name=name, version=version or "1.0.0", **fields))
    return registry


def found(registry, name):
    """The key of what is found; None for nothing."""
    try:
        return registry.find(name).key
    except NotFound:
        return None


def data(registry):
    return {each["id"]: each for each in json.loads(registry.as_json())["data"]}


@pytest.fixture
def llamas():
    return registry_of("llama@1.0.0", "llama@1.2.0", "llama@1.10.0", "llama@2.0.0", "llama@3.0.0-rc.1")


def test_a_model_of_the_settings_is_found_by_its_name_and_by_its_exact_version():
    registry = Registry()
    settings = ModelSettings(name="llama", version="3.2.0", architecture=SHAPE)
    registry.add(Model.from_settings(settings))
    assert registry.find("llama") is registry.find("llama@3.2.0")
    assert registry.find("llama").settings is settings
    assert registry.find("llama").parameters == SHAPE.parameters
    assert len(registry) == 1


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("llama", "llama@2.0.0"),
        ("llama@1.2.0", "llama@1.2.0"),
        ("llama@^1", "llama@1.10.0"),
        ("llama@^1.2", "llama@1.10.0"),
        ("llama@~1.2", "llama@1.2.0"),
        ("llama@1", "llama@1.10.0"),
        ("llama@1.x", "llama@1.10.0"),
        ("llama@1.2.x", "llama@1.2.0"),
        ("llama@*", "llama@2.0.0"),
        ("llama@>=1.0,<2", "llama@1.10.0"),
        ("llama@>=1.0 <1.10", "llama@1.2.0"),
        ("llama@>1.10", "llama@2.0.0"),
        ("llama@<=1.2", "llama@1.2.0"),
        ("llama@<1.2", "llama@1.0.0"),
        ("llama@=2.0.0", "llama@2.0.0"),
        ("llama@3.0.0-rc.1", "llama@3.0.0-rc.1"),
        ("llama@>=3.0.0-rc.0", "llama@3.0.0-rc.1"),
        ("llama@>=3", None),
        ("llama@^3", None),
        ("llama@^1.11", None),
    ],
)
def test_a_range_means_the_newest_version_in_it(llamas, asked, meant):
    assert found(llamas, asked) == meant
    assert found(llamas, asked) == meant  # from memory, the second time


@pytest.mark.parametrize(
    "name",
    ["llama@3.1.0", "Llama", "", "llama ", "@", "llama@", "llama@@1", "llama@1 ||2", "llama@latest", "@1"],
)
def test_what_is_nearly_a_name_is_none(llamas, name):
    assert found(llamas, name) is None


def test_a_pre_release_is_meant_by_its_bare_name_only_where_there_is_nothing_else():
    registry = registry_of("phi@1.0.0-alpha", "phi@1.0.0-beta")
    assert found(registry, "phi") == "phi@1.0.0-beta"
    assert found(registry, "phi@*") is None
    registry.add(Model(name="phi", version="0.9.0"))
    assert found(registry, "phi") == "phi@0.9.0"


def test_builds_of_one_version_are_told_apart_whatever_came_first():
    for order in (["m@1.0.0+a", "m@1.0.0+b"], ["m@1.0.0+b", "m@1.0.0+a"]):
        registry = registry_of(*order)
        assert found(registry, "m") == "m@1.0.0+b"
        assert found(registry, "m@1.0.0+a") == "m@1.0.0+a"


@pytest.mark.parametrize("state", [Health.UNHEALTHY, Health.DRAINING])
def test_an_unserviceable_version_is_passed_over_and_comes_back(llamas, state):
    assert found(llamas, "llama") == found(llamas, "llama@>=1") == "llama@2.0.0"
    llamas.set_state("llama@2.0.0", state, "it fell")
    assert found(llamas, "llama") == found(llamas, "llama@>=1") == "llama@1.10.0"
    assert found(llamas, "llama@2.0.0") == "llama@2.0.0"
    llamas.set_state("llama@2.0.0", Health.DEGRADED)
    assert found(llamas, "llama") == found(llamas, "llama@>=1") == "llama@2.0.0"
    assert llamas.find("llama").reason is None


def test_where_no_version_is_serviceable_the_newest_tells_its_reason(llamas):
    for model in llamas.all():
        llamas.set_state(model.key, Health.UNHEALTHY, f"{model.version} is torn")
    assert llamas.find("llama").reason == "2.0.0 is torn"
    assert llamas.find("llama@^1").reason == "1.10.0 is torn"
    llamas.set_state("llama@1.0.0", Health.UNLOADED)
    assert found(llamas, "llama@^1") == found(llamas, "llama") == "llama@1.0.0"


def test_what_a_range_means_changes_with_the_models_of_its_name(llamas):
    assert found(llamas, "llama@^1") == "llama@1.10.0"
    llamas.add(Model(name="llama", version="1.11.0"))
    assert found(llamas, "llama@^1") == "llama@1.11.0"
    llamas.remove("llama@1.11.0")
    assert found(llamas, "llama@^1") == "llama@1.10.0"
    llamas.check_integrity()


def test_remembered_ranges_are_bounded_and_exact_names_do_not_suffer():
    registry = registry_of("llama@1.0.0")
    registry.alias("chat", "llama@^1")
    for number in range(MAX_RANGES + 500):
        assert found(registry, f"llama@<=1.{number}") == "llama@1.0.0"
    assert len(registry._ranges) == sum(map(len, registry._ranges_of.values())) == MAX_RANGES
    assert found(registry, "chat") == "llama@1.0.0"
    registry.remove("llama@1.0.0")
    assert not registry._ranges
    assert not registry._ranges_of


def test_names_that_are_not_found_leave_nothing_behind():
    registry = registry_of("llama")
    for number in range(100):
        assert found(registry, f"llama@^{number + 2}") is found(registry, f"x{number}") is None
    assert not registry._ranges


# names that are taken


def test_a_second_model_of_the_same_version_is_refused_and_changes_nothing():
    registry = registry_of("llama")
    with pytest.raises(BadSettings, match=r"two models are called 'llama@1\.0\.0'"):
        registry.add(Model(name="llama", tags=("new",)))
    assert len(registry) == 1
    assert registry.with_tag("new") == []


@pytest.mark.parametrize("name", ["llama@2.0.0", "@", "a@", ""])
def test_a_name_that_looks_like_another_s_version_is_refused(name):
    with pytest.raises(BadSettings, match="must have at least one character and no @"):
        Model(name=name)


@pytest.mark.parametrize("version", ["1", "1.2", "v1.2.3", "latest", "", "01.0.0"])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(BadSettings, match=f"the version of model 'llama' is {version!r}"):
        Model(name="llama", version=version)


def test_a_model_with_a_taken_alias_is_refused_and_changes_nothing(llamas):
    with pytest.raises(
        BadSettings, match=r"alias 'llama' of 'phi@1\.0\.0' is taken: it means 'llama' already"
    ):
        llamas.add(Model(name="phi", aliases=("small", "llama"), tags=("new",)))
    assert found(llamas, "phi") is found(llamas, "small") is None
    assert llamas.with_tag("new") == []
    llamas.check_integrity()


# aliases


def test_an_alias_means_a_model_a_version_or_a_range(llamas):
    for alias, target in [("any", "llama"), ("one", "llama@^1"), ("old", "llama@1.0.0"), ("mine", "one")]:
        llamas.alias(alias, target)
    assert [found(llamas, name) for name in ("any", "one", "old", "mine")] == [
        "llama@2.0.0",
        "llama@1.10.0",
        "llama@1.0.0",
        "llama@1.10.0",
    ]
    llamas.set_state("llama@1.10.0", Health.UNHEALTHY, "torn")
    assert found(llamas, "one") == found(llamas, "mine") == "llama@1.2.0"


def test_a_range_of_an_alias_fits_both(llamas):
    llamas.alias("one", "llama@^1")
    assert found(llamas, "one@~1.2") == "llama@1.2.0"
    assert found(llamas, "one@<2") == "llama@1.10.0"
    assert found(llamas, "one@2.0.0") is None
    llamas.remove("llama@1.2.0")
    assert found(llamas, "one@~1.2") is None


def test_an_alias_may_come_before_its_model_and_outlive_it():
    registry = Registry()
    registry.alias("chat", "llama@^1")
    with pytest.raises(NotFound, match=r"'chat'; 'chat' is an alias of 'llama@\^1'"):
        registry.find("chat")
    registry.add(Model(name="llama"))
    assert found(registry, "chat") == "llama@1.0.0"
    registry.remove("llama@1.0.0")
    assert found(registry, "chat") is None
    registry.check_integrity()


def test_the_aliases_of_a_model_leave_with_it():
    registry = registry_of("llama", aliases=("chat",))
    assert found(registry, "chat") == "llama@1.0.0"
    registry.remove("llama@1.0.0")
    registry.add(Model(name="chat"))
    assert found(registry, "chat") == "chat@1.0.0"


def test_an_alias_that_is_taken_names_both_owners(llamas):
    llamas.alias("chat", "llama@^1")
    llamas.alias("chat", "llama@^1")  # says nothing new
    with pytest.raises(BadSettings, match=r"alias 'chat' of 'llama' is taken: it means 'llama@\^1' already"):
        llamas.alias("chat", "llama")
    with pytest.raises(BadSettings, match="alias 'llama' of 'phi' is taken: it means 'llama' already"):
        llamas.alias("llama", "phi")
    with pytest.raises(BadSettings, match=r"'chat' is a model and an alias of 'llama@\^1'"):
        llamas.add(Model(name="chat"))


@pytest.mark.parametrize(
    ("links", "circle"),
    [
        ([("a", "a")], "a -> a"),
        ([("a", "a@^1")], "a -> a"),
        ([("a", "b"), ("b", "a")], "b -> a -> b"),
        ([("a", "b@^1"), ("b", "c@1.0.0"), ("c", "a@*")], "c -> a -> b -> c"),
    ],
)
def test_aliases_in_a_circle_are_refused(links, circle):
    registry = Registry()
    for name, target in links[:-1]:
        registry.alias(name, target)
    with pytest.raises(BadSettings, match=f"aliases go in a circle: {circle}$"):
        registry.alias(*links[-1])
    assert found(registry, links[-1][0]) is None


@pytest.mark.parametrize(
    ("name", "target"), [("a@1", "llama"), ("", "llama"), ("a", ""), ("a", "llama@"), ("a", "@1")]
)
def test_an_alias_that_could_mean_nothing_is_refused(llamas, name, target):
    with pytest.raises(BadSettings, match="must"):
        llamas.alias(name, target)


def test_a_chain_of_a_thousand_aliases_is_followed(llamas):
    for number in range(1_200):
        llamas.alias(f"a{number + 1}", f"a{number}" if number else "llama")
    llamas.set_state("llama@2.0.0", Health.UNHEALTHY)
    assert found(llamas, "a1200") == "llama@1.10.0"


# what is said of a name that is none


def test_an_unknown_name_is_answered_with_names_that_are_near():
    registry = registry_of("llama", "phi", "mistral")
    with pytest.raises(NotFound, match=r"^no model is called 'lama'; known are llama and 2 more$"):
        registry.find("lama")
    with pytest.raises(NotFound, match=r"^no model is called 'gpt'; known are llama, mistral, phi$"):
        registry.find("gpt")
    with pytest.raises(NotFound, match="none is known"):
        Registry().find("gpt")


def test_an_unknown_version_is_answered_with_the_newest_there_are(llamas):
    with pytest.raises(
        NotFound, match=r"newest versions of 'llama' are 3\.0\.0-rc\.1, 2\.0\.0, 1\.10\.0, 1\.2\.0, "
    ):
        llamas.find("llama@^9")


def test_a_message_is_short_however_long_the_name_and_however_many_the_models():
    registry = registry_of(*[f"m{number:04}" for number in range(2000)], "y" * 5000)
    with pytest.raises(NotFound, match=r"m1234.* and 1996 more$"):
        registry.find("m1234x")
    for name in ("x" * 100_000, "m" * 100_000, "llama@" + "1" * 100_000, "y" * 4999):
        with pytest.raises(NotFound) as caught:
            registry.find(name)
        assert len(str(caught.value)) < 1500
    assert registry.find("m1999@1.0.0").name == "m1999"


def test_names_are_compared_with_a_few_only_however_many_there_are(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "engine.registry.registry.get_close_matches",
        lambda _, names, number: compared.append(len(names)) or [],
    )
    registry = registry_of(*[f"m{number:04}" for number in range(1000)])
    for name in ("a", "m0500x", "z"):
        assert found(registry, name) is None
    assert compared == [COMPARED_NAMES] * 3


# queries


def test_models_are_listed_by_tag_and_family_in_the_order_of_their_keys():
    registry = Registry()
    for name, family, tags in [("c", "llama", ("x",)), ("a", "llama", ("x", "y")), ("b", "phi3", ("y",))]:
        registry.add(Model(name=name, family=family, tags=tags))
    keys = lambda models: [model.name for model in models]  # noqa: E731
    assert keys(registry.all()) == ["a", "b", "c"]
    assert keys(registry.with_tag("x")) == ["a", "c"]
    assert keys(registry.of_family("llama")) == ["a", "c"]
    registry.remove("a@1.0.0")
    assert keys(registry.with_tag("x")) == keys(registry.of_family("llama")) == ["c"]
    assert registry.with_tag("z") == registry.of_family("z") == []
    registry.remove("b@1.0.0")
    assert set(registry._by_tag) == {"x"}


@pytest.mark.parametrize("change", ["remove", "set_state"])
def test_changing_a_model_that_is_not_known_is_not_found(change):
    with pytest.raises(NotFound):
        getattr(registry_of("llama"), change)(*["phi@1.0.0", Health.HEALTHY][: 1 + (change == "set_state")])


def test_a_replaced_model_keeps_its_counts_and_edits():
    registry = registry_of("llama")
    registry.edit("llama", aliases=["chat"], note="ours")
    registry.used(registry.find("llama"), 5)
    old = registry.replace(Model(name="llama", quantisation="Q4_K_M"))
    new = registry.find("chat")
    assert new is not old
    assert (new.quantisation, new.use_count, new.note) == ("Q4_K_M", 1, "ours")
    registry.add(Model(name="phi"))
    with pytest.raises(BadSettings, match="taken"):
        registry.replace(Model(name="llama", aliases=("phi",)))
    assert registry.find("chat") is new
    with pytest.raises(NotFound):
        registry.replace(Model(name="gemma"))


# edits


def test_an_operator_s_edit_changes_what_is_found():
    registry = registry_of("llama", "phi", tags=("old",))
    model = registry.edit("llama", tags=["new", "new"], aliases=["chat"], is_pinned=True, note="for the demo")
    assert (model.tags, model.is_pinned, found(registry, "chat")) == (("new",), True, "llama@1.0.0")
    assert [each.name for each in registry.with_tag("old")] == ["phi"]
    registry.edit("chat", aliases=["talk"])
    assert (found(registry, "chat"), found(registry, "talk")) == (None, "llama@1.0.0")
    assert model.note == "for the demo"
    registry.check_integrity()


def test_an_edit_that_is_refused_changes_nothing():
    registry = registry_of("llama", "phi")
    registry.edit("llama", aliases=["chat"])
    with pytest.raises(BadSettings, match=r"'phi' of 'llama@1\.0\.0' is taken"):
        registry.edit("llama", tags=["new"], aliases=["talk", "phi"])
    assert found(registry, "chat") == "llama@1.0.0"
    assert found(registry, "talk") is None
    assert registry.with_tag("new") == []


def test_what_is_remembered_outlives_the_registry(tmp_path):
    registry = Registry(Store(tmp_path / "registry.db"))
    registry.add(Model(name="llama", tags=("file",)))
    registry.add(Model(name="phi", tags=("file",)))
    registry.edit("llama", tags=["mine"], aliases=["chat"], is_pinned=True)
    for name in ("llama", "llama", "phi"):
        registry.used(registry.find(name), 7)
    registry.flush(NOON)
    later = Registry(Store(tmp_path / "registry.db"))
    later.add(Model(name="llama", tags=("changed",)))
    later.add(Model(name="phi", tags=("changed",)))
    llama, phi = later.find("chat"), later.find("phi")
    assert (llama.use_count, llama.tags, llama.is_pinned, llama.last_used_at) == (2, ("mine",), True, NOON)
    assert (phi.use_count, phi.tags, phi.is_pinned) == (
        1,
        ("changed",),
        False,
    )  # nobody edited it: the file says


def test_a_remembered_alias_that_is_taken_since_is_left_out(tmp_path):
    registry = Registry(Store(tmp_path / "registry.db"))
    registry.add(Model(name="llama"))
    registry.edit("llama", aliases=["chat", "talk"])
    later = Registry(Store(tmp_path / "registry.db"))
    later.add(Model(name="chat"))
    later.add(Model(name="llama"))
    assert (found(later, "chat"), found(later, "talk")) == ("chat@1.0.0", "llama@1.0.0")
    assert later.find("llama").aliases == ("talk",)


def test_counts_of_a_model_that_went_and_came_are_not_lost(tmp_path):
    store = Store(tmp_path / "registry.db")
    registry = Registry(store)
    registry.add(Model(name="llama"))
    registry.used(registry.find("llama"), 1)
    registry.remove("llama@1.0.0")
    registry.flush(NOON)
    assert store.load()["llama@1.0.0"].use_count == 1
    registry.add(Model(name="llama"))
    registry.used(registry.find("llama"), 2)
    registry.remove("llama@1.0.0")
    registry.add(Model(name="llama"))
    registry.flush(NOON)
    assert store.load()["llama@1.0.0"].use_count == registry.find("llama").use_count == 2
    registry.replace(Model(name="llama"))
    registry.used(registry.find("llama"), 3)
    registry.replace(Model(name="llama"))
    registry.used(registry.find("llama"), 4)
    registry.flush(NOON)
    assert store.load()["llama@1.0.0"].use_count == registry.find("llama").use_count == 4


def test_only_what_has_changed_is_flushed(tmp_path, monkeypatch):
    registry, flushed = Registry(Store(tmp_path / "registry.db")), []
    monkeypatch.setattr(registry._store, "flush", lambda counts: flushed.append(dict(counts)))
    for name in ("llama", "phi"):
        registry.add(Model(name=name))
    registry.used(registry.find("phi"), 1)
    registry.flush(NOON)
    registry.flush(NOON)
    assert flushed == [{"phi@1.0.0": (1, NOON)}, {}]
    assert registry.find("phi").last_used_ns == 1


def test_a_flush_that_fails_is_made_up_for_by_the_next(tmp_path, monkeypatch):
    registry = Registry(Store(tmp_path / "registry.db"))
    registry.add(Model(name="llama"))
    registry.used(registry.find("llama"), 1)
    with monkeypatch.context() as broken:
        broken.setattr(registry._store, "path", tmp_path / "no" / "folder")
        with pytest.raises(BadSettings, match="cannot be written"):
            registry.flush(NOON)
    registry.flush(NOON)
    assert registry._store.load()["llama@1.0.0"].use_count == 1


# JSON


def test_json_lists_every_model_with_its_state():
    registry = registry_of("llama@1.0.0", "llama@2.0.0", "phi@1.0.0", context_tokens=32, quantisation="Q8_0")
    registry.set_state("phi@1.0.0", Health.UNHEALTHY, 'it said "no"')
    registry.used(registry.find("llama"), 1)
    registry.flush(NOON)
    listed = data(registry)
    assert list(listed) == ["llama@1.0.0", "llama", "phi"]
    assert listed["llama"]["version"] == "2.0.0"
    assert (listed["llama"]["object"], listed["llama"]["max_model_len"]) == ("model", 32)
    assert (listed["llama"]["use_count"], listed["llama"]["last_used"]) == (1, NOON)
    assert (listed["phi"]["state"], listed["phi"]["reason"]) == ("unhealthy", 'it said "no"')
    assert json.loads(Registry().as_json()) == {"object": "list", "data": []}


def test_json_names_each_model_so_that_it_is_found(llamas):
    llamas.set_state("llama@2.0.0", Health.UNHEALTHY, "torn")
    for name, listed in data(llamas).items():
        assert llamas.find(name).version == listed["version"]
    assert data(llamas)["llama"]["version"] == "1.10.0"


def test_json_tells_no_path_of_this_machine(tmp_path):
    write_gguf(tmp_path / "models" / "llama.gguf", "llama")
    registry = Registry()
    registry.learn(discover(tmp_path))
    model = registry.find("llama")
    registry.set_state(model.key, Health.UNHEALTHY, f"{model.path}: is torn")
    assert str(tmp_path) not in registry.as_json()
    assert data(registry)["llama"]["reason"] == "llama.gguf: is torn"
    assert data(registry)["llama"]["file"] == "llama.gguf"


# discovery


def test_what_is_found_is_known_good_or_not(tmp_path):
    write_gguf(tmp_path / "llama.gguf", "llama")
    (tmp_path / "b.gguf").write_bytes(b"no model at all, but long enough")
    registry = Registry()
    registry.learn(discover(tmp_path))
    assert registry.find("llama").state is Health.UNLOADED
    assert registry.find("llama").settings.path == str(tmp_path / "llama.gguf")
    assert registry.find("b.gguf").state is Health.UNHEALTHY
    assert registry.find("b.gguf").reason


def test_a_rescan_brings_and_takes_models_and_keeps_what_is_known_of_them(tmp_path):
    write_gguf(tmp_path / "llama.gguf", "llama")
    write_gguf(tmp_path / "phi.gguf", "phi")
    registry, before = Registry(), discover(tmp_path)
    registry.learn(before)
    registry.edit("llama", aliases=["chat"])
    registry.used(registry.find("llama"), 3)
    llama, phi = registry.find("llama"), registry.find("phi")
    os.utime(tmp_path / "llama.gguf", (1, 1))
    (tmp_path / "phi.gguf").unlink()
    write_gguf(tmp_path / "gemma.gguf", "gemma")
    gone, new = registry.relearn(rescan(before))
    assert gone == [phi, llama]
    assert [model.name for model in new] == ["llama", "gemma"]
    assert found(registry, "phi") is None
    assert registry.find("chat") is new[0]
    assert (new[0].use_count, new[0].created_s) == (1, 1)
    registry.check_integrity()


def test_a_file_that_the_settings_name_is_one_model_with_all_that_its_header_says(tmp_path):
    write_gguf(tmp_path / "llama.gguf", "llama")
    (tmp_path / "link").symlink_to(tmp_path)
    card = Model.from_checkpoint(discover(tmp_path).healthy[0].checkpoint)
    given = replace(card.settings, path=str(tmp_path / "link" / "llama.gguf"), kv_bytes=1.0)
    registry = Registry()
    registry.add(Model.from_settings(given))
    before = discover(tmp_path)
    registry.learn(before)
    (known,) = [model for model in registry.all() if model.reason is None]
    assert (known.file, known.settings.kv_bytes) == ("llama.gguf", 1.0)
    registry.check_integrity()
    (tmp_path / "llama.gguf").unlink()
    gone, _ = registry.relearn(rescan(before))
    assert known in gone


def test_a_file_whose_name_is_taken_is_listed_and_costs_nothing_else(tmp_path):
    write_gguf(tmp_path / "chat.gguf", "chat")
    write_gguf(tmp_path / "llama.gguf", "llama")
    write_gguf(tmp_path / "phi.gguf", "phi")
    (tmp_path / "torn.gguf").write_bytes(b"torn")
    registry = registry_of("llama", "llama.gguf", "torn.gguf")
    registry.alias("chat", "llama")
    registry.learn(discover(tmp_path))
    reasons = {model.name: model.reason for model in registry.all() if model.reason}
    assert set(reasons) == {"chat.gguf", "llama.gguf (2)", "torn.gguf (2)"}
    assert reasons["chat.gguf"] == "its name chat@1.0.0 is taken by an alias of 'llama'"
    assert reasons["llama.gguf (2)"].endswith("taken by the model 'llama@1.0.0' of the settings")
    assert registry.find("phi").reason is None
    registry.check_integrity()


def test_a_broken_folder_cannot_take_a_version_s_place(tmp_path):
    (tmp_path / "llama@1.0.0").mkdir()
    (tmp_path / "llama@1.0.0" / "config.json").write_text("{}")
    registry = registry_of("llama")
    registry.learn(discover(tmp_path))
    assert registry.find("llama@1.0.0").reason is None
    assert registry.find("llama_1.0.0").reason


def test_a_model_that_an_operator_removed_does_not_hinder_the_rescan(tmp_path):
    write_gguf(tmp_path / "llama.gguf", "llama")
    registry, before = Registry(), discover(tmp_path)
    registry.learn(before)
    registry.remove("llama@1.0.0")
    (tmp_path / "llama.gguf").unlink()
    registry.add(Model(name="llama"))  # another one, that no file is behind
    assert registry.relearn(rescan(before)) == ([], [])
    assert found(registry, "llama") == "llama@1.0.0"


def test_a_file_that_vanishes_after_it_was_found_is_still_listed(tmp_path):
    write_gguf(tmp_path / "llama.gguf", "llama")
    before = discover(tmp_path)
    (tmp_path / "llama.gguf").unlink()
    registry = Registry()
    registry.learn(before)
    assert registry.find("llama").created_s == 0
