"""The audit log: what stands in a line, what never does, how files are rotated, and what a full disk costs."""

import errno
import json
import math
import os
import stat
import subprocess
import sys
from dataclasses import dataclass

import pytest

from engine.errors import BadSettings
from engine.server.audit import AuditLog, AuditSink, open_audit
from engine.server.settings import AuditSettings
from engine.telemetry import Admitted, Ended, HttpAnswered, ModeChanged, RouterChanged, Telemetry

KEY = "my-gNxB4yoCodf-GSMNunOEJ68c67l1AV6TVsGFTOrj_Yc"


class Clock:
    """Two numbers in the place of time."""

    epoch_ns = 1_798_761_600 * 10**9  # 2027-01-01

    def now_ns(self):
        return 1_234_567_890


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audit(path):
    made = AuditLog(path, Clock())
    yield made
    made.close()


def facts(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_fact_says_who_did_what_to_whom(audit, path):
    assert audit.write(
        "k1", "model.unload", "phi-4@1.0.0",
        before={"state": "healthy"}, after={"state": "unloaded"}, request_id="req-7", remote="127.0.0.1",
    )  # fmt: skip
    assert path.read_bytes().endswith(b"\n")
    (fact,) = facts(path)
    assert list(fact.items()) == [
        ("time", "2027-01-01T00:00:01.234Z"),
        ("who", "k1"),
        ("action", "model.unload"),
        ("subject", "phi-4@1.0.0"),
        ("before", {"state": "healthy"}),
        ("after", {"state": "unloaded"}),
        ("outcome", "done"),
        ("request_id", "req-7"),
        ("remote", "127.0.0.1"),
    ]
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0


def test_every_fact_has_the_same_fields(audit, path):
    audit.write("system", "a", "b")
    audit.write("k", "c", "d", before=1, after=2.5, outcome="refused", request_id=3, remote="::1", at_ns=0)
    one, other = facts(path)
    assert list(one) == list(other)
    assert other["time"] == "2027-01-01T00:00:00.000Z"
    assert (one["before"], one["request_id"]) == (None, None)
    assert (other["before"], other["after"], other["request_id"]) == (1, 2.5, 3)


@dataclass
class Given:
    name: str
    headers: dict


@pytest.mark.parametrize(
    "secret",
    [
        {"after": {"note": f"use {KEY} for it"}},
        {"after": {"list": [{"deep": (KEY,)}]}},
        {"after": {KEY: 1}},
        {"subject": KEY},
        {"who": f"Bearer {KEY}"},
        {"request_id": KEY},
        {"outcome": f"no model is called {KEY}"},
        {"before": {"messages": [{"role": "user", "content": "my dear diary"}]}},
        {"before": {"Prompt": "my dear diary"}},
        {"after": Given("otlp", {"x-token": "dear diary"})},
        {"after": {"api_key": "dear diary"}},
    ],
    ids=range(11),
)
def test_no_key_and_no_prompt_is_in_it(audit, path, secret):
    audit.write(**{"who": "k", "action": "a", "subject": "s", **secret})
    text = path.read_text()
    assert KEY not in text
    assert KEY[3:] not in text
    assert "diary" not in text


@pytest.mark.parametrize(
    "value",
    [
        "two\nlines\r\u2028\x00\x1b[31m",
        "\ud800 half a character",
        math.nan,
        {"n": math.inf, "\udfff": 1},
        {1: {2: {3: {4: {5: {6: {7: {8: {9: {10: 11}}}}}}}}}},
        object(),
        b"\xff",
        ["x"] * 10_000,
        "x" * 1_000_000,
        {f"name {number}": "x" * 10_000 for number in range(10_000)},
    ],
    ids=range(10),
)
def test_a_fact_is_one_line_of_bounded_size_whatever_is_in_it(audit, path, value):
    assert audit.write("k", "a", "s", before=value, after={"value": value})
    audit.write("k", "next", "s")
    assert [fact["action"] for fact in facts(path)] == ["a", "next"]
    assert path.read_bytes().count(b"\n") == 2
    assert len(path.read_bytes()) < 80_000


# rotation


def test_files_are_moved_aside_whole_and_nothing_is_lost(path):
    audit = AuditLog(path, Clock(), max_bytes=4096, keep=50)
    for number in range(300):
        audit.write("k", "a", f"subject {number}", after={"padding": "x" * (number % 97)})
    audit.close()
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 51))]
    parts = [each for each in reversed(names) if each.exists()]
    assert len(parts) > 10
    assert all(part.stat().st_size <= 4096 and part.read_bytes().endswith(b"\n") for part in parts)
    told = [fact["subject"] for part in parts for fact in facts(part)]
    assert told == [f"subject {number}" for number in range(300)]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_only_so_many_old_files_stay(path, keep):
    audit = AuditLog(path, Clock(), max_bytes=4096, keep=keep)
    for number in range(200):
        audit.write("k", "a", f"{number}")
    audit.close()
    old = sorted(each.name for each in path.parent.glob("audit.jsonl.*"))
    assert old == [f"audit.jsonl.{number}" for number in range(1, keep + 1)]
    assert facts(path)[-1]["subject"] == "199"


