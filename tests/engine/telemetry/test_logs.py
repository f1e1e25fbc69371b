"""The log: what each line says, what no line says, and what becomes of lines when there are too many."""

import asyncio
import io
import json
import logging
import os
import threading
from dataclasses import fields

import numpy as np
import pytest

from engine.clock import NS_PER_S, WallClock, to_ns
from engine.engine import Engine
from engine.errors import BadSettings
from engine.registry.health import Health
from engine.request import Request, Stream
from engine.telemetry import (
    Admitted,
    Arrived,
    Asked,
    AttemptLost,
    Content,
    Ended,
    Event,
    HealthChanged,
    HttpAnswered,
    ModelMoved,
    PrefixFound,
    Routed,
    SoftLimitPassed,
    StoreFailed,
    Telemetry,
)
from engine.telemetry.files import MAX_WAITING_BYTES, OpenStream, Outbox, RotatingFile
from engine.telemetry.logs import LEVEL_OF, Bucket, install_logging, level_of, log_sink

KEY = "my-" + "Ab3_-xYz9Q" * 4 + "abc"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class At:
    """A virtual clock whose time is set, and whose zero is a moment of 2027."""

    def __init__(self, clock):
        self._clock = clock
        self.epoch_ns = 1_798_761_600 * NS_PER_S
        self.ns = 0

    def __getattr__(self, name):
        return getattr(self._clock, name)

    def now_ns(self):
        return self.ns


@pytest.fixture
def at(clock):
    return At(clock)


@pytest.fixture
def make(at):
    """A log into a text, and what reads the lines of it."""

    def make(**options):
        stream = io.StringIO()
        sink = log_sink(at, stream=stream, **options)

        def lines():
            sink._outbox.drain()
            return [json.loads(line) for line in stream.getvalue().splitlines()]

        return sink, lines

    return make


def ended(number=1, outcome="completed", **more):
    given = {
        "tenant": "acme",
        "session": None,
        "model_requested": "llama",
        "arrival_ns": 0,
        "prompt_tokens": 3,
    }
    return Ended(at_ns=to_ns(1.5), request_id=number, outcome=outcome, **{**given, **more})


def answered(status=200, **more):
    return HttpAnswered(7, "req-1", "POST", "/v1/chat/completions", status, 5_000, **more)


