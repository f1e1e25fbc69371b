"""The tree of errors: every one has a status, an outcome and a word of its own."""

import re

import pytest

from engine import errors
from engine.errors import EngineError, OverQuota

TREE = {
    "BadSettings": (500, "failed", "bad_settings"),
    "UnknownName": (500, "failed", "unknown_name"),
    "BadRequest": (400, "rejected", "bad_request"),
    "TooLong": (400, "rejected", "context_too_long"),
    "NotFound": (404, "rejected", "not_found"),
    "Unauthorised": (401, "rejected", "invalid_api_key"),
    "Forbidden": (403, "rejected", "forbidden"),
    "TooLarge": (413, "rejected", "too_large"),
    "OverQuota": (429, "rejected", "over_quota"),
    "GenerationFailed": (500, "failed", "generation_failed"),
    "LoadFailed": (503, "failed", "load_failed"),
    "BadModel": (503, "failed", "bad_model"),
    "ReplicaLost": (502, "failed", "replica_lost"),
    "NoReplica": (503, "failed", "no_replica"),
    "QueueFull": (503, "rejected", "queue_full"),
    "DeadlinePassed": (504, "timed_out", "deadline_passed"),
}


def classes_below(cls):
    return [below for child in cls.__subclasses__() for below in (child, *classes_below(child))]


def ours():
    return [cls for cls in classes_below(EngineError) if cls.__module__ == "engine.errors"]


def test_the_tree_is_complete():
    assert {cls.__name__ for cls in ours()} == set(TREE)


@pytest.mark.parametrize("name", sorted(TREE))
def test_each_error_says_how_it_is_answered(name):
    cls = getattr(errors, name)
    assert (cls.status, cls.outcome, cls.reason) == TREE[name]


def test_no_two_errors_share_a_reason():
    reasons = [cls.reason for cls in ours()]
    assert len(set(reasons)) == len(reasons)


def test_the_drawn_tree_is_the_real_one():
    drawn = re.findall(r"^([│ ]*)[├└]── (\w+) +(\d+)?", errors.__doc__, re.MULTILINE)
    parents = [EngineError]
    for indent, name, status in drawn:
        depth = len(indent) // 4
        cls = getattr(errors, name)
        assert cls.__bases__ == (parents[depth],)
        assert cls.status == int(status or 500)
        parents[depth + 1 :] = [cls]
    assert len(drawn) == len(ours())


def test_over_quota_says_when_to_come_again():
    assert OverQuota("full", retry_after_s=2.5).retry_after_s == 2.5
