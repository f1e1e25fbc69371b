"""Offline batches over a real engine: every line is answered once, whatever comes between."""

import json
import tracemalloc

import pytest

from engine.errors import BadRequest
from engine.server.jobs import lines
from engine.server.jobs.batch_lines import look_through
from engine.server.jobs.faults import InUse, NoSpace, NoSuchObject
from engine.server.jobs.lines import Reader, lines_of
from engine.server.keys import Holder
from engine.server.settings import LimitsSettings
from engine.settings import AllowanceSettings, QuotaSettings

NAMES = [f"request-{number}" for number in range(30)]


def custom_ids(lines):
    return [each["custom_id"] for each in lines]


def test_every_line_is_answered_and_the_counts_are_true(yard):
    batch = yard.batch(*NAMES, metadata={"why": "test"})
    assert yard.status(batch) == "validating"
    yard.pass_s(30)
    found, output = yard.find(batch), yard.output(batch)
    assert (found.status, found.total, found.completed, found.failed) == ("completed", 30, 30, 0)
    assert sorted(custom_ids(output)) == sorted(yard.names()) == sorted(NAMES)
    one = output[0]
    assert one["error"] is None
    assert one["id"].startswith("batch_req_")
    assert (one["response"]["status_code"], bool(one["response"]["request_id"])) == (200, True)
    body = one["response"]["body"]
    assert (body["object"], body["usage"]["completion_tokens"]) == ("chat.completion", 20)
    used = [each["response"]["body"]["usage"] for each in output]
    assert found.used.output_tokens == sum(each["completion_tokens"] for each in used) == 600
    assert found.used.input_tokens == sum(each["prompt_tokens"] for each in used)
    told = found.as_dict()
    assert (told["model"], told["metadata"], told["errors"]) == ("llama", {"why": "test"}, None)
    assert told["error_file_id"] is None, "an empty file is none"
    times = [told[f"{name}_at"] for name in ("created", "in_progress", "finalizing", "completed")]
    assert times == sorted(times)
    file = yard.jobs.files.find(told["output_file_id"], "acme")
    assert (file.purpose, file.name) == ("batch_output", f"{batch}_output.jsonl")


def test_requests_are_made_in_the_name_of_whoever_made_the_batch(yard):
    holder = Holder(id="k", tenant="acme", models=frozenset({"llama"}), max_priority=3, digest=b"secret")
    yard.batch("a", holder=holder)
    yard.pass_s(5)
    ((_, asked_by),) = yard.asked
    assert (asked_by.id, asked_by.tenant, asked_by.models, asked_by.max_priority) == (
        "k",
        "acme",
        frozenset({"llama"}),
        3,
    )
    assert asked_by.digest == b"", "the key is not kept"


def test_the_tokens_are_on_the_tenant_s_account(yards, settings):
    settings.quotas = QuotaSettings(limits=[AllowanceSettings(tenant="*", hourly_tokens=100_000)])
    yard = yards()
    batch = yard.batch("a", "b")
    yard.pass_s(5)
    used = yard.find(batch).used
    (book,) = [book for book in yard.engine.quotas.ledger("llama@1.0.0", "acme").books if book.tenant]
    assert book.spent_tokens == used.input_tokens + used.output_tokens > 40


BAD = {
    "no json": (b"{", "invalid_json_line"),
    "no object": (b"[1]", "invalid_request"),
    "no custom_id": (b'{"method": "POST", "url": "/v1/chat/completions", "body": {}}', "invalid_request"),
    "bad utf-8": (b'{"custom_id": "\xff"}', "invalid_json_line"),
    "deep": (b'{"custom_id": "x", "method": "POST", "body": ' + b"[" * 10_000, "invalid_json_line"),
}


@pytest.mark.parametrize("bad", sorted(BAD))
def test_a_line_that_is_no_request_fails_the_batch_and_nothing_is_asked(yard, bad):
    data, code = BAD[bad]
    batch = yard.batch("a", data, "b")
    yard.pass_s(5)
    found = yard.find(batch)
    assert (found.status, [(each.code, each.line) for each in found.errors]) == ("failed", [(code, 2)])
    assert yard.asked == []
    assert found.as_dict()["errors"]["data"][0].message


