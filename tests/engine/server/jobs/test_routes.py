"""Files, batches and jobs over real HTTP: OpenAI's own client, operators, and those who mean harm."""

import argparse
import asyncio
import json
import threading
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse

from engine.clock import WallClock
from engine.command.jobs import add_jobs
from engine.engine import Engine
from engine.errors import BadSettings, EngineError, openai_answer
from engine.server.audit import open_audit
from engine.server.jobs import Jobs, admin_routes, public_routes
from engine.server.keys import Holder
from engine.server.public import Public
from engine.server.settings import AuditSettings, JobSettings, LimitsSettings, ServerSettings
from engine.telemetry import OwnCounts

LIMITS = LimitsSettings(max_file_bytes=100_000, max_body_bytes=16_384, body_timeout_s=0.5)


class Door:
    """The routes of both ports in one app; the key is the name of the tenant."""

    def __init__(self, settings, folder):
        self.settings, self.folder = settings, folder
        self.is_idle = True

    async def _run(self, told):
        self.settings.fleet.letters = True
        clock = WallClock()
        engine = Engine(self.settings, clock)
        engine.start()
        own = {"counts": OwnCounts(), "exposition": None, "trace_of": None}
        public = Public(engine, ServerSettings(limits=LIMITS), instance="t", **own)
        chosen = JobSettings(batch_check_every_s=0.02, max_tenant_files_bytes=150_000, max_tenant_files=20)
        self.jobs = jobs = Jobs(
            self.folder / "jobs", engine, clock, chosen, public.ask, lambda: self.is_idle, limits=LIMITS
        )
        jobs.start()
        audit = open_audit(AuditSettings(file=str(self.folder / "audit.jsonl")), clock)
        routes = [*public_routes(jobs), *admin_routes(jobs, audit)]
        app = Starlette(routes=routes, exception_handlers={EngineError: refuse})
        server = uvicorn.Server(uvicorn.Config(with_holder(app), port=0, log_config=None, lifespan="off"))
        server.install_signal_handlers = lambda: None
        self._stop = lambda: setattr(server, "should_exit", True)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.005)
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        told.set()
        await serving
        await jobs.close()
        await clock.close()
        engine.close()
        audit.close()

    @contextmanager
    def open(self):
        told = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._run(told)))
        thread.start()
        assert told.wait(60)
        try:
            yield self
        finally:
            self._stop()
            thread.join(60)

    def client(self, tenant="acme"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=tenant, max_retries=0)

    def http(self, tenant="acme"):
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {tenant}"}, timeout=60)


def refuse(_, error):
    answer = openai_answer(error)
    return JSONResponse(answer.body, answer.status, answer.headers)


def with_holder(app):
    async def let_in(scope, receive, send):
        shown = dict(scope["headers"]).get(b"authorization", b"root")
        key = shown.decode().removeprefix("Bearer ")
        scope["state"] = {"holder": Holder(id=f"key-of-{key}", tenant=key)}
        await app(scope, receive, send)

    return let_in


@pytest.fixture
def door(settings, tmp_path):
    with Door(settings, tmp_path).open() as door:
        yield door


def wait_for(client, batch, *statuses):
    for _ in range(2_000):
        found = client.batches.retrieve(batch.id)
        if found.status in statuses:
            return found
        threading.Event().wait(0.01)
    raise AssertionError(found)


def test_the_openai_client_uploads_runs_a_batch_and_reads_what_came_of_it(door, request_line):
    with door.client() as client:
        data = b"\n".join(request_line(f"r{number}", tokens=3) for number in range(12))
        file = client.files.create(file=("my requests.jsonl", data), purpose="batch")
        assert (file.object, file.bytes, file.purpose) == ("file", len(data), "batch")
        assert (file.filename, file.status) == ("my requests.jsonl", "processed")
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id).read() == data
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"a": "b"},
        )
        assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"a": "b"})
        done = wait_for(client, batch, "completed", "failed")
        assert (done.status, done.request_counts.completed, done.errors) == ("completed", 12, None)
        assert done.usage.output_tokens == 36
        lines = [json.loads(each) for each in client.files.content(done.output_file_id).text.splitlines()]
        assert {each["custom_id"] for each in lines} == {f"r{number}" for number in range(12)}
        assert {each["response"]["status_code"] for each in lines} == {200}
        assert [each.id for each in client.files.list(purpose="batch_output")] == [done.output_file_id]
        with pytest.raises(openai.BadRequestError, match="is completed, but must be validating"):
            client.batches.cancel(batch.id)
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)


