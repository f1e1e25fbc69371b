"""What operators may look at and change while requests come, each change written down with what was before."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from engine.server.settings import AuditSettings, LimitsSettings
from engine.settings import (
    AllowanceSettings,
    ArmSettings,
    ExperimentSettings,
    LoadingSettings,
    QuotaSettings,
    RoutingSettings,
)
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import (
    HELLO,
    bearer,
    figures,
    get,
    head,
    new_key,
    one,
    post,
    quiet,
    settled,
    until,
)

OPERATOR = "operator@loopback"


def experiments():
    arms = [
        ArmSettings(name="old", target="llama", weight=0.5),
        ArmSettings(name="new", target="mistral", weight=0.5),
    ]
    return [ExperimentSettings(name="which", on="chat", arms=arms)]


@pytest.fixture(scope="module")
def audit_file(tmp_path_factory):
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="module")
def run(serving, audit_file):
    """Two models, one of them twice, an experiment, a budget, and operators who need no key."""
    routing = RoutingSettings(slow_start_s=0.0, groups={"chat": ["llama"]}, experiments=experiments())
    quotas = QuotaSettings(limits=[AllowanceSettings(model="*", hourly_tokens=10**7)])
    engine = modelled(
        {"a": "llama", "b": "llama", "m": "mistral"},
        models=("llama", "mistral"),
        routing=routing,
        quotas=quotas,
    )
    settings = quiet(audit=AuditSettings(file=str(audit_file)), limits=LimitsSettings(body_timeout_s=1))
    with serving(engine, settings) as found:
        found.audit_file = audit_file
        yield found


def do(running, method, path, body=None, *headers):
    """What an operator is answered."""
    port = running.server.admin_port
    if method == "GET":
        return get(port, path, *headers)
    wire = post({} if body is None else body, path=path, headers=headers)
    if body is None:
        wire = head(f"{method} {path} HTTP/1.1", "content-length: 0", *headers)
    return one(port, method.encode() + wire[wire.index(b" ") :])


def lines(running):
    return [json.loads(line) for line in running.audit_file.read_text().splitlines()]


def changed(running, method, path, body=None):
    """What a change is answered, and the one line that it left."""
    before = len(lines(running))
    answer = do(running, method, path, body)
    assert answer.status == 200, answer.body
    (line,) = [each for each in lines(running)[before:] if each["who"] == OPERATOR]
    assert line["outcome"] == "done"
    assert line["remote"] == "127.0.0.1"
    assert line["request_id"].startswith("req-")
    assert answer.json == {name: line[name] for name in ("action", "subject", "before", "after")}
    return line["action"], line["subject"], line["before"], line["after"]


def served_by(running, **fields):
    answer = one(running.server.port, post({**HELLO, **fields}))
    return answer.headers.get("x-modelyard-replica", answer.status)


def test_the_status_tells_all_of_it_on_one_page(run):
    told = do(run, "GET", "/admin/status").json
    assert {each["name"]: each["model"] for each in told["replicas"]} == {
        "a": "llama@1.0.0",
        "b": "llama@1.0.0",
        "m": "mistral@1.0.0",
    }
    assert {each["id"]: each["state"] for each in told["models"]} == {
        "llama@1.0.0": "healthy",
        "mistral@1.0.0": "healthy",
    }
    assert (told["requests_in_service"], told["requests_waiting"]) == (0, 0)
    assert told["strategy"] == run.server.engine.router.strategy_name
    assert told["uptime_s"] > 0


@pytest.mark.parametrize("path", ["models", "routing", "experiments", "quotas", "cache"])
def test_looking_changes_nothing_and_is_not_written_down(run, path):
    before, count = figures(run), len(lines(run))
    assert do(run, "GET", f"/admin/{path}").json
    assert settled(run, before) == before
    assert len(lines(run)) == count


def explained(running, *headers, **fields):
    answer = do(running, "POST", "/admin/explain", fields, *headers)
    assert answer.status == 200, answer.body
    return answer.json["chosen"]


def test_what_is_explained_is_what_happens_in_an_experiment_too(run):
    chosen = set()
    for number in range(12):
        session = f"talk {number}"
        told = explained(run, model="chat", session=session)
        asked = one(run.server.port, post({**HELLO, "model": "chat"}, headers=[f"x-session-id: {session}"]))
        assert told == asked.headers["x-modelyard-replica"]
        chosen.add(asked.headers["x-modelyard-model"])
    assert chosen == {"llama@1.0.0", "mistral@1.0.0"}


def test_a_session_is_explained_as_its_tenants_own_where_there_are_keys(serving, tmp_path):
    file = tmp_path / "keys.jsonl"
    operator, client = new_key(file, "ops", admin=True), new_key(file, "acme")
    with serving(modelled(dict.fromkeys("abc", "llama")), quiet(keys_file=str(file))) as found:
        asked = one(found.server.port, post(headers=[bearer(client), "x-session-id: talk"]))
        served = asked.headers["x-modelyard-replica"]
        fields = {"model": "llama", "session": "talk"}
        assert explained(found, bearer(operator), tenant="acme", **fields) == served
        assert explained(found, bearer(operator), tenant="other", **fields) != served  # whose turn it is


def test_a_drained_replica_gets_no_request_until_it_is_resumed(run):
    assert changed(run, "POST", "/admin/replicas/a/drain") == (
        "replica.drain",
        "a",
        {"drained": False},
        {"drained": True},
    )
    assert {served_by(run) for _ in range(6)} == {"b"}
    assert changed(run, "POST", "/admin/replicas/a/drain")[2:] == ({"drained": True}, {"drained": True})
    assert changed(run, "POST", "/admin/replicas/a/resume")[2:] == ({"drained": True}, {"drained": False})
    assert {served_by(run) for _ in range(6)} == {"a", "b"}


def test_a_strategy_is_another_from_the_next_request_on(run):
    before = run.server.engine.router.strategy_name
    action, subject, was, now = changed(
        run, "PUT", "/admin/routing/strategy", {"strategy": "random", "options": {}}
    )
    assert (action, subject, was["strategy"], now) == (
        "routing.strategy",
        "router",
        before,
        {"strategy": "random", "options": {}},
    )
    assert do(run, "GET", "/admin/routing").json["strategy"] == "random"
    assert served_by(run) in ("a", "b")
    changed(run, "PUT", "/admin/routing/strategy", {"strategy": before, "options": was["options"]})


def test_strategies_and_quotas_change_under_load_and_nobody_notices(run):
    """Four clients ask all the time; an operator goes through the strategies and the limits beside them."""
    before = figures(run)

    def client(number):
        return [
            served_by(run, messages=[{"role": "user", "content": f"{number} {turn}"}]) for turn in range(25)
        ]

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(client, number) for number in range(4)]
        for turn, name in enumerate(["random", "round_robin", "least_loaded", "cache_aware"] * 3):
            changed(run, "PUT", "/admin/routing/strategy", {"strategy": name})
            changed(run, "PUT", "/admin/quotas", {"max_concurrent_requests": 8 + turn})
        served = [replica for each in asking for replica in each.result()]
    assert len(served) == 100
    assert set(served) == {"a", "b"}
    now = until(lambda: figures(run)["in service, waiting"] == (0, 0) and figures(run))
    assert [load[:2] for load in now["loads"]] == [(0, 0)] * 3
    assert now["grants, freed"][0] - before["grants, freed"][0] == 100
    granted, paid, back = now["granted, settled, given back"]
    assert granted == paid + back
    assert now["pins, blocks, namespaces"][0] == 0


def test_quotas_change_and_what_is_spent_stays_spent(run):
    served_by(run)
    spent = run.call(lambda: run.server.engine.quotas._settled_tokens)
    rule = {"model": "llama", "hourly_requests": 10**6}
    action, subject, was, now = changed(run, "PUT", "/admin/quotas", {"limits": [rule], "queue_capacity": 7})
    assert (action, subject) == ("quotas.update", "quotas")
    assert was["queue_capacity"] == 256
    assert was["limits"][0]["hourly_tokens"] == 10**7
    assert now == {"limits": [rule], "queue_capacity": 7}
    told = do(run, "GET", "/admin/quotas").json["settings"]
    assert (told["queue_capacity"], told["limits"][0]["hourly_requests"]) == (7, 10**6)
    assert run.call(lambda: run.server.engine.quotas._settled_tokens) == spent
    assert served_by(run) in ("a", "b")
    changed(run, "PUT", "/admin/quotas", {"limits": [{"model": "*", "hourly_tokens": 10**7}]})


def test_what_a_cached_token_costs_and_how_much_a_mode_lets_be_said_change_while_it_serves(run):
    quotas, long = run.server.engine.quotas, [{"role": "user", "content": "kept " * 40}]

    def cost():
        before = run.call(lambda: quotas._settled_tokens)
        usage = one(run.server.port, post({**HELLO, "messages": long, "max_tokens": 8})).json["usage"]
        return run.call(lambda: quotas._settled_tokens) - before, usage

    changed(run, "PUT", "/admin/routing/strategy", {"strategy": "affinity"})
    cost()
    shorter = {"cached_token_cost": 0, "modes": {"warning": {"max_output_tokens": 2}}}
    _, _, was, _ = changed(run, "PUT", "/admin/quotas", shorter)
    changed(run, "PUT", "/admin/mode", {"mode": "warning"})
    spent, usage = cost()
    assert usage["completion_tokens"] == 2
    assert (cached := usage["prompt_tokens_details"]["cached_tokens"]) > 0
    assert spent == usage["total_tokens"] - cached
    changed(run, "PUT", "/admin/mode", {"mode": None})
    changed(run, "PUT", "/admin/quotas", was)
    spent, usage = cost()
    assert spent == usage["total_tokens"] == usage["prompt_tokens"] + 8


def test_an_operators_mode_holds_until_it_is_taken_back(run):
    assert changed(run, "PUT", "/admin/mode", {"mode": "emergency", "model": "llama"}) == (
        "mode.set",
        "llama@1.0.0, all tenants",
        "normal",
        "emergency",
    )
    refused = one(run.server.port, post())
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert served_by(run, model="mistral") == "m"
    assert one(run.server.port, post(headers=["x-priority: 5"])).status == 200
    assert changed(run, "PUT", "/admin/mode", {"mode": None, "model": "llama"})[2] == "emergency"
    assert served_by(run) in ("a", "b")


def test_the_mode_of_everybody_is_set_and_taken_back(run):
    assert changed(run, "PUT", "/admin/mode", {"mode": "emergency"})[1] == "all models, all tenants"
    assert served_by(run, model="mistral") == 429
    changed(run, "PUT", "/admin/mode", {"mode": None})
    assert served_by(run, model="mistral") == "m"


def test_weights_of_an_experiment_change_from_the_next_session_on(run):
    assert changed(run, "PUT", "/admin/experiments/which/weights", {"weights": {"old": 0, "new": 1}}) == (
        "experiment.weights",
        "which",
        {"old": 0.5, "new": 0.5},
        {"old": 0.0, "new": 1.0},
    )
    answers = [one(run.server.port, post({**HELLO, "model": "chat", "user": f"u{n}"})) for n in range(8)]
    assert {answer.headers["x-modelyard-model"] for answer in answers} == {"mistral@1.0.0"}
    changed(run, "PUT", "/admin/experiments/which/weights", {"weights": {"old": 0.5, "new": 0.5}})


def test_a_model_is_pinned_and_let_loose(run):
    pinned = lambda: do(run, "GET", "/admin/models").json["models"][0]["pinned"]  # noqa: E731
    assert changed(run, "PUT", "/admin/models/llama/pin") == (
        "model.pin",
        "llama@1.0.0",
        {"pinned": False},
        {"pinned": True},
    )
    assert pinned()
    assert changed(run, "POST", "/admin/models/llama/pin", {"pinned": False})[2:] == (
        {"pinned": True},
        {"pinned": False},
    )
    assert not pinned()


def test_explaining_a_request_changes_nothing(run):
    before, count = figures(run), len(lines(run))
    told = do(run, "POST", "/admin/explain", {"model": "llama", "prompt_tokens": 100}).json
    assert told["chosen"] in ("a", "b")
    assert {each["name"] for each in told["candidates"]} == {"a", "b"}
    assert settled(run, before) == before
    assert len(lines(run)) == count


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/admin/replicas/x/drain", None, 404, "no replica is called 'x'; there are a, b, m"),
        ("POST", "/admin/models/x/load", None, 404, "no model is called 'x'; known are"),
        ("POST", "/admin/models/x/unload", None, 404, "no model is called 'x'"),
        ("POST", "/admin/models/x/drain", None, 404, "no model is called 'x'"),
        ("PUT", "/admin/models/x/pin", None, 404, "no model is called 'x'"),
        ("PUT", "/admin/models/llama/pin", {"pinned": 1}, 400, "pinned is 1, but must be bool"),
        ("POST", "/admin/rescan", None, 400, "models.folder is null, but must be the models folder"),
        ("PUT", "/admin/routing/strategy", {"strategy": "luck"}, 400, "'luck'"),
        ("PUT", "/admin/routing/strategy", {"strategy": "random", "options": {"x": 1}}, 400, "x"),
        ("PUT", "/admin/routing/strategy", {}, 400, "strategy is missing"),
        (
            "PUT",
            "/admin/experiments/x/weights",
            {"weights": {}},
            404,
            "no experiment is called 'x'; there are which",
        ),
        (
            "PUT",
            "/admin/experiments/which/weights",
            {"weights": {"old": 1}},
            400,
            "shares of old, new that sum to 1",
        ),
        ("PUT", "/admin/experiments/which/weights", {"weights": {"old": 2, "new": -1}}, 400, "that sum to 1"),
        ("PUT", "/admin/quotas", {"enabled": False}, 400, "enabled cannot be changed while the server runs"),
        ("PUT", "/admin/quotas", {"max_concurrent_requests": 0}, 400, "quotas.max_concurrent_requests is 0"),
        ("PUT", "/admin/quotas", {"limits": [{"hourly_tokens": -1, "model": "a"}]}, 400, "-1"),
        (
            "PUT",
            "/admin/quotas",
            {"limits": [{"model": "*", "hourly_token": 5}]},
            400,
            "quotas.limits[0].hourly_token is no setting; did you mean 'quotas.limits[0].hourly_tokens'?",
        ),
        (
            "PUT",
            "/admin/quotas",
            {"limits": [{"model": "*", "hourly_tokens": "5"}]},
            400,
            "quotas.limits[0].hourly_tokens is '5', but must be of type int or null",
        ),
        ("PUT", "/admin/quotas", {"modes": {"warning": {"att": 1}}}, 400, "did you mean"),
        (
            "PUT",
            "/admin/quotas",
            {"limits": [{"model": "*", "tenant": "acme", "ram_gib": 1}]},
            400,
            "ram_gib and ssd_gib of limits cannot be changed while the server runs",
        ),
        ("PUT", "/admin/quotas", [], 400, "Expected `object`, got `array`"),
        ("PUT", "/admin/mode", {"mode": "panic"}, 400, "mode is 'panic', but must be one of normal, warning"),
        ("PUT", "/admin/mode", {"mode": "normal", "model": "x"}, 404, "no model is called 'x'"),
        ("PUT", "/admin/mode", {}, 400, "mode is missing"),
        ("POST", "/admin/explain", {"model": "x"}, 404, "no model is called 'x'"),
        ("POST", "/admin/explain", {"model": "llama", "prompt_tokens": 0}, 400, "prompt_tokens is 0"),
        ("POST", "/admin/explain", {"model": "llama", "max_tokens": 0}, 400, "max_tokens is 0"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_the_refusal_is_written_down(
    run, method, path, body, status, message
):
    before, count = figures(run), len(lines(run))
    answer = do(run, method, path, body)
    assert answer.status == status, answer.body
    assert message in answer.error["message"]
    assert settled(run, before) == before
    refusals = [each for each in lines(run)[count:] if each["who"] == OPERATOR]
    if path != "/admin/explain":
        assert [(each["action"], each["after"]) for each in refusals] == [(path, None)]
        assert refusals[0]["outcome"] not in ("done", "")


def test_who_it_was_stands_in_the_audit_log_by_the_id_of_the_key(serving, tmp_path):
    file, audit = tmp_path / "keys.jsonl", tmp_path / "audit.jsonl"
    operator, client = new_key(file, "ops", admin=True), new_key(file)
    settings = quiet(keys_file=str(file), audit=AuditSettings(file=str(audit)))
    with serving(modelled(), settings) as found:
        ids = {found.call(found.server.keyring.find, key).id: key for key in (operator, client)}
        found.audit_file = audit
        assert do(found, "POST", "/admin/replicas/llama/drain", None, bearer(operator)).status == 200
        assert do(found, "POST", "/admin/replicas/llama/resume", None, bearer(client)).status == 403
        assert do(found, "POST", "/admin/replicas/llama/resume").status == 401
        written = until(lambda: "nobody" in {each["who"] for each in lines(found)} and lines(found))
    by = {each["who"]: each for each in written}
    keys = dict(zip(ids.values(), ids, strict=True))
    assert by[keys[operator]]["action"] == "replica.drain"
    assert by[keys[client]]["outcome"] == "forbidden"
    assert by["nobody"]["outcome"] == "invalid_api_key"
    assert not any(key in audit.read_text() for key in (operator, client))


@pytest.fixture(scope="module")
def loading(serving):
    """A server whose operators load and unload; steps take a while."""
    quickly = LoadingSettings(cold_median_s=0.02, cold_p90_s=0.03, warm_s=0.02)
    engine = replace(modelled(models=("llama", "mistral"), overhead_us=10_000), models=quickly)
    with serving(engine, quiet()) as found:
        yield found


def state(running, name):
    return {each["id"]: each["state"] for each in do(running, "GET", "/admin/models").json["models"]}[
        f"{name}@1.0.0"
    ]


def test_a_model_leaves_and_comes_back(loading):
    told = do(loading, "POST", "/admin/models/mistral/unload").json
    assert (told["before"], told["after"]) == ({"state": "healthy"}, {"state": "unloaded"})
    assert state(loading, "mistral") == "unloaded"
    told = do(loading, "POST", "/admin/models/mistral/load").json
    assert (told["before"], told["after"]) == ({"state": "unloaded"}, {"state": "healthy"})
    assert served_by(loading, model="mistral") == "mistral"


def test_a_replica_that_is_being_warmed_is_none_that_can_be_drained(loading, monkeypatch):
    """It is in memory, but nobody asks it yet: there is nothing to drain, and nothing breaks."""
    go_on = asyncio.Event()

    async def warm(_):
        await go_on.wait()

    assert do(loading, "POST", "/admin/models/mistral/unload").status == 200
    monkeypatch.setattr(loading.server.engine.fleet, "_warm", warm)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(do, loading, "POST", "/admin/models/mistral/load")
        assert until(lambda: "mistral" in loading.server.engine.replicas)
        answers = [do(loading, "POST", f"/admin/replicas/mistral/{act}") for act in ("drain", "resume")]
        told = do(loading, "GET", "/admin/status")
        loading.call(go_on.set)
        assert asked.result().status == told.status == 200
    for answer in answers:
        assert answer.status == 404
        assert "no replica is called 'mistral'" in answer.error["message"]


def test_a_model_that_is_drained_serves_whom_it_has(loading):
    """The drain is answered at once; who is being served is answered whole."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(one, loading.server.port, post({**HELLO, "max_tokens": 30}))
        assert until(lambda: loading.server.engine.replicas["llama"].num_running == 1)
        told = do(loading, "POST", "/admin/models/llama/drain").json
        assert told["after"]["state"] in ("draining", "unloaded")
        assert asked.result().json["usage"]["completion_tokens"] == 30
    assert until(lambda: state(loading, "llama") == "unloaded")
    assert do(loading, "POST", "/admin/models/llama/load").status == 200
    assert served_by(loading) == "llama"
