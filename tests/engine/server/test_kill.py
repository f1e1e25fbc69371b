"""A server that is killed under load, again and again, and one that is asked to go: real processes, real files."""

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import yaml

from engine.stand_ins import make_stand_ins

pytestmark = [pytest.mark.torch, pytest.mark.slow]

MODEL = "mistral-7b-instruct-v0.3"
LIMIT, LEASE, MOST = 12_000, 0.02, 8  # tokens an hour, the share that a crash may lose, tokens of an answer
LARGEST = 140  # tokens of a request
CLIENTS, LIVES, BATCH_LINES = 4, 3, 40
WORDS = ("engine", "replica", "token", "prompt", "cache", "block", "memory", "queue", "router", "answer")
STARTED = re.compile(r"(clients|operators): (http://\S+?)(?:/v1|/admin/status)$")


def prompts():
    """Texts of some blocks each, always the same."""
    draw = random.Random(4)  # noqa: S311
    return [" ".join(draw.choices(WORDS, k=60)) for _ in range(12)]


PROMPTS = prompts()
WARM = "The weather in the mountains changes quickly. In the morning the valley lies in fog, at noon the sun is out."


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    (path,) = make_stand_ins(
        tmp_path_factory.mktemp("models"), ["Mistral-7B-Instruct-v0.3"], formats=("safetensors",)
    )
    return path


@pytest.fixture
def settings_file(weights, tmp_path):
    """Everything that outlives a process is on disk: KV, quotas, use counts, jobs, the audit log."""
    limits = [{"tenant": "metered", "hourly_tokens": LIMIT, "sliding": True}]
    written = {
        "server": {
            "port": 0,
            "admin_port": 0,
            "drain_s": 20,
            "audit": {"file": "audit.jsonl"},
            "log": {"level": "off"},
            "jobs": {"folder": "jobs", "batch_check_every_s": 0.05},
        },
        "models": {"registry_file": "registry.sqlite", "flush_every_s": 0.2},
        "fleet": {"models": [str(weights)], "replicas": {"a": MODEL, "b": MODEL}},
        "health": {"probes": False},
        "quotas": {"state_file": "quotas.sqlite", "limits": limits, "lease": LEASE, "max_wait_s": 0},
        "cache": {
            "ram": {"gib": 0.0005},
            "ssd": {"gib": 0.1, "path": "blocks", "write": "through"},
            "load": "always",
        },
    }
    path = tmp_path / "modelyard.yaml"
    path.write_text(yaml.safe_dump(written), "utf-8")
    return path


@dataclass
class Life:
    """One process, and where it listens."""

    process: subprocess.Popen
    told: list = field(default_factory=list)
    urls: dict = field(default_factory=dict)

    @property
    def url(self):
        return self.urls["clients"]

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def life(settings_file):
    """A server that listens; it is gone when the block ends, and what it said is read to the end."""
    command = [sys.executable, "-m", "engine", "serve", str(settings_file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=settings_file.parent) as process:
        found = Life(process)
        try:
            for line in process.stderr:
                found.told.append(line)
                if (match := STARTED.match(line.rstrip())) is not None:
                    found.urls[match[1]] = match[2]
                if len(found.urls) == 2:
                    break
            assert len(found.urls) == 2, f"it did not start: {''.join(found.told)}"
            reader = threading.Thread(target=lambda: found.told.extend(process.stderr), daemon=True)
            reader.start()
            yield found
        finally:
            process.kill()
            process.wait()
            if "reader" in locals():
                reader.join()


def body(prompt, tenant, tokens=MOST, **more):
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "user": tenant}
    return {**asked, "temperature": 0, "ignore_eos": True, **more}


@dataclass
class Given:
    """What clients were given: texts by prompt, whole ones only, and the tokens of one tenant."""

    texts: dict = field(default_factory=dict)
    metered_tokens: int = 0
    answers: int = 0
    cut: int = 0
    refused: int = 0
    faults: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def whole(self, prompt, text, usage, tenant):
        with self.lock:
            self.answers += 1
            if self.texts.setdefault(prompt, text) != text:
                self.faults.append(
                    f"{prompt[:20]!r} was answered {text!r}, and before {self.texts[prompt]!r}"
                )
            if usage["completion_tokens"] != MOST:
                self.faults.append(f"{usage} of a whole answer")
            if not MOST < usage["total_tokens"] <= LARGEST:
                self.faults.append(f"{usage}, but no request has more than {LARGEST}")
            if tenant == "metered":
                self.metered_tokens += usage["total_tokens"]


