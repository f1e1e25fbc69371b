"""The settings file: what it says, what the earlier system's says, what is wrong with it, and where."""

import asyncio
import re
from pathlib import Path

import pytest

from engine.command.fetch import OFFERS
from engine.command.serve import run
from engine.engine import Engine
from engine.errors import BadSettings, UnknownName
from engine.formats.opening import slug
from engine.server.default_models import SMOLLM2
from engine.server.settings import ServerSettings
from engine.server.settings_file import deployment
from engine.server.yaml_file import MAX_BYTES, parse_yaml
from engine.settings import (
    THIS_MACHINE,
    AllowanceSettings,
    CacheSettings,
    HealthSettings,
    QuotaSettings,
    RoutingSettings,
)
from engine.stand_ins import REFERENCE, make_stand_ins
from sim.world import SimClock

EARLIER = (
    "routing_strategy: cache_aware, allocation_strategy: dynamic, global_eviction_policy: lru, "
    "enable_health_checks: true, enable_quota_checks: true, affinity_timeout_sec: 300, "
    "per_model_quotas: {hourly_token_limit: 1000000, max_concurrent_requests: 50}"
)
"""As it stands, word for word."""

AS_LINES = EARLIER.replace(", ", "\n", 6)
AS_JSON = re.sub(r"([a-z_]+)(?=:)|(?<=: )(cache_aware|dynamic|lru)", r'"\g<0>"', f"{{{EARLIER}}}")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with stand-ins of the five reference models."""
    folder = tmp_path_factory.mktemp("models")
    make_stand_ins(folder)
    return folder


@pytest.fixture
def read(tmp_path, models):
    """The deployment of a file with that text."""

    def read_it(text, *overrides):
        path = tmp_path / "modelyard.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return deployment(path, overrides, models_folder=models)

    return read_it


# what it says


def test_every_section_reaches_its_settings(read):
    found = read(
        """
server:
  port: 9000
  limits: {max_headers: 7, body_timeout_s: 1}
  jobs: {warm_up: [phi-4]}
fleet: {max_batch: 4, replicas: {a: phi-4, b: phi-4}}
executor: {name: law, law: uniform, mean_s: 1e-3}
hardware: {name: mine, flops: 1e12, memory_bytes: 1e9, memory_bytes_per_s: 1e9, link_bytes_per_s: 1e9, source: me}
routing:
  strategy: least_loaded
  groups: {small: [phi-4]}
  experiments:
  - name: which
    on: small
    arms: [{name: a, target: phi-4, weight: 0.5}, {name: b, target: gemma-2-9b-it, weight: 0.5}]
