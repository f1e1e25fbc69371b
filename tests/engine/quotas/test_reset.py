"""An operator lets use be forgotten: what is in service goes on, nothing comes back twice, and the books add up."""

import pytest

from engine.clock import to_ns
from engine.errors import BadRequest, OverQuota
from engine.quotas import Crossing

HOUR_S = 3600


def used(quotas, tenant="t", model="m"):
    found = {}
    for book in quotas.ledger(f"{model}@1.0.0", tenant).books:
        for total in (book.tokens, book.requests):
            found |= {f"{window.kind}_{total.name}": window.used(total.spent) for window in total.windows}
    return found


def spend(quotas, ask, tokens, **options):
    with ask(quotas, tokens, **options) as grant:
        grant.settle(tokens)


@pytest.mark.parametrize("sliding", [False, True])
def test_a_window_that_was_full_takes_as_much_again_and_no_more(make, ask, sliding):
    quotas = make({"model": "m", "hourly_tokens": 100, "sliding": sliding})
    spend(quotas, ask, 100)
    assert isinstance(ask(quotas, 1), OverQuota)
    assert quotas.reset(model="m@1.0.0") == 1
    spend(quotas, ask, 60)
    spend(quotas, ask, 40)
    assert isinstance(ask(quotas, 1), OverQuota)
    quotas.check_integrity()


@pytest.mark.parametrize("sliding", [False, True])
def test_what_was_granted_before_gives_nothing_back_afterwards(make, ask, sliding):
    quotas = make({"model": "m", "hourly_tokens": 100, "hourly_requests": 3, "sliding": sliding})
    before = ask(quotas, 90)
    quotas.reset(model="m")
    after = ask(quotas, 50)
    before.settle(10)
    before.release()
    quotas.check_integrity()
    assert used(quotas) == {"hourly_tokens": 50, "hourly_requests": 1}
    after.release()
    assert used(quotas) == {"hourly_tokens": 0, "hourly_requests": 0}
    spend(quotas, ask, 100)
    assert isinstance(ask(quotas, 1), OverQuota)


def test_a_burst_is_whole_again_and_older_grants_do_not_make_it_larger(make, ask):
    quotas = make({"model": "m", "tokens_per_s": 1.0, "burst_tokens": 60})
    before = ask(quotas, 60)
    quotas.reset()
    spend(quotas, ask, 30)
    before.release()
    assert isinstance(ask(quotas, 31), OverQuota)
    spend(quotas, ask, 30)


def test_places_stay_taken(make, ask):
    quotas = make({"model": "m", "concurrent_requests": 1, "concurrent_tokens": 50}, queue_capacity=0)
    held = ask(quotas, 40)
    quotas.reset(model="m")
    assert isinstance(ask(quotas, 5), OverQuota)
    held.release()
    ask(quotas, 50).release()
    quotas.check_integrity()


def test_only_those_are_forgiven_who_are_named(make, ask):
    quotas = make(
        {"model": "m", "hourly_requests": 9},
        {"tenant": "*", "hourly_tokens": 100},
        {"model": "m", "tenant": "t", "daily_tokens": 200},
    )
    spend(quotas, ask, 30)
    spend(quotas, ask, 30, tenant="u")
    assert quotas.reset(tenant="t") == 1
    assert used(quotas) == {"hourly_requests": 2, "hourly_tokens": 0, "daily_tokens": 30}
    assert quotas.reset(model="m", tenant="t") == 1
    assert used(quotas)["daily_tokens"] == 0
    assert used(quotas, "u")["hourly_tokens"] == 30
    assert quotas.reset() == 4
    assert used(quotas, "u") == {"hourly_requests": 0, "hourly_tokens": 0}


def test_a_tenant_without_limits_has_nothing_to_forget(make):
    quotas = make({"model": "m", "hourly_tokens": 100})
    with pytest.raises(BadRequest, match="tenant is 'x', but must be one that has limits"):
        quotas.reset(tenant="x")
    with pytest.raises(BadRequest, match="one that has limits for model 'm'"):
        quotas.reset(model="m", tenant="x")


def test_soft_limits_are_told_again(make, ask, told):
    quotas = make({"model": "m", "hourly_tokens": 100})
    spend(quotas, ask, 85)
    quotas.reset()
    told.clear()
    spend(quotas, ask, 79)
    assert told == []
    spend(quotas, ask, 5)
    assert [change.share for change in told if isinstance(change, Crossing)] == [0.8]


def test_who_waits_comes_in_at_once(make, ask, live, clock):
    quotas = make({"model": "m", "hourly_tokens": 100}, max_wait_s=HOUR_S)
    spend(quotas, ask, 100)
    log = []
    live(quotas, 50, at_s=10, log=log)
    clock.env.run(until=to_ns(20))
    quotas.reset(model="m")
    clock.env.run(until=to_ns(21))
    assert [(admitted_ns, outcome) for _, _, admitted_ns, outcome in log] == [(to_ns(20), "served")]


@pytest.mark.parametrize("is_cut", [False, True])
def test_the_next_process_knows_of_it(make, ask, tmp_path, is_cut):
    rules = ({"model": "m", "hourly_tokens": 1000}, {"tenant": "*", "hourly_requests": 50})
    options = {"state_file": str(tmp_path / "spent.sqlite"), "epoch_ns": to_ns(1000)}
    first = make(*rules, **options)
    spend(first, ask, 900)
    first.close()
    second = make(*rules, **options)  # in which nobody has asked yet
    second.reset()
    if is_cut:
        second._file.close()
    else:
        second.close()
    third = make(*rules, **options)
    assert used(third) == {"hourly_tokens": 0, "hourly_requests": 0}
    spend(third, ask, 500)
    third.reset()
    third._file.close()
    assert used(make(*rules, **options)) == {"hourly_tokens": 0, "hourly_requests": 0}
