"""Twice as much fits below memory in int8; the twins write it larger, coarser, or answer something else."""

import pytest

from engine.cache import codec
from engine.cache.holders import Holder
from engine.errors import BadSettings
from tests.scenarios.verdicts import failed, verdicts

FEW = ("workload.requests=150", "workload.rate=0.5", "tiers.ram.gib=3", "tiers.ssd.gib=8", "beside.seeds=1")
SMALLER = "times that a block is smaller in the lower tier"
HITS = "hit ratio above that of blocks as they are"
SOONER = "part of the time to first token saved"
IN_SCALES = "the worst error of a number, in steps of its scale"
RELATIVE = "the worst error of a block, relative"
SAME = "answers that are the same, token for token"
REAL = ("executor=torch", "size=small")


def test_the_same_gigabytes_hold_more_and_find_more(play):
    run = play(*FEW)
    assert failed(run) == []
    found = {check.name: check for check in run.checks}
    assert found[SMALLER].value == pytest.approx(2 / 1.04, rel=0.01)
    assert found[HITS].verdict == found[SOONER].verdict == "pass"
    assert IN_SCALES not in found


@pytest.mark.slow
def test_so_they_do_on_more_traffic(play):
    assert play("seed=3", "workload.requests=500", "beside.seeds=2", "tiers.ssd.gib=24").verdict == "pass"


@pytest.mark.slow
def test_real_blocks_err_by_half_a_step_and_answers_hardly_change(play):
    run = play(*REAL)
    assert run.verdict == "pass"
    assert {IN_SCALES, RELATIVE, SAME} <= set(verdicts(run))
    assert run.manifest["cache"]["lossy_blocks"] > 10


def test_twin_that_writes_int8_as_large_as_four_copies_is_seen(play, monkeypatch):
    made = Holder.form_bytes
    monkeypatch.setattr(
        Holder, "form_bytes", lambda self, form: 4 * self.raw_bytes if form == "int8" else made(self, form)
    )
    assert failed(play(*FEW)) == [SMALLER, HITS, SOONER]


@pytest.mark.slow
def test_twin_that_rounds_to_a_few_levels_is_seen(play, monkeypatch):
    monkeypatch.setattr(codec, "LEVELS", 3.0)
    run = play(*REAL, "tiers.ssd.max_error=1", "workload.requests=80")
    assert {IN_SCALES, RELATIVE, SAME} <= set(failed(run))


@pytest.mark.slow
def test_a_cache_that_has_room_shows_nothing(play):
    run = play("workload.requests=40", "tiers.ram.gib=400", "beside.seeds=1")
    assert verdicts(run)["blocks that went down"] == "inconclusive"
    assert run.verdict == "inconclusive"


def test_one_tier_is_refused(play):
    with pytest.raises(BadSettings, match="tiers is 'ram', but must be two at least"):
        play("tiers.ssd=null", "beside.seeds=0")


@pytest.mark.slow
def test_twin_that_turns_requests_away_is_seen(play):
    lines = ["workload.requests=60", "workload.rate=20", "fleet.queue_capacity=0", "fleet.max_batch=1"]
    assert "requests that did not complete" in failed(play(*lines, "beside.seeds=0"))