def test_a_line_begins_with_time_level_and_name_and_has_every_field(make):
    sink, lines = make()
    sink.emit(ended(finish_reason="stop", output_tokens=9))
    (line,) = lines()
    assert list(line)[:3] == ["time", "level", "event"]
    assert line["time"] == "2027-01-01T00:00:01.500000Z"
    assert (line["level"], line["event"]) == ("info", "request_ended")
    assert set(line) == {"time", "level", "event", *(field.name for field in fields(Ended))}
    assert (line["finish_reason"], line["output_tokens"], line["tenant"]) == ("stop", 9, "acme")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "00:00:00.000000Z"),
        (999, "00:00:00.000000Z"),
        (59_999_999_999, "00:00:59.999999Z"),
        (3_600_000_001_000, "01:00:00.000001Z"),
    ],
)
def test_times_are_told_to_the_microsecond_and_never_rounded_up(make, ns, text):
    sink, lines = make(level="debug")
    sink.emit(Admitted(ns, 1, 0))
    assert lines()[0]["time"] == f"2027-01-01T{text}"


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (Arrived(0, 1, "t", None, "llama", 3, 4), "debug"),
        (ended(), "info"),
        (ended(outcome="rejected", reason="over_quota"), "info"),
        (ended(outcome="timed_out"), "warning"),
        (ended(outcome="failed"), "error"),
        (answered(200), "info"),
        (answered(429), "info"),
        (answered(401), "warning"),
        (answered(503), "error"),
        (HealthChanged(0, "a", Health.HEALTHY, Health.UNHEALTHY, "lost"), "error"),
        (HealthChanged(0, "a", Health.UNHEALTHY, Health.HEALTHY, "probes"), "info"),
        (ModelMoved(0, "llama", Health.LOADING, Health.UNHEALTHY, "no memory"), "error"),
        (AttemptLost(0, 1, 1, "a", 0), "warning"),
        (StoreFailed(0, "ssd", "full"), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_how_grave_it_is_decides_which_lines_there_are(make, event, level):
    order = ["debug", "info", "warning", "error"]
    for least in order:
        sink, lines = make(level=least)
        sink.emit(event)
        found = [line["level"] for line in lines()]
        assert found == ([level] if order.index(least) <= order.index(level) else [])


def test_what_makes_no_line_is_not_even_made(make, clock):
    telemetry = Telemetry(clock, [make(level="info")[0]])
    assert telemetry.wants(Ended)
    assert telemetry.wants(SoftLimitPassed)
    assert not any(telemetry.wants(kind) for kind in (Arrived, Routed, Admitted, PrefixFound, Content))
    assert all(Telemetry(clock, [make(level="debug")[0]]).wants(kind) for kind in (Arrived, Routed, Admitted))


def test_each_kind_that_could_be_grave_is_given_to_the_log(make):
    kinds = make(level="error")[0].kinds
    grave = {Ended, HttpAnswered, HealthChanged, ModelMoved, StoreFailed}
    assert {kind for kind in Event.__subclasses__() if kind in kinds} == grave | {
        Asked
    }  # which names the trace
    assert set(LEVEL_OF).isdisjoint(grave - {StoreFailed})


def test_a_log_that_is_off_is_none(at):
    assert log_sink(at, level="off") is None


def test_an_unknown_level_is_refused(at):
    with pytest.raises(
        BadSettings, match=r"log\.level is 'loud', but must be one of debug, info, warning, error"
    ):
        log_sink(at, level="loud")


def test_without_lines_of_requests_only_those_that_went_wrong_have_one(make):
    sink, lines = make(requests=False)
    for event in (
        ended(),
        answered(),
        ended(outcome="failed"),
        answered(500),
        ModelMoved(0, "m", "a", "b", "c"),
    ):
        sink.emit(event)
    assert [line["event"] for line in lines()] == ["request_ended", "http_answered", "model_state_changed"]


# whose trace it is


def test_lines_of_a_request_name_its_trace_until_it_has_ended(make):
    sink, lines = make()
    sink.emit(Asked(0, 7, "chat", TRACE))
    sink.emit(Asked(0, 8, "chat", ""))
    sink.emit(AttemptLost(1, 7, 1, "a", 0))
    sink.emit(AttemptLost(1, 8, 1, "a", 0))
    sink.emit(ended(7))
    sink.emit(AttemptLost(1, 7, 1, "a", 0))
    assert [line.get("trace_id") for line in lines()] == [TRACE, None, TRACE, None]
    assert not sink._trace_of


def test_requests_that_never_end_are_not_remembered_for_ever(make, monkeypatch):
    monkeypatch.setattr("engine.telemetry.logs.MAX_TRACES", 3)
    sink, lines = make()
    for number in range(5):
        sink.emit(Asked(0, number, "chat", f"{number:032x}"))
    for number in range(5):
        sink.emit(AttemptLost(1, number, 1, "a", 0))
    assert [line.get("trace_id", "")[-1:] for line in lines()] == ["", "", "2", "3", "4"]


# what no line says


def test_a_session_has_another_name_and_a_client_a_network(make):
    sink, lines = make()
    for session in ("ada@example.org", "ada@example.org", "bob@example.org"):
        sink.emit(ended(session=session))
    sink.emit(answered(client="203.0.113.77"))
    sink.emit(answered(client="2001:db8:1:2:3::4"))
    sink.emit(answered(client="a unix socket"))
    found = lines()
    one, again, other = [line["session"] for line in found[:3]]
    assert one == again != other
    assert len(one) == 16
    assert "example.org" not in str(found)
    assert [line["client"] for line in found[3:]] == ["203.0.113.0", "2001:db8:1::", "[redacted]"]
    sink, lines = make(content=True)
    sink.emit(ended(session="ada@example.org"))
    sink.emit(answered(client="203.0.113.77"))
    assert (lines()[0]["session"], lines()[1]["client"]) == ("ada@example.org", "203.0.113.77")


def test_what_is_said_is_only_in_a_log_that_was_asked_for_it(make, clock):
    said = Content(0, 1, "input", [{"role": "user", "content": "a secret wish"}])
    for content in (False, True):
        sink, lines = make(content=content, level="debug")
        telemetry = Telemetry(clock, [sink])
        assert telemetry.wants(Content) is content
        telemetry.emit(said)
        assert ("a secret wish" in str(lines())) is content


def test_no_sink_is_given_content_that_does_not_name_it(clock):
    class Nosy(list):
        emit = list.append

    sink = Nosy()
    telemetry = Telemetry(clock, [sink])
    telemetry.emit(Content(0, 1, "input", "x"))
    assert not telemetry.wants(Content)
    assert sink == []


def test_the_engine_tells_the_answer_only_to_who_wants_content(clock, make):
    request = Request(1, "llama", np.zeros(3, dtype=np.int32), 4, 0)
    sink, lines = make(content=True)
    with Telemetry(clock, [sink]).follow(request, Stream(text=["Hel", "lo"])):
        pass
    assert [(line["event"], line.get("body")) for line in lines()] == [
        ("request_content", "Hello"),
        ("request_ended", None),
    ]


SECRETS = (
    KEY,
    "sk-proj-abcdefgh12345678",
    "Bearer abcdefgh.12345678",
    "bearer\tabcdefgh12345678",
    "Basic dXNlcjpwYXNzd29yZA==",
    "hf_abcdefghijklmnopqrstuvwxyz",
    "AKIAABCDEFGHIJKLMNOP",
)


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:6])
@pytest.mark.parametrize("content", [False, True], ids=["veiled", "with content"])
def test_no_key_stands_in_any_line_wherever_it_came_in(make, secret, content):
    sink, lines = make(level="debug", content=content)
    whole = f"it says {secret}, and more"
    sink.emit(ended(tenant=secret, session=whole, model_requested=whole, reason=None))
    sink.emit(ModelMoved(0, "llama", Health.LOADING, Health.UNHEALTHY, whole))
    sink.emit(StoreFailed(0, "network", whole))
    sink.emit(Asked(0, 1, "chat", TRACE, trace_state=whole))
    sink.emit(HttpAnswered(0, whole, "GET", "", 404, 1, tenant=whole))
    sink.emit(Content(0, 1, "input", [{"role": "user", "content": whole, "more": [{"deep": whole}]}]))
    sink.write(logging.ERROR, "log", message=whole, exception=f"Traceback\n  {whole}")
    text = json.dumps(lines())
    assert len(lines()) == 7
    assert secret.split()[-1] not in text
    assert "[redacted]" in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("redis://user:hunter2secret@host:6379/0 is gone", "redis://[redacted]@host:6379/0 is gone"),
        ("redis://:hunter2secret@host", "redis://[redacted]@host"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer [redacted]"),
        ("GET /b?X-Amz-Signature=0123456789abcdef&x=1", "GET /b?X-Amz-Signature=[redacted]&x=1"),
        ("{'api_key': 'abcdef012345', 'a': 1}", "{'api_key': '[redacted]', 'a': 1}"),
        ("password=correcthorse;", "password=[redacted];"),
    ],
)
def test_passwords_leave_the_rest_to_be_read(make, text, left):
    sink, lines = make()
    sink.emit(StoreFailed(0, "network", text))
    assert lines()[0]["fault"] == left