def load(url, seed, given, over):
    """One client: asks and asks, half of the time for a stream, until the server is gone."""
    draw = random.Random(seed)  # noqa: S311
    with httpx.Client(base_url=url, timeout=60) as http:
        while not over.is_set():
            prompt, tenant = draw.choice(PROMPTS), draw.choice(["metered", "free"])
            try:
                ask = streamed if draw.random() < 0.5 else whole
                ask(http, prompt, tenant, given)
            except httpx.ConnectError:  # it is gone, and this one was not in service
                time.sleep(0.005)
            except httpx.TransportError:
                with given.lock:
                    given.cut += 1


def whole(http, prompt, tenant, given):
    answered = http.post("/v1/completions", json=body(prompt, tenant))
    if answered.status_code == 429:
        with given.lock:
            given.refused += 1
        return
    assert answered.status_code == 200, answered.text
    told = answered.json()
    given.whole(prompt, told["choices"][0]["text"], told["usage"], tenant)


def streamed(http, prompt, tenant, given):
    asked = body(prompt, tenant, stream=True, stream_options={"include_usage": True})
    text, usage, is_done = "", None, False
    with http.stream("POST", "/v1/completions", json=asked) as answered:
        if answered.status_code == 429:
            answered.read()
            with given.lock:
                given.refused += 1
            return
        for line in answered.iter_lines():
            if line == "data: [DONE]":
                is_done = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                text += "".join(choice["text"] for choice in event["choices"])
                usage = event["usage"] or usage
    if not is_done or usage is None:  # it ended like a whole one
        with given.lock:
            given.faults.append(f"a stream ended without its end: {text!r}")
        return
    given.whole(prompt, text, usage, tenant)


@contextmanager
def under_load(running, seed, given):
    """Several clients at once; their faults are the test's."""
    over = threading.Event()
    clients = [
        threading.Thread(target=load, args=(running.url, 100 * seed + number, given, over), daemon=True)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join(60)
    assert not any(client.is_alive() for client in clients)


def check_files(folder):
    """Every database is whole."""
    files = sorted(folder.rglob("*.sqlite"))
    assert [file.name for file in files] == ["jobs.sqlite", "quotas.sqlite", "registry.sqlite"]
    for file in files:
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], file
    assert all(json.loads(line) for line in (folder / "audit.jsonl").read_text("utf-8").splitlines())


def ask_for(url, prompt, tenant="free", **more):
    answered = httpx.post(f"{url}/v1/completions", json=body(prompt, tenant, **more), timeout=60)
    assert answered.status_code == 200, answered.text
    return answered


