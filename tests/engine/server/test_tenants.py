"""Tenants: neither what one asked, nor where its sessions are, nor what it has left shows to another."""

import time

import pytest

from engine.settings import AllowanceSettings, CacheSettings, QuotaSettings
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import HELLO, bearer, figures, get, new_key, one, post, quiet

LONG = {
    "model": "llama",
    "messages": [{"role": "user", "content": "The same long words, whoever says them. " * 20}],
    "max_tokens": 4,
}
OTHER = {**LONG, "messages": [{"role": "user", "content": "Other words, and many of these as well. " * 20}]}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    return file, {
        "acme": new_key(file, "acme"),
        "acme too": new_key(file, "acme"),
        "other": new_key(file, "other"),
        "operator": new_key(file, "ops", admin=True),
    }


@pytest.fixture(scope="module")
def shared(serving, keys):
    """Three replicas for everybody, and a budget for each tenant."""
    quotas = QuotaSettings(limits=[AllowanceSettings(tenant="*", hourly_tokens=100_000)])
    engine = modelled(dict.fromkeys("abc", "llama"), quotas=quotas)
    with serving(engine, quiet(keys_file=str(keys[0]))) as found:
        found.keys = keys[1]
        yield found


def ask(running, who, body, *headers):
    answer = one(running.server.port, post(body, headers=[bearer(running.keys[who]), *headers]))
    assert answer.status == 200, answer.body
    return answer


def cached(answer):
    return answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_what_one_tenant_asked_is_not_cached_for_another(shared):
    assert cached(ask(shared, "acme", LONG)) == 0
    again = cached(ask(shared, "acme", LONG))
    assert again > 500
    assert cached(ask(shared, "acme too", LONG)) == again, "two keys of one tenant share what it asked"
    assert cached(ask(shared, "other", LONG)) == 0
    assert cached(ask(shared, "other", LONG)) == again


def test_a_user_is_not_the_tenant_where_there_are_keys(shared):
    """Naming somebody else's tenant, or a new one, opens and costs nothing else."""
    assert cached(ask(shared, "acme", OTHER)) == 0
    assert cached(ask(shared, "other", {**OTHER, "user": "acme"})) == 0
    before = figures(shared)["tenants"]
    assert cached(ask(shared, "acme", {**OTHER, "user": "nobody"})) > 500
    assert figures(shared)["tenants"] == before == ["acme", "other"]


def test_a_user_is_the_tenant_where_there_are_no_keys(plain):
    def asked(user):
        return cached(one(plain.server.port, post({**LONG, "user": user})))

    assert asked("ann") == 0
    assert asked("ann") > 500
    assert asked("bob") == 0
    assert asked(None) == 0
    assert cached(one(plain.server.port, post({**LONG, "user": "default"}))) > 500


def replicas(running, who, sessions):
    return [
        ask(running, who, LONG, f"x-session-id: {session}").headers["x-modelyard-replica"]
        for session in sessions
    ]


def test_sessions_of_one_name_are_each_tenants_own(shared):
    """Whoever guesses the name of somebody's session must not learn from its replica where that session is."""
    names = [f"conversation-{number}" for number in range(25)]
    count = figures(shared)["sessions"]
    of_acme, of_other = replicas(shared, "acme", names), replicas(shared, "other", names)
    assert figures(shared)["sessions"] == count + 2 * len(names), "no session is shared"
    assert of_acme != of_other
    assert replicas(shared, "acme", names) == of_acme
    assert replicas(shared, "acme too", names) == of_acme
    assert replicas(shared, "other", names) == of_other


@pytest.mark.parametrize("name", ["acme", "a", "e\x1fa", "\x1f"])
def test_no_name_of_a_session_is_one_of_another_tenants(shared, name):
    public, holders = shared.server.public, shared.server.keyring
    acme, other = (holders.find(shared.keys[who]) for who in ("acme", "other"))
    made = {
        holder.tenant: public._session({b"x-session-id": name.encode()}, holder) for holder in (acme, other)
    }
    assert made["acme"] != made["other"]
    assert all(session.startswith(f"{tenant}\x1f") for tenant, session in made.items())


