"""An hourly limit warns, refuses and gives again, and nobody else notices; its twins do one of these wrong."""

from dataclasses import replace

import pytest

from engine.engine import Engine
from engine.errors import BadSettings
from engine.quotas import Crossing, books
from engine.quotas.books import Ledger
from scenarios import quota
from sim.config import read
from tests.scenarios.verdicts import failed, verdicts

SHORT = ("quotas.limits=[{model: phi-4, hourly_tokens: 50000}]", "workload.rate=0.07", "beside.seeds=0")
SOFT = "soft limits not told as they should be"
AT_REFUSAL = "share of the limit used at the first refusal"
MOST = "largest share of the limit in any hour"
BACK = "of them not served"
OTHERS = "requests of other models not served"
NEITHER = "requests neither served nor refused by the limit"
SLOWER = "their E2E, times that without a limit"


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_limit_holds_and_only_the_limit(play, seed):
    run = play(f"seed={seed}")
    assert run.verdict == "pass"
    hours = run.facts[run.facts["kind"] == "soft_limit_passed"]["value"].tolist()
    assert hours[:8] == [80, 85, 90, 95] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [("seed=3", "workload.arrivals.shape=0.23", "workload.tenants.split=true"), ("size=full",)],
)
def test_the_same_holds_for_bursts_many_tenants_and_more_hours(play, lines):
    run = play(*lines)
    assert failed(run) == []
    assert verdicts(run)[MOST] == "pass"


@pytest.mark.slow
@pytest.mark.torch
def test_the_same_holds_with_real_passes(play):
    run = play("size=small", "executor=torch")
    assert run.verdict == "pass"


@pytest.mark.slow
def test_too_little_traffic_shows_nothing_and_says_so(play):
    run = play(*SHORT, "workload.rate=0.005")
    assert failed(run) == []
    assert run.verdict == "inconclusive"


def test_twin_that_lets_everybody_in_is_seen(play, monkeypatch):
    reserve = Ledger.reserve
    monkeypatch.setattr(Ledger, "reserve", lambda self, tokens, now_ns: reserve(self, tokens // 3, now_ns))
    assert MOST in failed(play(*SHORT))


@pytest.mark.slow
def test_twin_that_forgets_that_hours_end_is_seen(play, monkeypatch):
    monkeypatch.setattr(books, "HOUR_NS", 2 * books.HOUR_NS)
    assert BACK in failed(play(*SHORT))


@pytest.mark.parametrize("times", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_twin_that_warns_never_or_twice_is_seen(play, monkeypatch, times):
    changed = Engine._quota_changed

    def told(self, change):
        for _ in range(times if isinstance(change, Crossing) else 1):
            changed(self, change)

    monkeypatch.setattr(Engine, "_quota_changed", told)
    assert failed(play(*SHORT)) == [SOFT]


@pytest.mark.slow
def test_twin_that_refuses_before_the_limit_is_seen(play):
    assert AT_REFUSAL in failed(play(*SHORT, "quotas.modes={emergency: {at: 0.85, min_priority: 1}}"))


@pytest.mark.slow
def test_twin_that_refuses_others_too_is_seen(play):
    other = "{model: gemma-2-9b-it, hourly_tokens: 5000}"
    run = play(*SHORT, f"quotas.limits=[{{model: phi-4, hourly_tokens: 50000}}, {other}]")
    assert {NEITHER, OTHERS} <= set(failed(run))


@pytest.mark.slow
def test_twin_that_makes_others_wait_is_seen(play, monkeypatch):
    serve = Engine._serve_on

    async def slow(self, attempts, job, story):
        if job.home.model.name != "phi-4" and self.settings.quotas.limits[0].hourly_tokens < 1_000_000:
            await self.clock.sleep(2_000_000_000)
        return await serve(self, attempts, job, story)

    monkeypatch.setattr(Engine, "_serve_on", slow)
    assert failed(play(*SHORT, "beside.seeds=1")) == [SLOWER]


@pytest.mark.slow
def test_a_request_that_is_nowhere_is_missed(play):
    run = play(*SHORT)
    settings = read(["scenario=quota", *SHORT]).scenario
    lost = replace(run, requests=run.requests.iloc[1:])
    assert "requests without an outcome" in [
        each.name for each in quota.checks(lost, settings) if each.verdict == "fail"
    ]


@pytest.mark.parametrize("model", ["gpt-2"])
def test_a_model_without_a_limit_is_refused(play, model):
    with pytest.raises(BadSettings, match=r"must be a model with hourly_tokens in quotas\.limits"):
        play(f"scenario.model={model}")


def test_twin_without_any_quota_is_seen(play):
    run = play(*SHORT, "quotas=off")
    assert verdicts(run)[AT_REFUSAL] == "inconclusive"
    assert MOST in failed(run)