health: {enabled: off}
quotas: {limits: [{model: phi-4, hourly_tokens: 100}], tenant_weights: {acme: 2}}
cache: {ram: {gib: 0.5}, eviction: sieve, allocation: fair}
models: {patience_s: 3}
seed: 7
"""
    )
    server, engine = found.server, found.engine
    assert (server.port, server.limits.max_headers, server.limits.body_timeout_s) == (9000, 7, 1.0)
    assert server.jobs.warm_up == ["phi-4"]
    assert (engine.fleet.max_batch, engine.fleet.replicas) == (4, {"a": "phi-4", "b": "phi-4"})
    assert (engine.executor.name, engine.executor.options) == ("law", {"law": "uniform", "mean_s": 0.001})
    assert (engine.hardware.name, engine.hardware.flops) == ("mine", 1e12)
    assert (engine.routing.strategy, engine.routing.groups) == ("least_loaded", {"small": ["phi-4"]})
    assert [arm.target for arm in engine.routing.experiments[0].arms] == ["phi-4", "gemma-2-9b-it"]
    assert (engine.health.enabled, engine.models.patience_s, engine.seed) == (False, 3.0, 7)
    assert engine.quotas.limits == [AllowanceSettings(model="phi-4", hourly_tokens=100)]
    assert engine.quotas.tenant_weights == {"acme": 2.0}
    assert (engine.cache.ram.gib, engine.cache.eviction, engine.cache.allocation) == (0.5, "sieve", "fair")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "server:\n", "---\nserver: {}\n"], ids=range(5))
def test_an_empty_file_is_the_defaults(read, text):
    found = read(text)
    assert found.server == ServerSettings()
    assert found.engine.executor.name == "torch"
    assert found.engine.executor.options == {}
    assert found.engine.hardware is THIS_MACHINE
    assert found.engine.routing == RoutingSettings(time_every=16)  # a server times some of its decisions
    for part, cls in (("health", HealthSettings), ("quotas", QuotaSettings)):
        assert getattr(found.engine, part) == cls()
    assert found.engine.cache == CacheSettings()


def test_paths_are_relative_to_the_file(read, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    found = read(
        "server: {keys_file: keys, audit: {file: logs/audit.jsonl}, jobs: {folder: /var/jobs}, log: {file: ~/x}}\n"
        "quotas: {state_file: quotas.db}\n"
        "cache: {ssd: {gib: 1, path: blocks}}\n"
    )
    assert found.server.keys_file == str(tmp_path / "keys")
    assert found.server.audit.file == str(tmp_path / "logs/audit.jsonl")
    assert found.server.jobs.folder == "/var/jobs"
    assert found.server.log.file == str(Path.home() / "x")
    assert found.engine.quotas.state_file == str(tmp_path / "quotas.db")
    assert found.engine.cache.ssd.path == str(tmp_path / "blocks")


def test_lines_of_a_command_go_over_the_file(read, monkeypatch):
    monkeypatch.chdir("/usr")
    found = read(
        "server: {port: 9000, drain_s: 1}\nrouting: {strategy: random, weights: {a: 1}}",
        "server.port=9001",
        "server.keys_file=keys",
        "routing.strategy=cache_aware",
        "routing.weights={b: 2}",
        "quotas.limits=[{model: '*', hourly_requests: 5}]",
        "cache.enabled=false",
        "server.admin_port=",
        "seed=3",
    )
    assert (found.server.port, found.server.drain_s, found.server.admin_port) == (9001, 1.0, None)
    assert found.server.keys_file == "/usr/keys"
    assert (found.engine.routing.strategy, found.engine.routing.weights) == ("cache_aware", {"b": 2.0})
    assert found.engine.quotas.limits[0].hourly_requests == 5
    assert (found.engine.cache.enabled, found.engine.seed) == (False, 3)


def test_lines_alone_are_settings_too(models):
    assert deployment(None, ["server.port=1234"], models_folder=models).server.port == 1234


def test_hardware_may_be_a_file_of_its_own(read, tmp_path):
    figures = (
        "{name: x, flops: 1e12, memory_bytes: 1e9, memory_bytes_per_s: 1e9, link_bytes_per_s: 1e9, source: y}"
    )
    (tmp_path / "mine.yaml").write_text(figures)
    assert read("executor: roofline\nhardware: mine.yaml").engine.hardware.name == "x"
    shipped = Path(__file__).parents[3] / "conf" / "hardware" / "h100.yaml"
    assert read(f"hardware: {shipped}").engine.hardware.name == "NVIDIA H100 SXM"


# which models


def test_without_models_stand_ins_are_made_once(tmp_path):
    folder = tmp_path / "new" / "models"
    first = deployment(models_folder=folder)
    assert len(list(folder.glob("*.gguf"))) == 5
    assert list(first.engine.fleet.replicas.values()) == [name.lower() for name in REFERENCE]
    assert any("made 5 stand-ins" in note for note in first.notes)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    gone = folder / "phi-4-Q8_0.gguf"
    gone.unlink()
    again = deployment(models_folder=folder)
    assert any("made 1 stand-ins" in note for note in again.notes)
    assert again.engine.fleet == first.engine.fleet
    assert not any("made 1 " in note for note in deployment(models_folder=folder).notes)
    same = {path for path in folder.iterdir() if path.stat().st_mtime_ns == stamps[path]}
    assert set(folder.iterdir()) - same == {gone}


def test_a_real_model_in_the_folder_is_served_instead(tmp_path, models):
    """A file of one's own: a stand-in without the tag of one."""
    data = (models / "phi-4-Q8_0.gguf").read_bytes()
    (tmp_path / "mine.gguf").write_bytes(data.replace(b"stand-in", b"stood-in"))
    found = deployment(models_folder=tmp_path)
    assert found.engine.fleet.replicas == {}
    assert found.engine.models.folder == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.gguf"]


def test_the_small_real_model_is_in_memory_from_the_start(tmp_path, models):
    file = OFFERS["smollm2"].file
    assert slug(file.removesuffix(".Q4_1.gguf")) == SMOLLM2
    data = (models / "phi-4-Q8_0.gguf").read_bytes()
    (tmp_path / file).write_bytes(data.replace(b"stand-in", b"stood-in"))
    (tmp_path / "other.gguf").write_bytes(data.replace(b"stand-in", b"stood-in"))
    found = deployment(models_folder=tmp_path)
    assert found.engine.fleet.replicas == {SMOLLM2: SMOLLM2}
    assert any(SMOLLM2 in note for note in found.notes)