def test_the_openai_client_pages_cancels_and_sees_why_a_batch_failed(door, request_line):
    door.is_idle = False
    with door.client() as client:
        file = client.files.create(file=("in.jsonl", request_line("a")), purpose="batch")
        bad = client.files.create(file=("bad.jsonl", b'{}\n{"a\n'), purpose="batch")
        window = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        several = [client.batches.create(input_file_id=file.id, **window) for _ in range(5)]
        ids = [batch.id for batch in reversed(several)]
        page = client.batches.list(limit=2)
        assert ([batch.id for batch in page.data], page.has_more) == (ids[:2], True)
        assert [batch.id for batch in client.batches.list(limit=2)] == ids
        with pytest.raises(openai.BadRequestError, match="is read by batch"):
            client.files.delete(file.id)
        for batch in several:
            client.batches.cancel(batch.id)
            assert wait_for(client, batch, "cancelled").cancelled_at is not None
        failed = client.batches.create(input_file_id=bad.id, **window)
        errors = wait_for(client, failed, "failed").errors.data
        assert [(each.code, each.line) for each in errors] == [
            ("invalid_request", 1),
            ("invalid_json_line", 2),
        ]


def test_another_tenant_finds_nothing(door, request_line):
    door.is_idle = False
    with door.client() as client, door.client("other") as other:
        file = client.files.create(file=("in.jsonl", request_line("a")), purpose="batch")
        window = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.batches.create(input_file_id=file.id, **window)
        for attempt in (
            lambda: other.files.retrieve(file.id),
            lambda: other.files.content(file.id),
            lambda: other.files.delete(file.id),
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.batches.create(input_file_id=file.id, **window),
            lambda: list(other.batches.list(after=batch.id)),
        ):
            with pytest.raises(openai.NotFoundError) as refusal:
                attempt()
            assert refusal.value.code == "not_found"
        assert (list(other.files.list()), list(other.batches.list())) == ([], [])


def test_uploads_that_are_too_large_wrong_or_never_end_leave_nothing(door):
    files = door.folder / "jobs" / "files"
    with door.http() as http:

        def upload(data=b"x", purpose="batch", name="in.jsonl", **fields):
            form = {"purpose": purpose, **fields}
            return http.post("/v1/files", files={"file": (name, data)}, data=form)

        def told(answer):
            return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]

        assert told(upload(b"x" * 300_000)) == (413, "request_too_large", None)
        assert told(upload(b"x" * 120_000)) == (413, "request_too_large", None)
        assert told(upload(purpose="vision")) == (400, "bad_request", "purpose")
        assert told(upload(other="1")) == (400, "bad_request", "other")
        short = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}
        for seconds in ("5", "000003600" + "0" * 9, "000003600" + "0" * 900):
            refused = 400, "bad_request", "expires_after[seconds]"
            assert told(upload(**short | {"expires_after[seconds]": seconds})) == refused
        assert told(http.post("/v1/files", json={})) == (400, "bad_request", None)
        assert told(http.post("/v1/files", data={"purpose": "batch"}))[0] == 400
        cut = {"content-type": "multipart/form-data; boundary=b"}
        part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nabc'
        assert told(http.post("/v1/files", content=part, headers=cut))[:2] == (400, "bad_request")
        assert told(http.post("/v1/files", content=b"--b\r\n" + b"\0" * 99, headers=cut))[0] == 400
        assert list(files.iterdir()) == []
        name = upload(name="../../../etc/passwd\x00;\r\nx.jsonl").json()["filename"]
        assert not set(name) & set("/\\\x00\r\n;")
        assert [path.name.startswith("file-") for path in files.iterdir()] == [True]
        kept = upload(**short | {"expires_after[seconds]": "3600"}).json()
        assert kept["expires_at"] == kept["created_at"] + 3600
        assert upload(b"x" * 90_000).status_code == 200
        assert told(upload(b"x" * 90_000)) == (400, "storage_limit_exceeded", None)
        assert len(list(files.iterdir())) == 3


def test_a_form_that_is_no_good_is_told_to_its_sender_and_to_nobody_else(door, caplog):
    """Whoever may upload could fill the terminal otherwise."""
    cut = {"content-type": "multipart/form-data; boundary=b"}
    with door.http() as http:
        for bad in (b"--b\r\nconte\x1bnt: x\r\n\r\n", b"--x"):
            answer = http.post("/v1/files", content=bad, headers=cut)
            assert answer.json()["error"]["message"].startswith("the form cannot be read: ")
    assert [record for record in caplog.records if "multipart" in record.name] == []