def test_what_is_wrong_with_requests_is_told_by_line_and_field(yard, request_line):
    batch = yard.batch(
        request_line("a", method="GET"),
        request_line("b", url="/v1/completions"),
        request_line("c"),
        request_line("c"),
        request_line(""),
        request_line("d", body={"stream": True}),
    )
    yard.pass_s(5)
    told = [(each.code, each.line, each.param) for each in yard.find(batch).errors]
    assert told == [
        ("invalid_method", 1, "method"),
        ("mismatched_url", 2, "url"),
        ("duplicate_custom_id", 4, "custom_id"),
        ("invalid_custom_id", 5, "custom_id"),
        ("invalid_request", 6, "stream"),
    ]


def test_an_empty_file_one_with_too_many_lines_and_one_with_a_line_too_long(yards):
    yard = yards(max_batch_requests=2, limits=LimitsSettings(max_body_bytes=1024))
    several = [yard.batch(b"", b"  "), yard.batch("a", "b", "c"), yard.batch("a", b"x" * 5000)]
    yard.pass_s(5)
    codes = [[(each.code, each.line) for each in yard.find(batch).errors] for batch in several]
    assert codes == [[("empty_file", None)], [("too_many_tasks", None)], [("line_too_long", 2)]]


def test_a_request_that_the_engine_refuses_is_in_the_error_file(yard, request_line):
    batch = yard.batch("a", request_line("wrong", body={"model": "unknown"}), "b")
    yard.pass_s(10)
    found, (error,) = yard.find(batch), yard.errors(batch)
    assert (found.status, found.completed, found.failed) == ("completed", 2, 1)
    assert (error["custom_id"], error["response"]["status_code"]) == ("wrong", 404)
    assert error["response"]["body"]["error"]["code"] == "model_not_found"
    assert found.as_dict()["error_file_id"] == found.error_file_id


def test_a_busy_fleet_is_given_nothing_more_at_once(yards):
    yard = yards(batch_concurrency=2)
    yard.is_idle = False
    batch = yard.batch(*NAMES)
    yard.pass_s(20)
    assert (yard.status(batch), yard.asked) == ("in_progress", [])
    yard.is_idle = True
    while len(yard.asked) < 5:
        yard.pass_s(0.01)
    yard.is_idle = False
    seen = len(yard.asked)
    yard.pass_s(60)
    assert len(yard.asked) == seen, "what was under way has ended, and nothing else was begun"
    assert len(yard.output(batch)) == seen
    assert yard.find(batch).completed == seen
    yard.is_idle = True
    yard.pass_s(60)
    assert yard.status(batch) == "completed"


def test_all_batches_share_so_many_places_and_take_turns(yards):
    yard = yards(batch_concurrency=3)
    first, second = yard.batch(*NAMES), yard.batch(*[f"other-{name}" for name in NAMES])
    yard.pass_s(60)
    assert yard.status(first) == yard.status(second) == "completed"
    assert yard.most_flying == 3
    begun = [name.startswith("other") for name in yard.names()]
    assert sum(begun[:30]) > 5, "the second does not wait for the first"


def test_a_limit_that_lifts_is_waited_for_and_is_no_failure(yards, settings):
    limit = AllowanceSettings(tenant="acme", requests_per_s=0.1, burst_requests=5)
    settings.quotas = QuotaSettings(limits=[limit], max_wait_s=0.0)
    yard = yards(batch_concurrency=1)
    batch = yard.batch(*NAMES[:10])
    yard.pass_s(10)
    asked = len(yard.asked)
    assert 5 <= asked <= 8
    yard.pass_s(60)
    found = yard.find(batch)
    assert (found.status, found.completed, found.failed) == ("completed", 10, 0)
    assert len(yard.asked) <= 10 + 7, "about one refusal for each wait"