@pytest.mark.parametrize(
    "text",
    [
        "prompt token 31337 is not in the vocabulary of 'my-model'",
        "http://10.0.0.1:8000/v1/models: connection refused",
        "the secret of a good name",
        "a key has 3 parts: id, tenant, name",
        "my-tenant-with-a-name sk-1 author's sign",
    ],
)
def test_ordinary_words_stay_as_they_are(make, text):
    sink, lines = make()
    sink.emit(StoreFailed(0, "network", text))
    assert lines()[0]["fault"] == text


def test_names_are_as_long_as_they_may_be_and_say_how_long_they_were(make):
    sink, lines = make()
    sink.emit(ended(model_requested="x" * 10_000, reason="not_found"))
    sink.emit(StoreFailed(0, "ssd", "y" * 1_000_000))
    assert lines()[0]["model_requested"] == "x" * 256 + "... (10000 characters)"
    assert len(lines()[1]["fault"]) < 10_000


@pytest.mark.parametrize(
    "name",
    ["two\nlines", "\x1b[31mred\x1b[0m", "\x9bC1", "\u202eback", "\u2028", "\ud800", 'a"\\b', "\0"],
    ids=ascii,
)
def test_whatever_a_name_holds_it_stays_on_its_line_and_moves_no_cursor(at, name):
    stream = io.StringIO()
    sink = log_sink(at, stream=stream)
    sink.emit(ended(tenant=name))
    sink.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isascii()
    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["tenant"] == name