def test_models_of_a_file_are_read_from_their_headers(read, models):
    found = read(
        f"""
fleet:
  models:
  - {models}/phi-4-Q8_0.gguf
  - {{name: gemma, path: {models}/gemma-2-9b-it-Q8_0.gguf, version: 2.0.0}}
"""
    )
    phi, gemma = found.engine.fleet.models
    assert (phi.name, phi.architecture.family) == ("phi-4", "phi3")
    assert (gemma.key, gemma.architecture.family) == ("gemma@2.0.0", "gemma2")
    assert found.engine.fleet.replicas == {"phi-4": "phi-4", "gemma": "gemma"}
    assert found.engine.models.folder is None
    assert not any("stand-in" in note for note in found.notes)


def test_a_model_may_be_nothing_but_its_shape(read):
    shape = (
        "{layers: 2, hidden: 32, heads: 4, kv_heads: 2, head_dim: 8, ffn: 64, vocab: 64, context_tokens: 512}"
    )
    found = read(f"fleet:\n  models: [{{name: tiny, architecture: {shape}}}]\nexecutor: law")
    assert found.engine.fleet.models[0].architecture.layers == 2


def test_a_folder_that_a_file_names_gets_no_stand_ins(read, tmp_path, models):
    (tmp_path / "empty").mkdir()
    found = read("models: {folder: empty}")
    assert (found.engine.models.folder, found.engine.fleet.models) == (str(tmp_path / "empty"), [])
    assert list((tmp_path / "empty").iterdir()) == []
    found = read(f"models: {{folder: {models}}}\nfleet: {{replicas: {{one: phi-4}}}}")
    assert [model.name for model in found.engine.fleet.models] == ["phi-4"]


def test_what_is_read_can_be_served(models):
    """A model of the fleet that lies in the folder is known once, with all that its header says."""
    clock = SimClock()
    found = deployment(None, ["executor=law", "quotas.enabled=false"], models_folder=models)
    engine = Engine(found.engine, clock)
    engine.start()
    engine.registry.check_integrity()
    assert [(model.name, model.file is not None) for model in engine.registry.all()] == sorted(
        (name.lower(), True) for name in REFERENCE
    )
    assert all(model.is_serviceable and "stand-in" in model.tags for model in engine.registry.all())
    assert [card.name for card in engine.targets.members("auto")] == [name.lower() for name in REFERENCE]
    clock.close()
    engine.close()


