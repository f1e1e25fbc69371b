"""What a running server leaves in its log and its traces: one trace a choice, a line a fact, and nothing said."""

import json

import pytest

from engine.server.settings import LogSettings, ServerSettings, TraceSettings
from tests.engine.server.conftest import modelled, running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEY = "sk-proj-abcdefgh12345678"
WORDS = {
    "model": "llama",
    "max_tokens": 4,
    "n": 2,
    "messages": [{"role": "user", "content": "a secret wish"}],
}


def served(folder, content):
    """The lines and the spans of a server that was asked two things; the second names a key instead of a model."""
    settings = ServerSettings(
        port=0,
        admin_port=None,
        log=LogSettings(file=str(folder / "log"), level="debug", content=content),
        traces=TraceSettings(file=str(folder / "traces"), content=content),
    )
    with running(modelled(), settings) as server:
        client = server.http()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-session-id": "ada@example.org"}
        assert client.post("/v1/chat/completions", json=WORDS, headers=headers).status_code == 200
        assert client.post("/v1/chat/completions", json={**WORDS, "model": KEY}).status_code == 404
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    spans = []
    for line in (folder / "traces").read_text().splitlines():
        spans += json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return lines, spans


@pytest.mark.parametrize("content", [False, True], ids=["veiled", "with content"])
def test_a_server_tells_each_request_once_and_what_was_said_only_where_asked(tmp_path, content):
    lines, spans = served(tmp_path, content)
    ours = [span for span in spans if span["traceId"] == TRACE]
    roots = [span for span in ours if span["parentSpanId"] == PARENT]
    assert [root["name"] for root in roots] == ["chat llama", "chat llama"]
    for root in roots:
        keys = {pair["key"] for pair in root["attributes"]}
        assert {"modelyard.routing.chosen", "gen_ai.request.max_tokens", "server.address"} <= keys
        assert ("gen_ai.input.messages" in keys) is content
        children = [span["name"] for span in ours if span["parentSpanId"] == root["spanId"]]
        assert children == ["load", "admit", "transfer", "queue", "prefill", "decode"]
    of_trace = [line["event"] for line in lines if line.get("trace_id") == TRACE]
    assert of_trace.count("request_ended") == 2
    assert of_trace.count("http_answered") == 1
    answered = [(line["status"], line["route"]) for line in lines if line["event"] == "http_answered"]
    assert answered == [(200, "/v1/chat/completions"), (404, "/v1/chat/completions")]
    told = json.dumps([lines, spans])
    assert ("a secret wish" in told) is content
    assert KEY not in told
    assert ("ada@example.org" in json.dumps(lines)) is content
    assert "ada@example.org" not in json.dumps(spans)


@pytest.mark.parametrize("name", ["traceparent", "tracestate"])
def test_a_trace_that_cannot_be_read_refuses_nobody(tmp_path, name):
    traces = TraceSettings(file=str(tmp_path / "traces"))
    settings = ServerSettings(port=0, admin_port=None, log=LogSettings(level="off"), traces=traces)
    headers = {b"traceparent": f"00-{TRACE}-{PARENT}-01".encode(), name.encode(): b"\xff\xfe"}
    with running(modelled(), settings) as server:
        assert server.http().post("/v1/chat/completions", json=WORDS, headers=headers).status_code == 200
    assert (TRACE in (tmp_path / "traces").read_text()) is (
        name == "tracestate"
    )  # only what is damaged is left out