def test_a_long_wait_gives_the_place_to_other_batches(yards, settings):
    limit = AllowanceSettings(tenant="acme", hourly_requests=5)
    settings.quotas = QuotaSettings(limits=[limit], max_wait_s=0.0)
    yard = yards(batch_concurrency=1, batches_at_once=1)
    blocked = yard.batch(*NAMES[:8])
    other = yard.batch("x", "y", holder=Holder(id="k2", tenant="other"))
    yard.pass_s(60)
    assert yard.status(other) == "completed"
    assert (yard.status(blocked), yard.find(blocked).completed) == ("in_progress", 5)
    (job,) = yard.jobs.store.page(state="queued", kind="batch")
    assert job.attempts == 0
    yard.pass_s(3600)
    assert yard.status(blocked) == "completed"
    assert sorted(custom_ids(yard.output(blocked))) == sorted(NAMES[:8])


def test_what_fails_on_our_side_is_asked_for_again_and_then_told(yard, monkeypatch):
    tries = []

    async def ask(*_):
        tries.append(yard.now_s())
        return 500, {}, b'{"error": {"message": "broken"}}'

    monkeypatch.setattr(yard.jobs._office, "ask", ask)
    batch = yard.batch("a")
    yard.pass_s(60)
    (error,) = yard.errors(batch)
    assert (len(tries), error["response"]["status_code"]) == (3, 500)
    assert tries[2] - tries[1] > tries[1] - tries[0] >= 4
    assert yard.status(batch) == "completed"


def test_a_cancelled_batch_keeps_what_it_has_and_says_what_it_has_not(yards):
    yard = yards(batch_concurrency=2)
    batch = yard.batch(*NAMES)
    while len(yard.output(batch)) < 5:
        yard.pass_s(0.01)
    cancelling = yard.do(yard.jobs.cancel_batch(batch, "acme"))
    assert cancelling.status == "cancelling"
    yard.pass_s(5)
    found = yard.find(batch)
    assert (found.status, found.completed + found.failed) == ("cancelled", 30)
    assert found.completed == len(yard.asked) < 10, "what was under way is there"
    codes = {each["error"]["code"] for each in yard.errors(batch)}
    assert codes == {"batch_cancelled"}
    assert sorted(custom_ids(yard.output(batch) + yard.errors(batch))) == sorted(NAMES)
    told = found.as_dict()
    assert told["cancelling_at"] is not None
    assert told["cancelled_at"] is not None
    with pytest.raises(BadRequest, match="is cancelled, but must be validating or in_progress"):
        yard.do(yard.jobs.cancel_batch(batch, "acme"))


def test_a_batch_whose_turn_never_came_is_cancelled_at_once(yards):
    yard = yards(batches_at_once=1)
    yard.is_idle = False
    first, second = yard.batch("a"), yard.batch("b")
    yard.pass_s(2)
    assert yard.do(yard.jobs.cancel_batch(second)).status == "cancelled"
    assert yard.find(second).as_dict()["output_file_id"] is None
    job = yard.do(yard.jobs.cancel(yard.find(first).job))  # an operator, by its job
    yard.pass_s(2)
    assert yard.status(first) == "cancelled"
    assert yard.jobs.store.find(job.id).state == "cancelled"


def test_a_batch_that_has_run_out_of_time_says_so_line_by_line(yards):
    yard = yards(batch_concurrency=1)
    batch = yard.batch(*NAMES)
    ends_s = yard.now_s() + 60  # and not a day: that is long in a test
    yard.jobs.batches.change(batch, lambda batch: setattr(batch, "expires_at", ends_s), 0)
    while len(yard.output(batch)) < 5:
        yard.pass_s(0.01)
    yard.is_idle = False
    yard.pass_s(60)
    found = yard.find(batch)
    assert (found.status, found.completed + found.failed) == ("expired", 30)
    assert {each["error"]["code"] for each in yard.errors(batch)} == {"batch_expired"}
    assert sorted(custom_ids(yard.output(batch) + yard.errors(batch))) == sorted(NAMES)