def test_the_file_of_the_guide_is_one(tmp_path, models):
    guide = (Path(__file__).parents[3] / "docs" / "server.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / OFFERS["smollm2"].file).write_bytes((models / "phi-4-Q8_0.gguf").read_bytes())
    path = tmp_path / "modelyard.yaml"
    path.write_text(text)
    found = deployment(path)
    assert found.engine.fleet.replicas == {"a": SMOLLM2}
    assert found.server.keys_file == str(tmp_path / "keys.jsonl")


# the earlier system's file


@pytest.mark.parametrize(
    "text", [EARLIER, f"{{{EARLIER}}}", AS_LINES, AS_JSON], ids=["prose", "braces", "lines", "json"]
)
def test_the_earlier_systems_file_is_taken_as_it_stands(read, text):
    engine = read(text).engine
    assert (engine.routing.strategy, engine.routing.session_timeout_s) == ("cache_aware", 300.0)
    assert (engine.cache.allocation, engine.cache.eviction) == ("dynamic", "lru")
    assert (engine.health.enabled, engine.quotas.enabled) == (True, True)
    assert engine.quotas.limits == [
        AllowanceSettings(model="*", hourly_tokens=1_000_000, concurrent_requests=50)
    ]


def test_what_it_switches_off_is_off(read):
    engine = read(AS_LINES.replace("true", "false").replace("300", "12.5").replace("lru", "lfu")).engine
    assert (engine.health.enabled, engine.quotas.enabled) == (False, False)
    assert (engine.routing.session_timeout_s, engine.cache.eviction) == (12.5, "lfu")


def test_its_own_words_for_ours_are_known(read):
    engine = read(
        "routing_config: {strategy: affinity_based, affinity_timeout_sec: 60}\n"
        "allocation_strategy: fair_share\nglobal_eviction_policy: smallest_model_first\n"
    ).engine
    assert (engine.routing.strategy, engine.routing.session_timeout_s) == ("affinity", 60.0)
    assert (engine.cache.allocation, engine.cache.eviction) == ("fair", "smallest")


def test_it_goes_together_with_settings_of_ours(read):
    found = read(
        f"{AS_LINES}\nserver: {{port: 9000}}\nrouting: {{max_attempts: 5}}", "routing_strategy=random"
    )
    assert (found.server.port, found.engine.routing.max_attempts) == (9000, 5)
    assert (found.engine.routing.strategy, found.engine.routing.session_timeout_s) == ("random", 300.0)


@pytest.mark.parametrize(
    "line", ["per_model_quotas={hourly_token_limit: 7}", "per_model_quotas.hourly_token_limit=7"]
)
def test_it_may_stand_on_a_command_line_too(read, line):
    found = read(
        "quotas: {limits: [{tenant: a, daily_tokens: 5}]}", line, "routing_config={strategy: random}"
    )
    assert found.engine.quotas.limits == [AllowanceSettings(model="*", hourly_tokens=7)]
    assert found.engine.routing.strategy == "random"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("per_model_quotas={hourly_tokens: 7}", "did you mean 'per_model_quotas.hourly_token_limit'?"),
        ("per_model_quotas=7", "per_model_quotas is 7, but must be a group of limits"),
        ("routing_config.strateg=random", "did you mean 'routing_config.strategy'?"),
        ("per_model_quotas.hourly_token_limit=x", "quotas.limits[0].hourly_tokens is 'x'"),
    ],
    ids=range(4),
)
def test_what_is_wrong_with_it_there_is_told(read, line, words):
    with pytest.raises(BadSettings, match=re.escape(words)) as refused:
        read("", line)
    assert str(refused.value).startswith(f"{line}: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("routing_strategy: random\nrouting: {strategy: random}", "routing_strategy and routing.strategy say"),
        ("routing_strategy: random\nrouting_config: {strategy: random}", "routing_config.strategy and routing"),
        ("affinity_timeout_sec: 1\nrouting: {session_timeout_s: 1}", "affinity_timeout_sec and routing.session"),
        ("enable_health_checks: true\nhealth: {enabled: true}", "enable_health_checks and health.enabled"),
        ("per_model_quotas: {max_concurrent_requests: 1}\nquotas: {limits: []}", "and quotas.limits say"),
        ("per_model_quotas: {hourly_tokens: 1}", "did you mean 'per_model_quotas.hourly_token_limit'?"),
        ("per_model_quotas: 5", "per_model_quotas is 5, but must be a group"),
        ("per_model_quotas: {hourly_token_limit: -1}", "quotas.limits.hourly_tokens is -1"),
        ("per_model_quotas: {hourly_token_limit: many}", "quotas.limits[0].hourly_tokens is 'many'"),
        ("routing_config: {max_load_threshold: 1}", "routing_config.max_load_threshold is no setting"),
        ("routing_strategy: fastest", "routing.strategy: no strategy is called 'fastest'"),
        ("affinity_timeout_sec: soon", "routing.session_timeout_s is 'soon', but must be of type float"),
        ("enable_health_check: true", "did you mean 'enable_health_checks'?"),
    ],
    ids=range(13),
)  # fmt: skip
def test_one_thing_is_said_once_and_rightly(read, tmp_path, text, words):
    with pytest.raises(BadSettings, match=re.escape(words)) as refused:
        read(text)
    assert re.match(rf"{re.escape(str(tmp_path))}/modelyard\.yaml(, line \d)?: ", str(refused.value))


