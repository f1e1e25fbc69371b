"""The command `status` against real servers, and what it says where there is none."""

import json
from dataclasses import replace

import pytest

from engine.__main__ import main
from engine.server.key_file import add_key
from engine.server.settings import JobSettings, LogSettings, ServerSettings
from engine.settings import AllowanceSettings, ArmSettings, ExperimentSettings, QuotaSettings, RoutingSettings
from tests.engine.server.conftest import modelled, running

HELLO = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
QUIET = ServerSettings(port=0, admin_port=0, log=LogSettings(level="off"))


@pytest.fixture(scope="module")
def served():
    """Two models, one of them twice and half drained, a limit, an experiment, and one answer given."""
    arms = [
        ArmSettings(name="old", target="llama", weight=0.7),
        ArmSettings(name="new", target="phi", weight=0.3),
    ]
    routing = RoutingSettings(
        slow_start_s=0.0,
        groups={"chat": ["llama"]},
        experiments=[ExperimentSettings(name="which", on="chat", arms=arms)],
    )
    quotas = QuotaSettings(limits=[AllowanceSettings(tenant="*", hourly_requests=4)])
    settings = modelled(
        {"a": "llama", "b": "llama", "p": "phi"}, ("llama", "phi"), routing=routing, quotas=quotas
    )
    with running(settings, QUIET) as found:
        found.http().post("/v1/chat/completions", json=HELLO).raise_for_status()
        operator = found.admin()
        operator.post("/admin/replicas/b/drain").raise_for_status()
        operator.put("/admin/models/phi/pin").raise_for_status()
        yield found


@pytest.fixture
def typed(capsys):
    """Type a command: its exit code, and what it prints to each side, blanks closed up."""

    def type_it(*arguments):
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, [" ".join(line.split()) for line in out.splitlines()], err

    return type_it


def test_one_page_has_models_replicas_tiers_quotas_and_arms(served, typed):
    code, lines, err = typed("status", "--admin", served.admin_url)
    assert (code, err) == (0, "")
    assert lines[0].startswith("Modelyard ")
    assert lines[0].endswith("routing by round_robin: 0 requests in service, 0 waiting for a quota")
    assert "llama@1.0.0 healthy 2 1 6.4 MB" in lines
    assert "phi@1.0.0 healthy 1 0 6.4 MB pinned" in lines
    assert any(line.startswith("b llama@1.0.0 healthy drained 0 0 0") for line in lines)
    assert any(line.startswith("p phi@1.0.0 healthy yes 0 0 0") for line in lines)
    assert any(line.startswith("ram ") and line.endswith("% 268.4 MB 1") for line in lines)
    assert "all * hourly requests ██········ 25.0% normal" in lines
    assert "which old 70%, new 30%" in lines


def test_as_json_it_is_what_the_server_answers(served, typed):
    code, lines, _ = typed("status", "--admin", served.admin_url, "--json")
    status = json.loads(lines[0])
    assert code == 0
    assert [row["name"] for row in status["replicas"]] == ["a", "b", "p"]
    assert {"model_name": "", "tenant": "*", "value": 0.0} in status["modes"]


def test_the_latest_jobs_stand_below(served, typed):
    code, lines, _ = typed("jobs", "run", "health_sweep", "--admin", served.admin_url)
    assert code == 0
    assert '"kind": "health_sweep",' in lines
    _, lines, _ = typed("status", "--admin", served.admin_url)
    at = next(i for i, line in enumerate(lines) if line.startswith("job kind state"))
    assert any(" health_sweep " in line for line in lines[at:])


def test_nobody_there_is_one_sentence_and_exit_code_1(unused_port, typed):
    at = f"http://127.0.0.1:{unused_port}"
    code, lines, err = typed("status", "--admin", at)
    assert (code, lines) == (1, [])
    assert err == f"modelyard: {at} does not answer: [Errno 111] Connection refused\n"


def test_the_clients_port_is_not_the_operators(served, typed):
    code, _, err = typed("status", "--admin", served.url)
    assert code == 2
    assert err.startswith(f"modelyard: {served.url}: ")


def test_a_key_comes_from_the_environment_and_never_from_the_command_line(tmp_path, typed, monkeypatch):
    file = tmp_path / "keys.jsonl"
    key, _ = add_key(file, "ops", created="2026-01-01T00:00:00+00:00", admin=True)
    settings = replace(QUIET, keys_file=str(file), jobs=JobSettings(enabled=False))
    with running(modelled(), settings) as found:
        code, _, err = typed("status", "--admin", found.admin_url)
        assert (code, "key" in err) == (2, True)
        code, _, err = typed("status", "--admin", found.admin_url, "--key-env", "OPS")
        assert (code, err) == (
            2,
            "modelyard: --key-env is 'OPS', but no variable of that name holds a key\n",
        )
        monkeypatch.setenv("OPS", key)
        code, lines, err = typed("status", "--admin", found.admin_url, "--key-env", "OPS")
        assert (code, err) == (0, "")
        assert not any(line.startswith("job ") for line in lines), "jobs are switched off"
        monkeypatch.setenv("MODELYARD_ADMIN_KEY", key)
        assert typed("status", "--admin", found.admin_url)[0] == 0


def test_where_the_server_is_may_stand_in_the_environment(served, typed, monkeypatch):
    monkeypatch.setenv("MODELYARD_ADMIN", served.admin_url)
    assert typed("status")[0] == 0
    monkeypatch.setenv("MODELYARD_ADMIN", "localhost")
    assert typed("status")[2].startswith(
        "modelyard: MODELYARD_ADMIN is 'localhost', but must begin with http"
    )


def test_an_address_without_a_scheme_is_refused(typed):
    code, _, err = typed("status", "--admin", "localhost:8001")
    assert code == 2
    assert err == "modelyard: --admin is 'localhost:8001', but must begin with http:// or https://\n"
