"""Quotas, modes and experiments, with the whole engine behind them; and what a real client makes of a refusal."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import openai
import pytest

from engine.clock import to_ns
from engine.errors import (
    BadRequest,
    BadSettings,
    NoReplica,
    NotFound,
    OverQuota,
    ReplicaLost,
    TooLong,
    openai_answer,
)
from engine.request import Request
from engine.settings import (
    AllowanceSettings,
    ArmSettings,
    CacheSettings,
    ExperimentSettings,
    ModeSettings,
    QuotaSettings,
    TierSettings,
)
from engine.telemetry import Meter
from tests.engine.test_engine_routing import World

HOUR_S = 3600


@pytest.fixture
def world(settings, clock):
    return lambda **changes: World(settings, clock, **changes)


def quotas(*rules, **options):
    return QuotaSettings(
        limits=[AllowanceSettings(**rule) for rule in rules], **{"max_wait_s": 0.0, **options}
    )


def used(here, model="small", tenant="default"):
    book = here.engine.quotas.ledger(f"{model}@1.0.0", tenant).books[-1]
    return book.tokens.windows[0].used(book.tokens.spent)


def test_a_request_is_charged_what_it_used(world):
    here = world(quotas=quotas({"model": "small", "hourly_tokens": 1000}))
    assert here.get("small", prompt=100, output=20).usage.output_tokens == 20
    assert used(here) == 120
    here.engine.quotas.check_integrity()


def test_a_lost_request_that_was_never_computed_costs_nothing(world):
    here = world(quotas=quotas({"model": "small", "hourly_tokens": 1000}))
    here.kill("small")
    assert isinstance(here.get("small", prompt=100, output=20), (NoReplica, ReplicaLost))
    assert used(here) == 0


def test_what_a_cancelled_request_had_got_is_charged_and_the_rest_comes_back(world):
    here = world(quotas=quotas({"model": "small", "hourly_tokens": 10_000}))
    answer = here.get("small", prompt=100, output=3900, deadline_ns=to_ns(0.5))
    assert answer.reason == "deadline_passed"
    ended = here.told("request_ended")[-1]
    assert 0 < ended.output_tokens < 3900
    assert used(here) == 100 + ended.output_tokens


def test_cached_tokens_cost_what_they_are_said_to(world):
    here = world(quotas=quotas({"model": "small", "hourly_tokens": 10_000}, cached_token_cost=0.1))
    first = here.get("small", prompt=640, output=8)
    assert used(here) == 648
    second = here.get("small", prompt=640, output=8)
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 624)
    assert used(here) == 648 + 640 - round(0.9 * 624) + 8


def test_a_tenant_that_is_over_its_limit_is_refused_and_others_are_not(world):
    here = world(quotas=quotas({"tenant": "*", "hourly_tokens": 200}))
    assert here.get("small", tenant="a").model
    assert here.get("small", tenant="a").model
    refused = here.get("small", tenant="a")
    assert isinstance(refused, OverQuota)
    assert here.get("small", tenant="b").model == "small@1.0.0"
    kinds = Counter(event.kind for event in here.events)
    assert kinds["request_ended"] == 4


def test_a_model_at_its_limit_hands_a_groups_request_to_the_next(world):
    here = world(
        quotas=quotas({"model": "small", "hourly_tokens": 100}),
        routing={"groups": {"some": ["small", "middle"]}, "strategy": "round_robin"},
    )
    assert [here.get("some").model for _ in range(6)].count("small@1.0.0") == 1


def test_a_tenant_that_has_used_up_its_own_is_refused_once_and_with_the_true_time(world):
    here = world(
        quotas=quotas({"tenant": "*", "hourly_tokens": 100}),
        routing={"fallbacks": {"big": ["small"]}},
    )
    for name in ("auto", "big"):
        here.get(name, tenant=name)
        begun_s = here.clock.now_ns() / 1e9
        refused = here.get(name, tenant=name)
        assert refused.retry_after_s == pytest.approx(HOUR_S - begun_s, abs=1e-3)
    assert not here.told("request_fell_back")
    figures = {figure.name: figure.values for figure in here.engine.quotas.figures()}
    assert figures["modelyard:quota_rejections"] == {("hourly_tokens",): 2.0}


def test_quota_aware_goes_where_there_is_headroom(world):
    here = world(
        quotas=quotas({"model": "*", "hourly_tokens": 10_000}, {"model": "big", "hourly_tokens": 1000}),
        routing={"strategy": "quota_aware"},
    )
    answers = Counter(here.get(prompt=200, output=8).model for _ in range(30))
    assert answers["big@1.0.0"] <= 4
    assert answers["small@1.0.0"] > 8
    assert answers["middle@1.0.0"] > 8


def test_soft_limits_and_modes_are_told(world):
    modes = {"warning": ModeSettings(at=0.5)}
    here = world(quotas=quotas({"model": "small", "hourly_tokens": 300}, modes=modes))
    for _ in range(4):
        here.get("small")
    assert [event.share for event in here.told("soft_limit_passed")] == [0.8, 0.85, 0.9, 0.95]
    (change,) = here.told("mode_changed")
    assert (change.model, change.before, change.after) == ("small", "normal", "warning")
    assert change.cause == "72% of a limit is used"


def test_a_mode_cuts_answers_and_sends_groups_to_the_cheapest(world):
    modes = {"warning": ModeSettings(at=0.1, max_output_tokens=3, cheaper=True)}
    here = world(quotas=quotas({"model": "big", "hourly_tokens": 10_000}, modes=modes))
    assert here.get("big", prompt=1200).usage.output_tokens == 8
    assert here.get("big").usage.output_tokens == 3
    assert {here.get("auto").model for _ in range(6)} == {"small@1.0.0", "middle@1.0.0"}
    here.kill("small", "middle")
    here.run(5)
    assert here.get("auto").model == "big@1.0.0"


def test_emergency_serves_those_who_have_priority(world):
    here = world(quotas=quotas())
    here.get("small")
    here.engine.quotas.set_mode("emergency", model="small")
    assert isinstance(here.get("small"), OverQuota)
    assert here.get("small", priority=1).model == "small@1.0.0"
    assert here.get("middle").model == "middle@1.0.0"
    here.engine.quotas.set_mode(None, model="small")
    assert here.get("small").model == "small@1.0.0"


def test_limits_on_bytes_are_those_of_the_cache(world):
    rules = ({"model": "*", "ram_gib": 0.002}, {"model": "big", "tenant": "t", "ram_gib": 0.001})
    here = world(quotas=quotas(*rules), cache=CacheSettings(ram=TierSettings(gib=1.0)))
    for number in range(30):
        here.get("small", prompt=640 + number, tenant=f"t{number}")
    held = {holder.key: holder.held_bytes[0] for holder in here.engine.cache.holders}
    assert 0 < held["small@1.0.0"] <= 0.002 * 2**30
    with pytest.raises(
        BadSettings, match=r"quotas.limits.ssd_gib is 1.0, but must be null: there is no tier 'ssd'"
    ):
        world(quotas=quotas({"model": "big", "ssd_gib": 1.0}))
    with pytest.raises(BadSettings, match=r"quotas.limits.tenant is '[*]', but must be a name where ram_gib"):
        world(quotas=quotas({"tenant": "*", "ram_gib": 1.0}))


def test_an_experiment_splits_sessions_and_reports_what_came_of_it(world):
    arms = [
        ArmSettings(name="control", target="big", weight=0.7),
        ArmSettings(name="small", target="small", weight=0.3),
    ]
    here = world(routing={"experiments": [ExperimentSettings(name="size", on="auto", arms=arms)]})
    for number in range(100):
        here.ask("auto", session=f"user-{number}", output=4)
    here.run(20)
    for number in range(100):
        here.ask("auto", session=f"user-{number}", output=4)
    here.run(20)
    ends = here.told("request_ended")
    arm_of = {}
    for end in ends:
        assert arm_of.setdefault(end.session, end.arm) == end.arm
        assert end.model == ("big@1.0.0" if end.arm == "size/control" else "small@1.0.0")
    assert 55 <= Counter(arm_of.values())["size/control"] <= 85
    report = here.engine.experiments.report()["size"]
    assert report["arms"]["control"]["requests"] + report["arms"]["small"]["requests"] == 200
    compared = report["comparisons"]["small against control"]["ttft_s"]
    assert compared["difference"] < 0
    arms[1].target = "gone"
    experiments = [ExperimentSettings(name="size", on="auto", arms=arms)]
    with pytest.raises(BadSettings, match=r"routing.experiments.size.arms names 'gone'"):
        world(routing={"experiments": experiments})


def test_figures_of_quotas_and_router_are_scraped(world):
    here, meter = world(quotas=quotas({"model": "small", "hourly_tokens": 1000})), Meter()
    meter.sources.append(here.engine.figures)
    here.get("small", session="s")
    text = meter.exposition()
    assert 'modelyard:quota_used_ratio{kind="hourly_tokens",model_name="small",tenant=""} 0.072' in text
    assert 'modelyard:router_decisions_total{model_name="small@1.0.0",replica="small-a"} 1.0' in text
    assert 'modelyard:router_sessions_total{event="miss"} 1.0' in text


def test_explain_tells_the_quotas_verdict(world):
    here = world(quotas=quotas({"model": "small", "hourly_tokens": 100}))
    here.get("small")
    told = here.engine.explain(Request(999, "small", np.arange(64, dtype=np.int32), 8, 0))
    assert told.verdict.startswith("normal: model 'small' is at its limit of hourly_tokens for 359")


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (OverQuota("full", 1.2345), 429, "rate_limit_exceeded", ("2", "1235")),
        (NoReplica("none"), 503, "no_replica", ("1", "1000")),
        (TooLong("long"), 400, "context_length_exceeded", None),
        (BadRequest("wrong"), 400, "bad_request", None),
        (NotFound("gpt"), 404, "model_not_found", None),
        (ReplicaLost("lost"), 502, "replica_lost", None),
    ],
)
def test_errors_are_what_openai_clients_expect(error, status, code, retry_after):
    answer = openai_answer(error)
    assert (answer.status, answer.body["error"]["code"]) == (status, code)
    assert answer.body["error"]["message"] == str(error)
    given = answer.headers.get("retry-after"), answer.headers.get("retry-after-ms")
    assert given == (retry_after or (None, None))


class Door(BaseHTTPRequestHandler):
    """A server of one route: what is in `answers`, one after the other."""

    answers: list[tuple[int, dict[str, str], dict[str, object]]]

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        status, headers, body = self.server.answers.pop(0)
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            **headers,
            "content-type": "application/json",
            "content-length": str(len(data)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def door():
    server = HTTPServer(("127.0.0.1", 0), Door)
    server.answers = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


DONE = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}


def test_the_real_client_reads_a_refusal_and_comes_back_when_it_is_told_to(world, door):
    here = world(quotas=quotas({"tenant": "*", "requests_per_s": 20.0, "burst_requests": 1}))
    here.ask("small")
    refused = here.ask("small")
    here.run(1)
    answer = openai_answer(refused[0])
    limits = here.engine.quotas.headers("small@1.0.0", "default", 0)
    door.answers += [(answer.status, {**answer.headers, **limits}, answer.body)] * 2 + [(200, {}, DONE)]
    url = f"http://127.0.0.1:{door.server_port}/v1"
    messages = [{"role": "user", "content": "hi"}]
    with (
        openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(model="small", messages=messages)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after-ms"]) == 50
    with openai.OpenAI(base_url=url, api_key="k", max_retries=1) as client:
        assert client.chat.completions.create(model="small", messages=messages).id == "1"
    assert door.answers == []