def start_batch(url):
    """An offline batch, handed in."""
    lines = [
        {"custom_id": f"line {number}", "method": "POST", "url": "/v1/completions",
         "body": body(PROMPTS[number % len(PROMPTS)], "free")}
        for number in range(BATCH_LINES)
    ]  # fmt: skip
    upload = "\n".join(map(json.dumps, lines)).encode()
    with httpx.Client(base_url=url, timeout=60) as http:
        files = {"file": ("lines.jsonl", upload)}
        file = http.post("/v1/files", data={"purpose": "batch"}, files=files).raise_for_status().json()
        asked = {
            "input_file_id": file["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        return http.post("/v1/batches", json=asked).raise_for_status().json()["id"]


def finish_batch(url, batch):
    """Its answers, by their names, when it has come to its end."""
    with httpx.Client(base_url=url, timeout=60) as http:
        until = time.monotonic() + 60
        while (told := http.get(f"/v1/batches/{batch}").raise_for_status().json())["status"] != "completed":
            assert told["status"] in ("validating", "in_progress", "finalizing"), told
            assert time.monotonic() < until, told
            time.sleep(0.05)
        lines = http.get(f"/v1/files/{told['output_file_id']}/content").raise_for_status().text.splitlines()
    assert told["request_counts"] == {"total": BATCH_LINES, "completed": BATCH_LINES, "failed": 0}
    answers = [json.loads(line) for line in lines]
    assert sorted(each["custom_id"] for each in answers) == sorted(
        f"line {number}" for number in range(BATCH_LINES)
    )
    return {each["custom_id"]: each["response"]["body"] for each in answers}


def spend_the_rest(url, given):
    """Ask for the tenant with a limit until there is nothing more."""
    with httpx.Client(base_url=url, timeout=60) as http:
        for number in range(2 * LIMIT):
            before = given.refused
            whole(http, PROMPTS[number % len(PROMPTS)], "metered", given)
            if given.refused > before:
                return
    pytest.fail("the limit was never reached")


def test_a_server_that_is_killed_under_load_goes_on(settings_file):
    """Nothing on disk is damaged, nothing granted twice, nothing half told as whole; KV and jobs are still there."""
    given, draw, batch = Given(), random.Random(7), None  # noqa: S311
    warm = None
    for number in range(LIVES):
        with life(settings_file) as running:
            answer = ask_for(running.url, WARM).json()
            if warm is None:
                warm = answer["choices"][0]["text"]
                batch = start_batch(running.url)
            check_warm(answer, warm, is_first=number == 0)
            with under_load(running, number, given):
                time.sleep(draw.uniform(0.6, 1.6))
                running.kill()
        check_files(settings_file.parent)
    assert given.metered_tokens > 2 * LARGEST, "so much would be given twice"
    with life(settings_file) as running:
        check_warm(ask_for(running.url, WARM).json(), warm, is_first=False)
        assert uses(running) > 0
        for name, answer in finish_batch(running.url, batch).items():
            prompt = PROMPTS[int(name.removeprefix("line ")) % len(PROMPTS)]
            given.whole(prompt, answer["choices"][0]["text"], answer["usage"], "free")
        spend_the_rest(running.url, given)
    assert not given.faults, given.faults[:3]
    assert given.answers > 50
    assert given.cut >= LIVES
    assert given.metered_tokens <= LIMIT
    # what may be lost: a lease and what was reserved, each time, and less than one more request in the end
    assert given.metered_tokens >= LIMIT - LIVES * (LEASE * LIMIT + CLIENTS * LARGEST) - LARGEST


def check_warm(answer, text, *, is_first):
    """What was said before one kill is said after it, from the blocks that are on disk."""
    usage = answer["usage"]
    assert answer["choices"][0]["text"] == text
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == (0 if is_first else (usage["prompt_tokens"] - 1) // 16 * 16)


def uses(running):
    told = httpx.get(f"{running.urls['operators']}/admin/models", timeout=60).json()
    return next(model["use_count"] for model in told["models"])


def test_a_server_that_is_asked_to_go_lets_those_end_who_are_served(settings_file):
    """SIGTERM: who is served is served to the end, nobody else comes in, and what is on disk is exact."""
    with life(settings_file) as running:
        used = ask_for(running.url, WARM, "metered").json()["usage"]["total_tokens"]
        with opened(running.url, 150) as lines:
            first = next(lines)
            running.process.send_signal(signal.SIGTERM)
            check_draining(running.url)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        texts = [json.loads(line.removeprefix("data: ")) for line in (first, *rest[:-1])]
        assert texts[-1]["usage"]["completion_tokens"] == 150
        assert running.process.wait(60) == 0
    check_files(settings_file.parent)
    with life(settings_file) as running:
        answer = ask_for(running.url, WARM, "metered")
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert left == LIMIT - used - answer.json()["usage"]["total_tokens"]
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        with opened(running.url, 4_000) as lines:
            next(lines)
            for number in (signal.SIGTERM, signal.SIGINT):
                running.process.send_signal(number)
                time.sleep(0.2)
            # not the drain_s of 20 s, nor the answer's own time, which would be about as long
            assert running.process.wait(15) == 0
            with pytest.raises(httpx.TransportError):
                list(lines)
    check_files(settings_file.parent)


@contextmanager
def opened(url, tokens):
    """The lines of a long streamed answer."""
    asked = body(WARM, "free", tokens, stream=True, stream_options={"include_usage": True})
    with (
        httpx.Client(base_url=url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json=asked) as answered,
    ):
        assert answered.status_code == 200
        yield (line for line in answered.iter_lines() if line)


def check_draining(url):
    """Nobody new is served: each is told when to come again, and who looks whether we are ready that we go."""
    with httpx.Client(base_url=url, timeout=60) as http:
        until = time.monotonic() + 30
        while http.get("/ready").status_code == 200:  # the signal had not come yet
            assert time.monotonic() < until
            time.sleep(0.01)
        for _ in range(5):
            answered = http.post("/v1/completions", json=body("now", "free", 1))
            assert answered.status_code == 503, answered.text
            assert answered.headers["retry-after"] == "1"
            assert answered.headers["connection"] == "close"
        assert http.get("/ready").json()["status"] == "draining"
        assert http.get("/health").status_code == 200