@pytest.mark.parametrize("moment", [1, 3, 17, 22])
def test_a_batch_of_a_process_that_was_cut_off_goes_on_behind_its_last_whole_line(yards, moment):
    first = yards(batch_concurrency=4)
    batch = first.batch(*NAMES)
    while len(first.output(batch)) < moment:
        first.pass_s(0.003)
    first.cut_off()
    path = first.jobs.files.path(first_output := first_file(first))
    done = custom_ids(map(json.loads, path.read_text().splitlines()))
    with path.open("ab") as file:
        file.write(
            b'{"id":"batch_req_torn","custom_id":"request-9","respon'
        )  # torn by the end of the process
    second = yards(at_s=100, batch_concurrency=4)
    second.pass_s(60)
    found = second.find(batch)
    assert (found.status, found.completed, found.output_file_id) == ("completed", 30, first_output)
    assert custom_ids(second.output(batch))[: len(done)] == done
    assert sorted(custom_ids(second.output(batch))) == sorted(NAMES)
    assert not set(second.names()) & set(done), "nothing is asked for that is answered"
    assert found.used.output_tokens == 600, "tokens of both lives"


def first_file(yard):
    """The id of an output, from the folder: the database is closed."""
    sizes = {path.name: path.read_text() for path in yard.jobs._database.files.iterdir()}
    return next(name for name, text in sizes.items() if text.startswith('{"id":"batch_req_'))


def test_a_batch_goes_on_after_a_process_that_ends_well_too(yards):
    first = yards(batch_concurrency=2)
    batch = first.batch(*NAMES)
    while len(first.output(batch)) < 7:
        first.pass_s(0.01)
    first.do(first.jobs.close())
    asked = len(first.asked)
    first.clock.close()
    second = yards(at_s=60, batch_concurrency=2)
    second.pass_s(60)
    assert sorted(custom_ids(second.output(batch))) == sorted(NAMES)
    assert asked + len(second.asked) == 30, "what was under way was waited for"


def test_a_batch_that_was_being_cancelled_when_the_process_ended_is_cancelled(yards):
    first = yards(batch_concurrency=1)
    batch = first.batch(*NAMES)
    while len(first.output(batch)) < 3:
        first.pass_s(0.01)
    first.jobs.batches.cancel(batch, "acme", first.jobs.unix_ns())
    first.cut_off()
    second = yards(at_s=60)
    second.pass_s(10)
    assert second.status(batch) == "cancelled"
    assert second.asked == []
    assert len(second.output(batch)) + len(second.errors(batch)) == 30


def test_lines_that_the_disk_refuses_are_asked_for_again_and_the_file_stays_whole(yard, monkeypatch):
    faults = [3, 4]
    pwrite = lines.os.pwrite

    def failing(number, data, offset):
        if data[:5] == b'{"id"' and faults and len(yard.asked) > faults[0]:
            faults.pop(0)
            pwrite(number, data[:10], offset)
            raise OSError(28, "No space left on device")
        return pwrite(number, data, offset)

    monkeypatch.setattr(lines.os, "pwrite", failing)
    batch = yard.batch(*NAMES)
    yard.pass_s(120)
    assert faults == []
    assert (yard.status(batch), yard.find(batch).completed) == ("completed", 30)
    assert sorted(custom_ids(yard.output(batch))) == sorted(NAMES)


def test_a_batch_that_nobody_tries_any_more_has_failed_and_keeps_what_it_has(yards, monkeypatch):
    yard = yards(max_attempts=2, batch_concurrency=1)

    async def ask(path, body, holder):
        if len(yard.asked) >= 5:
            raise RuntimeError("a defect")
        return await yard.ask(path, body, holder)

    monkeypatch.setattr(yard.jobs._office, "ask", ask)
    batch = yard.batch(*NAMES)
    yard.pass_s(60)
    found = yard.find(batch)
    assert (found.status, [each.message for each in found.errors]) == ("failed", ["a defect"])
    assert len(yard.output(batch)) == 5
    assert found.as_dict()["output_file_id"] is not None