def test_an_upload_that_stops_coming_is_let_go(door):
    def slowly():
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nabc'
        threading.Event().wait(1.0)
        yield b"more"

    with door.http() as http:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = http.post("/v1/files", content=slowly(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
    assert list((door.folder / "jobs" / "files").iterdir()) == []


@pytest.mark.parametrize(
    ("ranges", "status", "said"),
    [
        ("bytes=1-2", 206, b"bc"),
        ("bytes=3-", 206, b"def"),
        ("bytes=-2", 206, b"ef"),
        ("bytes=-99", 206, b"abcdef"),
        ("bytes=1-2,99-", 206, b"bc"),
        ("BYTES=9-99 , 4-", 206, b"ef"),
        ("bytes=2-1", 200, b"abcdef"),
        ("bytes=a-b", 200, b"abcdef"),
        ("bytes=", 200, b"abcdef"),
        ("bytes=0-" + "9" * 5000, 200, b"abcdef"),
        ("pages=1-2", 200, b"abcdef"),
        ("bytes", 200, b"abcdef"),
    ],
)
def test_a_part_of_a_file_is_sent_and_a_part_that_is_none_is_all_of_it(door, ranges, status, said):
    with door.http() as http:
        file = http.post("/v1/files", files={"file": ("x", b"abcdef")}, data={"purpose": "batch"}).json()
        answer = http.get(f"/v1/files/{file['id']}/content", headers={"range": ranges})
    assert (answer.status_code, answer.content) == (status, said)


WRONG = {
    "endpoint": {"endpoint": "/v1/embeddings"},
    "completion_window": {"completion_window": "1h"},
    "metadata": {"metadata": {"k" * 65: "v"}},
    "output_expires_after.seconds": {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
    "unknown": {"unknown": 1},
    "input_file_id": {"input_file_id": "../../etc/passwd"},
}


def test_batches_and_queries_that_cannot_be_are_refused_by_the_field(door):
    with door.http() as http:
        good = {"input_file_id": "x", "endpoint": "/v1/completions", "completion_window": "24h"}
        for param, change in WRONG.items():
            answer = http.post("/v1/batches", json={**good, **change})
            assert answer.status_code == (404 if param == "input_file_id" else 400)
            assert answer.json()["error"]["param"] == param
        as_json = {"content-type": "application/json"}
        assert http.post("/v1/batches", content=b"{" * 10_000, headers=as_json).status_code == 400
        assert http.post("/v1/batches", content=b"x" * 20_000).status_code == 413
        for path in (
            "/v1/batches?limit=0",
            "/v1/batches?limit=101",
            "/v1/files?limit=x",
            "/v1/files?order=up",
        ):
            assert http.get(path).status_code == 400
        for path in ("/v1/files/..%2f..%2fetc", "/v1/files/x/content", "/v1/batches/x", "/v1/files?after=x"):
            assert http.get(path).status_code == 404


def test_operators_begin_look_at_and_cancel_jobs_and_it_is_put_down(door, capsys):
    def command(*arguments, admin=door.url):
        parser = argparse.ArgumentParser()
        add_jobs(parser)
        chosen = parser.parse_args([*arguments, "--admin", admin])
        assert chosen.run(chosen) == 0
        return capsys.readouterr().out

    number = json.loads(command("run", "health_sweep", "timeout_s=60", "--json"))["id"]
    for _ in range(6000):
        job = json.loads(command("show", str(number)))
        if job["state"] == "done":
            break
        threading.Event().wait(0.01)
    assert (job["kind"], job["arguments"]) == ("health_sweep", {"timeout_s": 60})
    assert job["result"] == {"replicas": dict.fromkeys("abc", "answered"), "failed": []}
    assert "health_sweep" in command("list", "--state", "done")
    assert "cache_scrub" in command("run")
    with pytest.raises(BadSettings, match="kind is 'nothing', but must be one of cache_rebalance"):
        command("run", "nothing")
    with pytest.raises(BadSettings, match="timeout_s is -1"):
        command("run", "health_sweep", "timeout_s=-1")
    with pytest.raises(BadSettings, match="no job has the id 999"):
        command("show", "999")
    with pytest.raises(EngineError, match="does not answer"):
        command("list", admin="http://127.0.0.1:9")
    command("cancel", str(number))
    with door.http("root") as http:
        later = http.post("/admin/jobs", json={"kind": "tidy", "delay_s": 1000}).json()
        assert later["state"] == "queued"
        assert http.post(f"/admin/jobs/{later['id']}/cancel").json()["state"] == "cancelled"
        put = http.put("/admin/jobs/schedules/mine", json={"kind": "tidy", "every_s": 60})
        assert (put.status_code, put.json()["every_s"]) == (200, 60)
        names = [each["name"] for each in http.get("/admin/jobs/schedules").json()["data"]]
        assert names == ["mine", "tidy"]
        for body in ({"kind": "tidy", "every_s": 0}, {"kind": "batch", "every_s": 9}, {"kind": "tidy"}):
            assert http.put("/admin/jobs/schedules/mine", json=body).status_code == 400
    facts = [json.loads(each) for each in (door.folder / "audit.jsonl").read_text().splitlines()]
    seen = {(fact["action"], fact["outcome"]) for fact in facts}
    assert {("job.submit", "done"), ("job.submit", "bad_request"), ("job.cancel", "done")} <= seen
    assert ("schedule.update", "done") in seen
    assert {fact["who"] for fact in facts} == {"key-of-root"}


def test_figures_tell_what_waits_runs_and_was_asked(door, request_line):
    with door.client() as client:
        file = client.files.create(file=("in.jsonl", request_line("a")), purpose="batch")
        window = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        wait_for(client, client.batches.create(input_file_id=file.id, **window), "completed")
    found = {figure.name: figure.values for figure in door.jobs.figures()}
    assert found["modelyard:batch_requests"] == {("asked",): 1.0, ("deferred",): 0.0}
    assert found["modelyard:batch_file_bytes"][()] > file.bytes
    assert found["modelyard:job_store_faults"] == {(): 0.0}