# what is wrong


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("server:\n  prot: 1", 2, "server.prot is no setting; did you mean 'server.port'?"),
        ("sever:\n  port: 1", 1, "sever is no setting; did you mean 'server'?"),
        ("a: 1\nb: 2", 1, "a is no setting; there are server, models, fleet"),
        ("server:\n\n  limits:\n    max_headrs: 1", 4, "did you mean 'server.limits.max_headers'?"),
        ("server:\n  port: eighty", 2, "server.port is 'eighty', but must be of type int"),
        ("server: {port: 80.5}", 1, "server.port is 80.5, but must be of type int"),
        ("server: {port: true}", 1, "server.port is True, but must be of type int"),
        ("server: {port: 70000}", 1, "server.port is 70000, but must be from 0 (any free) to 65535"),
        ("server:\n  admin_port: x", 2, "must be of type int or null"),
        ("server:\n  drain_s: .nan", 2, "server.drain_s is nan, but must be at least 0"),
        ("server:\n  drain_s: -.inf", 2, "server.drain_s is -inf"),
        ("server: [1]", 1, "server is [1], but must be a group of settings"),
        ("server:\n  limits: 5", 2, "server.limits is 5, but must be a group of settings: max_body_bytes"),
        ("server:\n  jobs:\n    warm_up: [a, 1]", 3, "server.jobs.warm_up[1] is 1, but must be of type str"),
        ("server: {host: 0.0.0.0}", 1, "must be a loopback address: no server.keys_file is given"),
        ("quotas:\n  limits:\n  - {model: a}\n  - {model: b, daily_token: 1}", 4, "'quotas.limits[1].daily_tokens'"),
        ("quotas:\n  modes:\n    warning: {at: 2}", 3, "quotas.modes.warning.at is 2.0, but must be above"),
        ("cache:\n  block_tokens: 0", 2, "cache.block_tokens is 0, but must be at least 1"),
        ("cache:\n  ram: {gib: 1, form: int4}", 2, "cache.ram.form is 'int4'"),
        ("cache:\n  eviction: mru", 2, "cache.eviction: no eviction policy is called 'mru'; choose from arc"),
        ("cache:\n  allocation: mine", 2, "cache.allocation: no "),
        ("cache:\n  eviction: lru\n  options: {a: 1}", 2, "does not take these options"),
        ("cache:\n  eviction: s3fifo\n  options: {reads: 9}", 2, "eviction.reads is 9, but must be from 0 to 3"),
        ("cache:\n  allocation: dynamic\n  allocation_options: {floor: x}", 2, "floor 'x', but it must be a"),
        ("routing:\n  strategy: best", 2, "routing.strategy: no strategy is called 'best'"),
        ("routing:\n  fallbacks: {a: [b], b: [a]}", 2, "is 'a -> b -> a', but must be free of circles"),
        ("executor: tourch", 1, "executor is 'tourch', but must be one of law, profile, roofline, torch"),
        ("executor: {name: law, men_s: 1}", 1, "executor.men_s is no setting; did you mean 'executor.mean_s'?"),
        ("executor:\n  name: law\n  mean_s: -1", 3, "executor.mean_s is -1"),
        ("executor: 5", 1, "executor is 5, but must be a name, or a group"),
        ("executor: roofline", None, "hardware is None, but must be given with executor roofline"),
        ("hardware: {name: x}", 1, "hardware: Object missing required field `flops`"),
        ("hardware: h100", None, "hardware, a group or a YAML file like those of conf/hardware: the settings file"),
        ("fleet:\n  replicas: {a: phi-5}", 2, "fleet.replicas.a is 'phi-5', but must be one of"),
        ("fleet:\n  replicas: 3", 2, "fleet.replicas is 3, but must be a map from names"),
        ("fleet: {models: {a: b}}", 1, "b'}, but must be a list"),
        ("fleet:\n  models:\n  - nowhere.gguf", 3, "fleet.models[0] is"),
        ("fleet:\n  models: [{name: x}]", 2, "is {'name': 'x'}, but must have a path, or"),
        ('fleet:\n  replicas: {"a\\n": phi-4}', 2, "fleet.replicas is 'a\\n', but must be names that can be"),
        ("server:\n  traces: {endpoint: 'http://'}", 2, "server.traces.endpoint is 'http://', but must be http://HOST"),
        ("seed: -1", 1, "seed is -1, but must be a whole number from 0"),
        ("seed: true", 1, "seed is True"),
        ("models: {folder: 5}", 1, "models.folder is 5, but must be of type str or null"),
    ],
    ids=range(43),
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(read, tmp_path, text, line, words):
    with pytest.raises(BadSettings) as refused:
        read(text)
    at = "" if line is None else f", line {line}"
    assert str(refused.value).startswith(f"{tmp_path}/modelyard.yaml{at}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("server.port", "'server.port' is no setting: write NAME=VALUE"),
        ("=5", "'=5' is no setting"),
        ("server.prot=1", "server.prot=1: server.prot is no setting; did you mean 'server.port'?"),
        ("server.port=x", "server.port=x: server.port is 'x'"),
        ("server.port.x=1", "server.port.x=1: server.port is 9000, and so has no setting 'x'"),
        ("nothing=1", "nothing=1: nothing is no setting"),
        ("server.port={", "server.port={, line 1: "),
        ("cache.ram.gib=-1", "cache.ram.gib=-1: cache.ram.gib is -1"),
    ],
    ids=range(8),
)
def test_what_is_wrong_with_a_line_of_a_command_is_told(read, line, words):
    with pytest.raises(BadSettings) as refused:
        read("server: {port: 9000}", line)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("routing:\n  groups:\n    small: [phi-5]", 3, "routing.groups.small names 'phi-5', but no model"),
        ("cache:\n  ssd: {gib: 1}", 2, "cache.ssd.path is None, but must say where"),
        ("server:\n  keys_file: nowhere", None, "the keys file"),
    ],
    ids=range(3),
)
def test_what_shows_when_it_is_made_is_told_with_its_line_too(read, tmp_path, text, line, words):
    found = read(text, "server.port=0", "server.admin_port=0", "server.log.level=off")
    with pytest.raises(BadSettings) as refused:
        asyncio.run(run(found))
    at = "" if line is None else f", line {line}"
    assert str(refused.value).startswith(f"{tmp_path}/modelyard.yaml{at}: {words}")