def test_a_line_that_is_longer_than_a_file_has_one_for_itself(path):
    audit = AuditLog(path, Clock(), max_bytes=4096, keep=5)
    for number in range(3):
        audit.write("k", "a", f"{number}", after=["x" * 200] * 60)
    audit.close()
    assert [fact["subject"] for fact in facts(path)] == ["2"]
    assert [fact["subject"] for fact in facts(path.with_name("audit.jsonl.2"))] == ["0"]


def test_what_is_there_is_added_to(path):
    for life in range(3):
        audit = AuditLog(path, Clock())
        audit.write("k", "a", f"life {life}")
        audit.close()
    assert [fact["subject"] for fact in facts(path)] == ["life 0", "life 1", "life 2"]


def test_a_line_that_a_crash_cut_short_spoils_no_other(path):
    path.write_bytes(b'{"time": "2026-')
    audit = AuditLog(path, Clock())
    audit.write("k", "a", "s")
    audit.close()
    torn, whole = path.read_bytes().splitlines()
    assert torn == b'{"time": "2026-'
    assert json.loads(whole)["subject"] == "s"


# what goes wrong


def test_a_full_disk_stops_nobody_and_is_counted(audit, path, monkeypatch):
    audit.write("k", "a", "before")
    write = os.write
    monkeypatch.setattr(os, "write", _filling(write))
    assert not audit.write("k", "a", "lost")
    monkeypatch.setattr(os, "write", write)
    assert audit.write("k", "a", "after")
    assert [fact["subject"] for fact in facts(path)] == ["before", "after"]
    figures = {figure.name: figure.values[()] for figure in audit.figures()}
    assert figures == {"modelyard:audit_facts": 2.0, "modelyard:audit_failures": 1.0}