def test_what_json_has_no_number_for_is_a_word(make):
    sink, lines = make()
    sink.emit(SoftLimitPassed(0, None, "t", "requests", float("nan"), float("inf"), 3.5))
    assert (lines()[0]["share"], lines()[0]["used"], lines()[0]["allowed"]) == ("nan", "inf", 3.5)


# how many


def test_a_bucket_lets_through_so_many_a_second_and_as_many_at_once():
    bucket = Bucket(5, 0)
    passed = [now_ns for now_ns in range(0, 10 * NS_PER_S, NS_PER_S // 20) if bucket.take(now_ns)]
    assert len(passed) == 5 + 5 * 10 - 1
    assert max(sum(begin <= at_ns < begin + NS_PER_S for at_ns in passed) for begin in passed) <= 10


def test_a_flood_of_one_kind_hides_no_other_and_no_error(make, at):
    sink, lines = make(max_per_s=2)
    for _ in range(50):
        sink.emit(ended())
        sink.emit(answered())
    sink.emit(ended(outcome="failed"))
    sink.emit(ModelMoved(0, "m", "a", "b", "c"))
    found = [(line["event"], line["level"]) for line in lines()]
    assert found.count(("request_ended", "info")) == found.count(("http_answered", "info")) == 2
    assert found[-2:] == [("request_ended", "error"), ("model_state_changed", "info")]
    told = lines()[-3]
    assert (told["event"], told["level"], told["lines"]) == ("logs_dropped", "warning", 96)
    assert told["counts"] == {"request_ended/info": 48, "http_answered/info": 48}
    at.ns = to_ns(1)
    sink.emit(ended())
    assert [line["event"] for line in lines()][-2:] == ["model_state_changed", "request_ended"]
    assert sink.num_dropped == 96


def test_what_was_left_out_is_told_once_a_second_and_at_the_end(make, at):
    sink, lines = make(max_per_s=1)
    for step in range(40):
        at.ns = step * NS_PER_S // 10
        sink.emit(ended())
    told = [line for line in lines() if line["event"] == "logs_dropped"]
    assert 3 <= len(told) <= 4
    sink.close()
    written = [line["event"] for line in lines()]
    told = sum(line["lines"] for line in lines() if line["event"] == "logs_dropped")
    assert written.count("request_ended") + told == 40


def test_a_log_without_a_bound_drops_nothing(make):
    sink, lines = make(max_per_s=None)
    for _ in range(3_000):
        sink.emit(answered())
    assert len(lines()) == 3_000


def test_figures_say_how_many_lines_there_are_and_are_not(make):
    sink, _ = make(max_per_s=3)
    for _ in range(10):
        sink.emit(ended())
    sink._outbox.num_lost = 4
    told = {
        (figure.name, labels): value for figure in sink.figures() for labels, value in figure.values.items()
    }
    assert told == {
        ("modelyard:log_lines", ()): 3,
        ("modelyard:log_lines_lost", ("too_many",)): 7,
        ("modelyard:log_lines_lost", ("unwritten",)): 4,
    }


# files


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def test_a_file_is_made_with_its_folders_and_appended_to(tmp_path, at):
    path = tmp_path / "var" / "log" / "modelyard.log"
    for _ in range(2):
        sink = log_sink(at, file=str(path))
        sink.emit(ended())
        sink.close()
    assert len(lines_of(path)) == 2
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_cannot_be_written_is_refused_with_its_name(tmp_path, at):
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadSettings, match=r"log.file is '.*taken/x', but cannot be written: "):
        log_sink(at, file=str(tmp_path / "taken" / "x"))


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_rotation_keeps_whole_lines_in_order_and_so_many_files(tmp_path, keep):
    path = tmp_path / "log"
    file = RotatingFile(path, 100, keep)
    written = [b"%04d %s\n" % (number, b"x" * (number % 30)) for number in range(60)]
    for begin in range(0, 60, 7):
        assert file.write(written[begin : begin + 7]) == 0
    file.close()
    names = ["log", *[f"log.{number}" for number in range(1, keep + 1)]]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names)
    kept = [line for name in reversed(names) for line in lines_of(tmp_path / name)]
    assert kept == written[-len(kept) :]
    assert all((tmp_path / name).stat().st_size <= 100 for name in names)


