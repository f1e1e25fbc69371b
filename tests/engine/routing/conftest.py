"""Requests, and routers with seats that nobody serves behind."""

import numpy as np
import pytest

from engine.request import Request
from engine.routing import Router
from engine.settings import RoutingSettings


@pytest.fixture
def ask():
    """A request with so many tokens; prompts of numbers in a row stand for their prefix."""

    def made(number=0, *, session=None, prompt=4, output=6, keys=(), tenant="default"):
        tokens = np.zeros(prompt, dtype=np.int32)
        return Request(number, "llama", tokens, output, 0, session=session, prefix_keys=keys, tenant=tenant)

    return made


@pytest.fixture
def make():
    """A router with so many replicas of `llama`, each with a cache of its own, and no slow start unless asked for."""

    def made(count=3, *, observer=None, on_change=None, later=None, headroom=None, price=None, **options):
        options = {"slow_start_s": 0.0, **options}
        given = {"headroom": headroom, "price": price}
        others = {name: value for name, value in given.items() if value is not None}
        router = Router(RoutingSettings(**options), observer, later=later, on_change=on_change, **others)
        return router, [router.add(name_of(number), "llama") for number in range(count)]

    return made


def name_of(number):
    return "abcdefgh"[number] if number < 8 else f"r{number}"


@pytest.fixture
def chain():
    """The names of so many blocks of a prefix; the first `shared` of them are those of the prefix before it."""

    def made(name, blocks, shared=0, of=""):
        return [f"{of if place < shared else name}/{place}".encode() for place in range(blocks)]

    return made
