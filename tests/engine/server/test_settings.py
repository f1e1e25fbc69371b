"""The server's settings check themselves: each bad value is refused with its name."""

import re

import pytest

from engine.errors import BadSettings
from engine.server.settings import (
    AuditSettings,
    JobSettings,
    LimitsSettings,
    LogSettings,
    ServerSettings,
    TraceSettings,
    is_loopback,
)

BAD = [
    (ServerSettings, "server", "port", -1),
    (ServerSettings, "server", "port", 65_536),
    (ServerSettings, "server", "admin_port", 70_000),
    (ServerSettings, "server", "admin_port", 8000),
    (ServerSettings, "server", "host", ""),
    (ServerSettings, "server", "admin_host", ""),
    (ServerSettings, "server", "keys_file", ""),
    (ServerSettings, "server", "default_max_tokens", 0),
    (ServerSettings, "server", "drain_s", -0.1),
    (ServerSettings, "server", "drain_s", float("nan")),
    (ServerSettings, "server", "host", "0.0.0.0"),  # noqa: S104
    (ServerSettings, "server", "host", "::"),
    (ServerSettings, "server", "host", "example.org"),
    (ServerSettings, "server", "admin_host", "10.0.0.1"),
    (LimitsSettings, "server.limits", "max_body_bytes", 1023),
    (LimitsSettings, "server.limits", "max_file_bytes", 0),
    (LimitsSettings, "server.limits", "max_header_bytes", 0),
    (LimitsSettings, "server.limits", "max_json_depth", 0),
    (LimitsSettings, "server.limits", "max_headers", -5),
    (LimitsSettings, "server.limits", "max_choices", 0),
    (LimitsSettings, "server.limits", "max_prompt_tokens", 0),
    (LimitsSettings, "server.limits", "max_output_tokens", 0),
    (LimitsSettings, "server.limits", "max_requests_per_key", 0),
    (LimitsSettings, "server.limits", "max_tools", -1),
    (LimitsSettings, "server.limits", "body_timeout_s", 0.0),
    (LimitsSettings, "server.limits", "write_timeout_s", float("inf")),
    (LimitsSettings, "server.limits", "keep_alive_s", float("nan")),
    (AuditSettings, "server.audit", "file", ""),
    (AuditSettings, "server.audit", "max_bytes", 10),
    (AuditSettings, "server.audit", "keep", -1),
    (LogSettings, "server.log", "level", "loud"),
    (LogSettings, "server.log", "max_per_s", 0),
    (LogSettings, "server.log", "keep", -1),
    (TraceSettings, "server.traces", "endpoint", "collector:4318"),
    (TraceSettings, "server.traces", "endpoint", "http://"),
    (TraceSettings, "server.traces", "endpoint", "http://collector:99999/v1/traces"),
    (TraceSettings, "server.traces", "endpoint", "http://a b/v1/traces"),
    (TraceSettings, "server.traces", "sample", 1.1),
    (TraceSettings, "server.traces", "sample", float("nan")),
    (TraceSettings, "server.traces", "file", ""),
    (TraceSettings, "server.traces", "max_waiting", 0),
    (JobSettings, "server.jobs", "folder", ""),
    (JobSettings, "server.jobs", "workers", 0),
    (JobSettings, "server.jobs", "batch_idle_below", -0.5),
    (JobSettings, "server.jobs", "scrub_every_s", 0.0),
    (JobSettings, "server.jobs", "health_every_s", 1e-10),
    (JobSettings, "server.jobs", "scrub_every_s", 1e10),
    (JobSettings, "server.jobs", "keep_s", 1e10),
    (JobSettings, "server.jobs", "retry_after_s", float("nan")),
    (JobSettings, "server.jobs", "max_attempts", 0),
    (JobSettings, "server.jobs", "batch_priority", 5_000),
    (JobSettings, "server.jobs", "max_batch_requests", 0),
]


@pytest.mark.parametrize(("cls", "key", "name", "value"), BAD, ids=range(len(BAD)))
def test_a_bad_value_is_refused_with_its_name(cls, key, name, value):
    with pytest.raises(
        BadSettings, match=rf"^{re.escape(key)}\.{name} is {re.escape(repr(value))}, but must"
    ):
        cls(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("a b", "c"), ("a", "b\nc: d"), ("a", "\u00e9")], ids=range(3))
def test_headers_of_traces_are_some(name, value):
    with pytest.raises(
        BadSettings, match=r"^server\.traces\.headers\.a( b)? is .* but must be a header's name"
    ):
        TraceSettings(headers={name: value})


def test_what_nobody_sets_can_be_served():
    settings = ServerSettings()
    assert (settings.host, settings.admin_host) == ("127.0.0.1", "127.0.0.1")
    assert settings.keys_file is None
    assert not settings.log.content
    assert not settings.traces.content
    assert not settings.traces.is_on


def test_a_door_to_elsewhere_asks_for_keys_unless_that_is_wanted():
    anywhere = {"host": "0.0.0.0", "admin_host": "0.0.0.0"}  # noqa: S104
    assert ServerSettings(**anywhere, keys_file="keys.jsonl").host == anywhere["host"]
    assert ServerSettings(**anywhere, allow_no_keys=True).host == anywhere["host"]
    assert ServerSettings(admin_host="10.0.0.1", admin_port=None).admin_port is None


def test_two_doors_may_both_be_any_free_one():
    assert ServerSettings(port=0, admin_port=0).admin_port == 0


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_only_the_machine_itself_is_loopback(host, is_it):
    assert is_loopback(host) is is_it