def test_a_line_larger_than_the_file_may_be_has_one_of_its_own(tmp_path):
    file = RotatingFile(tmp_path / "log", 10, 2)
    assert file.write([b"a\n", b"b" * 50 + b"\n", b"c\n"]) == 0
    file.close()
    assert [lines_of(tmp_path / name) for name in ("log.2", "log.1", "log")] == [
        [b"a\n"],
        [b"b" * 50 + b"\n"],
        [b"c\n"],
    ]


def test_after_reopen_lines_go_to_the_new_file(tmp_path, at):
    path = tmp_path / "log"
    sink = log_sink(at, file=str(path))
    sink.emit(ended(1))
    sink._outbox.drain()
    path.rename(tmp_path / "moved")
    sink.emit(ended(2))
    sink._outbox.drain()
    assert not path.exists()
    sink.reopen()
    sink.emit(ended(3))
    sink.close()
    assert [json.loads(line)["request_id"] for line in lines_of(tmp_path / "moved")] == [1, 2]
    assert [json.loads(line)["request_id"] for line in lines_of(path)] == [3]


def test_on_a_full_disk_lines_are_lost_whole_and_counted_and_it_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "log"
    file = RotatingFile(path, 10_000, 1)
    file.write([b"before\n"])
    real, room = os.write, [9]

    def write(descriptor, data):
        part = bytes(data)[: room[0]]
        if not part:
            raise OSError(28, "No space left on device")
        room[0] -= len(part)
        return real(descriptor, part)

    monkeypatch.setattr(os, "write", write)
    assert file.write([b"twelve bytes\n", b"more\n"]) == 2
    assert path.read_bytes() == b"before\n"
    room[0] = 1_000
    assert file.write([b"after\n"]) == 0
    file.close()
    assert path.read_bytes() == b"before\nafter\n"


def test_lines_that_could_not_be_written_are_counted(clock):
    class Full:
        def write(self, lines):
            return len(lines)

    outbox = Outbox(Full(), clock)
    for _ in range(3):
        outbox.put(b"x\n")
    outbox.drain()
    assert outbox.num_lost == 3


def test_a_stream_that_nobody_reads_loses_lines_and_raises_nothing():
    stream = io.StringIO()
    target = OpenStream(stream)
    assert target.write([b"a\n"]) == 0
    stream.close()
    assert target.write([b"b\n", b"c\n"]) == 2


class Held:
    """A target whose disk does nothing until it is let."""

    def __init__(self):
        self.go, self.begun, self.lines = threading.Event(), threading.Event(), []
        self.threads = set()

    def write(self, lines):
        self.begun.set()
        assert self.go.wait(60)
        self.threads.add(threading.get_ident())
        self.lines += lines
        return 0

    def close(self):
        pass


def test_a_disk_that_hangs_does_not_hold_up_the_loop_and_memory_is_bounded():
    async def main():
        clock = WallClock()
        held = Held()
        outbox = Outbox(held, clock)
        outbox.start()
        outbox.put(b"first\n")
        flushing = asyncio.ensure_future(outbox.flush())
        await asyncio.to_thread(held.begun.wait, 10)
        line = b"x" * (1 << 20) + b"\n"
        for _ in range(20):
            outbox.put(line)  # returns at once
        assert outbox.num_lost == 20 - MAX_WAITING_BYTES // len(line)
        held.go.set()
        await flushing
        await outbox.flush()
        await clock.close()
        return held

    held = asyncio.run(main())
    assert held.lines[0] == b"first\n"
    assert threading.get_ident() not in held.threads
    assert len(held.lines) == 1 + MAX_WAITING_BYTES // ((1 << 20) + 1)