def test_a_batch_whose_job_is_gone_has_failed(yards):
    first = yards()
    first.is_idle = False
    batch = first.batch("a")
    with first.jobs._database.change() as database:
        database.execute("DELETE FROM jobs WHERE kind = 'batch'")
    first.cut_off()
    second = yards(at_s=10)
    assert second.status(batch) == "failed"


def test_a_key_that_is_revoked_ends_its_batches(yards):
    known = {}
    yard = yards(holder_of=known.get)
    batch = yard.batch("a")
    yard.pass_s(5)
    assert yard.asked == []
    (error,) = yard.find(batch).errors
    assert error.code == "key_gone"
    known["key-1"] = Holder(id="key-1", tenant="acme", max_priority=7)
    again = yard.batch("b")
    yard.pass_s(5)
    assert yard.status(again) == "completed"
    assert yard.asked[0][1] is known["key-1"]


def test_a_tenant_sees_nothing_of_another_one_s(yard):
    batch = yard.batch("a")
    file = yard.find(batch).input_file_id
    with pytest.raises(NoSuchObject):
        yard.jobs.batches.find(batch, "other")
    with pytest.raises(NoSuchObject):
        yard.do(yard.jobs.cancel_batch(batch, "other"))
    with pytest.raises(NoSuchObject):
        yard.do(yard.jobs.create_batch(Holder(id="", tenant="other"), "/v1/chat/completions", file))
    assert yard.jobs.batches.page("other") == ([], False)
    with pytest.raises(NoSuchObject):
        yard.jobs.batches.page("other", after=batch)


def test_an_input_stays_as_long_as_it_is_read(yard):
    yard.is_idle = False
    batch = yard.batch("a")
    file = yard.find(batch).input_file_id
    with pytest.raises(InUse, match=f"is read by batch '{batch}'"):
        yard.jobs.files.delete(file, "acme")
    yard.is_idle = True
    yard.pass_s(5)
    yard.jobs.files.delete(file, "acme")


def test_no_more_batches_wait_than_a_tenant_may_have(yards):
    yard = yards(max_tenant_batches=2)
    yard.is_idle = False
    yard.batch("a"), yard.batch("b")
    with pytest.raises(NoSpace, match="2 batches of this tenant are not over yet"):
        yard.batch("c")
    yard.batch("c", holder=Holder(id="k", tenant="other"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_may_begin_with_a_mark_of_utf_8(mark, request_line, folder):
    path = folder.with_name("marked.jsonl")
    path.write_bytes(mark + request_line("a") + b"\n" + request_line("b") + b"\n")
    found = look_through(path, "/v1/chat/completions", max_line_bytes=10_000, max_requests=10)
    assert (found.total, found.problems) == (2, [])
    assert [line.data for line in lines_of(path, 10_000)] == [request_line("a"), request_line("b")]
    path.write_bytes(request_line("a") + b"\n" + mark + request_line("b") + b"\n")
    found = look_through(path, "/v1/chat/completions", max_line_bytes=10_000, max_requests=10)
    assert [problem.line for problem in found.problems] == ([2] if mark else []), "only before the first line"


def test_memory_is_flat_however_many_lines_there_are(request_line, folder):
    path = folder.with_name("many.jsonl")
    with path.open("wb") as file:
        for number in range(4_000):
            file.write(request_line(f"{number:0450}") + b"\n")
    tracemalloc.start()
    found = look_through(path, "/v1/chat/completions", max_line_bytes=10_000, max_requests=50_000)
    reader, count = Reader(lines_of(path, 10_000)), 0
    while some := reader.next():
        count += len(some)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.total, found.model, found.problems, count) == (4_000, "llama", [], 4_000)
    assert peak_bytes < (3 << 20) < path.stat().st_size