def _filling(write):
    """A disk that takes twenty bytes more."""
    left = [20]

    def fill(number, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(number, bytes(data)[: left[0]])
        left[0] -= done
        return done

    return fill


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
def test_a_device_that_is_always_full_is_counted(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    audit = AuditLog(path, Clock())
    assert not audit.write("k", "a", "s")
    assert audit.num_lost == 1
    audit.close()


def test_two_servers_cannot_have_one_file(audit, path):
    with pytest.raises(BadSettings, match="another server writes it"):
        AuditLog(path, Clock())
    audit.close()
    AuditLog(path, Clock()).close()


@pytest.mark.parametrize("what", ["folder", "below a file", "forbidden"])
def test_what_cannot_be_written_is_refused_at_the_start(path, what, monkeypatch):
    if what == "folder":
        path.mkdir()
    elif what == "below a file":
        path.write_text("")
        path = path / "audit.jsonl"
    else:
        refused = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(BadSettings, match=r"server\.audit\.file is .* cannot be written"):
        AuditLog(path, Clock())


def test_a_process_that_is_killed_leaves_whole_lines_and_no_lock(path):
    code = (
        "import os, sys; from pathlib import Path; from engine.server.audit import AuditLog\n"
        "class Clock:\n epoch_ns = 0\n def now_ns(self): return 0\n"
        "audit = AuditLog(Path(sys.argv[1]), Clock())\n"
        "for number in range(100): audit.write('k', 'a', str(number))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    audit = AuditLog(path, Clock())
    audit.write("k", "a", "100")
    audit.close()
    assert [fact["subject"] for fact in facts(path)] == [str(number) for number in range(101)]


def test_the_settings_say_whether_there_is_one(path):
    assert open_audit(AuditSettings(), Clock()) is None
    audit = open_audit(AuditSettings(file=str(path), sync=True, max_bytes=4096, keep=1), Clock())
    audit.write("k", "a", "s")
    audit.close()
    assert len(facts(path)) == 1


# what the engine tells


def ended(outcome, reason):
    return Ended(
        at_ns=5, request_id=9, tenant="acme", session=None, model_requested="auto", arrival_ns=1,
        prompt_tokens=12, outcome=outcome, reason=reason, model="phi-4@1.0.0",
    )  # fmt: skip


def answered(status, **about):
    return HttpAnswered(7, "req-1", "POST", "/v1/chat/completions", status, 10, client="10.0.0.9", **about)


def test_refusals_and_changes_of_mode_are_put_down(audit, path):
    telemetry = Telemetry(Clock(), [AuditSink(audit)])
    telemetry.emit(ended("rejected", "over_quota"))
    telemetry.emit(answered(401, error="invalid_api_key"))
    telemetry.emit(answered(429, error="rate_limit_exceeded", key_id="k1", tenant="acme", request_id=9))
    telemetry.emit(ModeChanged(8, "phi-4", None, "normal", "warning", "hourly tokens at 80 %"))
    telemetry.emit(ModeChanged(8, None, None, "warning", "emergency", "operator k2"))
    telemetry.emit(RouterChanged(9, "a", "ejected", "too slow"))
    told = [(fact["who"], fact["action"], fact["subject"], fact["outcome"]) for fact in facts(path)]
    assert told == [
        ("tenant acme", "request.refused", "phi-4@1.0.0", "over_quota"),
        ("nobody", "http.refused", "POST /v1/chat/completions", "invalid_api_key"),
        ("k1", "http.refused", "POST /v1/chat/completions", "rate_limit_exceeded"),
        ("system", "mode.changed", "model phi-4", "done"),
        ("operator k2", "mode.changed", "the service", "done"),
        ("system", "router.changed", "a", "done"),
    ]
    _, wrong_key, over_quota, mode, _, _ = facts(path)
    assert (wrong_key["remote"], wrong_key["request_id"]) == ("10.0.0.9", "req-1")
    assert over_quota["after"] == {"status": 429, "tenant": "acme", "request": 9}
    assert (mode["before"], mode["after"]["mode"]) == ("normal", "warning")
    assert mode["time"] == "2027-01-01T00:00:00.000Z"


def test_what_was_not_refused_is_not_put_down(audit, path):
    telemetry = Telemetry(Clock(), [AuditSink(audit)])
    for outcome, reason in (("completed", None), ("failed", "replica_lost"), ("cancelled", "cancelled")):
        telemetry.emit(ended(outcome, reason))
    for status in (200, 400, 404, 422, 499, 500):
        telemetry.emit(answered(status))
    telemetry.emit(Admitted(1, 9, 0))
    assert path.read_bytes() == b""


def test_it_wants_no_event_that_it_does_not_put_down(audit):
    telemetry = Telemetry(Clock(), [AuditSink(audit)])
    assert not telemetry.wants(Admitted)
    assert telemetry.wants(Ended)