@pytest.mark.parametrize("word", ["off", '"off"', "Off"])
def test_a_log_that_is_off_is_off(read, word):
    assert read(f"server: {{log: {{level: {word}}}}}").server.log.level == "off"
    assert read("", f"server.log.level={word}").server.log.level == "off"


def test_a_name_that_is_unknown_is_an_unknown_name(read):
    with pytest.raises(UnknownName):
        read("server: {prot: 1}")
    with pytest.raises(UnknownName):
        read("routing: {strategy: best}")


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "line 2: *a is an alias, but every value must be written where it belongs"),
        ("server: &s {port: 1}\nhealth: {<<: *s}", "line 2: "),
        ("a: &a [*a]", "*a is an alias"),
        ("server:\n  port: 1\n  port: 2", "line 3: server.port is given twice"),
        ('server: {port: 1, "port": 2}', "server.port is given twice"),
        ("x: " + "[" * 5_000, "line 1: is nested deeper than 24 groups"),
        ("x: " + "{a: " * 1000, "nested deeper"),
        ("- " * 10_000, "nested deeper"),
        ("x: !!python/object/apply:os.system [ls]", "python/object/apply:os.system is no kind of value"),
        ("x: !mine 5", "!mine is no kind of value that a setting has"),
        ("x: !!binary aGk=", "is no kind of value"),
        ("? [a]\n: 1", "line 1: a name must be text"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: 1\n b: 2", "line 2: "),
        ("[1, 2]", "must be settings by name"),
        ("just words", "must be settings by name"),
        ("x: \x01", "unacceptable character"),
        (b"server: {port: 1}\n# \xff", "line 2: is not UTF-8"),
        ("x: " + "9" * 5000, "Exceeds the limit"),
        ("x: '", "line 1: "),
        (b" " * 10_000_000, f"larger than {MAX_BYTES >> 10} KiB"),
    ],
    ids=range(21),
)  # fmt: skip
def test_what_is_no_file_of_settings_is_refused_at_once(read, text, words):
    with pytest.raises(BadSettings, match=re.escape(words)):
        read(text)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_told(tmp_path, what):
    path = tmp_path / "settings.yaml"
    if what == "folder":
        path.mkdir()
    with pytest.raises(BadSettings, match=rf"the settings file {re.escape(str(path))} cannot be read: "):
        deployment(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1e6), ("2.5E-3", 0.0025), ("1_000", 1000), ("0x10", 16), ("2027-01-01", "2027-01-01"), ("off", False),
        ("~", None), ("'1'", "1"), ("1.0.0", "1.0.0"), ("phi-4", "phi-4"), ("*", None), ("a: b", None),
    ],
    ids=range(12),
)  # fmt: skip
def test_values_are_what_people_mean(text, value):
    if text in ("*", "a: b"):
        with pytest.raises(BadSettings):
            parse_yaml(f"x: {text}", "it")
    else:
        assert parse_yaml(f"x: {text}", "it").values["x"] == value
        assert type(parse_yaml(f"x: {text}", "it").values["x"]) is type(value)


def test_names_are_text_as_they_are_written():
    tree = parse_yaml("on: 1\n1: {no: 2}\n'a.b': 3", "it")
    assert tree.values == {"on": 1, "1": {"no": 2}, "a.b": 3}
    assert tree.place("1.no") == "it, line 2"
    assert tree.place("1.no.further[0].down") == "it, line 2"
    assert tree.place("elsewhere") is None