def test_what_is_waiting_at_the_end_is_written_in_order():
    async def main():
        clock = WallClock()
        held = Held()
        outbox = Outbox(held, clock)
        outbox.start()
        outbox.put(b"1\n")
        flushing = asyncio.ensure_future(outbox.flush())
        await asyncio.to_thread(held.begun.wait, 10)
        outbox.put(b"2\n")
        held.go.set()
        outbox.close()  # while the first batch is being written
        await flushing
        await clock.close()
        return held.lines

    assert asyncio.run(main()) == [b"1\n", b"2\n"]


def test_a_started_log_writes_by_itself_and_tells_what_it_dropped(tmp_path):
    async def main():
        clock = WallClock()
        path = tmp_path / "log"
        sink = log_sink(clock, file=str(path), max_per_s=1)
        sink.start()
        for _ in range(5):
            sink.emit(answered())
        while len(lines_of(path)) < 2:  # noqa: ASYNC110  the file says nothing
            await asyncio.sleep(0.02)
        await clock.close()
        sink.close()
        return [json.loads(line) for line in lines_of(path)]

    first, told = asyncio.run(asyncio.wait_for(main(), 60))
    assert first["event"] == "http_answered"
    assert (told["event"], told["counts"]) == ("logs_dropped", {"http_answered/info": 4})


def test_many_threads_write_whole_lines(tmp_path, at):
    sink = log_sink(at, file=str(tmp_path / "log"), max_per_s=None)

    def write():
        for number in range(200):
            sink.write(logging.INFO, "log", message="x" * number)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    sizes = sorted(len(json.loads(line)["message"]) for line in lines_of(tmp_path / "log"))
    assert sizes == sorted([min(number, 8_192) for number in range(200)] * 4)


# Python's logging


def test_what_libraries_log_becomes_lines_and_no_key_does(make):
    sink, lines = make()
    undo = install_logging(sink, "lib")
    log = logging.getLogger("lib.part")
    logging.getLogger("lib").propagate = False  # what pytest listens with fails where a message does
    try:
        log.info("listening on %s", "0.0.0.0:80")
        log.debug("too small")
        log.critical("all is lost, and so is %s", KEY)
        try:
            raise ValueError(f"no such key: {KEY}")  # noqa: TRY301
        except ValueError:
            log.exception("a request\nfailed")
        log.warning("a mistake: %d", "no number")
    finally:
        undo()
    log.error("nobody hears")
    logging.getLogger("lib").propagate = True
    found = lines()
    assert [line["level"] for line in found] == ["info", "error", "error", "warning"]
    assert found[3]["message"] == "a mistake: %d ('no number',)"
    assert found[0]["message"] == "listening on 0.0.0.0:80"
    assert found[0]["logger"] == "lib.part"
    assert "Traceback" in found[2]["exception"]
    assert "ValueError: no such key: [redacted]" in found[2]["exception"]
    assert KEY not in str(found)
    assert logging.getLogger("lib").handlers == []
    assert logging.getLogger("lib").level == logging.NOTSET


# whole runs


def test_the_log_of_a_run_has_a_line_for_each_end_and_the_same_bytes_each_time(settings):
    from sim.world import SimClock  # noqa: PLC0415

    def told():
        clock, stream = SimClock(), io.StringIO()
        sink = log_sink(clock, stream=stream, level="debug")
        engine = Engine(settings, clock, [sink])
        engine.start()
        for number in range(4):
            prompt = np.full(40, 31_337, dtype=np.int32)
            request = Request(number, "llama", prompt, 3, 0, tenant="t", session="ada@example.org")
            clock.spawn(engine.serve(request))
        clock.env.run(until=to_ns(2))
        sink.close()
        clock.close()
        return stream.getvalue()

    text = told()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines].count("request_ended") == 4
    assert all(line["time"].startswith("1970-01-01T00:00:0") for line in lines)
    assert "31337" not in text
    assert "ada" not in text
    assert told() == text


def test_levels_of_events_that_nobody_thought_of_are_info():
    class New(Event):
        kind = "new"

    assert level_of(New(0)) == logging.INFO
