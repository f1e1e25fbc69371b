"""Quotas with rules, requests of any size, and clients that come, wait and go on a virtual clock."""

import numpy as np
import pytest

from engine.clock import to_ns
from engine.errors import DeadlinePassed, OverQuota
from engine.quotas import Quotas
from engine.request import Request
from engine.settings import AllowanceSettings, QuotaSettings

PROMPT = np.zeros(1, dtype=np.int32)


@pytest.fixture
def prompt():
    """One token, whichever."""
    return PROMPT


@pytest.fixture
def told():
    """What the quotas have told: soft limits and modes, in order."""
    return []


@pytest.fixture
def make(clock, told):
    """Quotas whose rules are written as dictionaries."""

    def made(*rules, epoch_ns=0, **options):
        options = {"max_concurrent_requests": 10**9, "max_wait_s": 0.0, **options}
        limits = [AllowanceSettings(**rule) for rule in rules]
        return Quotas(QuotaSettings(limits=limits, **options), clock, told.append, epoch_ns=epoch_ns)

    return made


@pytest.fixture
def ask(clock):
    """A reservation at once, at a time in seconds: the grant, None where it has to wait, or the refusal."""

    def asked(quotas, tokens=10, *, tenant="t", model="m", at_s=None, priority=0, number=0):
        now_ns = clock.now_ns() if at_s is None else to_ns(at_s)
        request = Request(number, model, PROMPT, 1, now_ns, tenant=tenant, priority=priority)
        try:
            return quotas.reserve(request, f"{model}@1.0.0", tokens, now_ns)
        except OverQuota as error:
            return error

    return asked


@pytest.fixture
def live(clock):
    """A client's visit, beside the caller: admitted, some time in service, settled with what it used."""

    def living(quotas, tokens=10, *, at_s=0.0, hold_s=0.0, used=None, log=None, number=0, **options):
        model, deadline_s = options.pop("model", "m"), options.pop("deadline_s", None)

        async def visit():
            await clock.sleep(max(0, to_ns(at_s) - clock.now_ns()))
            deadline_ns = None if deadline_s is None else to_ns(deadline_s)
            arrival_ns = clock.now_ns()
            request = Request(number, model, PROMPT, 1, arrival_ns, deadline_ns=deadline_ns, **options)
            try:
                with await quotas.admit(request, f"{model}@1.0.0", tokens) as grant:
                    admitted_ns = clock.now_ns()
                    await clock.sleep(to_ns(hold_s))
                    grant.settle(tokens if used is None else used)
                outcome = "served"
            except (OverQuota, DeadlinePassed) as error:
                outcome, admitted_ns = error, None
            if log is not None:
                log.append((request, arrival_ns, admitted_ns, outcome))

        return clock.spawn(visit())

    return living