def test_a_session_has_room_beside_its_tenants_name(shared):
    def asked(length):
        header = f"x-session-id: {'s' * length}"
        return one(shared.server.port, post(LONG, headers=[bearer(shared.keys["acme"]), header]))

    assert asked(251).status == 200
    refused = asked(252)
    assert refused.status == 400
    assert refused.error["message"] == "x-session-id has 252 characters, but may have 251"


def test_what_one_tenant_has_spent_another_still_has(shared):
    def left(who):
        return int(ask(shared, who, LONG).headers["x-ratelimit-remaining-tokens"])

    of_other, before = left("other"), left("acme")
    price = before - left("acme")
    assert price > 0
    assert left("acme too") == before - 2 * price, "two keys of one tenant have one budget"
    assert left("other") == of_other - price


def test_a_tenant_that_has_nothing_left_is_refused_and_another_is_not(serving, keys):
    quotas = QuotaSettings(max_wait_s=0, limits=[AllowanceSettings(tenant="*", hourly_requests=2)])
    with serving(modelled(quotas=quotas), quiet(admin_port=None, keys_file=str(keys[0]))) as found:
        found.keys = keys[1]
        for _ in range(2):
            ask(found, "acme", LONG)
        before = figures(found)
        refused = one(found.server.port, post(LONG, headers=[bearer(found.keys["acme too"])]))
        assert refused.status == 429
        assert refused.error["code"] == "rate_limit_exceeded"
        assert 0 < int(refused.headers["retry-after"]) <= 3_600
        assert int(refused.headers["retry-after-ms"]) <= 1_000 * int(refused.headers["retry-after"])
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert {**figures(found), "loads": None} == {**before, "loads": None}
        ask(found, "other", LONG)


def test_tenants_share_what_is_cached_only_where_an_operator_says_so(serving, keys):
    with serving(
        modelled(cache=CacheSettings(share_between_tenants=True)),
        quiet(admin_port=None, keys_file=str(keys[0])),
    ) as found:
        found.keys = keys[1]
        assert cached(ask(found, "acme", LONG)) == 0
        assert cached(ask(found, "other", LONG)) > 500


def test_several_choices_are_told_to_come_when_all_of_them_fit_or_never(serving, keys):
    file, key = keys[0], keys[1]["acme"]
    bursts = QuotaSettings(
        max_wait_s=0, limits=[AllowanceSettings(tenant="*", requests_per_s=4.0, burst_requests=2)]
    )
    with serving(modelled(quotas=bursts), quiet(keys_file=str(file))) as found:

        def asked_for(choices):
            return one(found.server.port, post({**HELLO, "n": choices}, headers=[bearer(key)]))

        assert asked_for(2).status == 200
        refused = asked_for(2)
        assert refused.status == 429
        time.sleep(int(refused.headers["retry-after-ms"]) / 1_000)
        assert asked_for(2).status == 200, "half as late there was room for one"
        never = asked_for(3)
        assert never.status == 400, "whoever comes again comes in vain"
        assert "whose burst_requests is 2" in never.error["message"]


def test_metrics_which_name_tenants_are_for_operators(shared):
    """At either port; a tenant's key gets no line of them."""
    assert one(shared.server.port, post(HELLO, headers=[bearer(shared.keys["acme"])])).status == 200
    for port in (shared.server.port, shared.server.admin_port):
        told = get(port, "/metrics", bearer(shared.keys["operator"]))
        assert told.status == 200
        assert b'tenant="' in told.body
        refused = get(port, "/metrics", bearer(shared.keys["acme"]))
        assert (refused.status, refused.error["code"]) == (403, "forbidden")
